package recode_test

import (
	"bytes"
	"compress/gzip"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// A device spends on a compressed file what this says, besides reading and writing it.
func BenchmarkDeflate(b *testing.B) {
	content := prose(8, 1<<20)
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, 9)
	require.NoError(b, err)
	_, err = w.Write(content)
	require.NoError(b, err)
	require.NoError(b, w.Close())
	if path, err := exec.LookPath("gzip"); err == nil { // headers that are derived cost more
		c := exec.Command(path, "-9n")
		c.Stdin = bytes.NewReader(content)
		out, err := c.Output()
		require.NoError(b, err)
		packed = *bytes.NewBuffer(out)
	}
	stream := packed.Bytes()[10:]
	for _, whole := range []bool{false, true} {
		pieces, _, err := recode.SplitDeflate(stream, whole, 1<<30, 1<<30)
		require.NoError(b, err)
		p := pieces[0]
		name := map[bool]string{false: "tokens", true: "content"}[whole]
		var c recode.Coder
		plain, out := make([]byte, len(p.Plain)), make([]byte, p.Length)
		b.Run("expand to "+name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				_, err := c.Expand(recode.Deflate, p.Params, stream, plain)
				require.NoError(b, err)
			}
		})
		b.Run("pack "+name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				_, err := c.Pack(recode.Deflate, p.Params, p.Plain, out)
				require.NoError(b, err)
			}
		})
	}
}
