package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/tandem-ota/tandem/boards"
)

// FAT is a file system that firmware and bootloaders read: FAT16 or FAT32
// (Microsoft, "FAT: General Overview of On-Disk Format", 1.03). It is written by
// hand for three reasons: the libraries at hand write one that fsck refuses;
// the same files must give the same bytes; and where a file lies should depend on
// nothing but the files before it, so that deltas are small.
//
// Layout, with all files unfragmented in the order of their names:
//
//	reserved sectors | FAT | FAT | root folder (FAT16 only) | clusters
//	                                                        ↑ at a multiple of 64 KiB
//
// Names are 8.3, letters in lower case by the two flags of Windows NT.
type FAT struct {
	Size    int64  // of the partition in bytes; the file system spans all of it
	Bits    int    // 16 or 32
	Cluster int    // bytes, a power of two
	Serial  uint32 // volume serial number
	Label   string // at most 11 capital letters
	Files   []File // parents are made
}

const (
	fatSector     = 512
	fatDirEntry   = 32
	fatRootBlocks = 32 // sectors of a FAT16 root folder: 512 entries
	fatDirectory  = 0x10
	fatArchive    = 0x20
	fatVolume     = 0x08
	fatEnd        = 0x0fffffff // of a chain; cut to 16 bits for FAT16
)

// ErrFAT means that the files do not fit into the file system, or it cannot have
// the size, cluster or name that was asked for.
var ErrFAT = errors.New("cannot make FAT file system")

type fatNode struct {
	name     [11]byte
	lower    byte
	data     []byte              // of a file
	children map[string]*fatNode // of a folder, by name as given
	first    uint32
}

type fatWriter struct {
	FAT
	fatSectors, reserved int
	data                 int64 // offset of cluster 2
	table                []uint32
	out                  []byte
}

// Build returns the file system up to the last byte that is in use, in whole
// blocks of 4096. What follows on the partition is free space and means nothing.
func (f FAT) Build() ([]byte, error) {
	w, err := newFATWriter(f)
	if err != nil {
		return nil, err
	}
	root := &fatNode{children: make(map[string]*fatNode)}
	for _, file := range f.Files {
		if err := root.add(strings.Split(strings.TrimPrefix(path.Clean(file.Path), "/"), "/"), file.Data); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrFAT, file.Path, err)
		}
	}
	w.boot()
	if err := w.folder(root, nil); err != nil {
		return nil, err
	}
	w.tables()
	return pad(w.out, pageSize), nil
}

func newFATWriter(f FAT) (*fatWriter, error) {
	sectors := f.Size / fatSector
	if f.Cluster < fatSector || f.Cluster > 32<<10 || f.Cluster&(f.Cluster-1) != 0 || sectors < 1 || sectors > 1<<31 {
		return nil, fmt.Errorf("%w: %d bytes in clusters of %d", ErrFAT, f.Size, f.Cluster)
	}
	if len(f.Label) > 11 {
		return nil, fmt.Errorf("%w: label %q is longer than 11 letters", ErrFAT, f.Label)
	}
	w := &fatWriter{FAT: f}
	fixed := 1 // boot sector
	if f.Bits == 16 {
		fixed += fatRootBlocks
	} else {
		fixed = 8 // boot sector, FSInfo, and their copies at sectors 6 and 7
	}
	// More clusters than there can be: the table is a little too long, never too short.
	w.fatSectors = align((int(f.Size)/f.Cluster+2)*f.Bits/8, fatSector) / fatSector
	front := align((fixed+2*w.fatSectors)*fatSector, 64<<10)
	w.reserved = front/fatSector - 2*w.fatSectors
	if f.Bits == 16 {
		w.reserved -= fatRootBlocks
	}
	w.data = int64(front)
	clusters := (f.Size - w.data) / int64(f.Cluster)
	// The number of clusters is what tells the two kinds apart, and nothing else.
	if f.Bits == 16 && (clusters < 4085 || clusters > 65524) || f.Bits == 32 && (clusters < 65525 || clusters > 1<<28-16) || f.Bits != 16 && f.Bits != 32 {
		return nil, fmt.Errorf("%w: %d bytes in clusters of %d are %d clusters, not right for FAT%d", ErrFAT, f.Size, f.Cluster, clusters, f.Bits)
	}
	if w.reserved > 0xffff {
		return nil, fmt.Errorf("%w: %d reserved sectors", ErrFAT, w.reserved)
	}
	w.table = []uint32{0x0ffffff8, fatEnd}
	w.out = make([]byte, w.data)
	return w, nil
}

func (n *fatNode) add(names []string, data []byte) error {
	name := names[0]
	short, lower, err := shortName(name)
	if err != nil {
		return err
	}
	child, ok := n.children[name]
	for other, c := range n.children {
		if other != name && c.name == short {
			return fmt.Errorf("%q and %q are one name to FAT", name, other)
		}
	}
	switch {
	case len(names) == 1 && ok, ok && child.children == nil:
		return errors.New("occurs twice")
	case len(names) == 1:
		n.children[name] = &fatNode{name: short, lower: lower, data: data}
		return nil
	case !ok:
		child = &fatNode{name: short, lower: lower, children: make(map[string]*fatNode)}
		n.children[name] = child
	}
	return child.add(names[1:], data)
}

// shortName returns the 11 bytes of a directory entry and the flags that say
// which half of the name is in lower case.
func shortName(s string) (name [11]byte, lower byte, err error) {
	base, ext, _ := strings.Cut(s, ".")
	if base == "" || len(base) > 8 || len(ext) > 3 {
		return name, 0, fmt.Errorf("name %q: want 8.3", s)
	}
	copy(name[:], "           ")
	for i, half := range []string{base, ext} {
		up, low := strings.ToUpper(half), strings.ToLower(half)
		if half != up && half != low {
			return name, 0, fmt.Errorf("name %q: capital and small letters mixed", s)
		}
		for _, c := range []byte(up) {
			if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
				return name, 0, fmt.Errorf("name %q: character %q", s, c)
			}
		}
		copy(name[i*8:], up)
		if half != up {
			lower |= 0x08 << i
		}
	}
	return name, lower, nil
}

// alloc takes the clusters behind those in use.
func (w *fatWriter) alloc(n int) (uint32, error) {
	first := len(w.table)
	if w.data+int64(first-2+n)*int64(w.Cluster) > w.Size {
		return 0, fmt.Errorf("%w: the files need more than %d bytes", ErrFAT, w.Size)
	}
	for i := range n {
		next := uint32(fatEnd)
		if i < n-1 {
			next = uint32(first + i + 1)
		}
		w.table = append(w.table, next)
	}
	w.out = append(w.out, make([]byte, n*w.Cluster)...)
	return uint32(first), nil
}

func (w *fatWriter) at(cluster uint32) []byte {
	return w.out[w.data+int64(cluster-2)*int64(w.Cluster):]
}

// folder writes n and all below. It takes its own clusters before those of its
// files, so a reader finds the small things first.
func (w *fatWriter) folder(n, parent *fatNode) error {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	sort.Strings(names)
	size := (len(names) + 2) * fatDirEntry
	if parent == nil && w.Bits == 16 {
		if len(names) >= fatRootBlocks*fatSector/fatDirEntry {
			return fmt.Errorf("%w: %d files in the root folder", ErrFAT, len(names))
		}
	} else {
		first, err := w.alloc(align(size, w.Cluster) / w.Cluster)
		if err != nil {
			return err
		}
		n.first = first
	}
	var entries bytes.Buffer
	entry := func(name []byte, lower, attr byte, first uint32, size int) {
		e := make([]byte, fatDirEntry)
		copy(e, name)
		e[11], e[12] = attr, lower
		le := binary.LittleEndian
		date := uint16((Epoch.Year()-1980)<<9 | int(Epoch.Month())<<5 | Epoch.Day())
		for _, at := range []int{16, 18, 24} { // created, accessed, written
			le.PutUint16(e[at:], date)
		}
		le.PutUint16(e[20:], uint16(first>>16))
		le.PutUint16(e[26:], uint16(first))
		le.PutUint32(e[28:], uint32(size))
		entries.Write(e)
	}
	if parent == nil {
		entry(fmt.Appendf(nil, "%-11s", w.Label), 0, fatVolume, 0, 0)
	} else {
		entry([]byte(".          "), 0, fatDirectory, n.first, 0)
		up := parent.first
		if parent.name == [11]byte{} {
			up = 0 // the root is cluster 0 here, also on FAT32 where it has another
		}
		entry([]byte("..         "), 0, fatDirectory, up, 0)
	}
	for _, name := range names {
		c := n.children[name]
		if c.children != nil {
			if err := w.folder(c, n); err != nil {
				return err
			}
			entry(c.name[:], c.lower, fatDirectory, c.first, 0)
			continue
		}
		if len(c.data) > 0 {
			first, err := w.alloc(align(len(c.data), w.Cluster) / w.Cluster)
			if err != nil {
				return err
			}
			c.first = first
			copy(w.at(first), c.data)
		}
		entry(c.name[:], c.lower, fatArchive, c.first, len(c.data))
	}
	if parent == nil && w.Bits == 16 {
		copy(w.out[w.data-fatRootBlocks*fatSector:], entries.Bytes())
	} else {
		copy(w.at(n.first), entries.Bytes())
	}
	return nil
}

// boot writes the boot sector; FAT32 has a copy of it at sector 6.
func (w *fatWriter) boot() {
	le := binary.LittleEndian
	b := w.out[:fatSector]
	copy(b, "\xeb\x3c\x90TANDEM  ")
	le.PutUint16(b[11:], fatSector)
	b[13] = byte(w.Cluster / fatSector)
	le.PutUint16(b[14:], uint16(w.reserved))
	b[16] = 2
	b[21] = 0xf8 // fixed disk
	le.PutUint16(b[24:], 32)
	le.PutUint16(b[26:], 64)
	le.PutUint32(b[32:], uint32(w.Size/fatSector))
	tail := b[36:]
	if w.Bits == 16 {
		le.PutUint16(b[17:], fatRootBlocks*fatSector/fatDirEntry)
		le.PutUint16(b[22:], uint16(w.fatSectors))
	} else {
		b[1] = 0x58
		le.PutUint32(b[36:], uint32(w.fatSectors))
		le.PutUint32(b[44:], 2) // root folder
		le.PutUint16(b[48:], 1) // FSInfo
		le.PutUint16(b[50:], 6) // copy of the boot sector
		tail = b[64:]
	}
	tail[0] = 0x80
	tail[2] = 0x29 // the three fields below are there
	le.PutUint32(tail[3:], w.Serial)
	copy(tail[7:18], fmt.Sprintf("%-11s", w.Label))
	copy(tail[18:26], fmt.Sprintf("FAT%d   ", w.Bits))
	b[510], b[511] = 0x55, 0xaa
}

// tables writes both FATs, and for FAT32 the summary of free space.
func (w *fatWriter) tables() {
	le := binary.LittleEndian
	table := make([]byte, w.fatSectors*fatSector)
	for i, next := range w.table {
		if w.Bits == 16 {
			le.PutUint16(table[2*i:], uint16(next))
		} else {
			le.PutUint32(table[4*i:], next)
		}
	}
	at := w.reserved * fatSector
	copy(w.out[at:], table)
	copy(w.out[at+len(table):], table)
	if w.Bits == 16 {
		return
	}
	info := w.out[fatSector : 2*fatSector]
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	clusters := (w.Size - w.data) / int64(w.Cluster)
	le.PutUint32(info[488:], uint32(clusters)-uint32(len(w.table)-2))
	le.PutUint32(info[492:], uint32(len(w.table)))
	info[510], info[511] = 0x55, 0xaa
	copy(w.out[6*fatSector:], w.out[:2*fatSector])
}

// serial is the volume serial number of a thing of a board.
func serial(b boards.Board, thing string) uint32 {
	u := uuid(b, thing)
	return binary.BigEndian.Uint32(u[:4])
}
