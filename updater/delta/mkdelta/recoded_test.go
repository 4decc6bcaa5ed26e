package mkdelta

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
)

// archive is an image that needs no tool to make: a cpio archive (newc, see cpio(5)).
func archive(names []string, content map[string][]byte) []byte {
	var b bytes.Buffer
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	for _, name := range append(names, "TRAILER!!!") {
		c := content[name]
		mode := 0o100644
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, mode, 0, 0, 1, 0, len(c), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad()
		b.Write(c)
		pad()
	}
	return b.Bytes()
}

// prose is text with the statistics of text, where a version changes a line here and there.
func prose(version, n int) []byte {
	r := rand.New(rand.NewPCG(4, 4))
	words := make([]string, 3000)
	for i := range words {
		words[i] = fmt.Sprintf("%c%x", 'a'+r.IntN(26), r.IntN(1<<20))
	}
	var b strings.Builder
	for line := 0; b.Len() < n; line++ {
		if line%97 == 0 {
			fmt.Fprintf(&b, "version %d, ", version)
		}
		for range 10 {
			b.WriteString(words[r.IntN(len(words))] + " ")
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, 9)
	if err != nil {
		panic(err) // the level
	}
	w.Write(b) // a buffer takes all
	w.Close()
	return out.Bytes()
}

func packedZstd(b []byte) []byte {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // an option
	}
	return e.EncodeAll(b, nil)
}

func compressedPair(t testing.TB) (old, fresh []byte) {
	images := make([][]byte, 2)
	for i := range images {
		images[i] = archive([]string{"doc/changes.gz", "boot/initrd", "usr/data"}, map[string][]byte{
			"doc/changes.gz": zipped(prose(i, 100<<10)),
			"boot/initrd":    packedZstd(prose(i, 1<<20)),
			"usr/data":       prose(i, 1<<20), // an initramfs holds what the system holds
		})
	}
	return images[0], images[1]
}

// A small change in what is compressed makes a small patch, though the compressed bytes have
// little in common, and the image comes out bit for bit, whatever frame ends amid a piece.
func TestCompressed(t *testing.T) {
	old, fresh := compressedPair(t)
	for _, size := range []int{delta.Leaf, 1 << 20} {
		var seen, blind bytes.Buffer
		s, err := Make(t.Context(), image(old), image(fresh), Options{FrameSize: size, Workers: 2}, &seen)
		require.NoError(t, err)
		require.True(t, bytes.Equal(fresh, decoded(t, seen.Bytes(), old, len(fresh))))
		require.Less(t, s.Memory, int64(10<<20))

		// The same bytes as an image that nobody can list.
		hide := func(b []byte) []byte { return append([]byte("hidden  "), b...) }
		_, err = Make(t.Context(), image(hide(old)), image(hide(fresh)), Options{FrameSize: size, Workers: 2}, &blind)
		require.NoError(t, err)
		t.Logf("frames of %d: %d bytes, %d without looking into it", size, seen.Len(), blind.Len())
		require.Less(t, seen.Len()*2, blind.Len())
	}
}

// Whatever is done to a patch, decoding it ends, with an error or with as many bytes as were asked for,
// and what is not refused is either right or noticed by the image's leaves. All ways to say where bytes
// come from are in these frames. With TANDEM_LONG (make long) it is done a hundred thousand times.
func TestCompressedCorruption(t *testing.T) {
	tries := 4000
	if os.Getenv("TANDEM_LONG") != "" {
		tries = 100_000
	}
	old, fresh := compressedPair(t)
	var out bytes.Buffer
	_, err := Make(t.Context(), image(old), image(fresh), Options{FrameSize: 2 * delta.Leaf, Workers: 2}, &out)
	require.NoError(t, err)
	flipped(t, out.Bytes(), old, fresh, tries)
	// A patch cut short has no table, or a frame that is not there.
	for n := range out.Len() {
		_, err := delta.Open(bytes.NewReader(out.Bytes()[:n]), int64(n), delta.Limits{Memory: 64 << 20, Size: int64(len(fresh))})
		require.ErrorIs(t, err, delta.ErrFormat, "cut to %d bytes", n)
	}
}
