package datafiletest_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/datafile/datafiletest"
)

// save replaces /file, with steps left out or in another order.
func save(t *testing.T, fsys *datafiletest.FS, steps string) {
	t.Helper()
	for _, step := range strings.Fields(steps) {
		flag := os.O_WRONLY
		switch step {
		case "write":
			flag |= os.O_CREATE | os.O_TRUNC
			fallthrough
		case "sync":
			f, err := fsys.OpenFile("/next", flag, 0o600)
			require.NoError(t, err)
			if step == "write" {
				_, err = f.Write([]byte("new"))
			} else {
				err = f.Sync()
			}
			require.NoError(t, err)
		case "rename":
			require.NoError(t, fsys.Rename("/next", "/file"))
		case "folder":
			f, err := fsys.OpenFile("/", os.O_RDONLY, 0)
			require.NoError(t, err)
			require.NoError(t, f.Sync())
		case "in-place":
			f, err := fsys.OpenFile("/file", flag|os.O_TRUNC, 0o600)
			require.NoError(t, err)
			_, err = f.Write([]byte("new"))
			require.NoError(t, err)
			require.NoError(t, f.Sync())
		}
	}
}

// What is wrong with a way of writing shows in some state, and the right way passes.
func TestFindsMissingSync(t *testing.T) {
	for steps, want := range map[string]string{
		"write sync rename folder": "",
		"write rename folder":      "damaged", // the new name leads to a file whose data was lost
		"write sync rename":        "lost",    // saved, and the old one is back
		"write folder rename":      "damaged",
		"in-place":                 "damaged",
	} {
		t.Run(steps, func(t *testing.T) {
			fsys := datafiletest.New()
			f, err := fsys.OpenFile("/file", os.O_WRONLY|os.O_CREATE, 0o600)
			require.NoError(t, err)
			_, err = f.Write([]byte("old"))
			require.NoError(t, err)
			fsys.Settle()
			save(t, fsys, steps)
			found := map[string]bool{}
			for crash := range fsys.Crashes() {
				data, err := crash.FS().ReadFile("/file")
				require.NoError(t, err)
				switch {
				case string(data) != "old" && string(data) != "new":
					found["damaged"] = true
				case string(data) == "old" && crash.Cut == fsys.Ops():
					found["lost"] = true
				}
			}
			if want == "" {
				require.Empty(t, found)
			} else {
				require.True(t, found[want], "%v", found)
			}
		})
	}
}

// A state prints as a line, and the line is enough to see it again.
func TestReplay(t *testing.T) {
	run := func() *datafiletest.FS {
		fsys := datafiletest.New()
		save(t, fsys, "write rename")
		return fsys
	}
	lines := map[string]string{}
	for crash := range run().Crashes() {
		lines[crash.String()] = strings.Join(crash.FS().Names(), " ")
	}
	require.Contains(t, lines, "cut=3 create:k write:t2 rename:k")
	for line, names := range lines {
		t.Setenv("DATAFILETEST", line)
		n := 0
		for crash := range run().Crashes() {
			require.Equal(t, line, crash.String())
			require.Equal(t, names, strings.Join(crash.FS().Names(), " "))
			n++
		}
		require.Equal(t, 1, n, line)
	}
}

// After a Sync that failed, the next one succeeds, and what was written before may be
// lost all the same.
func TestFailedSyncForgets(t *testing.T) {
	fsys := datafiletest.New()
	f, err := fsys.OpenFile("/file", os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	fsys.Settle()
	_, err = f.Write([]byte("x"))
	require.NoError(t, err)
	fsys.Inject(datafiletest.Fault{Op: datafiletest.Sync, At: 1, Err: syscall.EIO})
	require.ErrorIs(t, f.Sync(), syscall.EIO)
	require.NoError(t, f.Sync())
	found := map[string]bool{}
	for crash := range fsys.Crashes() {
		data, err := crash.FS().ReadFile("/file")
		require.NoError(t, err)
		if crash.Cut == fsys.Ops() {
			found[string(data)] = true
		}
	}
	require.True(t, found[""] && found["x"], "%q", found)
}
