package delta

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Sources are what a frame may read beside its own bytes.
type Sources struct {
	// Old is the old image; nil for a patch without one.
	Old io.ReaderAt

	// New is the new image as far as it is made: everything in front of the frame, as
	// it was written. Nil where that cannot be read again.
	New io.ReaderAt
}

// Decode rebuilds frame i into dst, which must be as long as the frame.
//
// compressed is the frame's range of the blob, already checked against the
// signed digest of the blob. All operations are checked before a source is read.
//
// After an error the content of dst is undefined and must not be written. The
// errors are ErrFormat, ErrUnsupported and ErrBase; ErrBase wraps what the
// source's reader returned, and the call can be repeated.
func (p *Patch) Decode(i int, compressed []byte, from Sources, dst []byte) error {
	if i < 0 || i >= p.Frames() {
		return fmt.Errorf("frame %d of %d: %w", i, p.Frames(), ErrFormat)
	}
	if err := p.decode(p.Frame(i), compressed, from, dst); err != nil {
		return fmt.Errorf("frame %d: %w", i, err)
	}
	return nil
}

func (p *Patch) decode(f Frame, compressed []byte, from Sources, dst []byte) error {
	if int64(len(compressed)) != f.BlobLength || int64(len(dst)) != f.Length {
		return fmt.Errorf("%d bytes for %d, header says %d for %d: %w",
			len(compressed), len(dst), f.BlobLength, f.Length, ErrFormat)
	}
	m := maker{ops: operations{target: f.Target, baseSize: p.baseSize}, from: from}
	parts := []*[]byte{&m.s.control, &m.s.difference, &m.s.literal}
	var segments []segment
	switch coding := compressed[0]; {
	case coding == CodingOps:
		if err := p.unpack(compressed[1:], parts...); err != nil {
			return err
		}
	case coding == CodingPlain && p.features&FeaturePlain != 0:
		err := p.unpack(compressed[1:], append(parts, &m.s.prediction, &m.s.recoding)...)
		if err != nil {
			return err
		}
		if segments, err = p.parseRecoding(m.s.recoding, len(dst)); err != nil {
			return err
		}
		m.plan, m.common, m.ops.many = &p.plan, &p.common, true
	default:
		return fmt.Errorf("coding %d: %w", coding, ErrUnsupported)
	}
	m.ops.control = m.s.control
	windows := p.divide(f, segments)
	if err := m.ops.check(windows, m.s, from); err != nil {
		return err
	}
	if err := m.fill(windows[0], nil, dst); err != nil {
		return err
	}
	for i := range segments {
		if err := p.pack(&m, &segments[i], windows[i+1], dst); err != nil {
			return err
		}
	}
	if len(m.s.prediction) != 0 {
		return fmt.Errorf("%d bytes of prediction left over: %w", len(m.s.prediction), ErrFormat)
	}
	return nil
}

// streams are the parts of a frame, unpacked.
type streams struct{ control, difference, literal, prediction, recoding []byte }

// unpack splits a frame into its streams and decompresses those that are
// compressed, into one buffer whose size the header fixed.
func (p *Patch) unpack(b []byte, into ...*[]byte) error {
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
			return fmt.Errorf("start decompressor: %w", err)
		}
		p.decompress, p.unpacked = d, make([]byte, p.body)
	}
	room := p.unpacked
	for _, stream := range into {
		length, err := uvarint(&b)
		if err != nil {
			return err
		}
		if length == 0 {
			continue
		}
		packed, err := uvarint(&b)
		if err != nil {
			return err
		}
		if packed == 0 { // stored as it is
			if length > uint64(len(b)) {
				return fmt.Errorf("stream of %d bytes: %w", length, ErrFormat)
			}
			*stream, b = b[:length], b[length:]
			continue
		}
		if packed > uint64(len(b)) || length > uint64(len(room)) {
			return fmt.Errorf("stream of %d bytes packed to %d: %w", length, packed, ErrFormat)
		}
		out, err := p.decompress.DecodeAll(b[:packed], room[:0:length])
		if err != nil || uint64(len(out)) != length || &out[0] != &room[0] {
			return fmt.Errorf("stream does not unpack to %d bytes (%v): %w", length, err, ErrFormat)
		}
		*stream, b, room = room[:length:length], b[packed:], room[length:]
	}
	if len(b) != 0 {
		return fmt.Errorf("%d bytes left over: %w", len(b), ErrFormat)
	}
	return nil
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

// signed undoes zigzag: 0, 1, 2, 3, … are 0, −1, 1, −2, …
func signed(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }
