package elfplan

import (
	"encoding/binary"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

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
