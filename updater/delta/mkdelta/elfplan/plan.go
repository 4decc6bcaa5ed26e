// Package elfplan makes the plans of package predict for frames of an image in
// which programs, libraries, kernels and their modules were built again. It runs on a desk, never on a
// device.
package elfplan

import (
	"cmp"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

const (
	predictX86      = predict.KindX86
	predictX86Fixed = predict.KindX86Fixed
	predictARM64    = predict.KindARM64
	predictARM      = predict.KindARM
	predictThumb    = predict.KindThumb
	predictTypes    = predict.KindTypes
	predictFrames   = predict.KindFrames
	predictWords    = predict.KindWords
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
		for _, f := range []*file{r.old, r.new} {
			f.symbols, f.elf = nil, nil // only Mask needs them again, and there are thousands of files
			f.sections = slices.Clip(slices.Clone(f.sections))
		}
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

// regionCost is how many bytes a region has to save.
const regionCost = 4

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
