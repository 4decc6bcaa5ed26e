package recode

// huffBits is how many bits of a code word one look-up resolves; the rare longer ones take a step for each bit.
const huffBits = 10

// huffTable decodes one Huffman code.
type huffTable struct {
	fast    [1 << huffBits]uint16 // symbol<<4 | bits, 0 where the code is longer or there is none
	count   [maxCodeBits + 1]uint16
	symbols [deflateLits]uint16 // in the order of their code words
}

// build sets the table up. A code may be incomplete, as that of a single distance is; it must not be ambiguous.
func (t *huffTable) build(lengths []uint8) error {
	t.count = [maxCodeBits + 1]uint16{}
	for _, n := range lengths {
		t.count[n]++
	}
	t.count[0] = 0
	var first [maxCodeBits + 1]uint16
	left := 1
	for n := 1; n <= maxCodeBits; n++ {
		if left = left<<1 - int(t.count[n]); left < 0 {
			return ErrFormat
		}
		first[n] = first[n-1] + t.count[n-1]
	}
	clear(t.fast[:])
	var c codes
	c.assign(lengths)
	for s, n := range lengths {
		if n == 0 {
			continue
		}
		t.symbols[first[n]] = uint16(s)
		first[n]++
		if n <= huffBits {
			for i := int(c[s] >> 4); i < len(t.fast); i += 1 << n {
				t.fast[i] = uint16(s)<<4 | uint16(n)
			}
		}
	}
	return nil
}

// slow decodes a code word that is longer than the look-up, or none: then n is 0.
func (t *huffTable) slow(v uint64) (symbol, n int) {
	code, first, index := 0, 0, 0
	for n = 1; n <= maxCodeBits; n++ {
		code |= int(v & 1)
		v >>= 1
		count := int(t.count[n])
		if code-first < count {
			return int(t.symbols[index+code-first]), n
		}
		index += count
		first = (first + count) << 1
		code <<= 1
	}
	return 0, 0
}

// inflate takes a run of blocks apart.
type inflate struct {
	*deflateCoder
	src     []byte
	at, end int // in bits
	content bool
	// The length of the body behind the last match, from where the next gap counts.
	last int

	body, records, blocks, headers column
}

func (d *deflateCoder) expand(params, src, dst []byte) (int, error) {
	var p deflateParams
	if err := p.parse(params); err != nil {
		return 0, err
	}
	c, total, err := cutColumns(dst, p.body, p.records*matchRecord, p.blocks*blockRecord, p.headers)
	if err != nil {
		return 0, err
	}
	s := inflate{
		deflateCoder: d,
		src:          src, at: int(p.flags & deflatePhase), end: len(src) * 8,
		content: p.flags&deflateContent != 0,
		body:    c[0], records: c[1], blocks: c[2], headers: c[3],
	}
	for range p.blocks {
		if _, err := s.block(); err != nil {
			return 0, err
		}
	}
	for _, c := range []*column{&s.body, &s.records, &s.headers} {
		if len(c.b) != cap(c.b) {
			return 0, ErrFormat
		}
	}
	return total, nil
}

// bits takes n ≤ 32 bits. Behind the end there are zeros; the next check of the position notices.
// Only headers need it, and inlined it would be a tenth of this codec's size.
//
//go:noinline
func (s *inflate) bits(n int) int {
	v := word(s.src, s.at>>3) >> uint(s.at&7) & (1<<uint(n) - 1)
	s.at += n
	return int(v)
}

// block takes one block apart, and tells whether the stream says that it is the last.
func (s *inflate) block() (final bool, err error) {
	kind := s.bits(3)
	final = kind&blockFinal != 0
	h := &s.header
	var header []byte
	var n int
	switch kind &^ blockFinal {
	case blockStored:
		n, err = s.stored()
	case blockFixed:
		fixedLengths(h)
		n, err = s.tokens()
	case blockHeader:
		if header, err = s.readHeader(); err == nil {
			n, err = s.tokens()
		}
	default:
		err = ErrFormat
	}
	if err == nil && s.at > s.end {
		err = ErrFormat
	}
	if err != nil {
		return false, err
	}
	if n > maxTokens {
		return false, ErrUnsupported
	}
	if header != nil {
		var derived [maxDeflateHeader]byte
		if string(s.tree.header(derived[:0], &s.freq)) == string(header) {
			kind = blockZlib | kind&blockFinal
		} else {
			if err := s.headers.room(len(header)); err != nil {
				return false, err
			}
			s.headers.b = append(s.headers.b, header...)
		}
	}
	if err := s.blocks.room(blockRecord); err != nil {
		return false, err
	}
	s.blocks.b = append(s.blocks.b, byte(kind), byte(n), byte(n>>8), byte(n>>16))
	return final, nil
}

// stored copies a block of type 0.
func (s *inflate) stored() (int, error) {
	pad := s.bits(-s.at & 7)
	n := s.bits(16)
	if complement := s.bits(16); complement != n^(1<<16-1) {
		return 0, ErrFormat
	}
	if n > len(s.src)-s.at>>3 {
		return 0, ErrFormat
	}
	if err := s.body.room(n); err != nil {
		return 0, err
	}
	s.body.b = append(s.body.b, s.src[s.at>>3:s.at>>3+n]...)
	s.at += n * 8
	return pad<<17 | n, nil
}

// readHeader takes the header of a dynamic block apart.
func (s *inflate) readHeader() ([]byte, error) {
	b := append(s.scratch[:0], byte(s.bits(5)), byte(s.bits(5)), byte(s.bits(4)))
	lengths := int(b[0]) + 257 + int(b[1]) + 1
	var meta [19]uint8
	for i := range int(b[2]) + 4 {
		n := byte(s.bits(3))
		b = append(b, n)
		meta[codeLengthOrder[i]] = n
	}
	if err := s.litDecode.build(meta[:]); err != nil {
		return nil, err
	}
	for lengths > 0 {
		e := int(s.litDecode.fast[word(s.src, s.at>>3)>>uint(s.at&7)&(1<<huffBits-1)])
		if e == 0 || s.at > s.end {
			return nil, ErrFormat
		}
		s.at += e & 15
		c := e >> 4
		switch c {
		case 16:
			c = headRepeat + s.bits(2)
		case 17:
			c = headZeros + s.bits(3)
		case 18:
			c = headMore + s.bits(7)
		}
		_, _, _, count, _ := headSymbol(byte(c))
		b = append(b, byte(c)) // at most one byte for each length: there is room
		lengths -= count
	}
	return b, s.header.parse(b)
}

// tokens decodes the tokens of a block with the lengths in s.header, and counts them.
func (s *inflate) tokens() (n int, err error) {
	h := &s.header
	if err := s.litDecode.build(h.lengths[:h.lits]); err != nil {
		return 0, err
	}
	if err := s.distDecode.build(h.lengths[h.lits : h.lits+h.dists]); err != nil {
		return 0, err
	}
	s.freq = frequencies{}
	for ; ; n++ {
		// One load holds a whole token: 15 + 5 + 15 + 13 bits of at least 57.
		v := word(s.src, s.at>>3) >> uint(s.at&7)
		symbol, used := 0, 0
		if e := int(s.litDecode.fast[v&(1<<huffBits-1)]); e != 0 {
			symbol, used = e>>4, e&15
		} else if symbol, used = s.litDecode.slow(v); used == 0 {
			return 0, ErrFormat
		}
		if s.at += used; s.at > s.end || symbol > 285 {
			return 0, ErrFormat
		}
		s.freq.lits[symbol]++
		if symbol < endOfBlock {
			if len(s.body.b) == cap(s.body.b) {
				if err := s.body.room(1); err != nil {
					return 0, err
				}
			}
			s.body.b = append(s.body.b, byte(symbol))
			continue
		}
		if symbol == endOfBlock {
			return n, nil
		}
		if err := s.match(symbol-257, v>>uint(used)); err != nil {
			return 0, err
		}
	}
}

// match decodes a match of a length symbol, less 257, whose other bits are next in v.
func (s *inflate) match(symbol int, v uint64) error {
	length, width := symbol, 0
	if symbol == 28 {
		length = 255
	} else if symbol >= 8 {
		width = symbol>>2 - 1
		length = (4+symbol&3)<<width + int(v&(1<<width-1))
		if length == 255 {
			// The other way to say 258, which no encoder that we know takes.
			if err := s.records.match(0, matchMark, 0); err != nil {
				return err
			}
		}
	}
	v >>= width
	s.at += width
	code, used := 0, 0
	if e := int(s.distDecode.fast[v&(1<<huffBits-1)]); e != 0 {
		code, used = e>>4, e&15
	} else if code, used = s.distDecode.slow(v); used == 0 {
		return ErrFormat
	}
	if code > 29 {
		return ErrFormat
	}
	v >>= used
	s.at += used
	s.freq.dists[code]++
	dist := code + 1
	if code >= 4 {
		width = code>>1 - 1
		dist = (2+code&1)<<width + int(v&(1<<width-1)) + 1
		s.at += width
	}
	if s.at > s.end {
		return ErrFormat
	}
	if err := s.records.match(len(s.body.b)-s.last, length, dist); err != nil {
		return err
	}
	if s.content {
		if err := s.body.copyMatch(length+3, dist); err != nil {
			return err
		}
	}
	s.last = len(s.body.b)
	return nil
}
