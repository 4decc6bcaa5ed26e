package predict

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// everything is a plan with regions of all kinds, one behind the other, 4096 bytes each.
func everything() planned {
	p := planned{maps: []plannedMap{
		{[][2]int64{{0, 0}, {0x100, 0x11}, {0x900, -0x22}, {0x4000, 0x12340}}, 1 << 40},
		{[][2]int64{{1, 1}, {2, 2}, {100, -3}}, 1 << 33},
	}, layouts: [][]byte{
		// flags, stride, fields; each: offset, width, mode, slot, add, and for mode 3 key and its width
		{layoutBase, 24, 4, 16, 8, modeKeyed, 0, 4, 12, 4, 0, 8, modeBase, 0, 0, 12, 4, modePlain, 1, 0, 6, 2, modePlain, 1, 0xff},
		{layoutBase, 4, 1, 0, 4, modeSelf, 0, 0},
	}}
	for kind := byte(0); kind < KindWords+2; kind++ {
		maps := []int64{0, 1}
		switch kind {
		case KindTypes, KindMembers:
			maps = []int64{1, 0, 0, 1}
		case KindWords:
		default:
			maps = maps[:1]
		}
		p.regions = append(p.regions, plannedRegion{gap: 16, length: 800, kind: kind, a: 0x1000, d: 0x10, base: true, maps: maps})
	}
	return p
}

// size is what the regions of everything take up, and some more.
const size = 9000

// noise is bytes in which every kind of region finds fields.
func noise(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		switch rnd.IntN(4) {
		case 0:
			b = append(b, 0xe8)
			b = binary.LittleEndian.AppendUint32(b, rnd.Uint32N(0x2000))
		case 1:
			b = binary.LittleEndian.AppendUint32(b, rnd.Uint32N(0x2000))
		case 2:
			b = binary.LittleEndian.AppendUint32(b, []uint32{0x94000000, 0x90000000, 0xf9400000, 0x91000000, 0xeb000000, 0x04000002}[rnd.IntN(6)]|rnd.Uint32N(0x400))
		case 3:
			b = append(b, byte(rnd.Uint32()))
		}
	}
	return b[:n]
}

// Whatever bytes are said to be a plan: it is an error, or bytes of the run are
// changed and no others.
func harmless(t *testing.T, stream []byte, seed uint64, at int64, r Run) {
	var plan Plan
	if err := plan.Parse(stream, nil); err != nil {
		require.ErrorIs(t, err, ErrPlan)
	}
	old := noise(seed, size)
	b := bytes.Clone(old)
	plan.Apply(b, at, r)
	start, end := min(max(r.Start, 0), len(b)), min(max(r.End, 0), len(b))
	require.Equal(t, old[:start], b[:start], "before the run")
	if end >= start {
		require.Equal(t, old[end:], b[end:], "behind the run")
	}
}

func TestDamagedPlan(t *testing.T) {
	whole := everything().bytes()
	var plan Plan
	require.NoError(t, plan.Parse(whole, nil))
	b := noise(1, size)
	plan.Apply(b, 0, Run{0, len(b), 5})
	require.NotEqual(t, noise(1, size), b)

	for n := range whole {
		require.ErrorIs(t, plan.Parse(whole[:n], nil), ErrPlan, "cut to %d of %d bytes", n, len(whole))
	}
	require.ErrorIs(t, plan.Parse(append(bytes.Clone(whole), 0), nil), ErrPlan, "a byte too much")
	for i := range whole {
		for bit := range 8 {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1 << bit
			harmless(t, damaged, 1, 0, Run{13, size - 999, 1 << 30})
		}
	}
}

// Runs and offsets that no decoder should give are harmless as well.
func TestStrangeRuns(t *testing.T) {
	whole := everything().bytes()
	for _, r := range []Run{{0, size, 0}, {-1, size, 0}, {0, size + 1, 0}, {10, 10, 0}, {20, 10, 0}, {0, size, math.MaxInt64}, {0, size, math.MinInt64}, {3, 4, 0}, {4097, 4099, -1}} {
		for _, at := range []int64{0, 1, -5, math.MaxInt64, math.MinInt64, MaxOffset} {
			harmless(t, whole, 2, at, r)
		}
	}
}

// Tables beyond the limits are refused before memory is taken for them.
func TestLimits(t *testing.T) {
	region := plannedRegion{kind: KindX86, base: true, maps: []int64{0}}
	for what, p := range map[string]planned{
		"maps":          {maps: make([]plannedMap, MaxMaps+1)},
		"steps":         {maps: []plannedMap{{steps: make([][2]int64, MaxSteps+1)}}},
		"steps in sum":  {maps: []plannedMap{{steps: make([][2]int64, MaxSteps)}, {steps: make([][2]int64, 1)}}},
		"layouts":       {layouts: make([][]byte, MaxLayouts+1)},
		"regions":       {maps: make([]plannedMap, 1), regions: make([]plannedRegion, MaxRegions+1)},
		"no such map":   {regions: []plannedRegion{region}},
		"no such kind":  {maps: []plannedMap{{end: 1}}, regions: []plannedRegion{{kind: KindWords}}},
		"end":           {maps: []plannedMap{{end: 1}}, regions: []plannedRegion{{gap: MaxOffset, length: 1, kind: KindX86, base: true, maps: []int64{0}}}},
		"field outside": {layouts: [][]byte{{0, 8, 1, 6, 4, 0, 0, 0}}},
		"keyed width":   {layouts: [][]byte{{0, 8, 1, 0, 3, 3, 0, 0, 4, 4}}},
		"width of key":  {layouts: [][]byte{{0, 8, 1, 0, 4, 3, 0, 0, 4, 3}}},
		"width":         {layouts: [][]byte{{0, 8, 1, 0, 3, 0, 0, 0}}},
		"mode":          {layouts: [][]byte{{0, 8, 1, 0, 4, 4, 0, 0}}},
		"slot":          {layouts: [][]byte{{0, 8, 1, 0, 4, 0, 4, 0}}},
		"key outside":   {layouts: [][]byte{{0, 8, 1, 0, 4, 3, 0, 0, 6, 4}}},
		"stride":        {layouts: [][]byte{{0, 0, 0}}},
		"flags":         {layouts: [][]byte{{4, 8, 0}}},
		"start":         {maps: []plannedMap{{end: 1}}, regions: []plannedRegion{{gap: MaxOffset, kind: KindX86, base: true, maps: []int64{0}}, {gap: 1, kind: KindX86, base: true, maps: []int64{0}}}},
		"round again":   {maps: []plannedMap{{[][2]int64{{-1, 0}, {5, 1}}, 6}}},
		"steps twice":   {maps: []plannedMap{{[][2]int64{{5, 0}, {5, 1}}, 6}}},
	} {
		var plan Plan
		require.ErrorIs(t, plan.Parse(p.bytes(), nil), ErrPlan, what)
		require.Empty(t, plan.regions, what)
	}
}

// A device's memory is bounded and its garbage collector left alone.
func TestNoAllocation(t *testing.T) {
	whole := everything().bytes()
	var plan Plan
	require.NoError(t, plan.Parse(whole, nil))
	b := noise(3, size)
	require.Zero(t, testing.AllocsPerRun(10, func() {
		plan.Apply(b, 0, Run{0, len(b), 0})
	}))
	require.Zero(t, testing.AllocsPerRun(10, func() {
		if err := plan.Parse(whole, nil); err != nil {
			panic(err)
		}
	}), "a plan read into the memory of one before")
}

// Fields that lie across the border of a run are not touched by it, so cutting a
// run in two changes only what lies across the cut.
func TestBorders(t *testing.T) {
	p := one(KindX86, 10)
	old := hex("e8 fb 0f 00 00 e8 fb 0f 00 00")
	whole := rewritten(t, p, old)
	require.NotEqual(t, old, whole)
	for cut := range len(old) + 1 {
		var plan Plan
		require.NoError(t, plan.Parse(p.bytes(), nil))
		b := bytes.Clone(old)
		plan.Apply(b, 0, Run{0, cut, 0})
		want := bytes.Clone(old)
		for i := 0; i+5 <= cut; i += 5 {
			copy(want[i:i+5], whole[i:])
		}
		require.Equal(t, want, b, "cut at %d", cut)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add(everything().bytes(), uint64(1), int64(0), 0, size, int64(7))
	f.Add(one(KindARM64, 4096).bytes(), uint64(2), int64(0), 5, 4000, int64(1))
	f.Add([]byte{0, 0, 0}, uint64(3), int64(1<<40), 0, 1, int64(-1))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, at int64, start, end int, old int64) {
		harmless(t, stream, seed, at, Run{start, end, old})
	})
}
