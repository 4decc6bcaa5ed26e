package recode

import "math/bits"

const hufMaxLog = 11

// hufWeights is what a Huffman tree description says (RFC 8878, section 4.2.1):
// weight 0 means absent, else a code of log+1-weight bits.
type hufWeights struct {
	log uint8 // 0: no tree yet
	n   int   // symbols
	w   [256]uint8
}

// read reads a description and returns its length.
func (h *hufWeights) read(src []byte, scratch *decodeTable) (int, error) {
	h.log = 0
	if len(src) == 0 {
		return 0, ErrFormat
	}
	head := int(src[0])
	n, size := 0, 1
	if head >= 128 { // 4 bits each
		n = head - 127
		size += (n + 1) / 2
		if len(src) < size {
			return 0, ErrFormat
		}
		for i := range n {
			h.w[i] = src[1+i/2] >> uint(4*(1-i&1)) & 15
		}
	} else {
		size += head
		if len(src) < size {
			return 0, ErrFormat
		}
		var d distribution
		used, err := d.read(src[1:size], 6, 64)
		if err != nil {
			return 0, err
		}
		scratch.build(&d)
		if n, err = h.stream(src, 1+used, size, scratch); err != nil {
			return 0, err
		}
	}
	return size, h.complete(n)
}

// stream decodes weights that two states take turns to give.
func (h *hufWeights) stream(src []byte, from, to int, t *decodeTable) (int, error) {
	var b backBits
	if err := b.init(src, from, to); err != nil {
		return 0, err
	}
	var state [2]uint64
	state[0] = b.read(uint(t.log))
	state[1] = b.read(uint(t.log))
	if b.pos < 0 {
		return 0, ErrFormat
	}
	for n := 0; n < 254; n++ {
		s := &state[n&1]
		c := t.cells[*s]
		h.w[n] = c.symbol
		if b.pos < int(c.nbits) { // the other state has the last one
			h.w[n+1] = t.cells[state[1-n&1]].symbol
			return n + 2, nil
		}
		*s = uint64(c.base) + b.read(uint(c.nbits))
	}
	return 0, ErrFormat
}

// complete adds the last weight, which follows from the others.
func (h *hufWeights) complete(n int) error {
	sum := 0
	for _, w := range h.w[:n] {
		if w > hufMaxLog {
			return ErrFormat
		}
		sum += 1 << w >> 1
	}
	if sum == 0 {
		return ErrFormat
	}
	log := bits.Len(uint(sum))
	rest := 1<<log - sum
	if log > hufMaxLog || rest&(rest-1) != 0 || n >= 256 {
		return ErrFormat
	}
	h.w[n] = uint8(bits.Len(uint(rest)))
	h.n, h.log = n+1, uint8(log)
	return nil
}

// starts returns where the codes of each weight begin in a table of 1<<log.
func (h *hufWeights) starts() (at [hufMaxLog + 2]int) {
	var count [hufMaxLog + 2]int
	for _, w := range h.w[:h.n] {
		count[w]++
	}
	next := 0
	for w := 1; w < len(at); w++ {
		at[w] = next
		next += count[w] << (w - 1)
	}
	return at
}

// hufDecoder maps the next log bits to a symbol and the length of its code.
type hufDecoder struct {
	log   uint8
	cells [1 << hufMaxLog]uint16 // symbol<<8 | bits
}

func (t *hufDecoder) build(h *hufWeights) {
	t.log = h.log
	at := h.starts()
	for s, w := range h.w[:h.n] {
		if w == 0 {
			continue
		}
		end := at[w] + 1<<(w-1)
		for i := at[w]; i < end; i++ {
			t.cells[i] = uint16(s)<<8 | uint16(h.log+1-w)
		}
		at[w] = end
	}
}

// decode fills dst from the stream src[from:to], which must hold exactly that.
func (t *hufDecoder) decode(dst, src []byte, from, to int) error {
	var b backBits
	if err := b.init(src, from, to); err != nil {
		return err
	}
	log := uint(t.log)
	i := 0
	// Four codes have at most 44 bits, and a load has 57.
	for ; i+4 <= len(dst) && b.pos >= 57; i += 4 {
		p := b.pos - 57
		v := word(b.src, p>>3) >> uint(p&7) << 7 // the next 57 bits, on top
		var used uint
		for k := range 4 {
			c := t.cells[v>>(64-log)&(1<<hufMaxLog-1)]
			dst[i+k] = byte(c >> 8)
			n := uint(c & 255)
			v <<= n & 63
			used += n
		}
		b.pos -= int(used)
	}
	for ; i < len(dst); i++ {
		c := t.cells[b.peek(log)]
		dst[i] = byte(c >> 8)
		b.pos -= int(c & 255)
	}
	if b.pos != 0 {
		return ErrFormat
	}
	return nil
}

// hufEncoder maps a symbol to its code: code<<8 | bits, 0 where there is none.
type hufEncoder struct {
	codes [256]uint32
}

func (t *hufEncoder) build(h *hufWeights) {
	at := h.starts()
	t.codes = [256]uint32{}
	for s, w := range h.w[:h.n] {
		if w == 0 {
			continue
		}
		t.codes[s] = uint32(at[w]>>(w-1))<<8 | uint32(h.log+1-w)
		at[w] += 1 << (w - 1)
	}
}

// encode writes the stream of src to dst and returns its length.
func (t *hufEncoder) encode(dst, src []byte) (int, error) {
	w := foreBits{dst: dst}
	i := len(src)
	absent := uint32(0)
	for ; i >= 4; i -= 4 {
		for k := 1; k <= 4; k++ {
			c := t.codes[src[i-k]]
			absent |= c - 1 // only 0 sets the top bit
			w.add(uint64(c>>8), uint(c&255))
		}
		w.flush()
	}
	for i--; i >= 0; i-- {
		c := t.codes[src[i]]
		absent |= c - 1
		w.add(uint64(c>>8), uint(c&255))
		w.flush()
	}
	if absent>>31 != 0 {
		return 0, ErrFormat
	}
	return w.close()
}
