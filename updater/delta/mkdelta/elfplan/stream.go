package elfplan

import (
	"encoding/binary"
	"unique"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

// Modes of fields, as in predict/FORMAT.md.
const (
	plain = iota
	based
	self
	keyed
)

const (
	flagBase  = 1
	flagIndex = 2
)

// layout of a table; the same value is the same layout.
type layout struct {
	stride int
	flags  uint8
	fields [6]field
	count  int
}

type field struct {
	offset, width, mode, slot int
	add                       int8
	key, keyWidth             int
}

// table returns a layout as a section holds it: thousands of sections have one of a few.
func table(stride int, flags uint8, fields ...field) unique.Handle[layout] {
	l := layout{stride: stride, flags: flags, count: len(fields)}
	copy(l.fields[:], fields)
	return unique.Make(l)
}

func (l *layout) slots() int {
	n := 0
	for _, f := range l.fields[:l.count] {
		n = max(n, f.slot+1)
	}
	return n
}

// region is one of the plan; words if layout has a stride.
type region struct {
	start, end int64 // in the new image
	kind       int
	layout     layout
	a          uint64
	d          int64
	maps       [4]int
}

func (g *region) uses() (maps int, base, index bool) {
	if g.kind < predict.KindWords {
		if g.kind == predict.KindTypes || g.kind == predict.KindMembers {
			return 4, true, false
		}
		return 1, true, false
	}
	return g.layout.slots(), g.layout.flags&flagBase != 0, g.layout.flags&flagIndex != 0
}

type step struct {
	at    uint64
	shift int64
}

type shiftMap struct {
	steps []step
	exact bool // only the addresses of steps count
	end   uint64
}

func zigzag(b []byte, v int64) []byte { return binary.AppendUvarint(b, uint64(v<<1)^uint64(v>>63)) }

// appendMaps writes maps.
func appendMaps(b []byte, maps []shiftMap) []byte {
	b = binary.AppendUvarint(b, uint64(len(maps)))
	for _, m := range maps {
		n := uint64(len(m.steps)) << 1
		if m.exact {
			n |= 1
		}
		b = binary.AppendUvarint(b, n)
	}
	for _, m := range maps {
		last := uint64(0)
		for _, s := range m.steps {
			b = binary.AppendUvarint(b, s.at-last)
			last = s.at
		}
		b = binary.AppendUvarint(b, m.end-last)
	}
	for _, m := range maps {
		last := int64(0)
		for _, s := range m.steps {
			if m.exact {
				b = binary.LittleEndian.AppendUint32(b, uint32(s.shift))
			} else {
				b = zigzag(b, s.shift-last)
				last = s.shift
			}
		}
	}
	return b
}

// stream writes the plan. The numbers of maps in regions count from those
// that all frames have in common.
func stream(maps []shiftMap, regions []region) []byte {
	b := appendMaps(nil, maps)
	var layouts []layout
	number := make(map[layout]int)
	for _, g := range regions {
		if g.kind < predict.KindWords {
			continue
		}
		if _, ok := number[g.layout]; !ok {
			number[g.layout] = len(layouts)
			layouts = append(layouts, g.layout)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(layouts)))
	for _, l := range layouts {
		b = append(b, l.flags)
		b = binary.AppendUvarint(b, uint64(l.stride))
		b = binary.AppendUvarint(b, uint64(l.count))
		for _, f := range l.fields[:l.count] {
			b = binary.AppendUvarint(b, uint64(f.offset))
			b = append(b, byte(f.width), byte(f.mode), byte(f.slot), byte(f.add))
			if f.mode == keyed {
				b = binary.AppendUvarint(b, uint64(f.key))
				b = append(b, byte(f.keyWidth))
			}
		}
	}
	b = binary.AppendUvarint(b, uint64(len(regions)))
	for _, g := range regions {
		if g.kind >= predict.KindWords {
			b = append(b, byte(predict.KindWords+number[g.layout]))
		} else {
			b = append(b, byte(g.kind))
		}
	}
	end := int64(0)
	for _, g := range regions {
		b = binary.AppendUvarint(b, uint64(g.start-end))
		b = binary.AppendUvarint(b, uint64(g.end-g.start))
		end = g.end
	}
	var a uint64
	for _, g := range regions {
		if _, base, index := g.uses(); index {
			b = binary.AppendUvarint(b, g.a>>32)
		} else if base {
			b = zigzag(b, int64(g.a-a))
			a = g.a
		}
	}
	var d int64
	for _, g := range regions {
		if _, base, _ := g.uses(); base {
			b = zigzag(b, g.d-d)
			d = g.d
		}
	}
	var last [4]int
	for _, g := range regions {
		n, _, _ := g.uses()
		for k := range n {
			b = zigzag(b, int64(g.maps[k]-last[k]))
			last[k] = g.maps[k]
		}
	}
	return b
}
