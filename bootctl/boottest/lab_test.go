package boottest

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

// Real GRUB on a small disk in QEMU. Its slots are programs of a few bytes that
// print "SLOT a" or "SLOT b" and stop; the test then looks at the disk, changes
// it, and resets the machine.

const (
	mib      = 1 << 20
	envStart = 10 * mib // partition 2
	slotA    = 11 * mib // partition 3, of 2 MiB
	slotB    = 13 * mib // partition 4, of 2 MiB
	diskSize = 16 * mib

	// A loaded machine slows the guest down; the longest boot seen took 10 s.
	bootTimeout = 90 * time.Second
)

// tools skips the test, or fails it in CI, if one of the programs or files is
// not there.
func tools(t *testing.T, names ...string) {
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

// grubImage makes a GRUB with the script in its memory disk.
func grubImage(t *testing.T, platform, script string, modules ...string) []byte {
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

// partitioned returns a disk with the board's partition table; type of the first
// partition as sgdisk names it.
func partitioned(t *testing.T, first string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, diskSize))
	run(t, "sgdisk", "-o", "-n", "1:2048:+9M", "-t", "1:"+first, "-c", "1:esp", "-n", "2:0:+1M", "-c", "2:env",
		"-n", "3:0:+2M", "-c", "3:boot_a", "-n", "4:0:+2M", "-c", "4:boot_b", file)
	disk, err := os.ReadFile(file)
	require.NoError(t, err)
	return disk
}

// fat returns a FAT file system of the given size with one file, or none if the
// path is empty.
func fat(t *testing.T, size int64, path string, content []byte) []byte {
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

// biosDisk returns a disk from which SeaBIOS boots GRUB with the script of p.
func biosDisk(t *testing.T, p grubenv.Params) []byte {
	t.Helper()
	script, err := grubenv.Config(p)
	require.NoError(t, err)
	core := grubImage(t, "i386-pc", script, append([]string{"biosdisk"}, grubenv.Modules(p)...)...)
	core = append(core, make([]byte, -len(core)&511)...)
	boot, err := os.ReadFile("/usr/lib/grub/i386-pc/boot.img")
	require.NoError(t, err)
	disk := partitioned(t, "ef02")
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
	copy(disk[mib:envStart], core)
	for at, name := range map[int64]string{slotA: "a", slotB: "b"} {
		copy(disk[at:], fat(t, 2*mib, grubenv.ImagePath, bootSector("SLOT "+name)))
	}
	return disk
}

// bootSector is a program for a PC's real mode that sends a line to the first
// serial port and stops.
func bootSector(line string) []byte {
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

// machine is a running QEMU.
type machine struct {
	t     *testing.T
	disk  *os.File
	lines chan string
	qmp   net.Conn
}

// start switches a machine on. Its first boot begins at once.
func start(t *testing.T, disk []byte, args ...string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "boottest") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "qmp")
	require.NoError(t, os.WriteFile(file, disk, 0o600))
	m := &machine{t: t, lines: make(chan string, 64)}
	m.disk, err = os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { m.disk.Close() })
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "DISK", file)
	}
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer listener.Close()
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", append([]string{"-accel", "tcg", "-m", "64",
		"-display", "none", "-vga", "none", "-nic", "none", "-serial", "stdio", "-monitor", "none", "-qmp", "unix:" + socket}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			m.lines <- s.Text()
		}
		close(m.lines)
	}()
	require.NoError(t, listener.(*net.UnixListener).SetDeadline(time.Now().Add(bootTimeout)))
	m.qmp, err = listener.Accept()
	require.NoError(t, err)
	m.command("qmp_capabilities")
	return m
}

func (m *machine) command(name string) {
	m.t.Helper()
	_, err := fmt.Fprintf(m.qmp, `{"execute":%q}`+"\n", name)
	require.NoError(m.t, err)
}

// boot waits until a slot runs or none does, and returns what GRUB said about it
// and which one.
func (m *machine) boot() (said []string, slot string) {
	m.t.Helper()
	timeout := time.After(bootTimeout)
	for {
		select {
		case line, ok := <-m.lines:
			require.True(m.t, ok, "QEMU ended; GRUB said %q", said)
			if i := strings.Index(line, "tandem: "); i >= 0 {
				line = strings.TrimSpace(line[i:])
				if !strings.HasPrefix(line, "tandem: watchdog") {
					said = append(said, line)
				}
				if line == "tandem: no slot loads" {
					return said, ""
				}
			}
			if i := strings.Index(line, "SLOT "); i >= 0 {
				return said, line[i+5 : i+6]
			}
		case <-timeout:
			require.Fail(m.t, "no slot came up", "GRUB said %q", said)
		}
	}
}

// env reads the copies' part of the environment partition.
func (m *machine) env() []byte {
	m.t.Helper()
	b := make([]byte, grubenv.LedgerOffset)
	_, err := m.disk.ReadAt(b, envStart)
	require.NoError(m.t, err)
	return b
}

// put writes to the disk while the machine stands still in a slot.
func (m *machine) put(b []byte, at int64) {
	m.t.Helper()
	_, err := m.disk.WriteAt(b, at)
	require.NoError(m.t, err)
}

// waitEvent returns when QEMU reports the event.
func (m *machine) waitEvent(name string) {
	m.t.Helper()
	require.NoError(m.t, m.qmp.SetReadDeadline(time.Now().Add(bootTimeout)))
	d := json.NewDecoder(m.qmp)
	for {
		var message struct{ Event string }
		require.NoError(m.t, d.Decode(&message))
		if message.Event == name {
			return
		}
	}
}
