package mkblocks

import (
	"context"
	"fmt"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
)

// frame is one finished frame.
type frame struct {
	length int
	units  []unit
}

type unit struct {
	count  int // blocks
	packed []byte
}

// makeFrames makes all frames on o.Workers goroutines and gives them to emit
// in order.
func makeFrames(ctx context.Context, p *plan, target Image, o Options, emit func(*frame) error) error {
	makers := make([]func(int64, int) (frame, error), o.Workers)
	for i := range makers {
		w := &worker{plan: p, target: target, o: o, buf: make([]byte, o.Window+o.FrameSize)}
		makers[i] = w.make
	}
	return frames.Make(ctx, target.Size, o.FrameSize, makers, emit)
}

// worker makes one frame at a time.
type worker struct {
	plan   *plan
	target Image
	o      Options
	buf    []byte
	coder  coder
}

func (w *worker) make(offset int64, length int) (frame, error) {
	window := min(int64(w.o.Window), offset)
	b := w.buf[:int(window)+length]
	f := frame{length: length}
	first := int(offset) / w.o.Block
	end := (int(offset) + length + w.o.Block - 1) / w.o.Block
	read := false
	for n := first; n < end; {
		count := w.unit(n, end)
		if count == 0 {
			n++
			continue
		}
		if !read {
			if n, err := w.target.ReadAt(b, offset-window); n != len(b) {
				return frame{}, fmt.Errorf("read image: %w", orShort(err))
			}
			w.coder.match.reset(b, w.o.Depth)
			w.coder.match.insert(int(window))
			read = true
		}
		start := n*w.o.Block - int(offset-window)
		stop := min(start+count*w.o.Block, len(b))
		for i := range count {
			// Or the device would look for blocks that the image no longer has.
			if w.plan.sum(b[start+i*w.o.Block:stop]) != w.plan.hashes[n+i] {
				return frame{}, ErrChanged
			}
		}
		f.units = append(f.units, unit{count, w.pack(start, stop)})
		n += count
	}
	return f, nil
}

// unit is the number of blocks of the unit that begins with block n: a run of
// fresh ones that are likely to change together. It ends where a file does: two
// files in one unit would be fetched for each other's sake.
func (w *worker) unit(n, end int) int {
	most := w.o.Unit / w.o.Block
	count := 0
	for n+count < end && count < most && w.plan.repeats[n+count] == isFresh {
		count++
		if w.plan.ends[n+count-1] {
			break
		}
	}
	return count
}

// pack compresses b[start:stop] of the buffer, if that makes it shorter.
func (w *worker) pack(start, stop int) []byte {
	c := &w.coder
	c.reset()
	rest := c.parse(start, stop)
	if packed := c.block(c.match.b[rest:stop]); len(packed) < stop-start {
		return append([]byte(nil), packed...)
	}
	return append([]byte(nil), c.match.b[start:stop]...)
}
