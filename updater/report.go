package updater

import (
	"strings"
	"time"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
)

// trialLogName is the file with the last lines of a trial, for the slot that survives it.
const trialLogName = "trial.log"

// State returns what the device says about itself.
func (u *Updater) State() transport.State {
	j := u.journal()
	s := transport.State{
		Device: u.p.Device, Board: u.p.Board, Agent: u.p.Agent, Boot: u.p.Boot.BootID,
		Slot: string(u.running.Slot), Version: u.running.Manifest.Version, Sequence: u.running.Manifest.Sequence,
		Phase: string(Idle), Counter: j.Counter, Floor: j.EpochFloor, Time: u.p.Now().Unix(),
	}
	if j.State != "" {
		s.Phase = j.State
	}
	if j.Update != nil {
		s.Target = string(j.Update.Manifest)
	}
	if j.Want != nil {
		s.Want, s.Drift = string(j.Want.Manifest), j.Want.Manifest != u.running.Digest
	}
	record, err := u.p.Record.Load()
	if err == nil {
		s.Good, s.Tries = string(record.Good), record.Tries
		s.Floor = max(s.Floor, u.settledBy(record).Epoch)
	}
	for _, slot := range []bootctl.Slot{bootctl.A, bootctl.B} {
		entry := transport.Slot{Name: string(slot), Mark: "empty"}
		if m, digest, _, err := u.p.held(slot); err == nil {
			entry.Version, entry.Manifest, entry.Mark = m.Version, string(digest), string(record.Mark(slot))
		} else if record.Mark(slot) == bootctl.Bad {
			entry.Mark = "bad"
		}
		if record.Trying == slot {
			entry.Mark = "trial"
		}
		s.Slots = append(s.Slots, entry)
	}
	if u.p.TPM != nil {
		s.TPM = u.p.TPM()
	}
	u.mu.Lock()
	s.Error = u.lastErr
	if u.alarm != "" {
		s.Error = u.alarm
	}
	u.mu.Unlock()
	return s
}

// report says what the device is, to whom it may concern.
func (u *Updater) report() {
	if err := u.p.Link.Report(u.State()); err != nil {
		u.p.Log.Debug("state not reported", "err", err)
	}
}

// Last returns how the last update ended; nil if there was none.
func (u *Updater) Last() *journal.Verdict { return u.journal().Last }

// Cost returns what the update under way has moved so far; nil if there is none.
func (u *Updater) Cost() *journal.Cost {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.j.Update == nil {
		return nil
	}
	c := u.j.Update.Cost
	return &c
}

// verdict translates how an update ended for the fleet.
func (u *Updater) verdict(v journal.Verdict) transport.Verdict {
	return transport.Verdict{
		ID: v.ID, Device: u.p.Device, Release: string(v.Manifest), Version: v.Version, Counter: v.Counter,
		Result: v.Result, Reason: v.Reason, Check: v.Check, Detail: v.Detail, Slot: v.Slot, Tries: max(0, v.Tries),
		Log: v.Log, Time: v.Ended, Bytes: v.Cost.Downloaded, Written: v.Cost.Written, Skipped: v.Cost.Skipped,
		Duration: max(0, v.Ended-v.Started),
	}
}

// event says that a phase began.
func (u *Updater) event(phase, text string) {
	u.mu.Lock()
	u.sequence++
	e := transport.Event{Sequence: u.sequence, Boot: u.p.Boot.BootID, Phase: phase, Text: text, Time: u.p.Now().Unix()}
	if u.j.Update != nil {
		e.Target = string(u.j.Update.Manifest)
	}
	u.mu.Unlock()
	u.p.Log.Info(phase, "text", text)
	if err := u.p.Link.Event(e); err != nil {
		u.p.Log.Debug("event not sent", "err", err)
	}
	u.tell(transport.Progress{Phase: phase + ": " + text})
}

// Watch returns a channel of progress for a local reader, and a function that closes it.
// A reader that is slow misses some; nobody waits for it.
func (u *Updater) Watch() (<-chan transport.Progress, func()) {
	c := make(chan transport.Progress, 64)
	u.mu.Lock()
	u.watchers[c] = struct{}{}
	u.mu.Unlock()
	return c, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if _, on := u.watchers[c]; on {
			delete(u.watchers, c)
			close(c)
		}
	}
}

func (u *Updater) tell(p transport.Progress) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.watchers {
		select {
		case c <- p:
		default:
		}
	}
}

// meter turns how far a step is into messages, at most one a second.
type meter struct {
	u     *Updater
	p     transport.Progress
	from  int64
	begin time.Time
	said  time.Time
}

func (m *meter) start(u *Updater, phase, what string, total, from int64) {
	u.mu.Lock()
	now := u.p.Now()
	*m = meter{u: u, p: transport.Progress{Phase: phase + " " + what, Total: total}, from: from, begin: now, said: now}
	if u.j.Update != nil {
		m.p.Target = string(u.j.Update.Manifest)
	}
	u.mu.Unlock()
	u.event(phase, what)
}

func (m *meter) advance(done int64, c partition.Counters) {
	u := m.u
	u.mu.Lock()
	now := u.p.Now()
	m.p.Done, m.p.Written, m.p.Skipped, m.p.Downloaded = done, c.Written, c.Skipped, *u.account()
	quiet := now.Sub(m.said) < time.Second && done < m.p.Total
	if !quiet {
		m.said = now
		if elapsed := now.Sub(m.begin).Seconds(); elapsed > 0 {
			m.p.Rate = int64(float64(done-m.from) / elapsed)
		}
		if m.p.Rate > 0 {
			m.p.Left = (m.p.Total - done) / m.p.Rate
		}
	}
	p := m.p
	u.mu.Unlock()
	if quiet {
		return
	}
	_ = u.p.Link.Progress(p)
	u.tell(p)
}

// trialProgress says how much of the window, less than all, is over.
func (u *Updater) trialProgress(good, window time.Duration) {
	p := transport.Progress{Phase: "trial", Done: int64(good / time.Second), Total: int64(window / time.Second), Left: int64((window - good) / time.Second)}
	_ = u.p.Link.Progress(p)
	u.tell(p)
}

// lastLines is the end of this boot's log.
func (u *Updater) lastLines() []string {
	if u.p.Tail == nil {
		return nil
	}
	lines := u.p.Tail()
	return lines[max(0, len(lines)-journal.MaxLog):]
}

// keepTrialLog keeps the end of the log where the surviving slot finds it, should this
// one hang. It is a courtesy to people and nothing depends on it.
//
// It returns what is kept now, given what was kept before: the checks run every other second,
// and a log in which nothing is new must not be written as often.
func (u *Updater) keepTrialLog(kept string) string {
	text := strings.Join(u.lastLines(), "\n")
	if text == "" || text == kept {
		return kept
	}
	if err := u.p.Store.Put(trialLogName, []byte(text)); err != nil {
		u.p.Log.Debug("trial log not kept", "err", err)
		return kept
	}
	return text
}

func (u *Updater) trialLog() []string {
	data, err := u.p.Store.Get(trialLogName)
	if err != nil || len(data) == 0 {
		return nil
	}
	lines := strings.Split(string(data), "\n")
	return lines[max(0, len(lines)-journal.MaxLog):]
}
