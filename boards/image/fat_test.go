package image

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the size of partition and files, fsck accepts the file system, and
// mtools reads back what went in.
func TestFAT(t *testing.T) {
	for name, f := range map[string]FAT{
		"an ESP":                          {Size: 64 << 20, Bits: 32, Cluster: fat32Cluster(64 << 20)},
		"a large ESP":                     {Size: 512 << 20, Bits: 32, Cluster: fat32Cluster(512 << 20)},
		"a boot partition":                {Size: 64 << 20, Bits: 16, Cluster: fat16Cluster(64 << 20)},
		"the smallest FAT16 of its kind":  {Size: 17 << 20, Bits: 16, Cluster: 4096},
		"a boot partition of a big board": {Size: 1 << 30, Bits: 16, Cluster: fat16Cluster(1 << 30)},
	} {
		t.Run(name, func(t *testing.T) {
			f.Serial, f.Label = 0x12345678, "TEST"
			sizes := []int{0, 1, f.Cluster - 1, f.Cluster, f.Cluster + 1, 3_000_001}
			for i, size := range sizes {
				f.Files = append(f.Files, File{Path: fmt.Sprintf("/dir%d/SUB/file-%d.bin", i%2, i), Data: noise(i, size)})
			}
			f.Files = append(f.Files, File{Path: "linux.efi", Data: noise(9, 100)})
			// More entries than one cluster of a folder holds.
			for i := range 40 {
				f.Files = append(f.Files, File{Path: fmt.Sprintf("/many/%d", i), Data: []byte{byte(i)}})
			}
			image, err := f.Build()
			require.NoError(t, err)
			again, err := f.Build()
			require.NoError(t, err)
			require.Equal(t, image, again)
			require.Less(t, len(image), 8<<20, "free space is no part of the image")

			img := write(t, filepath.Join(t.TempDir(), "fat.img"), image)
			require.NoError(t, os.Truncate(img, f.Size))
			out := ask(t, "fsck.vfat", "-n", "-v", img)
			require.NotContains(t, out, "ncorrect")
			require.NotContains(t, out, "ninitialized")
			for _, file := range f.Files {
				back := filepath.Join(t.TempDir(), "back")
				ask(t, "mcopy", "-n", "-i", img, "::/"+file.Path, back)
				got, err := os.ReadFile(back)
				require.NoError(t, err)
				require.Equal(t, len(file.Data), len(got), file.Path)
				require.True(t, string(file.Data) == string(got), file.Path)
			}
		})
	}
}

// A larger kernel changes nothing before it and moves nothing but what follows.
func TestFATStable(t *testing.T) {
	f := FAT{Size: 64 << 20, Bits: 16, Cluster: 4096, Files: []File{{Path: "linux.efi", Data: noise(1, 1_000_000)}}}
	one, err := f.Build()
	require.NoError(t, err)
	f.Files[0].Data = append(f.Files[0].Data, noise(2, 50_000)...)
	two, err := f.Build()
	require.NoError(t, err)
	const data = 128 << 10
	require.Equal(t, one[data:data+1_000_000], two[data:data+1_000_000])
}

func TestFATRefuses(t *testing.T) {
	fat := func(paths ...string) FAT {
		f := FAT{Size: 20 << 20, Bits: 16, Cluster: 4096}
		for _, p := range paths {
			f.Files = append(f.Files, File{Path: p, Data: []byte("x")})
		}
		return f
	}
	large := fat("a")
	large.Files[0].Data = make([]byte, 20<<20)
	wrong := fat("a")
	wrong.Bits = 32
	for name, f := range map[string]FAT{
		"a long name":             fat("configuration.txt"),
		"a mixed name":            fat("Linux.efi"),
		"a file twice":            fat("a", "a"),
		"one name in two cases":   fat("a", "A"),
		"a file that is a folder": fat("a", "a/b"),
		"a folder that is a file": fat("a/b", "a"),
		"more than fits":          large,
		"too small for FAT32":     wrong,
		"an odd cluster":          {Size: 20 << 20, Bits: 16, Cluster: 5000},
		"a size that is none":     {Size: -1, Bits: 16, Cluster: 4096},
		"a long label":            {Size: 20 << 20, Bits: 16, Cluster: 4096, Label: "ABCDEFGHIJKL"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Build()
			require.ErrorIs(t, err, ErrFAT)
		})
	}
}
