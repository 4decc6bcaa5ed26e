package mkdelta

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
	"github.com/tandem-ota/tandem/updater/delta/predict"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// frame is one finished frame.
type frame struct {
	length int    // image bytes
	packed []byte // blob bytes
	body   int    // bytes that its zstd streams unpack to
	stats  Stats

	workspace int // that the decoder needs
	features  uint32
	spent     []spent
}

// makeFrames makes all frames on o.Workers goroutines and gives them to emit
// in order.
func makeFrames(ctx context.Context, plan *survey, target Image, o Options, emit func(*frame) error) error {
	makers := make([]func(int64, int) (frame, error), o.Workers)
	for i := range makers {
		w, err := newWorker(plan, target, o)
		if err != nil {
			return err
		}
		makers[i] = w.make
	}
	return frames.Make(ctx, target.Size, o.FrameSize, makers, emit)
}

// worker makes one frame at a time.
type worker struct {
	survey   *survey
	matcher  *matcher
	target   Image
	compress *zstd.Encoder
	coder    recode.Coder
	predict  predict.Plan
	maps     predict.Maps // common to all plans

	plain    []byte        // plain form of the frame
	base     []byte        // what copies and predictions make of it
	holes    []stretch     // what is packed in the frame
	mask     []byte        // of a piece's content
	oldMask  []byte        // of what it is told from
	expanded []byte        // what the holes are told from
	copies   []predict.Run // of the old image
	features uint32        // that the frame needs

	control, diff, literal, moves, recode []byte // the streams

	account *zstd.Encoder // weighs literals; nil if nobody wants to know
}

func newWorker(s *survey, target Image, o Options) (*worker, error) {
	e, err := newCompressor(o)
	if err != nil {
		return nil, err
	}
	w := &worker{survey: s, maps: s.maps, target: target, compress: e}
	if s.plan != nil {
		w.matcher = s.plan.matcher()
	}
	if o.Spent != nil {
		w.account, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	}
	return w, err
}

func newCompressor(o Options) (*zstd.Encoder, error) {
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
	return e, nil
}

func (w *worker) make(offset int64, length int) (frame, error) {
	f := frame{length: length}
	w.plain, w.base, w.expanded, w.holes = w.plain[:0], w.base[:0], w.expanded[:0], w.holes[:0]
	w.extend(length)
	if n, err := w.target.ReadAt(w.plain, offset); n != length {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, fmt.Errorf("read new image: %w", err)
	}
	own := stretch{end: length, address: offset}
	if w.matcher != nil {
		end := offset + int64(length)
		for _, p := range w.survey.between(offset, end) {
			if err := w.compressed(p, offset, end); err != nil {
				return frame{}, err
			}
		}
		w.own(&own)
		if err := w.predicted(&own, offset); err != nil {
			return frame{}, err
		}
	}
	w.features = 0
	f.workspace = w.recoding()
	windows := append([]stretch{own}, w.holes...)
	w.moves = predictions(w.moves[:0], windows)
	many := len(w.recode) > 0 || len(w.moves) > 0
	for _, s := range own.segments {
		many = many || !s.zero && s.space != delta.SpaceOld
	}
	w.operations(many, windows, &f.stats)
	streams := [][]byte{w.control, w.diff, w.literal}
	if many {
		w.features |= delta.FeaturePlain
		f.packed = append(f.packed, delta.CodingPlain)
		streams = append(streams, w.moves, w.recode)
	} else {
		f.packed = append(f.packed, delta.CodingOps)
	}
	for _, stream := range streams {
		f.packed = w.stream(f.packed, stream, &f.body)
	}
	f.features = w.features
	if w.account != nil {
		f.spent = w.spending(windows)
	}
	return f, nil
}

// predictions writes the prediction stream: the plans of the windows, as far as there are any.
func predictions(out []byte, windows []stretch) []byte {
	end := 0
	for _, h := range windows {
		out = binary.AppendUvarint(out, uint64(len(h.plan)))
		out = append(out, h.plan...)
		if len(h.plan) > 0 {
			end = len(out)
		}
	}
	return out[:end]
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

// operations writes the streams for a plain form whose segments are known.
func (w *worker) operations(many bool, windows []stretch, stats *Stats) {
	w.control, w.diff, w.literal = w.control[:0], w.diff[:0], w.literal[:0]
	b := w.plain
	var at [3]int64 // displacement in use, by space
	space := uint8(delta.SpaceOld)
	op := func(kind, length int) {
		w.control = binary.AppendUvarint(w.control, uint64(length)<<delta.OpBits|uint64(kind))
	}
	copies := func(kindAt, kind, length int, s segment) {
		if s.space == space && s.at == at[space] {
			op(kind, length)
			return
		}
		op(kindAt, length)
		space = s.space
		step := zigzag(s.at - at[space])
		if many {
			step = step<<delta.SpaceBits | uint64(space)
		}
		w.control = binary.AppendUvarint(w.control, step)
		at[space] = s.at
	}
	literal := func(from, to int) {
		if from < to {
			op(delta.OpLiteral, to-from)
			w.literal = append(w.literal, b[from:to]...)
			stats.Literal += int64(to - from)
		}
	}
	for _, h := range windows {
		done := h.start
		for _, s := range h.segments {
			literal(done, s.start)
			done = s.end
			if s.zero {
				op(delta.OpZero, s.end-s.start)
				stats.Zero += int64(s.end - s.start)
				continue
			}
			w.runs(b[s.start:s.end], w.base[s.start:s.end], func(equal bool, from, to int) {
				if equal {
					copies(delta.OpCopyAt, delta.OpCopy, to-from, s)
					stats.Copied += int64(to - from)
					return
				}
				copies(delta.OpDiffAt, delta.OpDiff, to-from, s)
				stats.Different += int64(to - from)
				for i := s.start + from; i < s.start+to; i++ {
					w.diff = append(w.diff, b[i]-w.base[i])
				}
			})
		}
		literal(done, h.end)
	}
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
