// Package lab is the real GRUB on a small disk in QEMU, a third of a second per
// boot: what a loader's model is compared with, and what disks are tried on that a
// power cut may have left.
//
// The slots of such a disk are programs of a few bytes that print a line, by
// convention "SLOT a" or "SLOT b", and stop; the test then looks at the disk, changes
// it, and resets the machine.
//
// Tests that use it skip where QEMU or GRUB is not installed, and fail there in CI.
package lab

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/grubenv"
)

const mib = 1 << 20

// Where the partitions of a disk are, in bytes. Behind those that GRUB looks at are
// two for root file systems, which are empty.
const (
	First    = 1 * mib  // partition 1, of 9 MiB: GRUB itself
	Env      = 10 * mib // partition 2, of 1 MiB
	BootA    = 11 * mib // partition 3, of BootSize
	BootB    = 13 * mib // partition 4, of BootSize
	RootA    = 15 * mib // partition 5, of RootSize
	RootB    = 19 * mib // partition 6, of RootSize
	BootSize = 2 * mib
	RootSize = 4 * mib

	diskSize = 24 * mib
)

// A loaded machine slows the guest down; the longest boot seen took 10 s.
const bootTimeout = 90 * time.Second

// Params are the boot script's for such a disk.
func Params() grubenv.Params {
	return grubenv.Params{Env: 2, BootA: 3, BootB: 4, Serial: 0}
}

// BIOS skips the test, or fails it in CI, if something is missing that [BIOSDisk] and
// [Start] need.
func BIOS(t *testing.T) {
	t.Helper()
	Tools(t, "qemu-system-x86_64", "grub-mkimage", "sgdisk", "mkfs.vfat", "mcopy", "/usr/lib/grub/i386-pc/boot.img")
}

// Tools skips the test, or fails it in CI, if one of the programs or files is not
// there.
func Tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		_, err := exec.LookPath(name)
		if strings.HasPrefix(name, "/") {
			_, err = os.Stat(name)
		}
		if err == nil {
			continue
		}
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%v; install qemu-system-x86 grub-pc-bin grub-efi-amd64-bin grub-common ovmf gdisk dosfstools mtools", err)
		}
		t.Skipf("%v", err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
}

// GRUBImage makes a GRUB with the script in its memory disk.
func GRUBImage(t *testing.T, platform, script string, modules ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	var memdisk bytes.Buffer
	w := tar.NewWriter(&memdisk)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "boot/grub/grub.cfg", Mode: 0o644, Size: int64(len(script))}))
	_, err := w.Write([]byte(script))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	tarFile, out := filepath.Join(dir, "memdisk.tar"), filepath.Join(dir, "grub")
	require.NoError(t, os.WriteFile(tarFile, memdisk.Bytes(), 0o600))
	run(t, "grub-mkimage", append([]string{"-O", platform, "-p", "(memdisk)/boot/grub", "-m", tarFile, "-o", out}, modules...)...)
	image, err := os.ReadFile(out)
	require.NoError(t, err)
	return image
}

// Partitioned returns a disk with the board's partition table; type of the first
// partition as sgdisk names it.
func Partitioned(t *testing.T, first string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, diskSize))
	run(t, "sgdisk", "-o", "-n", "1:2048:+9M", "-t", "1:"+first, "-c", "1:esp", "-n", "2:0:+1M", "-c", "2:env",
		"-n", "3:0:+2M", "-c", "3:boot_a", "-n", "4:0:+2M", "-c", "4:boot_b",
		"-n", "5:0:+4M", "-c", "5:root_a", "-n", "6:0:+4M", "-c", "6:root_b", file)
	disk, err := os.ReadFile(file)
	require.NoError(t, err)
	return disk
}

// FAT returns a FAT file system of the given size with one file, or none if the
// path is empty.
func FAT(t *testing.T, size int64, path string, content []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	image, file := filepath.Join(dir, "fat"), filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	run(t, "mkfs.vfat", image)
	if path != "" {
		require.NoError(t, os.WriteFile(file, content, 0o600))
		for i := 1; i < len(path); i++ {
			if path[i] == '/' {
				run(t, "mmd", "-i", image, "::"+path[:i])
			}
		}
		run(t, "mcopy", "-i", image, file, "::"+path)
	}
	b, err := os.ReadFile(image)
	require.NoError(t, err)
	return b
}

// BIOSDisk returns a disk from which SeaBIOS boots GRUB with the script of p.
func BIOSDisk(t *testing.T, p grubenv.Params) []byte {
	t.Helper()
	script, err := grubenv.Config(p)
	require.NoError(t, err)
	core := GRUBImage(t, "i386-pc", script, append([]string{"biosdisk"}, grubenv.Modules(p)...)...)
	core = append(core, make([]byte, -len(core)&511)...)
	boot, err := os.ReadFile("/usr/lib/grub/i386-pc/boot.img")
	require.NoError(t, err)
	disk := Partitioned(t, "ef02")
	// What grub-bios-setup does: the boot sector gets the number of core.img's
	// first sector (byte 0x5c), and that sector where the rest is: start, length
	// and the segment to load it to (byte 0x1f4).
	const first = mib / 512
	le := binary.LittleEndian
	le.PutUint64(boot[0x5c:], first)
	copy(disk, boot[:440])
	le.PutUint64(core[0x1f4:], first+1)
	le.PutUint16(core[0x1fc:], uint16(len(core)/512-1))
	le.PutUint16(core[0x1fe:], 0x820)
	copy(disk[mib:Env], core)
	for at, name := range map[int64]string{BootA: "a", BootB: "b"} {
		copy(disk[at:], FAT(t, BootSize, grubenv.ImagePath, BootSector("SLOT "+name)))
	}
	return disk
}

// BootSector is a program for a PC's real mode that sends a line to the first
// serial port and stops.
func BootSector(line string) []byte {
	code := []byte{
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xfc, // cli; xor ax,ax; mov ds,ax; cld
		0xbe, 0x24, 0x7c, // mov si, 0x7c24
		0xac, 0x84, 0xc0, 0x74, 0x12, // 9: lodsb; test al,al; jz 0x20
		0x88, 0xc4, 0xba, 0xfd, 0x03, // mov ah,al; mov dx,0x3fd
		0xec, 0xa8, 0x20, 0x74, 0xfb, // 0x13: in al,dx; test al,0x20; jz 0x13
		0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, // mov al,ah; mov dx,0x3f8; out dx,al
		0xeb, 0xe9, // jmp 9
		0xf4, 0xeb, 0xfd, // 0x20: hlt; jmp 0x20
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[0x24:], line+"\n\x00")
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// Machine is a running QEMU.
type Machine struct {
	T     *testing.T // that fails if something does
	Disk  *os.File   // may be changed while the machine stands still in a slot
	dir   string
	args  []string
	cmd   *exec.Cmd
	lines chan string
	qmp   net.Conn
}

// Start switches a machine on. Its first boot begins at once.
func Start(t *testing.T, disk []byte, args ...string) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "boottest") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(file, disk, 0o600))
	m := &Machine{T: t, dir: dir}
	m.Disk, err = os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { m.Disk.Close() })
	for _, arg := range args {
		m.args = append(m.args, strings.ReplaceAll(arg, "DISK", file))
	}
	m.On()
	t.Cleanup(m.Kill)
	return m
}

// On switches a machine on again that was killed. Its boot begins at once.
func (m *Machine) On() {
	m.T.Helper()
	socket := filepath.Join(m.dir, "qmp")
	listener, err := net.Listen("unix", socket)
	require.NoError(m.T, err)
	defer listener.Close()
	m.cmd = exec.Command("qemu-system-x86_64", append([]string{"-accel", "tcg", "-m", "64",
		"-display", "none", "-vga", "none", "-nic", "none", "-serial", "stdio", "-monitor", "none", "-qmp", "unix:" + socket}, m.args...)...)
	m.cmd.Stderr = os.Stderr
	out, err := m.cmd.StdoutPipe()
	require.NoError(m.T, err)
	require.NoError(m.T, m.cmd.Start())
	lines := make(chan string, 64)
	m.lines = lines
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			lines <- s.Text()
		}
		close(lines)
	}()
	require.NoError(m.T, listener.(*net.UnixListener).SetDeadline(time.Now().Add(bootTimeout)))
	m.qmp, err = listener.Accept()
	require.NoError(m.T, err)
	m.Command("qmp_capabilities")
}

// Kill ends QEMU as kill -9 does, at whatever it is.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill()
	for range m.lines { // its end is the end of what it says
	}
	_ = m.cmd.Wait()
	m.qmp.Close()
}

// Command gives QEMU a command of QMP without arguments, as "system_reset".
func (m *Machine) Command(name string) {
	m.T.Helper()
	_, err := fmt.Fprintf(m.qmp, `{"execute":%q}`+"\n", name)
	require.NoError(m.T, err)
}

// Boot waits until a slot runs or none does, and returns what GRUB said about it
// and which one.
func (m *Machine) Boot() (said []string, slot string) {
	m.T.Helper()
	said, slot, booted := m.BootWithin(bootTimeout)
	require.True(m.T, booted, "no slot came up; GRUB said %q", said)
	return said, slot
}

// BootWithin is Boot for a while only; booted says whether that was enough.
func (m *Machine) BootWithin(d time.Duration) (said []string, slot string, booted bool) {
	m.T.Helper()
	timeout := time.After(d)
	for {
		select {
		case line, ok := <-m.lines:
			require.True(m.T, ok, "QEMU ended; GRUB said %q", said)
			if i := strings.Index(line, "tandem: "); i >= 0 {
				line = strings.TrimSpace(line[i:])
				if !strings.HasPrefix(line, "tandem: watchdog") {
					said = append(said, line)
				}
				if line == "tandem: no slot loads" {
					return said, "", true
				}
			}
			if i := strings.Index(line, "SLOT "); i >= 0 {
				return said, line[i+5 : i+6], true
			}
		case <-timeout:
			return said, "", false
		}
	}
}

// Env reads the copies' part of the environment partition.
func (m *Machine) Env() []byte {
	m.T.Helper()
	b := make([]byte, grubenv.LedgerOffset)
	_, err := m.Disk.ReadAt(b, Env)
	require.NoError(m.T, err)
	return b
}

// Put writes to the disk while the machine stands still in a slot.
func (m *Machine) Put(b []byte, at int64) {
	m.T.Helper()
	_, err := m.Disk.WriteAt(b, at)
	require.NoError(m.T, err)
}

// WaitEvent returns when QEMU reports the event.
func (m *Machine) WaitEvent(name string) {
	m.T.Helper()
	require.NoError(m.T, m.qmp.SetReadDeadline(time.Now().Add(bootTimeout)))
	d := json.NewDecoder(m.qmp)
	for {
		var message struct{ Event string }
		require.NoError(m.T, d.Decode(&message))
		if message.Event == name {
			return
		}
	}
}
