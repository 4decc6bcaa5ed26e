package updater

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/manifest"
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
		require.Equal(t, []string{"verified", "chosen", "chosen", "writing", "hashing", "writing", "reading back", "reading back", "measured", "armed", "rebooting", "committed"}, d.phases())

		u, err = d.update("3.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "3.0.0")
		require.Equal(t, bootctl.A, d.slot)
		require.Len(t, d.boil(), 2)
		last := map[string]uint64{}
		for _, e := range d.events {
			require.Greater(t, e.Sequence, last[e.Boot], "the fleet sees which it missed")
			last[e.Boot] = e.Sequence
		}
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

// A boot record that is lost while a release is being written does not end that
// installation: it goes on where it was, and nobody hears of a failure.
func TestBootRecordLostWhileWriting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		src := d.w.source("4.0.0-full")
		src.onRead = func(manifest.Digest, int64, []byte) error {
			if src.moved > 2*leaf {
				return syscall.ECONNRESET
			}
			return nil
		}
		require.ErrorIs(t, d.start().Install(ctx, src, Options{Full: transport.FullGo}), syscall.ECONNRESET)
		d.lose(theRecord)
		u := d.start()
		require.Equal(t, Writing, State(u.journal().State))
		require.NotEmpty(t, u.journal().Update.Written)
		require.Equal(t, bootctl.Bad, d.record().B, "it is half written")
		require.NoError(t, d.install(u, "4.0.0-full", Options{Full: transport.FullGo}))
		d.settled(d.start(), "4.0.0-full")
		require.Len(t, d.boil(), 1)
	})
}

// A boot record that is lost in a trial takes the number of boots with it. The trial may
// prove itself in this boot and has no other: it would never end if it got its tries
// back each time.
func TestTriesOfLostRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u := d.powerOn()
		d.lose(theRecord)
		check, asked := u.p.Check, 0
		u.p.Check = func(ctx context.Context, c manifest.Check) health.Result {
			asked++
			r := d.record()
			require.Equal(t, bootctl.B, r.Trying)
			require.Zero(t, r.Tries)
			return check(ctx, c)
		}
		require.NoError(t, u.Resume(ctx))
		require.NotZero(t, asked)
		d.settled(u, "2.0.0")
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

// A person who has looked ends an alarm by vouching for what runs. It becomes the good
// system if it is what its signed manifest says, read from the medium; the other one
// stays behind it if it is whole, too; and updates go on.
func TestEndAlarm(t *testing.T) {
	alarmed := func(t *testing.T, good, runs string) (*device, *Updater) {
		d := newDevice(t, good, runs)
		d.loader.Broken = []bootctl.Slot{bootctl.A}
		u := d.powerOn()
		require.ErrorIs(t, u.Resume(ctx), ErrAlarm)
		require.ErrorIs(t, u.Commit(ctx), ErrAlarm)
		return d, u
	}
	bubble(t, func(t *testing.T) {
		d, u := alarmed(t, "1.0.0", "0.9.0")
		require.NoError(t, u.EndAlarm(ctx))
		require.Empty(t, u.State().Error)
		d.settled(u, "0.9.0")
		require.Equal(t, bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK, Confirmed: bootctl.B}, d.record())
		require.Contains(t, d.events[0].Text, "slot b, release 0.9.0")
		require.ErrorIs(t, u.EndAlarm(ctx), ErrNoAlarm, "it is over")
		d.loader.Broken = nil
		u, err := d.update("2.0.0", Options{Full: transport.FullGo})
		require.NoError(t, err)
		d.settled(u, "2.0.0")
	})
	bubble(t, func(t *testing.T) {
		d, u := alarmed(t, "1.0.0", "0.9.0")
		d.clear(bootA, 0, 4096) // which is why the loader did not take it
		require.NoError(t, u.EndAlarm(ctx))
		require.Equal(t, bootctl.Bad, d.record().A)
	})
	for name, spoil := range map[string]func(d *device, u *Updater){
		"the running root is damaged":       func(d *device, _ *Updater) { d.clear(rootB, 0, 4096) },
		"the running kernel is damaged":     func(d *device, _ *Updater) { d.clear(bootB, 0, 4096) },
		"another manifest was verified":     func(_ *device, u *Updater) { u.p.Boot.Manifest = "sha256:00" },
		"nobody says what was verified":     func(_ *device, u *Updater) { u.p.Boot.Manifest = "" },
		"another root was opened by verity": func(_ *device, u *Updater) { u.running.Manifest.Images[1].Verity = &manifest.Verity{RootHash: "00"} },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d, u := alarmed(t, "1.0.0", "0.9.0")
				spoil(d, u)
				ops := d.disks[envDisk].Bytes()
				require.ErrorIs(t, u.EndAlarm(ctx), ErrMismatch)
				require.Equal(t, ops, d.disks[envDisk].Bytes())
				require.NotEmpty(t, u.State().Error, "it is still one")
			})
		})
	}
	bubble(t, func(t *testing.T) {
		_, u := alarmed(t, "2.5.0-epoch", "1.0.0")
		require.ErrorIs(t, u.EndAlarm(ctx), ErrEpoch, "not even then")

		// No alarm, no need for force: all is well, a trial is on, or no copy is whole.
		d := newDevice(t, "1.0.0", "")
		u = d.start()
		require.ErrorIs(t, u.EndAlarm(ctx), ErrNoAlarm)
		require.NoError(t, d.install(u, "2.0.0", Options{}))
		u = d.powerOn()
		require.ErrorIs(t, u.EndAlarm(ctx), ErrNoAlarm)
		d.clear(envDisk, envCopies, envConfirmed)
		require.ErrorIs(t, u.EndAlarm(ctx), ErrNoAlarm)
	})
}

// mute is a boot record that cannot be read.
type mute struct{ bootctl.Store }

func (mute) Load() (bootctl.Record, error) { return bootctl.Record{}, syscall.EIO }

// A boot record that cannot be read is written anew when a person says so. One that can be
// read again needs no person: the program finds out at its next start what it says.
func TestEndAlarmOfUnreadableRecord(t *testing.T) {
	for _, again := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			d := newDevice(t, "1.0.0", "0.9.0")
			u := d.powerOn()
			whole := u.record.store
			u.record.store = mute{whole}
			require.ErrorIs(t, u.Resume(ctx), ErrAlarm)
			if again {
				u.record.store = whole
				require.ErrorIs(t, u.EndAlarm(ctx), ErrNoAlarm)
				d.settled(d.start(), "1.0.0")
				return
			}
			require.NoError(t, u.EndAlarm(ctx))
			require.Empty(t, u.State().Error)
			require.Equal(t, bootctl.Bad, d.record().B, "nobody knows of it any more")
			require.Contains(t, d.events[0].Text, syscall.EIO.Error(), "why there was no other way")
			d.settled(d.start(), "1.0.0")
		})
	}
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
