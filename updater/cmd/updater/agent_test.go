package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/control"
	"github.com/tandem-ota/tandem/updater/trust"
)

type feeder struct{ errs []error }

func (f *feeder) Feed() error {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return err
}

// One or two feedings that fail in a row are survived, the third is said while there is
// still time; a good one in between starts the count anew.
func TestPatient(t *testing.T) {
	bad := errors.New("busy")
	p := &patient{f: &feeder{[]error{bad, bad, nil, bad, bad, bad}}, log: slog.New(slog.DiscardHandler)}
	for range 5 {
		require.NoError(t, p.Feed())
	}
	require.ErrorIs(t, p.Feed(), bad)
}

// A device that lost its provisioning, and still has an update in its journal, finds
// that there is no link, and nothing worse.
func TestNoLink(t *testing.T) {
	src := fleet{}.Source("")
	_, err := src.Manifest(context.Background())
	require.ErrorIs(t, err, mqtt.ErrDown)
	_, err = src.Metadata(context.Background(), "timestamp.json")
	require.ErrorIs(t, err, mqtt.ErrDown)
	_, err = src.ReadRange(context.Background(), "", 0, nil)
	require.ErrorIs(t, err, mqtt.ErrDown)
	require.Nil(t, fleet{}.Wants())
	require.False(t, fleet{}.status().Configured)
}

// What stands in for the data partition keeps things as a folder does.
func TestMemory(t *testing.T) {
	var m trust.Store = memory{}
	_, err := m.Get("a")
	require.ErrorIs(t, err, fs.ErrNotExist)
	data := []byte("x")
	require.NoError(t, m.Put("a", data))
	data[0] = 'y'
	got, err := m.Get("a")
	require.NoError(t, err)
	require.Equal(t, "x", string(got))
	require.NoError(t, m.Delete("a"))
	_, err = m.Get("a")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// device.json is read strictly: what is misspelt is said, not ignored.
func TestReadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.json")
	for name, c := range map[string]struct{ text, err string }{
		"least":             {`{"board":"b","product":"p"}`, ""},
		"systemd":           {`{"board":"b","product":"p","watchdog":"systemd","memory_mib":8}`, ""},
		"unknown key":       {`{"board":"b","product":"p","wathcdog":"systemd"}`, "wathcdog"},
		"no board":          {`{"product":"p"}`, "board"},
		"unknown owner":     {`{"board":"b","product":"p","watchdog":"me"}`, `"me"`},
		"memory of nothing": {`{"board":"b","product":"p","memory_mib":-1}`, "memory_mib"},
		"not JSON":          {`board: b`, "invalid character"},
		"two in one":        {`{"board":"b","product":"p"}{"memory_mib":8}`, "something follows"},
		"said twice":        {`{"board":"b","product":"p","board":"c"}`, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte(c.text), 0o600))
			got, err := readConfig(path)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Positive(t, got.MemoryMiB)
			require.Positive(t, got.CheckpointMiB)
		})
	}
	_, err := readConfig(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, errNoDevice)
}

// Whatever is in device.json: what is taken is whole, within its bounds, and says
// the same again.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"board":"qemu-x86_64","product":"gateway"}`))
	f.Add([]byte(`{"board":"b","product":"p","watchdog":"systemd","memory_mib":8,"checkpoint_mib":1,"max_attempts":3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			return
		}
		require.True(t, json.Valid(data))
		require.NotEmpty(t, c.Board)
		require.True(t, c.MemoryMiB > 0 && c.MemoryMiB <= 1024 && c.CheckpointMiB > 0 && c.CheckpointMiB <= 64 && c.MaxAttempts > 0)
		text, err := json.Marshal(c)
		require.NoError(t, err)
		again, err := parseConfig(text)
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}

// Exit codes are a promise to scripts (the manual in main.go).
func TestCodes(t *testing.T) {
	for code, err := range map[int]error{
		1: errors.New("anything"), 2: errUsage, 3: updater.ErrDowngrade, 4: updater.ErrBusy, 5: errNoDevice, 6: updater.ErrAlarm, 7: updater.ErrInstalled, 9: &control.Failure{Code: 9},
	} {
		require.Equal(t, code, codeOf(err), err)
	}
	require.Contains(t, hintFor(&control.Failure{Text: "release 2: " + updater.ErrNoDelta.Error()}), "-full")
}

// A log keeps its last lines, and passes all of them on.
func TestRing(t *testing.T) {
	var passed countingWriter
	r := &ring{w: &passed}
	for range ringLines + 5 {
		_, err := r.Write([]byte("line\n"))
		require.NoError(t, err)
	}
	_, err := r.Write([]byte("last\n"))
	require.NoError(t, err)
	require.Equal(t, countingWriter(ringLines+6), passed)
	require.Len(t, r.last(1000), ringLines)
	require.Equal(t, []string{"line", "last"}, r.last(2))
}

type countingWriter int

func (c *countingWriter) Write(p []byte) (int, error) { *c++; return len(p), nil }
