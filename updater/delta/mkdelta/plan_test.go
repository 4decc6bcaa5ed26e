package mkdelta

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// ext4 makes an image of a tree of files with mke2fs.
func ext4(t testing.TB, tree map[string][]byte) []byte {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("mke2fs is missing (package e2fsprogs)")
		}
		t.Skip("needs mke2fs (package e2fsprogs)")
	}
	dir := t.TempDir()
	for path, b := range tree {
		full := filepath.Join(dir, "src", path)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		require.NoError(t, os.WriteFile(full, b, 0o644))
	}
	name := filepath.Join(dir, "image")
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", filepath.Join(dir, "src"), name, "16M").CombinedOutput()
	require.NoError(t, err, string(out))
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return b
}

// Two files have changed places, one has another version in its path, and
// neither has 32 bytes in a row that agree with its older self: only who compares file with
// file finds that all but a twentieth of the bytes are old.
func TestPlanPairs(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32()) & 0x3f // not so random that it looks packed
		}
		return b
	}
	changed := func(b []byte) []byte {
		b = append([]byte("a longer head"), b...)
		for i := 20; i < len(b); i += 20 {
			b[i]++
		}
		return b
	}
	module, library := noise(700_000), noise(900_000)
	old := ext4(t, map[string][]byte{"a": noise(300_000), "lib/modules/6.1.0-50/x.ko": module, "z/libx.so.1.2.3": library})
	fresh := ext4(t, map[string][]byte{"a": noise(1_500_000), "z/6.1.0/blob": noise(500_000), "lib/modules/6.1.0-56/x.ko": changed(module), "z/libx.so.1.2.4": changed(library)})
	p := planOf(t, old, fresh)
	require.Equal(t, files.Ext4, p.newFiles.Kind)

	covered := map[string]int64{}
	m := p.matcher()
	const size = 1 << 20
	for at := int64(0); at < int64(len(fresh)); at += size {
		frame := fresh[at:min(at+size, int64(len(fresh)))]
		segments := m.match(frame, at)
		whole(t, p, frame, at, segments)
		for _, s := range segments {
			for _, f := range p.newFiles.Files {
				for _, e := range f.Extents {
					covered[f.Path] += max(0, min(at+int64(s.end), e.Offset+e.Length)-max(at+int64(s.start), e.Offset))
				}
			}
		}
	}
	require.Greater(t, covered["lib/modules/6.1.0-56/x.ko"], int64(699_000))
	require.Greater(t, covered["z/libx.so.1.2.4"], int64(899_000))
	require.Less(t, covered["z/6.1.0/blob"], int64(5000))
}

// A file that has moved to another path is found by what it holds.
func TestPlanVotes(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	text := file(r, 60_000)
	old := ext4(t, map[string][]byte{"first": file(r, 50_000), "usr/share/thing": text, "last": file(r, 50_000)})
	fresh := ext4(t, map[string][]byte{"first": file(r, 90_000), "opt/renamed": append(file(r, 1234), text[:50_000]...)})
	p := planOf(t, old, fresh)
	for _, pair := range p.pairs {
		if p.newFiles.Files[pair.New].Path == "opt/renamed" {
			require.GreaterOrEqual(t, pair.Old, 0)
			require.Equal(t, "usr/share/thing", p.oldFiles.Files[pair.Old].Path)
			return
		}
	}
	t.Fatal("the file is missing")
}
