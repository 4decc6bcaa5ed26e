package mkdelta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// makers are the independent tools, and what they are asked for.
var makers = map[string]func(src, image string) []string{
	"squashfs-zstd":   squash("-comp", "zstd"),
	"squashfs-zstd-1": squash("-comp", "zstd", "-Xcompression-level", "1", "-b", "1M"),
	"squashfs-gzip":   squash("-comp", "gzip"),
	"squashfs-lz4":    squash("-comp", "lz4"),
	"squashfs-lz4hc":  squash("-comp", "lz4", "-Xhc"),
	"erofs-lz4":       ero("-zlz4"),
	"erofs-lz4hc":     ero("-zlz4hc,12"),
	"erofs-lz4hc-big": ero("-zlz4hc,12", "-C65536"),
}

func squash(args ...string) func(src, image string) []string {
	return func(src, image string) []string {
		return append([]string{"mksquashfs", src, image, "-noappend", "-quiet", "-no-progress", "-all-root", "-all-time", "0", "-mkfs-time", "0"}, args...)
	}
}

func ero(args ...string) func(src, image string) []string {
	return func(src, image string) []string {
		return append(append([]string{"mkfs.erofs", "-T0", "--all-root", "-U5a1c1d4e-0000-4000-8000-000000000001"}, args...), image, src)
	}
}

// made has a tool make an image of a tree.
func made(t testing.TB, kind string, tree map[string][]byte) []byte {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	for path, b := range tree {
		full := filepath.Join(src, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		require.NoError(t, os.WriteFile(full, b, 0o644))
	}
	argv := makers[kind](src, filepath.Join(dir, "image"))
	if _, err := exec.LookPath(argv[0]); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%s is missing", argv[0])
		}
		t.Skipf("needs %s", argv[0])
	}
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	require.NoError(t, err, string(out))
	b, err := os.ReadFile(filepath.Join(dir, "image"))
	require.NoError(t, err)
	return b
}

// tree is a system whose new version has lines in front, so that content moves over the borders of blocks,
// a file of another name, and files that share blocks.
func tree(version int) map[string][]byte {
	front := bytes.Repeat([]byte("a line that is new\n"), 100*version)
	all := map[string][]byte{
		"usr/share/prose":                           append(bytes.Clone(front), prose(version, 600<<10)...),
		"usr/share/the-end":                         append(prose(version, 300<<10), front...),
		"usr/share/copy":                            append(prose(version, 300<<10), front...),
		fmt.Sprintf("opt/version-%d/data", version): prose(version+2, 200<<10),
		"doc/changes.gz":                            zipped(prose(version, 400<<10)),
		"doc/again.gz":                              zipped(prose(version, 400<<10)),
	}
	for i := range 40 {
		all[fmt.Sprintf("etc/%d", i)] = prose(version, 6000)[i*50:]
	}
	return all
}

// Whatever packs the blocks of a file system, a small change makes a small patch, and the image that
// the tool made comes out bit for bit.
func TestBlocks(t *testing.T) {
	for kind := range makers {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			old, fresh := made(t, kind, tree(0)), made(t, kind, tree(1))
			var seen, blind bytes.Buffer
			s, err := Make(t.Context(), image(old), image(fresh), Options{Workers: 2}, &seen)
			require.NoError(t, err)
			require.True(t, bytes.Equal(fresh, decoded(t, seen.Bytes(), old, len(fresh))))
			require.Less(t, s.Memory, int64(10<<20))

			hide := func(b []byte) []byte { return append([]byte("hidden  "), b...) }
			_, err = Make(t.Context(), image(hide(old)), image(hide(fresh)), Options{Workers: 2}, &blind)
			require.NoError(t, err)
			t.Logf("%d bytes of %d, %d without looking into it", seen.Len(), len(fresh), blind.Len())
			if strings.Contains(kind, "lz4") {
				// Without entropy coding, prose can be seen from outside, and a patch of 2 KB is mostly tables.
				require.Less(t, seen.Len(), blind.Len()+500)
			} else {
				require.Less(t, seen.Len()*8, blind.Len())
			}

			var again bytes.Buffer
			_, err = Make(t.Context(), image(old), image(fresh), Options{Workers: 1}, &again)
			require.NoError(t, err)
			require.True(t, bytes.Equal(seen.Bytes(), again.Bytes()), "the patch depends on the number of workers")
		})
	}
}

// An initramfs holds what the system holds, and lies in squashfs as it is. Its content is told from the blocks of the
// old system, unpacked, though no old bytes outside of it have it.
func TestBlocksOfMembers(t *testing.T) {
	var images [2][]byte
	var initrd []byte
	for version := range images {
		all := map[string][]byte{"usr/lib/one": prose(version, 500<<10), "usr/lib/two": prose(version+5, 300<<10)}
		initrd = packedZstd(archive([]string{"usr/lib/one", "usr/lib/two"}, all))
		all["boot/initrd"] = initrd
		images[version] = made(t, "squashfs-zstd", all)
	}
	var out bytes.Buffer
	_, err := Make(t.Context(), image(images[0]), image(images[1]), Options{Workers: 2}, &out)
	require.NoError(t, err)
	require.True(t, bytes.Equal(images[1], decoded(t, out.Bytes(), images[0], len(images[1]))))
	t.Logf("%d bytes, of the initramfs %d", out.Len(), len(initrd))
	require.Less(t, out.Len()*4, len(initrd))
}

// Whatever is done to such a patch, decoding it ends, with an error or with as many bytes as were asked for.
func TestBlocksCorruption(t *testing.T) {
	for _, kind := range []string{"squashfs-zstd", "squashfs-gzip", "erofs-lz4hc"} {
		old, fresh := made(t, kind, tree(0)), made(t, kind, tree(1))
		var out bytes.Buffer
		_, err := Make(t.Context(), image(old), image(fresh), Options{FrameSize: 2 * delta.Leaf, Workers: 2}, &out)
		require.NoError(t, err)
		flipped(t, out.Bytes(), old, fresh, 1000)
	}
}

// flipped flips bits in the frames of a patch.
func flipped(t *testing.T, patch, old, fresh []byte, tries int) {
	p, err := delta.Open(bytes.NewReader(patch), int64(len(patch)), delta.Limits{Memory: 64 << 20, Size: int64(len(fresh))})
	require.NoError(t, err)
	from := delta.Sources{Old: bytes.NewReader(old), New: bytes.NewReader(fresh)}
	r := rand.New(rand.NewPCG(6, 6))
	refused, wrong := 0, 0
	packed, dst := make([]byte, len(patch)), make([]byte, delta.MaxFrame+8)
	for range tries {
		i := r.IntN(p.Frames())
		f := p.Frame(i)
		b := packed[:copy(packed, patch[f.Blob:f.Blob+f.BlobLength])]
		for range 1 + r.IntN(3) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		clear(dst[:f.Length+8])
		if err := p.Decode(i, b, from, dst[:f.Length]); err != nil {
			refused++
		} else if !bytes.Equal(dst[:f.Length], fresh[f.Target:][:f.Length]) {
			wrong++
		}
		require.Equal(t, make([]byte, 8), dst[f.Length:][:8])
	}
	t.Logf("%d patches damaged: %d refused, %d caught by the leaves, %d right all the same", tries, refused, wrong, tries-refused-wrong)
	require.Positive(t, refused)
}

// programs are two builds of one program: the second has some functions more, and so other addresses all over.
func programs(t *testing.T) (old, fresh []byte) {
	bin, err := exec.LookPath("go")
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("no go tool")
		}
		t.Skip("no go tool to build programs with")
	}
	var built [2][]byte
	for version := range built {
		var s strings.Builder
		s.WriteString("package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(f0(9)) }\n")
		for i := range 300 {
			if version == 1 && i%3 == 0 {
				fmt.Fprintf(&s, "\n//go:noinline\nfunc g%d(x int) string { return fmt.Sprint(x, f%d(x)) }\n\nvar _ = g%d(3)\n", i, i, i)
			}
			fmt.Fprintf(&s, "\n//go:noinline\nfunc f%d(x int) int {\n\tif x > %d {\n\t\treturn f%d(x-1) * %d\n\t}\n\treturn x\n}\n", i, i, (i+7)%300, i)
		}
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(s.String()), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module program\n\ngo 1.26\n"), 0o600))
		cmd := exec.Command(bin, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", "program", ".")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		built[version], err = os.ReadFile(filepath.Join(dir, "program"))
		require.NoError(t, err)
	}
	return built[0], built[1]
}

// The addresses in a program are predicted though it is packed, across the blocks that it has.
func TestBlocksOfPrograms(t *testing.T) {
	a, b := programs(t)
	for _, kind := range []string{"squashfs-zstd", "squashfs-lz4hc", "erofs-lz4hc"} {
		old, fresh := made(t, kind, map[string][]byte{"bin/program": a}), made(t, kind, map[string][]byte{"bin/program": b})
		o := Options{Workers: 2}
		require.NoError(t, o.complete())
		var sizes [2]int
		for i := range sizes {
			s, err := newSurvey(t.Context(), image(old), image(fresh), o)
			require.NoError(t, err)
			if i == 1 {
				s.moves = nil
			}
			var out bytes.Buffer
			_, err = build(t.Context(), s, image(fresh), o, &out)
			require.NoError(t, err)
			s.close()
			require.True(t, bytes.Equal(fresh, decoded(t, out.Bytes(), old, len(fresh))))
			sizes[i] = out.Len()
		}
		t.Logf("%s: %d bytes, %d without prediction", kind, sizes[0], sizes[1])
		require.Less(t, sizes[0]*10, sizes[1]*9)
	}
}

// mksquashfs gives equal files the same blocks. What is compressed in them is told once.
func TestSharedPieces(t *testing.T) {
	var images [2][]byte
	for version := range images {
		gz := zipped(prose(version, 400<<10))
		images[version] = made(t, "squashfs-lz4", map[string][]byte{"a.gz": gz, "b.gz": gz})
	}
	s, err := files.List(bytes.NewReader(images[1]), int64(len(images[1])))
	require.NoError(t, err)
	require.Len(t, s.Files, 2)
	require.Equal(t, files.Stored, s.Files[0].Extents[0].Codec)
	require.Equal(t, s.Files[0].Extents[0], s.Files[1].Extents[0])
	var out bytes.Buffer
	_, err = Make(t.Context(), image(images[0]), image(images[1]), Options{Workers: 2}, &out)
	require.NoError(t, err)
	require.True(t, bytes.Equal(images[1], decoded(t, out.Bytes(), images[0], len(images[1]))))
	require.Less(t, out.Len()*8, len(images[1]))
}

// Files may share bytes, and a hostile image may say that blocks lie across one another: those are left alone.
func TestFilingOverlap(t *testing.T) {
	packed := func(offset, length, plain int64) files.File {
		return files.File{Size: plain, Extents: []files.Extent{{Size: plain, Offset: offset, Length: length, Codec: files.Zstd, Plain: plain}}}
	}
	p := picture{files: files.System{Files: []files.File{
		packed(0, 100, 500), packed(0, 100, 500), // the same
		packed(200, 100, 500), packed(250, 100, 500), // across one another
		packed(400, 100, 500),
	}}}
	g := p.filing(unpackedAddress)
	require.Equal(t, []int{0, 1, 4}, g.order)
	require.Len(t, g.units, 4)
}
