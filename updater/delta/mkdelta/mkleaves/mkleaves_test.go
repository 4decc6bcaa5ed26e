package mkleaves_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkleaves"
)

func image(b []byte) leaves.Image {
	return leaves.Image{ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

func listOf(b []byte) (list []byte) {
	for at := 0; at < len(b); at += delta.Leaf {
		sum := sha256.Sum256(b[at:min(at+delta.Leaf, len(b))])
		list = append(list, sum[:]...)
	}
	return list
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func never() error { return nil }

// pair is an old image and one in which blocks were changed, moved and cleared.
func pair(seed uint64) (old, fresh []byte) {
	r := rand.New(rand.NewPCG(seed, 1))
	old = noise(r, 20*delta.Leaf+r.IntN(delta.Leaf))
	fresh = bytes.Clone(old)
	copy(fresh[3*delta.Leaf+100:], "changed")
	clear(fresh[6*delta.Leaf : 8*delta.Leaf])
	copy(fresh[10*delta.Leaf:], old[4096:7*delta.Leaf]) // moved, and across the end of what moved
	return old, fresh[:len(fresh)-r.IntN(delta.Leaf)]
}

// The list comes out whatever happened to the image, and takes a fraction of its bytes.
func TestList(t *testing.T) {
	for seed := range uint64(12) {
		old, fresh := pair(seed)
		list := listOf(fresh)
		blob, err := mkleaves.Make(t.Context(), image(old), image(fresh), list)
		require.NoError(t, err, "seed %d", seed)
		require.Less(t, len(blob), 5*sha256.Size, "seed %d", seed)
		got, err := leaves.List(blob, int64(len(fresh)), image(old), never)
		require.NoError(t, err)
		require.Equal(t, list, got, "seed %d", seed)
	}
	for _, size := range []int{0, 1, delta.Leaf, delta.Leaf + 1} {
		fresh := bytes.Repeat([]byte{7}, size)
		blob, err := mkleaves.Make(t.Context(), image(nil), image(fresh), listOf(fresh))
		require.NoError(t, err)
		got, err := leaves.List(blob, int64(size), image(nil), never)
		require.NoError(t, err)
		require.True(t, bytes.Equal(listOf(fresh), got))
	}
}

// A list that is not that of the new image is not handed out.
func TestMakeWrongList(t *testing.T) {
	old, fresh := pair(1)
	list := listOf(fresh)
	list[0] ^= 1
	_, err := mkleaves.Make(t.Context(), image(old), image(fresh), list)
	require.ErrorIs(t, err, mkleaves.ErrChanged)
	_, err = mkleaves.Make(t.Context(), image(old), image(fresh), list[1:])
	require.Error(t, err)
}

// Every truncation is refused before the old image is read, and no flipped bit does more than make
// a wrong list, which its digest tells.
func TestCorruption(t *testing.T) {
	old, fresh := pair(2)
	blob, err := mkleaves.Make(t.Context(), image(old), image(fresh), listOf(fresh))
	require.NoError(t, err)
	closed := leaves.Image{ReaderAt: failing{}, Size: int64(len(old))}
	for n := range blob {
		_, err := leaves.List(blob[:n], int64(len(fresh)), closed, never)
		require.ErrorIs(t, err, delta.ErrFormat, "cut to %d bytes", n)
	}
	_, err = leaves.List(append(blob[:len(blob):len(blob)], 0), int64(len(fresh)), closed, never)
	require.ErrorIs(t, err, delta.ErrFormat)
	for bit := 0; bit < 8*len(blob); bit += 1 + bit/200 {
		bad := bytes.Clone(blob)
		bad[bit/8] ^= 1 << (bit % 8)
		got, err := leaves.List(bad, int64(len(fresh)), image(old), never)
		if err == nil {
			require.NotEqual(t, listOf(fresh), got, "bit %d", bit)
			require.Len(t, got, len(listOf(fresh)))
		} else {
			require.ErrorIs(t, err, delta.ErrFormat)
		}
	}
	_, err = leaves.List(blob, int64(len(fresh)), closed, never)
	require.ErrorIs(t, err, delta.ErrBase)
	require.ErrorIs(t, err, errFailing)
	stop := errors.New("enough")
	_, err = leaves.List(blob, int64(len(fresh)), image(old), func() error { return stop })
	require.ErrorIs(t, err, stop)
}

var errFailing = errors.New("medium error")

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errFailing }

// What FORMAT.md says, by hand: two leaves of the old image that moved by 4096 bytes, one of
// zeros, a digest, a short leaf at the end.
func TestFormat(t *testing.T) {
	old := noise(rand.New(rand.NewPCG(3, 3)), 6*delta.Leaf)
	fresh := append(bytes.Clone(old[4096:4096+2*delta.Leaf]), make([]byte, delta.Leaf)...)
	own := bytes.Repeat([]byte{5}, delta.Leaf)
	fresh = append(append(fresh, own...), old[5*delta.Leaf:5*delta.Leaf+5000]...)
	sum := sha256.Sum256(own)
	blob := []byte("TNDMLEAF\x01" + "\x09" + "\x80\x40" + "\x06" + "\x04")
	blob = append(append(blob, sum[:]...), "\x05"+"\x80\xc0\x07"...) // from 4096 to 65536: 61440 more
	got, err := leaves.List(blob, int64(len(fresh)), image(old), never)
	require.NoError(t, err)
	require.Equal(t, listOf(fresh), got)
	made, err := mkleaves.Make(t.Context(), image(old), image(fresh), listOf(fresh))
	require.NoError(t, err)
	require.Equal(t, blob, made)
}

// Each thing that a list may not say is refused before anything is read, and so before any
// memory is asked for: sizes from nowhere, operations that are none, numbers too long.
func TestListRefuses(t *testing.T) {
	closed := leaves.Image{ReaderAt: failing{}, Size: 2 * delta.Leaf}
	zero := func(n byte) string { return string(n<<leaves.Kinds | leaves.Zero) }
	for name, row := range map[string]struct {
		blob string
		size int64
		want error
	}{
		"zeros":                            {leaves.Magic + zero(2), 2 * delta.Leaf, nil},
		"an image of nothing":              {leaves.Magic, 0, nil},
		"a number of nine groups":          {leaves.Magic + "\x8a\x80\x80\x80\x80\x80\x80\x80\x00", 2 * delta.Leaf, nil},
		"no magic":                         {zero(2), 2 * delta.Leaf, delta.ErrFormat},
		"another magic":                    {leaves.Magic[:8] + "\x02" + zero(2), 2 * delta.Leaf, delta.ErrFormat},
		"a size below zero":                {leaves.Magic, -delta.Leaf, delta.ErrFormat},
		"a size beyond any image":          {leaves.Magic + "\x86\x80\x80\x20", delta.MaxSize + 1, delta.ErrFormat},
		"a number of ten groups":           {leaves.Magic + "\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x00", 2 * delta.Leaf, delta.ErrFormat},
		"an unknown operation":             {leaves.Magic + string([]byte{2<<leaves.Kinds | 3}), 2 * delta.Leaf, delta.ErrFormat},
		"an operation on nothing":          {leaves.Magic + zero(0) + zero(2), 2 * delta.Leaf, delta.ErrFormat},
		"an operation on one leaf more":    {leaves.Magic + zero(3), 2 * delta.Leaf, delta.ErrFormat},
		"a digest that is not there":       {leaves.Magic + "\x04", delta.Leaf, delta.ErrFormat},
		"a leaf before the old image":      {leaves.Magic + "\x05\x01", delta.Leaf, delta.ErrFormat},
		"a leaf past the old image":        {leaves.Magic + "\x05\x82\x80\x08", delta.Leaf, delta.ErrFormat},
		"a displacement that is not there": {leaves.Magic + "\x05", delta.Leaf, delta.ErrFormat},
		"a byte behind it":                 {leaves.Magic + zero(2) + "x", 2 * delta.Leaf, delta.ErrFormat},
	} {
		hashed := 0
		_, err := leaves.List([]byte(row.blob), row.size, closed, func() error {
			if hashed++; hashed > 10 {
				return errFailing // a size that was believed would take an hour
			}
			return nil
		})
		require.ErrorIs(t, err, row.want, name)
	}
}

func FuzzList(f *testing.F) {
	old, fresh := pair(4)
	blob, err := mkleaves.Make(f.Context(), image(old), image(fresh), listOf(fresh))
	require.NoError(f, err)
	f.Add(blob, int64(len(fresh)))
	f.Fuzz(func(t *testing.T, blob []byte, size int64) {
		if size > 64*delta.Leaf {
			return
		}
		list, err := leaves.List(blob, size, image(old), never)
		if err == nil {
			require.EqualValues(t, sha256.Size*leaves.Count(size), len(list))
		}
	})
}
