package recode

import (
	"encoding/binary"
	"fmt"
)

// ZstdBlocks is a run of zstd blocks taken apart for the encoder of patches,
// which chooses pieces of it. A device never asks for it.
type ZstdBlocks struct {
	src    []byte
	blocks []zstdPosition
}

// zstdPosition is what holds before a block; the last one holds after all.
type zstdPosition struct {
	at        int // in the compressed bytes
	content   int // in the content of the run
	literals  int
	sequences int
	control   int
	tree      []byte // description of the tree in force
	tables    [zstdKinds][]byte
	reps      [3]int
}

// ScanZstd walks over the blocks at the beginning of src up to the one that is
// marked as the last, or to the end of src. It returns ErrFormat if there is
// something else.
func ScanZstd(src []byte) (*ZstdBlocks, error) {
	z := new(zstdCoder)
	if _, _, err := z.begin([]byte{0}, false); err != nil {
		return nil, err
	}
	s := &ZstdBlocks{src: src}
	p := zstdPosition{reps: [3]int{1, 4, 8}}
	z.reps, z.positions = p.reps, true
	var h zstdHeader
	buf := make([]byte, zstdSequences*12+zstdBlock)
	for p.at < len(src) && !h.last {
		if err := h.read(src, p.at, &z.scratch); err != nil {
			return nil, fmt.Errorf("block %d at %d: %w", len(s.blocks), p.at, err)
		}
		s.blocks = append(s.blocks, p)
		content, err := z.blockContent(&h, src, buf)
		if err != nil {
			return nil, fmt.Errorf("block %d at %d: %w", len(s.blocks)-1, p.at, err)
		}
		z.carry = 0
		p.at, p.reps = h.end, z.reps
		p.content += content
		p.literals += h.literalBytes()
		p.sequences += h.sequence
		p.control += h.controlBytes()
		if h.tree > 0 {
			p.tree = src[h.body : h.body+h.tree]
		}
		for k := range zstdKinds {
			if h.sequence > 0 && h.mode(k) != modeRepeat {
				p.tables[k] = append([]byte{h.mode(k)}, src[h.codes[k]:h.codes[k+1]]...)
			}
		}
	}
	s.blocks = append(s.blocks, p)
	return s, nil
}

// blockContent decodes the sequences of a block to learn how long its content is.
func (z *zstdCoder) blockContent(h *zstdHeader, src, buf []byte) (int, error) {
	if h.kind != zstdCompressed {
		return h.size, nil
	}
	c, _ := placeZstd(buf, 0, h.sequence, 0)
	records := buf[:c.records+zstdRecord*h.sequence]
	if err := z.expandSequences(h, src, &c); err != nil {
		return 0, err
	}
	p := zstdPacker{long: buf[len(records):c.long]}
	content := h.regen
	for ; len(records) > 0; records = records[zstdRecord:] {
		m := int(records[1])
		if records[0] == zstdLong {
			if _, err := p.takeLong(); err != nil {
				return 0, err
			}
		}
		if m == zstdLong {
			var err error
			if m, err = p.takeLong(); err != nil {
				return 0, err
			}
		}
		content += m + 3
	}
	if content > zstdBlock {
		return 0, ErrFormat
	}
	return content, nil
}

// Len returns the number of blocks.
func (s *ZstdBlocks) Len() int { return len(s.blocks) - 1 }

// At returns where block i begins, in the compressed bytes and in the content;
// At(Len()) is the end.
func (s *ZstdBlocks) At(i int) (compressed, content int) {
	return s.blocks[i].at, s.blocks[i].content
}

// Params returns what Expand and Pack need for the blocks from ≤ i < to.
// With content, Expand leaves the literals out, and Pack wants the content of
// the blocks instead of their literals.
func (s *ZstdBlocks) Params(from, to int, content bool) (expand, pack []byte) {
	a, b := &s.blocks[from], &s.blocks[to]
	flags := byte(0)
	first := b.literals - a.literals
	if content {
		flags |= zstdContent
		first = b.content - a.content
	}
	// A table is handed over only if a block uses it before it is replaced.
	tree, tables := s.inherited(from, to)
	var state []byte
	if tree {
		flags |= zstdTree
		state = append(state, a.tree...)
	}
	for k := range zstdKinds {
		if tables[k] {
			flags |= zstdTables << k
			state = append(state, a.tables[k]...)
		}
	}
	expand = append([]byte{flags}, state...)
	pack = append([]byte{flags}, state...)
	for _, n := range []int{first, b.sequences - a.sequences, b.control - a.control} {
		pack = binary.AppendUvarint(pack, uint64(n))
	}
	return expand, pack
}

func (s *ZstdBlocks) inherited(from, to int) (tree bool, tables [zstdKinds]bool) {
	var scratch distribution
	var h zstdHeader
	treeSet, set := false, [zstdKinds]bool{}
	for i := from; i < to; i++ {
		if h.read(s.src, s.blocks[i].at, &scratch) != nil || h.kind != zstdCompressed {
			continue
		}
		if !treeSet && h.literals == literalsTreeless {
			tree = true
		}
		treeSet = treeSet || h.tree > 0
		if h.sequence == 0 {
			continue
		}
		for k := range zstdKinds {
			if !set[k] && h.mode(k) == modeRepeat {
				tables[k] = true
			}
			set[k] = set[k] || h.mode(k) != modeRepeat
		}
	}
	return tree, tables
}

// Room returns how much Expand writes at most for the blocks from ≤ i < to.
func (s *ZstdBlocks) Room(from, to int) int {
	a, b := &s.blocks[from], &s.blocks[to]
	return b.literals - a.literals + (zstdRecord+6)*(b.sequences-a.sequences) + b.control - a.control
}
