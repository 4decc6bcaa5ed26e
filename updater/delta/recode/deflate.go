package recode

import (
	"encoding/binary"
)

// Flags of the parameters of kind Deflate.
const (
	deflatePhase   = 7      // bits of the first byte that belong to what is before
	deflateContent = 1 << 3 // the body is the content, not only its literals
	deflateClosed  = 1 << 4 // the last byte is filled up, otherwise its bits are left to the next piece
	deflateTail    = 1 << 5 // it is filled up with other bits than zeros
)

// Block types as recorded: those of RFC 1951, and one for the headers that need no recording.
const (
	blockFinal  = 1
	blockStored = 0 << 1
	blockFixed  = 1 << 1
	blockHeader = 2 << 1 // dynamic, its header is among the headers
	blockZlib   = 3 << 1 // dynamic, its header is as zlib makes it from the tokens
	// An entry of the column of blocks is {type, tokens (3, little-endian)}. Bits 17 to 23 of the count of a
	// stored block are the bits that fill up the byte before its length.
	blockRecord = 4
	maxTokens   = 1<<24 - 1
)

// deflateParams say how the columns of a run of blocks lie, and where in a byte it begins and ends.
type deflateParams struct {
	flags   byte
	head    byte // the phase bits of the first byte that are not ours
	tail    byte // what the last byte is filled up with
	body    int  // bytes: literals, or the content
	records int  // entries of the match list
	blocks  int
	headers int // bytes
}

func (p *deflateParams) parse(b []byte) error {
	if len(b) < 1 {
		return ErrFormat
	}
	p.flags, b = b[0], b[1:]
	if p.flags >= deflateTail<<1 {
		return ErrUnsupported
	}
	for _, o := range []struct {
		present bool
		value   *byte
	}{{p.flags&deflatePhase != 0, &p.head}, {p.flags&deflateTail != 0, &p.tail}} {
		if o.present {
			if len(b) < 1 {
				return ErrFormat
			}
			*o.value, b = b[0], b[1:]
		}
	}
	b, err := parameters(b, &p.body, &p.records, &p.blocks, &p.headers)
	if err == nil && len(b) != 0 {
		err = ErrFormat
	}
	return err
}

// bytes is the inverse of parse.
func (p *deflateParams) bytes() []byte {
	b := []byte{p.flags}
	if p.flags&deflatePhase != 0 {
		b = append(b, p.head)
	}
	if p.flags&deflateTail != 0 {
		b = append(b, p.tail)
	}
	for _, n := range []int{p.body, p.records, p.blocks, p.headers} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

// deflateCoder holds the tables of both directions.
type deflateCoder struct {
	header deflateHeader
	freq   frequencies
	tree   zlibTree
	// A header in bytes; a derived one never needs more.
	scratch [maxDeflateHeader]byte

	lits, dists           codes     // for Pack
	litDecode, distDecode huffTable // for Expand
}

// tokens walks the tokens of a piece: every literal is one, every match is one.
type tokens struct {
	matches
	body    []byte
	content bool
	mark    bool // the next match is written with the other symbol for length 258
}

// more goes to the next entry of the match list, when its gap and its match are used up.
func (t *tokens) more() error {
	if !t.next(len(t.body)) && t.gap == 0 {
		return ErrFormat
	}
	if t.gap > len(t.body) || t.dist > 1<<15 {
		return ErrFormat
	}
	if t.dist == 0 {
		if t.length > matchMark {
			return ErrFormat
		}
		t.mark = t.mark || t.length == matchMark
	}
	return nil
}

// literals takes at most n literals that stand at the front.
func (t *tokens) literals(n int) []byte {
	n = min(n, t.gap)
	b := t.body[:n]
	t.body, t.gap = t.body[n:], t.gap-n
	return b
}

// skip steps over the match at the front.
func (t *tokens) skip() error {
	t.dist, t.mark = 0, false
	if t.content {
		if t.length+3 > len(t.body) {
			return ErrFormat
		}
		t.body = t.body[t.length+3:]
	}
	return nil
}

func (d *deflateCoder) pack(params, plain, dst []byte) (int, error) {
	var p deflateParams
	if err := p.parse(params); err != nil {
		return 0, err
	}
	// The columns fill plain exactly; each number is at most 2^26.
	records, blocks := p.body+p.records*matchRecord, p.blocks*blockRecord
	if p.body > len(plain) || records > len(plain) || len(plain)-records != blocks+p.headers {
		return 0, ErrFormat
	}
	t := tokens{body: plain[:p.body], content: p.flags&deflateContent != 0}
	t.records = plain[p.body:records]
	headers := plain[records+blocks:]
	phase := uint(p.flags & deflatePhase)
	w := foreBits{dst: dst, acc: uint64(p.head) & (1<<phase - 1), n: phase}
	for b := plain[records : records+blocks]; len(b) > 0; b = b[blockRecord:] {
		if err := d.packBlock(&w, &t, &headers, b[0], int(b[1])|int(b[2])<<8|int(b[3])<<16); err != nil {
			return 0, err
		}
		if w.err != nil {
			return 0, w.err
		}
	}
	if len(t.body) != 0 || len(t.records) != 0 || t.dist != 0 || t.mark || len(headers) != 0 {
		return 0, ErrFormat
	}
	if p.flags&deflateClosed != 0 && w.n != 0 {
		w.add(uint64(p.tail), 8-w.n)
		w.flush()
	}
	return w.at, w.err
}

// packBlock writes one block of n tokens.
func (d *deflateCoder) packBlock(w *foreBits, t *tokens, headers *[]byte, kind byte, n int) error {
	if kind > blockZlib|blockFinal {
		return ErrFormat
	}
	h := &d.header
	switch kind &^ blockFinal {
	case blockStored:
		return packStored(w, t, kind, n)
	case blockFixed:
		w.add(uint64(kind), 3)
		fixedLengths(h)
	case blockHeader:
		w.add(uint64(kind), 3)
		if err := h.parse(*headers); err != nil {
			return err
		}
		packHeader(w, h, (*headers)[:h.size])
		*headers = (*headers)[h.size:]
	case blockZlib:
		w.add(uint64(kind&blockFinal|blockHeader), 3)
		ahead := *t
		if err := d.count(&ahead, n); err != nil {
			return err
		}
		b := d.tree.header(d.scratch[:0], &d.freq)
		if err := h.parse(b); err != nil {
			return err
		}
		packHeader(w, h, b)
	}
	w.flush()
	d.lits.assign(h.lengths[:h.lits])
	d.dists.assign(h.lengths[h.lits : h.lits+h.dists])
	return d.packTokens(w, t, n)
}

// packStored writes a block of type 0, whose tokens are all literals.
func packStored(w *foreBits, t *tokens, kind byte, n int) error {
	w.add(uint64(kind), 3)
	pad, n := n>>17, n&(1<<17-1)
	if n > 1<<16-1 {
		return ErrFormat
	}
	w.add(uint64(pad), -w.n&7)
	w.add(uint64(n)|uint64(^n)<<16&(1<<32-1), 32)
	w.flush()
	for n > 0 {
		if t.gap == 0 {
			if t.dist != 0 {
				return ErrFormat
			}
			if err := t.more(); err != nil {
				return err
			}
			continue
		}
		b := t.literals(n)
		if len(w.dst)-w.at < len(b) {
			return ErrRoom
		}
		w.at += copy(w.dst[w.at:], b)
		n -= len(b)
	}
	return nil
}

// packHeader writes the header of a dynamic block, which h was parsed from.
func packHeader(w *foreBits, h *deflateHeader, b []byte) {
	w.add(uint64(b[0])|uint64(b[1])<<5|uint64(b[2])<<10, 14)
	w.flush()
	for _, n := range b[3 : 3+h.order] {
		w.add(uint64(n), 3)
		w.flush()
	}
	var meta codes
	meta.assign(h.meta[:])
	for _, s := range b[3+h.order:] {
		symbol, extra, width, _, _ := headSymbol(s)
		c := meta[symbol]
		w.add(uint64(c>>4), uint(c&15))
		w.add(uint64(extra), uint(width))
		w.flush()
	}
}

// count counts the symbols of the next n tokens.
func (d *deflateCoder) count(t *tokens, n int) error {
	f := &d.freq
	*f = frequencies{}
	f.lits[endOfBlock] = 1
	for n > 0 {
		switch {
		case t.gap > 0:
			b := t.literals(n)
			for _, c := range b {
				f.lits[c]++
			}
			n -= len(b)
		case t.dist != 0:
			symbol, _, _ := lengthSymbol(t.length)
			if t.mark {
				symbol, _, _ = longLength(t.length)
			}
			f.lits[symbol]++
			symbol, _, _ = distanceSymbol(t.dist)
			f.dists[symbol]++
			if err := t.skip(); err != nil {
				return err
			}
			n--
		default:
			if err := t.more(); err != nil {
				return err
			}
		}
	}
	return nil
}

// packTokens writes the next n tokens and the end of the block.
func (d *deflateCoder) packTokens(w *foreBits, t *tokens, n int) error {
	absent := uint32(0)
	for n > 0 {
		switch {
		case t.gap > 0:
			b := t.literals(n)
			n -= len(b)
			for ; len(b) >= 3; b = b[3:] {
				x, y, z := d.lits[b[0]], d.lits[b[1]], d.lits[b[2]]
				absent |= x - 1 | y - 1 | z - 1 // only 0 sets the top bit
				w.add(uint64(x>>4), uint(x&15))
				w.add(uint64(y>>4), uint(y&15))
				w.add(uint64(z>>4), uint(z&15))
				w.flush()
			}
			for _, c := range b {
				x := d.lits[c]
				absent |= x - 1
				w.add(uint64(x>>4), uint(x&15))
			}
			w.flush()
		case t.dist != 0:
			symbol, extra, width := lengthSymbol(t.length)
			if t.mark {
				symbol, extra, width = longLength(t.length)
			}
			x := d.lits[symbol]
			w.add(uint64(x>>4), uint(x&15))
			w.add(uint64(extra), uint(width))
			symbol, extra, width = distanceSymbol(t.dist)
			y := d.dists[symbol]
			w.add(uint64(y>>4), uint(y&15))
			w.add(uint64(extra), uint(width))
			w.flush()
			absent |= x - 1 | y - 1
			if err := t.skip(); err != nil {
				return err
			}
			n--
		default:
			if err := t.more(); err != nil {
				return err
			}
		}
	}
	x := d.lits[endOfBlock]
	w.add(uint64(x>>4), uint(x&15))
	w.flush()
	if (absent|x-1)>>31 != 0 {
		return ErrFormat
	}
	return nil
}
