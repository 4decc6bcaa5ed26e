package image

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// content of a system, by path.
type system map[string][]byte

func (s system) tree(t testing.TB) *Tree {
	stage := t.TempDir()
	tree := NewTree(stage, Epoch)
	for name, data := range s {
		require.NoError(t, tree.AddFile(File{Path: name, Mode: 0o644, Data: data}))
	}
	return tree
}

func (s system) build(t testing.TB, like string) string {
	out := filepath.Join(t.TempDir(), "root.img")
	var err error
	if like == "" {
		_, err = Root(context.Background(), s.tree(t), [16]byte{1}, out)
	} else {
		_, err = RootLike(context.Background(), s.tree(t), [16]byte{1}, like, out)
	}
	require.NoError(t, err)
	return out
}

// holds checks an image with tools that did not make it: the file system is whole, and every file is there.
func holds(t *testing.T, img string, s system) {
	t.Helper()
	require.NotContains(t, ask(t, "e2fsck", "-fn", img), "Fix?")
	dir := t.TempDir()
	ask(t, "debugfs", "-R", "rdump / "+dir, img)
	for name, want := range s {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), name)
	}
}

// written counts the blocks of b that are not where they are in a.
func written(t testing.TB, a, b string) (n, all int) {
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	require.NoError(t, err)
	for at := 0; at < len(y); at += pageSize {
		block := y[at : at+pageSize]
		if !isZero(block) {
			all++
		}
		if at >= len(x) && !isZero(block) || at < len(x) && !bytes.Equal(x[at:at+pageSize], block) {
			n++
		}
	}
	return n, all
}

// release changes a system as an update does: a few files grow, shrink, change, come and go.
func (s system) release(r *rand.Rand) system {
	out := system{}
	for name, data := range s {
		out[name] = data
	}
	names := make([]string, 0, len(s))
	for i := range 400 {
		if name := fmt.Sprintf("/usr/lib/d%d/file-%d", i%20, i); out[name] != nil {
			names = append(names, name)
		}
	}
	for i := range 8 {
		name := names[r.IntN(len(names))]
		switch i % 4 {
		case 0: // grows
			out[name] = append(bytes.Clone(out[name]), noise(r.IntN(1<<20), 1+r.IntN(40_000))...)
		case 1:
			out[name] = out[name][:len(out[name])/2+1]
		case 2:
			delete(out, name)
		case 3:
			out[name+"-new"] = noise(r.IntN(1<<20), 1+r.IntN(90_000))
		}
	}
	return out
}

func testSystem() system {
	s := system{"/etc/empty": {}, "/boot/large": noise(9, 3_000_000)}
	for i := range 400 {
		s[fmt.Sprintf("/usr/lib/d%d/file-%d", i%20, i)] = noise(1000+i, 1+(i*i*37)%60_000)
	}
	for i := range 500 { // a folder of several blocks
		s[fmt.Sprintf("/var/lib/dpkg/info/a-package-of-debian-%d.list", i)] = []byte(fmt.Sprint(i))
	}
	return s
}

// Along a chain of releases, what did not change stays where it is, and what comes out is a whole file system.
func TestRootLike(t *testing.T) {
	program(t, "mke2fs")
	r := rand.New(rand.NewPCG(1, 2))
	s := testSystem()
	old := s.build(t, "")
	for range 4 {
		s = s.release(r)
		img := s.build(t, old)
		holds(t, img, s)
		n, all := written(t, old, img)
		plain, _ := written(t, old, s.build(t, ""))
		t.Logf("%d of %d blocks written, without the older image %d", n, all, plain)
		require.Less(t, n, 200)
		require.Less(t, n, plain/5)
		old = img
	}
}

// The same tree like its own image is that image, but for folders that lay in too many pieces, which come together
// once; and the same input gives the same bytes.
func TestRootLikeItself(t *testing.T) {
	program(t, "mke2fs")
	s := testSystem()
	s["/sparse"] = append(append(bytes.Repeat([]byte{0}, 40_000), noise(1, 9000)...), append(make([]byte, 50_000), 1)...)
	one := s.build(t, "")
	two := s.build(t, one)
	n, _ := written(t, one, two)
	require.Less(t, n, 20)
	n, _ = written(t, two, s.build(t, two))
	require.Zero(t, n)
	changed := s.release(rand.New(rand.NewPCG(3, 4)))
	a, b := changed.build(t, one), changed.build(t, one)
	n, _ = written(t, a, b)
	require.Zero(t, n)
}

// Everything a system has can be placed: links, devices, attributes, files of many holes.
func TestRootLikeArchive(t *testing.T) {
	program(t, "mke2fs")
	build := func(like string) string {
		tree := NewTree(t.TempDir(), Epoch)
		require.NoError(t, tree.AddTar(bytes.NewReader(archive(t))))
		holes := make([]byte, 200_000)
		for i := 0; i < len(holes); i += 20_000 {
			holes[i] = 1
		}
		require.NoError(t, tree.AddFile(File{Path: "/holes", Data: holes}))
		out := filepath.Join(t.TempDir(), "root.img")
		var err error
		if like == "" {
			_, err = Root(context.Background(), tree, [16]byte{1}, out)
		} else {
			_, err = RootLike(context.Background(), tree, [16]byte{1}, like, out)
		}
		require.NoError(t, err)
		require.NotContains(t, ask(t, "e2fsck", "-fn", out), "Fix?")
		return out
	}
	one := build("")
	two := build(one)
	three := build(two)
	n, _ := written(t, two, three)
	require.Zero(t, n)
	for _, path := range []string{"/usr/bin/sudo3", "/usr/bin/ping", "/usr/lib/long", "/dev/sda", "/odd/sparse", "/holes", "/run/pipe"} {
		cut := func(img string) string {
			out := ask(t, "debugfs", "-R", "stat "+quote(path), img)
			return out[:strings.Index(out, "Fragment")]
		}
		require.Equal(t, cut(one), cut(two), path)
	}
}

// An image of another make can be followed as well; one of another kind is refused by name.
func TestRootLikeStrange(t *testing.T) {
	program(t, "mke2fs")
	s := testSystem()
	dir := t.TempDir()
	for name, data := range s {
		write(t, filepath.Join(dir, "tree", name), data)
	}
	foreign := filepath.Join(dir, "foreign.img")
	ask(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", dir+"/tree", foreign, "80M")
	img := s.build(t, foreign)
	holds(t, img, s)
	where := func(img string) map[string][]files.Extent {
		l, err := layout(img)
		require.NoError(t, err)
		out := map[string][]files.Extent{}
		for _, n := range l.Nodes {
			if n.Mode>>12 == 8 {
				out[n.Path] = n.Extents
			}
		}
		return out
	}
	a, b := where(foreign), where(img)
	same := 0
	for p, e := range a {
		if fmt.Sprint(e) == fmt.Sprint(b[p]) {
			same++
		}
	}
	require.Greater(t, same, len(a)*9/10)

	noFS := write(t, filepath.Join(dir, "noise"), noise(1, 100_000))
	_, err := RootLike(context.Background(), s.tree(t), [16]byte{1}, noFS, filepath.Join(dir, "x"))
	require.ErrorIs(t, err, ErrPlaces)
	small := filepath.Join(dir, "small.img")
	ask(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", small, "8M")
	_, err = RootLike(context.Background(), s.tree(t), [16]byte{1}, small, filepath.Join(dir, "x"))
	require.ErrorIs(t, err, ErrPlaces)
}
