package mkblocks

import (
	"errors"
	"math/bits"

	"github.com/klauspost/compress/huff0"
)

// sequence is a number of literals and a match behind them. offset is the
// number that zstd writes: 1 to 3 for a repeated one, else the distance + 3.
type sequence struct{ literals, match, offset uint32 }

// coder writes the content of zstd blocks that need no other block: no
// table is taken over from an earlier one, and no repeated offset is used before the
// block itself has set it.
type coder struct {
	huff       huff0.Scratch
	ll, of, ml distribution
	codes      []code
	out        []byte
	sequences  []sequence
	literals   []byte
	rep        [3]int32 // 0: not known inside this block
	match      matcher
}

type code struct{ ll, of, ml uint8 }

func (c *coder) reset() {
	c.sequences, c.literals, c.rep = c.sequences[:0], c.literals[:0], [3]int32{}
}

// add takes literals and a match of length bytes at distance.
func (c *coder) add(literals []byte, length int, distance int32) {
	c.literals = append(c.literals, literals...)
	r := &c.rep
	s := sequence{literals: uint32(len(literals)), match: uint32(length), offset: uint32(distance) + 3}
	if len(literals) > 0 {
		switch distance {
		case r[0]:
			s.offset = 1
		case r[1]:
			s.offset, r[0], r[1] = 2, r[1], r[0]
		case r[2]:
			s.offset, r[0], r[1], r[2] = 3, r[2], r[0], r[1]
		default:
			r[0], r[1], r[2] = distance, r[0], r[1]
		}
	} else {
		switch distance {
		case r[1]:
			s.offset, r[0], r[1] = 1, r[1], r[0]
		case r[2]:
			s.offset, r[0], r[1], r[2] = 2, r[2], r[0], r[1]
		case r[0] - 1:
			s.offset = 3
			fallthrough
		default:
			r[0], r[1], r[2] = distance, r[0], r[1]
		}
	}
	c.sequences = append(c.sequences, s)
}

// block returns the content of a compressed block for what was added and the literals
// behind it. It is valid until the next call.
func (c *coder) block(rest []byte) []byte {
	c.literals = append(c.literals, rest...)
	c.out = c.appendLiterals(c.out[:0])
	c.appendSequences()
	return c.out
}

func (c *coder) appendLiterals(out []byte) []byte {
	lit := c.literals
	plain := func(kind, n int) []byte {
		switch {
		case n < 1<<5:
			return append(out, byte(n<<3|kind))
		case n < 1<<12:
			v := n<<4 | 1<<2 | kind
			return append(out, byte(v), byte(v>>8))
		default:
			v := n<<4 | 3<<2 | kind
			return append(out, byte(v), byte(v>>8), byte(v>>16))
		}
	}
	if len(lit) < 16 {
		return append(plain(0, len(lit)), lit...)
	}
	c.huff.Reuse = huff0.ReusePolicyNone
	compress, format := huff0.Compress4X, uint64(1)
	if len(lit) <= 256 {
		compress, format = huff0.Compress1X, 0
	}
	packed, _, err := compress(lit, &c.huff)
	switch {
	case errors.Is(err, huff0.ErrUseRLE):
		return append(plain(1, len(lit)), lit[0])
	case err != nil || len(packed)+5 >= len(lit):
		return append(plain(0, len(lit)), lit...)
	}
	n, width := uint64(len(lit)), uint(10)
	switch {
	case n >= 1<<14:
		format, width = 3, 18
	case n >= 1<<10:
		format, width = 2, 14
	}
	v := 2 | format<<2 | n<<4 | uint64(len(packed))<<(4+width)
	for range (4 + 2*width) / 8 {
		out = append(out, byte(v))
		v >>= 8
	}
	return append(out, packed...)
}

func (c *coder) appendSequences() {
	n := len(c.sequences)
	switch {
	case n < 128:
		c.out = append(c.out, byte(n))
	case n < 0x7f00:
		c.out = append(c.out, byte(n>>8)+128, byte(n))
	default:
		c.out = append(c.out, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	if n == 0 {
		return
	}
	var ll, of, ml [maxSymbol + 1]int
	c.codes = c.codes[:0]
	for _, s := range c.sequences {
		k := code{llCode(s.literals), uint8(bits.Len32(s.offset) - 1), mlCode(s.match - 3)}
		c.codes = append(c.codes, k)
		ll[k.ll]++
		of[k.of]++
		ml[k.ml]++
	}
	c.ll.choose(literalLengths, &ll, n)
	c.of.choose(offsets, &of, n)
	c.ml.choose(matchLengths, &ml, n)
	c.out = append(c.out, c.ll.mode<<6|c.of.mode<<4|c.ml.mode<<2)
	for _, d := range []*distribution{&c.ll, &c.of, &c.ml} {
		c.out = append(c.out, d.header...)
	}
	// Backwards: the decoder reads from the end.
	w := bitWriter{out: c.out}
	var lls, ofs, mls uint32
	for i := n - 1; i >= 0; i-- {
		k, s := c.codes[i], c.sequences[i]
		if i == n-1 {
			mls, ofs, lls = c.ml.start(k.ml), c.of.start(k.of), c.ll.start(k.ll)
		} else {
			c.of.write(&w, &ofs, k.of)
			c.ml.write(&w, &mls, k.ml)
			c.ll.write(&w, &lls, k.ll)
		}
		w.add(uint64(s.literals), uint(llBits[k.ll]))
		w.add(uint64(s.match-3), uint(mlBits[k.ml]))
		w.add(uint64(s.offset), uint(k.of))
	}
	w.add(uint64(mls), c.ml.log)
	w.add(uint64(ofs), c.of.log)
	w.add(uint64(lls), c.ll.log)
	w.add(1, 1)
	c.out = w.flush()
}

// Bits behind the codes, RFC 8878, section 3.1.1.3.2.1.1.
var (
	llBits = [36]uint8{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	mlBits = [53]uint8{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

func codes(n int, extra []uint8) []uint8 {
	table := make([]uint8, 0, n)
	for c, b := range extra {
		for range 1 << b {
			if len(table) < n {
				table = append(table, uint8(c))
			}
		}
	}
	return table
}

var llTable, mlTable = codes(64, llBits[:]), codes(128, mlBits[:])

func llCode(n uint32) uint8 {
	if n < 64 {
		return llTable[n]
	}
	return uint8(bits.Len32(n)-1) + 19
}

func mlCode(n uint32) uint8 {
	if n < 128 {
		return mlTable[n]
	}
	return uint8(bits.Len32(n)-1) + 36
}
