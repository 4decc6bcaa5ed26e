package recode

import (
	"encoding/binary"
	"math"
)

// LZ4 has no entropy coding, and everything that its encoders are free to choose is which matches to take. So its plain
// form is the content and the match list, and a byte differ sees in the content what it would see in the plain file.
//
// Columns: content; match list; 4 bytes for each block, its content's length, if blocks stand in units.
// Parameters: five uvarints: unit, size, then the counts of content bytes, entries and blocks.

const (
	lz4MinMatch = 4
	lz4MaxUnit  = 1 << 20
)

// lz4Params say how blocks lie.
type lz4Params struct {
	// unit is how many bytes a block is padded to, with zeros in front, as EROFS does. 0: blocks follow each other as in squashfs.
	unit int
	// size is the content of a block if unit is 0; the last block may have less.
	size                  int
	body, records, blocks int
}

func (p *lz4Params) parse(b []byte) error {
	b, err := parameters(b, &p.unit, &p.size, &p.body, &p.records, &p.blocks)
	if err != nil {
		return err
	}
	if len(b) != 0 || p.unit > lz4MaxUnit || (p.unit == 0) != (p.size > 0) || p.unit == 0 && p.blocks != 0 {
		return ErrFormat
	}
	return nil
}

// bytes is the inverse of parse.
func (p *lz4Params) bytes() []byte {
	var b []byte
	for _, n := range []int{p.unit, p.size, p.body, p.records, p.blocks} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

// lz4Matches gathers the entries of a match list to whole matches.
type lz4Matches struct {
	matches
	literals int // before the match
	length   int
	dist     int // 0: there is no match any more, all is literals
}

func (m *lz4Matches) advance() error {
	m.literals, m.length, m.dist = 0, 0, 0
	for {
		if !m.next(0) {
			if m.length != 0 {
				return ErrFormat
			}
			m.literals = math.MaxInt
			return nil
		}
		m.literals += m.gap
		switch {
		case m.matches.dist != 0:
			m.dist = m.matches.dist
			m.length += m.matches.length + lz4MinMatch
			return nil
		case m.matches.length == matchLong:
			m.length += 255
		case m.matches.length != matchGap:
			return ErrFormat
		}
	}
}

func packLZ4(params, plain, dst []byte) (int, error) {
	var p lz4Params
	if err := p.parse(params); err != nil {
		return 0, err
	}
	if p.body+p.records*matchRecord+p.blocks*4 != len(plain) {
		return 0, ErrFormat
	}
	body, blocks := plain[:p.body], plain[p.body+p.records*matchRecord:]
	m := lz4Matches{matches: matches{records: plain[p.body : p.body+p.records*matchRecord]}}
	if err := m.advance(); err != nil {
		return 0, err
	}
	at := 0
	for p.unit == 0 && len(body) > 0 || len(blocks) > 0 {
		n, room := min(p.size, len(body)), dst[at:]
		if p.unit > 0 {
			// Compared before it is a signed number: 32-bit devices.
			size := binary.LittleEndian.Uint32(blocks)
			if uint64(size) > uint64(len(body)) {
				return 0, ErrFormat
			}
			n, blocks = int(size), blocks[4:]
			room = room[:min(p.unit, len(room))]
		}
		k, err := packLZ4Block(&m, body[:n], room)
		if err != nil {
			return 0, err
		}
		if p.unit > 0 {
			if len(room) < p.unit {
				return 0, ErrRoom
			}
			copy(room[p.unit-k:], room[:k])
			clear(room[:p.unit-k])
			k = p.unit
		}
		at, body = at+k, body[n:]
	}
	if len(body) != 0 || m.dist != 0 {
		return 0, ErrFormat
	}
	return at, nil
}

// packLZ4Block writes the block that has body for its content.
func packLZ4Block(m *lz4Matches, body, dst []byte) (at int, err error) {
	for {
		n := min(m.literals, len(body))
		last := n == len(body)
		length := 0
		if !last {
			length = m.length - lz4MinMatch
		}
		// The most that a sequence takes: its token, the literals, the offset, and the bytes of both lengths.
		if len(dst)-at < 1+n+n/255+1+2+length/255+1 {
			if need := lz4Sequence(n, length, last); len(dst)-at < need {
				return 0, ErrRoom
			}
		}
		dst[at] = byte(min(n, 15)<<4 | min(length, 15))
		at++
		at = lz4Length(dst, at, n)
		at += copy(dst[at:], body[:n])
		m.literals -= n
		if last {
			return at, nil
		}
		binary.LittleEndian.PutUint16(dst[at:], uint16(m.dist))
		at = lz4Length(dst, at+2, length)
		if n+m.length > len(body) {
			return 0, ErrFormat
		}
		body = body[n+m.length:]
		if err := m.advance(); err != nil {
			return 0, err
		}
	}
}

// lz4Sequence is the size of a sequence in bytes.
func lz4Sequence(literals, length int, last bool) int {
	n := 1 + literals
	if literals >= 15 {
		n += (literals-15)/255 + 1
	}
	if !last {
		n += 2
		if length >= 15 {
			n += (length-15)/255 + 1
		}
	}
	return n
}

// lz4Length writes what a nibble cannot hold of a length.
func lz4Length(dst []byte, at, n int) int {
	if n < 15 {
		return at
	}
	for n -= 15; n >= 255; n -= 255 {
		dst[at] = 255
		at++
	}
	dst[at] = byte(n)
	return at + 1
}

func expandLZ4(params, src, dst []byte) (int, error) {
	var p lz4Params
	if err := p.parse(params); err != nil {
		return 0, err
	}
	c, total, err := cutColumns(dst, p.body, p.records*matchRecord, p.blocks*4)
	if err != nil {
		return 0, err
	}
	s := lz4Expand{body: c[0], records: c[1], blocks: c[2]}
	if p.unit == 0 {
		for len(s.body.b) < p.body {
			if src, err = s.block(src, min(p.size, p.body-len(s.body.b))); err != nil {
				return 0, err
			}
		}
	}
	for range p.blocks {
		if src, err = s.unit(src, p.unit); err != nil {
			return 0, err
		}
	}
	if len(s.body.b) != p.body || len(s.records.b) != p.records*matchRecord {
		return 0, ErrFormat
	}
	return total, nil
}

// lz4Expand takes blocks apart.
type lz4Expand struct {
	body, records, blocks column
	last                  int // the length of the body behind the last match
}

// unit takes the block of one unit apart.
func (s *lz4Expand) unit(src []byte, size int) ([]byte, error) {
	if size > len(src) {
		return nil, ErrFormat
	}
	unit, before := src[:size], len(s.body.b)
	// A block never begins with 0: that would be a match with nothing before it.
	for len(unit) > 0 && unit[0] == 0 {
		unit = unit[1:]
	}
	if _, err := s.block(unit, -1); err != nil {
		return nil, err
	}
	if err := s.blocks.room(4); err != nil {
		return nil, err
	}
	s.blocks.b = binary.LittleEndian.AppendUint32(s.blocks.b, uint32(len(s.body.b)-before))
	return src[size:], nil
}

// length reads what a nibble could not hold. Each byte of src adds at most 255, so there is no overflow.
func (s *lz4Expand) length(src []byte, n int) ([]byte, int, error) {
	if n < 15 {
		return src, n, nil
	}
	for i, b := range src {
		if n += int(b); b != 255 {
			return src[i+1:], n, nil
		}
	}
	return nil, 0, ErrFormat
}

// block takes one block apart, whose content has size bytes, or if that is negative, that ends where src ends.
// It returns what is left of src.
func (s *lz4Expand) block(src []byte, size int) ([]byte, error) {
	start := len(s.body.b)
	for {
		if len(src) < 1 {
			return nil, ErrFormat
		}
		token := int(src[0])
		var n int
		var err error
		if src, n, err = s.length(src[1:], token>>4); err != nil {
			return nil, err
		}
		if n > len(src) || size >= 0 && n > size-(len(s.body.b)-start) {
			return nil, ErrFormat
		}
		if err := s.body.room(n); err != nil {
			return nil, err
		}
		s.body.b = append(s.body.b, src[:n]...)
		src = src[n:]
		if size < 0 && len(src) == 0 || size >= 0 && len(s.body.b)-start == size {
			if token&15 != 0 {
				return nil, ErrUnsupported // nothing would remember this nibble
			}
			return src, nil
		}
		if src, err = s.match(src, token&15, start); err != nil {
			return nil, err
		}
	}
}

// match takes the rest of a sequence apart.
func (s *lz4Expand) match(src []byte, nibble, start int) ([]byte, error) {
	if len(src) < 2 {
		return nil, ErrFormat
	}
	dist := int(binary.LittleEndian.Uint16(src))
	src, length, err := s.length(src[2:], nibble)
	if err != nil {
		return nil, err
	}
	at := len(s.body.b)
	if dist == 0 || dist > at-start {
		return nil, ErrFormat
	}
	gap := at - s.last
	out := s.body
	if err := out.copyMatch(length+lz4MinMatch, dist); err != nil {
		return nil, err
	}
	for ; length > 255; length -= 255 {
		if err := s.records.match(gap, matchLong, 0); err != nil {
			return nil, err
		}
		gap = 0
	}
	if err := s.records.match(gap, length, dist); err != nil {
		return nil, err
	}
	s.body, s.last = out, len(out.b)
	return src, nil
}
