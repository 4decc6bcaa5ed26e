package updater

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// probeEvery is the pause between two rounds of health checks.
const probeEvery = 2 * time.Second

// probation is the trial as seen from inside: the running system has until the
// deadline to keep all its checks good for a whole window. Then it is committed;
// otherwise it gives itself up with the reason, and if it cannot even do that, the
// watchdog stops being fed.
func (u *Updater) probation(ctx context.Context) error {
	m := u.running.Manifest
	if u.p.Keeper != nil {
		// Independent of everything below: whatever hangs, this ends.
		u.p.Keeper.StartTrial(u.untilDeadline())
	}
	from := u.schema()
	record, err := u.p.Record.Load()
	u.change(func(j *journal.Journal) {
		if j.Update == nil || j.Update.Manifest != u.running.Digest {
			// The journal is lost or of another time. The trial is real all the same.
			j.Update = &journal.Update{
				ID: u.p.NewID(), Manifest: u.running.Digest, Version: m.Version, Sequence: m.Sequence,
				Slot: string(u.running.Slot), Tries: m.Trial.Tries, Started: u.p.Now().Unix(), Prepared: externals(m),
			}
		}
		j.State = string(Trial)
		j.Update.DataSchema = from // the commit will have to know
		if err == nil {
			// Now, since how the trial ends takes the count out of the boot record.
			j.Update.Used = max(0, j.Update.Tries-record.Tries)
		}
	})
	u.report()
	if err := u.admissible(); err != nil {
		return u.giveUp("refused", "", err.Error())
	}
	if err := u.prepare(ctx); ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err != nil {
		return u.giveUp("migration", m.DataSchema.Migrate, err.Error())
	}
	checking, stop := context.WithCancel(ctx)
	defer stop()
	u.mu.Lock()
	u.stopChecks = stop
	u.mu.Unlock()
	check, detail, err := u.healthy(checking)
	switch {
	case ctx.Err() == nil && checking.Err() != nil:
		// An operator has decided. What follows from a commit is done once, here or there.
		_ = u.cleanUp(ctx)
		return nil
	case ctx.Err() != nil:
		// Shutting down during the trial: neither commit nor revert. The next boot
		// is the next try.
		return context.Cause(ctx)
	case err != nil:
		reason := transport.ReasonHealth
		if check == "" {
			reason = transport.ReasonDeadline
		}
		return u.giveUp(reason, check, detail)
	}
	return u.commit(ctx)
}

// admissible asks once more what admit asked before the install: a trial can also have
// been armed by somebody else, and a floor can have risen since.
func (u *Updater) admissible() error {
	m := u.running.Manifest
	if !m.SuitsBoard(u.p.Board) {
		return fmt.Errorf("%w: it is for %v", ErrBoard, m.Boards)
	}
	if floor := u.floor(); m.Epoch < floor {
		return fmt.Errorf("%w: epoch %d, floor %d", ErrEpoch, m.Epoch, floor)
	}
	return nil
}

// untilDeadline is what is left of the trial. It counts from the boot, so that a program
// that is started again and again in it does not make it last for ever.
func (u *Updater) untilDeadline() time.Duration {
	left := time.Duration(u.running.Manifest.Trial.DeadlineSeconds) * time.Second
	if u.p.Uptime != nil {
		left -= u.p.Uptime()
	}
	return max(left, 0)
}

// errUnhealthy means that the deadline came before a whole good window.
var errUnhealthy = errors.New("not healthy in time")

// healthy runs the checks until all were good for a whole window, or the deadline
// is so near that no window fits any more. It returns the check that failed last.
//
// The window begins with the first good round and ends with another one: a system that
// takes half its time to come up has not been well in that half.
func (u *Updater) healthy(ctx context.Context) (check, detail string, err error) {
	m := u.running.Manifest
	deadline := u.p.Now().Add(u.untilDeadline())
	window := time.Duration(m.Trial.WindowSeconds) * time.Second
	good := time.Time{} // since when all is well; zero while it is not
	kept := ""          // of the log, for the slot that survives this one
	longest := 0
	for _, c := range m.Health {
		longest = max(longest, c.TimeoutSeconds)
	}
	step := u.watch("health checks", time.Duration(longest)*time.Second+stepTime)
	defer step.done()
	for {
		failed, why := u.round(ctx, step)
		if ctx.Err() != nil {
			return "", "", ctx.Err()
		}
		now := u.p.Now()
		since := now
		switch {
		case failed != "":
			if failed != check || why != detail || !good.IsZero() {
				u.p.Log.Warn("health check failed", "check", failed, "why", why) // once, and not in every round
			}
			check, detail, good = failed, why, time.Time{}
		case window == 0 || !good.IsZero() && now.Sub(good) >= window:
			return "", "", nil
		case good.IsZero():
			good = now
		default:
			since = good
		}
		u.trialProgress(now.Sub(since), window)
		kept = u.keepTrialLog(kept)
		if since.Add(window).After(deadline) {
			return check, detail, errUnhealthy
		}
		select {
		case <-ctx.Done():
		case <-time.After(probeEvery):
		}
	}
}

// round runs every check once and returns the first that does not hold. A check of
// the link counts only where the release says that a lost network reverts: otherwise
// a dead switch in one plant would send all its devices back.
func (u *Updater) round(ctx context.Context, step *step) (failed, why string) {
	for _, c := range u.running.Manifest.Health {
		step.progress()
		if c.Kind == manifest.CheckMQTT && u.running.Manifest.Trial.Network == manifest.NetworkIgnore {
			continue
		}
		if r := u.p.Check(ctx, c); !r.OK && failed == "" {
			failed, why = c.Name, r.Detail
		}
	}
	return failed, why
}

// Commit makes the running system the good one without waiting for its window: an
// operator vouches for it.
func (u *Updater) Commit(ctx context.Context) error {
	record, err := u.p.Record.Load()
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	if record.Trying != u.running.Slot && record.Good != u.running.Slot {
		return fmt.Errorf("%w: slot %s runs, and slot %s is the good one", ErrAlarm, u.running.Slot, record.Good)
	}
	if record.Trying != u.running.Slot {
		return ErrNotOnTrial
	}
	if err := u.admissible(); err != nil {
		return err
	}
	if err := u.prepare(ctx); err != nil {
		return fmt.Errorf("prepare the kept data: %w", err)
	}
	if err := u.commit(ctx); err != nil {
		return err
	}
	if u.down() {
		return fmt.Errorf("%w: the trial was given up", ErrNotOnTrial)
	}
	return nil
}

// endTrial lets one of those who may end the trial do so: the checks or an operator, by
// commit or by giving up. Whoever comes second finds it decided, and does nothing.
func (u *Updater) endTrial(end func() error) error {
	u.deciding.Lock()
	defer u.deciding.Unlock()
	if u.decided {
		return nil
	}
	if err := end(); err != nil {
		return err
	}
	u.decided = true
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopChecks != nil {
		u.stopChecks()
	}
	return nil
}

// commit makes the running slot the good one. What runs is what the first program
// verified in this very boot, which is the proof that it boots.
//
// The boot record first, since from then on the loader acts on it; then what must
// only move once there is no way back to the old system by itself: floor and schema.
func (u *Updater) commit(ctx context.Context) error {
	err := u.endTrial(func() error {
		record, err := u.p.Record.Load()
		if err == nil {
			record, err = record.Commit(u.running.Slot)
		}
		if err == nil {
			err = u.p.Record.Save(record)
		}
		if err != nil {
			return fmt.Errorf("commit slot %s: %w", u.running.Slot, err)
		}
		u.committed()
		return nil
	})
	if err != nil {
		return err
	}
	_ = u.cleanUp(ctx) // what fails is owed
	return nil
}

// committed does what follows from a commit that is on the medium. All of it can be
// done again, and is, after a power cut.
//
// The verdict comes before the clean-up, which programs of the release do: should they
// take the machine down, the next boot must not find a commit that nobody heard of.
func (u *Updater) committed() {
	m := u.running.Manifest
	if u.p.Keeper != nil {
		if err := u.p.Keeper.EndTrial(); err != nil {
			u.p.Log.Error("trial deadline not lifted", "err", err)
		}
	}
	u.raiseFloor(m.Epoch)
	u.change(func(j *journal.Journal) {
		from := 0
		if j.Update != nil {
			from = j.Update.DataSchema
			j.Update.Reason, j.Update.Check, j.Update.Detail, j.Update.Log = "", "", "", nil
		}
		j.CleanUp = nil
		if migrates(m, from) || slices.ContainsFunc(m.Images, isExternal) {
			j.CleanUp = &journal.CleanUp{Manifest: u.running.Digest, DataSchema: from}
		}
		j.DataSchema = max(j.DataSchema, m.DataSchema.Version)
		j.Forget(u.running.Digest)
	})
	u.event("committed", fmt.Sprintf("slot %s, release %s", u.running.Slot, m.Version))
	u.conclude(transport.Committed, "", "", "")
}

// raiseFloor makes epoch the lowest that is accepted. The other slot is retired first
// if it is below: the floor never rises above a slot that may still boot.
func (u *Updater) raiseFloor(epoch uint64) {
	if epoch <= u.journal().EpochFloor {
		return
	}
	other, _, _, err := u.p.held(u.spare())
	if err != nil || other.Epoch < epoch {
		record, err := u.p.Record.Load()
		if err == nil {
			record, err = record.Invalidate(u.spare())
		}
		if err == nil {
			err = u.p.Record.Save(record)
		}
		if err != nil {
			u.p.Log.Error("floor of epochs not raised: the other slot could not be retired", "slot", u.spare(), "err", err)
			return
		}
		u.event("retired", fmt.Sprintf("slot %s is below epoch %d and will not boot again", u.spare(), epoch))
	}
	u.change(func(j *journal.Journal) { j.EpochFloor = epoch })
}

// giveUp ends the trial from inside. The reason first, since nobody else knows it;
// then the boot record, so that the next boot is the old system and not another try.
//
// The record goes on naming the trial, without tries: where the reason does not reach
// the old system (the data partition is lost, or this system cannot mount it), that is
// how it knows that there was a trial, and does not go on to install the release again.
func (u *Updater) giveUp(reason, check, detail string) error {
	return u.endTrial(func() error {
		u.p.Log.Error("giving the trial up", "reason", reason, "check", check, "detail", detail)
		u.change(func(j *journal.Journal) {
			if j.Update != nil {
				j.Update.Reason, j.Update.Check, j.Update.Detail, j.Update.Log = reason, check, detail, u.lastLines()
			}
		})
		u.event("giving up", reason+" "+check+": "+detail)
		record, err := u.p.Record.Load()
		if err == nil && record.Trying == u.running.Slot {
			record.Tries = 0
			err = u.p.Record.Save(record)
		}
		if err != nil {
			// Not fatal: the loader takes a try with each boot, and none is committed.
			u.p.Log.Error("trial not cleared", "err", err)
		}
		return u.reboot("revert: " + reason + " " + check)
	})
}

// settled returns the manifest of the release that was committed here last, an empty one
// if nobody knows. It is what remains of floor and schema where the journal is lost, or was
// never written: a device comes from the factory without one.
func (u *Updater) settled() manifest.Manifest {
	record, err := u.p.Record.Load()
	if err != nil {
		return manifest.Manifest{}
	}
	return u.settledBy(record)
}

// settledBy is settled, by a record that was loaded.
func (u *Updater) settledBy(record bootctl.Record) manifest.Manifest {
	if !record.Good.Valid() {
		return manifest.Manifest{}
	}
	if record.Good == u.running.Slot {
		return u.running.Manifest
	}
	m, _, _, _ := u.p.held(record.Good) // empty, too, where there is none
	return m
}

// floor is the lowest epoch that this device still accepts. The running slot's own
// epoch is below it only while a trial has not been committed.
func (u *Updater) floor() uint64 {
	return max(u.journal().EpochFloor, u.settled().Epoch)
}

// schema is the layout of the kept data; 0 if nobody ever said.
func (u *Updater) schema() int {
	return max(u.journal().DataSchema, u.settled().DataSchema.Version)
}

// migrates tells whether the release's hook has to bring data of that schema up to date.
func migrates(m manifest.Manifest, from int) bool {
	return m.DataSchema.Migrate != "" && from < m.DataSchema.Version
}

// prepare makes the kept data ready for the system on trial, once per boot: the new
// layout beside the old one, which a revert by power cut or watchdog must find as it
// was. Nobody commits a system whose data is not ready.
func (u *Updater) prepare(ctx context.Context) error {
	if err := u.preparing.take(ctx); err != nil {
		return err
	}
	defer u.preparing.end()
	if u.prepared {
		return u.unprepared
	}
	m := u.running.Manifest
	from := u.schema()
	var err error
	switch {
	case from != 0 && from < m.DataSchema.ReadableFrom:
		err = fmt.Errorf("data has schema %d, and this release reads from %d", from, m.DataSchema.ReadableFrom)
	case migrates(m, from):
		err = u.migrate(ctx, "prepare", from)
	}
	if ctx.Err() == nil {
		u.prepared, u.unprepared = true, err
	}
	return err
}

// migrate runs one phase of the release's hook, for at most hookTime.
func (u *Updater) migrate(ctx context.Context, phase string, from int) error {
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	step := u.watch("data migration", hookTime+stepTime)
	defer step.done()
	to := u.running.Manifest.DataSchema
	u.event("migrating", fmt.Sprintf("%s: data schema %d to %d", phase, from, to.Version))
	return u.p.Migrate(ctx, to.Migrate, phase, from, to.Version)
}
