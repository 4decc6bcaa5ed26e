package mkdelta

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
)

// Any old image and any new one: the patch rebuilds the new one. Make proves
// this itself, so the test also decodes without it.
func TestRoundTrip(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		old, new := systems(seed, 1+r.IntN(1<<20))
		for range r.IntN(6) {
			new = mutate(r, new)
		}
		o := Options{FrameSize: delta.Leaf * (1 + r.IntN(4)), Level: 1 + r.IntN(4), Workers: 1 + r.IntN(3)}
		var out bytes.Buffer
		s, err := Make(t.Context(), image(old), image(new), o, &out)
		require.NoError(t, err, "seed %d", seed)
		require.EqualValues(t, out.Len(), s.Size, "seed %d", seed)
		require.EqualValues(t, len(new), s.Copied+s.Different+s.Literal+s.Zero, "seed %d", seed)
		require.True(t, bytes.Equal(new, decoded(t, out.Bytes(), old, len(new))), "seed %d", seed)

		out.Reset()
		_, err = MakeFull(t.Context(), image(new), o, &out)
		require.NoError(t, err, "seed %d", seed)
		require.True(t, bytes.Equal(new, decoded(t, out.Bytes(), nil, len(new))), "seed %d, full", seed)
	}
}

// mutate inserts, removes, moves, repeats, clears or changes a part.
func mutate(r *rand.Rand, b []byte) []byte {
	i, j, k := r.IntN(len(b)+1), r.IntN(len(b)+1), r.IntN(len(b)+1)
	i, j = min(i, j), max(i, j)
	part := append([]byte(nil), b[i:j]...)
	switch r.IntN(6) {
	case 0:
		return append(append(append([]byte(nil), b[:k]...), file(r, r.IntN(50000))...), b[k:]...)
	case 1:
		return append(append([]byte(nil), b[:i]...), b[j:]...)
	case 2:
		rest := append(append([]byte(nil), b[:i]...), b[j:]...)
		k = min(k, len(rest))
		return append(append(append([]byte(nil), rest[:k]...), part...), rest[k:]...)
	case 3:
		return append(append([]byte(nil), b...), part...)
	case 4:
		clear(part)
	case 5:
		for n := range part {
			if r.IntN(20) == 0 {
				part[n] += byte(r.IntN(3))
			}
		}
	}
	return append(append(append([]byte(nil), b[:i]...), part...), b[j:]...)
}

func decoded(t testing.TB, blob, old []byte, size int) []byte {
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: 64 << 20, Size: int64(size)})
	require.NoError(t, err)
	out := make([]byte, size)
	var base io.ReaderAt
	if old != nil {
		base = bytes.NewReader(old)
	}
	for i := range p.Frames() {
		f := p.Frame(i)
		require.NoError(t, p.Decode(i, blob[f.Blob:f.Blob+f.BlobLength], delta.Sources{Old: base, New: bytes.NewReader(out)}, out[f.Target:f.Target+f.Length]))
	}
	return out
}

// The same images make the same bytes on any number of cores, and frames that
// were made before leave no trace in later ones.
func TestDeterministic(t *testing.T) {
	old, new := systems(3, 3<<20)
	var first []byte
	for workers := 1; workers <= 4; workers++ {
		var out bytes.Buffer
		_, err := Make(t.Context(), image(old), image(new), Options{FrameSize: 2 * delta.Leaf, Workers: workers}, &out)
		require.NoError(t, err)
		if first == nil {
			first = out.Bytes()
		}
		require.True(t, bytes.Equal(first, out.Bytes()), "%d workers", workers)
	}
}

// What was moved, and what was relinked at another address, is found: the patch
// holds little more than what is new.
func TestFinds(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	old := make([]byte, 4<<20)
	for i := range old {
		old[i] = byte(r.Uint32())
	}
	relinked := append([]byte(nil), old...)
	for i := 10; i < len(relinked); i += 64 {
		relinked[i] += 3
	}
	added := append([]byte(nil), old[:1<<20]...)
	fresh := make([]byte, 10000)
	for i := range fresh {
		fresh[i] = byte(r.Uint32())
	}
	added = append(append(added, fresh...), old[1<<20:]...)
	for _, row := range []struct {
		state string
		new   []byte
		most  int64
	}{
		{"nothing changed", old, 300},
		{"halves swapped", append(append([]byte(nil), old[2<<20+777:]...), old[:2<<20+777]...), 400},
		{"every 64th byte changed", relinked, 8000},
		{"10,000 bytes inserted", added, 10500},
		{"all zeros", make([]byte, 4<<20), 300},
	} {
		s, err := Make(t.Context(), image(old), image(row.new), Options{}, io.Discard)
		require.NoError(t, err)
		require.LessOrEqual(t, s.Size, row.most, row.state)
	}
}

// Sizes at the borders of frames and leaves, an empty image among them.
func TestSizes(t *testing.T) {
	for _, n := range []int{0, 1, window - 1, window, delta.Leaf - 1, delta.Leaf, delta.Leaf + 1, 3 * delta.Leaf} {
		b := bytes.Repeat([]byte("tandem"), n/6+1)[:n]
		var out bytes.Buffer
		_, err := MakeFull(t.Context(), image(b), Options{FrameSize: delta.Leaf}, &out)
		require.NoError(t, err)
		require.True(t, bytes.Equal(b, decoded(t, out.Bytes(), nil, n)), "%d bytes", n)
		out.Reset()
		_, err = Make(t.Context(), image([]byte("old")), image(b), Options{FrameSize: delta.Leaf}, &out)
		require.NoError(t, err)
		require.True(t, bytes.Equal(b, decoded(t, out.Bytes(), []byte("old"), n)), "%d bytes", n)
	}
}

func TestRefuses(t *testing.T) {
	old, new := image(make([]byte, 1<<20)), image(make([]byte, 1<<20))
	_, err := Make(t.Context(), old, new, Options{Memory: 1 << 20}, io.Discard)
	require.ErrorIs(t, err, ErrMemory)
	_, err = Make(t.Context(), Image{}, new, Options{}, io.Discard)
	require.ErrorIs(t, err, delta.ErrLimit)
	_, err = Make(t.Context(), old, new, Options{FrameSize: 1000}, io.Discard)
	require.ErrorContains(t, err, "frame size")
	_, err = MakeFull(t.Context(), Image{bytes.NewReader(nil), 5}, Options{}, io.Discard)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "the image is shorter than said")
	ctx, cancel := context.WithCancel(t.Context())
	_, err = MakeFull(ctx, new, Options{FrameSize: delta.Leaf, Progress: func(int64, int64) { cancel() }}, io.Discard)
	require.ErrorIs(t, err, context.Canceled)
	_, err = MakeFull(t.Context(), new, Options{}, full{})
	require.ErrorIs(t, err, errFull)
}

var errFull = errors.New("disk full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// An image that changes while it is encoded makes no patch.
func TestChangingImage(t *testing.T) {
	b := make([]byte, 1<<20)
	n := 0
	var out bytes.Buffer
	_, err := MakeFull(t.Context(), Image{readerAt(func(p []byte, off int64) (int, error) {
		n++
		b[0] = byte(n)
		return bytes.NewReader(b).ReadAt(p, off)
	}), 1 << 20}, Options{}, &out)
	require.ErrorIs(t, err, ErrChanged)
	require.Zero(t, out.Len())
}

type readerAt func([]byte, int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
