package recode

import (
	"math/bits"
)

// Sizes of RFC 1951. Arrays have room for what the header's fields can say, which is more than what is valid.
const (
	deflateLits  = 288
	deflateDists = 32
	endOfBlock   = 256
	maxCodeBits  = 15
	// A block header takes apart at most: three counts, 19 lengths, and a byte for each of 288 + 32 code lengths.
	maxDeflateHeader = 3 + 19 + deflateLits + deflateDists
)

// codeLengthOrder is the order in which the lengths of the code length code are sent.
var codeLengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// The header of a dynamic block as bytes: HLIT, HDIST, HCLEN, then the HCLEN + 4 lengths of the code length
// code as sent, then one byte for each of its symbols: 0 to 15 a length, and
const (
	headRepeat = 16  // to 19: symbol 16, the low 2 bits are its extra bits
	headZeros  = 32  // to 39: symbol 17, 3 bits
	headMore   = 128 // to 255: symbol 18, 7 bits
)

// headSymbol splits a byte of the header into a symbol, its extra bits and how many lengths it stands for.
func headSymbol(b byte) (symbol, extra, width, count int, ok bool) {
	switch {
	case b < headRepeat:
		return int(b), 0, 0, 1, true
	case b < headRepeat+4:
		return 16, int(b - headRepeat), 2, int(b-headRepeat) + 3, true
	case b >= headMore:
		return 18, int(b - headMore), 7, int(b-headMore) + 11, true
	case b >= headZeros && b < headZeros+8:
		return 17, int(b - headZeros), 3, int(b-headZeros) + 3, true
	}
	return 0, 0, 0, 0, false
}

// deflateHeader is a parsed header of a dynamic block.
type deflateHeader struct {
	lits, dists int // how many lengths of each are sent
	order       int // how many lengths of the code length code are sent
	size        int // its bytes
	meta        [19]uint8
	lengths     [deflateLits + deflateDists]uint8 // literals first, then lits on distances
}

// parse reads a header off the front of b.
func (h *deflateHeader) parse(b []byte) error {
	if len(b) < 3 || b[0] > 31 || b[1] > 31 || b[2] > 15 {
		return ErrFormat
	}
	h.lits, h.dists, h.order = int(b[0])+257, int(b[1])+1, int(b[2])+4
	if len(b) < 3+h.order {
		return ErrFormat
	}
	h.meta = [19]uint8{}
	for i, n := range b[3 : 3+h.order] {
		if n > 7 {
			return ErrFormat
		}
		h.meta[codeLengthOrder[i]] = n
	}
	h.size = 3 + h.order
	for done := 0; done < h.lits+h.dists; h.size++ {
		if h.size >= len(b) {
			return ErrFormat
		}
		symbol, _, _, count, ok := headSymbol(b[h.size])
		if !ok || count > h.lits+h.dists-done || symbol == 16 && done == 0 {
			return ErrFormat
		}
		var length uint8
		if symbol < 16 {
			length = uint8(symbol)
		} else if symbol == 16 {
			length = h.lengths[done-1]
		}
		for range count {
			h.lengths[done] = length
			done++
		}
	}
	return nil
}

// codes are the code words of one Huffman code, bit-reversed as deflate sends them, with the length in the low 4 bits.
type codes [deflateLits]uint32

// assign makes the canonical code of RFC 1951, section 3.2.2.
func (c *codes) assign(lengths []uint8) {
	var next [maxCodeBits + 2]uint32
	for _, n := range lengths {
		next[n+1]++
	}
	next[1] = 0 // symbols without a code
	for n := 1; n <= maxCodeBits; n++ {
		next[n+1] = (next[n] + next[n+1]) << 1
	}
	clear(c[:])
	for i, n := range lengths {
		if n != 0 {
			c[i] = uint32(bits.Reverse16(uint16(next[n]<<(16-n))))<<4 | uint32(n)
			next[n]++
		}
	}
}

// fixedLengths are the code lengths of a block of type 1.
func fixedLengths(h *deflateHeader) {
	h.lits, h.dists = deflateLits, deflateDists
	for i := range h.lengths {
		switch {
		case i < 144 || i >= 280 && i < deflateLits:
			h.lengths[i] = 8
		case i < 256:
			h.lengths[i] = 9
		case i < 280:
			h.lengths[i] = 7
		default:
			h.lengths[i] = 5
		}
	}
}

// lengthSymbol gives the symbol of a match length less 3, and its extra bits.
func lengthSymbol(length int) (symbol, extra, width uint32) {
	if length == 255 {
		return 285, 0, 0
	}
	return longLength(length)
}

// longLength is lengthSymbol without the symbol 285 that length 258 has for itself.
func longLength(length int) (symbol, extra, width uint32) {
	l := uint32(length)
	if l < 8 {
		return 257 + l, 0, 0
	}
	width = uint32(bits.Len32(l)) - 3
	return 257 + width<<2 + l>>width, l & (1<<width - 1), width
}

// distanceSymbol gives the symbol of a distance from 1 to 32,768, and its extra bits.
func distanceSymbol(dist int) (symbol, extra, width uint32) {
	d := uint32(dist - 1)
	if d < 4 {
		return d, 0, 0
	}
	width = uint32(bits.Len32(d)) - 2
	return width<<1 + d>>width, d & (1<<width - 1), width
}

// frequencies count the symbols of a block.
type frequencies struct {
	lits  [deflateLits]uint32
	dists [deflateDists]uint32
}

// zlibTree makes code lengths as zlib does since 1995 (trees.c: build_tree, gen_bitlen), and with it gzip, pigz, Linux
// and mksquashfs. Any optimal code would compress as well; the very same lengths come only from the same order of
// the heap, ties decided by depth, and the same repair of codes that are too long.
type zlibTree struct {
	freq  [2*deflateLits + 1]uint32
	dad   [2*deflateLits + 1]uint16
	depth [2*deflateLits + 1]uint8
	bits  [2*deflateLits + 1]uint8
	heap  [2*deflateLits + 1]uint16
	size  int // of the heap, which begins at 1
}

func (t *zlibTree) less(a, b uint16) bool {
	return t.freq[a] < t.freq[b] || t.freq[a] == t.freq[b] && t.depth[a] <= t.depth[b]
}

func (t *zlibTree) sink(k int) {
	v := t.heap[k]
	for j := 2 * k; j <= t.size; j *= 2 {
		if j < t.size && t.less(t.heap[j+1], t.heap[j]) {
			j++
		}
		if t.less(v, t.heap[j]) {
			break
		}
		t.heap[k] = t.heap[j]
		k = j
	}
	t.heap[k] = v
}

// lengths sets out to the code lengths for freq, none longer than limit, and returns the last symbol that has one.
func (t *zlibTree) lengths(freq []uint32, limit uint8, out []uint8) (last int) {
	*t = zlibTree{}
	last = -1
	add := func(n int) {
		t.size++
		t.heap[t.size] = uint16(n)
	}
	for n, f := range freq {
		if t.freq[n] = f; f != 0 {
			add(n)
			last = n
		}
	}
	// There are always two codes, so that a code of one bit is never left incomplete.
	for t.size < 2 {
		n := 0
		if last < 2 {
			last++
			n = last
		}
		t.freq[n] = 1
		add(n)
	}
	for n := t.size / 2; n >= 1; n-- {
		t.sink(n)
	}
	// The nodes in the order of their frequency grow from the end of the heap's array downwards.
	low, node := len(t.heap), uint16(len(freq))
	for t.size >= 2 {
		a := t.heap[1]
		t.heap[1] = t.heap[t.size]
		t.size--
		t.sink(1)
		b := t.heap[1]
		low -= 2
		t.heap[low+1], t.heap[low] = a, b
		t.freq[node] = t.freq[a] + t.freq[b]
		t.depth[node] = max(t.depth[a], t.depth[b]) + 1
		t.dad[a], t.dad[b] = node, node
		t.heap[1] = node
		node++
		t.sink(1)
	}
	low--
	t.heap[low] = t.heap[1]
	t.limit(low, last, limit)
	for n := range out {
		out[n] = 0
		if n < len(freq) && t.freq[n] != 0 {
			out[n] = t.bits[n]
		}
	}
	return last
}

// limit turns the tree into code lengths: the root is at heap[low], the others behind it.
func (t *zlibTree) limit(low, last int, limit uint8) {
	var count [maxCodeBits + 1]int
	overflow := 0
	for _, n := range t.heap[low+1:] {
		b := t.bits[t.dad[n]] + 1
		if b > limit {
			b = limit
			overflow++
		}
		t.bits[n] = b
		if int(n) <= last {
			count[b]++
		}
	}
	if overflow == 0 {
		return
	}
	for ; overflow > 0; overflow -= 2 {
		b := limit - 1
		for count[b] == 0 {
			b--
		}
		count[b]--
		count[b+1] += 2
		count[limit]--
	}
	h := len(t.heap)
	for b := limit; b != 0; b-- {
		for n := count[b]; n > 0; {
			h--
			if m := t.heap[h]; int(m) <= last {
				t.bits[m] = b
				n--
			}
		}
	}
}

// zlibHeader appends to b the header that zlib would make for a block with these frequencies.
func (t *zlibTree) header(b []byte, f *frequencies) []byte {
	var lits [deflateLits]uint8
	var dists [deflateDists]uint8
	lastLit := max(t.lengths(f.lits[:286], maxCodeBits, lits[:]), 256)
	lastDist := t.lengths(f.dists[:30], maxCodeBits, dists[:])

	start := len(b)
	b = append(b, byte(lastLit-256), byte(lastDist), 0)
	var symbols [deflateLits + deflateDists]byte
	runs := zlibRuns(zlibRuns(symbols[:0], lits[:lastLit+1]), dists[:lastDist+1])
	var freq [19]uint32
	for _, s := range runs {
		symbol, _, _, _, _ := headSymbol(s)
		freq[symbol]++
	}
	var meta [19]uint8
	t.lengths(freq[:], 7, meta[:])
	order := len(codeLengthOrder)
	for order > 4 && meta[codeLengthOrder[order-1]] == 0 {
		order--
	}
	b[start+2] = byte(order - 4)
	for _, s := range codeLengthOrder[:order] {
		b = append(b, meta[s])
	}
	return append(b, runs...)
}

// zlibRuns appends lengths as zlib's scan_tree packs them.
func zlibRuns(b []byte, lengths []uint8) []byte {
	previous := -1
	for i := 0; i < len(lengths); {
		value := lengths[i]
		most, least := 7, 4
		if value == 0 {
			most, least = 138, 3
		} else if int(value) == previous {
			most, least = 6, 3
		}
		n := 1
		for i+n < len(lengths) && n < most && lengths[i+n] == value {
			n++
		}
		i += n
		switch {
		case n < least:
			for range n {
				b = append(b, value)
			}
		case value != 0:
			if int(value) != previous {
				b = append(b, value)
				n--
			}
			b = append(b, headRepeat+byte(n-3))
		case n <= 10:
			b = append(b, headZeros+byte(n-3))
		default:
			b = append(b, headMore+byte(n-11))
		}
		previous = int(value)
	}
	return b
}
