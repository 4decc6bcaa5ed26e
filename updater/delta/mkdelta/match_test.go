package mkdelta

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
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

func planOf(t *testing.T, old, fresh []byte) *plan {
	t.Helper()
	of := func(b []byte) picture {
		p, err := newPicture(image(b), nil)
		require.NoError(t, err)
		t.Cleanup(p.close)
		return p
	}
	p, err := newPlan(t.Context(), of(old), of(fresh), room{step: 16, both: true, masks: true})
	require.NoError(t, err)
	t.Cleanup(p.close)
	return p
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
		p := planOf(t, old, fresh)
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
	p := planOf(t, []byte("old"), append(bytes.Clone(once), once...))
	require.Equal(t, []segment{{start: 0, end: len(once), space: spaceNew, at: int64(-len(once))}}, p.matcher().match(once, int64(len(once))))
	require.Empty(t, p.matcher().match(once, 0))
}

// What plan and match say depends on the images alone, not on cores or on the order of frames.
func TestMatchDeterministic(t *testing.T) {
	old, fresh := systems(5, 2<<20)
	var first [][]segment
	for _, cores := range []int{1, 2, 5} {
		func() {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
			p := planOf(t, old, fresh)
			const size = 4 * delta.Leaf
			all := make([][]segment, (len(fresh)+size-1)/size)
			var work sync.WaitGroup
			for w := range cores {
				work.Go(func() {
					m := p.matcher()
					for i := len(all) - 1 - w; i >= 0; i -= cores {
						all[i] = slices.Clone(m.match(fresh[i*size:min((i+1)*size, len(fresh))], int64(i*size)))
					}
				})
			}
			work.Wait()
			if first == nil {
				first = all
			}
			require.Equal(t, first, all, "%d cores", cores)
		}()
	}
}

// The plan keeps to Options.Memory: first without an index of the new image, then without
// masks and with coarser blocks, then not at all.
func TestPlanMemory(t *testing.T) {
	const size = 64 << 20
	for _, row := range []struct {
		memory int64
		want   room
		err    error
	}{
		{0, room{16, true, true}, nil},
		{10 * size, room{16, true, true}, nil},
		{5*size + perWorker, room{32, true, true}, nil},
		{4*size + size/4 + perWorker, room{64, false, true}, nil},
		{2*size + size/16 + perWorker, room{256, false, false}, nil},
		{2 * size, room{}, ErrMemory},
	} {
		got, err := planRoom(size, size, Options{Memory: row.memory, Workers: 1})
		require.ErrorIs(t, err, row.err)
		if err == nil {
			require.Equal(t, row.want, got, "%d bytes", row.memory)
		}
	}
}

// A file that was relinked, and moved in the image by less than a block, is
// compared with its older self down to a few bytes: what differs is all that is carried.
func TestRelinked(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	old := make([]byte, 1<<20)
	for i := range old {
		old[i] = byte(r.Uint32())
	}
	fresh := bytes.Clone(old)
	for i := 10; i < len(fresh); i += 20 { // never 32 bytes in a row agree
		fresh[i]++
	}
	fresh = append(make([]byte, 1000, len(fresh)), fresh[:len(fresh)-1000]...)
	p := planOf(t, old, fresh)
	covered := 0
	for _, s := range p.matcher().match(fresh, 0) {
		if s.zero || s.at == -1000 {
			covered += s.end - s.start
		}
	}
	require.Greater(t, covered, len(fresh)-64)
}

// Plain form: what is packed in the image is matched unpacked, against old
// bytes that were unpacked for the frame too.
func TestPlainForm(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	text := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32()) & 0x7f
		}
		return b
	}
	old, expansion := text(200_000), text(50_000)
	p := planOf(t, old, text(200_000))
	plain := slices.Concat(old[:30_000], expansion[20_000:40_000], old[70_000:80_000])
	const at = 100_000
	require.Equal(t, []segment{
		{start: 0, end: 30_000, at: -at},
		{start: 30_000, end: 50_000, space: spaceExpansion, at: -at - 10_000},
		{start: 50_000, end: 60_000, at: -at + 20_000},
	}, p.matcher().matchPlain(plain, at, at, []part{{0, len(plain), -1, 0}}, expansion))
}
