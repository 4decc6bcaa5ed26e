package recode_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// prose is text with the statistics of a changelog, from a seed: words come back, lines come back changed.
func prose(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	words := make([][]byte, 400)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(9))
		for k := range words[i] {
			words[i][k] = byte('a' + r.IntN(26)*r.IntN(26)/26)
		}
	}
	var b []byte
	for len(b) < size {
		if n := len(b); n > 500 && r.IntN(6) == 0 {
			at := r.IntN(n - 300)
			b = append(b, b[at:at+20+r.IntN(280)]...)
		}
		for range 3 + r.IntN(12) {
			b = append(append(b, words[r.IntN(len(words))*r.IntN(len(words))/len(words)]...), ' ')
		}
		b = fmt.Appendf(b, "(#%d)\n", r.IntN(1000000))
	}
	return b[:size]
}

// contents are what a file may be made of.
func contents() map[string][]byte {
	r := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 70_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	steps := make([]byte, 50_000) // as a program is: small numbers, aligned, many of them zero
	for i := 0; i+4 <= len(steps); i += 4 {
		if r.IntN(3) != 0 {
			steps[i], steps[i+1] = byte(r.IntN(40)), byte(r.IntN(3))
		}
	}
	text := prose(1, 150_000)
	return map[string][]byte{
		"empty":                 {},
		"one byte":              {'x'},
		"one byte, many times":  bytes.Repeat([]byte{'x'}, 30_000),
		"text":                  text,
		"a short text":          text[:900],
		"noise":                 noise,
		"numbers":               steps,
		"text and noise, mixed": append(append(append([]byte{}, text[:30_000]...), noise...), text[:40_000]...),
	}
}

// stream is what an encoder made of a content.
type stream struct {
	name           string
	bytes, content []byte
	zlib           bool // by the code of zlib or gzip, whose headers can be derived
}

// streams are the contents as the encoders pack them whose very bits must come back.
func streams(t *testing.T) (all []stream) {
	add := func(encoder string, zlib bool, deflate func([]byte) []byte) {
		for name, content := range contents() {
			all = append(all, stream{encoder + ", " + name, deflate(content), content, zlib})
		}
	}
	for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6} {
		add(fmt.Sprint("Go ", level), false, func(b []byte) []byte {
			var out bytes.Buffer
			w, err := flate.NewWriter(&out, level)
			require.NoError(t, err)
			_, err = w.Write(b)
			require.NoError(t, err)
			require.NoError(t, w.Close())
			return out.Bytes()
		})
	}
	for _, level := range []int{1, 3, 5, 9} {
		add(fmt.Sprint("klauspost ", level), false, func(b []byte) []byte {
			var out bytes.Buffer
			w, err := kflate.NewWriter(&out, level)
			require.NoError(t, err)
			for _, part := range [][]byte{b[:len(b)/3], b[len(b)/3:]} {
				_, err = w.Write(part)
				require.NoError(t, err)
				require.NoError(t, w.Flush())
			}
			require.NoError(t, w.Close())
			return out.Bytes()
		})
	}
	// What the programs write to standard output, less a header and a trailer.
	for _, p := range []struct {
		header, trailer int
		zlib, optional  bool
		args            []string
	}{
		{10, 8, true, false, []string{"gzip", "-n", "-1"}},
		{10, 8, true, false, []string{"gzip", "-n", "-6"}},
		{10, 8, true, false, []string{"gzip", "-n", "-9"}},
		{10, 8, true, true, []string{"pigz", "-n", "-b", "128", "-6"}},
		{10, 8, false, true, []string{"pigz", "-n", "-11"}},
		{10, 8, false, true, []string{"libdeflate-gzip", "-n", "-12"}},
		{10, 8, false, true, []string{"7z", "a", "-tgzip", "-mx=9", "-si", "-so", "-bd", "x.gz"}},
	} {
		path, err := exec.LookPath(p.args[0])
		if err != nil {
			if !p.optional {
				absent(t, p.args[0])
			}
			continue
		}
		add(fmt.Sprint(p.args), p.zlib, func(b []byte) []byte {
			c := exec.Command(path, p.args[1:]...)
			c.Stdin = bytes.NewReader(b)
			out, err := c.Output()
			require.NoError(t, err, p.args)
			return out[p.header : len(out)-p.trailer]
		})
	}
	return append(all, zlibStreams(t)...)
}

// zlibStreams are made by zlib itself, at levels, windows, memory sizes, strategies and flushes that gzip never takes.
func zlibStreams(t *testing.T) (all []stream) {
	const script = `import os, struct, sys, zlib
for line in open(os.path.join(sys.argv[1], "list")):
    b = open(os.path.join(sys.argv[1], line.strip()), "rb").read()
    for level, window, memory, strategy, flush in [(1, 15, 8, 0, 0), (3, 15, 9, 0, 2), (6, 15, 8, 0, 0), (9, 15, 8, 0, 1), (9, 15, 9, 1, 3),
            (9, 15, 1, 0, 0), (6, 9, 8, 0, 2), (6, 15, 8, 2, 0), (6, 15, 8, 3, 0), (6, 15, 8, 4, 0), (0, 15, 8, 0, 0)]:
        z = zlib.compressobj(level, zlib.DEFLATED, -window, memory, strategy)
        k = len(b) // 2
        out = z.compress(b[:k]) + z.flush(flush) + z.compress(b[k:]) + z.flush()
        sys.stdout.buffer.write(struct.pack("<I", len(out)) + out)
`
	path, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		absent(t, "/usr/bin/python3")
		return nil
	}
	dir := t.TempDir()
	var names []string
	for name, content := range contents() {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		names = append(names, name)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "list"), []byte(strings.Join(names, "\n")), 0o600))
	out, err := exec.Command(path, "-c", script, dir).Output()
	require.NoError(t, err)
	per := 0
	for i := 0; len(out) > 0; i++ {
		n := binary.LittleEndian.Uint32(out)
		all = append(all, stream{fmt.Sprint("zlib ", i), out[4 : 4+n], nil, true})
		out = out[4+n:]
		per = (i + 1) / len(names)
	}
	for i := range all {
		name := names[i/per]
		all[i].name += ", " + name
		all[i].content = contents()[name]
	}
	return all
}

// absent skips on a desk, and fails where all tools must be there.
func absent(t *testing.T, program string) {
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatalf("%s is not installed, and TANDEM_CI is set", program)
	}
	t.Logf("without %s, which is not installed", program)
}

// The desk splits a stream anywhere between blocks, and the device packs each piece to the very bytes.
func TestDeflateRoundTrip(t *testing.T) {
	for _, s := range streams(t) {
		for _, whole := range []bool{false, true} {
			for _, limit := range []int{1 << 30, 30_000} {
				recorded := checkDeflate(t, fmt.Sprintf("%s, content %v, limit %d", s.name, whole, limit), s.bytes, s.content, whole, limit)
				if s.zlib {
					// Headers are most of what two versions of a small file differ in, unless they are derived.
					require.Zero(t, recorded, s.name)
				}
			}
		}
	}
}

// checkDeflate splits a stream, and checks that packing gives it back and that
// expanding gives the same as splitting.
func checkDeflate(t *testing.T, name string, stream, content []byte, whole bool, limit int) (recorded int) {
	t.Helper()
	junk := append(bytes.Clone(stream), 0xee, 0xdd)
	pieces, n, err := recode.SplitDeflate(junk, whole, limit, 1<<30)
	require.NoError(t, err, name)
	require.Equal(t, len(stream), n, name)
	var c recode.Coder
	var packed, body []byte
	for i, p := range pieces {
		require.Equal(t, len(packed), p.Offset, name)
		room := make([]byte, p.Length)
		k, err := c.Pack(recode.Deflate, p.Params, p.Plain, room)
		require.NoError(t, err, "%s, piece %d", name, i)
		require.Equal(t, p.Length, k, name)
		packed = append(packed, room...)
		body = append(body, p.Plain[:p.Body]...)
		recorded += p.Headers
		if p.Alone {
			plain := make([]byte, len(p.Plain)+3)
			k, err = c.Expand(recode.Deflate, p.Params, stream[p.Offset:p.Offset+p.Source], plain)
			require.NoError(t, err, "%s, piece %d", name, i)
			require.True(t, bytes.Equal(p.Plain, plain[:k]), "%s, piece %d", name, i)
		}
	}
	require.True(t, bytes.Equal(stream, packed), name)
	if whole && content != nil {
		require.True(t, bytes.Equal(content, body), name)
	}
	return recorded
}
