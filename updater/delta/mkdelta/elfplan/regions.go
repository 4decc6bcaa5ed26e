package elfplan

import (
	"cmp"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

// find returns the place of an image offset, and up to where it goes on.
func find(places []place, off int64) (*place, int64) {
	i, ok := slices.BinarySearchFunc(places, off, func(p place, off int64) int { return cmp.Compare(p.Image, off) })
	if !ok {
		i--
	}
	if i >= 0 && off < places[i].Image+places[i].Length {
		return &places[i], places[i].Image + places[i].Length
	}
	if i+1 < len(places) {
		return nil, places[i+1].Image
	}
	return nil, 1 << 62
}

// candidate is a region, and what its use has shown.
type candidate struct {
	region
	pair    *pair
	place   *place // where it lies in the new image
	sec     *section
	names   [4]mapName
	limited [4]bool // the map is for virtual addresses
	fields  []sight
	gain    int
	follow  [2]int64 // BTF: by how much own types and names move with the kernel's
}

// ofAll is in place of a pair for what pairs have in common.
const ofAll = -1

type mapName struct {
	pair int // or ofAll
	name string
}

// sight is a field, and what it takes to predict it.
type sight struct {
	at     uint64
	need   int64 // the shift that makes it right
	none   int64 // the shift that leaves it as it is
	slot   uint8
	weight uint8 // bytes that a wrong field costs
}

// candidates cuts runs into regions: the overlaps of a run with a section of a
// new file and the same one of the old file.
func (p *Planner) candidates(at int64, runs []predict.Run) (out []*candidate) {
	for _, r := range runs {
		for pos, end := at+int64(r.Start), at+int64(r.End); pos < end; {
			shift := r.Old - at - int64(r.Start)
			n, until := find(p.new, pos)
			next := min(end, until)
			if n == nil {
				pos = next
				continue
			}
			fileOff := pos - n.Image + n.File
			s := n.pair.new.section(fileOff)
			if s == nil {
				// On to the next section.
				for i := range n.pair.new.sections {
					if t := &n.pair.new.sections[i]; t.off > fileOff {
						next = min(next, pos+t.off-fileOff)
					}
				}
				pos = next
				continue
			}
			next = min(next, pos+s.off+s.size-fileOff)
			o, until := find(p.old, pos+shift)
			next = min(next, until-shift)
			if o == nil || o.pair != n.pair {
				pos = next
				continue
			}
			oldOff := pos + shift - o.Image + o.File
			t := n.pair.old.section(oldOff)
			if t == nil || t.name != s.name || t.kind != s.kind || t.layout != s.layout {
				// The old section may begin further on.
				for i := range n.pair.old.sections {
					if t := &n.pair.old.sections[i]; t.name == s.name && t.off > oldOff {
						next = min(next, pos+t.off-oldOff)
					}
				}
				if t != nil && t.name != s.name {
					next = min(next, pos+t.off+t.size-oldOff)
				}
				pos = next
				continue
			}
			next = min(next, pos+t.off+t.size-oldOff)
			if s.kind == predictTypes {
				if g := p.members(n, o, s, t, pos, next, fileOff, oldOff, at); g != nil {
					out = append(out, g)
				}
			}
			if g := p.candidate(n, o, s, t, pos, next, fileOff, oldOff, at); g != nil {
				if k := len(out) - 1; k >= 0 && out[k].end > g.start && out[k].joins(g) {
					out[k].end = g.end
				} else if k >= 0 && out[k].end > g.start {
					// Its first entry belongs to a region of another kind of run.
					if g.start += int64(s.layout.Value().stride); g.start < g.end {
						out = append(out, g)
					}
				} else if k >= 0 && out[k].joins(g) {
					out[k].end = g.end
				} else {
					out = append(out, g)
				}
			}
			pos = next
		}
	}
	slices.SortFunc(out, func(a, b *candidate) int { return cmp.Compare(a.start, b.start) })
	return out
}

// joins says whether g can go on where c ends, perhaps behind what is not from the old file.
func (c *candidate) joins(g *candidate) bool {
	return c.place == g.place && c.sec == g.sec && c.a == g.a && c.d == g.d && !c.sec.walk &&
		(c.layout.stride == 0 || (g.start-c.start)%int64(c.layout.stride) == 0)
}

func (p *Planner) candidate(n, o *place, s, t *section, pos, end, off, oldOff, at int64) *candidate {
	g := &candidate{region: region{start: pos, end: end, kind: s.kind, layout: s.layout.Value()}, pair: n.pair, place: n, sec: s}
	for k, name := range s.maps {
		if name != "" {
			g.names[k] = mapName{n.pair.number, name}
			if name == checksums || name == kernelTypes || name == kernelNames {
				g.names[k].pair = ofAll
			}
			g.limited[k] = name == "addr" && !n.pair.new.rel
		}
	}
	// Old and new address of the first byte.
	oldAddr, newAddr := t.addr+uint64(oldOff-t.off), s.addr+uint64(off-s.off)
	oldImage := oldOff - o.File + o.Image
	switch {
	case s.kind == predictTypes:
		g.a, g.d = t.split[0], int64(t.split[1])
		for k := range 2 {
			g.follow[k] = int64(s.split[k] - t.split[k])
		}
	case s.placed():
		g.a = oldAddr - uint64(oldImage)
		g.d = int64(oldAddr - uint64(oldImage) - newAddr + uint64(pos))
	default:
		g.a = t.a
		if !n.pair.new.rel {
			g.d = int64(t.a - s.a)
		}
	}
	switch {
	case s.walk:
		i, _ := slices.BinarySearch(t.starts, uint32(oldOff-t.off))
		if i == len(t.starts) {
			return nil
		}
		g.start += t.off + int64(t.starts[i]) - oldOff
	case s.layout.Value().stride != 0:
		e := int64(s.layout.Value().stride)
		if (off-s.off)%e != (oldOff-t.off)%e {
			return nil
		}
		// Regions begin with an entry: a run that begins amid one has its fields all the same.
		if over := (off - s.off) % e; over != 0 {
			g.start -= over
			if g.start < max(at, n.Image) {
				g.start += e
			}
		}
	}
	if g.start >= g.end {
		return nil
	}
	return g
}

// members makes a region of the members of a BTF structure amid which a run begins:
// one was put in before, mostly.
func (p *Planner) members(n, o *place, s, t *section, pos, end, off, oldOff, at int64) *candidate {
	i, ok := slices.BinarySearch(t.starts, uint32(oldOff-t.off))
	if ok || i == 0 {
		return nil
	}
	b := n.pair.old.typeAt(t, t.off+int64(t.starts[i-1]))
	in := oldOff - b.off - 12
	if b.kind != 4 && b.kind != 5 || in < 0 {
		return nil
	}
	skip := (12 - in%12) % 12
	end = min(end, pos+b.off+int64(b.size)-oldOff)
	if pos+skip >= end {
		return nil
	}
	g := p.candidate(n, o, s, t, pos, end, off, t.off, at)
	g.kind, g.start, g.end = predict.KindMembers, pos+skip, end
	return g
}
