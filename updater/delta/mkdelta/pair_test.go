package mkdelta

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

func system(names ...string) files.System {
	s := files.System{Kind: files.Ext4}
	for i, name := range names {
		s.Files = append(s.Files, files.File{Path: name, Size: int64(1000 + i)})
	}
	return s
}

// A new file finds its older self though version numbers in the path have changed.
func TestPairFiles(t *testing.T) {
	old := system(
		"boot/vmlinuz-6.1.0-50-amd64",
		"usr/lib/modules/6.1.0-50-amd64/kernel/fs/ext4/ext4.ko",
		"usr/lib/modules/5.10.0-3-amd64/kernel/fs/ext4/ext4.ko",
		"usr/lib/libfoo.so.1.2.3",
		"usr/bin/same",
		"opt/old/tool",
		"opt/voted",
	)
	fresh := system(
		"boot/vmlinuz-6.1.0-56-amd64",
		"usr/lib/modules/6.1.0-56-amd64/kernel/fs/ext4/ext4.ko",
		"usr/lib/libfoo.so.1.2.14",
		"usr/bin/same",
		"opt/new/place/tool",
		"usr/share/unknown",
		"etc/renamed",
	)
	pairs := pairFiles(old, fresh, func(f files.File) int {
		if f.Path == "etc/renamed" {
			return 6
		}
		return -1
	})
	var got []int
	for i, p := range pairs {
		require.Equal(t, i, p.New)
		got = append(got, p.Old)
	}
	require.Equal(t, []int{0, 1, 3, 4, 5, -1, 6}, got)
}

func TestPlain(t *testing.T) {
	for _, row := range [][2]string{
		{"lib/modules/6.1.0-50-amd64/a.ko", "lib/modules/#-amd#/a.ko"},
		{"libfoo.so.1.2.3", "libfoo.so.#"},
		{"a.5", "a.#"},
		{"9", "#"},
		{"doc/x-1.0.tar.gz", "doc/x-#.tar.gz"},
		{"", ""},
	} {
		require.Equal(t, row[1], plain(row[0]))
	}
}

// The members of an archive stand for the archive, and shared blocks belong to one file.
func TestRegions(t *testing.T) {
	file := func(name string, at ...int64) files.File {
		f := files.File{Path: name}
		for _, a := range at {
			f.Extents = append(f.Extents, files.Extent{Logical: f.Size, Size: 100, Offset: a, Length: 100, Plain: 100})
			f.Size += 100
		}
		return f
	}
	got := regions(files.System{Files: []files.File{file("z", 900, 300), file("initrd", 0), file("initrd//a", 20), file("b", 350)}})
	require.Equal(t, []region{{20, 120, 2, 0}, {300, 400, 0, 100}, {400, 450, 3, 50}, {900, 1000, 0, 0}}, got)
	require.Equal(t, 0, regionAt(got, 0))
	require.Equal(t, 0, regionAt(got, 119))
	require.Equal(t, 1, regionAt(got, 120))
	require.Equal(t, 4, regionAt(got, 1000))
}
