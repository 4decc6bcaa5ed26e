package predict

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// planned is a plan written down, for tests: the bytes are made as FORMAT.md has them.
type planned struct {
	maps    []plannedMap
	layouts [][]byte
	regions []plannedRegion
}

type plannedMap struct {
	steps [][2]int64 // at, shift
	end   int64
}

type plannedRegion struct {
	gap, length int64
	kind        byte
	a           uint64 // as it is coded
	d           int64
	base        bool // a and d are there
	maps        []int64
}

func zigzag(b []byte, v int64) []byte { return binary.AppendUvarint(b, uint64(v<<1)^uint64(v>>63)) }

func (p planned) bytes() []byte {
	b := binary.AppendUvarint(nil, uint64(len(p.maps)))
	for _, m := range p.maps {
		b = binary.AppendUvarint(b, uint64(len(m.steps))<<1)
	}
	for _, m := range p.maps {
		last := int64(0)
		for _, s := range m.steps {
			b = binary.AppendUvarint(b, uint64(s[0]-last))
			last = s[0]
		}
		b = binary.AppendUvarint(b, uint64(m.end-last))
	}
	for _, m := range p.maps {
		last := int64(0)
		for _, s := range m.steps {
			b = zigzag(b, s[1]-last)
			last = s[1]
		}
	}
	b = binary.AppendUvarint(b, uint64(len(p.layouts)))
	for _, l := range p.layouts {
		b = append(b, l...)
	}
	b = binary.AppendUvarint(b, uint64(len(p.regions)))
	for _, g := range p.regions {
		b = append(b, g.kind)
	}
	for _, g := range p.regions {
		b = binary.AppendUvarint(b, uint64(g.gap))
		b = binary.AppendUvarint(b, uint64(g.length))
	}
	a, d := uint64(0), int64(0)
	for _, g := range p.regions {
		if g.base {
			b = zigzag(b, int64(g.a-a))
			a = g.a
		}
	}
	for _, g := range p.regions {
		if g.base {
			b = zigzag(b, g.d-d)
			d = g.d
		}
	}
	last := [slots]int64{}
	for _, g := range p.regions {
		for k, m := range g.maps {
			b = zigzag(b, m-last[k])
			last[k] = m
		}
	}
	return b
}

// one is a plan of one region over the first n bytes, whose addresses are offsets plus 0x1000, and one map:
// from 0x1000 on nothing moves, from 0x2000 on everything by 0x123450, up to 0x800000.
func one(kind byte, n int64) planned {
	return planned{
		maps:    []plannedMap{{[][2]int64{{0x1000, 0}, {0x2000, 0x123450}}, 0x800000}},
		regions: []plannedRegion{{length: n, kind: kind, a: 0x1000, base: true, maps: []int64{0}}},
	}
}

// rewritten is what becomes of bytes that stay in their place.
func rewritten(t *testing.T, p planned, old []byte) []byte {
	t.Helper()
	var plan Plan
	require.NoError(t, plan.Parse(p.bytes(), nil))
	b := append([]byte(nil), old...)
	plan.Apply(b, 0, Run{0, len(b), 0})
	return b
}

func hex(s string) []byte {
	var b []byte
	for n, i := 0, 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			continue
		}
		if n++; n%2 == 1 {
			b = append(b, c<<4)
		} else {
			b[len(b)-1] |= c
		}
	}
	return b
}

const nops = " 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90"

// A kernel's addresses are numbers below zero.
func TestKernelAddresses(t *testing.T) {
	p := planned{
		maps:    []plannedMap{{[][2]int64{{-0x7f000000, 0x40}}, -0x7e000000}},
		regions: []plannedRegion{{length: 64, kind: KindX86Fixed, a: 0x81000000, base: true, maps: []int64{0}}},
	}
	require.Equal(t, hex("48 c7 c7 41 23 01 81"+nops), rewritten(t, p, hex("48 c7 c7 01 23 01 81"+nops)))
}

// Instructions whose targets move are rewritten, and only those. The bytes were put
// together by hand from the manuals that the sources name.
func TestInstructions(t *testing.T) {
	for _, c := range []struct {
		what     string
		kind     byte
		old, new string
	}{
		{"call behind the step", KindX86, "e8 fb 0f 00 00", "e8 4b 44 12 00"},
		{"call before the step", KindX86, "e8 fa 0f 00 00", "e8 fa 0f 00 00"},
		{"call out of the file", KindX86, "e8 00 00 00 70", "e8 00 00 00 70"},
		{"jmp", KindX86, "e9 fb 0f 00 00", "e9 4b 44 12 00"},
		{"je", KindX86, "0f 84 00 10 00 00", "0f 84 50 44 12 00"},
		{"lea rip-relative", KindX86, "48 8d 3d 00 10 00 00", "48 8d 3d 50 44 12 00"},
		{"mov from rip-relative", KindX86, "8b 05 00 10 00 00", "8b 05 50 44 12 00"},
		{"cmpl with imm8 behind the address", KindX86, "83 3d f9 0f 00 00 01", "83 3d 49 44 12 00 01"},
		{"cmpl with imm8 that counts", KindX86, "83 3d f8 0f 00 00 01", "83 3d f8 0f 00 00 01"},
		{"movl imm32 to rip-relative", KindX86, "c7 05 f6 0f 00 00 11 22 33 44", "c7 05 46 44 12 00 11 22 33 44"},
		{"movw imm16 to rip-relative", KindX86, "66 c7 05 f7 0f 00 00 11 22", "66 c7 05 47 44 12 00 11 22"},
		{"testb imm8 of rip-relative", KindX86, "f6 05 f9 0f 00 00 01", "f6 05 49 44 12 00 01"},
		{"negl of rip-relative", KindX86, "f7 1d fa 0f 00 00", "f7 1d 4a 44 12 00"},
		{"movaps VEX rip-relative", KindX86, "c5 f8 28 05 f8 0f 00 00", "c5 f8 28 05 48 44 12 00"},
		{"vpalignr VEX 0F3A rip-relative imm8", KindX86, "c4 e3 71 0f 05 f6 0f 00 00 04", "c4 e3 71 0f 05 46 44 12 00 04"},
		{"pshufb 0F38 rip-relative", KindX86, "66 0f 38 00 05 f7 0f 00 00", "66 0f 38 00 05 47 44 12 00"},
		{"vmovdqu64 EVEX rip-relative", KindX86, "62 f1 fe 48 6f 05 f6 0f 00 00", "62 f1 fe 48 6f 05 46 44 12 00"},
		{"cmp eax with what looks like an address", KindX86, "3d 00 10 00 00", "3d 00 10 00 00"},
		{"movabs with what looks like a call", KindX86, "48 b8 e8 fb 0f 00 00 00 00 00", "48 b8 e8 fb 0f 00 00 00 00 00"},
		{"call behind other instructions", KindX86, "55 48 89 e5 41 8b 44 24 10 e8 f2 0f 00 00 c3", "55 48 89 e5 41 8b 44 24 10 e8 42 44 12 00 c3"},
		{"SIB without base", KindX86, "8b 04 25 00 10 00 00 e8 f4 0f 00 00", "8b 04 25 00 10 00 00 e8 44 44 12 00"},

		{"mov imm32, fixed", KindX86Fixed, "48 c7 c7 00 20 00 00" + nops, "48 c7 c7 50 54 12 00" + nops},
		{"cmp eax, fixed", KindX86Fixed, "3d 00 20 00 00" + nops, "3d 50 54 12 00" + nops},
		{"displacement with a base, fixed", KindX86Fixed, "8a 87 00 20 00 00" + nops, "8a 87 50 54 12 00" + nops},
		{"displacement without a base, fixed", KindX86Fixed, "48 8b 04 c5 00 20 00 00" + nops, "48 8b 04 c5 50 54 12 00" + nops},
		{"displacement behind SIB, fixed", KindX86Fixed, "8b 84 c7 00 20 00 00" + nops, "8b 84 c7 50 54 12 00" + nops},
		{"movl imm32 to rip-relative, fixed", KindX86Fixed, "c7 05 f6 0f 00 00 00 20 00 00" + nops, "c7 05 46 44 12 00 50 54 12 00" + nops},
		{"movl imm32 to a displacement, fixed", KindX86Fixed, "c7 87 ff 1f 00 00 00 20 00 00" + nops, "c7 87 ff 1f 00 00 50 54 12 00" + nops},
		{"call, fixed", KindX86Fixed, "e8 fb 0f 00 00" + nops, "e8 4b 44 12 00" + nops},
		{"8 bits, fixed", KindX86Fixed, "8a 47 20 83 c0 20" + nops, "8a 47 20 83 c0 20" + nops},
		{"no address, fixed", KindX86Fixed, "3d 00 00 80 00" + nops, "3d 00 00 80 00" + nops},
		{"amid the last 16 bytes, fixed", KindX86Fixed, "3d 00 20 00 00" + nops[:30], "3d 00 20 00 00" + nops[:30]},

		{"bl", KindARM64, "00 04 00 94", "14 91 04 94"},
		{"bl before the step", KindARM64, "ff 03 00 94", "ff 03 00 94"},
		{"b", KindARM64, "00 04 00 14", "14 91 04 14"},
		{"bl out of the file", KindARM64, "00 00 00 95", "00 00 00 95"},
		{"adrp, ldr of 8 bytes", KindARM64, "00 00 00 b0 00 08 40 f9", "20 09 00 90 00 30 42 f9"},
		{"adrp, str of 1 byte", KindARM64, "00 00 00 b0 01 40 00 39", "20 09 00 90 01 80 11 39"},
		{"adrp that two instructions complete", KindARM64, "00 00 00 b0 01 40 00 39 02 44 00 39", "20 09 00 90 01 80 11 39 02 84 11 39"},
		{"adrp whose register is set again", KindARM64, "00 00 00 b0 00 00 80 d2 00 40 00 91", "00 00 00 b0 00 00 80 d2 00 40 00 91"},
		{"adrp before a return", KindARM64, "00 00 00 b0 c0 03 5f d6 00 40 00 91", "00 00 00 b0 c0 03 5f d6 00 40 00 91"},

		{"A32 bl", KindARM, "fe 03 00 eb", "12 91 04 eb"},
		{"A32 b if equal", KindARM, "fe 03 00 0a", "12 91 04 0a"},
		{"A32 literal added to pc", KindARM, "00 30 9f e5 03 30 8f e0 f4 0f 00 00", "00 30 9f e5 03 30 8f e0 44 44 12 00"},
		{"A32 literal that is not", KindARM, "00 30 9f e5 03 30 80 e0 f4 0f 00 00", "00 30 9f e5 03 30 80 e0 f4 0f 00 00"},

		{"T32 bl", KindThumb, "00 f0 fe ff", "24 f1 26 fa"},
		{"T32 b.w", KindThumb, "00 f0 fe bf", "24 f1 26 ba"},
		{"T32 blx", KindThumb, "00 f0 fe ef", "24 f1 26 ea"},
		{"T32 b.w if equal, which stays in its function", KindThumb, "00 f0 fe 87", "00 f0 fe 87"},
		{"T32 bl behind 16 bits", KindThumb, "00 bf 00 f0 fd ff", "00 bf 24 f1 25 fa"},
		{"T32 literal added to pc", KindThumb, "00 4b 7b 44 fa 0f 00 00", "00 4b 7b 44 4a 44 12 00"},
		{"T32 literal by ldr.w", KindThumb, "df f8 04 30 7b 44 00 bf f8 0f 00 00", "df f8 04 30 7b 44 00 bf 48 44 12 00"},

		{".eh_frame", KindFrames, "08 00 00 00 00 00 00 00 01 00 00 00 10 00 00 00 10 00 00 00 ec 0f 00 00 40 00 00 00 00 00 00 00", "08 00 00 00 00 00 00 00 01 00 00 00 10 00 00 00 10 00 00 00 3c 44 12 00 40 00 00 00 00 00 00 00"},
		{".eh_frame with a table of its own", KindFrames, "11 00 00 00 04 00 00 00 f8 0f 00 00 40 00 00 00 04 ef 0f 00 00", "11 00 00 00 04 00 00 00 48 44 12 00 40 00 00 00 04 3f 44 12 00"},

		{"adrp, add", KindARM64, "00 00 00 b0 00 40 00 91", "20 09 00 90 00 80 11 91"},
	} {
		t.Run(c.what, func(t *testing.T) {
			old := hex(c.old)
			got := rewritten(t, one(c.kind, int64(len(old))), old)
			require.Equal(t, hex(c.new), got, "% x", got)
		})
	}
}

// fields is what a table of little-endian numbers of 4 bytes becomes.
func fields(t *testing.T, p planned, r Run, common *Maps, numbers ...uint32) (out []uint32) {
	t.Helper()
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	var plan Plan
	require.NoError(t, plan.Parse(p.bytes(), common))
	r.End = len(b)
	plan.Apply(b, 0, r)
	for i := 0; i < len(b); i += 4 {
		out = append(out, binary.LittleEndian.Uint32(b[i:]))
	}
	return out
}

// Every mode of a field takes its address as FORMAT.md says.
func TestTables(t *testing.T) {
	maps := []plannedMap{{[][2]int64{{0x1000, 0}, {0x2000, 0x50}}, 0x8000}, {[][2]int64{{3 << 32, -4}, {3<<32 + 0x20, 8}, {4 << 32, 0}}, 5 << 32}}
	plan := func(l []byte, used ...int64) planned {
		return planned{maps, [][]byte{l}, []plannedRegion{{length: 64, kind: KindWords, a: 0x1000, d: 0x30, base: l[0]&layoutBase != 0, maps: used}}}
	}
	plain := plan([]byte{0, 8, 1, 4, 4, modePlain, 0, 0}, 0)
	require.Equal(t, []uint32{0x2000, 0x1fff, 0x2000, 0x2050, 0x2000, 0x8000}, fields(t, plain, Run{}, nil, 0x2000, 0x1fff, 0x2000, 0x2000, 0x2000, 0x8000), "plain")
	added := plan([]byte{0, 4, 1, 0, 4, modePlain, 0, 4}, 0)
	require.Equal(t, []uint32{0x1ffb, 0x204c}, fields(t, added, Run{}, nil, 0x1ffb, 0x1ffc), "looked up 4 higher")
	based := plan([]byte{layoutBase, 4, 1, 0, 4, modeBase, 0, 0}, 0)
	require.Equal(t, []uint32{0xfff + 0x30, 0x1000 + 0x50 + 0x30}, fields(t, based, Run{}, nil, 0xfff, 0x1000), "relative to a base that moves by -0x30")
	own := plan([]byte{layoutBase, 4, 1, 0, 4, modeSelf, 0, 0}, 0)
	require.Equal(t, []uint32{0x1000 + 0x30 + 0x50, 0xffb + 0x30}, fields(t, own, Run{}, nil, 0x1000, 0xffb), "relative to itself")
	// The run came from 0x10 further on: the field has moved by -0x10 - 0x30, and its old address is 0x1010.
	require.Equal(t, []uint32{0xff0 + 0x10 + 0x30 + 0x50}, fields(t, own, Run{Old: 0x10}, nil, 0xff0), "relative to itself, moved")
	keyed := plan([]byte{0, 8, 1, 0, 4, modeKeyed, 1, 0, 4, 4}, 0, 1)
	require.Equal(t, []uint32{0x1f - 4, 3, 0x20 + 8, 3, 0x20, 4, 0x20, 2}, fields(t, keyed, Run{}, nil, 0x1f, 3, 0x20, 3, 0x20, 4, 0x20, 2), "with a key")
}

// Names and types of BTF are told from other words, and a module's own from the kernel's.
func TestTypes(t *testing.T) {
	p := planned{
		maps: []plannedMap{
			{[][2]int64{{1, 10}}, 100}, {[][2]int64{{1, 20}}, 100}, // the kernel's
			{[][2]int64{{1, 30}}, 1000}, {[][2]int64{{1, 40}}, 1000}, // its own
		},
		regions: []plannedRegion{{length: 400, kind: KindTypes, a: 50, d: 60, base: true, maps: []int64{0, 1, 2, 3}}},
	}
	info := func(kind, n uint32) uint32 { return kind<<24 | n }
	require.Equal(t,
		[]uint32{25, info(1, 0), 4, 32, 0, info(2, 0), 17, 100, info(4, 2), 16, 25, 90, 64, 110, 15, 32, 26, info(6, 1), 4, 27, 7, 0, info(3, 0), 0, 11, 81, 6, 28, info(12, 0), 13, 0, info(13, 1), 19, 29, 85},
		fields(t, p, Run{}, nil,
			5, info(1, 0), 4, 32, // an integer
			0, info(2, 0), 7, // a pointer
			60, info(4, 2), 16, 5, 60, 64, 70, 5, 32, // a structure of two
			6, info(6, 1), 4, 7, 7, // an enumeration
			0, info(3, 0), 0, 1, 51, 6, // an array
			8, info(12, 0), 3, // a function
			0, info(13, 1), 9, 9, 55)) // a prototype
	p.regions[0].kind = KindMembers
	require.Equal(t, []uint32{25, 90, 64, 110, 15, 32}, fields(t, p, Run{}, nil, 5, 60, 64, 70, 5, 32))
}

// Common maps have the first numbers; of an exact one only the steps count.
func TestCommon(t *testing.T) {
	b := []byte{2, 1<<1 | 1, 1 << 1} // an exact map of a step, another
	b = append(b, 7, 1, 3, 9)        // at 7, end 8; at 3, end 12
	b = append(b, 0xfe, 0xff, 0xff, 0xff, 4)
	var common Maps
	require.NoError(t, common.Parse(b))
	p := planned{maps: []plannedMap{{[][2]int64{{0, 100}}, 50}}, layouts: [][]byte{{0, 12, 3, 0, 4, modePlain, 0, 0, 4, 4, modePlain, 1, 0, 8, 4, modePlain, 2, 0}}}
	p.regions = []plannedRegion{{length: 100, kind: KindWords, maps: []int64{0, 1, 2}}}
	require.Equal(t, []uint32{5, 9, 105, 6, 13, 106}, fields(t, p, Run{}, &common, 7, 7, 5, 6, 11, 6))
	for n := range b {
		require.ErrorIs(t, new(Maps).Parse(b[:n]), ErrPlan)
	}
	require.ErrorIs(t, new(Maps).Parse(append(b, 0)), ErrPlan)
	var plan Plan
	require.ErrorIs(t, plan.Parse(p.bytes(), nil), ErrPlan, "without the common maps")
	require.ErrorIs(t, new(Maps).Parse(binary.AppendUvarint([]byte{1}, 2*(MaxCommon+1))), ErrPlan)
}

// A branch that has moved elsewhere than its target still leads there, at any distance.
func TestFarBranches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	sext := func(v uint64, bits uint) int64 { return int64(v<<(64-bits)) >> (64 - bits) }
	arch := map[byte]struct {
		reach int64
		write func(v int64) []byte
		read  func(b []byte) int64
	}{
		KindARM64: {1 << 27, func(v int64) []byte {
			return binary.LittleEndian.AppendUint32(nil, 0x94000000|uint32(v>>2)&0x3ffffff)
		}, func(b []byte) int64 { return sext(uint64(binary.LittleEndian.Uint32(b)&0x3ffffff)<<2, 28) }},
		KindARM: {1 << 25, func(v int64) []byte {
			return binary.LittleEndian.AppendUint32(nil, 0xeb000000|uint32(v>>2)&0xffffff)
		}, func(b []byte) int64 { return sext(uint64(binary.LittleEndian.Uint32(b)&0xffffff)<<2, 26) }},
		// DDI 0406C, A8.8.25: I1 = NOT(J1 EOR S); imm32 = SignExtend(S:I1:I2:imm10:imm11:'0')
		KindThumb: {1 << 24, func(v int64) []byte {
			u := uint32(v)
			s, i1, i2 := u>>24&1, u>>23&1, u>>22&1
			b := binary.LittleEndian.AppendUint16(nil, uint16(0xf000|s<<10|u>>12&0x3ff))
			return binary.LittleEndian.AppendUint16(b, uint16(0xd000|((i1^1)^s)<<13|((i2^1)^s)<<11|u>>1&0x7ff))
		}, func(b []byte) int64 {
			h, l := uint64(binary.LittleEndian.Uint16(b)), uint64(binary.LittleEndian.Uint16(b[2:]))
			s := h >> 10 & 1
			return sext(s<<24|(l>>13&1^s^1)<<23|(l>>11&1^s^1)<<22|h&0x3ff<<12|l&0x7ff<<1, 25)
		}},
	}
	for kind, a := range arch {
		for range 2000 {
			v := rnd.Int64N(a.reach)/2*2 - a.reach/2
			v &^= 3
			shift, from := rnd.Int64N(1<<12)*4, rnd.Int64N(1<<12)*4
			p := planned{
				maps:    []plannedMap{{[][2]int64{{0, shift}}, 1 << 40}},
				regions: []plannedRegion{{length: 4, kind: kind, a: 1 << 30, base: true, maps: []int64{0}}},
			}
			b := a.write(v)
			require.Equal(t, v, a.read(b))
			var plan Plan
			require.NoError(t, plan.Parse(p.bytes(), nil))
			plan.Apply(b, 0, Run{0, 4, from})
			require.Equal(t, v+shift+from, a.read(b), "kind %d, %d, shift %d, from %d", kind, v, shift, from)
		}
	}
}
