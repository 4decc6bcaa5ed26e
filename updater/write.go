package updater

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// stepTime is how long one step of local work (a frame, a leaf, a sync) may take
// before the watchdog counts it as stuck: minutes, because worn flash does that.
const stepTime = 5 * time.Minute

// What the programs of a system may take, each once (manifest/FORMAT.md,
// release/FORMAT.md). They are ended then, and only after that the watchdog may think
// that something is stuck.
const (
	hookTime    = 10 * time.Minute // Parts.Migrate
	handlerTime = 15 * time.Minute // Parts.Handlers
)

// bring is write, and looks for another way where the base of the delta turns out to be
// damaged: an index payload, which takes from a slot only what is sound, or the whole
// image. Policy decides, as it does where no delta fits.
func (u *Updater) bring(ctx context.Context, src Source, p payload, o Options) error {
	err := u.write(ctx, src, p)
	if p.base == nil || !among(err, ErrMismatch, syscall.EIO) {
		return err
	}
	damage := u.verifyImage(ctx, u.running.Slot, *p.base)
	if !among(damage, ErrMismatch, syscall.EIO) {
		return err // it was something else
	}
	base := fmt.Sprintf("%s of %s in slot %s", p.base.Name, u.running.Manifest.Version, u.running.Slot)
	u.event("damaged", fmt.Sprintf("%s: %v", base, damage))
	other, err := u.chooseAgain(ctx, src, p, o)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBase, base, err)
	}
	return u.write(ctx, src, other)
}

// write brings one image to its place: a slot's partition, or an external handler.
func (u *Updater) write(ctx context.Context, src Source, p payload) error {
	if p.image.Type == manifest.TypeExternal {
		return u.writeExternal(ctx, src, p)
	}
	j := u.journal()
	from := j.Update.Written[p.image.Name]
	if State(j.State) != Writing || from == p.image.Size {
		return nil // it is read back in any case
	}
	d, err := u.p.Slots.Spare(p.image.Target)
	if err != nil {
		return err
	}
	defer d.Close()
	if room := d.Size() - reserve(p.image.Target); p.image.Size > room {
		return fmt.Errorf("%w: image of %d bytes, partition has room for %d", partition.ErrOutside, p.image.Size, room)
	}
	w := partition.NewWriter(d, p.image.Size, from)
	start := u.journal().Update.Cost
	account := func(durable int64) {
		c := w.Counters()
		keep := u.change
		if durable == from && c.Written == 0 {
			// A server that is away for weeks is asked every few minutes, and each time it comes to
			// nothing: that must not wear the medium out.
			keep = u.note
		}
		keep(func(j *journal.Journal) {
			if j.Update.Written == nil {
				// An empty map is not in the journal's bytes, and the power may fail before the first checkpoint.
				j.Update.Written = map[string]int64{}
			}
			j.Update.Written[p.image.Name] = durable
			j.Update.Cost.Read = start.Read + c.Read
			j.Update.Cost.Written = start.Written + c.Written
			j.Update.Cost.Skipped = start.Skipped + c.Skipped
		})
	}
	leaves, err := u.leaves(ctx, src, p.image)
	if err != nil {
		return err
	}
	step := u.watch("writing "+p.image.Name, stepTime)
	defer step.done()
	u.meter.start(u, "writing", p.image.Name, p.image.Size, from)
	checkpoint := from
	var medium error // what the spare slot itself could not do
	err = u.rebuild(ctx, src, p, from, d, leaves, step, func(leaf []byte) error {
		if medium = w.WriteLeaf(leaf); medium != nil {
			return medium
		}
		step.progress()
		u.meter.advance(w.Offset(), w.Counters())
		if w.Offset()-checkpoint < u.p.Checkpoint {
			return nil
		}
		// The data before the journal: a journal that runs ahead would make a resumed
		// installation trust bytes that the medium never got.
		var durable int64
		if durable, medium = w.Checkpoint(); medium != nil {
			return medium
		}
		checkpoint = durable
		account(durable)
		return nil
	})
	if err == nil {
		medium = w.Finish()
		err = medium
	}
	if err != nil {
		account(checkpoint)
		if medium != nil {
			err = u.distrust(p.image, err)
		}
		return err
	}
	account(p.image.Size)
	return nil
}

// reserve is the room at the end of a partition that images keep clear of.
func reserve(role string) int64 {
	if role == "root" {
		return partition.RecordSize
	}
	return 0
}

// writeExternal hands an image to its handler: prepare, then all bytes on its
// standard input, each checked before the handler sees it. It starts anew after an
// interruption; what the handler has is the handler's to know.
func (u *Updater) writeExternal(ctx context.Context, src Source, p payload) error {
	m := p.manifest
	// First what is owed for an update before this one: a revert that comes late would take
	// this one's image away. What cannot be done at all must not keep the device from updates.
	if err := u.cleanUp(ctx); errors.Is(err, external.ErrNotNow) || ctx.Err() != nil {
		return err
	}
	// Before the handler does anything that it would have to take back.
	if err := u.must(func(j *journal.Journal) {
		told := func(img manifest.Image) bool { return img.Name == p.image.Name }
		if !slices.ContainsFunc(j.Update.Prepared, told) {
			img := p.image
			img.Payloads, img.Verity = nil, nil
			j.Update.Prepared = append(slices.Clone(j.Update.Prepared), img)
		}
		j.TakeBack = nil
	}); err != nil {
		return err
	}
	done, err := u.handle(ctx, m, p.image, "prepare", nil)
	if err != nil || done {
		return err
	}
	leaves, err := u.leaves(ctx, src, p.image)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	step := u.watch("handing over "+p.image.Name, handlerTime+stepTime)
	defer step.done()
	u.meter.start(u, "writing", p.image.Name, p.image.Size, 0)
	go func() {
		var sent int64
		w.CloseWithError(u.rebuild(ctx, src, p, 0, nil, leaves, step, func(leaf []byte) error {
			n, err := w.Write(leaf)
			sent += int64(n)
			step.progress()
			u.meter.advance(sent, partition.Counters{Written: sent})
			return err
		}))
	}()
	_, err = u.handle(ctx, m, p.image, "write", r)
	if err == nil {
		// A handler that did not read to the end has not seen all of it.
		n, rest := io.Copy(io.Discard, r)
		if err = rest; err == nil && n > 0 {
			err = fmt.Errorf("handler for %s left %d bytes unread", p.image.Target, n)
		}
	}
	r.CloseWithError(io.ErrClosedPipe)
	return err
}
