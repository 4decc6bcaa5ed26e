package elfplan

import (
	"bytes"
	"encoding/binary"
)

var btfEach = [20]int{4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
var btfOnce = [20]int{1: 4, 3: 12, 14: 4, 17: 4}

// btfType is one type of a type section.
type btfType struct {
	off  int64 // in the file
	size int
	kind int
}

// btf narrows a section to its types and finds out from which numbers on
// types and names are the module's own: the module does not say it.
func (f *file) btf(s *section) bool {
	b := f.data[s.off : s.off+s.size]
	if len(b) < 24 || binary.LittleEndian.Uint16(b) != 0xeb9f {
		return false
	}
	le := binary.LittleEndian
	head, typeOff, typeLen, strOff, strLen := int64(le.Uint32(b[4:])), int64(le.Uint32(b[8:])), int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:])), int64(le.Uint32(b[20:]))
	if head+typeOff+typeLen > int64(len(b)) || head+strOff+strLen > int64(len(b)) || strLen < 2 {
		return false
	}
	text := b[head+strOff:][:strLen]
	s.off, s.size = s.off+head+typeOff, typeLen
	s.kind, s.walk, s.maps = predictTypes, true, [4]string{kernelTypes, kernelNames, "own types", "own names"}
	s.text = text
	types := f.types(s)
	s.starts = make([]uint32, len(types))
	for i, t := range types {
		s.starts[i] = uint32(t.off - s.off)
	}
	// The last name is the highest, and somebody uses it.
	lastName := uint64(bytes.LastIndexByte(text[:len(text)-1], 0) + 1)
	var top uint64
	base := make(map[uint64]int)
	for i, t := range types {
		rec := f.data[t.off:]
		top = max(top, uint64(le.Uint32(rec)))
		if t.kind == 12 && i > 0 && types[i-1].kind == 13 { // a function mostly follows its prototype
			base[uint64(le.Uint32(rec[8:]))-uint64(i-1)]++
		}
	}
	if top >= lastName {
		s.split[1] = top - lastName
	}
	most := 0
	for id, n := range base {
		if n > most || n == most && id < s.split[0] {
			most, s.split[0] = n, id
		}
	}
	return true
}

// types walks over a type section.
func (f *file) types(s *section) (types []btfType) {
	for off := s.off; off+12 <= s.off+s.size; {
		t := f.typeAt(s, off)
		types = append(types, t)
		off += int64(t.size)
	}
	return types
}

func (f *file) typeAt(s *section, off int64) btfType {
	info := binary.LittleEndian.Uint32(f.data[off+4:])
	t := btfType{off: off, kind: int(info >> 24 & 0x1f), size: 12}
	if t.kind < 20 {
		t.size += btfOnce[t.kind] + int(info&0xffff)*btfEach[t.kind]
	}
	return t
}

// frameEntries returns where entries of .eh_frame begin.
func (f *file) frameEntries(s *section) (starts []uint32) {
	for off := int64(0); off+8 <= s.size; {
		size := int64(binary.LittleEndian.Uint32(f.data[s.off+off:]))
		if size < 4 || size > s.size {
			break
		}
		starts = append(starts, uint32(off))
		off += size + 4
	}
	return starts
}
