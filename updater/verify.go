package updater

import (
	"context"
	"errors"
	"fmt"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// release is a manifest that was verified: signed by release keys and offered by TUF.
type release struct {
	m        manifest.Manifest
	digest   manifest.Digest
	envelope []byte
}

func (r release) String() string { return r.m.Version }

// verify fetches the manifest and finds out whether anybody who counts stands behind
// it. Two questions, two sets of keys: the release keys say what it is (and the next
// boot asks them again, without any network), TUF says that it is offered now.
func (u *Updater) verify(ctx context.Context, src Source, o Options) (release, error) {
	envelope, err := src.Manifest(ctx)
	if err != nil {
		return release{}, fmt.Errorf("read manifest: %w", err)
	}
	rel, err := u.p.open(envelope)
	// First: what another signed manifest is like says nothing about the one asked for.
	if o.Manifest != "" && rel.digest != "" && rel.digest != o.Manifest {
		return release{}, fmt.Errorf("%w: manifest %s instead of %s", ErrOther, rel.digest, o.Manifest)
	}
	if err != nil {
		return release{}, err
	}
	if len(envelope) > partition.MaxEnvelope {
		return release{}, fmt.Errorf("%w: %d bytes do not fit into the slot record", manifest.ErrTooLarge, len(envelope))
	}
	u.tuf.Lock()
	defer u.tuf.Unlock()
	fetch, cancel := context.WithTimeout(ctx, metadataTime)
	defer cancel()
	if err := u.p.TUF.Update(fetch, src, trust.Options{Online: o.Online, Now: u.trusted()}); err != nil {
		return release{}, fmt.Errorf("update TUF metadata: %w", err)
	}
	info, err := u.p.TUF.Target(rel.m.TargetName())
	if err == nil {
		err = info.Check(envelope)
	}
	if err != nil {
		return release{}, fmt.Errorf("TUF target %s: %w", rel.m.TargetName(), err)
	}
	u.event("verified", fmt.Sprintf("release %s, sequence %d, manifest %s", rel, rel.m.Sequence, rel.digest))
	return rel, nil
}

// open checks an envelope against the release keys and reads the manifest in it. With
// an error, the digest is that of a manifest that was signed and cannot be read, if any.
func (p *Parts) open(envelope []byte) (release, error) {
	payload, err := trust.Verify(envelope, trust.ManifestType, p.Keys)
	if err != nil {
		return release{}, fmt.Errorf("manifest: %w", err)
	}
	m, err := manifest.Parse(payload)
	return release{m: m, digest: manifest.DigestOf(payload), envelope: envelope}, err
}

// held returns what a slot's record says it holds, if keys of this system signed it.
func (p *Parts) held(slot bootctl.Slot) (manifest.Manifest, manifest.Digest, []byte, error) {
	d, err := p.Slots.Read(slot, "root")
	if err != nil {
		return manifest.Manifest{}, "", nil, err
	}
	defer d.Close()
	record, err := partition.ReadRecord(d)
	if err != nil {
		return manifest.Manifest{}, "", nil, err
	}
	rel, err := p.open(record.Envelope)
	if err != nil {
		return manifest.Manifest{}, "", nil, fmt.Errorf("slot record: %w", err)
	}
	return rel.m, rel.digest, record.Envelope, nil
}

// admit decides whether this device wants the release.
func (u *Updater) admit(rel release, o Options) error {
	record, err := u.p.Record.Load()
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	if alarm := u.alarmed(); alarm != "" {
		return fmt.Errorf("%w: %s", ErrAlarm, alarm)
	}
	if record.Trying == u.running.Slot {
		return ErrOnTrial
	}
	if record.Good != u.running.Slot {
		return fmt.Errorf("%w: slot %s runs, and slot %s is the good one", ErrAlarm, u.running.Slot, record.Good)
	}
	now := u.running.Manifest
	j := u.journal()
	if !rel.m.SuitsBoard(u.p.Board) || rel.m.Product != now.Product {
		return fmt.Errorf("%w: it is for product %s, boards %v; this is product %s, board %s", ErrBoard, rel.m.Product, rel.m.Boards, now.Product, u.p.Board)
	}
	if floor := u.floor(); rel.m.Epoch < floor {
		return fmt.Errorf("%w: epoch %d, floor %d", ErrEpoch, rel.m.Epoch, floor)
	}
	if rel.digest == u.running.Digest {
		return fmt.Errorf("%w, in slot %s", ErrInstalled, u.running.Slot)
	}
	if o.Force {
		return nil
	}
	if rel.m.Sequence <= now.Sequence {
		return fmt.Errorf("%w: sequence %d, and %s in slot %s has %d", ErrDowngrade, rel.m.Sequence, now.Version, u.running.Slot, now.Sequence)
	}
	if have := u.schema(); rel.m.DataSchema.Version < have {
		return fmt.Errorf("%w: data has schema %d, it writes %d", ErrNewerData, have, rel.m.DataSchema.Version)
	}
	if reason, failed := j.FailedBefore(rel.digest); failed {
		return fmt.Errorf("%w: %s", ErrFailedBefore, reason)
	}
	for _, a := range j.Attempts {
		if a.Manifest == rel.digest && a.Count >= u.p.MaxBegun && (j.Update == nil || j.Update.Manifest != rel.digest) {
			return fmt.Errorf("%w: %d times", ErrAttempts, a.Count)
		}
	}
	return nil
}

// begin makes the spare slot one that nobody boots, before the first byte of it
// changes, unless an interrupted installation of the same release already did.
func (u *Updater) begin(ctx context.Context, rel release, o Options) error {
	j := u.journal()
	if j.Update != nil && State(j.State) != Trial {
		if u.begun(j, rel) {
			// The marks below are made again: the journal may be older than they are.
			u.event("resuming", fmt.Sprintf("release %s in slot %s", rel, u.spare()))
			if j.Update.Force != o.Force || j.Update.Counter != o.Counter {
				u.change(func(j *journal.Journal) { j.Update.Force, j.Update.Counter = o.Force, o.Counter })
			}
			return u.invalidate()
		}
		u.conclude(transport.Failed, "superseded", "", "release "+rel.String()+" was asked for instead")
		_ = u.cleanUp(ctx)
	}
	ahead := u.ahead()
	if err := u.must(func(j *journal.Journal) {
		j.Begin(rel.digest)
		j.State = string(Writing)
		j.Update = &journal.Update{
			ID: u.p.NewID(), Manifest: rel.digest, Version: rel.m.Version, Sequence: rel.m.Sequence,
			Slot: string(u.spare()), Tries: rel.m.Trial.Tries, Force: o.Force, Counter: o.Counter,
			Started: u.p.Now().Unix(), Written: map[string]int64{}, Cost: journal.Cost{Downloaded: ahead},
		}
	}); err != nil {
		return err
	}
	return u.invalidate()
}

// invalidate takes the spare slot out of the boot record, and then its slot record.
//
// The order is that of danger: once the boot record names it bad, no loader starts
// the slot, whatever its partitions hold. A power cut in between leaves a whole
// system that nobody boots.
func (u *Updater) invalidate() error {
	record, err := u.p.Record.Load()
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	next, err := record.Invalidate(u.spare())
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	// Also where the record says so already. Who wrote that may have died before it was
	// synced, and what was read may come from a cache or from the wrong place: only what
	// was written, synced and read back is known to be on the medium. And a confirmed copy
	// that does not name the running slot would send a device whose other copies are lost
	// into what is being overwritten; Save mends it.
	//
	// Not once more by the program that wrote it itself: an installation whose server does
	// not answer comes here every few minutes.
	if !u.record.keeps(next) || !next.Same(record) || record.Confirmed != u.running.Slot {
		if err := u.p.Record.Save(next); err != nil {
			return fmt.Errorf("boot record: %w", err)
		}
	}
	defer u.watch("erasing the record of slot "+string(u.spare()), stepTime).done()
	d, err := u.p.Slots.Spare("root")
	if err != nil {
		return err
	}
	err = partition.EraseRecord(d)
	return errors.Join(err, d.Close())
}

func (u *Updater) alarmed() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.alarm
}
