package datafile_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/datafile"
	"github.com/tandem-ota/tandem/partition/datafile/datafiletest"
)

const path = "/data/tandem/file"

// sealed is a line whose sum condemns it when it is torn.
func sealed(text string) string {
	return fmt.Sprintf("%08x %s\n", crc32.ChecksumIEEE([]byte(text)), text)
}

// texts reads the lines that are whole.
func texts(data []byte) []string {
	var list []string
	for _, line := range strings.SplitAfter(string(data), "\n") {
		sum, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, err := strconv.ParseUint(sum, 16, 32)
		if strings.HasSuffix(line, "\n") && err == nil && uint32(n) == crc32.ChecksumIEEE([]byte(text)) {
			list = append(list, text)
		}
	}
	return list
}

// work is one operation of the package on one state of the world. state says which
// of the two allowed states, "old" or "new", the file is in; anything else is what is wrong.
type work struct {
	world string
	setUp func(datafile.FS) error
	run   func(datafile.FS) error
	state func(*datafiletest.FS) string
}

func put(content string) func(datafile.FS) error {
	return func(fsys datafile.FS) error {
		return datafile.Replace(fsys, path, []byte(content), 0o600)
	}
}

func line(text string) func(datafile.FS) error {
	return func(fsys datafile.FS) error {
		return datafile.Append(fsys, path, []byte(sealed(text)), 0o600)
	}
}

func create(fsys datafile.FS) error {
	f, err := datafile.Create(fsys, path, 2000, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func remove(fsys datafile.FS) error { return datafile.Delete(fsys, path) }

func nothing(datafile.FS) error { return nil }

// oneOf tells the contents apart; "" stands for no file.
func oneOf(before, after string) func(*datafiletest.FS) string {
	return func(fsys *datafiletest.FS) string {
		data, err := fsys.ReadFile(path)
		is := string(data)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err.Error()
		}
		switch {
		case err == nil && is == "":
			return "empty"
		case is == after:
			return "new"
		case is == before:
			return "old"
		}
		return fmt.Sprintf("%.200q", is)
	}
}

// lines finds the new line once or, after a repetition, more than once, behind
// all old ones.
func lines(before ...string) func(*datafiletest.FS) string {
	return func(fsys *datafiletest.FS) string {
		data, err := fsys.ReadFile(path)
		if err != nil && (len(before) > 0 || !errors.Is(err, fs.ErrNotExist)) {
			return err.Error()
		}
		is := texts(data)
		if len(is) < len(before) || !slices.Equal(is[:len(before)], before) {
			return fmt.Sprintf("%q", is)
		}
		is = slices.Compact(is[len(before):])
		switch {
		case len(is) == 0:
			return "old"
		case len(is) == 1 && is[0] == "new":
			return "new"
		}
		return fmt.Sprintf("%q", is)
	}
}

func works() []work {
	long := strings.Repeat("0123456789abcdef", 100)
	return []work{
		{"a file is replaced", put("old content"), put("new"), oneOf("old content", "new")},
		{"a file is replaced by a longer one", put("old"), put(long), oneOf("old", long)},
		{"the first file of its name", nothing, put("new content"), oneOf("", "new content")},
		{"a file is replaced, and an earlier power cut left one beside it", func(fsys datafile.FS) error {
			f, err := fsys.OpenFile("/data/tandem/.file.new", os.O_CREATE|os.O_WRONLY, 0o600)
			if err == nil {
				_, err = f.Write([]byte(long))
			}
			return errors.Join(err, put("old")(fsys), f.Close())
		}, put("new content"), oneOf("old", "new content")},

		{"a line is added", put(sealed("1") + sealed("2")), line("new"), lines("1", "2")},
		{"a line is added after half a one", put(sealed("1") + sealed("torn")[:9]), line("new"), lines("1")},
		{"the first line", nothing, line("new"), lines()},
		{"a line is added to an empty file", put(""), line("new"), lines()},

		{"a file of a size is made", nothing, create, func(fsys *datafiletest.FS) string {
			// It is used only after nil; until then it may be anything, but zeros.
			data, err := fsys.ReadFile(path)
			switch {
			case err != nil || len(data) == 0:
				return "old"
			case bytes.Equal(data, make([]byte, 2000)):
				return "new"
			}
			return fmt.Sprintf("%d bytes", len(data))
		}},
		{"a file of a size is there and too short", put("content"), create, oneOf("content", "content"+string(make([]byte, 1993)))},

		{"a file is deleted", put("content"), remove, oneOf("content", "")},

		{"a folder is made", nothing, func(fsys datafile.FS) error {
			return datafile.Mkdir(fsys, "/data/tandem/a", 0o700)
		}, func(fsys *datafiletest.FS) string {
			if slices.Contains(fsys.Names(), "/data/tandem/a/") {
				return "new"
			}
			return "old"
		}},
	}
}

// prepared returns a file system on which an hour ago w was set up.
func (w work) prepared(t *testing.T) *datafiletest.FS {
	t.Helper()
	fsys := datafiletest.New()
	require.NoError(t, datafile.Mkdir(fsys, "/data", 0o755))
	require.NoError(t, datafile.Mkdir(fsys, "/data/tandem", 0o755))
	require.NoError(t, w.setUp(fsys))
	fsys.Settle()
	require.Contains(t, []string{"old"}, w.state(fsys))
	return fsys
}

// The power may fail at any operation, and any part of what was not yet synced may
// be lost, torn or garbled. The file then has the old or the new content; once nil was
// returned it has the new one; and doing it again, during which the power may fail
// too, ends there.
func TestPowerCut(t *testing.T) {
	visited := 0
	for _, w := range works() {
		t.Run(w.world, func(t *testing.T) {
			fsys := w.prepared(t)
			require.NoError(t, w.run(fsys))
			require.Equal(t, "new", w.state(fsys))
			done := fsys.Ops()
			for crash := range fsys.Crashes() {
				visited++
				again := crash.FS()
				is := w.state(again)
				require.Contains(t, []string{"old", "new"}, is, "%s", crash)
				if crash.Cut >= done {
					require.Equal(t, "new", is, "nil was returned, %s", crash)
				}
				require.NoError(t, w.run(again), "%s", crash)
				done := again.Ops()
				for crash := range again.Crashes() {
					visited++
					is := w.state(crash.FS())
					require.Contains(t, []string{"old", "new"}, is, "%s", crash)
					if crash.Cut >= done {
						require.Equal(t, "new", is, "nil was returned, %s", crash)
					}
				}
			}
		})
	}
	require.Greater(t, visited, 5_000)
	t.Attr("file-crash-states", fmt.Sprint(visited))
}

// The disk may be full or fail, once or for good, at any operation. What is read then is
// the old or the new content, now and after a power cut; and once nil was returned,
// by this call or by a later one, it is the new content in whatever state a cut leaves.
func TestFaults(t *testing.T) {
	injected := 0
	for _, w := range works() {
		t.Run(w.world, func(t *testing.T) {
			for at := 1; ; at++ {
				var fsys *datafiletest.FS
				for _, err := range []error{syscall.EIO, syscall.ENOSPC} {
					for _, sticky := range []bool{false, true} {
						what := fmt.Sprintf("operation %d: %v, for good: %v", at, err, sticky)
						fsys = w.prepared(t)
						fsys.Inject(datafiletest.Fault{At: at, Err: err, Sticky: sticky})
						failed := w.run(fsys)
						if !fsys.Fired() {
							require.NoError(t, failed, what)
							break
						}
						injected++
						w.checkFault(t, fsys, failed, err, sticky, what)
					}
				}
				if !fsys.Fired() {
					require.Greater(t, at, 2)
					return
				}
			}
		})
	}
	require.Greater(t, injected, 200)
	t.Attr("file-faults", fmt.Sprint(injected))
}

func (w work) checkFault(t *testing.T, fsys *datafiletest.FS, failed, err error, sticky bool, what string) {
	t.Helper()
	if failed != nil {
		require.ErrorIs(t, failed, err, what)
	}
	require.Contains(t, []string{"old", "new"}, w.state(fsys), what)
	done := fsys.Ops()
	for crash := range fsys.Crashes() {
		is := w.state(crash.FS())
		require.Contains(t, []string{"old", "new"}, is, "%s, %s", what, crash)
		if failed == nil && crash.Cut >= done {
			require.Equal(t, "new", is, "nil was returned, %s, %s", what, crash)
		}
	}
	if sticky {
		return // the disk is gone; what comes after is a power cut
	}
	w.checkAgain(t, fsys, what)
}

// checkAgain does the work once more: nil then stands for the new content, whatever
// the calls before left unsynced.
func (w work) checkAgain(t *testing.T, fsys *datafiletest.FS, what string) {
	t.Helper()
	require.NoError(t, w.run(fsys), what)
	require.Equal(t, "new", w.state(fsys), what)
	done := fsys.Ops()
	for crash := range fsys.Crashes() {
		is := w.state(crash.FS())
		require.Contains(t, []string{"old", "new"}, is, "%s, %s", what, crash)
		if crash.Cut >= done {
			require.Equal(t, "new", is, "repeated, %s, %s", what, crash)
		}
	}
}

// The program may be killed at any operation, and the power fail after its next run. That
// run does not take for durable what it finds.
func TestKilled(t *testing.T) {
	for _, w := range works() {
		t.Run(w.world, func(t *testing.T) {
			for at := 1; ; at++ {
				fsys := w.prepared(t)
				fsys.Inject(datafiletest.Fault{At: at, Err: datafiletest.ErrKilled, Sticky: true})
				_ = w.run(fsys) // which did not come back
				if !fsys.Fired() {
					return
				}
				fsys.Heal()
				w.checkAgain(t, fsys, fmt.Sprintf("killed at operation %d", at))
			}
		})
	}
}

// A disk that is full keeps nothing of a replacement that did not fit.
func TestFullDiskGetsNoFuller(t *testing.T) {
	w := work{setUp: put("old"), state: oneOf("old", "new content")}
	fsys := w.prepared(t)
	before := fsys.Names()
	fsys.Inject(datafiletest.Fault{Op: datafiletest.Write, At: 1, Sticky: true, Err: syscall.ENOSPC})
	require.ErrorIs(t, put("new content")(fsys), syscall.ENOSPC)
	require.Equal(t, before, fsys.Names())
	require.Equal(t, "old", w.state(fsys))
}

// On the real file system: contents, permissions, and nothing left beside.
func TestReal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	real := datafile.OS{}
	require.ErrorIs(t, datafile.Mkdir(real, filepath.Join(dir, "b"), 0o700), fs.ErrNotExist)
	require.NoError(t, datafile.Mkdir(real, dir, 0o700))
	require.NoError(t, datafile.Mkdir(real, dir, 0o700))
	file := filepath.Join(dir, "file")
	require.NoError(t, datafile.Replace(real, file, []byte("1\n"), 0o640))
	require.NoError(t, datafile.Append(real, file, []byte("2\n"), 0o600))
	require.NoError(t, datafile.Append(real, filepath.Join(dir, "other"), []byte("3\n"), 0o600))
	f, err := datafile.Create(real, file, 6, 0o600)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("5"), 5)
	require.NoError(t, errors.Join(err, f.Close()))
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "1\n2\n\x005", string(got))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode())

	require.ErrorIs(t, datafile.Replace(real, filepath.Join(dir, "none", "file"), nil, 0o600), fs.ErrNotExist)
	_, err = datafile.Create(real, filepath.Join(dir, "none", "file"), 1, 0o600)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, datafile.Delete(real, file))
	require.NoError(t, datafile.Delete(real, file))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "other", left[0].Name())
}
