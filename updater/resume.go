package updater

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Resume looks at what the power left behind and does what the table in state.go says.
// It is called once when the program starts, before anything else, and can be called
// again. If the running system is on trial, it returns after the verdict: with a
// reboot under way, or with the commit durable.
func (u *Updater) Resume(ctx context.Context) error {
	u.busy.Lock()
	defer u.busy.Unlock()
	record, err := u.p.Record.Load()
	j := u.journal()
	tries := 0
	if j.Update != nil {
		tries = j.Update.Tries
	}
	situation := situate(u.running.Slot, record, err, tries)
	action := decide(j, u.running.Slot, u.p.Boot.BootID, situation)
	u.p.Log.Info("resuming", "slot", u.running.Slot, "release", u.running.Manifest.Version, "journal", j.State, "record", record.String(), "situation", string(situation), "action", string(action))

	switch action {
	case Nothing, Continue:
		u.repeatVerdict()
		_ = u.cleanUp(ctx)
	case Forget:
		u.change(func(j *journal.Journal) { j.State, j.Update = string(Idle), nil })
	case Restart:
		return u.reboot("start the trial of " + j.Update.Version)
	case Probation:
		return u.probation(ctx)
	case Committed:
		// Who wrote it may have died before it was synced.
		if err := u.p.Record.Save(record); err != nil {
			return fmt.Errorf("commit slot %s: %w", u.running.Slot, err)
		}
		u.committed()
		_ = u.cleanUp(ctx)
	case Reverted, Skipped:
		err := u.reverted(record, action)
		_ = u.cleanUp(ctx)
		return err
	case Rewrite:
		return u.rewrite(ctx, record)
	case Alarm:
		u.mu.Lock()
		u.alarm = fmt.Sprintf("slot %s runs; boot record: %v (%v)", u.running.Slot, record, err)
		u.mu.Unlock()
		u.repeatVerdict()
		return fmt.Errorf("%w: %s", ErrAlarm, u.alarmed())
	}
	return nil
}

// reverted clears a trial that ended without commit and reports it with its reason.
//
// The journal first, as a trial that ended: whether the boot record still names the
// trial or is clear already, a program that starts after a power cut comes here again,
// with the reason that was found the first time, until the verdict is in the journal.
func (u *Updater) reverted(record bootctl.Record, action Action) error {
	reason, check, detail, log := u.why(record, action)
	u.change(func(j *journal.Journal) {
		told := j.Update != nil && j.Update.Reason != ""
		if j.Update == nil {
			// The journal was lost. Who was tried is in the slot record, if that is whole.
			j.Update = u.lost()
		}
		if !told && record.Trying != "" {
			j.Update.Used = max(0, j.Update.Tries-record.Tries)
		}
		j.State = string(Trial)
		j.Update.Reason, j.Update.Check, j.Update.Detail, j.Update.Log = reason, check, detail, log
		// A loader that never took a try says nothing about the release: a power cut may have
		// destroyed the very sector in which it counts, which the next save mends. How often
		// that may be tried again is bounded by the number of times a release may be begun.
		if action != Skipped {
			j.Fail(journal.Failure{Manifest: j.Update.Manifest, Version: j.Update.Version, Reason: strings.TrimSpace(reason + " " + check)})
			if j.Want != nil && j.Want.Manifest == j.Update.Manifest {
				// An order that insists insists once.
				unwant(j, "reverted: "+reason)
			}
		}
	})
	if record.Trying != "" {
		next, err := record.Revert()
		if err == nil {
			err = u.p.Record.Save(next)
		}
		if err != nil {
			return fmt.Errorf("clear the trial of slot %s: %w", record.Trying, err)
		}
	}
	u.conclude(transport.Reverted, reason, check, detail)
	return nil
}

// lost makes up the update of a trial that the journal has forgotten.
func (u *Updater) lost() *journal.Update {
	up := &journal.Update{ID: u.p.NewID(), Slot: string(u.spare()), Started: u.p.Now().Unix(), Version: "unknown", Manifest: manifest.DigestOf(nil)}
	if m, digest, _, err := u.p.held(u.spare()); err == nil {
		up.Manifest, up.Version, up.Sequence, up.Tries = digest, m.Version, m.Sequence, m.Trial.Tries
		up.Prepared = externals(m)
	}
	return up
}

// why finds the reason of a revert. What the trial slot wrote about itself comes
// first; then what the boots after it found: the watchdog's status, a panic's log.
func (u *Updater) why(record bootctl.Record, action Action) (reason, check, detail string, log []string) {
	j := u.journal()
	if j.Update != nil && j.Update.Reason != "" {
		return j.Update.Reason, j.Update.Check, j.Update.Detail, j.Update.Log
	}
	if action == Skipped {
		return transport.ReasonBoot, "", "the loader did not start the trial: it does not load, or its try could not be saved", nil
	}
	if record.Trying == "" {
		return transport.ReasonBoot, "", "the trial was cleared and left no reason", nil
	}
	log = u.trialLog()
	boots, err := u.p.Attempts()
	if err != nil {
		return transport.ReasonBoot, "", "no log of boots: " + err.Error(), log
	}
	digest := ""
	if j.Update != nil {
		digest = string(j.Update.Manifest)
	}
	end := bootreport.Explain(boots, string(record.Trying), digest)
	switch end.Kind {
	case bootreport.EndPanic:
		lines := strings.Split(strings.TrimSpace(end.Detail), "\n")
		return transport.ReasonPanic, "", "the kernel panicked", lines[max(0, len(lines)-journal.MaxLog):]
	case bootreport.EndWatchdog:
		where := "in user space"
		if end.Boots == 0 {
			where = "before user space"
		}
		return transport.ReasonWatchdog, "", "the watchdog reset the machine, which hung " + where, log
	case bootreport.EndFailed:
		return transport.ReasonBoot, "", end.Detail, log
	case bootreport.EndClean:
		return transport.ReasonOperator, "", end.Detail, log
	}
	return transport.ReasonBoot, "", "reset or power cut without a trace", log
}

// rewrite gives the device a boot record again. What runs was verified by the first
// program, so it is the one thing known to boot; the other slot is trusted if its
// record is whole and signed.
//
// What was on trial when the record was lost stays on trial: it has proven nothing yet.
// The copy that is written only at commit tells, and so does the journal. How many boots
// it has left nobody knows, so this one is the last: a record that is lost again and again,
// or that only the loader can read, must not give it one more each time.
func (u *Updater) rewrite(ctx context.Context, old bootctl.Record) error {
	j := u.journal()
	next := bootctl.Record{Good: u.running.Slot, A: bootctl.Bad, B: bootctl.Bad}
	_, _, _, err := u.p.held(u.spare())
	whole := err == nil
	tried := old.Confirmed == u.spare() || j.Update != nil && j.Update.Slot == string(u.running.Slot) && (State(j.State) == Armed || State(j.State) == Trial)
	switch {
	case whole && tried:
		next = bootctl.Record{
			Good: u.spare(), Trying: u.running.Slot, Tries: 0, A: bootctl.OK, B: bootctl.OK,
		}
	case u.running.Slot == bootctl.A:
		next.A = bootctl.OK
	default:
		next.B = bootctl.OK
	}
	// What was being written when the record was lost may have an old slot record only
	// if it had not been touched yet.
	if whole && j.Update == nil {
		next.A, next.B = bootctl.OK, bootctl.OK
	}
	u.p.Log.Warn("no copy of the boot record is whole, writing it anew", "confirmed", old.Confirmed, "record", next.String())
	if err := u.p.Record.Save(next); err != nil {
		return fmt.Errorf("write the boot record anew: %w", err)
	}
	u.event("boot record rewritten", next.String())
	if next.Trying == u.running.Slot {
		return u.probation(ctx)
	}
	if j.Update != nil && (State(j.State) == Armed || State(j.State) == Trial) {
		u.conclude(transport.Failed, transport.ReasonBoot, "", "the boot record was lost during the trial")
	}
	return nil
}

// repeatVerdict says the last verdict again: the link may have died with the program
// before anybody heard it. Its id tells the fleet that it is the same one.
func (u *Updater) repeatVerdict() {
	if last := u.journal().Last; last != nil {
		_ = u.p.Link.Verdict(u.verdict(*last))
	}
}

const rolledBack = "rolled back by an operator"

// unwant ends the desired state: without it, the fleet's order would at once bring back
// what was just left. The next statement is followed again.
func unwant(j *journal.Journal, why string) {
	if j.Want != nil && j.Want.Refused == "" {
		j.Want.Refused = why
	}
}

// Rollback boots the other slot again, as a trial that an operator asked for, with as many
// boots as its release allows: a system that ran before may have rotted since, and one
// power cut is no proof of that.
//
// Refused unless forced: a system that cannot read the present data. Never forced:
// one below the floor of epochs, or a slot that is not whole.
func (u *Updater) Rollback(ctx context.Context, force bool) error {
	record, err := u.p.Record.Load()
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	if record.Trying == u.running.Slot {
		// Resume is at it and keeps everybody else from the slots; this ends what it does.
		u.change(func(j *journal.Journal) { unwant(j, rolledBack) })
		return u.giveUp(transport.ReasonOperator, "", rolledBack)
	}
	unlock, err := u.claim()
	if err != nil {
		return err
	}
	defer unlock()
	if record, err = u.p.Record.Load(); err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	if record.Good != u.running.Slot {
		return fmt.Errorf("%w: slot %s runs, and slot %s is the good one", ErrAlarm, u.running.Slot, record.Good)
	}
	if record.Mark(u.spare()) != bootctl.OK {
		return fmt.Errorf("slot %s: %w: it is marked bad", u.spare(), ErrNoFallback)
	}
	m, digest, envelope, err := u.p.held(u.spare())
	if errors.Is(err, partition.ErrNoRecord) {
		return fmt.Errorf("slot %s: %w: %w", u.spare(), ErrNoFallback, err)
	}
	if err != nil {
		return fmt.Errorf("slot %s: %w", u.spare(), err)
	}
	if floor := u.floor(); m.Epoch < floor {
		return fmt.Errorf("slot %s, release %s: %w: epoch %d, floor %d", u.spare(), m.Version, ErrEpoch, m.Epoch, floor)
	}
	if have := u.schema(); have > m.DataSchema.Version && !force {
		return fmt.Errorf("slot %s, release %s: %w: data has schema %d, it writes %d", u.spare(), m.Version, ErrNewerData, have, m.DataSchema.Version)
	}
	if err := u.must(func(j *journal.Journal) {
		unwant(j, rolledBack)
		j.State = string(Written)
		j.Update = &journal.Update{
			ID: u.p.NewID(), Manifest: digest, Version: m.Version, Sequence: m.Sequence, Slot: string(u.spare()),
			Tries: m.Trial.Tries, Force: true, Started: u.p.Now().Unix(), Written: map[string]int64{},
		}
	}); err != nil {
		return err
	}
	rel := release{m: m, digest: digest, envelope: envelope}
	if err := u.measure(rel); err != nil {
		return err
	}
	if err := u.arm(rel); err != nil {
		return err
	}
	return u.reboot("roll back to " + m.Version)
}
