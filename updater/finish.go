package updater

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// finish takes a slot that was filled to the point where the loader will try it.
//
// Each line is safe to lose: a power cut after it leaves the state that the table in
// state.go has a row for, and finish is run again from its beginning.
func (u *Updater) finish(ctx context.Context, src Source, rel release) error {
	// The bytes on the medium, not the ones that were meant for it.
	if err := u.readBack(ctx, src, rel); err != nil {
		return err
	}
	defer u.watch("finishing slot "+string(u.spare()), stepTime).done()
	// Only now does the slot get a record: a record never speaks of what was not read back.
	if err := u.writeRecord(rel); err != nil {
		return fmt.Errorf("slot record: %w", err)
	}
	u.change(func(j *journal.Journal) { j.State = string(Written) })
	if err := u.measure(rel); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // the last moment at which Cancel means anything
	}
	return u.arm(rel)
}

// readBack compares every image of the slot with the manifest, from the medium.
func (u *Updater) readBack(ctx context.Context, src Source, rel release) error {
	for _, img := range rel.m.Images {
		if img.Type != manifest.TypeSlot {
			continue
		}
		leaves, err := u.leaves(ctx, src, img)
		if err != nil {
			return err
		}
		if err := u.readBackOne(ctx, img, leaves); err != nil {
			err = u.distrust(img, err)
			return fmt.Errorf("read back %s: %w", img.Name, err)
		}
	}
	return nil
}

// distrust files what is wrong with an image in the spare slot, whatever the journal
// thinks of it: the next attempt begins it anew, since a disk that fails a sync may have
// lost more than the last write. A medium that never keeps it must not be worn out by
// that, so it counts as beginning the release once more.
func (u *Updater) distrust(img manifest.Image, err error) error {
	if !errors.Is(err, partition.ErrMismatch) && !errors.Is(err, syscall.EIO) {
		return err
	}
	begun := 0
	u.change(func(j *journal.Journal) {
		if j.Update != nil {
			j.State = string(Writing)
			delete(j.Update.Written, img.Name)
			begun = j.Begin(j.Update.Manifest)
		}
	})
	if begun > u.p.MaxBegun {
		return fmt.Errorf("%w: %w", ErrAttempts, err)
	}
	return err
}

func (u *Updater) readBackOne(ctx context.Context, img manifest.Image, leaves []byte) error {
	d, err := u.p.Slots.Spare(img.Target)
	if err != nil {
		return err
	}
	defer d.Close()
	step := u.watch("reading back "+img.Name, stepTime)
	defer step.done()
	u.meter.start(u, "reading back", img.Name, img.Size, 0)
	return partition.ReadBack(ctx, d, img.Size, leaves, func(done int64) {
		step.progress()
		u.meter.advance(done, partition.Counters{})
	})
}

func (u *Updater) writeRecord(rel release) error {
	d, err := u.p.Slots.Spare("root")
	if err != nil {
		return err
	}
	defer d.Close()
	if old, err := partition.ReadRecord(d); err == nil && bytes.Equal(old.Envelope, rel.envelope) {
		return nil
	}
	return partition.WriteRecord(d, partition.Record{Envelope: rel.envelope})
}

// measure enters the release into the ledger that the TPM keeps. It comes before the
// boot record: what may boot has been entered, whatever happens in between.
func (u *Updater) measure(rel release) error {
	if u.p.Ledger == nil {
		return nil
	}
	if err := u.p.Ledger.Install(u.journal().Update.ID, rel.digest.Sum()); err != nil {
		return fmt.Errorf("TPM ledger: %w", err)
	}
	u.event("measured", "manifest "+string(rel.digest)+" is in the TPM's ledger")
	return nil
}

// arm gives the slot its trial.
//
// The journal first: were it the boot record, a power cut in between would boot a
// new system that finds a journal still writing into the slot it runs from.
func (u *Updater) arm(rel release) error {
	// What an earlier trial said last must not be taken for words of this one.
	if u.trialLog() != nil {
		if err := u.p.Store.Put(trialLogName, nil); err != nil {
			u.p.Log.Debug("trial log not emptied", "err", err)
		}
	}
	if err := u.must(func(j *journal.Journal) {
		j.State = string(Armed)
		j.Update.BootID = u.p.Boot.BootID
		j.Update.Tries = rel.m.Trial.Tries
	}); err != nil {
		return err
	}
	record, err := u.p.Record.Load()
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	next, err := record.Try(u.spare(), rel.m.Trial.Tries)
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	if err := u.p.Record.Save(next); err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	u.event("armed", fmt.Sprintf("slot %s has %d tries", u.spare(), rel.m.Trial.Tries))
	u.report()
	return nil
}
