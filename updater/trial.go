package updater

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tandem-ota/tandem/bootctl/watchdog"
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
		u.p.Keeper.StartTrial(time.Duration(m.Trial.DeadlineSeconds) * time.Second)
	}
	u.change(func(j *journal.Journal) {
		if j.Update == nil || j.Update.Manifest != u.running.Digest {
			// The journal is lost or of another time. The trial is real all the same.
			j.Update = &journal.Update{
				ID: u.p.NewID(), Manifest: u.running.Digest, Version: m.Version, Sequence: m.Sequence,
				Slot: string(u.running.Slot), Tries: m.Trial.Tries, Started: u.p.Now().Unix(),
			}
		}
		j.State = string(Trial)
	})
	u.report()
	if err := u.admissible(); err != nil {
		return u.giveUp("refused", "", err.Error())
	}
	if err := u.migrate(ctx, "prepare"); err != nil {
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
		return nil // an operator has decided
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

// errUnhealthy means that the deadline came before a whole good window.
var errUnhealthy = errors.New("not healthy in time")

// healthy runs the checks until all were good for a whole window, or the deadline
// is so near that no window fits any more. It returns the check that failed last.
func (u *Updater) healthy(ctx context.Context) (check, detail string, err error) {
	m := u.running.Manifest
	begin := u.p.Now()
	window := time.Duration(m.Trial.WindowSeconds) * time.Second
	deadline := begin.Add(time.Duration(m.Trial.DeadlineSeconds) * time.Second)
	good := begin
	step := u.watch("health checks")
	defer step.done()
	for {
		failed, why := u.round(ctx, step)
		if ctx.Err() != nil {
			return "", "", ctx.Err()
		}
		now := u.p.Now()
		if failed != "" {
			check, detail, good = failed, why, now
			u.p.Log.Warn("health check failed", "check", failed, "why", why)
		} else if now.Sub(good) >= window {
			return "", "", nil
		}
		u.trialProgress(now.Sub(good), window)
		u.keepTrialLog()
		if good.Add(window).After(deadline) {
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
	if record.Trying != u.running.Slot {
		return ErrNotOnTrial
	}
	return u.commit(ctx)
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
	return u.endTrial(func() error {
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
		u.committed(ctx)
		return nil
	})
}

// committed does what follows from a commit that is on the medium. All of it can be
// done again, and is, after a power cut.
func (u *Updater) committed(ctx context.Context) {
	m := u.running.Manifest
	if u.p.Keeper != nil {
		if err := u.p.Keeper.EndTrial(); err != nil {
			u.p.Log.Error("trial deadline not lifted", "err", err)
		}
	}
	if err := u.migrate(ctx, "commit"); err != nil {
		// The old layout is left behind; nothing is lost but its space.
		u.p.Log.Error("clean up after migration", "err", err)
	}
	u.handlers(ctx, "commit")
	u.raiseFloor(m.Epoch)
	u.change(func(j *journal.Journal) {
		j.DataSchema = m.DataSchema.Version
		j.Forget(u.running.Digest)
		if j.Update != nil {
			j.Update.Reason, j.Update.Check, j.Update.Detail, j.Update.Log = "", "", "", nil
		}
	})
	u.event("committed", fmt.Sprintf("slot %s, release %s", u.running.Slot, m.Version))
	u.conclude(transport.Committed, "", "", "")
}

// raiseFloor makes epoch the lowest that is accepted. The other slot is retired first
// if it is below: the floor never rises above a slot that may still boot.
func (u *Updater) raiseFloor(epoch uint64) {
	if epoch <= u.floor() {
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

// schema is the layout of the kept data.
func (u *Updater) schema() int {
	if j := u.journal(); j.DataSchema > 0 {
		return j.DataSchema
	}
	return 0
}

// migrate runs the release's hook if the data is older than what it writes. "prepare"
// makes the new layout beside the old one, which a revert by power cut or watchdog
// must find as it was; "commit" may remove the old one.
func (u *Updater) migrate(ctx context.Context, phase string) error {
	to := u.running.Manifest.DataSchema
	from := u.schema()
	if to.Migrate == "" || from >= to.Version {
		return nil
	}
	if from != 0 && from < to.ReadableFrom {
		return fmt.Errorf("data has schema %d, and this release reads from %d", from, to.ReadableFrom)
	}
	step := u.watch("data migration")
	defer step.done()
	u.event("migrating", fmt.Sprintf("%s: data schema %d to %d", phase, from, to.Version))
	return u.p.Migrate(ctx, to.Migrate, phase, from, to.Version)
}

// handlers tells the programs of external images how the update ended.
func (u *Updater) handlers(ctx context.Context, verb string) {
	m := u.running.Manifest
	if verb == "revert" {
		var err error
		if m, _, _, err = u.p.held(u.spare()); err != nil {
			return
		}
	}
	for _, img := range m.Images {
		if img.Type != manifest.TypeExternal {
			continue
		}
		if _, err := u.p.Handlers.Run(ctx, m, img, verb, nil); err != nil {
			u.setErr(err)
			u.p.Log.Error("external image", "image", img.Name, "verb", verb, "err", err)
		}
	}
}

// step is a piece of local work that the watchdog watches: it must move on, or the
// machine is not well. Waiting for the network is not part of it.
type step struct {
	keeper *watchdog.Keeper
	name   string
	check  atomic.Pointer[watchdog.Check]
}

func (u *Updater) watch(name string) *step {
	s := &step{keeper: u.p.Keeper, name: name}
	s.resume()
	return s
}

func (s *step) progress() {
	if c := s.check.Load(); c != nil {
		c.Report()
	}
}

func (s *step) pause() {
	if c := s.check.Swap(nil); c != nil {
		c.Unregister()
	}
}

func (s *step) resume() {
	if s.keeper != nil {
		if old := s.check.Swap(s.keeper.Register(s.name, stepTime)); old != nil {
			old.Unregister()
		}
	}
}

func (s *step) done() { s.pause() }
