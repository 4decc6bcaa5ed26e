package files

import (
	"encoding/binary"
	"fmt"
)

const (
	squashHeader  = 96
	squashMeta    = 8192 // bytes that a metadata block unpacks to at most
	squashOptions = 0x400

	squashStored = 1 << 24 // of a data block's size
	squashNone   = 1<<32 - 1
)

var squashCodecs = map[uint16]Codec{1: Gzip, 2: LZMA, 3: LZO, 4: XZ, 5: LZ4, 6: Zstd}

// squash reads squashfs 4.0.
type squash struct {
	im        *image
	s         *System
	codec     Codec
	block     int64
	inodes    int64 // where the tables begin
	dirs      int64
	fragments []fragment
	meta      map[int64]metaBlock // by offset in the image
	left      int64               // bytes of metadata that may still be unpacked
	seen      map[uint64]bool     // inodes, by reference
}

type metaBlock struct {
	plain []byte
	next  int64
}

type fragment struct {
	offset int64
	size   uint32
}

// place is a position in metadata: a block of the image, an offset in what it unpacks to.
type place struct {
	block  int64
	offset int
}

func listSquashfs(im *image, s *System) error {
	b, err := im.at(0, squashHeader)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	q := &squash{
		im: im, s: s, codec: squashCodecs[le.Uint16(b[20:])], block: int64(le.Uint32(b[12:])),
		inodes: int64(le.Uint64(b[64:])), dirs: int64(le.Uint64(b[72:])),
		meta: map[int64]metaBlock{}, left: Limit, seen: map[uint64]bool{},
	}
	s.Block = q.block
	if le.Uint16(b[28:]) != 4 || le.Uint16(b[30:]) != 0 || q.codec == Stored {
		return fmt.Errorf("version %d.%d, compressor %d: %w", le.Uint16(b[28:]), le.Uint16(b[30:]), le.Uint16(b[20:]), ErrUnsupported)
	}
	if q.block < 4096 || q.block > 1<<20 || q.block != 1<<(le.Uint16(b[22:])&63) {
		return fmt.Errorf("block size %d: %w", q.block, ErrFormat)
	}
	if le.Uint16(b[24:])&squashOptions != 0 {
		h, err := im.at(squashHeader, 2)
		if err != nil {
			return err
		}
		if s.Options, err = im.at(squashHeader+2, int64(le.Uint16(h)&0x7fff)); err != nil {
			return err
		}
	}
	if err := q.readFragments(int64(le.Uint32(b[16:])), int64(le.Uint64(b[80:]))); err != nil {
		return err
	}
	err = q.walk("", le.Uint64(b[32:]), 0)
	q.measure()
	return err
}

func (q *squash) readFragments(count, table int64) error {
	if count == 0 {
		return nil
	}
	le := binary.LittleEndian
	index, err := q.im.at(table, (count+511)/512*8)
	if err != nil {
		return fmt.Errorf("fragment table: %w", err)
	}
	for i := int64(0); i < count; i += 512 {
		p := place{block: int64(le.Uint64(index[i/512*8:]))}
		b, err := q.read(&p, int(min(512, count-i)*16))
		if err != nil {
			return fmt.Errorf("fragment table: %w", err)
		}
		for ; len(b) > 0; b = b[16:] {
			q.fragments = append(q.fragments, fragment{int64(le.Uint64(b)), le.Uint32(b[8:])})
		}
	}
	return nil
}

// load returns the metadata block at an offset of the image.
func (q *squash) load(offset int64) (metaBlock, error) {
	if m, ok := q.meta[offset]; ok {
		return m, nil
	}
	b, err := q.im.at(offset, 2)
	if err != nil {
		return metaBlock{}, err
	}
	head := binary.LittleEndian.Uint16(b)
	n := int64(head & 0x7fff)
	if b, err = q.im.at(offset+2, n); err != nil {
		return metaBlock{}, err
	}
	if head&0x8000 == 0 {
		if b, err = Unpack(q.codec, b, squashMeta); err != nil {
			return metaBlock{}, err
		}
	}
	if q.left -= squashMeta; q.left < 0 {
		return metaBlock{}, fmt.Errorf("more than %d bytes of metadata: %w", Limit, ErrUnsupported)
	}
	m := metaBlock{b, offset + 2 + n}
	q.meta[offset] = m
	return m, nil
}

// read returns n bytes of metadata and moves on.
func (q *squash) read(p *place, n int) ([]byte, error) {
	out := make([]byte, 0, n)
	for len(out) < n {
		m, err := q.load(p.block)
		if err != nil {
			return nil, err
		}
		if p.offset > len(m.plain) || len(m.plain) == 0 {
			return nil, fmt.Errorf("metadata at %d: %w", p.block, ErrFormat)
		}
		part := m.plain[p.offset:]
		part = part[:min(len(part), n-len(out))]
		out = append(out, part...)
		if p.offset += len(part); p.offset == len(m.plain) {
			p.block, p.offset = m.next, 0
		}
	}
	return out, nil
}

// walk takes in what an inode and those below it hold.
func (q *squash) walk(path string, ref uint64, depth int) error {
	if q.seen[ref] {
		return nil // another name of a file, or a loop
	}
	if depth > maxDepth {
		return fmt.Errorf("%s: too deep: %w", path, ErrFormat)
	}
	q.seen[ref] = true
	le := binary.LittleEndian
	p := place{q.inodes + int64(ref>>16), int(ref & 0xffff)}
	head, err := q.read(&p, 16)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	rest := map[uint16]int{1: 16, 2: 16, 8: 24, 9: 40}[le.Uint16(head)]
	if rest == 0 {
		return nil // a link, a device, a socket
	}
	b, err := q.read(&p, rest)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fragment, offset := uint32(squashNone), uint32(0)
	var start, size int64
	switch le.Uint16(head) {
	case 1: // directory
		return q.directory(path, place{q.dirs + int64(le.Uint32(b)), int(le.Uint16(b[10:]))}, int(le.Uint16(b[8:])), depth)
	case 8: // directory with an index or attributes
		return q.directory(path, place{q.dirs + int64(le.Uint32(b[8:])), int(le.Uint16(b[18:]))}, int(le.Uint32(b[4:])), depth)
	case 2: // file
		start, fragment, offset, size = int64(le.Uint32(b)), le.Uint32(b[4:]), le.Uint32(b[8:]), int64(le.Uint32(b[12:]))
	case 9: // long file
		start, size, fragment, offset = int64(le.Uint64(b)), int64(le.Uint64(b[8:])), le.Uint32(b[28:]), le.Uint32(b[32:])
	}
	return q.file(path, &p, start, size, fragment, int64(offset))
}

func (q *squash) directory(path string, p place, size, depth int) error {
	le := binary.LittleEndian
	for size -= 3; size > 0; { // 3 stand for . and ..
		head, err := q.read(&p, 12)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		size -= len(head)
		count := le.Uint32(head)
		if count >= 256 {
			return fmt.Errorf("%s: %d entries: %w", path, count, ErrFormat)
		}
		for range count + 1 {
			b, err := q.read(&p, 8)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			name, err := q.read(&p, int(le.Uint16(b[6:]))+1)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			size -= len(b) + len(name)
			if !goodName(string(name)) {
				return fmt.Errorf("%s: a name of %d bytes: %w", path, len(name), ErrFormat)
			}
			if err := q.walk(join(path, string(name)), uint64(le.Uint32(head[4:]))<<16|uint64(le.Uint16(b)), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// file takes in a file whose list of blocks is at p.
func (q *squash) file(path string, p *place, start, size int64, part uint32, offset int64) error {
	if size < 0 || size > maxSize {
		return fmt.Errorf("%s: %d bytes: %w", path, size, ErrFormat)
	}
	f := File{Path: path, Size: size}
	blocks := (size + q.block - 1) / q.block
	if part != squashNone {
		blocks = size / q.block
	}
	for i := range blocks {
		b, err := q.read(p, 4)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		v := binary.LittleEndian.Uint32(b)
		n := int64(v &^ squashStored)
		if n > 0 { // otherwise a hole
			part := min(q.block, size-i*q.block)
			f.Extents = q.extent(f.Extents, start, v, i*q.block, 0, part, part)
		}
		start += n
		if len(f.Extents) > maxExtents {
			return fmt.Errorf("%s: more than %d extents: %w", path, maxExtents, ErrUnsupported)
		}
	}
	if tail := size - blocks*q.block; part != squashNone && tail > 0 {
		if int64(part) >= int64(len(q.fragments)) {
			return fmt.Errorf("%s: fragment %d: %w", path, part, ErrFormat)
		}
		g := q.fragments[part]
		f.Extents = q.extent(f.Extents, g.offset, g.size, blocks*q.block, offset, tail, q.block)
	}
	return q.im.add(q.s, f)
}

// measure says what the blocks unpack to that files share: to where the last of
// them ends.
func (q *squash) measure() {
	shared := make(map[int64]int64, len(q.fragments))
	for _, g := range q.fragments {
		shared[g.offset] = 0
	}
	each := func(do func(e *Extent)) {
		for _, f := range q.s.Files {
			for i := range f.Extents {
				if _, ok := shared[f.Extents[i].Offset]; ok && f.Extents[i].Codec != Stored {
					do(&f.Extents[i])
				}
			}
		}
	}
	each(func(e *Extent) { shared[e.Offset] = max(shared[e.Offset], e.Skip+e.Size) })
	each(func(e *Extent) { e.Plain = shared[e.Offset] })
}

// extent appends n bytes at skip of the data block at offset.
func (q *squash) extent(out []Extent, offset int64, size uint32, logical, skip, n, plain int64) []Extent {
	length := int64(size &^ squashStored)
	if size&squashStored != 0 {
		return appendStored(out, logical, offset+skip, n)
	}
	return append(out, Extent{Logical: logical, Size: n, Offset: offset, Length: length, Codec: q.codec, Plain: plain, Skip: skip})
}
