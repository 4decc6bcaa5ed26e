package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/verity"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

// finding is one thing that doctor looked at.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Do   string `json:"do,omitempty"` // what a person can do
}

// errSick means that doctor found something that will make trouble.
var errSick = errors.New("something needs attention")

// doctor looks at everything that an update and its revert will rely on. It changes
// nothing.
func doctor(ctx context.Context, w io.Writer, o options) error {
	var found []finding
	add := func(what string, err error, good, do string) {
		f := finding{What: what, OK: err == nil, Text: good}
		if err != nil {
			f.Text, f.Do = err.Error(), do
		}
		found = append(found, f)
	}
	raw, err := readStatus(ctx)
	if err != nil {
		return err
	}
	var s Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	board, err := boards.Get(s.State.Board)
	if err != nil {
		return err
	}
	add("partitions", checkPartitions(board), fmt.Sprintf("%d partitions as board %s has them, both copies of the table whole", len(board.Disk.Partitions), board.Name),
		"the disk was partitioned for another board, or is failing: flash it again")
	for _, c := range s.Copies {
		var err error
		if c.Error != "" {
			err = errors.New(c.Error)
		}
		add("boot record "+c.Name, err, c.Record, "the next update writes it anew; if it comes again the medium is failing")
	}
	add("boot record", checkRecord(s), fmt.Sprintf("slot %s is good and runs, and is what the loader falls back to", s.State.Good), "`updater status`; `updater rollback` or `commit` end a trial, `commit -force` an alarm")
	add("trials", checkCounting(s), "the loader counted every try that the first program saw", "the loader cannot save: is the environment partition writable for it?")
	add("watchdog", checkWatchdog(board, s), watchdogText(s), "without a watchdog a system that hangs is not reverted: check the driver and the board file")
	add("verity", checkVerity(s), "the running root is verified block by block", "the medium is failing, or somebody writes to it")
	add("tpm", checkTPM(board, s), "register and ledger agree with what runs", "without a TPM updates work, and nothing proves what runs")
	add("data", checkData(s), dataText(), "make a file system on the data partition (`mkfs.ext4`), or free space")
	add("clock", checkClock(), time.Now().UTC().Format(time.RFC3339), "expiry of metadata does not count until signed statements raise the floor of time")
	add("link", checkLink(s), "connected", "provision the device (`tandem broker enroll`), or check network and broker")

	sick := false
	for _, f := range found {
		sick = sick || !f.OK
	}
	if o.json {
		if err := printJSON(w, found); err != nil {
			return err
		}
	} else {
		for _, f := range found {
			mark := "ok  "
			if !f.OK {
				mark = "BAD "
			}
			fmt.Fprintf(w, "%s %-24s %s\n", mark, f.What, f.Text)
			if f.Do != "" {
				fmt.Fprintf(w, "     %-24s do: %s\n", "", f.Do)
			}
		}
	}
	if sick {
		return errSick
	}
	return nil
}

func checkPartitions(board boards.Board) error {
	host := partition.ThisHost()
	disk, err := host.RootDisk()
	if err != nil {
		return err
	}
	d, err := partition.OpenRead(filepath.Join(host.Dev, disk))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := partition.CheckTable(d, board.Disk.SectorBytes); err != nil {
		return err
	}
	parts, err := partition.ReadTable(d, board.Disk.SectorBytes)
	if err != nil {
		return err
	}
	for _, place := range board.Places() {
		p, err := partition.Find(parts, place.Label)
		if err != nil {
			return fmt.Errorf("%s: %w", place.Label, err)
		}
		if p.Start != place.Start || p.Size < place.Size {
			return fmt.Errorf("%s: %d bytes at %d, the board has %d at %d", place.Label, p.Size, p.Start, place.Size, place.Start)
		}
	}
	return nil
}

func checkRecord(s Status) error {
	if s.State.Good != s.State.Slot {
		return fmt.Errorf("slot %s runs, and slot %q is the good one", s.State.Slot, s.State.Good)
	}
	return nil
}

// checkCounting holds the loader's counter against the boots that the first program saw
// of the last trial: a loader that cannot save would try a bad system for ever.
func checkCounting(s Status) error {
	if s.Last == nil {
		return nil
	}
	boots, err := bootreport.Attempts(bootreport.AttemptsPath)
	if err != nil {
		return err
	}
	end := bootreport.Explain(boots, s.Last.Slot, string(s.Last.Manifest))
	if s.Last.Result == "reverted" && end.Boots > s.Last.Tries {
		return fmt.Errorf("release %s was booted %d times, and the loader counted %d", s.Last.Version, end.Boots, s.Last.Tries)
	}
	return nil
}

func checkWatchdog(board boards.Board, s Status) error {
	if board.Watchdog.Kind == "none" {
		return nil
	}
	w := s.Boot.Watchdog
	if w == nil {
		return errors.New("the first program found none")
	}
	// What the driver says now, without opening the device: sysfs.
	dir := filepath.Join("/sys/class/watchdog", filepath.Base(board.Watchdog.Device))
	read := func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(data))
	}
	if state := read("state"); state != "active" {
		return fmt.Errorf("%s is %q", w.Identity, state)
	}
	if n, err := strconv.Atoi(read("timeout")); err != nil || n != board.Watchdog.TimeoutSeconds {
		return fmt.Errorf("%s has a time-out of %q s, the board wants %d", w.Identity, read("timeout"), board.Watchdog.TimeoutSeconds)
	}
	if board.Watchdog.LoaderSeconds > 0 && w.ArmedBy != "loader" {
		return fmt.Errorf("%s was not armed by the loader: a kernel that hangs early is not reverted", w.Identity)
	}
	return nil
}

func watchdogText(s Status) string {
	if w := s.Boot.Watchdog; w != nil {
		return fmt.Sprintf("%s is active, %d s, armed by the %s", w.Identity, w.TimeoutS, w.ArmedBy)
	}
	return "this board has none"
}

func checkVerity(s Status) error {
	state, err := verity.Status("root")
	if err != nil {
		return err
	}
	if state.Corrupted {
		return errors.New("a block of the running root is damaged")
	}
	return nil
}

func checkTPM(board boards.Board, s Status) error {
	if board.TPM == nil {
		return nil
	}
	if len(s.TPM.Missing) > 0 {
		return errors.New(strings.Join(s.TPM.Missing, "; "))
	}
	return nil
}

// room is the free space that reports and metadata need, in bytes.
const room = 4 << 20

func checkData(s Status) error {
	if s.Boot.Data != bootreport.DataMounted {
		return errors.New("the data partition is not mounted; what is kept is lost at the next boot")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/data", &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); free < room {
		return fmt.Errorf("%d bytes free on /data, %d are needed", free, room)
	}
	return nil
}

func dataText() string {
	var fs unix.Statfs_t
	if unix.Statfs("/data", &fs) != nil {
		return ""
	}
	return fmt.Sprintf("mounted, %d MiB free", int64(fs.Bavail)*int64(fs.Bsize)>>20)
}

func checkClock() error {
	// Nothing was built before this program; a clock that says so has no battery.
	if now := time.Now(); now.Year() < 2026 {
		return fmt.Errorf("it is %s here", now.UTC().Format(time.RFC3339))
	}
	return nil
}

func checkLink(s Status) error {
	switch {
	case s.Link.Up:
		return nil
	case s.Link.Configured:
		return errors.New(s.Link.Error)
	}
	_, err := mqtt.Load(filepath.Join(dataDir, "provision"))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("not provisioned")
	}
	if err == nil {
		err = errors.New("the agent does not run")
	}
	return err
}
