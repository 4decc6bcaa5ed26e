package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards"
)

// unavailable ends a test whose means are not there: on a desk it is skipped, in
// CI that is a failure.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// program returns the path of an independent tool.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	unavailable(t, "%s is not installed", name)
	return ""
}

// ask runs a tool that has to accept what it is given, and returns what it says.
func ask(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program(t, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBUGFS_PAGER=cat", "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

func testBoard(t *testing.T) boards.Board {
	t.Helper()
	b, err := boards.Get("qemu-x86_64")
	require.NoError(t, err)
	if _, err := os.Stat(b.Kernel.Stub); err != nil {
		unavailable(t, "%v", err)
	}
	return b
}

// noise is content that does not compress and differs by seed.
func noise(seed, size int) []byte {
	b := make([]byte, size)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, data, 0o644))
	return name
}

// systemParts are small stand-ins for the inputs of a slot. The content is noise:
// nothing here starts the result.
func systemParts(t *testing.T, dir string) SlotOptions {
	t.Helper()
	b := testBoard(t)
	b.Kernel.Modules = nil
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "modules"), 0o755))
	root := filepath.Join(dir, "root")
	write(t, root+"/usr/lib/os-release", []byte("ID=test\n"))
	write(t, root+"/sbin/init", noise(3, 300_000))
	write(t, root+"/usr/share/a file with \"quotes\"", []byte("x"))
	require.NoError(t, os.Symlink("../usr/lib/os-release", filepath.Join(root, "etc-release")))
	return SlotOptions{
		Board: b, Modules: filepath.Join(dir, "modules"), Root: root, Keys: []byte(`{"keys":[]}`), Date: Epoch, Out: filepath.Join(dir, "out"),
		Kernel: write(t, filepath.Join(dir, "vmlinuz"), noise(1, 1_000_000)), Init: write(t, filepath.Join(dir, "init"), noise(2, 100_000)),
		RootFiles: []File{{Path: DevicePath, Mode: 0o600, Data: []byte("{}")}},
	}
}

// pages calls do for every page of a part of a file that is not zero. Disks are
// gigabytes of holes.
func pages(t *testing.T, name string, off, size int64, do func(at int64, page []byte)) {
	t.Helper()
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	data, err := extents(f, off+size)
	require.NoError(t, err)
	for _, e := range data {
		for at := max(e.off, off) / pageSize * pageSize; at < e.off+e.size; at += pageSize {
			page := make([]byte, min(pageSize, off+size-at))
			_, err := f.ReadAt(page, at)
			require.NoError(t, err)
			if !isZero(page) {
				do(at-off, page)
			}
		}
	}
}

// cut copies a part of a file into one of its own.
func cut(t *testing.T, from string, off, size int64, to string) string {
	t.Helper()
	out, err := os.Create(to)
	require.NoError(t, err)
	require.NoError(t, out.Truncate(size))
	pages(t, from, off, size, func(at int64, page []byte) {
		_, err := out.WriteAt(page, at)
		require.NoError(t, err)
	})
	require.NoError(t, out.Close())
	return to
}

// content returns a digest of a part of a file, equal for equal bytes.
func content(t *testing.T, name string, off, size int64) string {
	t.Helper()
	h := sha256.New()
	pages(t, name, off, size, func(at int64, page []byte) { fmt.Fprintf(h, "%d %s", at, page) })
	return fmt.Sprintf("%x", h.Sum(nil))
}

// The disk that comes out is accepted by every tool that looks at its kind of
// thing, holds what went in, and comes out the same the next time.
func TestDisk(t *testing.T) {
	program(t, "grub-mkimage")
	ctx := context.Background()
	var disks [2]string
	var o SlotOptions
	var set SlotSet
	for i := range disks {
		dir := t.TempDir()
		o = systemParts(t, dir)
		var err error
		set, err = Slots(ctx, o)
		require.NoError(t, err)
		write(t, dir+"/data/tandem/provision/id", []byte("device-1"))
		require.NoError(t, os.Chmod(dir+"/data/tandem/provision/id", 0o600))
		disks[i] = filepath.Join(dir, "disk.img")
		require.NoError(t, Build(ctx, DiskOptions{
			Board: o.Board, BootImage: o.Out + "/boot.img", RootImage: o.Out + "/root.img", Provision: dir + "/data",
		}, disks[i]))
	}
	size := o.Board.DiskSize()
	require.Equal(t, content(t, disks[0], 0, size), content(t, disks[1], 0, size), "two builds from the same input differ")
	info, err := os.Stat(disks[0])
	require.NoError(t, err)
	require.Equal(t, size, info.Size())

	disk, dir := disks[1], t.TempDir()
	require.Contains(t, ask(t, "sgdisk", "-v", disk), "No problems found")
	part := func(label string) string {
		p, err := o.Board.Place(label)
		require.NoError(t, err)
		return cut(t, disk, p.Start, p.Size, filepath.Join(dir, label))
	}
	for _, label := range []string{"esp", "env", "boot_a"} {
		ask(t, "fsck.vfat", "-n", part(label))
	}
	require.NotContains(t, ask(t, "e2fsck", "-fn", part("data")), "Fix?")
	require.Equal(t, "device-1", ask(t, "debugfs", "-R", "cat /tandem/provision/id", dir+"/data")[len("debugfs 1.47.0 (5-Feb-2023)\n"):])
	require.Contains(t, ask(t, "debugfs", "-R", "stat /tandem/provision/id", dir+"/data"), "Mode:  0600")

	ask(t, "mcopy", "-n", "-i", dir+"/esp", "::/EFI/BOOT/BOOTX64.EFI", dir+"/grub.efi")
	require.Contains(t, ask(t, "objdump", "-f", dir+"/grub.efi"), "pei-x86-64")
	require.NoError(t, os.Truncate(cut(t, dir+"/env", 64<<10, 1024, dir+"/copy0"), 1024))
	require.Contains(t, ask(t, "grub-editenv", dir+"/copy0", "list"), "good=a")

	root := part("root_a")
	verity := set.Images[1].Verity
	ask(t, "veritysetup", "verify", root, root, verity.RootHash, fmt.Sprintf("--hash-offset=%d", verity.DataBlocks*4096))
	require.NotContains(t, ask(t, "e2fsck", "-fn", root), "Fix?")
	for _, label := range []string{"boot_b", "root_b"} {
		p, err := o.Board.Place(label)
		require.NoError(t, err)
		pages(t, disk, p.Start, p.Size, func(int64, []byte) { t.Fatalf("%s of a new disk is not empty", label) })
	}
}

// A device is given its identity later: the data partition is replaced, and
// nothing else on the disk changes.
func TestProvisionData(t *testing.T) {
	program(t, "grub-mkimage")
	ctx := context.Background()
	dir := t.TempDir()
	o := systemParts(t, dir)
	_, err := Slots(ctx, o)
	require.NoError(t, err)
	disk := dir + "/disk.img"
	require.NoError(t, Build(ctx, DiskOptions{Board: o.Board, BootImage: o.Out + "/boot.img", RootImage: o.Out + "/root.img"}, disk))
	data, err := o.Board.Place("data")
	require.NoError(t, err)
	before := content(t, disk, 0, data.Start)

	for _, id := range []string{"first", "second"} {
		write(t, dir+"/provision/tandem/id", []byte(id))
		require.NoError(t, ProvisionData(ctx, disk, o.Board, dir+"/provision"))
		img := cut(t, disk, data.Start, data.Size, dir+"/data")
		ask(t, "e2fsck", "-fn", img)
		require.True(t, strings.HasSuffix(ask(t, "debugfs", "-R", "cat /tandem/id", img), id))
	}
	require.Equal(t, before, content(t, disk, 0, data.Start))
	require.Contains(t, ask(t, "sgdisk", "-v", disk), "No problems found")

	other := write(t, dir+"/other.img", make([]byte, 1<<20))
	require.Error(t, ProvisionData(ctx, other, o.Board, ""), "a file without the board's partitions")
}

// What cannot work is refused by name, and leaves no file that looks like an image.
func TestBuildRefuses(t *testing.T) {
	program(t, "grub-mkimage")
	ctx := context.Background()
	dir := t.TempDir()
	o := systemParts(t, dir)
	boot := write(t, dir+"/boot.img", noise(1, 65_536))
	root := write(t, dir+"/root.img", noise(2, 65_536))
	for name, c := range map[string]struct {
		change func(o *DiskOptions)
		want   string
	}{
		"a boot image larger than its partition": {func(o *DiskOptions) {
			require.NoError(t, os.Truncate(write(t, dir+"/large", nil), 64<<20+1))
			o.BootImage = dir + "/large"
		}, "boot_a has room"},
		"no root image":                     {func(o *DiskOptions) { o.RootImage = dir + "/none" }, "none"},
		"a manifest that is none":           {func(o *DiskOptions) { o.Envelope = []byte("{}") }, "manifest"},
		"a folder of data that is not here": {func(o *DiskOptions) { o.Provision = dir + "/none" }, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			d := DiskOptions{Board: o.Board, BootImage: boot, RootImage: root}
			c.change(&d)
			out := filepath.Join(t.TempDir(), "disk.img")
			require.ErrorContains(t, Build(ctx, d, out), c.want)
			left, err := os.ReadDir(filepath.Dir(out))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
	o.Board.Disk.Partitions[4].SizeMiB = 16
	_, err := Slots(ctx, o)
	require.ErrorIs(t, err, ErrTooLarge)
	require.NoFileExists(t, filepath.Join(o.Out, SlotsFile))
}

// The kernel image is taken apart by binutils into the bytes that went in, and the
// initramfs by cpio.
func TestSlots(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	o := systemParts(t, dir)
	o.Append = "debug"
	set, err := Slots(ctx, o)
	require.NoError(t, err)
	require.Equal(t, "boot", set.Images[0].Target)
	boot := o.Out + "/boot.img"
	require.NoError(t, os.Truncate(boot, 64<<20))
	ask(t, "fsck.vfat", "-n", boot)
	uki := dir + "/linux.efi"
	ask(t, "mcopy", "-n", "-i", boot, "::/linux.efi", uki)
	section := func(name string) []byte {
		out := filepath.Join(dir, name)
		ask(t, "objcopy", "--dump-section", name+"="+out, uki, dir+"/rest.efi")
		data, err := os.ReadFile(out)
		require.NoError(t, err)
		return data
	}
	kernel, err := os.ReadFile(o.Kernel)
	require.NoError(t, err)
	require.True(t, bytes.Equal(kernel, section(".linux")))
	require.Equal(t, "ID=test\n", string(section(".osrel")))
	v := set.Images[1].Verity
	require.Equal(t, fmt.Sprintf("%s tandem.verity=1,%d,%s,%s tandem.watchdog=60 debug", o.Board.Kernel.Cmdline, v.DataBlocks, v.Salt, v.RootHash), string(section(".cmdline")))
	cpio := write(t, dir+"/initrd", section(".initrd"))
	list := ask(t, "sh", "-c", "cpio --quiet -tv < "+cpio)
	for _, want := range []string{"init", "etc/tandem/release-keys.json", "etc/tandem/board.json", "etc/tandem/modules", "dev/console"} {
		require.Contains(t, list, " "+want+"\n")
	}
	require.Regexp(t, `(?m)^crw-------.* 5, +1 .*dev/console$`, list)

	root := o.Out + "/root.img"
	stat := func(path string) string { return ask(t, "debugfs", "-R", "stat "+path, root) }
	require.Contains(t, stat(DevicePath), "Mode:  0600")
	require.Contains(t, stat("/sbin/init"), "User:     0   Group:     0")
	require.Contains(t, ask(t, "debugfs", "-R", "cat "+KeysPath, root), string(o.Keys))
	require.Contains(t, stat("/data"), "Type: directory")
}
