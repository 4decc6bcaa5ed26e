package elfplan

import (
	"bytes"
	"debug/elf"
	"slices"
	"strings"
	"unique"
)

// section is a part of a file whose fields are of one kind.
type section struct {
	name   string
	off    int64 // in the file
	size   int64
	addr   uint64 // of its first byte, in the space of its map
	kind   int
	layout unique.Handle[layout]
	maps   [4]string // names of the maps
	a      uint64    // for fields that count from a base
	walk   bool      // regions begin where an entry does, which have no fixed size:
	starts []uint32  // where, from off on
	split  [2]uint64 // BTF: the first own type, the first own name
	text   []byte    // BTF: the own names
}

// placed says whether fields count from where they are.
func (s *section) placed() bool {
	if s.kind < predictWords {
		return true
	}
	l := s.layout.Value()
	return slices.ContainsFunc(l.fields[:l.count], func(f field) bool { return f.mode == self })
}

// file is what is known of a file.
type file struct {
	data     []byte
	elf      *elf.File
	sections []section
	rel      bool   // relocatable: addresses are section numbers and offsets
	spans    []span // of addresses that a linked file has
	symbols  []elf.Symbol
	number   []uint64 // by section: its number in addresses
}

// parse returns nil for what is no ELF file of a kind that is known.
func parse(data []byte) *file {
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return nil
	}
	e, err := elf.NewFile(bytes.NewReader(data))
	if err != nil || e.Data != elf.ELFDATA2LSB {
		return nil
	}
	f := &file{data: data, elf: e, rel: e.Type == elf.ET_REL}
	if f.rel {
		f.numberSections()
	}
	for i, s := range e.Sections {
		if !f.rel && s.Flags&elf.SHF_ALLOC != 0 && s.Addr != 0 {
			f.spans = append(f.spans, span{s.Addr, s.Addr + s.Size})
		}
		if s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL || s.Size == 0 || s.Size != s.FileSize || s.Flags&elf.SHF_COMPRESSED != 0 ||
			s.Offset+s.Size < s.Offset || s.Offset+s.Size > uint64(len(data)) {
			continue
		}
		f.add(i, s)
	}
	if f.kernel() {
		f.relocs()
	}
	return f
}

// thumb says whether most functions of an ARM file that have names are T32 code.
func (f *file) thumb() bool {
	symbols, _ := f.elf.DynamicSymbols()
	n := int(f.elf.Entry&1)*2 - 1
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Value != 0 {
			n += int(s.Value&1)*2 - 1
		}
	}
	return n > 0
}

// span is a range of addresses with its end.
type span struct{ start, end uint64 }

// holds says whether an address is one of a section of a linked file, or the end of one.
func (f *file) holds(addr uint64) bool {
	return slices.ContainsFunc(f.spans, func(s span) bool { return addr >= s.start && addr <= s.end })
}

// numberSections gives every section of a relocatable file the number of
// the symbol that stands for it, as relocations refer to that.
func (f *file) numberSections() {
	f.number = make([]uint64, len(f.elf.Sections))
	for i := range f.number {
		f.number[i] = uint64(i)<<32 | 1<<62
	}
	f.symbols, _ = f.elf.Symbols()
	for i, s := range f.symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_SECTION && int(s.Section) < len(f.number) {
			f.number[s.Section] = uint64(i+1) << 32
		}
	}
}

// add notes what is to be predicted in a section.
func (f *file) add(i int, s *elf.Section) {
	out := section{name: s.Name, off: int64(s.Offset), size: int64(s.Size), addr: s.Addr, kind: predictWords, layout: table(0, 0)}
	if f.rel {
		out.addr = f.number[i]
	}
	addr := [4]string{"addr"}
	is64 := f.elf.Class == elf.ELFCLASS64
	word := 4
	if is64 {
		word = 8
	}
	if f.kernel() {
		if layout, ok := kernelTable(s.Name, s.Size); ok {
			out.maps, out.layout = addr, layout
			f.sections = append(f.sections, out)
			return
		}
	}
	switch {
	case s.Flags&elf.SHF_EXECINSTR != 0 && s.Type == elf.SHT_PROGBITS:
		out.maps = addr
		switch f.elf.Machine {
		case elf.EM_X86_64:
			out.kind = predictX86
			if f.elf.Type == elf.ET_EXEC {
				out.kind = predictX86Fixed
			}
		case elf.EM_AARCH64:
			out.kind = predictARM64
		case elf.EM_ARM:
			out.kind = predictARM
			if f.thumb() {
				out.kind = predictThumb
			}
		default:
			return
		}
	case s.Type == elf.SHT_RELA && is64 && f.rel:
		if int(s.Info) >= len(f.number) {
			return
		}
		out.maps, out.a = [4]string{"addr", "symbol"}, f.number[s.Info]
		out.layout = table(24, flagBase|flagIndex,
			field{offset: 16, width: 8, mode: keyed, key: 12, keyWidth: 4, add: 4},
			field{offset: 0, width: 8, mode: based},
			field{offset: 12, width: 4, slot: 1})
	case s.Type == elf.SHT_RELA && is64:
		out.maps = [4]string{"addr", "dynsym"}
		out.layout = table(24, 0, field{offset: 16, width: 8}, field{offset: 0, width: 8}, field{offset: 12, width: 4, slot: 1})
	case s.Type == elf.SHT_REL && !is64 && !f.rel:
		out.maps = [4]string{"addr", "info"}
		out.layout = table(8, 0, field{offset: 0, width: 4}, field{offset: 4, width: 4, slot: 1})
	case s.Type == elf.SHT_SYMTAB && is64 && f.rel:
		out.maps = [4]string{"value", "strtab"}
		out.layout = table(24, 0, field{offset: 8, width: 8, mode: keyed, key: 6, keyWidth: 2}, field{offset: 0, width: 4, slot: 1})
	case (s.Type == elf.SHT_SYMTAB || s.Type == elf.SHT_DYNSYM) && is64:
		out.maps = [4]string{"addr", s.Name}
		out.layout = table(24, 0, field{offset: 8, width: 8}, field{offset: 0, width: 4, slot: 1})
	case (s.Type == elf.SHT_SYMTAB || s.Type == elf.SHT_DYNSYM) && !is64:
		out.maps = [4]string{"addr", s.Name}
		out.layout = table(16, 0, field{offset: 4, width: 4}, field{offset: 0, width: 4, slot: 1})
	case s.Name == "__versions" && is64 && f.rel:
		out.maps = [4]string{checksums}
		out.layout = table(64, 0, field{offset: 0, width: 4})
	case strings.HasPrefix(s.Name, "__kcrctab") && is64 && f.rel:
		out.maps = [4]string{checksums}
		out.layout = table(4, 0, field{offset: 0, width: 4})
	case s.Name == ".BTF":
		if !f.btf(&out) {
			return
		}
	case s.Name == ".eh_frame" && !f.rel:
		out.kind, out.maps, out.walk = predictFrames, addr, true
		out.starts = f.frameEntries(&out)
	case s.Name == ".eh_frame_hdr" && !f.rel && s.Size > 12 && bytes.HasPrefix(f.data[s.Offset:], []byte{1, 0x1b, 3, 0x3b}):
		out.maps, out.a = addr, s.Addr
		out.off, out.size, out.addr = out.off+12, out.size-12, out.addr+12
		out.layout = table(8, flagBase, field{offset: 0, width: 4, mode: based}, field{offset: 4, width: 4, mode: based})
	case s.Name == ".ARM.exidx" && !f.rel:
		return
	case s.Type == elf.SHT_DYNAMIC:
		out.maps = addr
		out.layout = table(2*word, 0, field{offset: word, width: word})
	case !f.rel && s.Flags&elf.SHF_WRITE != 0 && s.Flags&elf.SHF_ALLOC != 0 || strings.HasPrefix(s.Name, ".data.rel.ro"):
		if f.rel {
			return
		}
		out.maps = addr
		out.layout = table(word, 0, field{offset: 0, width: word})
	default:
		return
	}
	f.sections = append(f.sections, out)
}

// section returns the section that a file offset lies in.
func (f *file) section(off int64) *section {
	for i := range f.sections {
		if s := &f.sections[i]; off >= s.off && off < s.off+s.size {
			return s
		}
	}
	return nil
}
