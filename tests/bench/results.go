package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A result is one pair, measured. Sizes are in bytes, times in seconds.
type result struct {
	Pair, About string
	Date        time.Time
	Machine     string
	Versions    []string
	Old, New    picture
	Packages    []string `json:",omitempty"` // that differ
	Limits      limits
	Rows        []row
}

// A row is one tool on one pair.
type row struct {
	Tool    string
	Skipped string   `json:",omitempty"` // why it did not run
	Failed  string   `json:",omitempty"`
	Bytes   int64    // that a device downloads
	Index   int64    `json:",omitempty"` // of them, those of an index
	Encode  cost     // on the desk
	Decode  *cost    `json:",omitempty"` // on the device; none where it was only calculated
	Checked *cost    `json:",omitempty"` // of ours: with the check of every leaf
	Ours    *decoded `json:",omitempty"`

	took time.Duration
}

func (r row) String() string {
	switch {
	case r.Skipped != "":
		return r.Tool + ": " + r.Skipped
	case r.Failed != "":
		return r.Tool + ": failed: " + r.Failed
	}
	return fmt.Sprintf("%s: %d bytes, in %.0f s", r.Tool, r.Bytes, r.took.Seconds())
}

// row returns what a tool did, if it did.
func (r result) row(tool string) (row, bool) {
	for _, w := range r.Rows {
		if w.Tool == tool && w.Skipped == "" && w.Failed == "" {
			return w, true
		}
	}
	return row{}, false
}

func (r result) failures() (all []error) {
	for _, w := range r.Rows {
		if w.Failed != "" {
			all = append(all, fmt.Errorf("pair %s: %s: %s", r.Pair, w.Tool, w.Failed))
		}
	}
	return all
}

func (r result) save(folder string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, r.Pair+".json"), append(text, '\n'), 0o644))
}

func load(folder, pair string) (r result, err error) {
	text, err := os.ReadFile(filepath.Join(folder, pair+".json"))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}

// measured are the Debian packages whose versions decide about figures.
var measured = []string{"xdelta3", "bsdiff", "zstd", "rdiff", "zchunk", "casync", "e2fsprogs", "squashfs-tools", "erofs-utils", "mmdebstrap"}

func versions(ctx context.Context) []string {
	all := []string{"tandem " + output(ctx, "git", "describe", "--always", "--dirty"), runtime.Version()}
	for _, name := range measured {
		all = append(all, name+" "+output(ctx, "dpkg-query", "-W", "-f", "${Version}", name))
	}
	return all
}

// output is what a program says in one line, or that it is not there.
func output(ctx context.Context, argv ...string) string {
	said, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return "(unknown)"
	}
	return strings.TrimSpace(string(said))
}

func machine() string {
	cpu := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(text), "model name\t: "); ok {
			cpu, _, _ = strings.Cut(rest, "\n")
		}
	}
	var name unix.Utsname
	kernel := "unknown kernel"
	if unix.Uname(&name) == nil {
		kernel = "Linux " + unix.ByteSliceToString(name.Release[:])
	}
	return fmt.Sprintf("%s, %d cores, %d GiB, %s", cpu, runtime.NumCPU(), (field("/proc/meminfo", "MemTotal:")+1<<19)>>20, kernel)
}
