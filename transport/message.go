package transport

import (
	"bytes"
	"encoding/json"
	"net/url"
)

// The largest messages, in bytes. Senders and receivers apply the same limit.
const (
	MaxWant     = 8 << 10
	MaxMeta     = 64 << 10
	MaxGet      = 2 << 10
	MaxState    = 8 << 10
	MaxEvent    = 2 << 10
	MaxProgress = 1 << 10
	MaxVerdict  = 16 << 10
	MaxLive     = 256
	MaxManifest = 2 << 20 // the envelope of a manifest: base64 of 1 MiB, and signatures
)

// Want tells a device what it should run. The statement is signed; the sources
// are a hint that needs no signature, because every byte that they bring is
// checked against it.
type Want struct {
	V         int             `json:"v"`
	Statement json.RawMessage `json:"statement"`         // a DSSE envelope, handed on as it came
	Sources   []string        `json:"sources,omitempty"` // "mqtt" or an https URL, in order of preference
}

// MaxSources is the number of hints in a Want.
const MaxSources = 4

// Encode returns the bytes to publish.
func (w Want) Encode() ([]byte, error) {
	w.V = Version
	if err := w.check(); err != nil {
		return nil, err
	}
	return encode("want", w, MaxWant)
}

func (w Want) check() error {
	c := checks{kind: "want"}
	c.version(w.V)
	c.that(len(w.Statement) > 0 && bytes.HasPrefix(bytes.TrimSpace(w.Statement), []byte("{")), "no statement")
	c.that(len(w.Sources) <= MaxSources, "%d sources", len(w.Sources))
	for _, s := range w.Sources {
		u, err := url.Parse(s)
		c.that(s == "mqtt" || err == nil && u.Scheme == "https" && u.Host != "" && len(s) <= 512, "source %.80q", s)
	}
	return c.err
}

// ParseWant checks the message on KindWant. An empty message (the retained
// one was cleared) is not a Want; callers test for it first.
func ParseWant(data []byte) (Want, error) {
	var w Want
	if err := decode("want", data, MaxWant, &w); err != nil {
		return Want{}, err
	}
	if err := w.check(); err != nil {
		return Want{}, err
	}
	return w, nil
}

// Slot is what a device says about one of its slots.
type Slot struct {
	Name     string `json:"name"`               // "a" or "b"
	Mark     string `json:"mark,omitempty"`     // "ok", "bad", "trial", "empty"
	Version  string `json:"version,omitempty"`  // for people
	Manifest string `json:"manifest,omitempty"` // digest of the release in it
}

// TPM is what a device says about its security chip.
type TPM struct {
	Present bool   `json:"present"`
	Ledger  string `json:"ledger,omitempty"` // hex, the NV index that every install extends
	PCR     string `json:"pcr,omitempty"`    // hex, the register of the running slot
	Agrees  bool   `json:"agrees"`           // the replay of the log gives the ledger
}

// State says what a device is. It is level, not edge: the newest one replaces
// all before it, so a lost one costs only time.
type State struct {
	V        int    `json:"v"`
	Device   string `json:"device"`
	Board    string `json:"board"`
	Agent    string `json:"agent"`             // version of the device program
	Boot     string `json:"boot,omitempty"`    // kernel boot id, tells a reboot from a reconnect
	Slot     string `json:"slot"`              // the running slot
	Good     string `json:"good"`              // the slot that boots if nothing else is said
	Slots    []Slot `json:"slots,omitempty"`   // at most MaxSlots
	Phase    string `json:"phase"`             // state of the core's table, "idle" between updates
	Target   string `json:"target,omitempty"`  // digest of the release being installed or tried
	Version  string `json:"version,omitempty"` // version that runs
	Want     string `json:"want,omitempty"`    // digest of the release that the last statement named
	Counter  uint64 `json:"counter,omitempty"` // of the last statement that was accepted
	Drift    bool   `json:"drift"`             // Want is not what runs
	Tries    int    `json:"tries,omitempty"`   // boots left to the trial
	Floor    uint64 `json:"floor,omitempty"`   // lowest epoch still accepted
	Error    string `json:"error,omitempty"`   // the last thing that did not work
	TPM      *TPM   `json:"tpm,omitempty"`
	Time     int64  `json:"time,omitempty"`     // the device's clock, Unix seconds, 0 if it has none
	Sequence uint64 `json:"sequence,omitempty"` // of the running release
}

// Limits on the fields of reports.
const (
	MaxSlots  = 4
	maxName   = 64
	maxText   = 128
	maxReason = 1 << 10
	maxHex    = 128
)

// Encode returns the bytes to publish.
func (s State) Encode() ([]byte, error) {
	s.V = Version
	s.Error = clip(s.Error, maxReason)
	if err := s.check(); err != nil {
		return nil, err
	}
	return encode("state", s, MaxState)
}

func (s State) check() error {
	c := checks{kind: "state"}
	c.version(s.V)
	c.that(CheckID(s.Device) == nil, "device %.80q", s.Device)
	c.text("board", s.Board, maxName)
	c.text("agent", s.Agent, maxText)
	c.text("boot", s.Boot, maxName)
	c.text("slot", s.Slot, maxName)
	c.text("good", s.Good, maxName)
	c.text("phase", s.Phase, maxName)
	c.text("version", s.Version, maxText)
	c.text("error", s.Error, maxReason)
	c.digest("target", s.Target, true)
	c.digest("want", s.Want, true)
	c.that(s.Tries >= 0 && s.Tries <= 9, "%d tries", s.Tries)
	c.that(len(s.Slots) <= MaxSlots, "%d slots", len(s.Slots))
	for _, slot := range s.Slots {
		c.text("slot name", slot.Name, maxName)
		c.text("slot version", slot.Version, maxText)
		c.oneOf("mark", slot.Mark, "", "ok", "bad", "trial", "empty")
		c.digest("manifest", slot.Manifest, true)
	}
	if s.TPM != nil {
		c.text("ledger", s.TPM.Ledger, maxHex)
		c.text("pcr", s.TPM.PCR, maxHex)
	}
	return c.err
}

// ParseState checks the message on KindState.
func ParseState(data []byte) (State, error) {
	var s State
	if err := decode("state", data, MaxState, &s); err != nil {
		return State{}, err
	}
	return s, s.check()
}

// Event says that a phase of an update began. Sequence numbers grow by one
// within a boot, so that a watcher sees what it missed.
type Event struct {
	V        int    `json:"v"`
	Sequence uint64 `json:"sequence"`
	Boot     string `json:"boot,omitempty"`
	Phase    string `json:"phase"`
	Target   string `json:"target,omitempty"`
	Text     string `json:"text,omitempty"` // one line for people
	Time     int64  `json:"time,omitempty"`
}

// Encode returns the bytes to publish.
func (e Event) Encode() ([]byte, error) {
	e.V = Version
	e.Text = clip(e.Text, maxReason)
	if err := e.check(); err != nil {
		return nil, err
	}
	return encode("event", e, MaxEvent)
}

func (e Event) check() error {
	c := checks{kind: "event"}
	c.version(e.V)
	c.that(e.Phase != "", "no phase")
	c.text("phase", e.Phase, maxName)
	c.text("boot", e.Boot, maxName)
	c.text("text", e.Text, maxReason)
	c.digest("target", e.Target, true)
	return c.err
}

// ParseEvent checks the message on KindEvent.
func ParseEvent(data []byte) (Event, error) {
	var e Event
	if err := decode("event", data, MaxEvent, &e); err != nil {
		return Event{}, err
	}
	return e, e.check()
}

// Progress says how far the running phase is; all counts are bytes.
type Progress struct {
	V          int    `json:"v"`
	Phase      string `json:"phase"`
	Target     string `json:"target,omitempty"`
	Done       int64  `json:"done"`
	Total      int64  `json:"total"` // 0: not known
	Downloaded int64  `json:"downloaded"`
	Written    int64  `json:"written"`
	Skipped    int64  `json:"skipped"` // already right on the medium
	Rate       int64  `json:"rate"`    // bytes of Done a second
	Left       int64  `json:"left"`    // seconds, 0: not known
}

// Encode returns the bytes to publish.
func (p Progress) Encode() ([]byte, error) {
	p.V = Version
	if err := p.check(); err != nil {
		return nil, err
	}
	return encode("progress", p, MaxProgress)
}

func (p Progress) check() error {
	c := checks{kind: "progress"}
	c.version(p.V)
	c.text("phase", p.Phase, maxName)
	c.digest("target", p.Target, true)
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"done", p.Done}, {"total", p.Total}, {"downloaded", p.Downloaded}, {"written", p.Written},
		{"skipped", p.Skipped}, {"rate", p.Rate}, {"left", p.Left},
	} {
		c.count(f.name, f.n)
	}
	return c.err
}

// ParseProgress checks the message on KindProgress.
func ParseProgress(data []byte) (Progress, error) {
	var p Progress
	if err := decode("progress", data, MaxProgress, &p); err != nil {
		return Progress{}, err
	}
	return p, p.check()
}

// How an update can end.
const (
	Committed = "committed" // the new release is the good one
	Reverted  = "reverted"  // it was tried, and the device came back from it
	Refused   = "refused"   // it was not tried: signature, board, sequence, memory, policy
	Failed    = "failed"    // it could not be written or armed
)

// Why a trial can end in a revert.
const (
	ReasonWatchdog = "watchdog" // the system stopped feeding it
	ReasonPanic    = "panic"    // the kernel said so before it died
	ReasonHealth   = "health"   // a check failed; Check names it
	ReasonDeadline = "deadline" // no commit in time
	ReasonOperator = "operator" // somebody asked for it
	ReasonBoot     = "boot"     // it never came up far enough to say anything
)

// Verdict says how an update ended. The device repeats it until the broker has
// acknowledged it, over reconnects and (the core stores it) reboots; the same
// ID twice is the same verdict.
type Verdict struct {
	V        int      `json:"v"`
	ID       string   `json:"id"` // unique among the verdicts of a device
	Device   string   `json:"device"`
	Release  string   `json:"release"` // digest
	Version  string   `json:"version,omitempty"`
	Counter  uint64   `json:"counter,omitempty"` // of the statement that asked for it
	Result   string   `json:"result"`            // Committed, Reverted, Refused, Failed
	Reason   string   `json:"reason,omitempty"`  // one word: the Reason constants, or a word of the core
	Check    string   `json:"check,omitempty"`   // the health check that failed
	Detail   string   `json:"detail,omitempty"`  // one line for people
	Slot     string   `json:"slot,omitempty"`    // the slot that was tried
	Tries    int      `json:"tries,omitempty"`   // boots that the trial had used
	Log      []string `json:"log,omitempty"`     // last lines of the console or journal
	Time     int64    `json:"time,omitempty"`
	Bytes    int64    `json:"downloaded,omitempty"` // what the update cost to download
	Written  int64    `json:"written,omitempty"`
	Skipped  int64    `json:"skipped,omitempty"`
	Duration int64    `json:"seconds,omitempty"` // from accepting the statement to the end
}

// MaxLog and MaxLogLine bound the log of a verdict, in lines and bytes.
const (
	MaxLog     = 40
	MaxLogLine = 240
)

// Encode returns the bytes to publish. Text that is too long is cut, never
// refused: a verdict must not be lost because a kernel talked much.
func (v Verdict) Encode() ([]byte, error) {
	v.V = Version
	v.Detail = clip(v.Detail, maxReason)
	if n := len(v.Log); n > MaxLog {
		v.Log = v.Log[n-MaxLog:]
	}
	log := make([]string, len(v.Log))
	for i, line := range v.Log {
		log[i] = clip(line, MaxLogLine)
	}
	v.Log = log
	if err := v.check(); err != nil {
		return nil, err
	}
	for {
		data, err := encode("verdict", v, MaxVerdict)
		if err == nil || len(v.Log) == 0 {
			return data, err
		}
		// Escaped control characters can be six times as long as they were.
		v.Log = v.Log[1:]
	}
}

func (v Verdict) check() error {
	c := checks{kind: "verdict"}
	c.version(v.V)
	c.that(v.ID != "", "no id")
	c.text("id", v.ID, maxText)
	c.that(CheckID(v.Device) == nil, "device %.80q", v.Device)
	c.digest("release", v.Release, true)
	c.text("version", v.Version, maxText)
	c.oneOf("result", v.Result, Committed, Reverted, Refused, Failed)
	c.text("reason", v.Reason, maxName)
	c.text("check", v.Check, maxText)
	c.text("detail", v.Detail, maxReason)
	c.text("slot", v.Slot, maxName)
	c.that(v.Tries >= 0 && v.Tries <= 9, "%d tries", v.Tries)
	c.count("downloaded", v.Bytes)
	c.count("written", v.Written)
	c.count("skipped", v.Skipped)
	c.count("seconds", v.Duration)
	c.that(len(v.Log) <= MaxLog, "%d lines of log", len(v.Log))
	for _, line := range v.Log {
		c.text("log line", line, MaxLogLine)
	}
	return c.err
}

// ParseVerdict checks the message on KindVerdict.
func ParseVerdict(data []byte) (Verdict, error) {
	var v Verdict
	if err := decode("verdict", data, MaxVerdict, &v); err != nil {
		return Verdict{}, err
	}
	return v, v.check()
}

// Live says whether a device has a connection. The broker sends the one with
// Online false in the device's name when the connection breaks.
type Live struct {
	V      int  `json:"v"`
	Online bool `json:"online"`
}

// Encode returns the bytes to publish.
func (l Live) Encode() ([]byte, error) {
	l.V = Version
	return encode("live", l, MaxLive)
}

// ParseLive checks the message on KindLive.
func ParseLive(data []byte) (Live, error) {
	var l Live
	if err := decode("live", data, MaxLive, &l); err != nil {
		return Live{}, err
	}
	c := checks{kind: "live"}
	c.version(l.V)
	return l, c.err
}
