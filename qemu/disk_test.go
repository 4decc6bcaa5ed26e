package qemu

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A copy has the bytes and the holes of its source, at both ends too.
func TestCopySparse(t *testing.T) {
	const mib = 1 << 20
	src, dst := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	f, err := os.Create(src)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(64*mib))
	for _, at := range []int64{8 * mib, 40*mib - 7} {
		_, err = f.WriteAt(bytes.Repeat([]byte("tandem"), 1000), at)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	require.NoError(t, CopySparse(t.Context(), dst, src))
	require.NoError(t, exec.Command("cmp", src, dst).Run())
	info, err := os.Stat(dst)
	require.NoError(t, err)
	require.Less(t, info.Sys().(*syscall.Stat_t).Blocks*512, int64(mib))
	require.NoFileExists(t, dst+".new")
}

// What is written into a partition from outside is read back from it, and
// nothing reaches beyond its ends.
func TestExtractOverwrite(t *testing.T) {
	if _, err := exec.LookPath("sfdisk"); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	d := &Device{cfg: Config{Dir: dir, Name: "d"}}
	require.NoError(t, os.WriteFile(d.Disk(), nil, 0o644))
	require.NoError(t, os.Truncate(d.Disk(), 16<<20))
	sfdisk := exec.Command("sfdisk", "-q", d.Disk())
	sfdisk.Stdin = bytes.NewBufferString("label: gpt\nsize=1MiB, name=esp\nsize=2MiB, name=env\n")
	out, err := sfdisk.CombinedOutput()
	require.NoError(t, err, "%s", out)

	parts, err := Partitions(t.Context(), d.Disk())
	require.NoError(t, err)
	require.EqualValues(t, 2<<20, parts["env"].Start)
	require.EqualValues(t, 2<<20, parts["env"].Size)

	require.NoError(t, d.Overwrite(t.Context(), "env", 2<<20-4, []byte("last")))
	require.Error(t, d.Overwrite(t.Context(), "env", 2<<20-3, []byte("last")))
	require.ErrorContains(t, d.Overwrite(t.Context(), "root_a", 0, []byte("x")), `no partition "root_a"`)
	got := filepath.Join(dir, "got")
	require.NoError(t, d.Extract(t.Context(), "env", 2<<20-4, -1, got))
	text, err := os.ReadFile(got)
	require.NoError(t, err)
	require.Equal(t, "last", string(text))
}
