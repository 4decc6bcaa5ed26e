package predict

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// A run that begins before the bytes or ends behind them touches nothing, even where a region
// reaches as far.
func TestRunsOutside(t *testing.T) {
	whole := one(KindX86, 1<<20).bytes()
	for _, r := range []Run{{-1, 900, 0}, {0, 2000, 0}, {900, 2000, 0}} {
		var plan Plan
		require.NoError(t, plan.Parse(whole, nil))
		b := noise(4, 1000)
		plan.Apply(b[:1000:1000], 5, r)
		require.Equal(t, noise(4, 1000), b)
	}
}

// A number of a plan has 64 bits, in ten bytes at most.
func TestNumbers(t *testing.T) {
	long := func(n int, last byte) reader {
		return reader{b: append(bytes.Repeat([]byte{0xff}, n), last)}
	}
	r := long(9, 1)
	require.Equal(t, ^uint64(0), r.uvarint())
	require.NoError(t, r.err)
	r = long(9, 2)
	r.uvarint()
	require.ErrorIs(t, r.err, ErrPlan, "65 bits")
	r = reader{b: append(bytes.Repeat([]byte{0x80}, 10), 0)}
	r.uvarint()
	require.ErrorIs(t, r.err, ErrPlan, "eleven bytes")
}

// The step that was looked up last makes the next look-up faster and never another one.
func TestLastStep(t *testing.T) {
	p := planned{maps: []plannedMap{
		{[][2]int64{{0, 1}, {10, 2}, {20, 3}}, 100},
		{[][2]int64{{0, 4}, {15, 5}}, 100},
		{[][2]int64{{5, 6}, {10, 7}}, 30},
	}}
	look := func(plan *Plan, m, at int) [2]any {
		shift, ok := plan.shift(uint16(m), uint64(at))
		return [2]any{shift, ok}
	}
	for first := range 3 * 40 {
		for second := range 3 * 40 {
			var used, fresh Plan
			require.NoError(t, used.Parse(p.bytes(), nil))
			require.NoError(t, fresh.Parse(p.bytes(), nil))
			look(&used, first/40, first%40)
			if want, got := look(&fresh, second/40, second%40), look(&used, second/40, second%40); want != got {
				t.Fatalf("map %d at %d after map %d at %d: %v, not %v", second/40, second%40, first/40, first%40, got, want)
			}
		}
	}
}

// A literal that lies before the run or behind it is none: nothing is rewritten, and nothing read there.
func TestLiteralsOutside(t *testing.T) {
	for _, row := range []struct {
		state string
		kind  byte
		code  string
	}{
		{"A32, before", KindARM, "ff 0f 1f e5 00 00 8f e0"},
		{"A32, behind", KindARM, "ff 0f 9f e5 00 00 8f e0"},
		{"T32, behind", KindThumb, "ff 48 78 44 00 bf 00 bf"},
		{"T32, long, before", KindThumb, "5f f8 ff 0f 78 44 00 bf"},
		{"T32, long, behind", KindThumb, "df f8 ff 0f 78 44 00 bf"},
	} {
		code := hex(row.code)
		require.Equal(t, code, rewritten(t, one(row.kind, 64), code[:len(code):len(code)]), row.state)
	}
}

// An instruction has at most fourteen prefixes: else a file of nothing but prefixes would be
// walked to its end from each byte.
func TestPrefixes(t *testing.T) {
	after := func(n int) int {
		length, _, _ := instruction(append(bytes.Repeat([]byte{0x66}, n), 0x90, 0x90))
		return length
	}
	require.Equal(t, 14, after(13))
	require.Equal(t, 1, after(14))
	require.Equal(t, 1, after(1000))
}
