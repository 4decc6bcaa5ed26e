package elfplan

import (
	"debug/elf"
	"encoding/binary"
	"unique"
)

// kernelBase is where the addresses of an x86-64 kernel begin (Linux, Documentation/arch/x86/x86_64/mm.rst).
const kernelBase = 0xffffffff80000000

// kernel says whether a file is a linked kernel for x86-64.
func (f *file) kernel() bool {
	return f.elf.Type == elf.ET_EXEC && f.elf.Machine == elf.EM_X86_64 && len(f.spans) > 0 && f.spans[0].start >= kernelBase
}

// here is a field that holds how far its target is from itself.
func here(offset int) field { return field{offset: offset, width: 4, mode: self} }

// kernelTable returns how the entries of a section of the kernel look that says where something is, mostly by
// its distance from the entry; false for others. Sources: include/asm-generic/vmlinux.lds.h, and for each section the
// structure of its entries.
func kernelTable(name string, size uint64) (_ unique.Handle[layout], ok bool) {
	switch name {
	case ".orc_unwind_ip", ".return_sites", ".retpoline_sites", ".call_sites", ".ibt_endbr_seal", ".smp_locks":
		return table(4, flagBase, here(0)), true
	case "__ksymtab", "__ksymtab_gpl":
		return table(12, flagBase, here(0), here(4), here(8)), true
	case "__ex_table", "__bug_table":
		return table(12, flagBase, here(0), here(4)), true
	case ".altinstructions":
		for _, stride := range []int{12, 14, 13} {
			if size%uint64(stride) == 0 {
				return table(stride, flagBase, here(0), here(4)), true
			}
		}
	case ".parainstructions":
		return table(16, 0, field{width: 8}), true
	}
	return table(0, 0), false
}

// relocs adds the list of relocations that the kernel's build appends to the ELF file
// (arch/x86/tools/relocs.c): the lower halves of addresses.
func (f *file) relocs() {
	le := binary.LittleEndian
	end := int64(le.Uint64(f.data[0x28:])) + int64(le.Uint16(f.data[0x3a:]))*int64(le.Uint16(f.data[0x3c:]))
	for _, s := range f.elf.Sections {
		if s.Type != elf.SHT_NOBITS {
			end = max(end, int64(s.Offset+s.Size))
		}
	}
	if size := int64(len(f.data)) - end; end > 0 && size >= 16 && size%4 == 0 {
		f.sections = append(f.sections, section{
			name: "relocs", off: end, size: size, kind: predictWords, maps: [4]string{"addr"}, layout: table(4, 0, field{width: 4}),
		})
	}
}
