package mkdelta

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta"
)

// frame is one finished frame.
type frame struct {
	length int    // image bytes
	packed []byte // blob bytes
	body   int    // bytes that its zstd streams unpack to
	stats  Stats
}

// job is a frame being made; done is closed when it is, or when it cannot be.
type job struct {
	offset int64
	done   chan struct{}
	frame  frame
	err    error
}

// makeFrames makes all frames on o.Workers goroutines and gives them to emit
// in order. No more than a few finished frames wait at any time.
func makeFrames(ctx context.Context, ix *index, target Image, o Options, emit func(*frame) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup
	// Cancelled first, waited for second: no goroutine outlives the call.
	defer workers.Wait()
	defer cancel()

	jobs := make(chan *job)
	queue := make(chan *job, 2*o.Workers) // the same jobs, in order
	makers := make([]*worker, o.Workers)
	for i := range makers {
		var err error
		if makers[i], err = newWorker(ix, target, o); err != nil {
			return err
		}
	}
	for _, w := range makers {
		workers.Go(func() {
			for j := range jobs {
				j.frame, j.err = w.make(j.offset)
				close(j.done)
			}
		})
	}
	workers.Go(func() {
		defer close(queue)
		defer close(jobs)
		for offset := int64(0); offset < target.Size; offset += int64(o.FrameSize) {
			j := &job{offset: offset, done: make(chan struct{})}
			for _, c := range []chan *job{queue, jobs} {
				select {
				case c <- j:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for j := range queue {
		select {
		case <-j.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if j.err != nil {
			return fmt.Errorf("frame at %d: %w", j.offset, j.err)
		}
		if err := emit(&j.frame); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// worker makes one frame at a time.
type worker struct {
	ix       *index
	target   Image
	compress *zstd.Encoder
	buf      []byte
	control  []byte
	diff     []byte
	literal  []byte
}

func newWorker(ix *index, target Image, o Options) (*worker, error) {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevel(o.Level)),
		zstd.WithEncoderConcurrency(1),
		// The leaves of blob and image are checked; one more sum is only bytes.
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithWindowSize(max(1<<bits.Len(uint(o.FrameSize-1)), zstd.MinWindowSize)))
	if err != nil {
		return nil, fmt.Errorf("start compressor: %w", err)
	}
	return &worker{ix: ix, target: target, compress: e, buf: make([]byte, o.FrameSize)}, nil
}

func (w *worker) make(offset int64) (frame, error) {
	b := w.buf[:min(int64(len(w.buf)), w.target.Size-offset)]
	if n, err := w.target.ReadAt(b, offset); n != len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, fmt.Errorf("read new image: %w", err)
	}
	f := frame{length: len(b)}
	w.control, w.diff, w.literal = w.control[:0], w.diff[:0], w.literal[:0]
	var segments []segment
	if w.ix != nil {
		segments = w.ix.match(b, offset)
	}
	w.operations(b, offset, segments, &f.stats)
	f.packed = append(f.packed, delta.CodingOps)
	for _, stream := range [][]byte{w.control, w.diff, w.literal} {
		f.packed = w.stream(f.packed, stream, &f.body)
	}
	return f, nil
}

// stream appends b, compressed if that is shorter.
func (w *worker) stream(out, b []byte, body *int) []byte {
	out = binary.AppendUvarint(out, uint64(len(b)))
	if len(b) == 0 {
		return out
	}
	if packed := w.compress.EncodeAll(b, nil); len(packed) < len(b) {
		*body += len(b)
		out = binary.AppendUvarint(out, uint64(len(packed)))
		return append(out, packed...)
	}
	out = binary.AppendUvarint(out, 0)
	return append(out, b...)
}

// operations writes the streams for a frame whose segments are known.
func (w *worker) operations(b []byte, offset int64, segments []segment, stats *Stats) {
	var at int64 // displacement in use
	op := func(kind, length int) {
		w.control = binary.AppendUvarint(w.control, uint64(length)<<delta.OpBits|uint64(kind))
	}
	old := func(kindAt, kind, length int, s segment) {
		if s.at == at {
			op(kind, length)
			return
		}
		op(kindAt, length)
		step := s.at - at
		w.control = binary.AppendUvarint(w.control, uint64(step<<1)^uint64(step>>63))
		at = s.at
	}
	literal := func(from, to int) {
		if from < to {
			op(delta.OpLiteral, to-from)
			w.literal = append(w.literal, b[from:to]...)
			stats.Literal += int64(to - from)
		}
	}
	done := 0
	for _, s := range segments {
		if s.start >= s.end {
			continue
		}
		literal(done, s.start)
		done = s.end
		if s.zero {
			op(delta.OpZero, s.end-s.start)
			stats.Zero += int64(s.end - s.start)
			continue
		}
		base := w.ix.old[offset+int64(s.start)+s.at:]
		w.runs(b[s.start:s.end], base, func(equal bool, from, to int) {
			if equal {
				old(delta.OpCopyAt, delta.OpCopy, to-from, s)
				stats.Copied += int64(to - from)
				return
			}
			old(delta.OpDiffAt, delta.OpDiff, to-from, s)
			stats.Different += int64(to - from)
			for i := from; i < to; i++ {
				w.diff = append(w.diff, b[s.start+i]-base[i])
			}
		})
	}
	literal(done, len(b))
}

// copyRun is how many bytes have to agree for a copy amid differences. On a
// pair of Debian root images 6 made 2.5 % smaller patches than 48; below
// that, operations cost more than the zeros that they save.
const copyRun = 6

// runs divides a segment into stretches that agree and stretches that differ.
func (w *worker) runs(b, base []byte, f func(equal bool, from, to int)) {
	for i := 0; i < len(b); {
		n := common(b[i:], base[i:])
		if n >= copyRun || n == len(b)-i {
			f(true, i, i+n)
			i += n
			continue
		}
		// From here differences, up to the next long agreement.
		from := i
		for i < len(b) {
			n := common(b[i:], base[i:])
			if n >= copyRun || n > 0 && n == len(b)-i {
				break
			}
			i += n
			for i < len(b) && b[i] != base[i] {
				i++
			}
		}
		f(false, from, i)
	}
}
