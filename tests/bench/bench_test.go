package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// Measured steps are this program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "step" {
		main()
		return
	}
	os.Exit(m.Run())
}

func need(t *testing.T, program string) {
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal(program + " is missing: make setup")
		}
		t.Skip("needs " + program)
	}
}

// images writes two images that have most in common, and returns what a run knows of them.
func images(t *testing.T, dir string) made {
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 300000)
	for i := range data {
		data[i] = byte(r.Uint32N(20))
	}
	picture := func(name string) picture {
		p := picture{Path: filepath.Join(dir, name), Size: int64(len(data))}
		require.NoError(t, os.WriteFile(p.Path, data, 0o644))
		var err error
		p.SHA256, err = digest(p.Path)
		require.NoError(t, err)
		return p
	}
	m := made{Old: picture("old")}
	for i := 150000; i < 155000; i++ {
		data[i]++
	}
	m.New = picture("new")
	return m
}

func newBench(t *testing.T) *bench {
	self, err := os.Executable()
	require.NoError(t, err)
	return &bench{build: t.TempDir(), self: self, limit: time.Hour, log: io.Discard}
}

// Each of our payloads rebuilds the image, and the row says what it took.
func TestOurs(t *testing.T) {
	b := newBench(t)
	m := images(t, b.build)
	for _, tool := range allTools {
		if isPeer(tool.name) {
			continue
		}
		row := b.measureTool(t.Context(), tool, pair{}, m, b.build)
		require.Empty(t, row.Failed)
		require.Positive(t, row.Bytes, tool.name)
		require.Less(t, row.Bytes, m.New.Size)
		require.Positive(t, row.Encode.CPU)
		require.GreaterOrEqual(t, row.Decode.Written, m.New.Size)
		require.Positive(t, row.Ours.Anonymous)
		if tool.name != ourFull {
			require.Less(t, row.Bytes, int64(100000), tool.name)
			require.GreaterOrEqual(t, row.Ours.OldRead, m.New.Size-100000)
		}
	}
}

// A tool that makes another image fails, and so does one that fails; the run goes on.
func TestWrongImage(t *testing.T) {
	b := newBench(t)
	m := images(t, b.build)
	wrong := peer{name: "wrong", run: func(ctx context.Context, j *job) error {
		return j.files(ctx, "d", []string{"cp", j.old, j.at("d")}, []string{"cp", j.at("d"), j.at("out")})
	}}
	require.Contains(t, b.measureTool(t.Context(), wrong, pair{}, m, b.build).Failed, "differs")
	broken := peer{name: "broken", run: func(ctx context.Context, j *job) error { return j.encode(ctx, "false") }}
	require.Contains(t, b.measureTool(t.Context(), broken, pair{}, m, b.build).Failed, "false: exit status 1")
	slow := peer{name: "slow", slow: true, run: func(context.Context, *job) error { return errors.New("ran") }}
	m.New.Size = quick + 1
	require.Contains(t, b.measureTool(t.Context(), slow, pair{}, m, b.build).Skipped, "SLOW=1")
	require.Contains(t, b.measureTool(t.Context(), slow, pair{slow: true}, m, b.build).Failed, "ran")
	large := peer{name: "large", memory: 1 << 30, run: slow.run}
	require.Contains(t, b.measureTool(t.Context(), large, pair{}, m, b.build).Skipped, "memory")
}

// What goes through read and write is counted, in a process that has ended too.
func TestMeasure(t *testing.T) {
	c, said, err := newBench(t).measure(t.Context(), "sh", "-c", "dd if=/dev/zero of=/dev/null bs=1M count=64 status=none; echo done")
	require.NoError(t, err)
	require.Equal(t, "done\n", string(said))
	require.GreaterOrEqual(t, c.Read, int64(64<<20))
	require.GreaterOrEqual(t, c.Written, int64(64<<20))
	require.Positive(t, c.Peak)
	b := newBench(t)
	b.limit = time.Millisecond
	_, _, err = b.measure(t.Context(), "sleep", "60")
	require.ErrorContains(t, err, "deadline exceeded after 1ms")
}

// Files are the same if every byte is, to the end of both.
func TestSame(t *testing.T) {
	dir := t.TempDir()
	at := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o644))
		return path
	}
	for _, n := range []int{0, 1, 1<<18 - 1, 1 << 18, 1<<18 + 1} {
		data := bytes.Repeat([]byte{7}, n)
		for other, want := range map[string]bool{string(data): true, string(data) + "x": false, string(data[:n/2]): n == 0} {
			got, err := same(at("a", data), at("b", []byte(other)))
			require.NoError(t, err)
			require.Equal(t, want, got, "%d bytes and %d", n, len(other))
			got, err = same(at("a", []byte(other)), at("b", data))
			require.NoError(t, err)
			require.Equal(t, want, got, "%d bytes and %d", len(other), n)
		}
	}
	_, err := same(dir, dir)
	require.Error(t, err)
}

// A read that goes on where the last one ended is no seek.
func TestSeeks(t *testing.T) {
	s := &source{ReaderAt: bytes.NewReader(make([]byte, 100))}
	for _, at := range []int64{0, 10, 50, 60, 0} {
		_, err := s.ReadAt(make([]byte, 10), at)
		require.NoError(t, err)
	}
	require.EqualValues(t, 2, s.seeks)
	require.EqualValues(t, 50, s.bytes)
}

// The block index of RAUC costs 32 bytes a block, and each block that is new once.
func TestRaucIndex(t *testing.T) {
	dir := t.TempDir()
	block := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	older, newer := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	require.NoError(t, os.WriteFile(older, append(block(1), block(2)...), 0o644))
	require.NoError(t, os.WriteFile(newer, bytes.Join([][]byte{block(2), block(3), block(3), block(0), block(1), {1, 2}}, nil), 0o644))
	d, err := raucIndex(older, newer)
	require.NoError(t, err)
	require.EqualValues(t, 6*32, d.Index)
	require.EqualValues(t, 6*32+2*4096, d.Download)
}

// The advised image holds what Debian's holds, unpacked; the rest is as it was.
func TestEdits(t *testing.T) {
	need(t, "xz")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte("changes"))
	z.Close()
	e, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	kernel := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel"), 1000)...)
	archive := filepath.Join(t.TempDir(), "tree.tar")
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name, link string
		data       []byte
	}{
		{name: "./etc/hostname", data: []byte("desk")}, {name: "./etc/hosts", data: []byte("hosts")}, {name: "./var/log/", data: nil}, {name: "./var/log/x", data: []byte("x")},
		{name: "./usr/share/doc/a.gz", data: packed.Bytes()}, {name: "./usr/share/doc/b.gz", link: "a.gz"},
		{name: "./boot/initrd.img-6", data: e.EncodeAll([]byte("070701 archive"), nil)}, {name: "./boot/vmlinuz-6", data: bzImage(t, kernel)},
	} {
		h := &tar.Header{Name: f.name, Linkname: f.link, Size: int64(len(f.data)), Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}
		if f.link != "" {
			h.Typeflag = tar.TypeSymlink
		}
		if f.data == nil && f.link == "" {
			h.Typeflag = tar.TypeDir
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write(f.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(archive, out.Bytes(), 0o644))
	r, err := edited(archive, neutral, uncompressed, plainKernel)
	require.NoError(t, err)
	got := make(map[string]string)
	for a := tar.NewReader(r); ; {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.Equal(t, "y", h.PAXRecords["SCHILY.xattr.user.x"])
		data, err := io.ReadAll(a)
		require.NoError(t, err)
		got[h.Name] = h.Linkname + string(data)
	}
	require.Equal(t, map[string]string{"./etc/hosts": "hosts", "./var/log": "", "./usr/share/doc/a": "changes", "./usr/share/doc/b": "a",
		"./boot/initrd.img-6": "070701 archive", "./boot/vmlinuz-6": string(kernel)}, got)
	r, err = edited(archive, withoutKernel, func(e *entry) error { return fmt.Errorf("stop") })
	require.NoError(t, err)
	_, err = io.ReadAll(r)
	require.ErrorContains(t, err, "/etc/hostname: stop")
}

// bzImage packs a kernel as Linux's build does, as far as a boot loader looks at it.
func bzImage(t *testing.T, kernel []byte) []byte {
	cmd := exec.Command("xz", "--check=crc32", "--stdout")
	cmd.Stdin = bytes.NewReader(kernel)
	packed, err := cmd.Output()
	require.NoError(t, err)
	packed = binary.LittleEndian.AppendUint32(packed, uint32(len(kernel)))
	b := make([]byte, 3*512+100)
	b[0x1f1] = 2
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(b[0x248:], 100)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(packed)))
	return append(append(b, packed...), "signature"...)
}

// A bar is met, missed, or not in the run; the advised images are measured by the unmodified pair.
func TestBars(t *testing.T) {
	did := func(tool string, bytes int64) row {
		return row{Tool: tool, Bytes: bytes, Ours: &decoded{Anonymous: 9 << 20}}
	}
	results := []result{
		{Pair: "ext4-whole", Rows: []row{did(reference, 1000), did(ourDelta, 451), did(ourIndex, 80), did(casyncTool, 100)}},
		{Pair: "advised", Rows: []row{did(reference, 300), did(ourDelta, 200)}},
		{Pair: "squashfs-zstd", Rows: []row{did(reference, 300), did("bsdiff", 100), did(ourDelta, 49), {Tool: "rdiff", Skipped: "slow"}, {Tool: "zstd --patch-from", Bytes: 1, Failed: "no"}}},
		{Pair: "erofs-lz4", Rows: []row{did("bsdiff", 100), did(ourDelta, 70)}},
	}
	verdicts := make(map[string]string)
	all := bars(results, storyMemory{25, "a story"})
	for _, b := range all {
		verdicts[b.name] = fmt.Sprintf("%.3g %v", b.value, b.met())
	}
	require.Equal(t, "0.451 false", verdicts["delta, ext4-whole"])
	require.Equal(t, "0.2 true", verdicts["delta, advised, x of ext4-whole"])
	require.Equal(t, "0.49 true", verdicts["delta, squashfs-zstd or erofs-lz4"])
	require.Equal(t, "NaN false", verdicts["delta, ext4-kernel"])
	require.Equal(t, "0.8 true", verdicts["index payload"])
	require.Equal(t, "25 false", verdicts["peak of the whole updater while it installs"])
	require.Equal(t, "9 true", verdicts["anonymous memory of the decoder"])
	var out bytes.Buffer
	require.Equal(t, 2, writeBars(all, func(f string, a ...any) { fmt.Fprintf(&out, f, a...) }))
	require.Contains(t, out.String(), "bars: 4/6 met\n")
	require.Contains(t, out.String(), "squashfs-zstd 0.490 (bsdiff), erofs-lz4 0.700 (bsdiff)")
}

// The memory that the stories measured is the highest of their lines.
func TestMemoryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.txt")
	require.Zero(t, memoryFile(path))
	require.NoError(t, os.WriteFile(path, []byte("memory, tiny  RSS  10.8 MiB\ninstall, a 2.0.0: read 2; peak RSS 18.3 MiB (at most 40)\ninstall, b 2.0.0: read 2; peak RSS 17.3 MiB\n"), 0o644))
	require.Equal(t, storyMemory{18.3, "a 2.0.0"}, memoryFile(path))
}

// Table and plot take any result, and the plot is XML.
func TestReport(t *testing.T) {
	results := []result{{Pair: "a<b", About: "what", New: picture{Size: 1000}, Rows: []row{
		{Tool: reference, Bytes: 10, Decode: &cost{}}, {Tool: ourDelta, Failed: "a | b"}, {Tool: "bsdiff", Skipped: "slow"}}}}
	var page bytes.Buffer
	require.Zero(t, writeReport(&page, results, storyMemory{}))
	require.Contains(t, page.String(), "| xdelta3 ")
	require.Contains(t, page.String(), "failed: a / b")
	for d := xml.NewDecoder(bytes.NewReader(plot(results))); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	dir := filepath.Join(t.TempDir(), "results")
	require.NoError(t, results[0].save(dir))
	read, err := load(dir, results[0].Pair)
	require.NoError(t, err)
	require.Equal(t, results[0], read)
}

// Every pair can be made: its trees are known, and it has a name of its own.
func TestPairs(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range pairs {
		require.False(t, seen[p.name], p.name)
		seen[p.name] = true
		require.Contains(t, trees, p.old.tree)
		require.Contains(t, trees, p.new.tree)
		if base := trees[p.new.tree].base; base != "" {
			require.Contains(t, trees, base)
		}
	}
	_, err := choosePairs("firmware,none")
	require.ErrorContains(t, err, `no pair "none"`)
	for _, l := range looks {
		require.True(t, func() bool {
			for _, tool := range allTools {
				if tool.name == l.tool {
					return true
				}
			}
			return false
		}(), l.tool)
	}
	require.Len(t, looks, len(allTools))
}
