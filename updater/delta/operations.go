package delta

import (
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

const spaces = 3

// operations walks the control stream of a frame. It is a value: a copy is a second look
// at the same operations.
type operations struct {
	control      []byte
	target       int64 // where in the new image the frame begins
	baseSize     int64
	many         bool // steps name a space
	done         int  // bytes of the plain form
	space        int  // in use
	displacement [spaces]int64
}

// operation is one step: length bytes from one source.
type operation struct {
	kind   int
	length int
	space  int   // for copies and differences
	at     int64 // offset there
}

func (o operation) copies() bool { return o.kind >= OpCopyAt && o.kind <= OpDiff }
func (o operation) isDiff() bool { return o.kind == OpDiffAt || o.kind == OpDiff }

// window is a stretch of the plain form that no operation crosses: the frame, or
// what one segment packs.
type window struct {
	start, end int   // in the plain form
	expanded   int   // bytes of the third space
	address    int64 // of its first byte, for prediction
	old        []expansion
}

// from returns the address of a byte of the third space.
func (in *window) from(at int64) int64 {
	for _, e := range in.old {
		if at < int64(e.size) {
			return e.address + at
		}
		at -= int64(e.size)
	}
	return at
}

// next takes an operation, which ends inside the window. Each space has a displacement of
// its own, its offset minus the new one, 0 at the beginning of a frame: most of an image
// stays where it was.
func (ops *operations) next(in window) (operation, error) {
	word, err := uvarint(&ops.control)
	if err != nil {
		return operation{}, err
	}
	o := operation{kind: int(word & (1<<OpBits - 1))}
	length := word >> OpBits
	if o.kind > OpZero || length == 0 || length > uint64(in.end-ops.done) {
		return o, fmt.Errorf("operation %d for %d bytes at %d: %w", o.kind, length, ops.done, ErrFormat)
	}
	o.length = int(length)
	if o.kind == OpCopyAt || o.kind == OpDiffAt {
		step, err := uvarint(&ops.control)
		if err != nil {
			return o, err
		}
		if ops.many {
			ops.space, step = int(step&(1<<SpaceBits-1)), step>>SpaceBits
			if ops.space >= spaces {
				return o, fmt.Errorf("space %d: %w", ops.space, ErrFormat)
			}
		}
		// A number has 63 bits, so this adds at most 2^62 to a displacement that
		// passed the check below: no overflow.
		ops.displacement[ops.space] += signed(step)
	}
	if o.copies() {
		o.space = ops.space
		at, size := ops.target+int64(ops.done), ops.baseSize
		switch o.space {
		case SpaceNew:
			size = ops.target
		case SpaceExpanded:
			at, size = int64(ops.done-in.start), int64(in.expanded)
		}
		o.at = at + ops.displacement[o.space]
		if o.at < 0 || o.at > size-int64(o.length) {
			return o, fmt.Errorf("%d bytes of space %d at %d: %w", o.length, o.space, o.at, ErrFormat)
		}
	}
	ops.done += o.length
	return o, nil
}

// check walks all operations of a frame without any effect, so that a frame that is
// not sound costs no I/O. It tells when a source is missing, too.
func (ops operations) check(windows []window, s streams, from Sources) error {
	literal, difference := len(s.literal), len(s.difference)
	var used [spaces]bool
	for _, in := range windows {
		for ops.done < in.end {
			o, err := ops.next(in)
			if err != nil {
				return err
			}
			switch {
			case o.kind == OpLiteral:
				literal -= o.length
			case o.isDiff():
				difference -= o.length
			}
			used[o.space] = used[o.space] || o.copies()
			if literal < 0 || difference < 0 {
				return fmt.Errorf("streams too short: %w", ErrFormat)
			}
		}
	}
	switch {
	case len(ops.control) != 0:
		return fmt.Errorf("operations for more than %d bytes: %w", ops.done, ErrFormat)
	case literal != 0 || difference != 0:
		return fmt.Errorf("streams too long: %w", ErrFormat)
	case used[SpaceOld] && from.Old == nil:
		return fmt.Errorf("no old image given: %w", ErrBase)
	case used[SpaceNew] && from.New == nil:
		return fmt.Errorf("what was written cannot be read again: %w", ErrBase)
	}
	return nil
}

// maker carries out operations that check has passed.
type maker struct {
	ops  operations
	s    streams
	from Sources
	// The memory of a plan: what it says is in the prediction stream, for one window after the
	// other; and what all plans have in common.
	plan   *predict.Plan
	common *predict.Maps
}

// fill makes one window of the plain form in dst. Neighbouring reads become one: on eMMC a
// seek costs more than the bytes. What one such stretch of the old image holds is moved by
// the plan before differences are added.
func (m *maker) fill(in window, expanded, dst []byte) error {
	predicts, err := m.predicts()
	if err != nil {
		return err
	}
	var start, end, space int // dst[start:end] is to be read at
	var at int64
	flush := func() error {
		if start == end {
			return nil
		}
		b := dst[start:end]
		var err error
		old := at
		switch space {
		case SpaceOld:
			err = read(m.from.Old, b, at)
		case SpaceNew:
			err = read(m.from.New, b, at)
		case SpaceExpanded:
			copy(b, expanded[at:])
			old = in.from(at)
		}
		if err == nil && predicts && space != SpaceNew {
			m.plan.Apply(dst, in.address, predict.Run{Start: start, End: end, Old: old})
		}
		start = end
		return err
	}
	again := m.ops
	different := false
	for m.ops.done < in.end {
		done := m.ops.done - in.start
		o, err := m.ops.next(in)
		if err != nil {
			return err
		}
		out := dst[done : done+o.length]
		different = different || o.isDiff()
		switch {
		case o.kind == OpLiteral:
			m.s.literal = m.s.literal[copy(out, m.s.literal):]
		case o.kind == OpZero:
			clear(out)
		case start != end && end == done && o.space == space && o.at == at+int64(end-start):
			end += o.length
		default:
			if err := flush(); err != nil {
				return err
			}
			start, end, space, at = done, done+o.length, o.space, o.at
		}
	}
	if err := flush(); err != nil || !different {
		return err
	}
	for again.done < in.end {
		done := again.done - in.start
		o, err := again.next(in)
		if err != nil {
			return err
		}
		if o.isDiff() {
			for i := range dst[done : done+o.length] {
				dst[done+i] += m.s.difference[i]
			}
			m.s.difference = m.s.difference[o.length:]
		}
	}
	return nil
}

// predicts takes the plan of the next window off the stream. Behind the end of it there are none.
func (m *maker) predicts() (bool, error) {
	if len(m.s.prediction) == 0 {
		return false, nil
	}
	n, err := uvarint(&m.s.prediction)
	if err != nil {
		return false, err
	}
	if n > uint64(len(m.s.prediction)) {
		return false, fmt.Errorf("plan of %d bytes: %w", n, ErrFormat)
	}
	if n == 0 {
		return false, nil
	}
	if err := m.plan.Parse(m.s.prediction[:n], m.common); err != nil {
		return false, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	m.s.prediction = m.s.prediction[n:]
	return true, nil
}

// read fills b from a source.
func read(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at %d: %w", len(b), at, errors.Join(ErrBase, err))
}
