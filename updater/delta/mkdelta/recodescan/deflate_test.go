package recodescan_test

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/recodescan"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

func sample(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = "the quick brown fox\n"[r.IntN(20)]
		if i > 64 && r.IntN(4) == 0 {
			i += copy(b[i:], b[i-r.IntN(60)-4:][:4])
		}
	}
	return b
}

func gz(t *testing.T, content []byte, level int) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	require.NoError(t, err)
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("xx")
	_, err = w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

// Streams are found wherever they lie, and only where their checksum says that they are streams.
func TestDeflate(t *testing.T) {
	a, b, c := sample(1, 200_000), sample(2, 70_000), sample(3, 5)
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	w, err := z.Create("b.txt")
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	picture := image.NewGray(image.Rect(0, 0, 40, 40))
	picture.Set(3, 4, color.White)
	var drawing bytes.Buffer
	require.NoError(t, png.Encode(&drawing, picture))

	file := append([]byte("\x1f\x8b\x08 no member \x1f\x8b"), gz(t, a, 6)...)
	file = append(append(file, "between\x1f\x8b\x08\x00"...), gz(t, c, 1)...)
	file = append(file, gz(t, a, 9)...)
	file = append(append(file, archive.Bytes()...), drawing.Bytes()...)
	damaged := gz(t, b, 6)
	damaged[len(damaged)-6] ^= 1
	file = append(file, damaged...)

	found := recodescan.Deflate(file, 1<<30)
	require.Len(t, found, 5)
	for i, want := range [][]byte{a, c, a, b} {
		require.Equal(t, want, found[i].Content, i)
	}
	for _, s := range found {
		for _, content := range []bool{false, true} {
			pieces, err := s.Pieces(content, 40_000)
			require.NoError(t, err)
			at := 0
			var body []byte
			for _, p := range pieces {
				require.Equal(t, at, p.Offset)
				at += p.Length
				body = append(body, p.Plain[:p.Body]...)
			}
			require.Equal(t, s.Length, at)
			if content {
				require.Equal(t, s.Content, body)
			}
		}
	}
	require.Len(t, recodescan.Deflate(file, 100_000), 3, "streams above the limit are left alone")
	for cut := range 300 {
		recodescan.Deflate(file[:cut], 1<<20)
		recodescan.Deflate(archive.Bytes()[:min(cut, archive.Len())], 1<<20)
		recodescan.Deflate(drawing.Bytes()[:min(cut, drawing.Len())], 1<<20)
	}
}

func TestZlib(t *testing.T) {
	content := sample(9, 130_000)
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	_, err := w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	s, ok := recodescan.Zlib(out.Bytes(), 1<<20)
	require.True(t, ok)
	require.Equal(t, content, s.Content)
	pieces, err := s.Pieces(true, 1<<20)
	require.NoError(t, err)
	require.True(t, pieces[0].Alone)
	plain := make([]byte, len(pieces[0].Plain))
	n, err := new(recode.Coder).Expand(recode.Deflate, pieces[0].Params, out.Bytes()[2:], plain)
	require.NoError(t, err)
	require.Equal(t, pieces[0].Plain, plain[:n])

	for _, bad := range [][]byte{nil, {0x78}, {0x78, 0x9d}, out.Bytes()[:100], out.Bytes()[:out.Len()-1]} {
		_, ok := recodescan.Zlib(bad, 1<<20)
		require.False(t, ok)
	}
}
