package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// needTools skips a test on a desk that lacks one of the programs.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("TANDEM_CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// A stick is what other tools take for one: a table with one FAT32 partition,
// whose file system is whole and holds the files with their names and bytes.
func TestMakeStick(t *testing.T) {
	needTools(t, "sfdisk", "mkfs.vfat", "fsck.vfat", "mcopy")
	const mib = 1 << 20
	dir := t.TempDir()
	big := filepath.Join(dir, "A release with a long name.tar")
	require.NoError(t, os.WriteFile(big, bytes.Repeat([]byte("tandem!\n"), 9*mib), 0o644))
	tree := filepath.Join(dir, "release")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "blobs/sha256"), 0o755))
	for n := range 300 {
		require.NoError(t, os.WriteFile(filepath.Join(tree, "blobs/sha256", fmt.Sprintf("%064d", n)), []byte{byte(n)}, 0o644))
	}
	for name, files := range map[string][]string{"nothing": nil, "a file and a folder": {big, tree}} {
		stick := filepath.Join(dir, "stick.img")
		require.NoError(t, MakeStick(t.Context(), stick, files...), name)
		require.NoFileExists(t, stick+".new")

		parts, err := Partitions(t.Context(), stick)
		require.NoError(t, err, name)
		require.Len(t, parts, 1, name)
		p := parts[""]
		require.Equal(t, "c", p.Type, name)
		require.EqualValues(t, mib, p.Start, name)
		require.GreaterOrEqual(t, p.Size, int64(64*mib), name)

		part := filepath.Join(dir, "part")
		cut(t, part, stick, p)
		out, err := exec.Command("fsck.vfat", "-n", part).CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		boot, err := os.ReadFile(part)
		require.NoError(t, err, name)
		require.Equal(t, "FAT32   ", string(boot[0x52:0x5a]), name)
		require.EqualValues(t, 2048, binary.LittleEndian.Uint32(boot[0x1c:]), "%s: hidden sectors", name)

		back := t.TempDir()
		out, err = exec.Command("mcopy", "-s", "-n", "-i", part, "::/", back).CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		for _, f := range files {
			out, err := exec.Command("diff", "-r", f, filepath.Join(back, filepath.Base(f))).CombinedOutput()
			require.NoError(t, err, "%s: %s", name, out)
		}
	}
}

// cut copies a partition out of an image.
func cut(t *testing.T, to, image string, p Partition) {
	t.Helper()
	in, err := os.Open(image)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.Create(to)
	require.NoError(t, err)
	defer out.Close()
	_, err = io.Copy(out, io.NewSectionReader(in, p.Start, p.Size))
	require.NoError(t, err)
}

// A file that FAT cannot hold is named before anything is made; the largest that
// it can hold is counted.
func TestStickFile(t *testing.T) {
	needTools(t, "sfdisk", "mkfs.vfat", "mcopy")
	dir := t.TempDir()
	huge := filepath.Join(dir, "huge.tar")
	require.NoError(t, os.WriteFile(huge, nil, 0o644))
	require.NoError(t, os.Truncate(huge, 4<<30))
	stick := filepath.Join(dir, "stick.img")
	err := MakeStick(t.Context(), stick, huge)
	require.ErrorIs(t, err, ErrStickFile)
	require.ErrorContains(t, err, "huge.tar")
	require.NoFileExists(t, stick)

	require.NoError(t, os.Truncate(huge, 4<<30-1))
	size, err := stickSize([]string{huge})
	require.NoError(t, err)
	require.Greater(t, size, int64(4<<30))
}
