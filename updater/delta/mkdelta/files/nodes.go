package files

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Features of ext4 that change what an image costs to update.
const (
	ExtJournal   = 0x4   // compatible: has_journal
	ExtChecksums = 0x400 // read-only compatible: metadata_csum
)

// Node is anything that has an inode of its own in ext4.
type Node struct {
	Path    string // begins without a slash, "" is the root; of several names the first in walking order
	Inode   uint32
	At      int64  // of the inode, in the image
	Mode    uint16 // as in stat(2)
	Size    int64
	Modify  int64    // seconds since 1970
	Extents []Extent // of files, directories and long symbolic links; none if the bytes are in the inode
}

// Ext4Layout says where an ext4 file system keeps what.
type Ext4Layout struct {
	Block, Blocks int64 // bytes of a block, and how many there are
	Inodes        int64
	InodeSize     int64
	UUID, Seed    [16]byte // of the file system, and of the hashes of names
	Compatible    uint32   // features
	ReadOnly      uint32   // features that only a reader may not know
	Nodes         []Node   // in walking order: depth first, names ascending
	Journal       []Extent
	Free          []Extent // blocks that nothing uses, ascending, as far as there are maps
}

// Layout reads the layout of an ext4 file system. ErrUnsupported means another kind of image,
// or one that uses what is not read here.
func Layout(r io.ReaderAt, size int64) (*Ext4Layout, error) {
	im := &image{r: r, size: min(max(size, 0), maxSize), left: min(Limit, 2*max(size, 0)+1<<20)}
	b, err := im.at(1024, 1024)
	if err != nil || string(b[56:58]) != "\x53\xef" {
		return nil, fmt.Errorf("no ext4: %w", ErrUnsupported)
	}
	x, err := openExt4(im, &System{Kind: Ext4})
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	le := binary.LittleEndian
	out := &Ext4Layout{
		Block: x.block, Blocks: x.blocks, Inodes: int64(x.inodes), InodeSize: x.size, Compatible: le.Uint32(b[92:]), ReadOnly: le.Uint32(b[100:]),
		UUID: [16]byte(b[104:120]), Seed: [16]byte(b[236:252]),
	}
	if err := x.nodes(out, "", extRoot, 0); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	if inode, at, err := x.inode(extJournal); err == nil && out.Compatible&ExtJournal != 0 {
		// A journal that lies on another device has no blocks here.
		out.Journal, _ = x.extents(inode, at, extSize(inode))
	}
	if err := x.free(out); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	return out, nil
}

// nodes takes in an inode, and what is below it if it is a directory.
func (x *ext) nodes(out *Ext4Layout, path string, n uint32, depth int) error {
	if x.seen[n] {
		return nil // another name
	}
	x.seen[n] = true
	inode, at, err := x.inode(n)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	node := Node{Path: path, Inode: n, At: at, Mode: le.Uint16(inode), Size: extSize(inode), Modify: int64(int32(le.Uint32(inode[16:])))}
	kind := node.Mode >> 12
	inPlace := kind == 10 && node.Size < 60 || kind != 4 && kind != 8 && kind != 10 || le.Uint32(inode[32:])&extFlagInline != 0
	if !inPlace {
		if node.Extents, err = x.extents(inode, at, node.Size); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if len(out.Nodes) >= maxFiles {
		return fmt.Errorf("more than %d inodes: %w", maxFiles, ErrUnsupported)
	}
	out.Nodes = append(out.Nodes, node)
	if kind != 4 {
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories deep: %w", path, maxDepth, ErrFormat)
	}
	entries, err := x.entries(path, inode, at)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := x.nodes(out, join(path, e.name), e.inode, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// free reads the maps of blocks.
func (x *ext) free(out *Ext4Layout) error {
	for g, at := range x.maps {
		if at < 0 {
			continue
		}
		b, err := x.im.at(at*x.block, x.block)
		if err != nil {
			return err
		}
		from := x.first + int64(g)*x.perMap
		for i := range min(x.perMap, x.blocks-from, 8*x.block) {
			if b[i/8]>>(i%8)&1 == 0 {
				out.Free = appendStored(out.Free, (from+i)*x.block, (from+i)*x.block, x.block)
			}
		}
	}
	return nil
}
