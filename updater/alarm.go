package updater

import (
	"context"
	"fmt"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// EndAlarm makes the running system the good one where the boot record names another, or
// cannot be read: a person has looked, and vouches for it.
//
// Refused with ErrNoAlarm in any other situation. Never done without proof: the first
// program has verified this system in this very boot, and its images are compared once
// more with the signed manifest, from the medium. A system below the floor of epochs or
// for another board stays refused.
//
// Nil means that the boot record names the running slot, and that updates go on. After an
// error the old or the new record is in effect, and calling it again is safe.
func (u *Updater) EndAlarm(ctx context.Context) error {
	unlock, err := u.claim()
	if err != nil {
		return err
	}
	defer unlock()
	record, err := u.p.Record.Load()
	what := fmt.Sprintf("slot %s, release %s, manifest %s runs; boot record: %v", u.running.Slot, u.running.Manifest.Version, u.running.Digest, record)
	if err != nil {
		what += fmt.Sprintf(" (%v)", err)
	}
	if s := situate(u.running.Slot, record, err, 0); s != Fallback && s != BadRecord {
		return fmt.Errorf("%w: %s", ErrNoAlarm, what)
	}
	u.event("ending the alarm", what)
	if err := u.admissible(); err != nil {
		return err
	}
	if err := u.proveRunning(ctx); err != nil {
		return err
	}
	// The other slot stays behind it only if it is whole, too.
	marks := map[bootctl.Slot]bootctl.Mark{u.running.Slot: bootctl.OK, u.spare(): bootctl.Bad}
	if record.Mark(u.spare()) == bootctl.OK {
		if err := u.VerifySlot(ctx, u.spare()); err == nil {
			marks[u.spare()] = bootctl.OK
		} else if ctx.Err() != nil {
			return err
		}
	}
	next := bootctl.Record{Good: u.running.Slot, A: marks[bootctl.A], B: marks[bootctl.B]}
	if err := u.p.Record.Save(next); err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	u.raiseFloor(u.running.Manifest.Epoch)
	u.conclude(transport.Failed, transport.ReasonOperator, "", "an alarm was ended by making slot "+string(u.running.Slot)+" the good one")
	u.change(func(j *journal.Journal) { j.State = string(Idle) })
	u.mu.Lock()
	u.alarm = ""
	u.mu.Unlock()
	u.event("alarm ended", next.String())
	u.report()
	return nil
}

// proveRunning finds out whether what runs is what the record of its slot says.
func (u *Updater) proveRunning(ctx context.Context) error {
	if got := u.p.Boot.Manifest; got != string(u.running.Digest) {
		return fmt.Errorf("%w: this boot began with manifest %q, and slot %s has %s", ErrMismatch, got, u.running.Slot, u.running.Digest)
	}
	for _, img := range u.running.Manifest.Images {
		if img.Type == manifest.TypeSlot && img.Target == "root" && img.Verity != nil && img.Verity.RootHash != u.p.Boot.Verity {
			return fmt.Errorf("%w: verity root %q runs, and %s has %s", ErrMismatch, u.p.Boot.Verity, img.Name, img.Verity.RootHash)
		}
	}
	return u.VerifySlot(ctx, u.running.Slot)
}
