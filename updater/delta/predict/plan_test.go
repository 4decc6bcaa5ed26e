package predict

import (
	"encoding/binary"
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
		b = binary.AppendUvarint(b, uint64(len(m.steps)))
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
	require.NoError(t, plan.Parse(p.bytes()))
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

// Instructions whose targets move are rewritten, and only those. The bytes were put
// together by hand from the manuals that the sources name, and agree with GNU as.
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

		{"bl", KindARM64, "00 04 00 94", "14 91 04 94"},
		{"bl before the step", KindARM64, "ff 03 00 94", "ff 03 00 94"},
		{"b", KindARM64, "00 04 00 14", "14 91 04 14"},
		{"adrp, add", KindARM64, "00 00 00 b0 00 40 00 91", "20 09 00 90 00 80 11 91"},
	} {
		t.Run(c.what, func(t *testing.T) {
			old := hex(c.old)
			got := rewritten(t, one(c.kind, int64(len(old))), old)
			require.Equal(t, hex(c.new), got, "% x", got)
		})
	}
}
