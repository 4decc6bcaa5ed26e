package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/tpm"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
)

// Status is what `updater status --json` prints.
type Status struct {
	State  transport.State  `json:"state"`
	Boot   bootreport.Boot  `json:"boot"`
	Trust  string           `json:"root_of_trust"` // of the board, so that nobody believes more than is so
	Copies []Copy           `json:"boot_record"`
	Cost   *journal.Cost    `json:"cost,omitempty"` // of the update under way
	Last   *journal.Verdict `json:"last,omitempty"` // how the last update ended
	TPM    tpm.Status       `json:"tpm"`
	Link   linkStatus       `json:"link"`
	Memory Memory           `json:"memory"`
}

// Copy is one copy of the boot record.
type Copy struct {
	Name   string `json:"name"`
	Newest bool   `json:"newest"`
	Record string `json:"record,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Memory is what the agent takes, in bytes (proc(5), VmRSS, RssAnon and VmHWM).
type Memory struct {
	RSS  int64 `json:"rss"`
	Anon int64 `json:"anon"`
	Peak int64 `json:"peak"`
}

// Status implements control.Handler.
func (s *service) Status(context.Context) (any, error) {
	d := s.device
	st := Status{
		State: s.core.State(), Boot: d.boot, Trust: d.parts.Board.Trust.Root, Cost: s.core.Cost(), Last: s.core.Last(),
		TPM: d.tpmStatus(), Memory: readMemory(),
	}
	var copies [3]grubenv.Location
	s.core.Hold(func() { copies = d.parts.Store.Copies() })
	for _, l := range copies {
		c := Copy{Name: l.Name, Newest: l.Newest, Record: l.Content.Record.String()}
		if l.Err != nil {
			c.Record, c.Error = "", l.Err.Error()
		}
		st.Copies = append(st.Copies, c)
	}
	if s.link != nil {
		st.Link = s.link()
	}
	return st, nil
}

// readMemory reads what this process takes.
func readMemory() Memory {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Memory{}
	}
	value := func(key string) int64 {
		_, rest, _ := strings.Cut(string(data), "\n"+key+":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0
		}
		n, _ := strconv.ParseInt(fields[0], 10, 64)
		return n << 10
	}
	return Memory{RSS: value("VmRSS"), Anon: value("RssAnon"), Peak: value("VmHWM")}
}

// Text is the status for people.
func (s Status) Text() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("device", "%s, board %s (root of trust: %s)", s.State.Device, s.State.Board, s.Trust)
	line("running", "slot %s, release %s", s.State.Slot, s.State.Version)
	for _, slot := range s.State.Slots {
		line("slot "+slot.Name, "%-6s %s %s", slot.Mark, slot.Version, slot.Manifest)
	}
	for _, c := range s.Copies {
		text := c.Record
		if c.Error != "" {
			text = "UNREADABLE: " + c.Error
		}
		if c.Newest {
			text += " (in force)"
		}
		line("record", "%s: %s", c.Name, text)
	}
	line("phase", "%s", s.State.Phase)
	if s.State.Drift {
		line("wanted", "%s", s.State.Want)
	}
	if c := s.Cost; c != nil {
		line("cost", "%s", cost(*c))
	}
	if v := s.Last; v != nil {
		line("last", "%s %s in slot %s at %s: %s", v.Version, v.Result, v.Slot, time.Unix(v.Ended, 0).UTC().Format(time.RFC3339), strings.TrimSpace(v.Reason+" "+v.Check+" "+v.Detail))
		line("", "%s", cost(v.Cost))
		for _, l := range v.Log {
			line("", "| %s", l)
		}
	}
	if w := s.Boot.Watchdog; w != nil {
		line("watchdog", "%s, %d s, armed by the %s", w.Identity, w.TimeoutS, w.ArmedBy)
	} else {
		line("watchdog", "NONE")
	}
	if r := s.TPM.Register; r != nil {
		line("tpm", "PCR %d %s, %s", r.PCR, r.Value, agree(r.Agree, "is the running release"))
	}
	if l := s.TPM.Ledger; l != nil {
		line("tpm", "ledger of %d installs %s, %s", len(l.Entries), l.Value, agree(l.Agree, "log and TPM agree"))
	}
	for _, m := range s.TPM.Missing {
		line("tpm", "%s", m)
	}
	switch {
	case s.Link.Up:
		line("link", "up")
	case s.Link.Configured:
		line("link", "down: %s", s.Link.Error)
	default:
		line("link", "not configured")
	}
	line("data", "%s", s.Boot.Data)
	line("memory", "%.1f MiB, at most %.1f MiB", float64(s.Memory.RSS)/(1<<20), float64(s.Memory.Peak)/(1<<20))
	for _, p := range s.Boot.Problems {
		line("problem", "%s", p)
	}
	if s.State.Error != "" {
		line("error", "%s", s.State.Error)
	}
	return b.String()
}

func agree(yes bool, text string) string {
	if yes {
		return text
	}
	return "DOES NOT AGREE"
}

func cost(c journal.Cost) string {
	const mib = 1 << 20
	return fmt.Sprintf("downloaded %.2f MiB, written %.2f, left alone %.2f, read %.2f", float64(c.Downloaded)/mib, float64(c.Written)/mib, float64(c.Skipped)/mib, float64(c.Read)/mib)
}
