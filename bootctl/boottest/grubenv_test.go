package boottest

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// image is the part of the environment partition that has the copies: nothing
// reads or writes what is behind them, and the loops copy it ten thousand times.
func image(r bootctl.Record) []byte { return grubenv.Image(r)[:grubenv.LedgerOffset] }

var grubBackend = Backend{
	Image: image,
	Open:  func(d *disktest.Disk) bootctl.Store { return grubenv.Open(d) },
	Boot:  GRUB,
}

func TestGrubenvConforms(t *testing.T) { Conformance(t, grubBackend) }

// Nor does it depend on a disk that writes 512 bytes alone: where a cut destroys the 4 KiB
// around a sector, with the sectors beside it, the same holds.
func TestGrubenvOnLargeUnits(t *testing.T) {
	b := grubBackend
	b.Unit = 4096
	Conformance(t, b)
}

// A unit of 4 KiB that a power cut has destroyed, with the record, the second sector of its
// block or parts of the file system in it, is mended by the next save; until then the disk
// refuses to write a part of it.
func TestGrubenvMendsUnits(t *testing.T) {
	const unit = 4096
	b := grubBackend
	b.Unit = unit
	env, met := image(fresh), 0
	for at := 0; at < len(env); at += unit {
		if !hasData(env[at : at+unit]) {
			continue
		}
		d := b.disk(env)
		_, err := d.WriteAt(env[at:at+unit], int64(at))
		require.NoError(t, err)
		for crash := range d.Bench().Crashes(disktest.Bounds{Sectors: 1}) {
			if crash.Class != disktest.Unit {
				continue
			}
			met++
			left := crash.Disks()[0]
			require.NoError(t, b.Open(left).Save(trial), "at %d: %s", at, crash)
			got, err := b.Open(left).Load()
			require.NoError(t, err)
			require.True(t, trial.Same(got), "at %d: %s: got %s", at, crash, got)
			require.Empty(t, got.Degraded, "at %d: %s", at, crash)
		}
	}
	require.Equal(t, 5*2*2, met, "two units of the file system and three copies: noise and unreadable, before and after the write returned")
}

// A disk whose cache nobody can look past, so that after a failed sync reads show
// what the medium never got.
type cached struct{ d *disktest.Disk }

func (c cached) ReadAt(p []byte, off int64) (int, error)  { return c.d.ReadAt(p, off) }
func (c cached) WriteAt(p []byte, off int64) (int, error) { return c.d.WriteAt(p, off) }
func (c cached) Sync() error                              { return c.d.Sync() }
func (c cached) Size() int64                              { return c.d.Size() }

// The same Store, calling Save again after it failed, must not write over the
// copy that is in effect on the medium because the cache shows another one.
func TestGrubenvFaultsBehindCache(t *testing.T) {
	b := grubBackend
	b.Open = func(d *disktest.Disk) bootctl.Store { return grubenv.Open(cached{d}) }
	b.faults(t)
}

var (
	fresh = bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}
	trial = bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: 3}
)

// After a failed sync, Load says what the loader will see on the medium, not what
// the cache still shows.
func TestGrubenvLoadsMedium(t *testing.T) {
	lost := 0
	for seed := range uint64(20) {
		d := disktest.New(image(fresh))
		d.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: syscall.EIO, Seed: seed})
		require.ErrorIs(t, grubenv.Open(d).Save(trial), syscall.EIO)
		got, err := grubenv.Open(d).Load()
		require.NoError(t, err)
		require.NoError(t, d.DropCache())
		again, err := grubenv.Open(d).Load()
		require.NoError(t, err)
		require.True(t, again.Same(got), "seed %d: %s, but the medium has %s", seed, got, again)
		if got.Same(fresh) {
			lost++
		}
	}
	require.NotZero(t, lost, "no seed lost the write; the test shows nothing")
}

// Any read of a save may be wrong by any bit: the save says so or is right.
func TestGrubenvReadBack(t *testing.T) {
	refused := 0
	for n := 1; ; n++ {
		for bit := int64(0); bit < disktest.Sector*8; bit += 129 {
			d := disktest.New(image(fresh))
			d.Inject(disktest.Fault{Op: disktest.Read, At: n, Flip: bit})
			err := grubenv.Open(d).Save(trial)
			if !d.Fired() {
				require.NotZero(t, refused)
				return
			}
			if err != nil {
				require.ErrorIs(t, err, grubenv.ErrReadBack)
				refused++
			}
			again := disktest.New(d.Bytes())
			got, loadErr := grubenv.Open(again).Load()
			require.NoError(t, loadErr)
			require.True(t, err != nil || got.Same(trial))
		}
	}
}

// With both copies destroyed there is no record, but the confirmed slot is known,
// and the loader boots it and nothing else. A save then leaves two copies.
func TestGrubenvPairLost(t *testing.T) {
	env := image(trial)
	clear(env[grubenv.Copy0Offset:grubenv.ConfirmedOffset])
	r, err := grubenv.Open(disktest.New(env)).Load()
	require.ErrorIs(t, err, bootctl.ErrNoRecord)
	require.Equal(t, bootctl.A, r.Confirmed)
	require.Len(t, r.Degraded, 4) // both copies, and the padding of both

	did := GRUB(env, World{})
	require.Equal(t, []string{"tandem: slot a (confirmed; no copy of the record is readable)"}, did.Lines)
	did = GRUB(env, World{Broken: []bootctl.Slot{bootctl.A}})
	require.Equal(t, bootctl.Slot(""), did.Slot, "nothing is known of slot b")

	d := disktest.New(env)
	require.NoError(t, grubenv.Open(d).Save(fresh))
	for _, c := range grubenv.Open(d).Copies() {
		require.NoError(t, errors.Join(c.Err, c.Padding), c.Name)
	}
}

// Whatever is damaged on the partition is told, by name, in a word that callers can ask
// for, and the next save repairs it.
func TestGrubenvDamageIsTold(t *testing.T) {
	const sector = grubenv.SectorSize
	root := grubenv.Copy0Offset - sector // the last sector before the first cluster
	for name, at := range map[string]int{
		"file system":    0,
		"sector at byte": root - sector, // the second FAT
		"copy 0: ":       grubenv.Copy0Offset,
		"copy 1: ":       grubenv.Copy1Offset + sector, // its padding
		"confirmed copy": grubenv.ConfirmedOffset,
		fmt.Sprint(root): root,
	} {
		env := image(trial)
		env[at] ^= 1
		d := disktest.New(env)
		r, err := grubenv.Open(d).Load()
		require.NoError(t, err, name)
		require.True(t, trial.Same(r), name)
		require.Len(t, r.Degraded, 1, name)
		require.ErrorIs(t, r.Degraded[0], grubenv.ErrGarbled)
		require.ErrorContains(t, r.Degraded[0], name)

		require.NoError(t, grubenv.Open(d).Save(trial))
		r, err = grubenv.Open(d).Load()
		require.NoError(t, err, name)
		require.Empty(t, r.Degraded, name)
	}
}

// One copy is the newest, and it is the one that was saved last.
func TestGrubenvNewest(t *testing.T) {
	d := disktest.New(image(fresh))
	for range 12 { // more than there are generations
		for _, want := range []bootctl.Record{trial, fresh} {
			require.NoError(t, grubenv.Open(d).Save(want))
			var newest []bootctl.Record
			for _, c := range grubenv.Open(d).Copies() {
				if c.Newest {
					newest = append(newest, c.Content.Record)
				}
			}
			require.Len(t, newest, 1)
			require.True(t, want.Same(newest[0]))
		}
	}
}

// With all three destroyed the loader tries what there is; Load guesses nothing.
func TestGrubenvAllLost(t *testing.T) {
	env := image(trial)
	clear(env)
	r, err := grubenv.Open(disktest.New(env)).Load()
	require.ErrorIs(t, err, bootctl.ErrNoRecord)
	require.Equal(t, bootctl.Slot(""), r.Confirmed)
	require.Equal(t, bootctl.A, GRUB(env, World{}).Slot)
	require.Equal(t, bootctl.B, GRUB(env, World{Broken: []bootctl.Slot{bootctl.A}}).Slot)
}

// A device in the factory, or one being repaired, may lose power while its
// partition is formatted; formatting again makes it whole.
func TestGrubenvFormat(t *testing.T) {
	d := disktest.New(make([]byte, grubenv.Size))
	require.NoError(t, grubenv.Format(d, fresh))
	require.Equal(t, grubenv.Image(fresh), d.Bytes())
	got, err := grubenv.Open(d).Load()
	require.NoError(t, err)
	require.True(t, fresh.Same(got))
	require.Empty(t, got.Degraded)

	for crash := range d.Bench().Crashes(disktest.Bounds{From: d.Bench().Ops()}) {
		require.Equal(t, grubenv.Image(fresh), crash.Disks()[0].Bytes(), "%s: it was formatted", crash)
	}
	d.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: syscall.EIO})
	require.ErrorIs(t, grubenv.Format(d, fresh), syscall.EIO)

	require.ErrorIs(t, grubenv.Format(d, bootctl.Record{}), bootctl.ErrInvalid)
	require.Error(t, grubenv.Format(disktest.New(make([]byte, grubenv.Size/2)), fresh))
}
