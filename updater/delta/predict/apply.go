package predict

import "encoding/binary"

// A Run is plain[Start:End], copied from the old image at offset Old on.
type Run struct {
	Start, End int
	Old        int64
}

// Sight is a field that was found, for an encoder to learn from.
type Sight struct {
	Pos    int // in plain
	Width  int // in bytes; 0: the instructions at Pos and, if it is not -1, at Low
	Low    int // the instruction that completes the address, for ADRP and MOVW; else -1
	Region int
	Map    int
	At     uint64 // what is looked up
	Value  int64  // what the field holds
	Moved  int64  // a field that is as predicted grows by shift - Moved
	Negate bool   // … or by Moved - shift
}

// Apply rewrites the fields of one run of a frame; at is the offset of plain[0] in the new
// image. Only fields that lie wholly inside the run are looked at, and only bytes of the run are changed.
// The run should be as long as possible: fields across the border of two runs are left as they are.
func (p *Plan) Apply(plain []byte, at int64, r Run) {
	p.walk(plain, at, r, nil)
}

// Scan shows the fields that Apply would look at, and rewrites none.
func (p *Plan) Scan(plain []byte, at int64, r Run, see func(Sight)) {
	p.walk(plain, at, r, see)
}

func (p *Plan) walk(plain []byte, at int64, r Run, see func(Sight)) {
	if r.Start < 0 || r.End > len(plain) || r.Start >= r.End {
		return
	}
	lo, hi := at+int64(r.Start), at+int64(r.End)
	i, past := 0, len(p.regions)
	for i < past { // the first region that ends behind lo
		if mid := int(uint(i+past) / 2); p.regions[mid].end > lo {
			past = mid
		} else {
			i = mid + 1
		}
	}
	for ; i < len(p.regions) && p.regions[i].start < hi; i++ {
		g := &p.regions[i]
		start, end := max(lo, g.start), min(hi, g.end)
		if start >= end {
			continue
		}
		w := work{
			p: p, g: g, b: plain[start-at : end-at],
			addr: uint64(start-lo+r.Old) + g.a,
			self: lo - r.Old - g.d,
			see:  see, from: int(start - at), region: i,
		}
		switch g.kind {
		case KindX86, KindX86Fixed:
			w.x86()
		case KindARM64:
			w.arm64()
		case KindARM:
			w.arm()
		case KindThumb:
			w.thumb()
		case KindTypes:
			if start == g.start {
				w.types()
			}
		case KindMembers:
			if start == g.start {
				for i := 0; i < len(w.b); {
					i = w.references("st.", i)
				}
			}
		case KindFrames:
			if start == g.start {
				w.frames()
			}
		default:
			w.words(int(start - g.start))
		}
	}
}

// work is one region inside one run.
type work struct {
	p    *Plan
	g    *region
	b    []byte // the bytes; nothing outside is touched
	addr uint64 // the old address of b[0]
	self int64  // how much further an address in b is in the new file

	see    func(Sight)
	from   int
	region int
}

// number reads width bytes at i as a signed number. The caller checked the bounds.
func (w *work) number(i int, width uint8) int64 {
	switch width {
	case 2:
		return int64(int16(binary.LittleEndian.Uint16(w.b[i:])))
	case 4:
		return int64(int32(binary.LittleEndian.Uint32(w.b[i:])))
	}
	return int64(binary.LittleEndian.Uint64(w.b[i:]))
}

func (w *work) put(i int, width uint8, v int64) {
	switch width {
	case 2:
		binary.LittleEndian.PutUint16(w.b[i:], uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(w.b[i:], uint32(v))
	default:
		binary.LittleEndian.PutUint64(w.b[i:], uint64(v))
	}
}

// saw shows a field, given by its place in b and its slot.
func (w *work) saw(s Sight) {
	s.Pos += w.from
	if s.Low >= 0 {
		s.Low += w.from
	}
	s.Region, s.Map = w.region, int(w.g.maps[s.Map])
	w.see(s)
}

// field rewrites the number v at i, which stands for the address t.
func (w *work) field(slot uint8, i int, width uint8, v int64, t uint64, moved int64) {
	if w.see != nil {
		w.saw(Sight{Pos: i, Width: int(width), Low: -1, Map: int(slot), At: t, Value: v, Moved: moved})
		return
	}
	if shift, ok := w.p.shift(w.g.maps[slot], t); ok && shift != moved {
		w.put(i, width, v+shift-moved)
	}
}

// relative rewrites the 32-bit number at i, which counts from base bytes behind the field.
func (w *work) relative(i, base int) {
	v := w.number(i, 4)
	w.field(0, i, 4, v, w.addr+uint64(i+base)+uint64(v), w.self)
}

// absolute rewrites the 32-bit number at i if it is an address.
func (w *work) absolute(i int) {
	v := w.number(i, 4)
	w.field(0, i, 4, v, uint64(v), 0)
}

// words rewrites a table of equal entries; b begins skip bytes behind the beginning of an entry.
func (w *work) words(skip int) {
	l := &w.p.layouts[w.g.kind-KindWords]
	stride := int(l.stride)
	for at := -(skip % stride); at < len(w.b); at += stride {
		for k := range l.fields[:l.count] {
			f := &l.fields[k]
			i := at + int(f.offset)
			if i < 0 || i+int(f.width) > len(w.b) {
				continue
			}
			v := w.number(i, f.width)
			t, moved := uint64(v)+uint64(int64(f.add)), int64(0)
			switch f.mode {
			case modeBase:
				t += w.g.a
				moved = -w.g.d
			case modeSelf:
				t += w.addr + uint64(i)
				moved = w.self
			case modeKeyed:
				key := at + int(f.key)
				if key < 0 || key+int(f.keyWidth) > len(w.b) {
					continue
				}
				t += uint64(w.number(key, f.keyWidth)) << 32
			}
			w.field(f.slot, i, f.width, v, t, moved)
		}
	}
}
