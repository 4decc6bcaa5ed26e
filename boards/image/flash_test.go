package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/partition"
)

// diskImage makes a small sparse disk image with three partitions and content in
// some places, the ends of partitions among them.
func diskImage(t *testing.T) (string, boards.Board) {
	t.Helper()
	b, err := boards.Get("qemu-x86_64")
	require.NoError(t, err)
	b.Disk.Partitions = []boards.Partition{
		{Label: "esp", Type: "esp", SizeMiB: 3}, {Label: "root_a", Type: "linux", SizeMiB: 40}, {Label: "data", Type: "linux", SizeMiB: 4},
	}
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(b.DiskSize()))
	for _, off := range []int64{1 << 20, 5<<20 + 512, 30<<20 + 4096, 48<<20 - 100} {
		_, err := f.WriteAt(noise(int(off), 100), off)
		require.NoError(t, err)
	}
	_, err = f.WriteAt(noise(1, 3<<20+77), 8<<20)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, writeTable(b, name))
	return name, b
}

// target makes a file that is full of an older system.
func target(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "device")
	old := noise(99, 1<<20)
	f, err := os.Create(name)
	require.NoError(t, err)
	for off := int64(0); off < size; off += int64(len(old)) {
		_, err := f.WriteAt(old[:min(int64(len(old)), size-off)], off)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	return name
}

// After flashing, the device holds the image and nothing of what it held before,
// holes included; a larger device has its backup table at its end.
func TestFlash(t *testing.T) {
	img, b := diskImage(t)
	size := b.DiskSize()
	for name, extra := range map[string]int64{
		"a device as large as the image": 0, "a little larger": 512, "a larger one": 7 << 20, "of an odd size": 3<<20 + 4096 + 512,
	} {
		t.Run(name, func(t *testing.T) {
			dev := target(t, size+extra)
			last := make(map[string]int64)
			require.NoError(t, Flash(context.Background(), img, dev, func(p Progress) {
				require.GreaterOrEqual(t, p.Done, last[p.Phase])
				require.LessOrEqual(t, p.Done, p.Total)
				last[p.Phase] = p.Done
			}))
			require.Equal(t, map[string]int64{"write": size, "check": size}, last)
			require.Contains(t, ask(t, "sgdisk", "-v", dev), "No problems found")
			from, to := int64(1<<20), size-(1<<20)
			if extra == 0 {
				from, to = 0, size
			}
			require.Equal(t, content(t, img, from, to-from), content(t, dev, from, to-from))
			require.Equal(t, ask(t, "sgdisk", "-i", "2", img), ask(t, "sgdisk", "-i", "2", dev))
			info, err := os.Stat(dev)
			require.NoError(t, err)
			require.Equal(t, size+extra, info.Size())
		})
	}
}

// What must not be written is refused before a byte of it changes.
func TestFlashRefuses(t *testing.T) {
	img, b := diskImage(t)
	ctx := context.Background()
	small := target(t, b.DiskSize()-512)
	before := content(t, small, 0, b.DiskSize()-512)
	require.ErrorIs(t, Flash(ctx, img, small, nil), ErrTooSmall)
	noTable := target(t, 4<<20)
	require.ErrorIs(t, Flash(ctx, noTable, small, nil), ErrNoImage)
	require.Equal(t, before, content(t, small, 0, b.DiskSize()-512))

	require.ErrorContains(t, Flash(ctx, img, img, nil), "same file")
	require.ErrorIs(t, Flash(ctx, img, filepath.Join(t.TempDir(), "sdx"), nil), os.ErrNotExist)
	require.Error(t, Flash(ctx, img, "/dev/null", nil))
	require.Error(t, Flash(ctx, img, t.TempDir(), nil))

	busy := target(t, b.DiskSize())
	held, err := partition.OpenFile(busy)
	require.NoError(t, err)
	defer held.Close()
	require.ErrorIs(t, Flash(ctx, img, busy, nil), partition.ErrBusy)
}

// A device on which flashing was given up has no partition table, neither the old
// one nor the new: nobody takes it for a good one.
func TestFlashCancelled(t *testing.T) {
	img, b := diskImage(t)
	dev := target(t, b.DiskSize()+1<<20)
	require.NoError(t, Flash(context.Background(), img, dev, nil))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, Flash(ctx, img, dev, nil), context.Canceled)
	d, err := partition.OpenRead(dev)
	require.NoError(t, err)
	defer d.Close()
	_, err = partition.ReadTable(d, 512)
	require.ErrorIs(t, err, partition.ErrTable)
	require.NoError(t, Flash(context.Background(), img, dev, nil))
}

// A medium that does not hold what was written to it is found out, in data and in
// holes, and the message says where.
func TestFlashReadBack(t *testing.T) {
	img, b := diskImage(t)
	for name, off := range map[string]int64{"data": 9 << 20, "hole": 20<<20 + 4096*3, "first byte of a partition": 1 << 20, "table": 1024} {
		t.Run(name, func(t *testing.T) {
			dev := target(t, b.DiskSize())
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			err = Flash(context.Background(), img, dev, func(p Progress) {
				// The check's first report comes when all is written.
				if p.Phase == "check" && p.Done <= 2<<20 || p.Phase == "write" && p.Done == p.Total && off < 2<<20 {
					_, err := f.WriteAt([]byte("bad"), off)
					require.NoError(t, err)
				}
			})
			if off == 1024 {
				require.ErrorIs(t, err, partition.ErrTable)
				return
			}
			require.ErrorIs(t, err, ErrReadBack)
			require.ErrorContains(t, err, "at byte")
		})
	}
}

// A real block device is written like a file, and not while it is mounted.
func TestFlashBlockDevice(t *testing.T) {
	if os.Getuid() != 0 {
		unavailable(t, "loop devices need root")
	}
	img, b := diskImage(t)
	backing := target(t, b.DiskSize()+8<<20)
	out, err := exec.Command(program(t, "losetup"), "-f", "--show", backing).Output()
	if err != nil {
		unavailable(t, "losetup: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	defer func() { require.NoError(t, exec.Command(program(t, "losetup"), "-d", dev).Run()) }()
	require.NoError(t, Flash(context.Background(), img, dev, nil))
	require.Contains(t, ask(t, "sgdisk", "-v", dev), "No problems found")
	require.Equal(t, content(t, img, 1<<20, 47<<20), content(t, backing, 1<<20, 47<<20))

	ask(t, "mke2fs", "-q", "-F", dev, "4096")
	at := t.TempDir()
	if err := unix.Mount(dev, at, "ext4", unix.MS_RDONLY, ""); errors.Is(err, unix.EPERM) {
		unavailable(t, "mount: %v", err)
	} else {
		require.NoError(t, err)
	}
	defer func() { require.NoError(t, unix.Unmount(at, 0)) }()
	require.ErrorIs(t, Flash(context.Background(), img, dev, nil), partition.ErrBusy)
}
