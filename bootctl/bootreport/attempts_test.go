package bootreport

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/datafile"
)

// Nothing is forgotten while there is room, to the last byte of it; what makes the file too
// long makes it half as long, and costs the oldest events only.
func TestAttemptsForgetTheOldest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts")
	size := func() int64 {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Size()
	}
	note := func(n, text int) {
		require.NoError(t, Append(path, Attempt{BootID: fmt.Sprintf("%04d", n), Slot: "a", Stage: StageFailed, Cause: strings.Repeat("x", text)}))
	}
	const text = 1000
	note(0, text)
	line := size()
	n := 1
	for ; size() <= MaxSize-3*line; n++ {
		note(n, text)
	}
	note(n, int(MaxSize-size()-line)+text)
	require.EqualValues(t, MaxSize, size(), "the last byte is used")
	all, err := Attempts(path)
	require.NoError(t, err)
	require.Len(t, all, n+1)

	note(n+1, text)
	require.LessOrEqual(t, size(), int64(keepSize))
	require.Greater(t, size(), int64(keepSize)-4*line)
	kept, err := Attempts(path)
	require.NoError(t, err)
	require.Equal(t, all[len(all)-len(kept)+1:], kept[:len(kept)-1])
	require.Equal(t, fmt.Sprintf("%04d", n+1), kept[len(kept)-1].BootID)
}

// Of a text that is too long the end is kept: there a log says what happened.
func TestAttemptTextsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts")
	want := Attempt{BootID: "1", Slot: "a", Stage: StageFailed, Cause: strings.Repeat("c", maxText-1) + "!", Pstore: strings.Repeat("p", maxText-1) + "!"}
	long := want
	long.Cause, long.Pstore = "x"+want.Cause, "x"+want.Pstore
	require.NoError(t, Append(path, want))
	require.NoError(t, Append(path, long))
	all, err := Attempts(path)
	require.NoError(t, err)
	require.Equal(t, []Attempt{want, want}, all)
}

// What is kept of a log is whole lines, as many as there is room for, to the byte.
func TestNewestLines(t *testing.T) {
	const log = "one\ntwo\nthree\n"
	for size, want := range map[int]string{
		len(log):     log,
		len(log) - 1: "two\nthree\n",
		6:            "three\n",
		5:            "",
		0:            "",
	} {
		require.Equal(t, want, string(newest([]byte(log), size)), "%d bytes", size)
	}
	require.Equal(t, "a torn one\n", string(newest([]byte("a torn one"), 100)))
}

// A line that was torn when the file was full takes no other with it.
func TestAttemptsTornWhenFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts")
	require.NoError(t, Append(path, Attempt{BootID: "old", Slot: "a", Stage: StageFailed}))
	line, err := os.ReadFile(path)
	require.NoError(t, err)
	full := bytes.Repeat(line, MaxSize/len(line))
	for _, cut := range []int{0, 1, len(line) / 2, len(line) - 1} {
		torn := append(bytes.Clone(full[:len(full)-len(line)]), line[:len(line)-cut]...)
		require.NoError(t, os.WriteFile(path, torn, 0o644))
		require.NoError(t, Append(path, Attempt{BootID: "new", Slot: "a", Stage: StageStarted, Cause: strings.Repeat("x", 100)}))
		all, err := Attempts(path)
		require.NoError(t, err)
		require.Greater(t, len(all), keepSize/len(line)-5, "cut %d", cut)
		require.Equal(t, "new", all[len(all)-1].BootID, "cut %d", cut)
		require.Equal(t, "old", all[len(all)-2].BootID, "cut %d", cut)
	}
}

// A line has one form: eight digits, a space, the text.
func TestAttemptsHaveOneForm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts")
	require.NoError(t, Append(path, Attempt{BootID: "1", Slot: "a", Stage: StageFailed}))
	line, err := os.ReadFile(path)
	require.NoError(t, err)
	for state, other := range map[string]string{
		"nine digits":      "0" + string(line),
		"no line feed":     strings.TrimSuffix(string(line), "\n"),
		"no space":         strings.Replace(string(line), " ", "", 1),
		"a sign":           "+" + string(line[1:]),
		"text of another":  strings.Replace(string(line), `"a"`, `"b"`, 1),
		"space before sum": " " + string(line),
	} {
		require.Empty(t, parse([]byte(other)), state)
	}
	require.Len(t, parse(line), 1)
}

// The first event of a log is one like the others.
func TestExplainTheOnlyEvent(t *testing.T) {
	end := Explain([]Attempt{{BootID: "1", Slot: "b", Stage: StageFailed, Cause: "no root"}}, "b", "")
	require.Equal(t, End{Kind: EndFailed, Boots: 1, Detail: "no root"}, end)
}

// Of a file that somebody else made too large the newest events are read, and no more than
// there may be, also if it grows meanwhile.
func TestAttemptsTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts")
	var log []byte
	for n := 0; len(log) <= 2*MaxSize; n++ {
		text := fmt.Sprintf(`{"boot_id":"%04d","slot":"a","stage":"started"}`, n)
		log = fmt.Appendf(log, "%08x %s\n", crc32.Checksum([]byte(text), castagnoli), text)
	}
	require.NoError(t, os.WriteFile(path, log, 0o644))
	want := parse(log[len(log)-MaxSize:])
	all, err := Attempts(path)
	require.NoError(t, err)
	require.Equal(t, want, all)

	all, err = attempts(grown{}, path)
	require.NoError(t, err)
	require.Equal(t, parse(log[:MaxSize]), all)
}

// grown is a file system whose files are empty when their size is asked for, and not any
// more when they are read.
type grown struct{ datafile.OS }

func (g grown) OpenFile(name string, flag int, perm fs.FileMode) (datafile.File, error) {
	f, err := g.OS.OpenFile(name, flag, perm)
	return grownFile{f}, err
}

type grownFile struct{ datafile.File }

func (f grownFile) Stat() (fs.FileInfo, error) { return os.Stat(os.DevNull) }
