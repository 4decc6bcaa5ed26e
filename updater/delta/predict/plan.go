// Package predict rewrites address fields in bytes that were copied from an
// old image to what they have most likely become in the new one.
//
// When a program is built again with a small change, most of its code stays as it is but
// moves, and every call, every reference to data, every relocation, symbol and table entry that
// says where something is changes with it. Those few bytes, all over the file, cost a delta
// more than the change itself. A plan says for a frame of the new image where such fields
// lie, and by how much addresses of the old file are shifted in the new one; both are found on a desk
// (package elfplan), so that nothing here knows a file format, and nothing is searched for.
//
// A prediction is only that: the delta carries the difference between predicted and true
// bytes. What a plan gets wrong costs bytes, never correctness. FORMAT.md beside this
// file gives the bytes of a plan and the exact rewriting, which both sides must do alike.
//
// Offsets and lengths are in bytes. Addresses are numbers of any kind that
// shift piecewise by constants: virtual addresses, indexes of symbols, identities of types.
package predict

import (
	"errors"
	"math"
	"slices"
)

// Limits of a plan. All tables of a Plan together take at most 288 KiB, those
// of the Maps that frames have in common at most 512 KiB.
const (
	MaxSteps   = 8192
	MaxCommon  = 32768 // steps of common maps
	MaxMaps    = 1024
	MaxLayouts = 32
	MaxFields  = 8 // of a layout
	MaxRegions = 3072

	// MaxOffset is the end of the largest image.
	MaxOffset = 1 << 40
)

// ErrPlan means that a stream is no plan, or is beyond the limits. The delta is of no use.
var ErrPlan = errors.New("not a prediction plan")

// A Plan says what to rewrite in one frame. Its zero value rewrites nothing.
// A Plan is for one goroutine at a time.
type Plan struct {
	own     Maps
	common  *Maps
	layouts []layout
	regions []region
}

// Maps say how addresses shift. Those of a Plan are its own; others may be
// common to all frames of a delta.
type Maps struct {
	steps []step
	maps  []shiftMap
	last  int // the step that was looked up last, as the next is often the same
}

// step is where the shift of addresses changes.
type step struct {
	at    uint64
	shift int64
}

// shiftMap is steps[first:past]; addresses from end on, and those before
// the first step, are no addresses. In an exact map, only those of steps are.
type shiftMap struct {
	first, past int32
	exact       bool
	end         uint64
}

// region is a stretch of the new image whose fields are of one kind.
type region struct {
	start, end int64
	a          uint64 // what makes a value, or an offset of the old image, an address
	d          int64  // how much that is less for the new image
	kind       uint8
	maps       [slots]uint16
}

const slots = 4 // maps that a region may use

// Kinds of regions. Those from KindWords on are words of layout kind-KindWords.
const (
	KindX86      = iota // x86-64 instructions
	KindARM64           // A64 instructions
	KindARM             // A32 instructions
	KindThumb           // T32 instructions
	KindTypes           // the type section of BTF, from a type on
	KindMembers         // members of a BTF structure
	KindFrames          // entries of .eh_frame, from an entry on
	KindX86Fixed        // as KindX86, of a program at fixed addresses of 32 bits
	KindWords
)

// layout is how a table of equal entries looks.
type layout struct {
	stride int32
	flags  uint8
	slots  uint8
	count  uint8
	fields [MaxFields]field
}

// Flags of a layout.
const (
	layoutBase  = 1 << iota // regions have a and d
	layoutIndex             // a is given in units of 2^32
)

type field struct {
	offset   uint16
	width    uint8 // 2, 4 or 8 bytes, a signed number
	mode     uint8
	slot     uint8
	key      uint16 // where the key lies in the entry
	keyWidth uint8
	add      int8 // what to add to the value to look it up
}

// Modes of fields: what has to be added to the value to make it an address.
const (
	modePlain = iota // nothing
	modeBase         // a of the region
	modeSelf         // the field's own address
	modeKeyed        // another field of the entry, times 2^32
)

// Parse reads a plan that may use the common maps as well, which can be nil. It
// replaces what p was and uses its memory again. A stream that is none, or is beyond
// the limits, is ErrPlan.
func (p *Plan) Parse(stream []byte, common *Maps) error {
	if common == nil {
		common = &noMaps
	}
	p.common = common
	p.layouts, p.regions = p.layouts[:0], p.regions[:0]
	r := reader{b: stream}
	p.own.read(&r, MaxMaps, MaxSteps)
	p.readLayouts(&r)
	p.readRegions(&r)
	r.end()
	if r.err != nil {
		p.regions = p.regions[:0]
	}
	return r.err
}

var noMaps Maps

// Parse reads maps that stand alone, in place of what m was. Errors are as of Plan.Parse.
func (m *Maps) Parse(stream []byte) error {
	r := reader{b: stream}
	m.read(&r, MaxMaps, MaxCommon)
	r.end()
	if r.err != nil {
		m.maps = m.maps[:0]
	}
	return r.err
}

func (m *Maps) read(r *reader, maxMaps, maxSteps int) {
	m.steps, m.maps, m.last = m.steps[:0], m.maps[:0], 0
	n := r.count(maxMaps)
	m.maps = slices.Grow(m.maps, n)
	total := 0
	for range n {
		c := r.count(2*(maxSteps-total) + 1)
		s := shiftMap{first: int32(total), exact: c&1 == 1}
		total += c / 2
		s.past = int32(total)
		m.maps = append(m.maps, s)
	}
	m.steps = slices.Grow(m.steps, total)[:total]
	for i := range m.maps {
		s := &m.maps[i]
		at := uint64(0)
		for k := s.first; k < s.past; k++ {
			at = r.after(at, k > s.first)
			m.steps[k].at = at
		}
		s.end = r.after(at, true)
	}
	for _, s := range m.maps {
		shift := int64(0)
		for k := s.first; k < s.past; k++ {
			// What has no neighbours is as good as random.
			if s.exact {
				shift = r.word()
			} else {
				shift += r.signed()
			}
			m.steps[k].shift = shift
		}
	}
}

func (p *Plan) readLayouts(r *reader) {
	n := r.count(MaxLayouts)
	p.layouts = slices.Grow(p.layouts, n)
	for range n {
		l := layout{flags: r.byte(), stride: int32(r.count(math.MaxUint16)), count: uint8(r.count(MaxFields))}
		if l.stride == 0 || l.flags&^(layoutBase|layoutIndex) != 0 {
			r.fail("layout")
		}
		for i := range l.fields[:l.count] {
			f := &l.fields[i]
			f.offset, f.width, f.mode, f.slot = uint16(r.count(math.MaxUint16)), r.byte(), r.byte(), r.byte()
			f.add = int8(r.byte())
			if f.mode == modeKeyed {
				f.key, f.keyWidth = uint16(r.count(math.MaxUint16)), r.byte()
			} else {
				f.keyWidth = f.width
			}
			if !wide(f.width) || !wide(f.keyWidth) || f.mode > modeKeyed || f.slot >= slots ||
				int32(f.offset)+int32(f.width) > l.stride || int32(f.key)+int32(f.keyWidth) > l.stride {
				r.fail("field")
			}
			l.slots = max(l.slots, f.slot+1)
		}
		p.layouts = append(p.layouts, l)
	}
}

func wide(n uint8) bool { return n == 2 || n == 4 || n == 8 }

// uses returns how many maps a region of a kind has, and whether a and d are given.
func (p *Plan) uses(kind uint8) (maps int, base, index bool) {
	switch kind {
	case KindTypes, KindMembers:
		return 4, true, false
	case KindX86, KindARM64, KindARM, KindThumb, KindFrames, KindX86Fixed:
		return 1, true, false
	}
	l := &p.layouts[kind-KindWords]
	return int(l.slots), l.flags&layoutBase != 0, l.flags&layoutIndex != 0
}

func (p *Plan) readRegions(r *reader) {
	n := r.count(MaxRegions)
	p.regions = slices.Grow(p.regions, n)[:n]
	for i := range p.regions {
		kind := r.byte()
		if int(kind) >= KindWords+len(p.layouts) {
			r.fail("kind")
			p.regions = p.regions[:0]
			return
		}
		p.regions[i] = region{kind: kind}
	}
	end := int64(0)
	for i := range p.regions {
		g := &p.regions[i]
		g.start = end + r.offset()
		g.end = g.start
		end = g.end
		if g.start > MaxOffset {
			r.fail("offset")
			return
		}
		// The end goes with the start, so that the next gap counts from it.
		g.end += r.offset()
		end = g.end
		if end > MaxOffset {
			r.fail("offset")
			return
		}
	}
	var a uint64
	var d int64
	for i := range p.regions {
		g := &p.regions[i]
		if _, base, index := p.uses(g.kind); index {
			g.a = r.uvarint() << 32
		} else if base {
			a += uint64(r.signed())
			g.a = a
		}
	}
	for i := range p.regions {
		g := &p.regions[i]
		if _, base, _ := p.uses(g.kind); base {
			d += r.signed()
			g.d = d
		}
	}
	var last [slots]uint16
	for i := range p.regions {
		g := &p.regions[i]
		n, _, _ := p.uses(g.kind)
		for k := range n {
			m := int64(last[k]) + r.signed()
			if m < 0 || m >= int64(len(p.common.maps)+len(p.own.maps)) {
				r.fail("map")
				return
			}
			g.maps[k], last[k] = uint16(m), uint16(m)
		}
	}
}

// shift looks up how far an address moves; false: it is none. Common maps have the
// first numbers.
func (p *Plan) shift(m uint16, t uint64) (int64, bool) {
	if n := len(p.common.maps); int(m) >= n {
		return p.own.shift(int(m)-n, t)
	}
	return p.common.shift(int(m), t)
}

func (m *Maps) shift(i int, t uint64) (int64, bool) {
	s := &m.maps[i]
	lo, hi := int(s.first), int(s.past)
	if lo == hi || t < m.steps[lo].at || t >= s.end {
		return 0, false
	}
	if k := m.last; k >= lo && k < hi && t >= m.steps[k].at && (k+1 == hi || t < m.steps[k+1].at) {
		lo = k
	} else {
		for hi-lo > 1 {
			if mid := int(uint(lo+hi) / 2); t >= m.steps[mid].at {
				lo = mid
			} else {
				hi = mid
			}
		}
		m.last = lo
	}
	return m.steps[lo].shift, !s.exact || m.steps[lo].at == t
}
