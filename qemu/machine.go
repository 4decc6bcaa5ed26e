package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Buses with a free slot for hot-plugged virtio disks (Plug).
const rootPorts = 4

// args is QEMU's command line. Descriptors 3, 4, 5 and 6 are the wires of the
// console, the command port, the monitor and the TPM, in spawn's order.
func (d *Device) args() []string {
	c := d.cfg
	a := []string{
		"-name", "tandem-" + c.Name,
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-machine", "q35", "-accel", c.Accel,
		// RDRAND in the guest: without it and without virtio-rng the entropy
		// pool of a fresh boot is never seeded, and DHCP clients spin.
		"-cpu", "max",
		"-m", strconv.Itoa(c.Memory), "-smp", strconv.Itoa(c.CPUs),
		"-chardev", "socket,id=console,fd=3", "-serial", "chardev:console",
		"-chardev", "socket,id=port,fd=4", "-serial", "chardev:port",
		"-chardev", "socket,id=monitor,fd=5", "-mon", "chardev=monitor,mode=control",
		"-device", "virtio-blk-pci,drive=disk,bootindex=1,serial=tandem",
		"-netdev", d.netdev(), "-device", "virtio-net-pci,id=net0,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
		"-device", "qemu-xhci,id=usb",
	}
	a = append(a, d.drive()...)
	for i := range rootPorts {
		a = append(a, "-device", fmt.Sprintf("pcie-root-port,id=rp%d,chassis=%d,slot=%d", i, i+1, i+1))
	}
	// A reset takes the memory with it; blank tells why it must.
	a = append(a, "-device", "loader,file="+escape(d.blank()))
	if !c.BIOS {
		a = append(a,
			"-drive", "if=pflash,format=raw,readonly=on,file="+escape(d.tools.code),
			"-drive", "if=pflash,format=raw,file="+escape(d.vars()))
	}
	if !c.NoWatchdog {
		a = append(a, "-device", "i6300esb,id=watchdog", "-action", "watchdog=reset")
	}
	if c.TPM {
		a = append(a, "-chardev", "socket,id=tpm,fd=6", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	}
	return a
}

// drive is the disk. Its cache is writeback: the guest sees a disk with a volatile
// cache and has to flush; the other modes hide a missing flush from it.
func (d *Device) drive() []string {
	if !d.cfg.LogWrites {
		return []string{"-drive", "if=none,id=disk,format=raw,discard=unmap,cache=writeback,file=" + escape(d.Disk())}
	}
	return []string{
		"-blockdev", "driver=file,node-name=disk-file,discard=unmap,filename=" + escape(d.Disk()),
		"-blockdev", "driver=file,node-name=disk-log,filename=" + escape(d.Writes()),
		// Without the interval the log says how long it is only if QEMU ends in peace.
		"-blockdev", "driver=blklogwrites,node-name=disk,file=disk-file,log=disk-log,log-sector-size=512,log-super-update-interval=1,discard=unmap",
	}
}

// logRoom is what may be written from one power-on to the next, with the log's own
// entries. The file is sparse, and QEMU does not make it longer.
const logRoom = 2 << 30

func (d *Device) emptyLog() error {
	if !d.cfg.LogWrites {
		return nil
	}
	log, err := os.Create(d.Writes())
	if err != nil {
		return err
	}
	return errors.Join(log.Truncate(logRoom), log.Close())
}

func (d *Device) netdev() string {
	s := "user,id=net"
	for _, f := range d.cfg.Forward {
		s += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", f.Host, f.Guest)
	}
	return s
}

// escape doubles the commas of a file name: QEMU's options end at a single one.
func escape(path string) string {
	var b []byte
	for i := 0; i < len(path); i++ {
		if path[i] == ',' {
			b = append(b, ',')
		}
		b = append(b, path[i])
	}
	return string(b)
}

func (d *Device) vars() string     { return filepath.Join(d.cfg.Dir, "vars.fd") }
func (d *Device) tpmDir() string   { return filepath.Join(d.cfg.Dir, "tpm") }
func (d *Device) tpmNVRAM() string { return filepath.Join(d.tpmDir(), "tpm2-00.permall") }

// swtpmArgs lets swtpm serve descriptor 3 and end with the connection.
func (d *Device) swtpmArgs() []string {
	return []string{"socket", "--tpm2", "--tpmstate", "dir=" + d.tpmDir(), "--ctrl", "type=unixio,clientfd=3", "--terminate"}
}

// manufacture makes what a new device has when it leaves the factory. Each
// file is written under another name and renamed, so that an interrupted
// manufacture is never taken for a device.
func (d *Device) manufacture(ctx context.Context) error {
	if missing(d.Disk()) {
		if d.cfg.Image == "" {
			return errors.New("no disk yet and no image to start with")
		}
		if err := CopySparse(ctx, d.Disk(), d.cfg.Image); err != nil {
			return err
		}
	}
	if !d.cfg.BIOS && missing(d.vars()) {
		if err := CopySparse(ctx, d.vars(), d.tools.vars); err != nil {
			return err
		}
	}
	if d.cfg.TPM && missing(d.tpmNVRAM()) {
		return d.manufactureTPM(ctx)
	}
	return nil
}

func (d *Device) manufactureTPM(ctx context.Context) error {
	temp := d.tpmDir() + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, d.tools.swtpmSetup, "--tpm2", "--tpmstate", temp, "--createek", "--pcr-banks", "sha256").CombinedOutput()
	if err != nil {
		return fmt.Errorf("manufacture TPM: %w: %s", err, out)
	}
	if err := os.RemoveAll(d.tpmDir()); err != nil {
		return err
	}
	return os.Rename(temp, d.tpmDir())
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}
