package updater

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
)

// A release that works is written to the spare slot, tried and committed; the old
// system stays behind it, and the next update goes the other way.
func TestUpdateCommits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "2.0.0")
		require.Equal(t, bootctl.B, d.slot)
		require.Equal(t, "1.0.0", d.holds(bootctl.A))
		require.Equal(t, transport.Committed, d.verdict().Result)
		require.Equal(t, string(d.w.by["2.0.0"].digest), d.verdict().Release)
		require.Len(t, d.boil(), 1)
		require.Len(t, d.ledger, 1)
		require.Equal(t, []string{"verified", "chosen", "chosen", "writing", "writing", "reading back", "reading back", "measured", "armed", "rebooting", "committed"}, d.phases())

		u, err = d.update("3.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "3.0.0")
		require.Equal(t, bootctl.A, d.slot)
		require.Len(t, d.boil(), 2)
	})
}

// A system that does not prove itself gives itself up, and the old one says why: which
// check, in which release, with the last lines of its log. It is not taken again
// unless somebody insists.
func TestSickReleaseReverts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		d.sick["2.0.0"] = "works"
		u, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "1.0.0")
		v := d.verdict()
		require.Equal(t, transport.Reverted, v.Result)
		require.Equal(t, transport.ReasonHealth, v.Reason)
		require.Equal(t, "works", v.Check)
		require.Equal(t, "by test", v.Detail)
		require.Equal(t, []string{"line of 2.0.0"}, v.Log)
		require.Len(t, d.boil(), 1)
		require.Equal(t, bootctl.Bad, d.record().Mark(bootctl.B))

		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrFailedBefore)
		d.sick = nil
		u, err = d.update("2.0.0", Options{Force: true})
		require.NoError(t, err)
		d.settled(u, "2.0.0")
		require.Empty(t, u.journal().Failed, "a commit forgives")
		require.Empty(t, u.journal().Attempts)
	})
}

// A system that dies before it can say anything is tried as often as its release
// allows; then the old one runs, and finds out what killed it.
func TestDeadReleaseReverts(t *testing.T) {
	for how, reason := range map[string]string{"watchdog": transport.ReasonWatchdog, "panic": transport.ReasonPanic, "power": transport.ReasonBoot} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				d.hangs["2.0.0"] = how
				u, err := d.update("2.0.0", Options{})
				require.NoError(t, err)
				d.settled(u, "1.0.0")
				require.Equal(t, 1+3+1, d.boots, "one to install, the tries, and back")
				require.Equal(t, reason, d.verdict().Reason)
				require.Equal(t, 3, d.verdict().Tries)
				require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrFailedBefore)
			})
		})
	}
}

// A verdict says how many boots the trial took, however it ended: by a commit or by
// giving up in one of them, or with the last.
func TestTriesOfVerdict(t *testing.T) {
	for _, cuts := range []int{0, 1, 2} {
		for _, sick := range []string{"", "works"} {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
				d.sick["2.0.0"] = sick
				for range cuts {
					d.powerOn()
				}
				u := d.start()
				require.Equal(t, cuts+1, d.verdict().Tries)
				require.Equal(t, cuts+1, u.Last().Tries, "and so does status, which doctor compares with the log of boots")
			})
		}
	}
}

// A loader that does not get the new system loaded, or cannot count its tries, boots
// the old one, which clears the trial.
func TestLoaderCannotTry(t *testing.T) {
	for name, world := range map[string]boottest.World{
		"the image does not load": {Broken: []bootctl.Slot{bootctl.B}},
		"the try cannot be saved": {ReadOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				d.loader = world
				for range 3 {
					u, err := d.update("2.0.0", Options{})
					require.NoError(t, err)
					d.settled(u, "1.0.0")
					require.Equal(t, transport.Reverted, d.verdict().Result)
					require.Equal(t, transport.ReasonBoot, d.verdict().Reason)
					if !world.ReadOnly {
						break
					}
				}
				u := d.start()
				err := d.install(u, "2.0.0", Options{})
				if world.ReadOnly {
					require.ErrorIs(t, err, ErrAttempts, "not for ever")
					return
				}
				require.ErrorIs(t, err, ErrFailedBefore)
			})
		})
	}
}

// A new system that cannot mount the data partition loses its journal with every
// boot. If it then gives itself up, the old one must still learn that there was a
// trial: otherwise it would go on to install and try the release for ever.
func TestRevertWithoutData(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		d.sick["2.0.0"], d.noData["2.0.0"] = "works", true
		u, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "1.0.0")
		require.Equal(t, transport.Reverted, d.verdict().Result)
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrFailedBefore)
	})
}

// A release that is good, on a device whose data partition is gone, is committed all
// the same.
func TestCommitWithoutData(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		d.noData["2.0.0"] = true
		u, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "2.0.0")
		require.Equal(t, transport.Committed, d.verdict().Result)
	})
}

// A journal that cannot be written does not keep a device from reverting, nor from
// committing; an installation does not begin without it.
func TestJournalCannotBeWritten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		d.store.full = syscall.ENOSPC
		u := d.start()
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), syscall.ENOSPC)
		require.Zero(t, d.ops(), "nothing was written")

		d.store.full = nil
		require.NoError(t, d.install(u, "2.0.0", Options{}))
		d.store.full = syscall.ENOSPC
		u = d.start()
		require.Equal(t, "2.0.0", u.running.Manifest.Version)
		require.Equal(t, bootctl.B, d.record().Good)
		d.store.full = nil
		d.settled(d.start(), "2.0.0")
		require.Len(t, d.boil(), 1)
	})
}

// A device whose boot record is gone boots what was confirmed, writes a record that
// names what runs, and updates as before.
func TestBootRecordLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, all := range []bool{false, true} {
			d := newDevice(t, "1.0.0", "0.9.0")
			d.lose(theRecord)
			if all {
				d.clear(envDisk, envConfirmed, envConfirmed+grubenv.BlockSize)
			}
			u := d.start()
			d.settled(u, "1.0.0")
			require.Equal(t, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Confirmed: bootctl.A}, d.record())
			u, err := d.update("2.0.0", Options{})
			require.NoError(t, err)
			d.settled(u, "2.0.0")
		}
	})
}

// A boot record on a medium that cannot be read, and a record that contradicts what
// runs, are for a person: nothing is written, and nothing is installed.
func TestAlarm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		d.loader.Broken = []bootctl.Slot{bootctl.A} // the loader's last resort
		u := d.powerOn()
		require.ErrorIs(t, u.Resume(ctx), ErrAlarm)
		require.ErrorIs(t, d.install(u, "2.0.0", Options{Force: true}), ErrAlarm)
		require.Error(t, u.Rollback(ctx, true))
		require.Zero(t, d.ops())
		require.Contains(t, u.State().Error, "slot b runs")

		d = newDevice(t, "1.0.0", "0.9.0")
		u = d.powerOn()
		d.disks[envDisk].Inject(disktest.Fault{Op: disktest.Read, At: 1, Sticky: true, Err: syscall.EIO})
		require.ErrorIs(t, u.Resume(ctx), syscall.EIO)
		require.ErrorIs(t, d.install(u, "2.0.0", Options{Force: true}), syscall.EIO)
		for _, op := range d.disks[0].Bench().Log() {
			require.Equal(t, envDisk, op.Disk, "no slot is touched")
		}
	})
}

// Seen by the program only (the machine stays up): it may be killed at any disk
// operation and be started again in the same boot. It goes on where it was.
func TestProgramKilled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for n := 1; ; n++ {
			d := newDevice(t, "1.0.0", "0.9.0")
			d.state = fmt.Sprintf("killed at operation %d", n)
			u := d.start()
			bench := d.disks[0].Bench()
			bench.CutAt(n)
			err := d.install(u, "2.0.0", Options{})
			if !bench.Cut() {
				require.Greater(t, n, 20)
				t.Logf("%d operations", n-1)
				return
			}
			bench.Revive()
			if err == nil && d.rebooting == "" {
				require.Fail(t, "an installation that was killed says that it is done", "%s", d.state)
			}
			d.rebooting = ""
			u, err = New(d.parts("1.0.0"))
			require.NoError(t, err)
			require.NoError(t, u.Resume(ctx), "%s", d.state)
			if d.rebooting == "" {
				require.NoError(t, d.install(u, "2.0.0", Options{}), "%s", d.state)
			}
			require.NotEmpty(t, d.rebooting, "%s", d.state)
			d.settled(d.start(), "2.0.0")
			require.Equal(t, transport.Committed, d.verdict().Result, "%s", d.state)
			require.Len(t, d.boil(), 1, "%s", d.state)
		}
	})
}

// Any read, write or sync of any disk may fail once. The installation says so, and the
// next attempt, in the same boot or after a reboot, gets there.
func TestDiskFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tried := 0
		for disk := envDisk; disk <= dataDisk; disk++ {
			for _, op := range []disktest.Kind{disktest.Read, disktest.Write, disktest.Sync} {
				for n := 1; ; n++ {
					d := newDevice(t, "1.0.0", "0.9.0")
					d.state = fmt.Sprintf("disk %d, %s %d", disk, op, n)
					u := d.start()
					d.disks[disk].Inject(disktest.Fault{Op: op, At: n, Err: syscall.EIO, Seed: uint64(n)})
					err := d.install(u, "2.0.0", Options{})
					if !d.disks[disk].Fired() {
						break
					}
					tried++
					d.disks[disk].Heal()
					if err != nil {
						require.Empty(t, d.rebooting, "%s", d.state)
						if n%2 == 0 {
							u = d.start()
						}
						if d.rebooting == "" && u.running.Manifest.Version != "2.0.0" {
							require.NoError(t, d.install(u, "2.0.0", Options{}), "%s: after %v", d.state, err)
						}
					}
					d.settled(d.start(), "2.0.0")
				}
			}
		}
		require.Greater(t, tried, 80)
		t.Logf("%d faults", tried)
	})
}
