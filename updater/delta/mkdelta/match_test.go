package mkdelta

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
)

// whole checks what holds for the segments of any frame, and rebuilds it.
func whole(t testing.TB, p *plan, frame []byte, offset int64, segments []segment) {
	end := 0
	for _, s := range segments {
		require.GreaterOrEqual(t, s.start, end, "in order")
		require.Greater(t, s.end, s.start, "not empty")
		require.LessOrEqual(t, s.end, len(frame))
		end = s.end
		if s.zero {
			require.Equal(t, s.end-s.start, zeros(frame[s.start:s.end]))
			continue
		}
		from, to := offset+int64(s.start)+s.at, offset+int64(s.end)+s.at
		require.GreaterOrEqual(t, from, int64(0))
		if s.space == spaceNew {
			require.LessOrEqual(t, to, offset, "only what is written before the frame")
		} else {
			require.LessOrEqual(t, to, int64(len(p.old)))
		}
	}
}

// Any pair of images, any frame size: segments are in order and in bounds.
func TestSegments(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		old, fresh := systems(seed, 1+r.IntN(1<<20))
		for range r.IntN(6) {
			fresh = mutate(r, fresh)
		}
		if len(fresh) == 0 {
			continue
		}
		o := Options{}
		require.NoError(t, o.complete())
		p, err := newPlan(t.Context(), old, image(fresh), o)
		require.NoError(t, err)
		m := p.matcher()
		size := delta.Leaf * (1 + r.IntN(4))
		for at := 0; at < len(fresh); at += size {
			frame := fresh[at:min(at+size, len(fresh))]
			segments := append([]segment{}, m.match(frame, int64(at))...)
			whole(t, p, frame, int64(at), segments)
			// What a matcher did before leaves no trace.
			require.Equal(t, segments, append([]segment{}, p.matcher().match(frame, int64(at))...), "seed %d", seed)
		}
	}
}

// What appears a second time in the new image is taken from the first.
func TestTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	once := make([]byte, 1<<18)
	for i := range once {
		once[i] = byte(r.Uint32())
	}
	p, err := newPlan(t.Context(), []byte("old"), image(append(bytes.Clone(once), once...)), Options{Workers: 1})
	require.NoError(t, err)
	require.Equal(t, []segment{{start: 0, end: len(once), space: spaceNew, at: int64(-len(once))}}, p.matcher().match(once, int64(len(once))))
	require.Empty(t, p.matcher().match(once, 0))
}
