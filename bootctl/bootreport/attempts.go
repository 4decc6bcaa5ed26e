package bootreport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/tandem-ota/tandem/partition/datafile"
)

// The stages that the first program writes. The agent adds StageClean before it
// reboots on purpose, with the purpose as Cause.
const (
	StageStarted  = "started"  // the first program runs and can write
	StageFailed   = "failed"   // it gave the boot up; Cause says why
	StageSwitched = "switched" // it handed over to /sbin/init
	StageClean    = "clean"    // the system went down on purpose; Cause says why
)

const (
	// MaxSize is the most that the attempts file grows to, in bytes.
	MaxSize = 64 << 10
	// keepSize is what a compaction leaves of it, so that not every append
	// is a rewrite.
	keepSize = MaxSize / 2
	// maxText bounds the free text of one attempt, in bytes, so that one line
	// always fits in what a compaction leaves.
	maxText = 4 << 10
)

// Attempt is one event of one boot. Cause and Pstore are cut to 4 KiB.
type Attempt struct {
	BootID   string `json:"boot_id"`
	Slot     string `json:"slot"`
	Manifest string `json:"manifest,omitempty"` // "" until the slot record was verified
	Version  string `json:"version,omitempty"`
	Stage    string `json:"stage"`
	Cause    string `json:"cause,omitempty"`
	// BootStatus and Pstore are about the boot before this one.
	BootStatus int    `json:"bootstatus,omitempty"`
	Pstore     string `json:"pstore,omitempty"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append adds one line to the attempts file, made if there is none.
//
// When Append returns nil the line is on the medium. If it fails, the lines
// from before are whole and the new one may or may not be there; repeating adds
// it once more, which readers of the newest lines do not notice.
func Append(path string, a Attempt) error { return appendTo(datafile.OS{}, path, a) }

func appendTo(fsys datafile.FS, path string, a Attempt) error {
	a.Cause = tail(a.Cause, maxText)
	a.Pstore = tail(a.Pstore, maxText)
	text, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("note boot attempt: %w", err)
	}
	line := fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text)
	if err := appendLine(fsys, path, line); err != nil {
		return fmt.Errorf("note boot attempt: %w", err)
	}
	return nil
}

func appendLine(fsys datafile.FS, path string, line []byte) error {
	old, err := readAll(fsys, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := datafile.Mkdir(fsys, filepath.Dir(path), 0o755); err != nil {
			return err
		}
	case err != nil:
		return err
	case len(old)+len(line) > MaxSize:
		return datafile.Replace(fsys, path, append(newest(old, keepSize-len(line)), line...), 0o644)
	}
	return datafile.Append(fsys, path, line, 0o644)
}

// newest returns the last whole lines of log that fit in size bytes.
func newest(log []byte, size int) []byte {
	lines := bytes.SplitAfter(log, []byte{'\n'})
	start := len(lines)
	for ; start > 0; start-- {
		line := lines[start-1]
		if len(line) > size {
			break
		}
		size -= len(line)
	}
	kept := bytes.Join(lines[start:], nil)
	if len(kept) > 0 && kept[len(kept)-1] != '\n' {
		kept = append(kept, '\n')
	}
	return kept
}

// Attempts reads the file, oldest event first. A file that is not there is an
// empty one; damaged lines are left out.
func Attempts(path string) ([]Attempt, error) { return attempts(datafile.OS{}, path) }

func attempts(fsys datafile.FS, path string) ([]Attempt, error) {
	log, err := readAll(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read boot attempts: %w", err)
	}
	return parse(log), nil
}

func parse(log []byte) []Attempt {
	var all []Attempt
	for line := range bytes.Lines(log) {
		line, whole := bytes.CutSuffix(line, []byte{'\n'})
		sum, text, spaced := bytes.Cut(line, []byte{' '})
		if !whole || !spaced || len(sum) != 8 {
			continue
		}
		want, err := strconv.ParseUint(string(sum), 16, 32)
		if err != nil || crc32.Checksum(text, castagnoli) != uint32(want) {
			continue
		}
		var a Attempt
		if json.Unmarshal(text, &a) == nil {
			all = append(all, a)
		}
	}
	return all
}

// readAll reads at most MaxSize bytes, and the newest ones of a file that
// somebody else made larger.
func readAll(fsys datafile.FS, path string) ([]byte, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-MaxSize), MaxSize))
}

// tail keeps the last n bytes of s: the end of a log is where the cause is.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[len(s)-n:]
}
