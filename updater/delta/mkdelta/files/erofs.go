package files

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Features that an erofs image must be understood by, and that are.
const (
	erofsPadded    = 0x1  // LZ4 blocks end where their room ends
	erofsBig       = 0x2  // clusters of several blocks, and options of the codecs
	erofsChunked   = 0x4  // files of chunks
	erofsDevices   = 0x8  // several devices, or a second algorithm
	erofsTail      = 0x10 // the last cluster beside the inode
	erofsFragments = 0x20 // tails in one file, and deduplicated clusters
	erofsPrefixes  = 0x40 // of attributes
	erofsKnown     = erofsPadded | erofsBig | erofsChunked | erofsDevices | erofsTail | erofsFragments | erofsPrefixes
)

// How the data of an inode is laid out.
const (
	erofsPlain   = 0
	erofsFull    = 1 // compressed, 8 bytes for each logical cluster
	erofsInline  = 2 // the last part behind the inode
	erofsCompact = 3 // compressed, 2 or 4 bytes for each logical cluster
	erofsChunks  = 4
)

// ero reads erofs.
type ero struct {
	im       *image
	s        *System
	bits     uint // of a block
	dirBits  uint
	meta     int64
	features uint32
	packed   []Extent // of the file that holds tails, once it was read
	packedID uint64
	seen     map[uint64]bool
}

// eroInode is an inode.
type eroInode struct {
	id     uint64
	mode   uint16
	layout uint16
	size   int64
	value  uint32 // block address or format of chunks
	tail   int64  // where the inode and its attributes end
}

func listErofs(im *image, s *System) error {
	b, err := im.at(1024, 128)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	x := &ero{
		im: im, s: s, bits: uint(b[12]), dirBits: uint(b[12]) + uint(b[90]), features: le.Uint32(b[80:]),
		packedID: le.Uint64(b[96:]), seen: map[uint64]bool{},
	}
	if x.features&^erofsKnown != 0 {
		return fmt.Errorf("features %#x: %w", x.features&^erofsKnown, ErrUnsupported)
	}
	if x.bits < 9 || x.bits > 16 || x.dirBits > 20 {
		return fmt.Errorf("block size 2^%d: %w", x.bits, ErrFormat)
	}
	s.Block = 1 << x.bits
	x.meta = int64(le.Uint32(b[40:])) << x.bits
	return x.walk("", uint64(le.Uint16(b[14:])), 0)
}

func (x *ero) inode(id uint64) (eroInode, error) {
	if id > maxSize/32 {
		return eroInode{}, fmt.Errorf("inode %d: %w", id, ErrFormat)
	}
	at := x.meta + int64(id)*32
	b, err := x.im.at(at, 32)
	if err != nil {
		return eroInode{}, err
	}
	le := binary.LittleEndian
	format, size := le.Uint16(b), int64(32)
	n := eroInode{id: id, layout: format >> 1 & 7, mode: le.Uint16(b[4:]), size: int64(le.Uint32(b[8:])), value: le.Uint32(b[16:])}
	if format&1 != 0 {
		if b, err = x.im.at(at, 64); err != nil {
			return eroInode{}, err
		}
		size, n.size = 64, int64(le.Uint64(b[8:]))
	}
	if n.size < 0 || n.size > maxSize {
		return eroInode{}, fmt.Errorf("inode %d of %d bytes: %w", id, n.size, ErrFormat)
	}
	n.tail = at + size
	if count := int64(le.Uint16(b[2:])); count > 0 {
		n.tail += 12 + (count-1)*4
	}
	return n, nil
}

func (x *ero) walk(path string, id uint64, depth int) error {
	if x.seen[id] {
		return nil // another name of a file, or a loop
	}
	if depth > maxDepth {
		return fmt.Errorf("%s: too deep: %w", path, ErrFormat)
	}
	x.seen[id] = true
	n, err := x.inode(id)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	switch n.mode >> 12 {
	case 4:
		return x.directory(path, n, depth)
	case 8:
		f := File{Path: path, Size: n.size}
		if f.Extents, err = x.extents(n); err == nil {
			err = x.im.add(x.s, f)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

type eroEntry struct {
	name string
	id   uint64
}

func (x *ero) directory(path string, n eroInode, depth int) error {
	extents, err := x.extents(n)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if n.size > x.im.left {
		return fmt.Errorf("%s: %d bytes: %w", path, n.size, ErrFormat)
	}
	b, err := (&view{x.im, extents}).at(0, n.size)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var all []eroEntry
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[min(len(b), 1<<x.dirBits):] {
		block := b[:min(len(b), 1<<x.dirBits)]
		if len(block) < 12 {
			return fmt.Errorf("%s: directory: %w", path, ErrFormat)
		}
		first := int(le.Uint16(block[8:]))
		if first < 12 || first%12 != 0 || first > len(block) {
			return fmt.Errorf("%s: directory: %w", path, ErrFormat)
		}
		for e := 0; e < first; e += 12 {
			from, to := int(le.Uint16(block[e+8:])), len(block)
			if e+12 < first {
				to = int(le.Uint16(block[e+20:]))
			}
			if from < first || from > to || to > len(block) {
				return fmt.Errorf("%s: directory: %w", path, ErrFormat)
			}
			name, _, _ := bytes.Cut(block[from:to], []byte{0})
			if s := string(name); goodName(s) {
				all = append(all, eroEntry{s, le.Uint64(block[e:])})
			}
		}
	}
	slices.SortFunc(all, func(a, b eroEntry) int { return strings.Compare(a.name, b.name) })
	for _, e := range all {
		if err := x.walk(join(path, e.name), e.id, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// extents returns where the bytes of an inode are.
func (x *ero) extents(n eroInode) ([]Extent, error) {
	if n.size == 0 {
		return nil, nil
	}
	block := int64(1) << x.bits
	start := int64(n.value) << x.bits
	switch n.layout {
	case erofsPlain:
		return []Extent{stored(0, start, n.size)}, nil
	case erofsInline:
		full := (n.size - 1) / block * block
		var out []Extent
		if full > 0 {
			out = append(out, stored(0, start, full))
		}
		return append(out, stored(full, n.tail, n.size-full)), nil
	case erofsChunks:
		return x.chunks(n)
	case erofsFull, erofsCompact:
		return x.packedExtents(n)
	}
	return nil, fmt.Errorf("layout %d: %w", n.layout, ErrUnsupported)
}

func (x *ero) chunks(n eroInode) ([]Extent, error) {
	chunk := int64(1) << (x.bits + uint(n.value&31))
	indexed := n.value&0x20 != 0
	if n.value&^0x3f != 0 {
		return nil, fmt.Errorf("chunk format %#x: %w", n.value, ErrUnsupported)
	}
	width := int64(4)
	if indexed {
		width = 8
	}
	b, err := x.im.at((n.tail+width-1)&^(width-1), (n.size+chunk-1)/chunk*width)
	if err != nil {
		return nil, err
	}
	var out []Extent
	le := binary.LittleEndian
	for at := int64(0); at < n.size; at += chunk {
		address := le.Uint32(b[width-4:])
		if indexed && le.Uint16(b[2:]) != 0 {
			return nil, fmt.Errorf("a chunk on another device: %w", ErrUnsupported)
		}
		b = b[width:]
		if address != 1<<32-1 { // otherwise a hole
			out = appendStored(out, at, int64(address)<<x.bits, min(chunk, n.size-at))
		}
	}
	return out, nil
}
