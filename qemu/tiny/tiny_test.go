package tiny

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// contents lists a tree: names with what is in them.
func contents(t *testing.T, dir string) map[string]string {
	all := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		name := strings.TrimPrefix(path, dir)
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			all[name], err = os.Readlink(path)
		case e.Type().IsRegular():
			var text []byte
			text, err = os.ReadFile(path)
			all[name] = string(text)
		default:
			all[name] = "/"
		}
		return err
	}))
	return all
}

// The same options give the same tree, with what a boot needs in its place.
func TestBuild(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(program, []byte("ELF"), 0o755))
	o := Options{
		Version: "1.2.3", Fault: "hang", Program: program, Updater: program,
		Files: map[string][]byte{"/etc/tandem/root.json": []byte("{}")},
	}
	first, second := t.TempDir(), t.TempDir()
	require.NoError(t, Build(t.Context(), first, o))
	require.NoError(t, Build(t.Context(), second, o))
	tree := contents(t, first)
	require.Equal(t, tree, contents(t, second))
	for name, want := range map[string]string{
		"/sbin/init": "ELF", "/usr/bin/updater": "ELF", "/bin/sh": "/sbin/init", "/bin/sha256sum": "/sbin/init",
		"/data": "/", "/dev": "/", "/proc": "/", "/run": "/", "/sys": "/", "/tmp": "/",
		"/etc/tandem/root.json": "{}", "/etc/tiny/fault": "hang\n",
	} {
		require.Equal(t, want, tree[name], name)
	}
	require.Contains(t, tree["/etc/os-release"], `VERSION_ID="1.2.3"`)
}

// A tree is neither built over another nor with a fault that nobody knows.
func TestBuildRefuses(t *testing.T) {
	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o644))
	for name, c := range map[string]struct {
		dir string
		o   Options
	}{
		"there is something already": {full, Options{Version: "1.0.0"}},
		"no version":                 {t.TempDir(), Options{}},
		"a version of two lines":     {t.TempDir(), Options{Version: "1\nID=x"}},
		"an unknown fault":           {t.TempDir(), Options{Version: "1.0.0", Fault: "sulk"}},
	} {
		require.ErrorIs(t, Build(t.Context(), c.dir, c.o), ErrOptions, name)
	}
}
