package updater

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Running returns the system that runs.
func (u *Updater) Running() Running { return u.running }

// Alive proves that nothing holds the core's lock for good: the agent reports to the
// watchdog by it. That its loop turns, and that each step of an update moves on, the core
// reports by itself.
func (u *Updater) Alive() {
	u.mu.Lock()
	defer u.mu.Unlock()
}

// Expired ends a trial whose deadline has passed, or a system whose checks no longer
// report, before the watchdog does it without a reason.
func (u *Updater) Expired(why error) error {
	record, err := u.p.Record.Load()
	if err == nil && record.Trying == u.running.Slot {
		return u.giveUp(transport.ReasonDeadline, "", why.Error())
	}
	return u.reboot(why.Error())
}

// Hold keeps everybody else from the boot record while f looks at its storage in its own
// way. A copy that is just being written looks like one that is garbled.
func (u *Updater) Hold(f func()) {
	u.record.mu.Lock()
	defer u.record.mu.Unlock()
	f()
}

// VerifySlots is VerifySlot for the running slot, and for the other one if it may boot.
func (u *Updater) VerifySlots(ctx context.Context) error {
	if err := u.VerifySlot(ctx, u.running.Slot); err != nil {
		return err
	}
	record, err := u.p.Record.Load()
	if err != nil {
		return fmt.Errorf("boot record: %w", err)
	}
	if record.Mark(u.spare()) != bootctl.OK {
		return nil
	}
	return u.VerifySlot(ctx, u.spare())
}

// VerifySlot compares the images in a slot, as they are on the medium, with the signed
// manifest in its slot record. It reads all of the slot.
func (u *Updater) VerifySlot(ctx context.Context, slot bootctl.Slot) error {
	m, _, _, err := u.p.held(slot)
	if err != nil {
		return fmt.Errorf("slot %s: %w", slot, err)
	}
	for _, img := range m.Images {
		if img.Type != manifest.TypeSlot {
			continue
		}
		if err := u.verifyImage(ctx, slot, img); err != nil {
			return fmt.Errorf("slot %s, release %s, image %s: %w", slot, m.Version, img.Name, err)
		}
	}
	return nil
}

func (u *Updater) verifyImage(ctx context.Context, slot bootctl.Slot, img manifest.Image) error {
	d, err := u.p.Slots.Read(slot, img.Target)
	if err != nil {
		return err
	}
	defer d.Close()
	read := d.ReadAt
	if medium, ok := d.(partition.Medium); ok {
		read = medium.ReadMedium
	}
	step := u.watch("verifying "+img.Name, stepTime)
	defer step.done()
	h, buf := sha256.New(), make([]byte, manifest.LeafSize)
	phase := transport.Progress{Phase: "verifying slot " + string(slot) + " " + img.Name, Total: img.Size}
	for off := int64(0); off < img.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		buf = buf[:min(int64(len(buf)), img.Size-off)]
		if _, err := read(buf, off); err != nil && err != io.EOF {
			return err
		}
		h.Write(buf)
		step.progress()
		if phase.Done = off + int64(len(buf)); phase.Done%(16<<20) == 0 || phase.Done == img.Size {
			u.tell(phase)
		}
	}
	if got := manifest.DigestFromSum([32]byte(h.Sum(nil))); got != img.Digest {
		return fmt.Errorf("%w: %s on the medium, %s in the manifest", ErrMismatch, got, img.Digest)
	}
	return nil
}

// CheckRelease verifies a release as Install would, and says whether this device would
// take it, without changing a slot.
func (u *Updater) CheckRelease(ctx context.Context, src Source, o Options) (version string, err error) {
	rel, err := u.verify(ctx, src, o)
	if err != nil {
		return "", fmt.Errorf("verify release: %w", err)
	}
	if err := u.admit(rel, o); err != nil {
		return rel.String(), fmt.Errorf("release %s: %w", rel, err)
	}
	_, err = u.choose(ctx, nil, rel, o)
	return rel.String(), err
}
