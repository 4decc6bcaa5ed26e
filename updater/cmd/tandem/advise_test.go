package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/advice"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// A release, a slots folder and a file of the same content get the same advice.
func TestReleaseAdvise(t *testing.T) {
	tmp := t.TempDir()
	// The front of an ext4 image is zeros, as the end of a tar is: it must not be taken for an empty one.
	image := append(make([]byte, 4096), bytes.Repeat([]byte("an image that compresses. "), 8000)...)
	changed := bytes.Replace(image, []byte("image"), []byte("IMAGE"), 1)
	old, fresh := slotsFolder(t, image), slotsFolder(t, changed)
	dir := filepath.Join(tmp, "r1")
	must(t, releaseCmd, "create", dir, "--product", "gateway", "--version", "1.0.0", "--sequence", "1", "--slots", old, "--level", "1")
	must(t, releaseCmd, "pack", dir, dir+".tar")

	var want []advice.Report
	for _, base := range []string{old, dir, dir + ".tar", filepath.Join(old, "root.img")} {
		in := fresh
		if filepath.Ext(base) == ".img" {
			in = filepath.Join(fresh, "root.img")
		}
		out := must(t, releaseCmd, "advise", "--json", "--base", base, in, "--tmp", tmp)
		var got []advice.Report
		require.NoError(t, json.Unmarshal([]byte(out), &got), out)
		require.Len(t, got, 1)
		require.True(t, got[0].Measured, base)
		got[0].Image = "root"
		if want == nil {
			want = got
		}
		require.Equal(t, want, got, base)
	}
	require.Positive(t, want[0].Delta)

	out := must(t, releaseCmd, "advise", "--base", old, fresh)
	for _, s := range []string{"root: none", "total", "all else", "DELTA NOW"} {
		require.Contains(t, out, s)
	}
	out = must(t, releaseCmd, "advise", fresh)
	require.Contains(t, out, "nothing to advise")
	for _, args := range [][]string{{"advise"}, {"advise", "a", "b"}, {"advise", "--memory", "5%", fresh}} {
		_, stderr, code := desk(releaseCmd, args...)
		require.Equal(t, exitUsage, code, stderr)
	}
	_, _, code := desk(releaseCmd, "advise", filepath.Join(tmp, "nothing"))
	require.Equal(t, 1, code)
	left, err := filepath.Glob(filepath.Join(tmp, "advice-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// The table says which bases got a delta, and what the others would have cost.
func TestReleaseCreateDevices(t *testing.T) {
	tmp := t.TempDir()
	image := bytes.Repeat([]byte("an image that compresses. "), 8000)
	dir := filepath.Join(tmp, "r1")
	must(t, releaseCmd, "create", dir, "--product", "gateway", "--version", "1.0.0", "--sequence", "1", "--slots", slotsFolder(t, image), "--level", "1")
	changed := slotsFolder(t, bytes.Replace(image, []byte("image"), []byte("IMAGE"), 1))
	fleet := filepath.Join(tmp, "fleet")
	require.NoError(t, os.WriteFile(fleet, []byte("1.0.0 1200\n0.9.0 3 # in the shop\n"), 0o644))
	args := []string{"--product", "gateway", "--version", "1.1.0", "--sequence", "2", "--slots", changed, "--base", dir}

	out := must(t, releaseCmd, append([]string{"create", filepath.Join(tmp, "r2"), "--devices", fleet}, args...)...)
	require.Contains(t, out, "delta: saves 1200 devices")
	require.Contains(t, out, "3 devices run 0.9.0")
	out = must(t, releaseCmd, append([]string{"create", "--json", filepath.Join(tmp, "r3"), "--devices", "1.0.0=0"}, args...)...)
	var made mkrelease.Result
	require.NoError(t, json.Unmarshal([]byte(out), &made))
	require.Equal(t, "no device has this base", made.Weighed[0].Reason)
	require.False(t, made.Weighed[0].Kept)

	for _, bad := range [][]string{{"--devices", "many"}, {"--devices", "1.0.0=x"}, {"--min-saving", "lots"}} {
		_, stderr, code := desk(releaseCmd, append(append([]string{"create", filepath.Join(tmp, "r4")}, bad...), args...)...)
		require.NotZero(t, code, stderr)
	}
}
