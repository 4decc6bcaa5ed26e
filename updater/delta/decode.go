package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Decode rebuilds frame i into dst, which must be as long as the frame.
//
// compressed is the frame's range of the blob, already checked against the
// signed digest of the blob; base is the old image, nil for a patch without
// one. The frame is checked as a whole before the old image is read.
//
// After an error the content of dst is undefined and must not be written. The
// errors are ErrFormat, ErrUnsupported and ErrBase; ErrBase wraps what the
// old image's reader returned, and the call can be repeated.
func (p *Patch) Decode(i int, compressed []byte, base io.ReaderAt, dst []byte) error {
	if i < 0 || i >= p.Frames() {
		return fmt.Errorf("frame %d of %d: %w", i, p.Frames(), ErrFormat)
	}
	if err := p.decode(p.Frame(i), compressed, base, dst); err != nil {
		return fmt.Errorf("frame %d: %w", i, err)
	}
	return nil
}

func (p *Patch) decode(f Frame, compressed []byte, base io.ReaderAt, dst []byte) error {
	if int64(len(compressed)) != f.BlobLength || int64(len(dst)) != f.Length {
		return fmt.Errorf("%d bytes for %d, header says %d for %d: %w",
			len(compressed), len(dst), f.BlobLength, f.Length, ErrFormat)
	}
	if compressed[0] != CodingOps {
		return fmt.Errorf("coding %d: %w", compressed[0], ErrUnsupported)
	}
	s, err := p.unpack(compressed[1:])
	if err != nil {
		return err
	}
	ops := operations{control: s.control, target: f.Target, baseSize: p.baseSize}
	needsBase, err := ops.check(len(dst), len(s.difference), len(s.literal))
	if err != nil {
		return err
	}
	if needsBase && base == nil {
		return fmt.Errorf("none given: %w", ErrBase)
	}
	return ops.apply(s, base, dst)
}

// streams are the three parts of a frame, unpacked.
type streams struct{ control, difference, literal []byte }

// unpack splits a frame into its streams and decompresses those that are
// compressed, into one buffer whose size the header fixed.
func (p *Patch) unpack(b []byte) (streams, error) {
	if p.decompress == nil {
		d, err := zstd.NewReader(nil,
			// One goroutine: a fault in another one could not be handled here.
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(MaxWindow),
			// The library's own bound on memory does not bound its output;
			// the capacity of the buffer that we hand in does.
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return streams{}, fmt.Errorf("start decompressor: %w", err)
		}
		p.decompress, p.unpacked = d, make([]byte, p.body)
	}
	var s streams
	room := p.unpacked
	for _, stream := range []*[]byte{&s.control, &s.difference, &s.literal} {
		length, err := uvarint(&b)
		if err != nil {
			return streams{}, err
		}
		if length == 0 {
			continue
		}
		packed, err := uvarint(&b)
		if err != nil {
			return streams{}, err
		}
		if packed == 0 { // stored as it is
			if length > uint64(len(b)) {
				return streams{}, fmt.Errorf("stream of %d bytes: %w", length, ErrFormat)
			}
			*stream, b = b[:length], b[length:]
			continue
		}
		if packed > uint64(len(b)) || length > uint64(len(room)) {
			return streams{}, fmt.Errorf("stream of %d bytes packed to %d: %w", length, packed, ErrFormat)
		}
		out, err := p.decompress.DecodeAll(b[:packed], room[:0:length])
		if err != nil || uint64(len(out)) != length || &out[0] != &room[0] {
			return streams{}, fmt.Errorf("stream does not unpack to %d bytes (%v): %w", length, err, ErrFormat)
		}
		*stream, b, room = room[:length:length], b[packed:], room[length:]
	}
	if len(b) != 0 {
		return streams{}, fmt.Errorf("%d bytes left over: %w", len(b), ErrFormat)
	}
	return s, nil
}

// operations walks the control stream of a frame.
type operations struct {
	control  []byte
	target   int64 // where in the new image the frame begins
	baseSize int64
}

// operation is one step: length bytes from one source.
type operation struct {
	kind   int
	length int   // 1 ≤ length ≤ what is left of the frame
	at     int64 // offset in the old image, for copies and differences
}

func (o operation) readsBase() bool { return o.kind >= OpCopyAt && o.kind <= OpDiff }
func (o operation) isDiff() bool    { return o.kind == OpDiffAt || o.kind == OpDiff }

// each calls f for every operation. The displacement, base offset minus image
// offset, starts at 0 in every frame: most of an image stays where it was.
func (ops operations) each(frame int, f func(done int, o operation) error) error {
	control, done := ops.control, 0
	var displacement int64
	for len(control) > 0 {
		word, err := uvarint(&control)
		if err != nil {
			return err
		}
		o := operation{kind: int(word & (1<<OpBits - 1))}
		length := word >> OpBits
		if o.kind > OpZero || length == 0 || length > uint64(frame-done) {
			return fmt.Errorf("operation %d for %d bytes at %d: %w", o.kind, length, done, ErrFormat)
		}
		o.length = int(length)
		if o.kind == OpCopyAt || o.kind == OpDiffAt {
			step, err := uvarint(&control)
			if err != nil {
				return err
			}
			// A number has 63 bits, so this adds at most 2^62 to a displacement that
			// passed the check below: no overflow.
			displacement += int64(step>>1) ^ -int64(step&1)
		}
		if o.readsBase() {
			o.at = ops.target + int64(done) + displacement
			if o.at < 0 || o.at > ops.baseSize-int64(o.length) {
				return fmt.Errorf("old image at %d: %w", o.at, ErrFormat)
			}
		}
		if err := f(done, o); err != nil {
			return err
		}
		done += o.length
	}
	if done != frame {
		return fmt.Errorf("operations make %d bytes of %d: %w", done, frame, ErrFormat)
	}
	return nil
}

// check walks the whole control stream without any effect, so that a frame that is
// not sound costs no I/O. It tells whether the old image is needed.
func (ops operations) check(frame, difference, literal int) (needsBase bool, err error) {
	err = ops.each(frame, func(_ int, o operation) error {
		switch {
		case o.kind == OpLiteral:
			literal -= o.length
		case o.isDiff():
			difference -= o.length
		}
		needsBase = needsBase || o.readsBase()
		if literal < 0 || difference < 0 {
			return fmt.Errorf("streams too short: %w", ErrFormat)
		}
		return nil
	})
	if err == nil && (literal != 0 || difference != 0) {
		err = fmt.Errorf("streams too long: %w", ErrFormat)
	}
	return needsBase, err
}

// apply carries out operations that check has passed. Neighbouring reads of the
// old image become one: on eMMC a seek costs more than the bytes.
func (ops operations) apply(s streams, base io.ReaderAt, dst []byte) error {
	var from, to int // dst[from:to] is to be read at
	var at int64
	flush := func() error {
		if from == to {
			return nil
		}
		n, err := base.ReadAt(dst[from:to], at)
		if n != to-from {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%d bytes at %d: %w", to-from, at, errors.Join(ErrBase, err))
		}
		from = to
		return nil
	}
	literal := s.literal
	err := ops.each(len(dst), func(done int, o operation) error {
		out := dst[done : done+o.length]
		switch {
		case o.kind == OpLiteral:
			literal = literal[copy(out, literal):]
		case o.kind == OpZero:
			clear(out)
		case from != to && to == done && o.at == at+int64(to-from):
			to += o.length
		default:
			if err := flush(); err != nil {
				return err
			}
			from, to, at = done, done+o.length, o.at
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	difference := s.difference
	if len(difference) == 0 {
		return nil
	}
	return ops.each(len(dst), func(done int, o operation) error {
		if o.isDiff() {
			for i := range dst[done : done+o.length] {
				dst[done+i] += difference[i]
			}
			difference = difference[o.length:]
		}
		return nil
	})
}

// uvarint takes a number off the front of b: base 128, low groups first.
func uvarint(b *[]byte) (uint64, error) {
	v, n := binary.Uvarint(*b)
	if n <= 0 || n > 9 { // 9 groups hold 63 bits: no value here needs more
		return 0, fmt.Errorf("number: %w", ErrFormat)
	}
	*b = (*b)[n:]
	return v, nil
}
