package recodescan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"sort"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// Foreseen is a piece in the form of recode.ZstdMatches: its plain form is the
// content of the piece, then what Expand makes of the old blocks, then Extra.
type Foreseen struct {
	recode.Foreseen
	OldOffset, OldLength int // of the old blocks in the old file
}

// A Pair is an old and a new frame whose contents are similar, file by file in
// the same order, as those of two initrds are.
type Pair struct {
	Old, New *Frame
	moved    []recode.Moved
}

// String says how the contents relate, for a log.
func (p *Pair) String() string { return fmt.Sprintf("%d parts", len(p.moved)) }

// NewPair compares the contents. It takes time and memory in proportion to them.
func NewPair(old, target *Frame) *Pair {
	return &Pair{Old: old, New: target, moved: align(old.Content, target.Content)}
}

// Foresee expresses a piece of the new frame by the matches of the old one.
func (p *Pair) Foresee(piece Piece) (*Foreseen, error) {
	from := p.oldBlock(p.toOld(piece.ContentOffset))
	to := p.oldBlock(p.toOld(piece.ContentOffset + piece.ContentLength - 1))
	to = min(max(to+1, from), p.Old.Blocks.Len())
	f, err := p.New.Blocks.Foresee(piece.From, piece.To, p.New.Content, p.Old.Blocks, from, to, p.moved)
	if err != nil {
		return nil, err
	}
	start, _ := p.Old.Blocks.At(from)
	end, _ := p.Old.Blocks.At(to)
	out := &Foreseen{Foreseen: *f, OldOffset: p.Old.Offset + start, OldLength: end - start}
	return out, p.try(piece, out)
}

// try packs the piece as a device would.
func (p *Pair) try(piece Piece, f *Foreseen) error {
	var c recode.Coder
	plain := bytes.Clone(p.New.Content[piece.ContentOffset:][:piece.ContentLength])
	old := make([]byte, f.Old)
	n, err := c.Expand(recode.ZstdMatches, f.Expand, p.Old.data[f.OldOffset-p.Old.Offset:][:f.OldLength], old)
	if err != nil {
		return fmt.Errorf("expand old matches: %w", err)
	}
	plain = append(append(plain, old[:n]...), f.Extra...)
	out := make([]byte, piece.Length)
	if n, err = c.Pack(recode.ZstdMatches, f.Pack, plain, out); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if !bytes.Equal(out[:n], p.New.data[piece.Offset-p.New.Offset:][:piece.Length]) {
		return fmt.Errorf("block %d and on: other bits: %w", piece.From, recode.ErrUnsupported)
	}
	return nil
}

// toOld returns where a position of the new content was.
func (p *Pair) toOld(at int) int {
	i := sort.Search(len(p.moved), func(i int) bool { return p.moved[i].New > at })
	if i == 0 {
		return 0
	}
	return min(p.moved[i-1].Old+at-p.moved[i-1].New, len(p.Old.Content))
}

// oldBlock returns the old block that holds a position.
func (p *Pair) oldBlock(at int) int {
	return max(sort.Search(p.Old.Blocks.Len(), func(i int) bool {
		_, end := p.Old.Blocks.At(i + 1)
		return end > at
	}), 0)
}

const (
	anchor      = 32 // bytes that must be the same, and be found once in the old content
	anchorShare = 8  // one position of so many is looked at, chosen by what is there
)

// segment says that target[new:] is like old[old:]; it weighs as many anchors as it has.
type segment struct{ old, new, weight int }

// align finds which parts of old are where in target, in ascending order in
// both: contents that changed places are not followed, since matches do not reach far.
//
// Tables are alike at any multiple of their entry, so what merely looks alike
// misleads: only what is unique counts.
func align(old, target []byte) []recode.Moved {
	size := bits.Len(uint(len(old) / anchorShare))
	index := make([]int32, 2<<size) // 0: none, < 0: several
	key := func(b []byte) uint64 {
		x := binary.LittleEndian.Uint64(b) * mix
		for i := 8; i < anchor; i += 8 {
			x = (x ^ x>>29 ^ binary.LittleEndian.Uint64(b[i:])) * mix
		}
		return x >> (64 - 1 - size)
	}
	for at := 0; at+anchor <= len(old); at++ {
		if !chosen(old[at:]) {
			continue
		}
		e := &index[key(old[at:])]
		if *e == 0 {
			*e = int32(at + 1)
		} else if *e > 0 && bytes.Equal(old[*e-1:][:anchor], old[at:][:anchor]) {
			*e = -*e
		}
	}
	var found []segment
	for at := 0; at+anchor <= len(target); at++ {
		if !chosen(target[at:]) {
			continue
		}
		from := int(index[key(target[at:])]) - 1
		if from < 0 || !bytes.Equal(old[from:][:anchor], target[at:][:anchor]) {
			continue
		}
		if n := len(found); n > 0 && found[n-1].old-found[n-1].new == from-at {
			found[n-1].weight++
		} else {
			found = append(found, segment{from, at, 1})
		}
	}
	var moved []recode.Moved
	for _, s := range ascending(found) {
		last := recode.Moved{Old: -1, New: -1}
		if n := len(moved); n > 0 {
			last = moved[n-1]
		}
		if last.New >= 0 && s.old-s.new == last.Old-last.New {
			continue
		}
		for s.old-1 > last.Old && s.new-1 > last.New && old[s.old-1] == target[s.new-1] {
			s.old--
			s.new--
		}
		moved = append(moved, recode.Moved{Old: s.old, New: s.new})
	}
	return moved
}

const mix = 0x9e3779b97f4a7c15

func chosen(b []byte) bool {
	return (binary.LittleEndian.Uint64(b)*mix)>>32%anchorShare == 0
}

// ascending returns those segments that together are longest and ascend in the
// old content too; in the new one all do.
func ascending(all []segment) []segment {
	// By where they begin: ends are uncertain, they may reach into the next one.
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return all[order[a]].old < all[order[b]].old })
	rank := make([]int, len(all))
	for r, i := range order {
		rank[i] = r
	}
	// best[r] in a Fenwick tree: the segment that ends the longest chain among the ranks it covers.
	tree := make([]int, len(all)+1)
	total, before := make([]int, len(all)), make([]int, len(all))
	for i, s := range all {
		fits := sort.Search(len(order), func(r int) bool { return all[order[r]].old >= s.old })
		before[i], total[i] = -1, s.weight
		for r := fits; r > 0; r -= r & -r {
			if t := tree[r] - 1; t >= 0 && total[t]+s.weight > total[i] {
				before[i], total[i] = t, total[t]+s.weight
			}
		}
		for r := rank[i] + 1; r <= len(all); r += r & -r {
			if t := tree[r] - 1; t < 0 || total[t] < total[i] {
				tree[r] = i + 1
			}
		}
	}
	last := -1
	for i := range all {
		if last < 0 || total[i] > total[last] {
			last = i
		}
	}
	var chain []segment
	for ; last >= 0; last = before[last] {
		chain = append(chain, all[last])
	}
	slices.Reverse(chain)
	return chain
}
