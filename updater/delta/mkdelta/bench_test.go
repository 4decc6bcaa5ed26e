package mkdelta

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
)

// pair returns the images that a benchmark runs on: real ones where
// TANDEM_DELTA_OLD and TANDEM_DELTA_NEW name them, otherwise a made-up pair of
// 16 MiB.
func pair(b *testing.B) (old, new Image) {
	open := func(name string) Image {
		f, err := os.Open(name)
		require.NoError(b, err)
		b.Cleanup(func() { f.Close() })
		info, err := f.Stat()
		require.NoError(b, err)
		return Image{f, info.Size()}
	}
	if name := os.Getenv("TANDEM_DELTA_OLD"); name != "" {
		return open(name), open(os.Getenv("TANDEM_DELTA_NEW"))
	}
	o, n := systems(1, 16<<20)
	return image(o), image(n)
}

func BenchmarkMake(b *testing.B) {
	old, new := pair(b)
	b.SetBytes(new.Size)
	for b.Loop() {
		var out bytes.Buffer
		s, err := Make(b.Context(), old, new, Options{}, &out)
		require.NoError(b, err)
		b.ReportMetric(float64(s.Size), "delta-B")
		b.ReportMetric(100*float64(s.Size)/float64(new.Size), "%")
		b.ReportMetric(float64(s.Memory), "device-B")
		b.Logf("%+v", s)
	}
}

func BenchmarkDecode(b *testing.B) {
	old, new := pair(b)
	var out bytes.Buffer
	s, err := Make(b.Context(), old, new, Options{}, &out)
	require.NoError(b, err)
	p, err := delta.Open(bytes.NewReader(out.Bytes()), s.Size, delta.Limits{Memory: s.Memory, Size: new.Size})
	require.NoError(b, err)
	b.SetBytes(new.Size)
	dst := make([]byte, delta.MaxFrame)
	for b.Loop() {
		for i := range p.Frames() {
			f := p.Frame(i)
			require.NoError(b, p.Decode(i, out.Bytes()[f.Blob:f.Blob+f.BlobLength], delta.Sources{Old: old, New: new}, dst[:f.Length]))
		}
	}
}
