package boottest

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// Backend is what the suite has to know of one bootloader.
type Backend struct {
	// Image returns the storage as it leaves the factory.
	Image func(r bootctl.Record) []byte
	// Open opens the storage.
	Open func(d *disktest.Disk) bootctl.Store
	// Boot is the loader's model.
	Boot Loader
	// Unit is what the disk writes at once, in bytes (disktest.Disk.SetUnit); 0 means a
	// sector.
	Unit int64
}

// disk is a disk with this content.
func (b Backend) disk(content []byte) *disktest.Disk {
	d := disktest.New(content)
	if b.Unit != 0 {
		d.SetUnit(b.Unit)
	}
	return d
}

// Conformance checks the claims that hold for every bootloader: what Load and
// Save promise, that the loader keeps to the record, and that neither a power
// cut nor a failing disk ever makes it boot anything but what the record before
// or after says.
func Conformance(t *testing.T, b Backend) {
	t.Run("RoundTrip", b.roundTrip)
	t.Run("Trial", b.trial)
	t.Run("Refusal", b.refusal)
	t.Run("Again", b.again)
	t.Run("PowerCut", b.powerCut)
	t.Run("PowerCutWhileBooting", b.powerCutWhileBooting)
	t.Run("Faults", b.faults)
	t.Run("Copies", b.copies)
}

// Records returns every sound record, by way of the operations of bootctl.
func Records() []bootctl.Record {
	var all []bootctl.Record
	for _, good := range []bootctl.Slot{bootctl.A, bootctl.B} {
		both := bootctl.Record{Good: good, A: bootctl.OK, B: bootctl.OK}
		bad := both
		if good == bootctl.A {
			bad.B = bootctl.Bad
		} else {
			bad.A = bootctl.Bad
		}
		all = append(all, bad, both)
		for tries := range bootctl.MaxTries + 1 {
			r := both
			r.Trying, r.Tries = good.Other(), tries
			all = append(all, r)
		}
	}
	return all
}

// next returns the slot that r says boots next.
func next(r bootctl.Record) bootctl.Slot {
	if r.Trying != "" && r.Tries > 0 {
		return r.Trying
	}
	return r.Good
}

// Every record comes back as it was saved, from a Store that is opened anew, with
// nothing degraded; the loader boots what it says.
func (b Backend) roundTrip(t *testing.T) {
	for _, from := range Records() {
		for _, to := range Records() {
			d := b.disk(b.Image(from))
			got, err := b.Open(d).Load()
			require.NoError(t, err)
			require.True(t, from.Same(got), "%s: got %s", from, got)
			require.Empty(t, got.Degraded)
			require.Equal(t, from.Good, got.Confirmed)

			require.NoError(t, b.Open(d).Save(to))
			got, err = b.Open(d).Load()
			require.NoError(t, err)
			require.True(t, to.Same(got), "%s: got %s", to, got)
			require.Empty(t, got.Degraded)
			require.Equal(t, to.Good, got.Confirmed)
			require.Equal(t, next(to), b.Boot(d.Bytes(), World{}).Slot, "%s", to)
		}
	}
}

// A trial of n boots is booted n times if nobody commits it, each time with the
// count already taken, and then the good slot is, however often the power is
// cycled; committed systems count nothing.
func (b Backend) trial(t *testing.T) {
	for tries := 1; tries <= bootctl.MaxTries; tries++ {
		r, err := (bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}).Try(bootctl.B, tries)
		require.NoError(t, err)
		env := b.Image(r)
		for boot := range tries + 20 {
			did := b.Boot(env, World{})
			if boot >= tries {
				require.Equal(t, bootctl.A, did.Slot, "boot %d of %d", boot+1, tries)
				require.Equal(t, env, did.Env, "the good slot counts nothing")
				continue
			}
			require.Equal(t, bootctl.B, did.Slot, "boot %d of %d", boot+1, tries)
			env = did.Env
			d := b.disk(env)
			got, err := b.Open(d).Load()
			require.NoError(t, err)
			require.Equal(t, tries-boot-1, got.Tries)
			require.Empty(t, got.Degraded)

			// Any boot of the trial may commit it, and that is the end of counting.
			committed, err := got.Commit(bootctl.B)
			require.NoError(t, err)
			require.NoError(t, b.Open(d).Save(committed))
			did = b.Boot(d.Bytes(), World{})
			require.Equal(t, bootctl.B, did.Slot)
			require.Equal(t, d.Bytes(), did.Env, "a committed slot counts nothing")
		}
	}
}

// A record that no loader could act on is refused before anything is written.
func (b Backend) refusal(t *testing.T) {
	d := b.disk(b.Image(Records()[0]))
	for _, r := range []bootctl.Record{
		{},
		{Good: bootctl.A, A: bootctl.Bad, B: bootctl.OK},
		{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: bootctl.MaxTries + 1},
	} {
		require.ErrorIs(t, b.Open(d).Save(r), bootctl.ErrInvalid)
	}
	require.Zero(t, d.Bench().Ops())
}

// Saving the same record again and again changes nothing that can be seen.
func (b Backend) again(t *testing.T) {
	d := b.disk(b.Image(Records()[0]))
	for _, r := range Records() {
		for range 4 {
			require.NoError(t, b.Open(d).Save(r))
			got, err := b.Open(d).Load()
			require.NoError(t, err)
			require.True(t, r.Same(got))
		}
	}
}

// transitions are the saves in the life of a device, each a state of the world.
func transitions(t *testing.T) map[string][2]bootctl.Record {
	fresh := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}
	both := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK}
	trial, err := fresh.Try(bootctl.B, 3)
	require.NoError(t, err)
	running := trial
	running.Tries = 0
	committed, err := running.Commit(bootctl.B)
	require.NoError(t, err)
	nextInstall, err := committed.Invalidate(bootctl.A)
	require.NoError(t, err)
	reverted, err := running.Revert()
	require.NoError(t, err)
	return map[string][2]bootctl.Record{
		"spare invalidated":      {both, fresh},
		"trial started":          {fresh, trial},
		"trial committed":        {running, committed},
		"next install begun":     {committed, nextInstall},
		"trial reverted":         {running, reverted},
		"trial given up":         {trial, fresh},
		"nothing new in a trial": {trial, trial},
	}
}

// The power may fail at any disk operation of a save, and any part of what was
// not yet synced may be lost or destroyed; then it may fail again at any
// operation of the save that resumes. Whatever is left, the old or the new record
// is in effect, the loader boots what one of them says, and once Save returned
// nil it is the new one.
func (b Backend) powerCut(t *testing.T) {
	for name, tr := range transitions(t) {
		t.Run(name, func(t *testing.T) {
			from, to := tr[0], tr[1]
			d := b.used(t, from, to)
			require.NoError(t, b.Open(d).Save(to))
			b.crashes(t, d, from, to, 2)
		})
	}
}

// used returns a disk with the record from in effect, on which the copy that is
// not in effect holds a third record, so that falling back on it is noticed.
func (b Backend) used(t *testing.T, from, to bootctl.Record) *disktest.Disk {
	t.Helper()
	for _, before := range Records() {
		if before.Same(from) || before.Same(to) || before.Good != from.Good {
			continue
		}
		d := b.disk(b.Image(before))
		require.NoError(t, b.Open(d).Save(from))
		return b.disk(d.Bytes())
	}
	panic("unreachable: there are more than two records per good slot")
}

// crashes goes through the states that a save on d from one record to another
// may leave, and through those that the save which resumes leaves, to the given
// depth.
func (b Backend) crashes(t *testing.T, d *disktest.Disk, from, to bootctl.Record, depth int) {
	done := d.Bench().Ops()
	bounds := disktest.Bounds{}
	if b.Unit != 0 {
		bounds = disktest.Bounds{Samples: 4, Sectors: 3} // what is mended is written in whole units
	}
	for crash := range d.Bench().Crashes(bounds) {
		left := crash.Disks()[0]
		got := b.oldOrNew(t, left, from, to, crash.String())
		if crash.Cut >= done {
			require.True(t, to.Same(got), "%s: saved, and got %s", crash, got)
		}
		// Resume: load, and save again.
		require.NoError(t, b.Open(left).Save(to), "%s", crash)
		again, err := b.Open(left).Load()
		require.NoError(t, err, "%s", crash)
		require.True(t, to.Same(again), "%s: got %s", crash, again)
		require.Empty(t, again.Degraded, "%s: a save repairs", crash)
		require.Equal(t, to.Good, again.Confirmed, "%s", crash)
		if depth > 1 {
			b.crashes(t, left, got, to, depth-1)
		}
	}
}

// oldOrNew checks that what is on d means from or to, to Load and to the loader
// alike, and returns which.
func (b Backend) oldOrNew(t *testing.T, d *disktest.Disk, from, to bootctl.Record, state string) bootctl.Record {
	t.Helper()
	got, err := b.Open(d).Load()
	require.NoError(t, err, "%s", state)
	require.True(t, from.Same(got) || to.Same(got), "%s: got %s", state, got)
	b.keepsTo(t, d.Bytes(), got, state)
	return got
}

// keepsTo checks that the loader boots what r says, or, where it cannot take the
// try that it would have to, the good slot.
func (b Backend) keepsTo(t *testing.T, env []byte, r bootctl.Record, state string) {
	t.Helper()
	did := b.Boot(env, World{})
	if did.Trial {
		require.Equal(t, r.Trying, did.Slot, "%s: %q", state, did.Lines)
		after, err := b.Open(b.disk(did.Env)).Load()
		require.NoError(t, err, "%s", state)
		require.Equal(t, r.Tries-1, after.Tries, "%s: a trial that is not counted", state)
		return
	}
	require.Equal(t, r.Good, did.Slot, "%s: %q", state, did.Lines)
}

// The loader's own write may be lost or destroyed too. Then the trial goes on
// uncounted for that one boot, which the power cut ended, or the good slot boots;
// it never gets more tries than it had.
func (b Backend) powerCutWhileBooting(t *testing.T) {
	for _, r := range Records() {
		if next(r) == r.Good {
			continue
		}
		env := b.Image(r)
		did := b.Boot(env, World{})
		d := b.disk(env)
		for at := 0; at < len(env); at += disktest.Sector {
			if s := did.Env[at : at+disktest.Sector]; string(s) != string(env[at:at+disktest.Sector]) {
				_, err := d.WriteAt(s, int64(at))
				require.NoError(t, err)
			}
		}
		require.Equal(t, 1, d.Bench().Ops(), "the loader writes one sector")
		taken := r
		taken.Tries--
		for crash := range d.Bench().Crashes(disktest.Bounds{}) {
			b.oldOrNew(t, crash.Disks()[0], r, taken, fmt.Sprintf("%s: %s", r, crash))
		}
	}
}

// Any operation of a save may fail, once or from then on. The old or the new
// record is in effect, and the same Store, and another one, succeed once the
// disk works again; a Store that opened the disk through a cache that lies after
// a failed sync does not write over the copy that is in effect.
func (b Backend) faults(t *testing.T) {
	for name, tr := range transitions(t) {
		for _, f := range []disktest.Fault{
			{Op: disktest.Read},
			{Op: disktest.Read, Sticky: true},
			{Op: disktest.Write},
			{Op: disktest.Write, Sticky: true},
			// What a failed sync loses is drawn by the seed; of these, the first loses
			// nothing of a save's first sync, and the others lose it.
			{Op: disktest.Sync, Seed: 1},
			{Op: disktest.Sync, Seed: 4},
			{Op: disktest.Sync, Seed: 5},
			{Op: disktest.Sync, Sticky: true},
		} {
			f.Err = syscall.EIO
			for f.At = 1; b.fault(t, name, tr[0], tr[1], f); f.At++ {
			}
		}
	}
}

// fault lets f happen in a save from one record to another; false means that
// the save had fewer operations.
func (b Backend) fault(t *testing.T, name string, from, to bootctl.Record, f disktest.Fault) bool {
	state := fmt.Sprintf("%s: %s %d fails, sticky %v, seed %d", name, f.Op, f.At, f.Sticky, f.Seed)
	d := b.used(t, from, to)
	d.Inject(f)
	store := b.Open(d)
	err := store.Save(to)
	if !d.Fired() {
		return false
	}
	if f.Sticky && f.Op == disktest.Read {
		// A disk that stops answering and loses power as well is two faults; what
		// was written is what there is.
		b.oldOrNew(t, b.disk(d.Bytes()), from, to, state)
		return true
	}
	if f.Sticky {
		require.Error(t, err, state)
	} else {
		// What Load sees may be the cache, where the loader would see the medium.
		got, err := b.Open(d).Load()
		require.NoError(t, err, state)
		require.True(t, from.Same(got) || to.Same(got), "%s: got %s", state, got)
		require.NoError(t, store.Save(to), state)
	}
	for crash := range d.Bench().Crashes(disktest.Bounds{Seed: uint64(f.At)}) {
		b.oldOrNew(t, crash.Disks()[0], from, to, state+": "+crash.String())
	}
	return true
}

// A medium on which any one sector was destroyed still has a record that is at
// most one save old, and the next save repairs it.
func (b Backend) copies(t *testing.T) {
	for name, tr := range transitions(t) {
		d := b.used(t, tr[0], tr[1])
		require.NoError(t, b.Open(d).Save(tr[1]))
		env := d.Bytes()
		for at := 0; at < len(env); at += disktest.Sector {
			if !hasData(env[at : at+disktest.Sector]) {
				continue
			}
			state := fmt.Sprintf("%s: sector at %d", name, at)
			damaged := append([]byte(nil), env...)
			for i := range disktest.Sector {
				damaged[at+i] = ^damaged[at+i]
			}
			left := b.disk(damaged)
			got := b.oldOrNew(t, left, tr[0], tr[1], state)
			require.NoError(t, b.Open(left).Save(got), state)
			again, err := b.Open(left).Load()
			require.NoError(t, err, state)
			require.Empty(t, again.Degraded, state)
		}
	}
}

// hasData tells whether a sector holds anything.
func hasData(sector []byte) bool {
	for _, b := range sector {
		if b != 0 {
			return true
		}
	}
	return false
}
