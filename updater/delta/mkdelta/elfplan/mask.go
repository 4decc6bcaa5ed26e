package elfplan

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"hash/fnv"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

// Mask returns a file for a matcher to look at in place of data: of the same
// length, with every address field replaced by a digest of what it points to, as far as that is
// known. Where two files say the same of the same things, their masks agree, wherever those
// things have moved. What is no ELF file is returned as it is.
func Mask(data []byte) []byte {
	f := parse(data)
	if f == nil {
		return data
	}
	out := slices.Clone(data)
	type mark struct {
		pos, width int
		at         uint64
	}
	var marks []mark
	for i := range f.sections {
		s := &f.sections[i]
		if f.rel && s.kind == predictWords {
			f.maskTable(s, out)
			continue
		}
		if s.kind == predictTypes {
			f.maskTypes(s, out)
			continue
		}
		kind := s.kind
		f.scan(s, out, func(s predict.Sight) {
			if s.Width == 8 && s.Value == 0 || !f.rel && !f.holds(s.At) {
				return // a number, or text
			}
			if kind == predictThumb && s.Width == 0 {
				marks = append(marks, mark{s.Pos, 1, s.At})
				return
			}
			marks = append(marks, mark{s.Pos, s.Width, s.At})
			if s.Low >= 0 {
				marks = append(marks, mark{s.Low, 0, s.At})
			}
		})
	}
	// All fields are blanked before any is filled, so that a digest of code does
	// not depend on addresses in it.
	for _, m := range marks {
		if m.width == 1 {
			clear(out[m.pos:][:4])
		} else if m.width > 0 {
			clear(out[m.pos:][:m.width])
		} else {
			out[m.pos] = 0
			out[m.pos+1] = 0
			out[m.pos+2] &= 0x80
		}
	}
	blank := out
	if len(marks) > 0 {
		blank = slices.Clone(out)
	}
	for _, m := range marks {
		h := f.digest(blank, m.at)
		switch m.width {
		case 0:
			out[m.pos], out[m.pos+1] = byte(h), byte(h>>8)
		case 1, 4:
			binary.LittleEndian.PutUint32(out[m.pos:], uint32(h))
		case 8:
			binary.LittleEndian.PutUint64(out[m.pos:], h)
		}
	}
	return out
}

// digest of what lies at an address: up to 16 bytes or a string.
func (f *file) digest(b []byte, addr uint64) uint64 {
	for _, s := range f.elf.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Type == elf.SHT_NOBITS || addr < s.Addr || addr-s.Addr >= s.Size {
			continue
		}
		off := s.Offset + addr - s.Addr
		if off >= uint64(len(b)) {
			return 1
		}
		t := b[off:min(off+16, uint64(len(b)))]
		if s.Flags&elf.SHF_STRINGS != 0 {
			t = b[off:min(off+64, uint64(len(b)))]
			if i := bytes.IndexByte(t, 0); i >= 0 {
				t = t[:i]
			}
		}
		return sum(t)
	}
	return 1
}

func sum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}

// maskTable masks relocations and symbols of a relocatable file.
func (f *file) maskTable(s *section, out []byte) {
	le := binary.LittleEndian
	name := func(i int) []byte { // of symbol number i
		if i < 1 || i > len(f.symbols) {
			return nil
		}
		y := f.symbols[i-1]
		if elf.ST_TYPE(y.Info) == elf.STT_SECTION && int(y.Section) < len(f.elf.Sections) {
			return []byte(f.elf.Sections[y.Section].Name)
		}
		return []byte(y.Name)
	}
	if s.maps[0] == checksums {
		if s.layout.Value().stride != 64 {
			return
		}
		for off := s.off; off+64 <= s.off+s.size; off += 64 {
			le.PutUint32(out[off:], uint32(sum(out[off+8:off+64])))
		}
		return
	}
	rela := s.maps[1] == "symbol"
	for off, i := s.off, 0; off+24 <= s.off+s.size; off, i = off+24, i+1 {
		b := out[off:][:24]
		if !rela {
			h := sum(name(i))
			le.PutUint32(b, uint32(h))
			le.PutUint64(b[8:], h)
			continue
		}
		n := int(le.Uint32(b[12:]))
		h := (sum(name(n)) + uint64(le.Uint32(b[8:]))) * 0x9E3779B97F4A7C15
		var content uint64
		if n >= 1 && n <= len(f.symbols) && elf.ST_TYPE(f.symbols[n-1].Info) == elf.STT_SECTION {
			if k := int(f.symbols[n-1].Section); k < len(f.elf.Sections) {
				content = f.place(f.elf.Sections[k], le.Uint64(b[16:]), le.Uint32(b[8:]))
			}
		} else {
			content = le.Uint64(b[16:])
		}
		// What code does may have changed a little where it stands: two thirds of
		// the entry say only what kind of reference it is.
		le.PutUint64(b, h)
		le.PutUint64(b[8:], h)
		le.PutUint64(b[16:], h^content)
	}
}

// place digests what a relocation refers to in a section.
func (f *file) place(s *elf.Section, addend uint64, kind uint32) uint64 {
	if f.elf.Machine == elf.EM_X86_64 && (kind == 2 || kind == 4) {
		addend += 4
	}
	if s.Type == elf.SHT_NOBITS || addend >= s.Size || s.Offset+s.Size > uint64(len(f.data)) {
		return 0
	}
	t := f.data[s.Offset+addend : s.Offset+min(s.Size, addend+16)]
	if s.Flags&elf.SHF_STRINGS != 0 {
		if i := bytes.IndexByte(t, 0); i >= 0 {
			t = t[:i]
		}
	}
	return sum(t)
}

// maskTypes masks what names and types BTF refers to.
func (f *file) maskTypes(s *section, out []byte) {
	le := binary.LittleEndian
	name := func(b []byte) {
		h := uint32(0x11111111)
		if off := uint64(le.Uint32(b)); off >= s.split[1] && off-s.split[1] < uint64(len(s.text)) {
			t := s.text[off-s.split[1]:]
			h = uint32(sum(t[:max(0, bytes.IndexByte(t, 0))]))
		}
		le.PutUint32(b, h)
	}
	for _, t := range f.types(s) {
		b := out[t.off:min(t.off+int64(t.size), s.off+s.size)]
		name(b)
		names := func(every int) {
			for i := 12; i+4 <= len(b); i += every {
				name(b[i:])
			}
		}
		clearAt := func(from, every, at int) {
			for i := from + at; i+4 <= len(b); i += every {
				le.PutUint32(b[i:], 0x22222222)
			}
		}
		switch t.kind {
		case 2, 8, 9, 10, 11, 12, 14, 17, 18:
			le.PutUint32(b[8:], 0x22222222)
		case 3:
			clearAt(12, 12, 0)
			clearAt(12, 12, 4)
		case 4, 5, 15:
			if t.kind == 15 {
				clearAt(12, 12, 0)
				break
			}
			names(12)
			clearAt(12, 12, 4)
		case 6:
			names(8)
		case 13:
			le.PutUint32(b[8:], 0x22222222)
			names(8)
			clearAt(12, 8, 4)
		case 19:
			names(12)
		}
	}
}

// scan shows the fields of a section of the file as it is.
func (f *file) scan(s *section, data []byte, see func(predict.Sight)) {
	g := region{start: s.off, end: s.off + s.size, kind: s.kind, layout: s.layout.Value(), a: s.a, maps: [4]int{0, 1, 2, 3}}
	if s.placed() {
		g.a = s.addr - uint64(s.off)
	}
	var plan predict.Plan
	if err := plan.Parse(stream([]shiftMap{{end: 1}, {end: 1}, {end: 1}, {end: 1}}, []region{g}), nil); err != nil {
		return // a section beyond the limits of images
	}
	plan.Scan(data, 0, predict.Run{Start: 0, End: len(data)}, see)
}
