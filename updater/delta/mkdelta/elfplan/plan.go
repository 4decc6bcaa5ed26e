// Package elfplan makes the plans of package predict for frames of an image in
// which programs, libraries and kernel modules were built again. It runs on a desk, never on a
// device.
package elfplan

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

const (
	predictX86    = predict.KindX86
	predictARM64  = predict.KindARM64
	predictARM    = predict.KindARM
	predictThumb  = predict.KindThumb
	predictTypes  = predict.KindTypes
	predictFrames = predict.KindFrames
	predictWords  = predict.KindWords
)

// An Extent says where a stretch of a file lies in an image.
type Extent struct{ File, Image, Length int64 }

// A File is the content of a file of an image, and where it lies. Extents are
// ascending in the file; holes have none.
type File struct {
	Data    []byte
	Extents []Extent
}

// A Pair is a file of the new image and what it was in the old one.
type Pair struct{ Old, New File }

// A Planner makes plans. It may be used by several goroutines.
type Planner struct {
	pairs []*pair
	new   []place // where files lie in the new image, ascending
	old   []place

	common      []shiftMap
	commonNames []string
}

type pair struct {
	old, new           *file
	oldWhere, newWhere []Extent
	number             int
}

type place struct {
	Extent
	pair *pair
}

// New takes all pairs of two images. Pairs that are no ELF files of a kind that is known
// are passed over, so a caller need not look.
func New(pairs []Pair) *Planner {
	p := &Planner{}
	for _, q := range pairs {
		r := &pair{old: parse(q.Old.Data), new: parse(q.New.Data), oldWhere: q.Old.Extents, newWhere: q.New.Extents}
		if r.old == nil || r.new == nil || r.old.elf.Machine != r.new.elf.Machine || r.old.rel != r.new.rel || r.old.elf.Class != r.new.elf.Class {
			continue
		}
		r.number = len(p.pairs)
		r.renumber()
		p.pairs = append(p.pairs, r)
		for _, e := range r.newWhere {
			p.new = append(p.new, place{e, r})
		}
		for _, e := range r.oldWhere {
			p.old = append(p.old, place{e, r})
		}
	}
	byImage := func(a, b place) int { return cmp.Compare(a.Image, b.Image) }
	slices.SortStableFunc(p.new, byImage)
	slices.SortStableFunc(p.old, byImage)
	p.agree()
	p.findCommon()
	return p
}

// renumber gives the sections of a new relocatable file the numbers of their
// counterparts in the old one, so that addresses of both can be compared.
func (r *pair) renumber() {
	if !r.new.rel {
		return
	}
	base := make(map[string]uint64)
	for _, s := range r.old.sections {
		base[s.name] = s.addr
	}
	for i := range r.new.sections {
		s := &r.new.sections[i]
		if addr, ok := base[s.name]; ok {
			s.addr = addr
		}
	}
}

// agree settles from which numbers on BTF types and names are a module's own:
// all modules of one kernel have that in common, and most reveal it.
func (p *Planner) agree() {
	for _, side := range []func(*pair) *file{func(r *pair) *file { return r.old }, func(r *pair) *file { return r.new }} {
		for k := range 2 {
			count := make(map[uint64]int)
			for _, r := range p.pairs {
				for _, s := range side(r).sections {
					if s.kind == predictTypes {
						count[s.split[k]]++
					}
				}
			}
			most := uint64(0)
			for v, n := range count {
				if n > count[most] || n == count[most] && v < most {
					most = v
				}
			}
			for _, r := range p.pairs {
				f := side(r)
				for i := range f.sections {
					if f.sections[i].kind == predictTypes {
						f.sections[i].split[k] = most
					}
				}
			}
		}
	}
}

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

// regionCost is how many bytes a region has to save.
const regionCost = 6

// Frame makes the plan for the frame of the new image that begins at the offset at:
// plain is what the runs copy from the old image, target what the frame shall be. A plan
// that would not pay is nil.
func (p *Planner) Frame(at int64, plain, target []byte, runs []predict.Run) []byte {
	c := p.candidates(at, runs)
	look(c, at, plain, target, runs)
	share(c)
	var maps []shiftMap
	for {
		before := len(c)
		maps = p.vote(c)
		gained(c, maps)
		c = slices.DeleteFunc(c, func(g *candidate) bool { return g.gain < regionCost })
		c = p.limit(c, maps)
		if len(c) == before {
			break
		}
	}
	if len(c) == 0 {
		return nil
	}
	return stream(maps[len(p.common):], regionsOf(c))
}

// limit drops the regions that are worth least, should a device take no such plan.
func (p *Planner) limit(c []*candidate, maps []shiftMap) []*candidate {
	steps := 0
	maps = maps[len(p.common):]
	for _, m := range maps {
		steps += len(m.steps)
	}
	keep := len(c)
	if keep > predict.MaxRegions {
		keep = predict.MaxRegions
	}
	if len(maps) > predict.MaxMaps || steps > predict.MaxSteps {
		keep = min(keep, len(c)*9/10)
	}
	if keep == len(c) {
		return c
	}
	slices.SortStableFunc(c, func(a, b *candidate) int { return cmp.Compare(b.gain, a.gain) })
	c = c[:keep]
	slices.SortFunc(c, func(a, b *candidate) int { return cmp.Compare(a.start, b.start) })
	return c
}

func regionsOf(c []*candidate) []region {
	out := make([]region, len(c))
	for i, g := range c {
		out[i] = g.region
	}
	return out
}

// look finds the fields of all candidates.
func look(c []*candidate, at int64, plain, target []byte, runs []predict.Run) {
	const most = predict.MaxRegions / 2
	for len(c) > 0 {
		some := c[:min(len(c), most)]
		c = c[len(some):]
		regions := regionsOf(some)
		for i := range regions {
			regions[i].maps = [4]int{0, 1, 2, 3} // which tells the slots apart
		}
		var plan predict.Plan
		if err := plan.Parse(stream([]shiftMap{{end: 1}, {end: 1}, {end: 1}, {end: 1}}, regions), nil); err != nil {
			panic(err) // a bug of this package
		}
		for _, r := range runs {
			plan.Scan(plain, at, r, func(s predict.Sight) {
				g := some[s.Region]
				if g.limited[s.Map] && !g.pair.old.holds(s.At) {
					return
				}
				if need, none, weight, ok := needed(s, &g.region, at, plain, target); ok {
					g.fields = append(g.fields, sight{s.At, need, none, uint8(s.Map), weight})
				}
			})
		}
	}
}

// share lets modules whose own types and names all moved alike use the same maps.
func share(c []*candidate) {
	moved := make(map[int]bool) // by pair: whether something of its own did not just follow
	for _, g := range c {
		if g.sec.kind == predictTypes {
			for _, s := range g.fields {
				if s.slot >= 2 && s.need != g.follow[s.slot-2] {
					moved[g.pair.number] = true
				}
			}
		}
	}
	for _, g := range c {
		if g.sec.kind == predictTypes && !moved[g.pair.number] {
			g.names[2].pair, g.names[3].pair = ofAll, ofAll
		}
	}
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
					if g.start += int64(s.layout.stride); g.start < g.end {
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
	g := &candidate{region: region{start: pos, end: end, kind: s.kind, layout: s.layout}, pair: n.pair, place: n, sec: s}
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
	case s.kind < predictWords:
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
		types := n.pair.old.entries(t)
		i, _ := slices.BinarySearchFunc(types, oldOff, func(b btfType, off int64) int { return cmp.Compare(b.off, off) })
		if i == len(types) {
			return nil
		}
		g.start += types[i].off - oldOff
	case s.layout.stride != 0:
		e := int64(s.layout.stride)
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
	types := n.pair.old.types(t)
	i, ok := slices.BinarySearchFunc(types, oldOff, func(b btfType, off int64) int { return cmp.Compare(b.off, off) })
	if ok || i == 0 {
		return nil
	}
	b := types[i-1]
	in := oldOff - b.off - 12
	if b.kind != 4 && b.kind != 5 || in < 0 {
		return nil
	}
	skip := (12 - in%12) % 12
	end = min(end, pos+b.off+int64(b.size)-oldOff)
	if pos+skip >= end {
		return nil
	}
	g := p.candidate(n, o, s, t, pos, end, off, types[0].off, at)
	g.kind, g.start, g.end = predict.KindMembers, pos+skip, end
	return g
}

func (f *file) entries(s *section) []btfType {
	if s.kind == predictTypes {
		return f.types(s)
	}
	return f.frameEntries(s)
}

// vote numbers the maps of the regions and makes those that are not common from
// what the fields say.
func (p *Planner) vote(c []*candidate) []shiftMap {
	number := make(map[mapName]int)
	for k, name := range p.commonNames {
		number[mapName{ofAll, name}] = k
	}
	for _, g := range c {
		n, _, _ := g.uses()
		for k := range n {
			if _, ok := number[g.names[k]]; !ok {
				number[g.names[k]] = len(number)
			}
			g.maps[k] = number[g.names[k]]
		}
	}
	votes := make([][]ballot, len(number))
	for _, g := range c {
		for _, s := range g.fields {
			m := g.maps[s.slot]
			votes[m] = append(votes[m], ballot{s.at, s.need, 1})
		}
	}
	maps := append([]shiftMap(nil), p.common...)
	for _, v := range votes[len(maps):] {
		maps = append(maps, makeMap(v, stepCost))
	}
	return maps
}

// gained finds out how many bytes each region makes right, less those that it makes wrong.
func gained(c []*candidate, maps []shiftMap) {
	for _, g := range c {
		g.gain = 0
		for _, s := range g.fields {
			shift, ok := maps[g.maps[s.slot]].shift(s.at)
			switch {
			case !ok || shift == s.none:
			case shift == s.need:
				g.gain += int(s.weight)
			case s.need == s.none:
				g.gain -= 2
			}
		}
	}
}

// needed returns the shift that would make a field what the target has, the one
// that leaves it as it is, and how many bytes of it are wrong.
func needed(s predict.Sight, g *region, at int64, plain, target []byte) (need, none int64, weight uint8, ok bool) {
	le := binary.LittleEndian
	var v int64
	switch s.Width {
	case 2:
		v = int64(int16(le.Uint16(target[s.Pos:])))
	case 4:
		v = int64(int32(le.Uint32(target[s.Pos:])))
	case 8:
		v = int64(le.Uint64(target[s.Pos:]))
	default:
		return neededCode(s, g, at, plain, target)
	}
	for i := range s.Width {
		if plain[s.Pos+i] != target[s.Pos+i] {
			weight++
		}
	}
	if s.Negate {
		return s.Value - v + s.Moved, s.Moved, weight, true
	}
	return v - s.Value + s.Moved, s.Moved, weight, true
}

// neededCode is needed for fields of some bits of ARM instructions.
func neededCode(s predict.Sight, g *region, at int64, plain, target []byte) (need, none int64, weight uint8, ok bool) {
	le := binary.LittleEndian
	c := le.Uint32(target[s.Pos:])
	if g.kind == predictThumb {
		return neededThumb(s, plain, target)
	}
	if s.Low < 0 {
		bits := 26
		if g.kind == predictARM {
			bits = 24
		}
		if (c^le.Uint32(plain[s.Pos:]))>>bits != 0 {
			return 0, 0, 0, false
		}
		v := int64(int32(c<<(32-bits))) >> (32 - bits) << 2
		return v - s.Value + s.Moved, s.Moved, 2, true
	}
	low := le.Uint32(target[s.Low:])
	if (c^le.Uint32(plain[s.Pos:]))&0x9f00001f != 0 || (low^le.Uint32(plain[s.Low:]))&^(0xfff<<10) != 0 {
		return 0, 0, 0, false
	}
	target64 := func(c, low uint32, addr uint64) uint64 {
		imm := int64(int32(c<<8)>>13)<<2 | int64(c>>29&3)
		return addr&^0xfff + uint64(imm)<<12 + uint64(low>>10&0xfff)<<s.Value
	}
	addr := uint64(at+int64(s.Pos)) + g.a - uint64(g.d)
	// The shift that changes nothing is that of old instructions at the new address.
	same := target64(le.Uint32(plain[s.Pos:]), le.Uint32(plain[s.Low:]), addr)
	return int64(target64(c, low, addr) - s.At), int64(same - s.At), 2, true
}

// neededThumb is needed for branches of two halfwords.
func neededThumb(s predict.Sight, plain, target []byte) (need, none int64, weight uint8, ok bool) {
	le := binary.LittleEndian
	c, low := uint32(le.Uint16(target[s.Pos:])), uint32(le.Uint16(target[s.Pos+2:]))
	if (c^uint32(le.Uint16(plain[s.Pos:])))>>11 != 0 || (low^uint32(le.Uint16(plain[s.Pos+2:])))&0xd000 != 0 {
		return 0, 0, 0, false
	}
	sign := c >> 10 & 1
	v := int64(int32(sign<<31|(^(low>>13^sign)&1)<<30|(^(low>>11^sign)&1)<<29|c&0x3ff<<19|low&0x7ff<<8)) >> 7
	return v - s.Value + s.Moved, s.Moved, 2, true
}
