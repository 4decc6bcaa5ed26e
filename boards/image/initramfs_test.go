package image

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/u-root/u-root/pkg/cpio"
)

// kernelModules returns the folder of the modules of the pinned kernel.
func kernelModules(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("../../build/kernel/pkg/lib/modules/*")
	require.NoError(t, err)
	if len(found) == 0 {
		unavailable(t, "no kernel in build/kernel: run .ci/kernel.sh build/kernel")
	}
	return found[0]
}

// Each module comes after all that modinfo says it needs, and once.
func TestModuleOrder(t *testing.T) {
	dir := kernelModules(t)
	b := testBoard(t)
	order, err := ResolveModules(dir, b.Kernel.Modules)
	require.NoError(t, err)
	loaded := make(map[string]bool)
	for _, m := range order {
		name := moduleName(strings.TrimSuffix(filepath.Base(m), ".ko"))
		require.False(t, loaded[name], "%s twice", name)
		needs := strings.TrimSpace(ask(t, "modinfo", "-F", "depends", filepath.Join(dir, m)))
		for _, n := range strings.FieldsFunc(needs, func(r rune) bool { return r == ',' }) {
			require.True(t, loaded[moduleName(n)], "%s comes before %s", name, n)
		}
		loaded[name] = true
	}
	for _, m := range b.Kernel.Modules {
		require.True(t, loaded[m], m)
	}

	_, err = ResolveModules(dir, []string{"no_such_module"})
	require.ErrorContains(t, err, "no_such_module")
	order, err = ResolveModules(dir, []string{"tpm_tis"})
	require.NoError(t, err)
	require.Empty(t, order, "built into the kernel")
}

// Modules that would have to be unpacked first are refused.
func TestModulesCompressed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/kernel/ext4.ko.xz", nil)
	_, err := ResolveModules(dir, nil)
	require.ErrorContains(t, err, "ext4.ko.xz is compressed")
}

// The archive can be read again, holds each folder before what is in it, and is
// the same each time; the list of modules names files that are there.
func TestInitramfs(t *testing.T) {
	i := Initramfs{Init: []byte("init"), ModulesDir: kernelModules(t), Modules: []string{"ext4", "i6300esb"},
		Files: []File{{KeysPath, 0o600, []byte("keys")}}}
	one, err := i.Build()
	require.NoError(t, err)
	two, err := i.Build()
	require.NoError(t, err)
	require.True(t, bytes.Equal(one, two))

	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(one)))
	require.NoError(t, err)
	seen := map[string]bool{".": true}
	var list []byte
	for _, r := range records {
		require.True(t, seen[filepath.Dir(r.Name)], r.Name)
		seen[r.Name] = true
		if r.Name == "etc/tandem/modules" {
			list = make([]byte, r.FileSize)
			_, err := r.ReadAt(list, 0)
			require.NoError(t, err)
		}
	}
	lines := strings.Split(strings.TrimSpace(string(list)), "\n")
	require.NotEmpty(t, lines)
	for _, line := range lines {
		require.True(t, seen[line[1:]], line)
	}

	i.Files = append(i.Files, File{Path: "/init"})
	_, err = i.Build()
	require.ErrorContains(t, err, "/init occurs twice")
}

func TestSourceDate(t *testing.T) {
	date, err := SourceDate("")
	require.NoError(t, err)
	require.Equal(t, Epoch, date)
	date, err = SourceDate("1700000000")
	require.NoError(t, err)
	require.EqualValues(t, 1700000000, date.Unix())
	for _, bad := range []string{"yesterday", "-1"} {
		_, err = SourceDate(bad)
		require.Error(t, err)
	}
}
