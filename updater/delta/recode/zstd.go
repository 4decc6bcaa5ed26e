package recode

import (
	"encoding/binary"
)

// Flags in the first byte of the parameters.
const (
	zstdContent = 1 << 0 // literals are not a column but gaps in the content
	zstdTree    = 1 << 1 // a Huffman tree from before the first block follows
	zstdTables  = 1 << 2 // << 0, 1, 2: a table of zstdLL, zstdOF, zstdML follows
)

// zstdLong marks a length of 255 and more in its column of bytes.
const zstdLong = 255

// zstdCoder is the working memory of both directions: less than 300 KiB.
type zstdCoder struct {
	lengths [zstdKinds]zstdLengths // that of offsets is not used
	known   [zstdKinds]bool        // a table is there to be repeated
	weights hufWeights             // log 0: no tree
	scratch distribution

	treeOut  hufDecoder
	tableOut [zstdKinds]decodeTable
	treeIn   hufEncoder
	tableIn  [zstdKinds]encodeTable
	small    decodeTable // of Huffman weights

	packing bool

	// What a block is gathered in: the records of its sequences from the front,
	// its literals at the end. As a sequence makes three bytes of the block's
	// 128 KiB at least, both always have room.
	block [zstdBlock + 3*zstdSequences]byte

	// For ZstdMatches.
	walk      matchWalk
	reader    rangeReader
	positions bool   // expand to matches only, that know where they are
	reps      [3]int // distances used last
	carry     int    // literals since the last match
}

// zstdRecord is the size of the record of a sequence: literal length, match
// length - 3, offset value (4, little-endian). Records stay interleaved, since a
// matcher of bytes finds its way in them better than in columns of single fields.
const zstdRecord = 6

// zstdColumns are the parts of what Expand writes and Pack reads, in this order:
// literals or content, records, control, long lengths. Each number says where
// the rest of a part begins.
type zstdColumns struct {
	b        []byte
	literals int
	records  int
	control  int
	long     int
}

// placeZstd lays the columns out; long lengths take what is left of b.
func placeZstd(b []byte, literals, sequences, control int) (zstdColumns, bool) {
	c := zstdColumns{b: b, records: literals}
	c.control = c.records + zstdRecord*sequences
	c.long = c.control + control
	return c, c.long <= len(b)
}

// begin forgets the last call and takes the tables that params hand over.
func (z *zstdCoder) begin(params []byte, packing bool) (flags byte, rest []byte, err error) {
	if z.lengths[zstdLL].log == 0 {
		z.lengths[zstdLL].init(16, extraLL[:], 64)
		z.lengths[zstdML].init(32, extraML[:], 128)
	}
	z.packing, z.positions, z.weights.log, z.known = packing, false, 0, [zstdKinds]bool{}
	if len(params) == 0 {
		return 0, nil, ErrFormat
	}
	flags, params = params[0], params[1:]
	if flags>>(2+zstdKinds) != 0 {
		return 0, nil, ErrUnsupported
	}
	if flags&zstdTree != 0 {
		n, err := z.tree(params)
		if err != nil {
			return 0, nil, err
		}
		params = params[n:]
	}
	for k := range zstdKinds {
		if flags&(zstdTables<<k) == 0 {
			continue
		}
		if len(params) == 0 {
			return 0, nil, ErrFormat
		}
		n, err := z.table(params[0], k, params[1:])
		if err != nil {
			return 0, nil, err
		}
		params = params[1+n:]
	}
	return flags, params, nil
}

// tree takes the description of a Huffman tree and returns its length.
func (z *zstdCoder) tree(in []byte) (int, error) {
	n, err := z.weights.read(in, &z.small)
	if err != nil {
		z.weights.log = 0
		return 0, err
	}
	if z.packing {
		z.treeIn.build(&z.weights)
	} else {
		z.treeOut.build(&z.weights)
	}
	return n, nil
}

// table takes the description of a table of codes and returns its length.
func (z *zstdCoder) table(mode uint8, k int, in []byte) (n int, err error) {
	r, d := &zstdCodes[k], &z.scratch
	switch mode {
	case modePredefined:
		d.set(r.defaultLog, r.defaults)
	case modeRLE:
		if len(in) == 0 || in[0] >= r.symbols {
			return 0, ErrFormat
		}
		d.setRLE(in[0])
		n = 1
	case modeFSE:
		if n, err = d.read(in, int(r.maxLog), int(r.symbols)); err != nil {
			return 0, err
		}
	case modeRepeat:
		if !z.known[k] {
			return 0, ErrFormat
		}
		return 0, nil
	default:
		return 0, ErrFormat
	}
	if z.packing {
		z.tableIn[k].build(d)
	} else {
		z.tableOut[k].build(d)
	}
	z.known[k] = true
	return n, nil
}

// expand turns whole blocks into zstdColumns.
func (z *zstdCoder) expand(kind Kind, params, src, dst []byte) (int, error) {
	flags, rest, err := z.begin(params, false)
	if err != nil {
		return 0, err
	}
	if kind == ZstdMatches {
		flags |= zstdContent
		z.positions, z.carry = true, 0
		rest, err = z.takeReps(rest)
	}
	if err != nil || len(rest) != 0 {
		return 0, ErrFormat
	}
	// Headers tell the sizes, so that the zstdColumns can be placed before any
	// stream is decoded.
	literals, sequences, control := 0, 0, 0
	var h zstdHeader
	for at := 0; at < len(src); at = h.end {
		if err := h.read(src, at, &z.scratch); err != nil {
			return 0, err
		}
		if flags&zstdContent == 0 {
			literals += h.literalBytes()
		}
		sequences += h.sequence
		if !z.positions {
			control += h.controlBytes()
		}
	}
	c, ok := placeZstd(dst, literals, sequences, control)
	if !ok {
		return 0, ErrRoom
	}
	for at := 0; at < len(src); at = h.end {
		if err := h.read(src, at, &z.scratch); err != nil {
			return 0, err
		}
		if !z.positions {
			c.control += h.putControl(dst[c.control:], src)
		}
		if err := z.expandLiterals(&h, src, &c, flags&zstdContent != 0); err != nil {
			return 0, err
		}
		if err := z.expandSequences(&h, src, &c); err != nil {
			return 0, err
		}
	}
	return c.long, nil
}

func (z *zstdCoder) expandLiterals(h *zstdHeader, src []byte, c *zstdColumns, drop bool) error {
	if h.tree > 0 {
		if _, err := z.tree(src[h.body : h.body+h.tree]); err != nil {
			return err
		}
	}
	n := h.literalBytes()
	if drop || n == 0 {
		return nil
	}
	out := c.b[c.literals : c.literals+n]
	c.literals += n
	if h.kind == zstdRaw || h.literals == literalsRaw {
		copy(out, src[h.body:])
		return nil
	}
	if z.weights.log == 0 {
		return ErrFormat
	}
	from, to := h.body+h.tree, h.body+h.packed
	if h.format == 0 {
		return z.treeOut.decode(out, src, from, to)
	}
	if from+6 > to {
		return ErrFormat
	}
	part := (n + 3) / 4
	if part*3 > n {
		return ErrFormat
	}
	jump := src[from:]
	from += 6
	for i := range 3 {
		end := from + int(binary.LittleEndian.Uint16(jump[2*i:]))
		if end > to {
			return ErrFormat
		}
		if err := z.treeOut.decode(out[i*part:(i+1)*part], src, from, end); err != nil {
			return err
		}
		from = end
	}
	return z.treeOut.decode(out[3*part:], src, from, to)
}

func (z *zstdCoder) expandSequences(h *zstdHeader, src []byte, c *zstdColumns) error {
	if z.positions {
		if z.carry += h.regen + h.size; h.kind == zstdCompressed {
			z.carry -= h.size
		}
		if z.carry >= 1<<24-zstdBlock {
			return ErrUnsupported
		}
	}
	if h.sequence == 0 {
		return nil
	}
	before := z.carry - h.regen
	for k := range zstdKinds {
		if _, err := z.table(h.mode(k), k, src[h.codes[k]:h.codes[zstdKinds]]); err != nil {
			return err
		}
	}
	var b backBits
	if err := b.init(src, h.codes[zstdKinds], h.end); err != nil {
		return err
	}
	tl, to, tm := &z.tableOut[zstdLL], &z.tableOut[zstdOF], &z.tableOut[zstdML]
	sl := b.read(uint(tl.log))
	so := b.read(uint(to.log))
	sm := b.read(uint(tm.log))
	ll, ml := &z.lengths[zstdLL], &z.lengths[zstdML]
	out := c.b
	for i := range h.sequence {
		cl, co, cm := tl.cells[sl&511], to.cells[so&511], tm.cells[sm&511]
		ofs := uint32(1)<<co.symbol + uint32(b.read(uint(co.symbol)))
		el, em := uint(ll.extra[cl.symbol]), uint(ml.extra[cm.symbol])
		x := b.read(el + em)
		m := ml.base[cm.symbol] + uint32(x>>el)
		l := ll.base[cl.symbol] + uint32(x)&(1<<el-1)
		if i+1 < h.sequence {
			x := b.read(uint(cl.nbits + cm.nbits + co.nbits))
			so = uint64(co.base) + x&(1<<co.nbits-1)
			x >>= co.nbits
			sm = uint64(cm.base) + x&(1<<cm.nbits-1)
			sl = uint64(cl.base) + x>>cm.nbits
		}
		if z.positions {
			ofs = z.distance(ofs, l)
			l += uint32(before)
			z.carry -= int(l)
			before = 0
		}
		rec := out[c.records : c.records+zstdRecord]
		c.records += zstdRecord
		rec[0], rec[1] = byte(l), byte(m)
		binary.LittleEndian.PutUint32(rec[2:], ofs)
		if l|m >= zstdLong && !c.lengthen(rec, l, m) {
			return ErrRoom
		}
	}
	if b.pos != 0 {
		return ErrFormat
	}
	if z.carry < 0 {
		return ErrFormat
	}
	return nil
}

// distance returns what an offset value means (RFC 8878, section 3.1.1.5).
func (z *zstdCoder) distance(value, literals uint32) uint32 {
	r := &z.reps
	which := int(value) - 1
	if value > 3 {
		which = 3
	} else if literals == 0 {
		which++
	}
	d := int(value) - 3
	switch {
	case value <= 3 && which == 3:
		d = r[0] - 1
	case which < 3:
		d = r[which]
	}
	if which > 1 {
		r[2] = r[1]
	}
	if which > 0 {
		r[1] = r[0]
	}
	r[0] = d
	return uint32(d)
}

// takeReps takes the distances that were used before the first block.
func (z *zstdCoder) takeReps(params []byte) ([]byte, error) {
	for i := range z.reps {
		v, n := binary.Uvarint(params)
		if n <= 0 || v >= matchDistance {
			return nil, ErrFormat
		}
		z.reps[i], params = int(v), params[n:]
	}
	return params, nil
}

// lengthen marks what is too long for a byte, and puts it in the last column.
func (c *zstdColumns) lengthen(rec []byte, l, m uint32) bool {
	for i, v := range [2]uint32{l, m} {
		if v < zstdLong {
			continue
		}
		if c.long+3 > len(c.b) {
			return false
		}
		rec[i] = zstdLong
		put24(c.b[c.long:], int(v))
		c.long += 3
	}
	return true
}

func put24(b []byte, v int) {
	b[0], b[1], b[2] = byte(v), byte(v>>8), byte(v>>16)
}

func get24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// controlBytes is the length of the block's record in the control column.
func (h *zstdHeader) controlBytes() int {
	switch h.kind {
	case zstdRaw:
		return 4
	case zstdRLE:
		return 5
	}
	n := 7 + h.tree
	if h.literals == literalsRLE {
		n++
	}
	if h.sequence > 0 {
		n += 1 + h.codes[zstdKinds] - h.codes[0]
	}
	return n
}

// putControl writes the record; there is room for it.
func (h *zstdHeader) putControl(out, src []byte) int {
	out[0] = h.kind | h.literals<<3 | h.format<<5
	if h.last {
		out[0] |= 1 << 2
	}
	n := 7
	if h.kind != zstdCompressed {
		put24(out[1:], h.size)
		if n = 4; h.kind == zstdRLE {
			out[n] = src[h.body]
			n++
		}
		return n
	}
	put24(out[1:], h.regen)
	put24(out[4:], h.sequence)
	switch h.literals {
	case literalsRLE:
		out[n] = src[h.body]
		n++
	case literalsCompressed:
		n += copy(out[n:], src[h.body:h.body+h.tree])
	}
	if h.sequence > 0 {
		out[n] = h.modes
		n++
		n += copy(out[n:], src[h.codes[0]:h.codes[zstdKinds]])
	}
	return n
}
