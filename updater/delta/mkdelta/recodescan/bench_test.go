package recodescan

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// Bytes per second are those of the content.
func BenchmarkZstd(b *testing.B) {
	content := corpora(b)["program"]
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	require.NoError(b, err)
	old := Zstd(e.EncodeAll(content, nil), 1<<30)
	target := Zstd(e.EncodeAll(changed(content), nil), 1<<30)
	p := NewPair(&old[0], &target[0])
	piece := target[0].Pieces(1 << 20)[1]
	f, err := p.Foresee(piece)
	require.NoError(b, err)
	var c recode.Coder
	packed := target[0].data[piece.Offset-target[0].Offset:][:piece.Length]
	tokens := make([]byte, piece.Tokens.Plain)
	room := make([]byte, piece.Length)
	oldBytes := old[0].data[f.OldOffset-old[0].Offset:][:f.OldLength]
	matches := make([]byte, f.Old)
	_, err = c.Expand(recode.Zstd, piece.Tokens.Expand, packed, tokens)
	require.NoError(b, err)
	_, err = c.Expand(recode.ZstdMatches, f.Expand, oldBytes, matches)
	require.NoError(b, err)
	plain := append(append(bytes.Clone(target[0].Content[piece.ContentOffset:][:piece.ContentLength]), matches...), f.Extra...)
	for _, bench := range []struct {
		name string
		run  func() (int, error)
	}{
		{"expand tokens", func() (int, error) { return c.Expand(recode.Zstd, piece.Tokens.Expand, packed, tokens) }},
		{"pack tokens", func() (int, error) { return c.Pack(recode.Zstd, piece.Tokens.Pack, tokens, room) }},
		{"expand old matches", func() (int, error) { return c.Expand(recode.ZstdMatches, f.Expand, oldBytes, matches) }},
		{"pack foreseen", func() (int, error) { return c.Pack(recode.ZstdMatches, f.Pack, plain, room) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(piece.ContentLength))
			for range b.N {
				_, err := bench.run()
				require.NoError(b, err)
			}
		})
	}
}
