package qemu

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
)

// blank makes the "program" that QEMU loads at every reset: zeros over all RAM
// that the firmware and the system work in, for a machine with so many MiB.
//
// What this is about is not the zeros. Under TCG a page of RAM remembers every
// piece of code that was translated from it, until something is stored over that
// code; and every store into such a page walks all these pieces (QEMU 7.2,
// page_collection_lock). A reset does not clear that. After a large system ran,
// OVMF unpacks itself over pages with hundreds of pieces each, and the warm reset
// takes 40 s instead of 6. Sometimes it was minutes: a stack in such a page, where
// the old code is never hit, would explain that. QEMU's loader throws translations
// away with what it overwrites.
//
// The file is an ELF executable with a few bytes of data: the rest of a segment
// is zeroed by the loader (QEMU 6.0 and later). The hole from 640 KiB to 1 MiB is
// left out, because there the loader would write over the ROM. Nothing is ever
// started at its entry. Memory above 4 GiB is left as it is; firmware works below.
//
// The price: all of that memory is taken from the host at once; and to drop a
// translation is slow too, the more there are. With 1 GiB of them, after an
// installation in Debian, it took QEMU 50 s, so DefaultAccel bounds their number.
func blank(memory int) []byte {
	const mib = 1 << 20
	low := uint64(memory) * mib
	if low >= 0xb000_0000 {
		// q35 puts the rest above 4 GiB.
		low = 0x8000_0000
	}
	segments := []struct{ from, to uint64 }{{0, 640 << 10}, {mib, low}}
	head := elf.Header64{
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(segments)),
	}
	copy(head.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}))
	// A segment with no byte in the file is skipped.
	data := make([]byte, 8)
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, head)
	for _, s := range segments {
		binary.Write(&b, binary.LittleEndian, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W),
			Off: uint64(head.Phoff) + uint64(len(segments))*uint64(head.Phentsize), Vaddr: s.from, Paddr: s.from,
			Filesz: uint64(len(data)), Memsz: s.to - s.from, Align: 1,
		})
	}
	b.Write(data)
	return b.Bytes()
}

func (d *Device) blank() string { return filepath.Join(d.cfg.Dir, "blank.elf") }

// writeBlank is done at each power-on: the same directory may be given another
// amount of memory.
func (d *Device) writeBlank() error {
	return os.WriteFile(d.blank(), blank(d.cfg.Memory), 0o644)
}
