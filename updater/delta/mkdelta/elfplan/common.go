package elfplan

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

// Names of maps that all modules of a kernel have in common.
const (
	kernelTypes = "kernel types" // BTF
	kernelNames = "kernel names"
	checksums   = "checksums" // of exported symbols: what a module needs and offers
)

// Common writes the maps that the plans of frames refer to, nil if there are none. A
// device parses it once (predict.Maps).
func (p *Planner) Common() []byte {
	if len(p.common) == 0 {
		return nil
	}
	return appendMaps(nil, p.common)
}

// What a step of common maps has to save, in fields of all modules, and an exact one.
const (
	commonCost   = 3
	checksumCost = 2
)

// findCommon makes the common maps from all pairs.
func (p *Planner) findCommon() {
	var types, names, sums tally
	for _, r := range p.pairs {
		for i := range r.old.sections {
			t := &r.old.sections[i]
			for k := range r.new.sections {
				s := &r.new.sections[k]
				switch {
				case s.name != t.name || s.kind != t.kind || s.layout != t.layout:
				case s.kind == predictTypes:
					r.compareTypes(t, s, &types, &names)
				case s.maps[0] == checksums && s.layout.Value().stride == 64:
					r.compareChecksums(t, s, &sums)
				}
			}
		}
	}
	for _, m := range []struct {
		name  string
		tally *tally
		exact bool
	}{{kernelTypes, &types, false}, {kernelNames, &names, false}, {checksums, &sums, true}} {
		made := m.tally.shiftMap(m.exact, predict.MaxCommon-p.commonSteps())
		if made == nil {
			continue
		}
		p.common, p.commonNames = append(p.common, *made), append(p.commonNames, m.name)
	}
}

func (p *Planner) commonSteps() (n int) {
	for _, m := range p.common {
		n += len(m.steps)
	}
	return n
}

// tally counts how often an address was seen to be shifted.
type tally struct{ seen map[[2]uint64]int }

func (t *tally) add(at uint64, shift int64) {
	if t.seen == nil {
		t.seen = make(map[[2]uint64]int)
	}
	t.seen[[2]uint64{at, uint64(shift)}]++
}

// shiftMap returns nil if nothing moves.
func (t *tally) shiftMap(exact bool, room int) *shiftMap {
	var votes []ballot
	moves := false
	for v, n := range t.seen {
		votes = append(votes, ballot{v[0], int64(v[1]), n})
		moves = moves || v[1] != 0
	}
	if !moves {
		return nil
	}
	if !exact {
		for cost := commonCost; ; cost *= 2 {
			if m := makeMap(votes, float64(cost)); len(m.steps) <= room {
				return &m
			}
		}
	}
	// Of an address that was seen to move in more than one way the most frequent counts.
	slices.SortFunc(votes, func(a, b ballot) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(b.n, a.n), cmp.Compare(a.shift, b.shift))
	})
	votes = slices.CompactFunc(votes, func(a, b ballot) bool { return a.at == b.at })
	for least := checksumCost; ; least++ {
		m := shiftMap{exact: true}
		for _, v := range votes {
			if v.shift != 0 && v.n >= least {
				m.steps = append(m.steps, step{v.at, v.shift})
				m.end = v.at + 1
			}
		}
		if len(m.steps) == 0 || m.end == 0 {
			return nil
		}
		if len(m.steps) <= room {
			return &m
		}
	}
}

// compareChecksums counts how checksums of symbols changed.
func (r *pair) compareChecksums(t, s *section, sums *tally) {
	le := binary.LittleEndian
	old := make(map[string]int64)
	for off := t.off; off+64 <= t.off+t.size; off += 64 {
		old[string(r.old.data[off+8:off+64])] = int64(int32(le.Uint32(r.old.data[off:])))
	}
	for off := s.off; off+64 <= s.off+s.size; off += 64 {
		v := int64(int32(le.Uint32(r.new.data[off:])))
		if u, ok := old[string(r.new.data[off+8:off+64])]; ok {
			sums.add(uint64(u), v-u)
		}
	}
}

// compareTypes counts how the kernel's types and names were renumbered, as the
// module's types that have stayed tell.
func (r *pair) compareTypes(t, s *section, types, names *tally) {
	x, y := r.old.types(t), r.new.types(s)
	partner := make(map[int64]int64) // place of an old type, of a new one
	size := make(map[int64]int64)
	mask := func(f *file, s *section) []byte {
		b := bytes.Clone(f.data)
		f.maskTypes(s, b)
		return b
	}
	align(x, y, mask(r.old, t), mask(r.new, s), func(a, b btfType) {
		partner[a.off], size[a.off] = b.off, int64(min(a.size, b.size))
	})
	var plan predict.Plan
	g := region{start: t.off, end: t.off + t.size, kind: predictTypes, a: t.split[0], d: int64(t.split[1]), maps: [4]int{0, 1, 2, 3}}
	if err := plan.Parse(stream([]shiftMap{{end: 1}, {end: 1}, {end: 1}, {end: 1}}, []region{g}), nil); err != nil {
		return
	}
	k := 0
	plan.Scan(r.old.data, 0, predict.Run{Start: int(t.off), End: int(t.off + t.size), Old: t.off}, func(f predict.Sight) {
		for k+1 < len(x) && x[k+1].off <= int64(f.Pos) {
			k++
		}
		to, ok := partner[x[k].off]
		at := int64(f.Pos) - x[k].off
		if !ok || at+4 > size[x[k].off] || f.Map > 1 || to+at+4 > int64(len(r.new.data)) {
			return
		}
		v := int64(binary.LittleEndian.Uint32(r.new.data[to+at:]))
		if uint64(v) >= s.split[f.Map] {
			return // the kernel has lost it, and the module has its own now
		}
		if f.Map == 0 {
			types.add(f.At, v-f.Value)
		} else {
			names.add(f.At, v-f.Value)
		}
	})
}

// align pairs entries of two lists that say the same, in order; where they
// part, it skips as little as possible to where three agree again.
func align(x, y []btfType, old, new []byte, pair func(a, b btfType)) {
	same := func(i, k int) bool {
		a, b := x[i], y[k]
		return a.size == b.size && a.off+int64(a.size) <= int64(len(old)) && b.off+int64(b.size) <= int64(len(new)) &&
			bytes.Equal(old[a.off:a.off+int64(a.size)], new[b.off:b.off+int64(b.size)])
	}
	const look = 48
	for i, k := 0, 0; i < len(x) && k < len(y); {
		if same(i, k) {
			pair(x[i], y[k])
			i, k = i+1, k+1
			continue
		}
		found := false
		for n := 1; n < 2*look && !found; n++ {
			for di := max(0, n-look); di <= min(n, look) && !found; di++ {
				dk := n - di
				found = true
				for j := range 3 {
					if i+di+j >= len(x) || k+dk+j >= len(y) || !same(i+di+j, k+dk+j) {
						found = false
						break
					}
				}
				if found {
					i, k = i+di, k+dk
				}
			}
		}
		if !found {
			i, k = i+1, k+1
		}
	}
}
