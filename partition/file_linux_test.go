package partition

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// loop makes a block device of size bytes, which needs root and /dev/loop*.
func loop(t *testing.T, size int) string {
	t.Helper()
	tool := needTool(t, "losetup", "mount")
	if os.Geteuid() != 0 {
		lacking(t, "a loop device needs root")
	}
	backing := filepath.Join(t.TempDir(), "backing")
	require.NoError(t, os.WriteFile(backing, noise(1, size), 0o600))
	return loopOver(t, tool, backing)
}

func loopOver(t *testing.T, tool, backing string) string {
	t.Helper()
	out, err := exec.Command(tool, "--find", "--show", backing).Output()
	if err != nil {
		lacking(t, "no loop device: "+err.Error())
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command(tool, "--detach", dev).Run()) })
	return dev
}

// A file and a block device behave alike: what is written is read back from the
// cache and from the medium, at any alignment, and neither grows.
func TestFileReadsWhatItWrote(t *testing.T) {
	const size = 3*LeafSize + 4096 + 512
	check := func(t *testing.T, path string) {
		f, err := OpenFile(path)
		require.NoError(t, err)
		defer f.Close()
		require.EqualValues(t, size, f.Size())
		require.Equal(t, 512, f.SectorSize())
		want := noise(1, size)
		for _, span := range [][2]int64{{0, size}, {1, 5}, {4095, 2}, {512, 70000}, {size - 700, 700}, {LeafSize, LeafSize}} {
			copy(want[span[0]:], noise(byte(span[0]), int(span[1])))
			n, err := f.WriteAt(want[span[0]:span[0]+span[1]], span[0])
			require.NoError(t, err)
			require.EqualValues(t, span[1], n)
		}
		require.NoError(t, f.Sync())
		require.NoError(t, f.DropCache())
		for _, read := range []func([]byte, int64) (int, error){f.ReadAt, f.ReadMedium} {
			for _, span := range [][2]int64{{0, size}, {3, 9}, {4000, 5000}, {LeafSize - 1, LeafSize + 2}, {size - 1, 1}} {
				got := make([]byte, span[1])
				n, err := read(got, span[0])
				require.EqualValues(t, span[1], n)
				if err != nil {
					require.ErrorIs(t, err, io.EOF)
				}
				require.True(t, bytes.Equal(want[span[0]:span[0]+span[1]], got), "%v", span)
			}
			got := make([]byte, 100)
			n, err := read(got, size-10)
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, 10, n)
			_, err = read(got, size)
			require.ErrorIs(t, err, io.EOF)
			_, err = read(got, -1)
			require.Error(t, err)
		}
		for _, off := range []int64{-1, size - 1, size, size + 1, 1 << 62} {
			_, err = f.WriteAt([]byte{1, 2}, off)
			require.ErrorIs(t, err, ErrOutside, "%d", off)
		}

		_, err = OpenFile(path)
		require.ErrorIs(t, err, ErrBusy)
		second, err := OpenRead(path)
		require.NoError(t, err, "reading is free")
		_, err = second.WriteAt([]byte{1}, 0)
		require.Error(t, err)
		require.NoError(t, second.Close())
		require.NoError(t, f.Close())
		again, err := OpenFile(path)
		require.NoError(t, err, "the lock ends with the holder")
		require.NoError(t, again.Close())
	}
	t.Run("regular file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "slot")
		require.NoError(t, os.WriteFile(path, noise(1, size), 0o600))
		check(t, path)
	})
	t.Run("file in memory, which has no medium", func(t *testing.T) {
		dir, err := os.MkdirTemp("/dev/shm", "partition")
		if err != nil {
			lacking(t, err.Error())
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "slot")
		require.NoError(t, os.WriteFile(path, noise(1, size), 0o600))
		check(t, path)
	})
	t.Run("block device", func(t *testing.T) { check(t, loop(t, size)) })
}

// A mounted slot cannot be opened for writing, and the reason names it.
func TestOpenFileRefusesMounted(t *testing.T) {
	mkfs := needTool(t, "mke2fs", "e2fsprogs")
	dev := loop(t, 1<<20)
	require.NoError(t, exec.Command(mkfs, "-q", "-F", dev).Run())
	dir := t.TempDir()
	if out, err := exec.Command("mount", dev, dir).CombinedOutput(); err != nil {
		lacking(t, "cannot mount: "+string(out))
	}
	defer func() { require.NoError(t, exec.Command("umount", dir).Run()) }()
	_, err := OpenFile(dev)
	require.ErrorIs(t, err, ErrBusy)

	node, err := ThisHost().node(filepath.Join("/sys/class/block", filepath.Base(dev)))
	require.NoError(t, err)
	node.Label = "root_b"
	err = ThisHost().InUse(node)
	require.ErrorIs(t, err, ErrMounted)
	require.ErrorContains(t, err, "root_b ("+dev+"): mounted on "+dir)
}

// Neither a folder nor a character device is a slot.
func TestOpenFileRefusesOtherKinds(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null", "/nonexistent"} {
		_, err := OpenFile(path)
		require.Error(t, err)
		_, err = OpenRead(path)
		require.Error(t, err)
	}
}

// A window never lets a byte out at either end.
func TestSection(t *testing.T) {
	d := memory(noise(1, 1000))
	s := Section(d, 100, 50)
	require.EqualValues(t, 50, s.Size())
	got := make([]byte, 50)
	_, err := s.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, []byte(d[100:150]), got)
	n, err := s.ReadAt(got, 40)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 10, n)
	_, err = s.WriteAt([]byte{1}, 49)
	require.NoError(t, err)
	require.EqualValues(t, 1, d[149])
	before := bytes.Clone(d)
	for _, off := range []int64{-1, 49, 50, 1 << 62} {
		_, err := s.WriteAt([]byte{1, 2}, off)
		require.ErrorIs(t, err, ErrOutside, "%d", off)
	}
	_, err = s.ReadAt(got, -1)
	require.ErrorIs(t, err, ErrOutside)
	_, err = s.WriteAt(nil, 51)
	require.ErrorIs(t, err, ErrOutside)
	require.Equal(t, before, []byte(d))
	for _, w := range [][2]int64{{-1, 5}, {0, 1001}, {1000, 1}, {5, -1}, {1 << 62, 1 << 62}} {
		require.Zero(t, Section(d, w[0], w[1]).Size(), "%v", w)
	}
	for _, w := range [][2]int64{{0, 1000}, {0, 10}, {990, 10}, {999, 1}} {
		s := Section(d, w[0], w[1])
		require.EqualValues(t, w[1], s.Size(), "%v", w)
		_, err := s.ReadAt(got[:1], s.Size()-1)
		require.NoError(t, err)
		require.Equal(t, d[w[0]+w[1]-1], got[0])
	}
}

// On a real block device the same installation ends in the same bytes, as
// sha256sum sees them, and no more was written than the image needed.
func TestInstallOnBlockDevice(t *testing.T) {
	tool := needTool(t, "sha256sum", "coreutils")
	dev := loop(t, slotSize)
	f, err := OpenFile(dev)
	require.NoError(t, err)
	count, err := install(f, 0, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, Counters{Read: imageSize, Written: 7*BlockSize + 512, Skipped: imageSize - 7*BlockSize - 512}, count)
	require.NoError(t, f.Close())

	read, err := OpenRead(dev)
	require.NoError(t, err)
	defer read.Close()
	r, err := ReadRecord(read)
	require.NoError(t, err)
	require.Equal(t, newRecord, r)
	sum := exec.Command(tool)
	sum.Stdin = io.NewSectionReader(read, 0, imageSize)
	out, err := sum.Output()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x  -\n", sha256.Sum256(newImage)), string(out))
}

// descriptors counts what of this process is open on a path.
func descriptors(t *testing.T, path string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		// The one that listed the folder is gone by now.
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && to == path {
			n++
		}
	}
	return n
}

// However often a device is read past the cache, that costs one descriptor more, and
// after Close none is left that would keep the device busy.
func TestCloseLeavesNothingOpen(t *testing.T) {
	path := loop(t, LeafSize)
	f, err := OpenFile(path)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, 1, descriptors(t, path))
	for range 5 {
		_, err := f.ReadMedium(make([]byte, BlockSize), 0)
		require.NoError(t, err)
		require.Equal(t, 2, descriptors(t, path))
	}
	require.NoError(t, f.Close())
	require.Zero(t, descriptors(t, path))
	_, err = f.ReadMedium(make([]byte, BlockSize), 0)
	require.Error(t, err)
	require.Zero(t, descriptors(t, path))
}

// Who asks again and again until a busy file is free does not run out of descriptors.
func TestRefusedOpenLeavesNothingOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slot")
	require.NoError(t, os.WriteFile(path, noise(1, LeafSize), 0o600))
	f, err := OpenFile(path)
	require.NoError(t, err)
	defer f.Close()
	_, err = OpenFile(path)
	require.ErrorIs(t, err, ErrBusy)
	require.Equal(t, 1, descriptors(t, path))
}

// A device that takes all writes into its cache and then has no room for them: Sync
// says so, and afterwards nobody reads what was never stored. Written again, it is there.
func TestSyncFails(t *testing.T) {
	tool := needTool(t, "losetup", "mount")
	if os.Geteuid() != 0 {
		lacking(t, "a loop device needs root")
	}
	room := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", room).CombinedOutput(); err != nil {
		lacking(t, "cannot mount: "+string(out))
	}
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", "--lazy", room).Run()) })
	backing := filepath.Join(room, "backing")
	require.NoError(t, os.WriteFile(backing, nil, 0o600))
	require.NoError(t, os.Truncate(backing, 1<<20)) // a promise of four times the room
	f, err := OpenFile(loopOver(t, tool, backing))
	require.NoError(t, err)
	defer f.Close()

	want := noise(3, 1<<20)
	_, err = f.WriteAt(want, 0)
	require.NoError(t, err)
	require.Error(t, f.Sync())
	cached, medium := make([]byte, len(want)), make([]byte, len(want))
	_, err = f.ReadAt(cached, 0)
	require.NoError(t, err)
	_, err = f.ReadMedium(medium, 0)
	require.NoError(t, err)
	require.False(t, bytes.Equal(want, medium))
	require.True(t, bytes.Equal(medium, cached), "read what is not on the medium")

	out, err := exec.Command("mount", "-o", "remount,size=4m", room).CombinedOutput()
	require.NoError(t, err, "%s", out)
	_, err = f.WriteAt(want, 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	_, err = f.ReadMedium(medium, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, medium))
}

// ReadMedium shows what is behind the page cache, whatever that shows.
func TestReadMediumIsPastTheCache(t *testing.T) {
	dev := loop(t, LeafSize)
	backing, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file"))
	require.NoError(t, err)
	f, err := OpenRead(dev)
	require.NoError(t, err)
	defer f.Close()
	cached, medium := make([]byte, BlockSize), make([]byte, BlockSize)
	_, err = f.ReadAt(cached, 0)
	require.NoError(t, err)

	// What a disk does that lost what it was given.
	below, err := os.OpenFile(strings.TrimSpace(string(backing)), os.O_WRONLY, 0)
	require.NoError(t, err)
	defer below.Close()
	lost := noise(2, BlockSize)
	_, err = below.WriteAt(lost, 0)
	require.NoError(t, err)

	_, err = f.ReadMedium(medium, 0)
	require.NoError(t, err)
	require.False(t, bytes.Equal(cached, medium))
	require.True(t, bytes.Equal(lost, medium))
}
