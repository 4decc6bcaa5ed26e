package files

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// What the header of a compressed inode's map says.
const (
	mapTwoBytes  = 0x1 // parts of the compacted index have 2 bytes for each cluster
	mapBig       = 0x2 // physical clusters have several blocks
	mapBig2      = 0x4
	mapTail      = 0x8 // the last physical cluster follows the index
	mapRotated   = 0x10
	mapFragments = 0x20 // the tail is in the packed file

	// In place of a distance back: how many blocks the physical cluster has.
	mapCount = 1 << 11
)

// Kinds of logical clusters.
const (
	clusterPlain = 0 // begins a physical cluster that is not compressed
	clusterHead  = 1
	clusterNone  = 2 // begins none
	clusterHead2 = 3 // as clusterHead, with the second codec
)

var eroCodecs = [4]Codec{LZ4Padded, LZMA, Deflate, ZstdPadded}

// cluster is one entry of an index: what it says of a logical cluster.
type cluster struct {
	kind   int
	offset int64 // where in the logical cluster the next physical one begins
	block  int64 // of a physical cluster
	count  int64 // of its blocks, in the logical cluster behind its first
}

// packedExtents returns the physical clusters of a compressed inode.
func (x *ero) packedExtents(n eroInode) ([]Extent, error) {
	at := (n.tail + 7) &^ 7
	h, err := x.im.at(at, 8)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if h[7]>>7 != 0 { // the whole file is a fragment
		return x.fragment(int64(le.Uint64(h)&^(1<<63)), n.size, 0)
	}
	advise, size := le.Uint16(h[4:]), int64(1)<<(x.bits+uint(h[7]&7))
	count := (n.size + size - 1) / size
	if count > maxExtents || count*2 > x.im.size {
		return nil, fmt.Errorf("%d clusters: %w", count, ErrFormat)
	}
	var index []cluster
	var end int64
	if n.layout == erofsFull {
		index, end, err = x.fullIndex(at+16, count)
	} else {
		index, end, err = x.compactIndex(at+8, count, advise, uint(bits.TrailingZeros64(uint64(size))))
	}
	if err != nil {
		return nil, err
	}
	// From behind, since an extent goes to where the next one begins.
	var out []Extent
	next := n.size
	for i := len(index) - 1; i >= 0 && next > 0; i-- {
		c := index[i]
		if c.kind == clusterNone {
			continue
		}
		logical := int64(i)*size + c.offset
		if logical >= next {
			// An empty one, in front of where a tail is elsewhere.
			continue
		}
		e := Extent{Logical: logical, Size: next - logical, Plain: next - logical, Offset: c.block << x.bits, Length: size}
		last := next == n.size
		next = logical
		switch {
		case last && advise&mapFragments != 0:
			tail, err := x.fragment(int64(le.Uint32(h)), e.Size, logical)
			if err != nil {
				return nil, err
			}
			out = append(out, tail...)
			continue
		case last && advise&mapTail != 0:
			e.Offset, e.Length = end, int64(le.Uint16(h[2:]))
		case i+1 < len(index) && index[i+1].count > 0:
			e.Length = index[i+1].count << x.bits
		}
		switch c.kind {
		case clusterPlain:
			out = append(out, plainCluster(e, advise, int64(1)<<x.bits)...)
			continue
		case clusterHead:
			e.Codec = x.codec(h[6] & 15)
		case clusterHead2:
			e.Codec = x.codec(h[6] >> 4)
		}
		out = append(out, e)
	}
	return out, nil
}

func (x *ero) codec(n byte) Codec {
	switch {
	case int(n) >= len(eroCodecs):
		return XZ // unknown: nothing unpacks it
	case n == 0 && x.features&erofsPadded == 0:
		return LZ4
	}
	return eroCodecs[n]
}

// plainCluster returns the extents of a physical cluster that is not
// compressed. With mapRotated it is rotated so that bytes keep their offset in
// a block.
func plainCluster(e Extent, advise uint16, block int64) []Extent {
	if advise&mapRotated == 0 {
		return []Extent{stored(e.Logical, e.Offset, e.Size)}
	}
	skip := e.Logical & (block - 1)
	right := min(block-skip, e.Size)
	out := []Extent{stored(e.Logical, e.Offset+skip, right)}
	if right < e.Size {
		out = append(out, stored(e.Logical+right, e.Offset, e.Size-right))
	}
	return out
}

// fragment returns n bytes at offset of the file that holds tails.
func (x *ero) fragment(offset, n, logical int64) ([]Extent, error) {
	if x.packed == nil {
		if x.packedID == 0 || x.features&erofsFragments == 0 {
			return nil, fmt.Errorf("a tail in no file: %w", ErrFormat)
		}
		id := x.packedID
		x.packedID = 0 // it has no tails of its own
		inode, err := x.inode(id)
		if err != nil {
			return nil, err
		}
		if x.packed, err = x.extents(inode); err != nil {
			return nil, err
		}
	}
	return cut(x.packed, offset, offset+n, logical), nil
}

// fullIndex reads 8 bytes for each logical cluster. It returns where they end, too.
func (x *ero) fullIndex(at, count int64) ([]cluster, int64, error) {
	b, err := x.im.at(at, 8*count)
	if err != nil {
		return nil, 0, err
	}
	le := binary.LittleEndian
	index := make([]cluster, count)
	for i := range index {
		e := b[8*i:]
		c := cluster{kind: int(le.Uint16(e) & 3), offset: int64(le.Uint16(e[2:]))}
		if c.kind != clusterNone {
			c.block = int64(le.Uint32(e[4:]))
		} else if d := le.Uint16(e[4:]); d&mapCount != 0 {
			c.count = int64(d &^ mapCount)
		}
		index[i] = c
	}
	return index, at + 8*count, nil
}

// compactIndex reads packs of 2 entries in 8 bytes and, where the inode says so,
// of 16 in 32 bytes. A pack has one block address; those of its clusters follow from it.
func (x *ero) compactIndex(at, count int64, advise uint16, clusterBits uint) ([]cluster, int64, error) {
	// The small packs in front end where 32 bytes are aligned.
	front := (32 - at%32) / 4 & 7
	middle := int64(0)
	if advise&mapTwoBytes != 0 && front < count {
		middle = (count - front) &^ 15
	}
	index := make([]cluster, 0, count)
	read := func(n, width int64) error {
		per, size := int64(2), int64(8)
		if width == 2 {
			per, size = 16, 32
		}
		if width == 4 && clusterBits > 14 || width == 2 && clusterBits > 12 {
			return fmt.Errorf("clusters of 2^%d bytes in a compacted index: %w", clusterBits, ErrUnsupported)
		}
		for n > 0 {
			// A pack begins at a multiple of its size; of the first, a part may be missing.
			pack := at &^ (size - 1)
			first := (at - pack) / width
			b, err := x.im.at(pack, size)
			if err != nil {
				return err
			}
			all := unpackIndex(b, int(per), clusterBits, advise&mapBig != 0)
			k := min(per-first, n)
			index = append(index, all[first:first+k]...)
			n -= k
			at += k * width
		}
		return nil
	}
	for _, part := range []struct{ n, width int64 }{{min(front, count), 4}, {middle, 2}, {count - min(front, count) - middle, 4}} {
		if err := read(part.n, part.width); err != nil {
			return nil, 0, err
		}
	}
	// What follows the index follows the whole last pack.
	return index, (at + 7) &^ 7, nil
}

// unpackIndex reads one pack.
func unpackIndex(b []byte, per int, clusterBits uint, big bool) []cluster {
	low := max(clusterBits, uint(bits.Len(mapCount)))
	width := (len(b) - 4) * 8 / per
	entry := func(i int) (kind int, v int64) {
		bit := i * width
		var w [8]byte
		copy(w[:], b[bit/8:])
		u := binary.LittleEndian.Uint64(w[:]) >> (bit & 7)
		return int(u >> low & 3), int64(u & (1<<low - 1))
	}
	base := int64(binary.LittleEndian.Uint32(b[len(b)-4:]))
	out := make([]cluster, per)
	for i := range out {
		kind, v := entry(i)
		out[i].kind = kind
		if kind == clusterNone {
			if v&mapCount != 0 && big {
				out[i].count = v &^ mapCount
			}
			continue
		}
		out[i].offset = v
		out[i].block = base + before(entry, i, big)
	}
	return out
}

// before counts the blocks of the pack's physical clusters in front of entry
// i, as the kernel does (unpack_compacted_index): the address of the
// pack is that of the first, less one without big clusters.
func before(entry func(int) (int, int64), i int, big bool) int64 {
	n := int64(0)
	if !big {
		for n = 1; i > 0; {
			i--
			if kind, v := entry(i); kind == clusterNone {
				i -= int(v)
			}
			if i >= 0 {
				n++
			}
		}
		return n
	}
	for i > 0 {
		i--
		kind, v := entry(i)
		if kind != clusterNone {
			n++
			continue
		}
		if v&mapCount != 0 {
			i--
			n += v &^ mapCount
			continue
		}
		if v <= 1 {
			return n // no encoder writes it; going on would go round
		}
		i -= int(v) - 2
	}
	return n
}
