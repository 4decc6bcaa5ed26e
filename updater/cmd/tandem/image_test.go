package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards"
)

func runImage(args ...string) (stdout, stderr string, err error) {
	var out, bad bytes.Buffer
	err = imageCmd(context.Background(), args, strings.NewReader(""), &out, &bad)
	return out.String(), bad.String(), err
}

// Whatever is missing or unknown on the command line is named.
func TestImageUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"see tandem image -h":     {},
		`unknown command "bild"`:  {"bild"},
		"--board is missing":      {"slots"},
		"--kernel is missing":     {"slots", "--board", "qemu-x86_64"},
		`unknown board "toaster"`: {"build", "--board", "toaster", "--slots", "x", "--manifest", "y", "-o", "z"},
		"want --release":          {"build", "--board", "qemu-x86_64", "-o", "z"},
		"1 arguments, want 2":     {"flash", "disk.img"},
		"no such file":            {"flash", "/does/not/exist", "/nor/this"},
	} {
		_, _, err := runImage(args...)
		require.ErrorContains(t, err, want, strings.Join(args, " "))
	}
	out, _, err := runImage("-h")
	require.NoError(t, err)
	require.Contains(t, out, "flash")
	_, usage, err := runImage("build", "-h")
	require.NoError(t, err)
	require.Contains(t, usage, strings.Join(boards.Names(), ", "))
}

// The line says how much is done, how fast, and how long it takes still.
func TestProgressText(t *testing.T) {
	const mib = 1 << 20
	require.Equal(t, "write      0 of 2755 MiB   0%                              ", progressText("write", 0, 2755*mib, 0))
	require.Equal(t, "write    500 of 1000 MiB  50%     50.0 MiB/s       10s left", progressText("write", 500*mib, 1000*mib, 10*time.Second))
	require.Equal(t, "check   1000 of 1000 MiB 100%     10.0 MiB/s        0s left", progressText("check", 1000*mib, 1000*mib, 100*time.Second))

	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := progressLine{out: &out, now: func() time.Time { return now }, every: time.Second}
	for i := range int64(100) {
		now = now.Add(100 * time.Millisecond)
		p.show("write", i+1, 100)
	}
	p.show("check", 100, 100)
	p.end()
	require.Equal(t, 2, strings.Count(out.String(), "\n"), "one line for each phase")
	require.Less(t, strings.Count(out.String(), "\r"), 20, "shown too often")
}

// A file takes the place of a device when trying, and is told so when too small.
func TestImageFlashTooSmall(t *testing.T) {
	dir := t.TempDir()
	dev := filepath.Join(dir, "device")
	require.NoError(t, os.WriteFile(dev, make([]byte, 4096), 0o600))
	_, _, err := runImage("flash", dev, dev)
	require.ErrorContains(t, err, "not a disk image")
}
