package recode

import (
	"encoding/binary"
)

// matchRecord is the size of one entry of a match list. Entries have a fixed width and
// stay interleaved: an entry is what a changed match changes, and a matcher of
// bytes finds its way in them better than in four columns of small numbers.
const matchRecord = 4

// An entry is {gap, length, distance (2, little-endian)}: gap literals, then a match.
// With distance 0 there is no match, and the length byte says what the entry is for.
const (
	matchGap   = 0 // nothing but more literals: a gap of more than 255
	matchMark  = 1 // deflate: the next match writes length 258 as symbol 284
	matchLong  = 2 // lz4: 255 more for the length of the next match
	maxGap     = 255
	maxColumns = 1 << 26 // largest length of a column, so that sums of them cannot overflow
)

// matches walks a match list. It is a value: a copy is a second look at the same tokens.
type matches struct {
	records []byte
	gap     int // literals before the match
	length  int // length byte of the entry
	dist    int // 0: no match
}

// next goes to the next entry. Behind the last one, everything is literals.
func (m *matches) next(rest int) bool {
	if len(m.records) < matchRecord {
		m.gap, m.length, m.dist = rest, 0, 0
		return false
	}
	r := m.records[:matchRecord]
	m.gap, m.length, m.dist = int(r[0]), int(r[1]), int(binary.LittleEndian.Uint16(r[2:]))
	m.records = m.records[matchRecord:]
	return true
}

// column is an output of fixed room, or one that grows when the encoder takes a
// stream apart whose sizes it does not know yet.
type column struct {
	b    []byte
	grow bool
}

// room makes sure that n more bytes fit.
func (c *column) room(n int) error {
	if cap(c.b)-len(c.b) >= n {
		return nil
	}
	if !c.grow {
		return ErrFormat
	}
	b := make([]byte, len(c.b), 2*cap(c.b)+n+4096)
	copy(b, c.b)
	c.b = b
	return nil
}

// record appends an entry.
func (c *column) record(gap, length, dist int) error {
	if err := c.room(matchRecord); err != nil {
		return err
	}
	c.b = append(c.b, byte(gap), byte(length), byte(dist), byte(dist>>8))
	return nil
}

// match appends a match after a gap of any length.
func (c *column) match(gap, length, dist int) error {
	for gap > maxGap {
		if err := c.record(maxGap, matchGap, 0); err != nil {
			return err
		}
		gap -= maxGap
	}
	return c.record(gap, length, dist)
}

// copyMatch appends length bytes that stand dist before the end, which they may overlap.
func (c *column) copyMatch(length, dist int) error {
	at := len(c.b)
	if dist > at {
		return ErrFormat
	}
	if err := c.room(length); err != nil {
		return err
	}
	out := c.b[:at+length]
	if dist >= length {
		copy(out[at:], out[at-dist:at-dist+length])
	} else {
		for i := at; i < len(out); i++ {
			out[i] = out[i-dist]
		}
	}
	c.b = out
	return nil
}

// cutColumns cuts dst into columns of the given sizes that follow each other.
// They are empty and cannot grow into each other.
func cutColumns(dst []byte, sizes ...int) ([]column, int, error) {
	out, at := make([]column, len(sizes)), 0
	for i, n := range sizes {
		if n > len(dst)-at {
			return nil, 0, ErrRoom
		}
		out[i].b = dst[at : at : at+n]
		at += n
	}
	return out, at, nil
}

// parameters reads uvarints off the front of b, each at most maxColumns.
func parameters(b []byte, numbers ...*int) ([]byte, error) {
	for _, p := range numbers {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > maxColumns {
			return nil, ErrFormat
		}
		*p, b = int(v), b[n:]
	}
	return b, nil
}
