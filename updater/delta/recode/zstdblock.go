package recode

import "math/bits"

// Limits of RFC 8878. A block regenerates at most 128 KiB, a sequence at
// least 3 bytes of it.
const (
	zstdBlock     = 128 << 10
	zstdSequences = zstdBlock / 3

	zstdRaw        = 0
	zstdRLE        = 1
	zstdCompressed = 2

	literalsRaw        = 0
	literalsRLE        = 1
	literalsCompressed = 2
	literalsTreeless   = 3

	modePredefined = 0
	modeRLE        = 1
	modeFSE        = 2
	modeRepeat     = 3
)

// The three kinds of codes of a sequence, in the order of their tables.
const (
	zstdLL = iota // literal length
	zstdOF        // offset
	zstdML        // match length
	zstdKinds
)

// zstdRules says how a code becomes a number (RFC 8878, section 3.1.1.3.2.1.1).
type zstdRules struct {
	maxLog     uint8
	symbols    uint8
	defaultLog uint8
	defaults   []int8
}

var zstdCodes = [zstdKinds]zstdRules{
	zstdLL: {9, 36, 6, []int8{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}},
	zstdOF: {8, 32, 5, []int8{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}},
	zstdML: {9, 53, 6, []int8{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}},
}

// Extra bits of the codes from 16 (literal lengths) and 32 (match lengths) on;
// smaller codes are the number itself. Beyond the lists, each code has one bit more.
var (
	extraLL = [36 - 16]uint8{1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	extraML = [53 - 32]uint8{1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

// zstdLengths holds, for each code, what it stands for, and for each small
// number its code. It is computed: the source is smaller and no typing error hides in it.
type zstdLengths struct {
	base  [53]uint32
	extra [53]uint8
	code  [128]uint8 // numbers below small
	small int
	log   int // from there on: bits.Len - 1 + log
}

func (c *zstdLengths) init(direct int, extra []uint8, small int) {
	for i := range direct {
		c.base[i] = uint32(i)
	}
	next := uint32(direct)
	for i, e := range extra {
		c.base[direct+i], c.extra[direct+i] = next, e
		next += 1 << e
	}
	last := direct + len(extra)
	c.small = small
	code := 0
	for v := range small {
		for code+1 < last && c.base[code+1] <= uint32(v) {
			code++
		}
		c.code[v] = uint8(code)
	}
	c.log = code + 1 - (bits.Len(uint(small)) - 1)
}

func (c *zstdLengths) of(v uint32) uint8 {
	if v < uint32(c.small) {
		return c.code[v]
	}
	return uint8(bits.Len32(v) - 1 + c.log)
}

// zstdHeader is what stands in a block besides its two bit streams.
type zstdHeader struct {
	last bool
	kind uint8
	size int // of a raw block, or what an RLE block becomes

	literals uint8 // how the literals are coded
	format   uint8 // of their size fields
	regen    int   // literals
	packed   int   // bytes in front of the sequences, tree included; Huffman only
	tree     int   // bytes of the tree description
	sequence int
	modes    uint8

	// Where things are in the block's bytes.
	body  int                // content of a raw or RLE block, else literals behind their header
	codes [zstdKinds + 1]int // table descriptions, then the sequences' bit stream
	end   int
}

// literalBytes is how many literals the block adds to their column.
func (h *zstdHeader) literalBytes() int {
	switch {
	case h.kind == zstdRaw:
		return h.size
	case h.kind == zstdRLE || h.literals == literalsRLE:
		return 0
	}
	return h.regen
}

// mode returns how the table of a kind of code is given.
func (h *zstdHeader) mode(k int) uint8 { return h.modes >> (6 - 2*k) & 3 }

// read takes the header of the block that starts at src[at]. Tables are looked
// at only for their length.
func (h *zstdHeader) read(src []byte, at int, scratch *distribution) error {
	if at+3 > len(src) {
		return ErrFormat
	}
	v := int(src[at]) | int(src[at+1])<<8 | int(src[at+2])<<16
	*h = zstdHeader{last: v&1 != 0, kind: uint8(v >> 1 & 3), size: v >> 3, body: at + 3}
	if h.size > zstdBlock {
		return ErrFormat
	}
	h.end = h.body + h.size
	if h.kind == zstdRLE {
		h.end = h.body + 1
	}
	if h.end > len(src) || h.kind > zstdCompressed {
		return ErrFormat
	}
	if h.kind != zstdCompressed {
		return nil
	}
	in := src[:h.end]
	at, err := h.readLiterals(in, h.body)
	if err != nil {
		return err
	}
	return h.readSequences(in, at, scratch)
}

func (h *zstdHeader) readLiterals(in []byte, at int) (int, error) {
	if at >= len(in) {
		return 0, ErrFormat
	}
	v := word(in, at)
	h.literals, h.format = uint8(v&3), uint8(v>>2&3)
	if h.literals <= literalsRLE {
		n := 1
		switch h.format {
		case 0, 2:
			h.format = 0
			h.regen = int(v >> 3 & 31)
		case 1:
			n, h.regen = 2, int(v>>4&(1<<12-1))
		case 3:
			n, h.regen = 3, int(v>>4&(1<<20-1))
		}
		h.packed = h.regen
		if h.literals == literalsRLE {
			h.packed = 1
		}
		at += n
	} else {
		n, width := literalSizes(h.format)
		h.regen = int(v >> 4 & (1<<width - 1))
		h.packed = int(v >> (4 + width) & (1<<width - 1))
		at += n
	}
	if h.regen > zstdBlock || at > len(in) || h.packed >= len(in)-at { // sequences have a byte at least
		return 0, ErrFormat
	}
	h.body = at
	if h.literals == literalsCompressed {
		if h.packed == 0 {
			return 0, ErrFormat
		}
		if h.tree = 1 + int(in[at]); in[at] >= 128 {
			h.tree = 1 + (int(in[at])-126)/2
		}
		if h.tree > h.packed {
			return 0, ErrFormat
		}
	}
	return at + h.packed, nil
}

// literalSizes returns the bytes of the header of Huffman coded literals, and
// the bits of each of its two sizes.
func literalSizes(format uint8) (int, uint) {
	switch format {
	case 2:
		return 4, 14
	case 3:
		return 5, 18
	}
	return 3, 10
}

func (h *zstdHeader) readSequences(in []byte, at int, scratch *distribution) error {
	n := int(in[at])
	at++
	switch {
	case n == 255:
		if at+2 > len(in) {
			return ErrFormat
		}
		n = int(in[at]) + int(in[at+1])<<8 + 0x7f00
		at += 2
	case n >= 128:
		if at >= len(in) {
			return ErrFormat
		}
		n = (n-128)<<8 + int(in[at])
		at++
	}
	h.sequence = n
	if n > zstdSequences {
		return ErrFormat
	}
	if n == 0 {
		h.codes = [zstdKinds + 1]int{at, at, at, at}
		if at != len(in) {
			return ErrFormat
		}
		return nil
	}
	if at >= len(in) {
		return ErrFormat
	}
	h.modes = in[at]
	at++
	for k := range zstdKinds {
		h.codes[k] = at
		used, err := descriptionLength(h.mode(k), k, in[at:], scratch)
		if err != nil {
			return err
		}
		at += used
	}
	h.codes[zstdKinds] = at
	return nil
}

// descriptionLength returns how many bytes describe a table.
func descriptionLength(mode uint8, k int, in []byte, scratch *distribution) (int, error) {
	switch mode {
	case modeRLE:
		if len(in) == 0 {
			return 0, ErrFormat
		}
		return 1, nil
	case modeFSE:
		return scratch.read(in, int(zstdCodes[k].maxLog), int(zstdCodes[k].symbols))
	}
	return 0, nil
}
