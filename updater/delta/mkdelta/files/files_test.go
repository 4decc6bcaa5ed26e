package files

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// need skips a test on a desk without a tool, and fails it where all tools have to be.
func need(t testing.TB, tool, pkg string) {
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%s is missing (package %s)", tool, pkg)
		}
		t.Skipf("needs %s (package %s)", tool, pkg)
	}
}

func run(t testing.TB, name string, args ...string) {
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
}

// tree writes files of all shapes and returns their digests by path.
func tree(t testing.TB, dir string, big bool) map[string][32]byte {
	r := rand.New(rand.NewPCG(1, 2))
	sums := map[string][32]byte{}
	put := func(path string, b []byte) {
		full := filepath.Join(dir, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		require.NoError(t, os.WriteFile(full, b, 0o644))
		sums[path] = sha256.Sum256(b)
	}
	text := func(n int) []byte {
		var b bytes.Buffer
		for b.Len() < n {
			fmt.Fprintf(&b, "line %d of a file that packs well\n", r.IntN(1000))
		}
		return b.Bytes()[:n]
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[n-1] |= 1 // mke2fs 1.47.0 loses a last zero behind a block boundary with inline_data
		return b
	}
	for i, n := range []int{1, 59, 60, 61, 100, 150, 511, 4095, 4096, 4097, 8192, 12345, 65536, 131072, 131073, 300000} {
		put(fmt.Sprintf("text/%d", n), text(n))
		put(fmt.Sprintf("noise/%d", n), noise(n))
		put(fmt.Sprintf("both/%d/%d", i, n), append(noise(n/2+1), text(n-n/2)...))
	}
	for i := range 150 { // a directory of several blocks
		put(fmt.Sprintf("many/a file with a longer name, number %d", i), text(r.IntN(300)+1))
	}
	put("deep/1/2/3/4/5/6/7/8/9/file", text(5000))
	put("zeros", make([]byte, 200000))
	put("archive", archive(map[string][]byte{"./etc/passwd": text(1000), "kernel/blob": noise(5003), "empty": nil}))
	if big {
		put("large", append(append(text(1<<20), noise(1<<20)...), text(1<<19)...))
	}
	require.NoError(t, os.Symlink("text/1", filepath.Join(dir, "link")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644))
	require.NoError(t, os.Link(filepath.Join(dir, "text/12345"), filepath.Join(dir, "text/again")))

	// Every other block is a hole: as many extents as blocks.
	f, err := os.Create(filepath.Join(dir, "holes"))
	require.NoError(t, err)
	defer f.Close()
	sparse := make([]byte, 500*8192+17)
	for i := 0; i < len(sparse); i += 8192 {
		n := copy(sparse[i:min(i+4096, len(sparse))], text(4096))
		_, err := f.WriteAt(sparse[i:i+n], int64(i))
		require.NoError(t, err)
	}
	sums["holes"] = sha256.Sum256(sparse)
	return sums
}

// archive is a cpio archive with a compressed one behind it, as an initrd is.
func archive(files map[string][]byte) []byte {
	var b bytes.Buffer
	member := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, name := range []string{"./etc/passwd", "kernel/blob", "empty"} {
		member(name, 0o100644, files[name])
	}
	member("dir", 0o40755, nil)
	member(cpioTrailer, 0, nil)
	b.Write(make([]byte, -b.Len()&511))
	b.WriteString("\x28\xb5\x2f\xfd and so on")
	return b.Bytes()
}

// check compares the files of an image with the digests of a tree.
func check(t testing.TB, name string, kind Kind, sums map[string][32]byte) System {
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	s, err := List(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.Equal(t, kind, s.Kind)
	require.Zero(t, s.Skipped)
	got := 0
	for _, f := range s.Files {
		if strings.Contains(f.Path, "//") {
			continue
		}
		data, err := Read(bytes.NewReader(b), f, 1<<30)
		require.NoError(t, err, f.Path)
		want, ok := sums[f.Path]
		if f.Path == "text/again" { // walked before the other name of it, or after
			want, ok = sums["text/12345"], true
		}
		require.True(t, ok, f.Path)
		require.Equal(t, want, sha256.Sum256(data), f.Path)
		got++
	}
	require.Equal(t, len(sums), got)
	return s
}

// Every file that a file system's own tool put into an image is found, with its bytes.
func TestList(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	sums := tree(t, src, true)
	image := filepath.Join(dir, "image")
	ext := func(args ...string) []string {
		return append([]string{"mke2fs", "-q", "-F", "-m", "0", "-N", "1000", "-d", src}, append(args, image, "20M")...)
	}
	squash := func(args ...string) []string {
		return append([]string{"mksquashfs", src, image, "-noappend", "-quiet", "-no-progress", "-no-xattrs", "-processors", "1"}, args...)
	}
	ero := func(args ...string) []string {
		return append(append([]string{"mkfs.erofs"}, args...), image, src)
	}
	for _, row := range []struct {
		state string
		kind  Kind
		argv  []string
	}{
		{"ext4", Ext4, ext("-t", "ext4", "-b", "4096")},
		{"ext4 with files in inodes", Ext4, ext("-t", "ext4", "-b", "4096", "-I", "256", "-O", "inline_data")},
		{"ext4 with 32-bit descriptors, blocks of 1 KiB", Ext4, ext("-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum")},
		{"ext4 with meta groups", Ext4, ext("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode")},
		{"ext4 with large inodes", Ext4, ext("-t", "ext4", "-b", "4096", "-I", "1024", "-O", "inline_data")},
		{"ext2", Ext4, ext("-t", "ext2", "-b", "1024")},
		{"squashfs of zstd", Squashfs, squash("-comp", "zstd", "-Xcompression-level", "3")},
		{"squashfs of gzip", Squashfs, squash("-comp", "gzip", "-b", "64K")},
		{"squashfs of lz4", Squashfs, squash("-comp", "lz4")},
		{"squashfs without fragments", Squashfs, squash("-comp", "gzip", "-no-fragments", "-b", "1M")},
		{"squashfs with only fragments", Squashfs, squash("-comp", "gzip", "-always-use-fragments", "-noI", "-b", "32K")},
		{"squashfs not packed", Squashfs, squash("-noI", "-noD", "-noF", "-b", "4K")},
		{"erofs not packed", Erofs, ero()},
		{"erofs of lz4", Erofs, ero("-zlz4")},
		{"erofs in large clusters", Erofs, ero("-zlz4", "-C65536")},
		{"erofs with a full index", Erofs, ero("-zlz4", "-Elegacy-compress")},
		{"erofs with tails beside inodes", Erofs, ero("-zlz4", "-Eztailpacking")},
		{"erofs with long inodes", Erofs, ero("-zlz4", "-Eforce-inode-extended")},
		{"erofs with tails in one file", Erofs, ero("-zlz4", "-C16384", "-Efragments")},
		{"erofs with all in one file", Erofs, ero("-zlz4", "-C16384", "-Eall-fragments,ztailpacking")},
		{"erofs of chunks", Erofs, ero("--chunksize=8192")},
	} {
		t.Run(row.state, func(t *testing.T) {
			need(t, row.argv[0], map[Kind]string{Ext4: "e2fsprogs", Squashfs: "squashfs-tools", Erofs: "erofs-utils"}[row.kind])
			require.NoError(t, errors.Join(os.RemoveAll(image)))
			if out, err := exec.Command(row.argv[0], row.argv[1:]...).CombinedOutput(); err != nil && row.kind == Erofs && os.Getenv("TANDEM_CI") == "" {
				t.Skipf("this mkfs.erofs is too old: %s", out)
			} else {
				require.NoError(t, err, string(out))
			}
			s := check(t, image, row.kind, sums)
			if f, ok := s.Find("archive//etc/passwd"); row.kind == Ext4 {
				require.True(t, ok, "a member of an archive inside")
				require.EqualValues(t, 1000, f.Size)
			}
		})
	}
}

// An archive is read by itself, too.
func TestCpio(t *testing.T) {
	need(t, "cpio", "cpio")
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	sums := tree(t, src, false)
	var names bytes.Buffer
	require.NoError(t, filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(src, p)
		fmt.Fprintln(&names, rel)
		return err
	}))
	require.NoError(t, os.Remove(filepath.Join(src, "text/again"))) // cpio keeps the bytes of one name only
	list := strings.ReplaceAll(names.String(), "text/again\n", "")
	cmd := exec.Command("cpio", "-o", "-H", "newc", "-F", filepath.Join(dir, "image"))
	cmd.Dir, cmd.Stdin = src, strings.NewReader(list)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	check(t, filepath.Join(dir, "image"), Cpio, sums)
}

// What is no file system is no error.
func TestNone(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 100), make([]byte, 1<<20), bytes.Repeat([]byte("hsq"), 1000)} {
		s, err := List(bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		require.Equal(t, None, s.Kind)
	}
}
