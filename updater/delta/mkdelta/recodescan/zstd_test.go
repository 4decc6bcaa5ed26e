package recodescan

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// corpora are contents that make encoders use each kind of block and table.
func corpora(t testing.TB) map[string][]byte {
	t.Helper()
	program, err := os.ReadFile(must(os.Executable()))
	require.NoError(t, err)
	program = program[:min(len(program), 3<<20)]
	r := rand.New(rand.NewChaCha8([32]byte{1}))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 200<<10) // hardly any match, few symbols: Huffman only
	for i := range skewed {
		skewed[i] = "eeeeeeettttaaoinshr"[r.IntN(19)]
	}
	var text bytes.Buffer
	for i := range 40000 {
		fmt.Fprintf(&text, "%d: slot %c holds %d sectors at %#x\n", i, 'A'+rune(i&1), r.IntN(1<<16), i*4096)
	}
	zeros := make([]byte, 700<<10)
	mixed := bytes.Join([][]byte{program[:300<<10], zeros[:200<<10], noise[:150<<10], text.Bytes()[:200<<10], skewed, program[100<<10 : 900<<10]}, nil)
	return map[string][]byte{
		"empty": {}, "one byte": {7}, "seven bytes": []byte("seven b"), "small": text.Bytes()[:400],
		"program": program, "noise": noise, "skewed": skewed, "text": text.Bytes(), "zeros": zeros, "mixed": mixed,
	}
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

// tool returns a program, or skips: on a desk it may be missing, in CI not.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// whole asserts that all of the file is frames, all blocks of which come back.
func whole(t *testing.T, file, content []byte, limit int) {
	t.Helper()
	var got []byte
	for _, f := range Zstd(file, 1<<30) {
		got = append(got, f.Content...)
		at := f.Offset
		for _, p := range f.Pieces(limit) {
			require.Equal(t, at, p.Offset, "a piece before did not come back")
			at += p.Length
		}
		require.Equal(t, f.Offset+f.Length, at, "the last piece did not come back")
	}
	require.True(t, bytes.Equal(content, got), "frames found hold %d bytes of %d", len(got), len(content))
}

// Whatever libzstd's encoder makes, at any level and with any of the options
// that change the bits, comes back bit for bit.
func TestReferenceEncoder(t *testing.T) {
	bin := tool(t, "zstd")
	options := []string{"-1", "--fast=5", "-3", "-6 --no-check", "-9 -T0", "-12 --long=27 -T2", "-16 --zstd=minMatch=3", "-19", "-22 --ultra"}
	if testing.Short() {
		options = []string{"-1", "-9 -T0", "-19"}
	}
	dir := t.TempDir()
	for name, content := range corpora(t) {
		t.Run(name, func(t *testing.T) {
			in := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			require.NoError(t, os.WriteFile(in, content, 0o600))
			for _, o := range options {
				out, err := exec.Command(bin, append(strings.Fields(o), "-q", "-c", in)...).Output()
				require.NoError(t, err)
				whole(t, out, content, 1<<20)
			}
		})
	}
}

// The same holds for the Go encoder, which chooses its tables otherwise.
func TestGoEncoder(t *testing.T) {
	for name, content := range corpora(t) {
		for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
			require.NoError(t, err)
			t.Run(fmt.Sprintf("%s, %v", name, level), func(t *testing.T) {
				whole(t, e.EncodeAll(content, nil), content, 300<<10)
			})
		}
	}
}

// Frames one behind the other, and skippable ones between, are all found;
// what follows that is no frame is left alone.
func TestManyFrames(t *testing.T) {
	e, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	all := corpora(t)
	file := e.EncodeAll(all["small"], nil)
	file = append(file, 0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c')
	file = e.EncodeAll(all["text"], file)
	content := append(bytes.Clone(all["small"]), all["text"]...)
	whole(t, file, content, 1<<20)
	whole(t, append(file, "trailing bytes"...), content, 1<<20)
}

// The device's own decoder, for small frames, says what the Go decoder says.
func TestContent(t *testing.T) {
	var c recode.Coder
	for name, content := range corpora(t) {
		for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
			require.NoError(t, err)
			for _, f := range Zstd(e.EncodeAll(content, nil), 1<<30) {
				out := make([]byte, len(content))
				n, err := c.Expand(recode.ZstdContent, []byte{0}, f.data, out)
				require.NoError(t, err, name)
				require.True(t, bytes.Equal(content, out[:n]), name)
				if n > 0 {
					_, err = c.Expand(recode.ZstdContent, []byte{0}, f.data, out[:n-1])
					require.ErrorIs(t, err, recode.ErrRoom)
				}
			}
		}
	}
}

// Every block of a squashfs image comes back, from its tokens and from its
// content and matches.
func TestSquashfs(t *testing.T) {
	bin := tool(t, "mksquashfs")
	dir := t.TempDir()
	for name, content := range corpora(t) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, " ", "-")), content, 0o600))
	}
	image := filepath.Join(t.TempDir(), "image")
	out, err := exec.Command(bin, dir, image, "-comp", "zstd", "-quiet", "-no-progress", "-processors", "1").CombinedOutput()
	require.NoError(t, err, string(out))
	data, err := os.ReadFile(image)
	require.NoError(t, err)
	var c recode.Coder
	found := 0
	for at := 0; at < len(data); at++ {
		if !IsZstd(data[at:]) {
			continue
		}
		if frames := Zstd(data[at:min(len(data), at+1<<20)], 1<<20); len(frames) > 0 {
			f := frames[0]
			whole(t, f.frame, f.Content, 1<<20)
			room := make([]byte, len(f.Content))
			n, err := c.Expand(recode.ZstdContent, []byte{0}, f.data, room)
			require.NoError(t, err)
			require.True(t, bytes.Equal(f.Content, room[:n]))
			found += n
			at += len(f.frame) - 1
		}
	}
	require.Greater(t, found, 3<<20)
}
