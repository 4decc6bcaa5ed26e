package elfplan

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// A kernel made by hand: functions, tables that say where things in them are, text among data, and behind the ELF file
// the list of relocations. Its numbers are little-endian.
func kernelOf(sizes []int) []byte {
	const base = kernelBase + 0x1000000
	dataAt := uint64(base + 1<<20)
	for _, n := range sizes {
		dataAt += 16 * uint64(n) // what lies behind the code moves with it
	}
	le := binary.LittleEndian
	var text []byte
	var starts, relocs []uint64
	for i, n := range sizes {
		rnd := rand.New(rand.NewPCG(uint64(i), 0))
		starts = append(starts, base+uint64(len(text)))
		for range n {
			relocs = append(relocs, base+uint64(len(text))+3)
			text = append(text, 0x48, 0xc7, 0xc7) // mov $imm32, %rdi
			text = le.AppendUint32(text, uint32(dataAt+8*uint64(rnd.IntN(2000))))
			text = append(text, 0x83, 0xc0, byte(rnd.Uint32())) // add $imm8, %eax
		}
		for len(text)%16 != 0 {
			text = append(text, 0x90)
		}
	}
	var data []byte
	for i := range 2000 {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		if i%3 == 0 {
			data = le.AppendUint64(data, starts[rnd.IntN(len(starts))])
		} else {
			data = append(data, []byte{'t', 'e', 'x', 't', byte(i), byte(i >> 8), byte(rnd.Uint32()), byte(rnd.Uint32())}...)
		}
	}
	type part struct {
		name  string
		addr  uint64
		flags elf.SectionFlag
		data  []byte
	}
	parts := []part{
		{".text", base, elf.SHF_ALLOC | elf.SHF_EXECINSTR, text},
		{".rodata", dataAt, elf.SHF_ALLOC | elf.SHF_WRITE, data},
	}
	table := func(name string, addr uint64, entry func(i, at, start uint64) []byte) {
		var b []byte
		for i, s := range starts {
			b = append(b, entry(uint64(i), addr+uint64(len(b)), s)...)
		}
		parts = append(parts, part{name, addr, elf.SHF_ALLOC, b})
	}
	distance := func(at, to uint64) []byte { return le.AppendUint32(nil, uint32(to-at)) }
	table(".orc_unwind_ip", base+2<<20, func(_, at, start uint64) []byte { return distance(at, start+10) })
	table("__bug_table", base+3<<20, func(i, at, start uint64) []byte {
		return append(append(distance(at, start+20), distance(at+4, dataAt+8*i)...), 7, 0, 1, 0)
	})
	table(".parainstructions", base+4<<20, func(_, _, start uint64) []byte {
		return append(le.AppendUint64(nil, start+30), 1, 6, 0, 0, 0, 0, 0, 0)
	})
	names := []byte{0}
	file := make([]byte, 64)
	var headers []byte
	header := func(name, kind uint32, flags, addr, off, size uint64) {
		headers = le.AppendUint32(le.AppendUint32(headers, name), kind)
		for _, v := range []uint64{flags, addr, off, size, 0, 1, 0} {
			headers = le.AppendUint64(headers, v)
		}
	}
	header(0, 0, 0, 0, 0, 0)
	for _, p := range parts {
		header(uint32(len(names)), uint32(elf.SHT_PROGBITS), uint64(p.flags), p.addr, uint64(len(file)), uint64(len(p.data)))
		names = append(append(names, p.name...), 0)
		file = append(file, p.data...)
	}
	own := uint32(len(names))
	names = append(names, ".shstrtab\x00"...)
	header(own, uint32(elf.SHT_STRTAB), 0, 0, uint64(len(file)), uint64(len(names)))
	file = append(file, names...)
	copy(file, "\x7fELF\x02\x01\x01")
	le.PutUint16(file[16:], uint16(elf.ET_EXEC))
	le.PutUint16(file[18:], uint16(elf.EM_X86_64))
	le.PutUint32(file[20:], 1)
	le.PutUint64(file[0x28:], uint64(len(file)))
	le.PutUint16(file[0x34:], 64)
	le.PutUint16(file[0x3a:], 64)
	le.PutUint16(file[0x3c:], uint16(len(parts)+2))
	le.PutUint16(file[0x3e:], uint16(len(parts)+1))
	file = append(file, headers...)
	file = append(file, 0, 0, 0, 0)
	for _, r := range relocs {
		file = le.AppendUint32(file, uint32(r))
	}
	return file
}

// A function grows, and all behind it moves: its immediates, the distances in tables, addresses in data, and the list of
// relocations are predicted, all but the function itself.
func TestKernel(t *testing.T) {
	sizes := make([]int, 400)
	for i := range sizes {
		sizes[i] = 5 + i%7
	}
	old := kernelOf(sizes)
	sizes[100] += 40
	sizes[300] += 3
	target := kernelOf(sizes)
	runs := runsOf(old, target)
	p := New([]Pair{{File{old, []Extent{{0, 0, int64(len(old))}}}, File{target, []Extent{{0, 0, int64(len(target))}}}}})
	require.Len(t, p.pairs, 1)
	stream := p.Frame(0, fill(old, target, runs), target, runs)
	before, after := wrong(t, stream, old, target, 0, runs)
	covered := 0
	for _, r := range runs {
		covered += r.End - r.Start
	}
	t.Logf("%d of %d bytes come from the old kernel; %d differ, %d after prediction, by a plan of %d bytes", covered, len(target), before, after, len(stream))
	require.Greater(t, before, 5000, "the test is about something")
	require.Greater(t, covered*100, len(target)*97, "masks agree wherever things have moved")
	require.Less(t, after*50, before)
	require.Less(t, len(stream), before/20)
}

// In a section of words, what is no address keeps its bytes in the mask: text among them is found again by them, wherever it lies.
func TestMaskKeepsText(t *testing.T) {
	b := kernelOf([]int{9, 9, 9})
	f := parse(b)
	i := bytes.Index(b, []byte("text"))
	m := Mask(b)
	count := 0
	for ; i < len(b); i += 8 {
		if !bytes.HasPrefix(b[i:], []byte("text")) {
			continue
		}
		count++
		require.Equal(t, b[i:i+8], m[i:i+8], "word at %d", i)
	}
	require.Greater(t, count, 1000)
	require.NotNil(t, f.section(int64(len(b)-8)), "the list of relocations is a section")
}
