package mkdelta

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
)

// What is booked adds up to the frames of the patch, lies inside of the image, and asking changes nothing.
func TestSpent(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 5))
		old, new := systems(seed, 1+r.IntN(1<<20))
		o := Options{FrameSize: delta.Leaf * 2, Level: 1, Workers: 2}
		var plain, asked bytes.Buffer
		s, err := Make(t.Context(), image(old), image(new), o, &plain)
		require.NoError(t, err)
		sum, last := 0.0, int64(0)
		o.Spent = func(at, n int64, bytes float64) {
			require.GreaterOrEqual(t, at/int64(o.FrameSize), last, "frames in growing order")
			last = at / int64(o.FrameSize)
			require.True(t, at >= 0 && n > 0 && at+n <= int64(len(new)) && bytes >= 0, "seed %d: %d bytes at %d", seed, n, at)
			sum += bytes
		}
		_, err = Make(t.Context(), image(old), image(new), o, &asked)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain.Bytes(), asked.Bytes()))

		p, err := delta.Open(bytes.NewReader(plain.Bytes()), s.Size, delta.Limits{Memory: s.Memory, Size: int64(len(new))})
		require.NoError(t, err)
		frames := int64(0)
		for i := range p.Frames() {
			frames += p.Frame(i).BlobLength
		}
		require.InDelta(t, frames, sum, 0.01, "seed %d", seed)
	}
}
