package recode

import (
	"encoding/binary"
	"math/bits"
)

// backBits reads a bit stream from its end, as all of zstd's are (RFC 8878,
// section 4.1): the highest set bit of the last byte is a mark before the first bit.
type backBits struct {
	src []byte // the stream and, if possible, 8 bytes more: loads are whole words
	pos int    // bits still unread, counted from the start of src; < 0: read too far
}

// init points b at the stream src[from:to].
func (b *backBits) init(src []byte, from, to int) error {
	if from < 0 || to <= from || to > len(src) || src[to-1] == 0 {
		return ErrFormat
	}
	b.src = src[from:]
	b.pos = (to-from-1)*8 + bits.Len8(src[to-1]) - 1
	return nil
}

// word returns 64 bits from byte i on, zeros after the end.
func word(src []byte, i int) uint64 {
	if i+8 <= len(src) {
		return binary.LittleEndian.Uint64(src[i:])
	}
	var v uint64
	for k := len(src) - 1; k >= i; k-- {
		v = v<<8 | uint64(src[k])
	}
	return v
}

// peek returns the next n ≤ 56 bits, zeros where the stream has ended.
func (b *backBits) peek(n uint) uint64 {
	p := b.pos - int(n)
	if p < 0 {
		if b.pos <= 0 {
			return 0
		}
		return word(b.src, 0) & (1<<uint(b.pos) - 1) << uint(-p)
	}
	return word(b.src, p>>3) >> uint(p&7) & (1<<n - 1)
}

func (b *backBits) read(n uint) uint64 {
	v := b.peek(n)
	b.pos -= int(n)
	return v
}

// foreBits writes a bit stream that backBits reads.
type foreBits struct {
	dst []byte
	at  int
	acc uint64
	n   uint
	err error
}

// add appends the low n bits of v; between two calls of flush, at most 56 bits.
func (w *foreBits) add(v uint64, n uint) {
	w.acc |= v & (1<<n - 1) << w.n
	w.n += n
}

func (w *foreBits) flush() {
	if w.at+8 <= len(w.dst) {
		binary.LittleEndian.PutUint64(w.dst[w.at:], w.acc)
		k := w.n >> 3
		w.at += int(k)
		w.acc >>= k * 8
		w.n &= 7
		return
	}
	for w.n >= 8 {
		if w.at >= len(w.dst) {
			w.err, w.n = ErrRoom, 0
			return
		}
		w.dst[w.at] = byte(w.acc)
		w.at++
		w.acc >>= 8
		w.n -= 8
	}
}

// close appends the mark and the padding.
func (w *foreBits) close() (int, error) {
	w.add(1, 1)
	w.flush()
	if w.n > 0 {
		w.n = 8
		w.flush()
	}
	return w.at, w.err
}

const fseMaxLog = 9

// distribution is what an FSE table description says (RFC 8878, section
// 4.1.1): how many of the 1<<log states each symbol has, -1 being the smallest
// possible share. log 0 stands for the one symbol of RLE mode.
type distribution struct {
	log    uint8
	rle    uint8
	n      uint8 // symbols
	counts [64]int16
}

// read reads a description and returns its length.
func (d *distribution) read(src []byte, maxLog, symbols int) (int, error) {
	// Bits are taken from the front here; a description is short enough for a
	// load per number not to matter.
	pos := 0
	bitsAt := func(n int) int {
		v := word(src, min(pos>>3, len(src))) >> uint(pos&7) & (1<<uint(n) - 1)
		return int(v)
	}
	log := bitsAt(4) + 5
	pos += 4
	if log > maxLog {
		return 0, ErrFormat
	}
	left := 1 << log
	s := 0
	for left > 0 {
		if s >= symbols {
			return 0, ErrFormat
		}
		n := bits.Len(uint(left + 1)) // values 0 … left+1; the small ones take a bit less
		short := 1<<n - 1 - (left + 1)
		v := bitsAt(n)
		if v&(1<<(n-1)-1) < short {
			v &= 1<<(n-1) - 1
			pos += n - 1
		} else {
			if v >= 1<<(n-1) {
				v -= short
			}
			pos += n
		}
		c := v - 1
		d.counts[s] = int16(c)
		s++
		if c < 0 {
			left--
		} else {
			left -= c
		}
		if left < 0 {
			return 0, ErrFormat
		}
		for c == 0 { // then comes how many more are 0
			more := bitsAt(2)
			pos += 2
			if s+more > symbols {
				return 0, ErrFormat
			}
			for range more {
				d.counts[s] = 0
				s++
			}
			if more < 3 {
				break
			}
		}
		if pos > len(src)*8 {
			return 0, ErrFormat
		}
	}
	d.log, d.n = uint8(log), uint8(s)
	return (pos + 7) / 8, nil
}

func (d *distribution) set(log uint8, counts []int8) {
	d.log, d.n = log, uint8(len(counts))
	for i, c := range counts {
		d.counts[i] = int16(c)
	}
}

func (d *distribution) setRLE(symbol uint8) {
	d.log, d.rle, d.n = 0, symbol, symbol+1
}

// spread lays the symbols over the states.
func (d *distribution) spread(cells []uint8) {
	size := 1 << d.log
	high := size - 1
	for s, c := range d.counts[:d.n] {
		if c == -1 {
			cells[high] = uint8(s)
			high--
		}
	}
	step, at := size>>1+size>>3+3, 0
	for s, c := range d.counts[:d.n] {
		for ; c > 0; c-- {
			cells[at] = uint8(s)
			at = (at + step) & (size - 1)
			for at > high {
				at = (at + step) & (size - 1)
			}
		}
	}
}

type fseCell struct {
	base   uint16
	nbits  uint8
	symbol uint8
}

// decodeTable is for reading: state → symbol, and how to go on.
type decodeTable struct {
	log   uint8
	cells [1 << fseMaxLog]fseCell
}

func (t *decodeTable) build(d *distribution) {
	t.log = d.log
	if d.log == 0 {
		t.cells[0] = fseCell{symbol: d.rle}
		return
	}
	var cells [1 << fseMaxLog]uint8
	d.spread(cells[:])
	var next [64]uint16
	for s, c := range d.counts[:d.n] {
		next[s] = uint16(max(c, 1))
	}
	for i, s := range cells[:1<<d.log] {
		x := next[s]
		next[s]++
		nb := d.log - uint8(bits.Len16(x)-1)
		t.cells[i] = fseCell{base: x<<nb - 1<<d.log, nbits: nb, symbol: s}
	}
}

// encodeTable is for writing: it runs the states backwards. The layout is
// that of libzstd's FSE_buildCTable.
type encodeTable struct {
	log    uint8
	states [1 << fseMaxLog]uint16
	symbol [64]struct {
		bits int32 // (state + bits) >> 16 is how many bits leave
		find int32
		ok   bool
	}
}

func (t *encodeTable) build(d *distribution) {
	t.log = d.log
	for i := range t.symbol {
		t.symbol[i].ok = false
	}
	if d.log == 0 {
		t.symbol[d.rle] = struct {
			bits, find int32
			ok         bool
		}{ok: true}
		t.states[0] = 0
		return
	}
	size := 1 << d.log
	var cells [1 << fseMaxLog]uint8
	d.spread(cells[:])
	var start [65]uint16
	for s, c := range d.counts[:d.n] {
		n := uint16(max(c, 0))
		if c == -1 {
			n = 1
		}
		start[s+1] = start[s] + n
	}
	next := start
	for i, s := range cells[:size] {
		t.states[next[s]] = uint16(size + i)
		next[s]++
	}
	for s, c := range d.counts[:d.n] {
		e := &t.symbol[s]
		switch {
		case c == 0:
			continue
		case c == -1 || c == 1:
			e.bits = int32(d.log)<<16 - int32(size)
			e.find = int32(start[s]) - 1
		default:
			out := int32(d.log) - int32(bits.Len16(uint16(c-1))-1)
			e.bits = out<<16 - int32(c)<<out
			e.find = int32(start[s]) - int32(c)
		}
		e.ok = true
	}
}

// first returns the state that the last symbol of a stream leaves behind. A
// decoder could end in any state of that symbol; all known encoders choose this one.
func (t *encodeTable) first(s uint8) uint32 {
	if t.log == 0 {
		return 0
	}
	e := &t.symbol[s]
	nb := uint32(e.bits+1<<15) >> 16
	v := nb<<16 - uint32(e.bits)
	return uint32(t.states[(int32(v>>nb)+e.find)&(1<<fseMaxLog-1)])
}

// step encodes s: bits of the old state leave, and the new one is returned.
func (t *encodeTable) step(w *foreBits, state uint32, s uint8) uint32 {
	if t.log == 0 {
		return 0
	}
	e := &t.symbol[s]
	nb := uint32(int32(state)+e.bits) >> 16
	w.add(uint64(state), uint(nb))
	return uint32(t.states[(int32(state>>nb)+e.find)&(1<<fseMaxLog-1)])
}
