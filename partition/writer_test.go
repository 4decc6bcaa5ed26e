package partition

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// Blocks that are right already are not written again, and the counters say so
// to the byte: flash wears by what is written.
func TestWriterSparesEqualBlocks(t *testing.T) {
	d := disktest.New(oldSlot)
	count, err := install(d, 0, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, Counters{Read: imageSize, Written: 7*BlockSize + 512, Skipped: imageSize - 7*BlockSize - 512}, count)
	written := 0
	for _, op := range d.Bench().Log() {
		if op.Kind == disktest.Write && op.Off < imageSize {
			written += len(op.Data)
		}
	}
	require.EqualValues(t, count.Written, written, "what the disk saw")

	again, err := install(d, 0, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, Counters{Read: imageSize, Skipped: imageSize}, again)
}

// After a sync that failed nothing more is promised, however often one asks.
func TestCheckpointAfterFailedSync(t *testing.T) {
	d := disktest.New(oldSlot)
	d.Inject(disktest.Fault{Op: disktest.Sync, At: 2, Err: syscall.EIO})
	w := NewWriter(d, imageSize, 0)
	require.NoError(t, w.WriteLeaf(newImage[:LeafSize]))
	durable, err := w.Checkpoint()
	require.NoError(t, err)
	require.EqualValues(t, LeafSize, durable)
	require.NoError(t, w.WriteLeaf(newImage[LeafSize:2*LeafSize]))
	for range 3 {
		durable, err = w.Checkpoint()
		require.ErrorIs(t, err, syscall.EIO)
		require.ErrorContains(t, err, "sync at 131072")
		require.EqualValues(t, LeafSize, durable)
		require.ErrorIs(t, w.WriteLeaf(newImage[2*LeafSize:]), syscall.EIO)
		require.ErrorIs(t, w.Finish(), syscall.EIO)
	}
}

// A write that fails in the middle of a leaf leaves counters that a report can carry:
// nothing counts as left alone, let alone as less than nothing.
func TestCountersAfterFailedWrite(t *testing.T) {
	d := disktest.New(oldSlot)
	d.Inject(disktest.Fault{Op: disktest.Write, At: 2, Err: syscall.EIO})
	w := NewWriter(d, imageSize, 0)
	leaf := bytes.Clone(oldSlot[:LeafSize])
	leaf[0]++
	leaf[2*BlockSize]++
	require.ErrorIs(t, w.WriteLeaf(leaf), syscall.EIO)
	require.Equal(t, Counters{Read: LeafSize, Written: BlockSize}, w.Counters())
}

// A leaf that cannot be read is written whole, even if the one before it was the same: what
// is left in memory of that one says nothing about the medium.
func TestUnreadableLeafIsWritten(t *testing.T) {
	same := noise(5, LeafSize)
	d := disktest.New(append(bytes.Clone(same), make([]byte, LeafSize)...))
	d.Inject(disktest.Fault{Op: disktest.Read, At: 2, Err: syscall.EIO})
	w := NewWriter(d, 2*LeafSize, 0)
	require.NoError(t, w.WriteLeaf(same))
	require.NoError(t, w.WriteLeaf(same))
	require.True(t, d.Fired())
	require.NoError(t, w.Finish())
	require.Equal(t, Counters{Read: LeafSize, Written: LeafSize, Skipped: LeafSize}, w.Counters())
	require.True(t, bytes.Equal(same, d.Bytes()[LeafSize:]))
}

// An error says where.
func TestWriterNamesTheOffset(t *testing.T) {
	d := disktest.New(oldSlot)
	d.Inject(disktest.Fault{Op: disktest.Write, At: 1, Err: syscall.ENOSPC})
	err := NewWriter(d, imageSize, 0).WriteLeaf(newImage[:LeafSize])
	require.ErrorIs(t, err, syscall.ENOSPC)
	// Blocks 2 to 4 differ; half of them were taken.
	require.ErrorContains(t, err, fmt.Sprintf("write at %d: ", 2*BlockSize+3*BlockSize/2))
}

// A writer that is used wrongly writes nothing at all.
func TestWriterRefuses(t *testing.T) {
	leaf := make([]byte, LeafSize)
	for name, try := range map[string]func(Disk) error{
		"negative size":         func(d Disk) error { return NewWriter(d, -1, 0).Finish() },
		"image does not fit":    func(d Disk) error { return NewWriter(d, slotSize+1, 0).WriteLeaf(leaf) },
		"negative offset":       func(d Disk) error { return NewWriter(d, slotSize, -LeafSize).WriteLeaf(leaf) },
		"offset is no leaf":     func(d Disk) error { return NewWriter(d, slotSize, BlockSize).WriteLeaf(leaf) },
		"offset past the end":   func(d Disk) error { return NewWriter(d, imageSize, 3*LeafSize).WriteLeaf(leaf) },
		"leaf too short":        func(d Disk) error { return NewWriter(d, slotSize, 0).WriteLeaf(leaf[1:]) },
		"leaf too long":         func(d Disk) error { return NewWriter(d, slotSize, 0).WriteLeaf(append(leaf, 0)) },
		"tail too long":         func(d Disk) error { return NewWriter(d, imageSize, 2*LeafSize).WriteLeaf(leaf) },
		"leaf behind the end":   func(d Disk) error { return NewWriter(d, LeafSize, LeafSize).WriteLeaf(leaf) },
		"empty leaf at the end": func(d Disk) error { return NewWriter(d, LeafSize, LeafSize).WriteLeaf(nil) },
		"finished too early":    func(d Disk) error { return NewWriter(d, imageSize, LeafSize).Finish() },
	} {
		t.Run(name, func(t *testing.T) {
			d := disktest.New(oldSlot)
			require.ErrorIs(t, try(d), ErrWriter)
			require.Equal(t, oldSlot, d.Bytes())
			require.Zero(t, d.Bench().Ops())
		})
	}
	t.Run("nothing left to do", func(t *testing.T) {
		require.NoError(t, NewWriter(disktest.New(oldSlot), imageSize, imageSize).Finish())
		require.NoError(t, NewWriter(disktest.New(oldSlot), 0, 0).Finish())
	})
}

// Reading back finds a wrong bit anywhere, says in which leaf, and tells what is
// proven as it goes.
func TestReadBack(t *testing.T) {
	ctx := context.Background()
	var done []int64
	d := disktest.New(bytes.Clone(oldSlot))
	_, err := d.WriteAt(newImage, 0)
	require.NoError(t, err)
	require.NoError(t, ReadBack(ctx, d, imageSize, leaves, func(n int64) { done = append(done, n) }))
	require.Equal(t, []int64{LeafSize, 2 * LeafSize, imageSize}, done)
	for _, at := range []int{0, LeafSize - 1, LeafSize, 2*LeafSize + 7, imageSize - 1} {
		bad := bytes.Clone(oldSlot)
		copy(bad, newImage)
		bad[at] ^= 0x10
		err := ReadBack(ctx, disktest.New(bad), imageSize, leaves, nil)
		require.ErrorIs(t, err, ErrMismatch)
		require.ErrorContains(t, err, fmt.Sprintf("read back at %d", at/LeafSize*LeafSize))
	}
	require.ErrorIs(t, ReadBack(ctx, d, imageSize, leaves[:64], nil), ErrMismatch)
	require.ErrorIs(t, ReadBack(ctx, d, imageSize, append(leaves[:96:96], 0), nil), ErrMismatch)
	require.ErrorIs(t, ReadBack(ctx, d, slotSize+1, leaves, nil), ErrOutside)
	require.ErrorIs(t, ReadBack(ctx, d, -1, nil, nil), ErrOutside)
	require.NoError(t, ReadBack(ctx, d, 0, nil, nil))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, ReadBack(cancelled, d, imageSize, leaves, nil), context.Canceled)
}

// The cache may show what the medium lost. Whoever forgets that a sync failed is
// told when the slot is read back.
func TestReadBackIsFromTheMedium(t *testing.T) {
	d := disktest.New(oldSlot)
	d.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: syscall.EIO})
	_, err := d.WriteAt(newImage, 0)
	require.NoError(t, err)
	require.ErrorIs(t, d.Sync(), syscall.EIO)
	require.NoError(t, d.Sync())
	require.Equal(t, newImage, d.Bytes()[:imageSize], "the cache shows the image")
	require.ErrorIs(t, ReadBack(context.Background(), d, imageSize, leaves, nil), ErrMismatch)
	require.ErrorIs(t, ReadBack(context.Background(), Section(d, 0, imageSize), imageSize, leaves, nil), ErrMismatch)
}

// deaf takes writes and forgets them, as a worn-out card does.
type deaf struct{ memory }

func (d deaf) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// A card that ignores writes is noticed at the slot record, both ways.
func TestRecordIsReadBack(t *testing.T) {
	require.ErrorIs(t, WriteRecord(deaf{make(memory, slotSize)}, newRecord), ErrMismatch)
	require.ErrorIs(t, EraseRecord(deaf{bytes.Clone(oldSlot)}), ErrMismatch)
}

// Writing takes one leaf of memory, however large the image.
func TestWriterMemory(t *testing.T) {
	d := make(memory, slotSize)
	allocs := testing.AllocsPerRun(5, func() {
		w := NewWriter(d, slotSize, 0)
		for off := 0; off < slotSize; off += LeafSize {
			if err := w.WriteLeaf(oldSlot[off : off+LeafSize]); err != nil {
				panic(err)
			}
		}
	})
	require.Less(t, allocs, 8.0)
}

// vast is a disk whose size nobody could allocate. It is blank, and notes where it was
// written to.
type vast struct {
	size  int64
	wrote []int64
}

func (v *vast) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (v *vast) WriteAt(p []byte, off int64) (int, error) {
	v.wrote = append(v.wrote, off)
	return len(p), nil
}

func (v *vast) Sync() error { return nil }
func (v *vast) Size() int64 { return v.size }

// An image may be larger than any number of 32 bits: it has all of its leaves, is written
// where it belongs, and a list of digests that covers the first 4 GiB only is refused.
func TestLargeImages(t *testing.T) {
	for size, want := range map[int64]int64{
		0: 0, 1: 1, LeafSize: 1, LeafSize + 1: 2,
		1<<31 - 1: 1 << 15, 1<<31 + 1: 1<<15 + 1, 1 << 32: 1 << 16, 1<<32 + 1: 1<<16 + 1, 64 << 30: 1 << 20,
	} {
		require.Equal(t, want, Leaves(size), "%d bytes", size)
	}
	for _, from := range []int64{1 << 31, 1 << 32, 60 << 30} {
		d := &vast{size: 64 << 30}
		w := NewWriter(d, from+LeafSize, from)
		require.NoError(t, w.WriteLeaf(newImage[:LeafSize]))
		require.NoError(t, w.Finish())
		require.Equal(t, []int64{from}, d.wrote)
		require.ErrorIs(t, ReadBack(context.Background(), d, from+LeafSize, leaves[:32], nil), ErrMismatch)
		window := &vast{size: 64 << 30}
		n, err := Section(window, from, 2*LeafSize).WriteAt(newImage[:LeafSize], LeafSize)
		require.NoError(t, err)
		require.Equal(t, LeafSize, n)
		require.Equal(t, []int64{from + LeafSize}, window.wrote)
	}
}
