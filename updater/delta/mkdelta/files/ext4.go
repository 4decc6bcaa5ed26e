package files

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	extIncompatFiletype = 0x2
	extIncompatJournal  = 0x8 // a journal device, no file system
	extIncompatMetaBG   = 0x10
	extIncompat64       = 0x80

	extRoot    = 2
	extJournal = 8 // inode of the journal

	extBlocksUnwritten = 0x2 // flag of a group: the map of its blocks was never written

	extFlagEncrypt = 0x800
	extFlagExtents = 0x80000
	extFlagInline  = 0x10000000

	extExtentMagic = 0xf30a
	extAttrMagic   = 0xea020000
	extAttrSystem  = 7 // the name index of "system."
)

// ext reads ext2, ext3 and ext4.
type ext struct {
	im       *image
	s        *System
	block    int64
	blocks   int64
	inodes   uint32
	perGroup uint32
	size     int64 // of an inode
	filetype bool
	tables   []int64 // by group: where its inodes are
	maps     []int64 // by group: where the map of its blocks is, or -1 if it was never written
	perMap   int64   // blocks of a group
	first    int64   // block
	seen     map[uint32]bool
}

func listExt4(im *image, s *System) error {
	x, err := openExt4(im, s)
	if err != nil {
		return err
	}
	return x.walk("", extRoot, 0)
}

func openExt4(im *image, s *System) (*ext, error) {
	b, err := im.at(1024, 1024)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	incompat := le.Uint32(b[96:])
	logBlock := le.Uint32(b[24:])
	if incompat&extIncompatJournal != 0 {
		return nil, fmt.Errorf("a journal device: %w", ErrUnsupported)
	}
	if logBlock > 6 {
		return nil, fmt.Errorf("block size 2^%d KiB: %w", logBlock, ErrFormat)
	}
	x := &ext{
		im: im, s: s, block: 1024 << logBlock, inodes: le.Uint32(b), perGroup: le.Uint32(b[40:]), size: 128,
		blocks: int64(le.Uint32(b[4:])), filetype: incompat&extIncompatFiletype != 0, seen: map[uint32]bool{},
	}
	if le.Uint32(b[76:]) > 0 { // revision 0 has inodes of 128 bytes
		x.size = int64(le.Uint16(b[88:]))
	}
	first, blocksPerGroup, descriptor := int64(le.Uint32(b[20:])), int64(le.Uint32(b[32:])), int64(32)
	if incompat&extIncompat64 != 0 {
		descriptor = int64(le.Uint16(b[254:]))
		x.blocks |= int64(le.Uint32(b[336:])) << 32
	}
	s.Block = x.block
	if x.size < 128 || x.size > x.block || x.size&(x.size-1) != 0 || blocksPerGroup == 0 || x.perGroup == 0 || x.blocks <= first ||
		descriptor < 32 || descriptor > 1024 || x.blocks > im.size/1024 {
		return nil, fmt.Errorf("superblock: %w", ErrFormat)
	}
	groups := (x.blocks - first + blocksPerGroup - 1) / blocksPerGroup
	if groups > im.size/x.block || int64(x.inodes) > groups*int64(x.perGroup) {
		return nil, fmt.Errorf("%d groups: %w", groups, ErrFormat)
	}
	perBlock := x.block / descriptor
	var table []byte
	for g := range groups {
		if g%perBlock == 0 {
			if table, err = im.at(x.descriptors(g, perBlock, first, blocksPerGroup, incompat, int64(le.Uint32(b[260:])))*x.block, x.block); err != nil {
				return nil, err
			}
		}
		d := table[g%perBlock*descriptor:]
		at := int64(le.Uint32(d[8:]))
		if descriptor >= 64 {
			at |= int64(le.Uint32(d[40:])) << 32
		}
		if at < 0 || at >= x.blocks {
			return nil, fmt.Errorf("inodes of group %d: %w", g, ErrFormat)
		}
		x.tables = append(x.tables, at*x.block)
		at = int64(le.Uint32(d))
		if descriptor >= 64 {
			at |= int64(le.Uint32(d[32:])) << 32
		}
		if le.Uint16(d[18:])&extBlocksUnwritten != 0 || at <= 0 || at >= x.blocks {
			at = -1
		}
		x.maps = append(x.maps, at)
	}
	x.first, x.perMap = first, blocksPerGroup
	return x, nil
}

// descriptors returns the block that holds the descriptor of group g.
func (x *ext) descriptors(g, perBlock, first, blocksPerGroup int64, incompat uint32, firstMeta int64) int64 {
	n := g / perBlock
	if incompat&extIncompatMetaBG == 0 || n < firstMeta {
		return first + 1 + n
	}
	// With meta groups, the first group of each holds the descriptors of all;
	// the first group of all has a superblock in front, others at most at odd powers.
	group := n * perBlock
	at := first + group*blocksPerGroup
	if group == 0 || group == 1 || power(group, 3) || power(group, 5) || power(group, 7) {
		at++
	}
	return at
}

func power(n, of int64) bool {
	for n > 1 && n%of == 0 {
		n /= of
	}
	return n == 1
}

// inode returns an inode and where it is.
func (x *ext) inode(n uint32) ([]byte, int64, error) {
	if n == 0 || n > x.inodes {
		return nil, 0, fmt.Errorf("inode %d: %w", n, ErrFormat)
	}
	at := x.tables[(n-1)/x.perGroup] + int64((n-1)%x.perGroup)*x.size
	b, err := x.im.at(at, x.size)
	return b, at, err
}

// walk takes in the files of a directory and of those below it.
func (x *ext) walk(path string, n uint32, depth int) error {
	if depth > maxDepth || x.seen[n] {
		return fmt.Errorf("%s: a loop of directories: %w", path, ErrFormat)
	}
	x.seen[n] = true
	inode, at, err := x.inode(n)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(inode)>>12 != 4 {
		return fmt.Errorf("%s: inode %d is no directory: %w", path, n, ErrFormat)
	}
	entries, err := x.entries(path, inode, at)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := join(path, e.name)
		child, childAt, err := x.inode(e.inode)
		if err != nil {
			return err
		}
		switch binary.LittleEndian.Uint16(child) >> 12 {
		case 4:
			err = x.walk(name, e.inode, depth+1)
		case 8:
			if x.seen[e.inode] {
				continue // another name of a file
			}
			x.seen[e.inode] = true
			if binary.LittleEndian.Uint32(child[32:])&extFlagEncrypt != 0 {
				x.s.Skipped++
				continue
			}
			f := File{Path: name, Size: extSize(child)}
			if f.Extents, err = x.extents(child, childAt, f.Size); err == nil {
				err = x.im.add(x.s, f)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func extSize(inode []byte) int64 {
	le := binary.LittleEndian
	return int64(le.Uint32(inode[4:])) | int64(le.Uint32(inode[108:])&0x7fffffff)<<32
}

type extEntry struct {
	name  string
	inode uint32
}

// entries reads a directory, sorted by name. Hash trees are built so that a
// reader of plain directories sees the entries and nothing else.
func (x *ext) entries(path string, inode []byte, at int64) ([]extEntry, error) {
	size := extSize(inode)
	extents, err := x.extents(inode, at, size)
	if err != nil {
		return nil, err
	}
	inline := binary.LittleEndian.Uint32(inode[32:])&extFlagInline != 0
	var out []extEntry
	for _, e := range extents {
		b, err := x.im.at(e.Offset, e.Length)
		if err != nil {
			return nil, err
		}
		if inline && e.Logical == 0 {
			if len(b) < 4 {
				return nil, fmt.Errorf("%s: inline directory: %w", path, ErrFormat)
			}
			b = b[4:] // the parent's number
		}
		for len(b) > 0 {
			// An entry never crosses a block, and inline ones do not cross the parts.
			part := b[:min(int64(len(b)), x.block)]
			b = b[len(part):]
			if out, err = x.block1(out, part); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	slices.SortFunc(out, func(a, b extEntry) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (x *ext) block1(out []extEntry, b []byte) ([]extEntry, error) {
	le := binary.LittleEndian
	for len(b) >= 8 {
		n, name := int(le.Uint16(b[4:])), int(b[6])
		if !x.filetype {
			name = int(le.Uint16(b[6:]))
		}
		if n == 0 && len(b) == 1<<16 {
			n = 1 << 16 // does not fit into 16 bits
		}
		if n < 8 || n > len(b) || name > n-8 {
			return nil, fmt.Errorf("directory entry: %w", ErrFormat)
		}
		if inode := le.Uint32(b); inode != 0 {
			if s := string(b[8 : 8+name]); goodName(s) {
				out = append(out, extEntry{s, inode})
			}
		}
		b = b[n:]
	}
	return out, nil
}

// extents returns where the bytes of an inode are.
func (x *ext) extents(inode []byte, at, size int64) ([]Extent, error) {
	if size < 0 || size > maxSize {
		return nil, fmt.Errorf("file of %d bytes: %w", size, ErrFormat)
	}
	var out []Extent
	var err error
	le := binary.LittleEndian
	switch flags := le.Uint32(inode[32:]); {
	case flags&extFlagInline != 0:
		return x.inline(inode, at, size)
	case flags&extFlagExtents != 0:
		out, err = x.tree(nil, inode[40:100], -1)
	default:
		next := int64(0)
		for i := range 12 {
			out = x.take(out, int64(le.Uint32(inode[40+4*i:])), &next, size)
		}
		for level := 1; level <= 3 && err == nil; level++ {
			out, err = x.indirect(out, int64(le.Uint32(inode[40+4*(11+level):])), level, &next, size)
		}
	}
	if err != nil {
		return nil, err
	}
	// Blocks behind the end may be reserved; the last one may be cut.
	return cut(out, 0, size, 0), nil
}

// tree appends the extents of a node; level is what the parent said, -1 for the root.
func (x *ext) tree(out []Extent, b []byte, level int) ([]Extent, error) {
	le := binary.LittleEndian
	count, depth := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != extExtentMagic || 12+12*count > len(b) || depth > 5 || level >= 0 && depth != level {
		return nil, fmt.Errorf("extent tree: %w", ErrFormat)
	}
	for i := range count {
		e := b[12+12*i:]
		logical := int64(le.Uint32(e)) * x.block
		if depth > 0 {
			child := int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32
			node, err := x.im.at(child*x.block, x.block)
			if err != nil {
				return nil, err
			}
			if out, err = x.tree(out, node, depth-1); err != nil {
				return nil, err
			}
			continue
		}
		n, start := int64(le.Uint16(e[4:])), int64(le.Uint32(e[8:]))|int64(le.Uint16(e[6:]))<<32
		if n > 32768 {
			continue // not written: reads as zeros
		}
		if n == 0 || !x.im.inside(start*x.block, n*x.block) {
			return nil, fmt.Errorf("extent of %d blocks at %d: %w", n, start, ErrFormat)
		}
		if len(out) > maxExtents {
			return nil, fmt.Errorf("more than %d extents: %w", maxExtents, ErrUnsupported)
		}
		out = appendStored(out, logical, start*x.block, n*x.block)
	}
	return out, nil
}

// take appends block number n of the image as the next block of a file.
func (x *ext) take(out []Extent, n int64, next *int64, size int64) []Extent {
	if n != 0 && *next < size {
		out = appendStored(out, *next, n*x.block, x.block)
	}
	*next += x.block
	return out
}

// indirect appends the blocks below a block of block numbers.
func (x *ext) indirect(out []Extent, n int64, level int, next *int64, size int64) ([]Extent, error) {
	if *next >= size {
		return out, nil
	}
	if n == 0 {
		hole := x.block
		for range level {
			hole *= x.block / 4
		}
		*next += hole
		return out, nil
	}
	b, err := x.im.at(n*x.block, x.block)
	if err != nil {
		return nil, err
	}
	for ; len(b) >= 4 && *next < size; b = b[4:] {
		child := int64(binary.LittleEndian.Uint32(b))
		if level == 1 {
			out = x.take(out, child, next, size)
		} else if out, err = x.indirect(out, child, level-1, next, size); err != nil {
			return nil, err
		}
		if len(out) > maxExtents {
			return nil, fmt.Errorf("more than %d extents: %w", maxExtents, ErrUnsupported)
		}
	}
	return out, nil
}

// inline returns the extents of a file whose bytes are in its inode: 60 where
// the block map would be, the rest in the attribute system.data behind the inode.
func (x *ext) inline(inode []byte, at, size int64) ([]Extent, error) {
	out := []Extent{stored(0, at+40, 60)}
	if size <= 60 {
		return cut(out, 0, size, 0), nil
	}
	le := binary.LittleEndian
	bad := fmt.Errorf("inline data: %w", ErrFormat)
	if len(inode) < 132 {
		return nil, bad
	}
	first := 128 + int(le.Uint16(inode[128:])) + 4
	if first > len(inode) || le.Uint32(inode[first-4:]) != extAttrMagic {
		return nil, bad
	}
	for e := first; e+16 <= len(inode) && le.Uint32(inode[e:]) != 0; {
		name, value, n := int(inode[e]), int(le.Uint16(inode[e+2:])), int64(le.Uint32(inode[e+8:]))
		if e+16+name > len(inode) {
			return nil, bad
		}
		if inode[e+1] == extAttrSystem && string(inode[e+16:e+16+name]) == "data" && le.Uint32(inode[e+4:]) == 0 {
			if int64(first+value)+n > int64(len(inode)) {
				return nil, bad
			}
			if n > 0 {
				out = append(out, stored(60, at+int64(first+value), n))
			}
			return cut(out, 0, size, 0), nil
		}
		e += 16 + (name+3)&^3
	}
	return nil, bad
}
