package mkblocks

import (
	"encoding/binary"
	"math/bits"
)

// matcher finds earlier occurrences in one buffer: the window before a frame
// and the frame.
type matcher struct {
	b     []byte
	head  []int32 // by a hash of four bytes: 1 + the last position
	prev  []int32 // 1 + the position before with the same hash
	at    int     // first position that is not in the chains yet
	depth int
}

const (
	headBits = 17
	minMatch = 4
	enough   = 192 // a match of this length is taken without looking further
)

func (m *matcher) reset(b []byte, depth int) {
	if m.head == nil {
		m.head = make([]int32, 1<<headBits)
	}
	clear(m.head)
	if cap(m.prev) < len(b) {
		m.prev = make([]int32, len(b))
	}
	m.b, m.prev, m.at, m.depth = b, m.prev[:len(b)], 0, depth
}

func slot(b []byte) uint32 { return binary.LittleEndian.Uint32(b) * 2654435761 >> (32 - headBits) }

// insert puts all positions before end into the chains.
func (m *matcher) insert(end int) {
	for end = min(end, len(m.b)-minMatch+1); m.at < end; m.at++ {
		h := &m.head[slot(m.b[m.at:])]
		m.prev[m.at], *h = *h, int32(m.at)+1
	}
}

// common is the length of the common beginning of m.b[i:end] and what is before at j.
func (m *matcher) common(i, j, end int) int {
	a, b := m.b[i:end], m.b[j:]
	b = b[:len(a)]
	n := 0
	for ; n+8 <= len(a); n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for n < len(a) && a[n] == b[n] {
		n++
	}
	return n
}

// gain weighs a match: what its bytes would cost as literals, in quarters of a
// byte, less what its distance costs.
func gain(length int, offset uint32) int { return 4*length - bits.Len32(offset) }

// find returns the best match at i. offset is the number by which gain judges it: 1 for
// the distance that was used last.
func (m *matcher) find(i, end int, last int32) (length int, distance int32) {
	best := 0
	if last > 0 && int(last) <= i {
		if n := m.common(i, i-int(last), end); n >= 3 {
			length, distance, best = n, last, gain(n, 1)
			if n >= enough {
				return length, distance
			}
		}
	}
	if i+minMatch > end {
		return length, distance
	}
	m.insert(i)
	candidate := m.head[slot(m.b[i:])]
	for k := m.depth; k > 0 && candidate > 0; k-- {
		j := int(candidate) - 1
		candidate = m.prev[j]
		// Most candidates are no longer than what there is: one byte tells.
		if length > 0 && (i+length >= end || m.b[j+length] != m.b[i+length]) {
			continue
		}
		n := m.common(i, j, end)
		if n < minMatch || n == minMatch && i-j > 1<<16 {
			continue
		}
		if g := gain(n, uint32(i-j)+3); n > length && g > best {
			length, distance, best = n, int32(i-j), g
			if n >= enough {
				break
			}
		}
	}
	return length, distance
}

// parse divides b[start:end] of the buffer into sequences, and returns where the
// literals behind the last one begin. A match is put off by one or two bytes if a
// better one begins there.
func (c *coder) parse(start, end int) (rest int) {
	m := &c.match
	anchor := start
	for i := start; i < end-2; {
		length, distance := m.find(i, end, c.rep[0])
		if length == 0 {
			// Through what does not compress, faster and faster.
			i += 1 + (i-anchor)>>8
			continue
		}
		at := i
		for step := 1; step <= 2 && length < enough && at+step < end-2; {
			n, d := m.find(at+step, end, c.rep[0])
			o, p := uint32(distance)+3, uint32(d)+3
			if distance == c.rep[0] {
				o = 1
			}
			if d == c.rep[0] {
				p = 1
			}
			if n > 0 && gain(n, p) > gain(length, o)+4*step-1 {
				at += step
				length, distance = n, d
				step = 1
				continue
			}
			step++
		}
		// The match may have begun earlier.
		for at > anchor && at-int(distance) > 0 && m.b[at-1] == m.b[at-1-int(distance)] {
			at--
			length++
		}
		c.add(m.b[anchor:at], length, distance)
		i = at + length
		anchor = i
	}
	return anchor
}
