// Package mkblocks makes the index payloads that package blocks reads. It runs on
// a desk, never on a device.
//
// The result depends on the image and the options, not on the number of cores, nor
// on time. Every blob is built into an image as a device with empty slots would do it,
// and compared, before it is handed out.
//
// Memory, in bytes: some 40 for every block of the image, and 16 MiB per
// core. Frames wait in a temporary file, because the index in front of them needs
// their lengths.
package mkblocks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
)

// ErrChanged means that the blob does not build the image: the image was
// written to while it was read, or the machine is faulty. Nothing was handed out.
var ErrChanged = errors.New("index payload does not build the image")

// An Image is a file or device of which the first Size bytes count.
type Image struct {
	io.ReaderAt
	Size int64
}

// Options may be left at their zero values.
type Options struct {
	Block     int    // bytes that one hash stands for; 0 means 4096, more for images above 1 GiB
	Unit      int    // bytes of the image that are fetched together at most; 0 means 8 KiB
	FrameSize int    // bytes that are built at a time; 0 means 512 KiB
	Window    int    // bytes before a frame that units refer to; 0 means 1 MiB
	HashBytes int    // 1 to 6; 0 means 6. Fewer make false hints likely
	Depth     int    // how long matches are looked for; 0 means 48
	Seed      uint64 // of the hash; another is taken if two blocks share a hash
	Workers   int    // frames worked on at a time; 0 means one per core
	TempDir   string // where the frames wait; "" means os.TempDir()

	// Progress is told how much of the image is done, in bytes, from one goroutine and in growing
	// order.
	Progress func(done, total int64)
}

// Stats says what a blob is made of.
type Stats struct {
	Size   int64 // of the blob
	Index  int64 // of its header and index
	Memory int64 // that a device needs
	Frames int
	Blocks int // of the image
	Fresh  int // of them with a hash: neither zeros nor seen in an earlier frame
	Units  int
}

func (o *Options) complete(size int64) error {
	if o.Block == 0 {
		// A quarter of a million blocks take 2.3 MB on the device.
		for o.Block = 4096; o.Block < blocks.MaxBlock && size/int64(o.Block) > 1<<18; o.Block *= 2 {
		}
	}
	for _, d := range []struct{ field, value *int }{
		{&o.Unit, ptr(max(8<<10, o.Block))}, {&o.FrameSize, ptr(512 << 10)}, {&o.Window, ptr(1 << 20)},
		{&o.HashBytes, ptr(6)}, {&o.Depth, ptr(48)}, {&o.Workers, ptr(runtime.GOMAXPROCS(0))},
	} {
		if *d.field == 0 {
			*d.field = *d.value
		}
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	switch {
	case o.Block < blocks.MinBlock || o.Block > blocks.MaxBlock || o.Block&(o.Block-1) != 0:
		return fmt.Errorf("blocks of %d bytes: want a power of two from %d to %d", o.Block, blocks.MinBlock, blocks.MaxBlock)
	case o.Unit < o.Block || o.Unit > blocks.MaxUnit || o.Unit/o.Block > maxUnitBlocks:
		return fmt.Errorf("units of %d bytes: want %d to %d", o.Unit, o.Block, min(blocks.MaxUnit, maxUnitBlocks*o.Block))
	case o.FrameSize < blocks.Leaf || o.FrameSize > blocks.MaxFrame || o.FrameSize%blocks.Leaf != 0:
		return fmt.Errorf("frames of %d bytes: want a multiple of %d up to %d", o.FrameSize, blocks.Leaf, blocks.MaxFrame)
	case o.Window < 0 || o.Window > blocks.MaxWindow || o.Window%blocks.Leaf != 0:
		return fmt.Errorf("window of %d bytes: want a multiple of %d up to %d", o.Window, blocks.Leaf, blocks.MaxWindow)
	case o.HashBytes < 1 || o.HashBytes > blocks.HashBits/8 || o.Depth < 0 || o.Workers < 0:
		return fmt.Errorf("hashes of %d bytes, depth %d, %d workers", o.HashBytes, o.Depth, o.Workers)
	case size < 0 || size > blocks.MaxSize || (size+int64(o.Block)-1)/int64(o.Block) > blocks.MaxBlocks:
		return fmt.Errorf("image of %d bytes in blocks of %d: %w", size, o.Block, delta.ErrLimit)
	}
	return nil
}

// maxUnitBlocks is what the decoder keeps nine bits for.
const maxUnitBlocks = 511

func ptr(n int) *int { return &n }

// Make writes the blob that makes target from whatever a device has.
//
// If Make fails, what it wrote to out is no payload; nothing is written before
// the whole blob has been proven to build target.
func Make(ctx context.Context, target Image, o Options, out io.Writer) (Stats, error) {
	if err := o.complete(target.Size); err != nil {
		return Stats{}, err
	}
	p, err := makePlan(ctx, target, &o)
	if err != nil {
		return Stats{}, err
	}
	spool, err := frames.Temporary(o.TempDir, "mkblocks-")
	if err != nil {
		return Stats{}, err
	}
	defer spool.Close()
	stats := Stats{Frames: int((target.Size + int64(o.FrameSize) - 1) / int64(o.FrameSize)), Blocks: len(p.repeats), Fresh: p.fresh}
	index := p.appendKinds(nil)
	var done int64
	err = makeFrames(ctx, p, target, o, func(f *frame) error {
		stats.Units += len(f.units)
		var directory []byte
		for _, u := range f.units {
			index = binary.AppendUvarint(index, uint64(len(u.packed)*(o.Unit/o.Block)+u.count-1))
			sum := sha256.Sum256(u.packed)
			directory = append(directory, sum[:blocks.SumSize]...)
		}
		if len(f.units) > 0 {
			sum := sha256.Sum256(directory)
			index = append(index, sum[:blocks.SumSize]...)
		}
		for _, u := range f.units {
			directory = append(directory, u.packed...)
		}
		stats.Size += int64(len(directory))
		done += int64(f.length)
		o.Progress(done, target.Size)
		_, err := spool.Write(directory)
		return err
	})
	if err != nil {
		return Stats{}, err
	}
	index = p.appendHashes(index)
	stats.Index = blocks.HeaderSize + int64(len(index))
	stats.Size += stats.Index
	stats.Memory = blocks.MemoryNeeded(int64(stats.Blocks), int64(stats.Units), int64(stats.Frames),
		int64(o.Block), int64(o.FrameSize), int64(o.Window))

	blob := &frames.Spliced{Head: append(header(target.Size, o, stats, index), index...), Tail: spool}
	if err := prove(ctx, blob, stats, target); err != nil {
		return Stats{}, err
	}
	if _, err := io.Copy(out, io.NewSectionReader(blob, 0, stats.Size)); err != nil {
		return Stats{}, fmt.Errorf("write index payload: %w", err)
	}
	return stats, nil
}

func header(size int64, o Options, s Stats, index []byte) []byte {
	h := make([]byte, blocks.HeaderSize)
	le := binary.LittleEndian
	copy(h, blocks.Magic)
	le.PutUint16(h[8:], blocks.Version)
	le.PutUint64(h[16:], uint64(size))
	le.PutUint64(h[24:], uint64(s.Memory))
	le.PutUint32(h[32:], uint32(o.Block))
	le.PutUint32(h[36:], uint32(o.FrameSize))
	le.PutUint32(h[40:], uint32(o.Window))
	h[44] = byte(o.HashBytes)
	le.PutUint16(h[46:], uint16(o.Unit/o.Block))
	le.PutUint64(h[48:], o.Seed)
	le.PutUint32(h[56:], uint32(s.Fresh))
	le.PutUint32(h[60:], uint32(s.Units))
	le.PutUint64(h[64:], uint64(len(index)))
	sum := sha256.New()
	sum.Write(h[:blocks.HeaderSize-sha256.Size])
	sum.Write(index)
	sum.Sum(h[:blocks.HeaderSize-sha256.Size])
	return h
}

// prove builds the image as a device would that has nothing, and compares.
func prove(ctx context.Context, blob io.ReaderAt, stats Stats, target Image) error {
	x, err := blocks.Open(blob, stats.Size, blocks.Limits{Memory: stats.Memory, Size: target.Size})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	var got, want []byte
	for i := range x.Frames() {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, length := x.Frame(i)
		got, want = grow(got, length), grow(want, length)
		if n, err := target.ReadAt(want, at); n != len(want) {
			return fmt.Errorf("read image: %w", err)
		}
		if err := x.Build(i, blocks.Sources{Blob: blob, Done: target}, got); err != nil {
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w: frame %d", ErrChanged, i)
		}
	}
	return nil
}

func grow(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}
