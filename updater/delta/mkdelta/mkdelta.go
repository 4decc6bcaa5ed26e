// Package mkdelta makes the patches that package delta decodes. It runs on a
// desk, never on a device.
//
// How it finds what is old: it lists the files of both images where it knows the file system
// (package files), and pairs them by path and content. Executables are replaced by masks for matching,
// in which addresses do not count (package elfplan), and what is compressed is unpacked (package
// recodescan): files, and the blocks that squashfs and erofs pack, which are paired by content. Both images
// are indexed by the hash of their blocks; a new file is compared with its older self byte by byte
// besides. Of all matches those are chosen that cost the fewest bytes. What is found becomes copies
// and differences, the rest literals; zstd compresses the streams of each frame. A compressed file that would not become smaller by being told from old content stays as it is.
//
// The result depends on the two images and the options, not on the number of
// cores, nor on time. Every patch is decoded and compared with the
// new image before it is handed out.
//
// Memory, in bytes: both images, the executables that differ once more, an index of each image (half of
// it), and some 100 MiB per core; without masks and the second index where Options.Memory is tighter. What
// compressed files unpack to comes on top while they are compared, before there is an index. The frames
// wait in a temporary file, because the table in front of them needs their lengths; so do the unpacked
// files, and all that the changed files of a squashfs or erofs unpack to. Most of this is mapped, not of Go's heap, which would grow to twice of it.
package mkdelta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
)

// ErrMemory means that the images and the coarsest index that is of use do
// not fit into Options.Memory. More memory, or a full payload, is the way out.
var ErrMemory = errors.New("not enough memory to make a delta")

// ErrChanged means that the patch does not rebuild the new image: an image was
// written to while it was read, or the machine is faulty. Nothing was handed out.
var ErrChanged = errors.New("delta does not rebuild the new image")

// An Image is a file or device of which the first Size bytes count.
type Image struct {
	io.ReaderAt
	Size int64
}

// Options may be left at their zero values.
type Options struct {
	Level     int    // of zstd, 1 (fast) to 4 (small); 0 means 4
	FrameSize int    // image bytes per frame: 64 KiB to 4 MiB, a multiple of 64 KiB; 0 means 1 MiB
	Memory    int64  // bytes that making may take; 0 means as much as is of use
	Workers   int    // frames worked on at a time; 0 means one per core
	TempDir   string // where the frames wait; "" means os.TempDir()

	// Where the files of the images are; nil means that the images are asked.
	OldFiles, NewFiles *files.System

	// Progress is told how much of the new image is done, in bytes, from one goroutine
	// and in growing order.
	Progress func(done, total int64)

	// Spent is told what stretches of the new image cost, in bytes of the patch, from one
	// goroutine and in growing order of frames. Within a frame the share of each stretch is an estimate; the
	// sum of all is the size of the frames. What equals the old image is not named.
	Spent func(offset, length int64, bytes float64)
}

// Stats says what a patch is made of. Copied, Different, Literal and Zero add
// up to the size of the new image.
type Stats struct {
	Size      int64 // of the patch
	Memory    int64 // that a device needs to apply it
	Frames    int
	Copied    int64 // image bytes that are old bytes
	Different int64 // image bytes that are old bytes plus a difference
	Literal   int64 // image bytes that the patch carries, before compression
	Zero      int64
}

// Make writes the patch that makes target from base.
//
// If Make fails, what it wrote to out is no patch; nothing is written before
// the whole patch has been proven to rebuild target.
func Make(ctx context.Context, base, target Image, o Options, out io.Writer) (Stats, error) {
	if err := o.complete(); err != nil {
		return Stats{}, err
	}
	if base.Size <= 0 || base.Size > delta.MaxSize {
		return Stats{}, fmt.Errorf("old image of %d bytes: %w", base.Size, delta.ErrLimit)
	}
	plan, err := newSurvey(ctx, base, target, o)
	if err != nil {
		return Stats{}, err
	}
	defer plan.close()
	return build(ctx, plan, target, o, out)
}

// MakeFull writes the patch that makes target from nothing. Otherwise it is
// like Make.
func MakeFull(ctx context.Context, target Image, o Options, out io.Writer) (Stats, error) {
	if err := o.complete(); err != nil {
		return Stats{}, err
	}
	return build(ctx, &survey{}, target, o, out)
}

func (o *Options) complete() error {
	if o.Level == 0 {
		o.Level = int(zstd.SpeedBestCompression)
	}
	if o.FrameSize == 0 {
		o.FrameSize = 1 << 20
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	switch {
	case o.Level < int(zstd.SpeedFastest) || o.Level > int(zstd.SpeedBestCompression):
		return fmt.Errorf("level %d: want 1 to %d", o.Level, zstd.SpeedBestCompression)
	case o.FrameSize < delta.Leaf || o.FrameSize > delta.MaxFrame || o.FrameSize%delta.Leaf != 0:
		return fmt.Errorf("frame size %d: want a multiple of %d up to %d", o.FrameSize, delta.Leaf, delta.MaxFrame)
	case o.Workers < 0 || o.Memory < 0:
		return fmt.Errorf("%d workers, %d bytes of memory: want no negative numbers", o.Workers, o.Memory)
	}
	return nil
}

// build makes the frames into a temporary file, then writes header, table and frames.
func build(ctx context.Context, s *survey, target Image, o Options, out io.Writer) (Stats, error) {
	count := (target.Size + int64(o.FrameSize) - 1) / int64(o.FrameSize)
	if target.Size < 0 || target.Size > delta.MaxSize || count > delta.MaxFrames {
		return Stats{}, fmt.Errorf("new image of %d bytes in %d frames: %w", target.Size, count, delta.ErrLimit)
	}
	spool, err := frames.Temporary(o.TempDir, "mkdelta-")
	if err != nil {
		return Stats{}, err
	}
	defer spool.Close()
	var (
		stats Stats
		table = make([]byte, 0, count*delta.EntrySize)
		sizes delta.Maxima
		done  int64
		asked uint32 // features
	)
	err = makeFrames(ctx, s, target, o, func(f *frame) error {
		table = binary.LittleEndian.AppendUint32(table, uint32(f.length))
		table = binary.LittleEndian.AppendUint32(table, uint32(len(f.packed)))
		sizes.Frame = max(sizes.Frame, int64(f.length))
		sizes.Blob = max(sizes.Blob, int64(len(f.packed)))
		sizes.Body = max(sizes.Body, int64(f.body))
		sizes.Workspace = max(sizes.Workspace, int64(f.workspace))
		asked |= f.features
		stats.Copied += f.stats.Copied
		stats.Different += f.stats.Different
		stats.Literal += f.stats.Literal
		stats.Zero += f.stats.Zero
		stats.Size += int64(len(f.packed))
		if o.Spent != nil {
			f.tell(done, o.Spent)
		}
		done += int64(f.length)
		o.Progress(done, target.Size)
		_, err := spool.Write(f.packed)
		return err
	})
	if err != nil {
		return Stats{}, err
	}
	common, err := s.common(o, &sizes.Body)
	if err != nil {
		return Stats{}, err
	}
	if len(common) > 0 {
		asked |= delta.FeaturePlain
	}
	stats.Frames = int(count)
	stats.Memory = delta.MemoryNeeded(stats.Frames, sizes, asked)

	head := make([]byte, delta.HeaderSize, delta.HeaderSize+len(table))
	le := binary.LittleEndian
	copy(head, delta.Magic)
	le.PutUint16(head[8:], delta.Version)
	le.PutUint32(head[12:], asked)
	le.PutUint64(head[16:], uint64(target.Size))
	var base io.ReaderAt
	if s.plan != nil {
		s.plan.close() // early: a proof takes memory too
		le.PutUint16(head[10:], delta.FlagBase)
		le.PutUint64(head[24:], uint64(len(s.base.mask)))
		copy(head[32:], s.digest[:])
		base = &s.base
	}
	le.PutUint64(head[64:], uint64(stats.Memory))
	le.PutUint32(head[72:], uint32(stats.Frames))
	le.PutUint32(head[76:], uint32(sizes.Frame))
	le.PutUint32(head[80:], uint32(sizes.Blob))
	le.PutUint32(head[84:], uint32(sizes.Body))
	le.PutUint32(head[88:], uint32(sizes.Workspace))
	le.PutUint32(head[92:], uint32(len(common)))
	sum := sha256.New()
	sum.Write(head[:delta.HeaderSize-sha256.Size])
	sum.Write(table)
	sum.Write(common)
	sum.Sum(head[:delta.HeaderSize-sha256.Size])
	head = append(append(head, table...), common...)

	blob := &frames.Spliced{Head: head, Tail: spool}
	stats.Size += int64(len(head))
	if err := prove(ctx, blob, stats, base, target); err != nil {
		return Stats{}, err
	}
	if _, err := io.Copy(out, io.NewSectionReader(blob, 0, stats.Size)); err != nil {
		return Stats{}, fmt.Errorf("write delta: %w", err)
	}
	return stats, nil
}

// prove decodes the patch as a device would and compares.
func prove(ctx context.Context, blob io.ReaderAt, stats Stats, base io.ReaderAt, target Image) error {
	p, err := delta.Open(blob, stats.Size, delta.Limits{Memory: stats.Memory, Size: target.Size})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	var packed, got, want []byte
	for i := range p.Frames() {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := p.Frame(i)
		packed, got, want = grow(packed, f.BlobLength), grow(got, f.Length), grow(want, f.Length)
		if _, err := blob.ReadAt(packed, f.Blob); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read temporary file: %w", err)
		}
		if n, err := target.ReadAt(want, f.Target); n != len(want) {
			return fmt.Errorf("read new image: %w", err)
		}
		if err := p.Decode(i, packed, delta.Sources{Old: base, New: target}, got); err != nil {
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
