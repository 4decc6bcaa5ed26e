package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// archive makes a tar of a small system that uses everything a system does.
func archive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_500_000_000, 0)
		}
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(content))
		require.NoError(t, err)
	}
	add(tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	add(tar.Header{Name: "./usr/bin/ping", Typeflag: tar.TypeReg, Mode: 0o755,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, "ping")
	add(tar.Header{Name: "./usr/bin/sudo", Typeflag: tar.TypeReg, Mode: 0o4755}, strings.Repeat("sudo", 50_000))
	add(tar.Header{Name: "./usr/bin/sudoedit", Typeflag: tar.TypeLink, Linkname: "./usr/bin/sudo"}, "")
	add(tar.Header{Name: "./usr/bin/sudo3", Typeflag: tar.TypeLink, Linkname: "./usr/bin/sudoedit"}, "")
	add(tar.Header{Name: "./etc/shadow", Typeflag: tar.TypeReg, Mode: 0o640, Gid: 42}, "root:*")
	add(tar.Header{Name: "./var/mail", Typeflag: tar.TypeDir, Mode: 0o2775, Gid: 8}, "")
	add(tar.Header{Name: "./tmp", Typeflag: tar.TypeDir, Mode: 0o1777}, "")
	add(tar.Header{Name: "./home/user", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1000, Gid: 100_000}, "")
	add(tar.Header{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
	add(tar.Header{Name: "./dev/sda", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 8, Devminor: 0}, "")
	add(tar.Header{Name: "./run/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, "")
	add(tar.Header{Name: "./lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"}, "")
	add(tar.Header{Name: "./usr/lib/long", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 200)}, "")
	add(tar.Header{Name: "./usr/lib/os-release", Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(2_000_000_000, 0)}, "ID=test\n")
	add(tar.Header{Name: "./odd/a \"b\"  c", Typeflag: tar.TypeReg, Mode: 0o600}, "odd")
	add(tar.Header{Name: "./odd/<12>", Typeflag: tar.TypeReg, Mode: 0o600}, "inode")
	add(tar.Header{Name: "./odd/ümläut", Typeflag: tar.TypeReg, Mode: 0o600}, "u")
	add(tar.Header{Name: "./odd/sparse", Typeflag: tar.TypeReg, Mode: 0o600}, strings.Repeat("\x00", 1<<20)+"end")
	add(tar.Header{Name: "./empty", Typeflag: tar.TypeReg, Mode: 0o600}, "")
	for i := range 600 {
		add(tar.Header{Name: fmt.Sprintf("./usr/share/doc/package-number-%d/copyright", i), Typeflag: tar.TypeReg, Mode: 0o644}, "free")
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// A system from an archive arrives in the image as it is: owners, modes, times,
// links, devices, capabilities; for whoever builds it.
func TestRootFromArchive(t *testing.T) {
	program(t, "mke2fs")
	dir := t.TempDir()
	limit := time.Unix(1_600_000_000, 0)
	tree := NewTree(t.TempDir(), limit)
	require.NoError(t, tree.AddTar(bytes.NewReader(archive(t))))
	img := filepath.Join(dir, "root.img")
	size, err := Root(context.Background(), tree, [16]byte{1}, img)
	require.NoError(t, err)
	info, err := os.Stat(img)
	require.NoError(t, err)
	require.Equal(t, size, info.Size())
	require.NotContains(t, ask(t, "e2fsck", "-fn", img), "Fix?")

	stat := func(path string, want ...string) {
		t.Helper()
		out := ask(t, "debugfs", "-R", "stat "+quote(path), img)
		for _, w := range want {
			require.Contains(t, out, w, path)
		}
	}
	stat("/usr/bin/sudo", "Mode:  04755", "Links: 3", "User:     0   Group:     0")
	stat("/usr/bin/sudo3", "Links: 3", "Size: 200000")
	stat("/etc/shadow", "Mode:  0640", "User:     0   Group:    42", "mtime: 0x59682f00")
	stat("/var/mail", "Mode:  02775", "Group:     8")
	stat("/tmp", "Mode:  01777")
	stat("/home/user", "Mode:  0700", "User:  1000   Group: 100000")
	stat("/dev/null", "Type: character special", "01:03")
	stat("/dev/sda", "Type: block special", "08:00")
	stat("/run/pipe", "Type: FIFO")
	stat("/lib", "Type: symlink", `"usr/lib"`)
	stat("/usr/lib/long", "Type: symlink", "Size: 200")
	stat("/usr/lib/os-release", fmt.Sprintf("mtime: %#x", limit.Unix()))
	stat("/usr/bin/ping", "security.capability")
	stat("/odd/sparse", "Size: 1048579", "Blockcount: 8")
	stat("/", "Mode:  0755", "User:     0")
	for _, name := range []string{"a \"b\"  c", "<12>", "ümläut"} {
		require.Contains(t, ask(t, "debugfs", "-R", "ls -p /odd", img), "/"+name+"/")
	}
	require.Equal(t, 600, strings.Count(ask(t, "debugfs", "-R", "ls -p /usr/share/doc", img), "/package-number-"))
}

// The order in which files were made, their age on the desk, their owner there and
// who else links to them show nowhere in the image.
func TestRootReproducible(t *testing.T) {
	program(t, "mke2fs")
	names := []string{"b/x", "a/y", "c", "a/z/deep", "b/a"}
	build := func(order []int, age time.Time) []byte {
		dir := t.TempDir()
		for _, i := range order {
			p := write(t, filepath.Join(dir, "tree", names[i]), noise(i, 10_000*i))
			require.NoError(t, os.Chtimes(p, age, age))
		}
		tree := NewTree(t.TempDir(), Epoch)
		require.NoError(t, tree.AddDir(filepath.Join(dir, "tree")))
		img := filepath.Join(dir, "root.img")
		_, err := Root(context.Background(), tree, [16]byte{1}, img)
		require.NoError(t, err)
		data, err := os.ReadFile(img)
		require.NoError(t, err)
		return data
	}
	one := build([]int{0, 1, 2, 3, 4}, time.Unix(1_700_000_000, 0))
	two := build([]int{4, 2, 0, 3, 1}, time.Unix(1_780_000_000, 0))
	require.True(t, bytes.Equal(one, two))
}

// What debugfs cannot do is an error, though debugfs ends as if all were well.
func TestRootRefuses(t *testing.T) {
	program(t, "mke2fs")
	build := func(tree *Tree) error {
		_, err := Root(context.Background(), tree, [16]byte{1}, filepath.Join(t.TempDir(), "root.img"))
		return err
	}
	tree := NewTree(t.TempDir(), Epoch)
	require.NoError(t, tree.AddFile(File{Path: "/gone", Data: []byte("x")}))
	require.NoError(t, os.Remove(tree.nodes["/gone"].source))
	require.ErrorContains(t, build(tree), "No such file")

	tree = NewTree(t.TempDir(), Epoch)
	require.NoError(t, tree.AddFile(File{Path: "/line\nquit"}))
	require.ErrorContains(t, build(tree), "control characters")

	tree = NewTree(t.TempDir(), Epoch)
	require.NoError(t, tree.AddFile(File{Path: "/large"}))
	tree.nodes["/large"].source = write(t, filepath.Join(t.TempDir(), "large"), noise(1, 64<<20))
	require.ErrorContains(t, build(tree), "debugfs")
}

// An archive cannot reach outside of the image.
func TestArchiveStaysInside(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "../../escape", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/tmp"},
		{Name: "out/file", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		require.NoError(t, w.WriteHeader(&h))
	}
	require.NoError(t, w.Close())
	stage := t.TempDir()
	tree := NewTree(stage, Epoch)
	require.NoError(t, tree.AddTar(&b))
	require.Contains(t, tree.nodes, "/escape")
	require.Equal(t, stage, filepath.Dir(tree.nodes["/out/file"].source))

	b.Reset()
	w = tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}))
	require.NoError(t, w.Close())
	require.ErrorContains(t, NewTree(stage, Epoch).AddTar(&b), "/etc/passwd")
}
