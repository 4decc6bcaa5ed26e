package predict

import (
	"debug/elf"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The code of this test itself is what is rewritten, on whatever machine it
// runs; the walk over it takes most of the time that a device spends here.
func BenchmarkCode(b *testing.B) {
	name, err := os.Executable()
	require.NoError(b, err)
	f, err := elf.Open(name)
	require.NoError(b, err)
	s := f.Section(".text")
	text, err := s.Data()
	require.NoError(b, err)
	for what, kind := range map[string]byte{"x86-64": KindX86, "arm64": KindARM64, "arm": KindARM} {
		b.Run(what, func(b *testing.B) {
			p := planned{
				maps:    []plannedMap{{end: int64(s.Addr + s.Size)}},
				regions: []plannedRegion{{length: int64(len(text)), kind: kind, a: s.Addr, base: true, maps: []int64{0}}},
			}
			for i := range int64(1000) {
				p.maps[0].steps = append(p.maps[0].steps, [2]int64{int64(s.Addr) + i*int64(len(text))/1000, i * 16})
			}
			var plan Plan
			require.NoError(b, plan.Parse(p.bytes(), nil))
			plain := append([]byte(nil), text...)
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				copy(plain, text)
				plan.Apply(plain, 0, Run{0, len(plain), 0})
			}
		})
	}
}
