package recode

import "fmt"

// LZ4Piece is a run of whole LZ4 blocks, in columns. Expand and Pack work on it alone.
type LZ4Piece struct {
	Params, Plain []byte
	Body          int // bytes of Plain that are the content
}

// SplitLZ4 takes apart src, which is all LZ4 blocks without anything between: each padded to unit bytes, or, if
// unit is 0, of size bytes of content each, the last one perhaps of fewer. Content of more than most bytes is ErrRoom.
//
// This is for the desk.
func SplitLZ4(src []byte, unit, size, most int) (LZ4Piece, error) {
	var s lz4Expand
	for _, c := range []*column{&s.body, &s.records, &s.blocks} {
		c.grow = true
	}
	if unit < 0 || unit > lz4MaxUnit || (unit == 0) != (size > 0) {
		return LZ4Piece{}, fmt.Errorf("unit of %d bytes, blocks of %d: %w", unit, size, ErrUnsupported)
	}
	var err error
	for len(src) > 0 && err == nil {
		before := len(s.body.b)
		if unit > 0 {
			src, err = s.unit(src, unit)
		} else if src, err = s.whole(src, size); err == nil && len(src) > 0 && len(s.body.b)-before != size {
			err = fmt.Errorf("short block before the last: %w", ErrUnsupported)
		}
		if err == nil && len(s.body.b) > most {
			err = fmt.Errorf("content of more than %d bytes: %w", most, ErrRoom)
		}
	}
	if err != nil {
		return LZ4Piece{}, err
	}
	p := lz4Params{unit: unit, size: size, body: len(s.body.b), records: len(s.records.b) / matchRecord, blocks: len(s.blocks.b) / 4}
	plain := append(append(s.body.b, s.records.b...), s.blocks.b...)
	return LZ4Piece{Params: p.bytes(), Plain: plain, Body: p.body}, nil
}

// whole takes a block of size bytes of content apart, or else one that ends where src does.
func (s *lz4Expand) whole(src []byte, size int) ([]byte, error) {
	saved := *s
	rest, err := s.block(src, size)
	if err != nil {
		*s = saved
		rest, err = s.block(src, -1)
	}
	return rest, err
}
