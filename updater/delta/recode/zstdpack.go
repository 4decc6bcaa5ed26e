package recode

import (
	"encoding/binary"
	"math/bits"
)

// pack turns zstdColumns into whole blocks.
func (z *zstdCoder) pack(params, plain, dst []byte) (int, error) {
	flags, rest, err := z.begin(params, true)
	if err != nil {
		return 0, err
	}
	var size [3]int // literals, sequences, control
	for i := range size {
		v, n := binary.Uvarint(rest)
		if n <= 0 || v > uint64(len(plain)) {
			return 0, ErrFormat
		}
		size[i], rest = int(v), rest[n:]
	}
	if len(rest) != 0 {
		return 0, ErrFormat
	}
	c, ok := placeZstd(plain, size[0], size[1], size[2])
	if !ok {
		return 0, ErrFormat
	}
	p := zstdPacker{
		z: z, b: plain, content: flags&zstdContent != 0, dst: dst,
		literalsEnd: c.records, control: c.control, controlEnd: c.long,
		records: plain[c.records:c.control], long: plain[c.long:],
	}
	if err := p.blocks(); err != nil {
		return 0, err
	}
	if len(p.records) != 0 || len(p.long) != 0 {
		return 0, ErrFormat
	}
	return p.at, nil
}

// zstdPacker is one call of pack: the columns that are left.
type zstdPacker struct {
	z                     *zstdCoder
	b                     []byte
	literals, literalsEnd int
	control, controlEnd   int
	records               []byte
	long                  []byte
	content               bool
	matches               *matchWalk // makes the records of one block at a time
	dst                   []byte
	at                    int
}

// blocks packs all that the control column has.
func (p *zstdPacker) blocks() error {
	for p.control < p.controlEnd {
		if err := p.block(); err != nil {
			return err
		}
	}
	if p.literals != p.literalsEnd {
		return ErrFormat
	}
	return nil
}

// takeControl returns the next n bytes of the control column.
func (p *zstdPacker) takeControl(n int) ([]byte, error) {
	if n > p.controlEnd-p.control {
		return nil, ErrFormat
	}
	b := p.b[p.control : p.control+n]
	p.control += n
	return b, nil
}

// take returns n bytes of the literals or the content.
func (p *zstdPacker) take(n int) ([]byte, error) {
	if n > p.literalsEnd-p.literals {
		return nil, ErrFormat
	}
	b := p.b[p.literals : p.literals+n]
	p.literals += n
	return b, nil
}

func (p *zstdPacker) put(b []byte) error {
	if len(b) > len(p.dst)-p.at {
		return ErrRoom
	}
	p.at += copy(p.dst[p.at:], b)
	return nil
}

func (p *zstdPacker) putByte(b byte) error {
	if p.at >= len(p.dst) {
		return ErrRoom
	}
	p.dst[p.at] = b
	p.at++
	return nil
}

func (p *zstdPacker) block() error {
	rec, err := p.takeControl(4)
	if err != nil {
		return err
	}
	h := zstdHeader{kind: rec[0] & 3, literals: rec[0] >> 3 & 3, format: rec[0] >> 5 & 3, size: get24(rec[1:])}
	header := uint32(rec[0]>>2&1) | uint32(h.kind)<<1
	head := p.at
	if err := p.put([]byte{0, 0, 0}); err != nil {
		return err
	}
	if h.size > zstdBlock {
		return ErrFormat
	}
	switch h.kind {
	case zstdRaw:
		b, err := p.take(h.size)
		if err != nil {
			return err
		}
		if err := p.put(b); err != nil {
			return err
		}
	case zstdRLE:
		b, err := p.takeControl(1)
		if err != nil {
			return err
		}
		if p.content {
			if _, err := p.take(h.size); err != nil {
				return err
			}
		}
		if err := p.put(b); err != nil {
			return err
		}
	case zstdCompressed:
		h.regen = h.size
		if err := p.compressed(&h); err != nil {
			return err
		}
		if h.size = p.at - head - 3; h.size > zstdBlock {
			return ErrFormat
		}
	default:
		return ErrFormat
	}
	put24(p.dst[head:], int(header)|h.size<<3)
	return nil
}

func (p *zstdPacker) compressed(h *zstdHeader) error {
	rec, err := p.takeControl(3)
	if err != nil {
		return err
	}
	h.sequence = get24(rec)
	if h.sequence > zstdSequences {
		return ErrFormat
	}
	if p.matches != nil {
		p.records = p.z.block[:h.sequence*zstdRecord]
		if p.long, err = p.matches.block(p.records, p.literals); err != nil {
			return err
		}
	}
	if h.sequence*zstdRecord > len(p.records) {
		return ErrFormat
	}
	records, long := p.records[:h.sequence*zstdRecord], p.long
	p.records = p.records[len(records):]
	literals, err := p.gather(h, records)
	if err != nil {
		return err
	}
	if h.literals <= literalsRLE {
		err = p.plainLiterals(h, literals)
	} else {
		err = p.huffman(h, literals)
	}
	if err != nil {
		return err
	}
	if err := p.sequenceHeader(h); err != nil || h.sequence == 0 {
		return err
	}
	return p.sequences(records, long[:len(long)-len(p.long)])
}

// gather returns the literals of the block, and moves past the long lengths
// of its sequences.
func (p *zstdPacker) gather(h *zstdHeader, records []byte) ([]byte, error) {
	free := len(p.z.block) - h.regen
	if free < len(records) {
		return nil, ErrFormat
	}
	out, n := p.z.block[free:], 0
	for ; len(records) > 0; records = records[zstdRecord:] {
		l, m := int(records[0]), int(records[1])
		var err error
		if l == zstdLong {
			l, err = p.takeLong()
		}
		if m == zstdLong && err == nil {
			m, err = p.takeLong()
		}
		if err != nil {
			return nil, err
		}
		if !p.content {
			continue
		}
		b, err := p.take(l)
		if err != nil || l > len(out)-n {
			return nil, ErrFormat
		}
		n += copy(out[n:], b)
		if _, err := p.take(m + 3); err != nil {
			return nil, err
		}
	}
	if !p.content {
		if h.literals == literalsRLE {
			return nil, nil
		}
		return p.take(h.regen)
	}
	b, err := p.take(len(out) - n)
	if err != nil {
		return nil, err
	}
	copy(out[n:], b)
	return out, nil
}

func (p *zstdPacker) takeLong() (int, error) {
	if len(p.long) < 3 {
		return 0, ErrFormat
	}
	v := get24(p.long)
	p.long = p.long[3:]
	if v < zstdLong || v >= zstdBlock {
		return 0, ErrFormat
	}
	return v, nil
}

func (p *zstdPacker) plainLiterals(h *zstdHeader, literals []byte) error {
	v := uint32(h.literals) | uint32(h.format)<<2
	var head []byte
	switch h.format {
	case 0:
		if h.regen >= 1<<5 {
			return ErrFormat
		}
		head = []byte{byte(v | uint32(h.regen)<<3)}
	case 1:
		if h.regen >= 1<<12 {
			return ErrFormat
		}
		v |= uint32(h.regen) << 4
		head = []byte{byte(v), byte(v >> 8)}
	case 3:
		v |= uint32(h.regen) << 4
		head = []byte{byte(v), byte(v >> 8), byte(v >> 16)}
	default:
		return ErrFormat
	}
	if err := p.put(head); err != nil {
		return err
	}
	if h.literals == literalsRLE {
		var err error
		if literals, err = p.takeControl(1); err != nil {
			return err
		}
	}
	return p.put(literals)
}

func (p *zstdPacker) huffman(h *zstdHeader, literals []byte) error {
	head := p.at
	n, width := literalSizes(h.format)
	if n > len(p.dst)-p.at {
		return ErrRoom
	}
	p.at += n
	body := p.at
	if h.literals == literalsCompressed {
		rest := p.b[p.control:p.controlEnd]
		n, err := p.z.tree(rest)
		if err != nil {
			return err
		}
		if err := p.put(rest[:n]); err != nil {
			return err
		}
		p.control += n
	}
	if p.z.weights.log == 0 {
		return ErrFormat
	}
	if err := p.streams(h, literals); err != nil {
		return err
	}
	size := p.at - body
	if h.regen>>width != 0 || size>>width != 0 {
		return ErrFormat
	}
	v := uint64(h.literals) | uint64(h.format)<<2 | uint64(h.regen)<<4 | uint64(size)<<(4+width)
	for i := range n {
		p.dst[head+i] = byte(v >> (8 * i))
	}
	return nil
}

func (p *zstdPacker) streams(h *zstdHeader, literals []byte) error {
	if h.format == 0 {
		n, err := p.z.treeIn.encode(p.dst[p.at:], literals)
		p.at += n
		return err
	}
	part := (len(literals) + 3) / 4
	if part*3 > len(literals) {
		return ErrFormat
	}
	jump := p.at
	if err := p.put(make([]byte, 6)); err != nil {
		return err
	}
	for i := range 4 {
		from, to := i*part, (i+1)*part
		if i == 3 {
			to = len(literals)
		}
		n, err := p.z.treeIn.encode(p.dst[p.at:], literals[from:to])
		if err != nil {
			return err
		}
		if i < 3 {
			if n >= 1<<16 {
				return ErrFormat
			}
			binary.LittleEndian.PutUint16(p.dst[jump+2*i:], uint16(n))
		}
		p.at += n
	}
	return nil
}

// sequenceHeader writes their number and their tables.
func (p *zstdPacker) sequenceHeader(h *zstdHeader) error {
	n := h.sequence
	var head []byte
	switch {
	case n < 128:
		head = []byte{byte(n)}
	case n < 0x7f00:
		head = []byte{byte(n>>8 + 128), byte(n)}
	default:
		n -= 0x7f00
		head = []byte{255, byte(n), byte(n >> 8)}
	}
	if err := p.put(head); err != nil || h.sequence == 0 {
		return err
	}
	rec, err := p.takeControl(1)
	if err != nil {
		return err
	}
	h.modes = rec[0]
	if err := p.putByte(h.modes); err != nil {
		return err
	}
	for k := range zstdKinds {
		rest := p.b[p.control:p.controlEnd]
		n, err := p.z.table(h.mode(k), k, rest)
		if err != nil {
			return err
		}
		if err := p.put(rest[:n]); err != nil {
			return err
		}
		p.control += n
	}
	return nil
}

// sequences writes the second bit stream of the block. It begins with the
// last sequence, since it is read from its end.
func (p *zstdPacker) sequences(records, long []byte) error {
	z := p.z
	w := foreBits{dst: p.dst[p.at:]}
	tl, to, tm := &z.tableIn[zstdLL], &z.tableIn[zstdOF], &z.tableIn[zstdML]
	lens, lens2 := &z.lengths[zstdLL], &z.lengths[zstdML]
	var sl, so, sm uint32
	last := len(records) - zstdRecord
	for i := last; i >= 0; i -= zstdRecord {
		rec := records[i:][:zstdRecord]
		l, m, o := uint32(rec[0]), uint32(rec[1]), binary.LittleEndian.Uint32(rec[2:])
		if m == zstdLong {
			m = uint32(get24(long[len(long)-3:]))
			long = long[:len(long)-3]
		}
		if l == zstdLong {
			l = uint32(get24(long[len(long)-3:]))
			long = long[:len(long)-3]
		}
		if o == 0 {
			return ErrFormat
		}
		cl, co, cm := lens.of(l), uint8(bits.Len32(o)-1), lens2.of(m)
		if !tl.symbol[cl].ok || !to.symbol[co].ok || !tm.symbol[cm].ok {
			return ErrFormat
		}
		if i == last {
			sm, so, sl = tm.first(cm), to.first(co), tl.first(cl)
		} else {
			so = to.step(&w, so, co)
			sm = tm.step(&w, sm, cm)
			sl = tl.step(&w, sl, cl)
		}
		w.add(uint64(l-lens.base[cl]), uint(lens.extra[cl])) // ≤ 7 + 26 + 16 bits
		w.flush()
		w.add(uint64(m-lens2.base[cm]), uint(lens2.extra[cm])) // ≤ 7 + 16 + 31
		w.add(uint64(o), uint(co))
		w.flush()
	}
	w.add(uint64(sm), uint(tm.log))
	w.add(uint64(so), uint(to.log))
	w.add(uint64(sl), uint(tl.log))
	w.flush()
	n, err := w.close()
	p.at += n
	return err
}
