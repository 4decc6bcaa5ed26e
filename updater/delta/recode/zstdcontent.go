package recode

import "encoding/binary"

// expandContent decodes blocks to their content. They must be the first of
// their frame, since nothing is known of what was before.
func (z *zstdCoder) expandContent(params, src, dst []byte) (int, error) {
	flags, rest, err := z.begin(params, false)
	if err != nil {
		return 0, err
	}
	if flags != 0 || len(rest) != 0 {
		return 0, ErrFormat
	}
	z.reps = [3]int{1, 4, 8}
	n := 0
	var h zstdHeader
	for at := 0; at < len(src); at = h.end {
		if err := h.read(src, at, &z.scratch); err != nil {
			return 0, err
		}
		if n, err = z.blockInto(&h, src, dst, n); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// blockInto appends the content of a block to dst[:n] and returns its length.
func (z *zstdCoder) blockInto(h *zstdHeader, src, dst []byte, n int) (int, error) {
	if h.kind != zstdCompressed {
		if h.size > len(dst)-n {
			return 0, ErrRoom
		}
		out := dst[n : n+h.size]
		if h.kind == zstdRaw {
			copy(out, src[h.body:])
		} else {
			fill(out, src[h.body])
		}
		return n + h.size, nil
	}
	c := zstdColumns{b: z.block[:]}
	if h.literals == literalsRLE {
		fill(z.block[:h.regen], src[h.body])
	} else if err := z.expandLiterals(h, src, &c, false); err != nil {
		return 0, err
	}
	return z.sequencesInto(h, src, dst, n)
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// sequencesInto decodes a compressed block whose literals are at the front of z.block.
func (z *zstdCoder) sequencesInto(h *zstdHeader, src, dst []byte, n int) (int, error) {
	literals := z.block[:h.regen]
	c, ok := placeZstd(z.block[h.regen:], 0, h.sequence, 0)
	if !ok {
		return 0, ErrFormat // makes more than a block
	}
	records := c.b[:h.sequence*zstdRecord]
	long := c.b[len(records):]
	if err := z.expandSequences(h, src, &c); err != nil {
		return 0, err
	}
	p := zstdPacker{long: long}
	end := n + zstdBlock
	for ; len(records) > 0; records = records[zstdRecord:] {
		l, m := int(records[0]), int(records[1])
		var err error
		if l == zstdLong {
			l, err = p.takeLong()
		}
		if m == zstdLong && err == nil {
			m, err = p.takeLong()
		}
		d := int(z.distance(binary.LittleEndian.Uint32(records[2:]), uint32(l)))
		m += 3
		if err != nil || l > len(literals) || l+m > end-n || d < 1 || d > n+l {
			return 0, ErrFormat
		}
		if l+m > len(dst)-n {
			return 0, ErrRoom
		}
		n += copy(dst[n:], literals[:l])
		literals = literals[l:]
		for m > 0 { // a copy may read what it has just written
			k := copy(dst[n:n+m], dst[n-d:n])
			n += k
			m -= k
		}
	}
	if len(literals) > end-n {
		return 0, ErrFormat
	}
	if len(literals) > len(dst)-n {
		return 0, ErrRoom
	}
	return n + copy(dst[n:], literals), nil
}
