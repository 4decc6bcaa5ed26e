package updater

import (
	"context"
	"encoding/json"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// fleet is the other end of the link.
type fleet struct {
	d     *device
	wants chan transport.Want
	asked []manifest.Digest

	mu     sync.Mutex
	source func(*source)
	deaf   bool // no metadata yet
}

// serves says what becomes of a source from now on; nil serves what is asked for.
func (f *fleet) serves(change func(*source)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.source = change
}

func (f *fleet) Wants() <-chan transport.Want { return f.wants }

func (f *fleet) Source(digest manifest.Digest) Source {
	src := &source{w: f.d.w, r: f.d.w.by[f.d.w.names[digest]]}
	if digest != "" {
		f.asked = append(f.asked, digest)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.source != nil && digest != "" {
		f.source(src)
	}
	if f.deaf {
		return deaf{src}
	}
	return src
}

// running is a device whose program follows its fleet.
type following struct {
	*device
	*fleet
	u    *Updater
	stop func()
}

// follow starts Run on a device that stays.
func (d *device) follow() *following {
	f := &following{device: d, fleet: &fleet{d: d, wants: make(chan transport.Want, 1)}, u: d.start()}
	f.again()
	return f
}

func (f *following) again() {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- f.u.Run(ctx, f.fleet) }()
	f.stop = func() {
		cancel()
		require.ErrorIs(f.t, <-done, context.Canceled)
	}
}

// want sends a statement and waits until the device has nothing more to do at once.
func (f *following) want(counter uint64, d transport.Desired) {
	f.wants <- f.w.statement(f.t, me, counter, d)
	synctest.Wait()
}

func (f *following) desired(version string) transport.Desired {
	return transport.Desired{Manifest: string(f.w.by[version].digest), Version: version}
}

// The fleet says what should run, and the device gets there: once, however often the
// broker repeats the statement, and not because of an old one.
func TestRunFollowsDesiredState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.want(7, f.desired("2.0.0"))
		require.NotEmpty(t, f.rebooting)
		f.stop()
		f.u = f.start()
		f.settled(f.u, "2.0.0")
		require.EqualValues(t, 7, f.verdict().Counter)
		require.False(t, f.u.State().Drift)

		f.again()
		asked := len(f.asked)
		f.want(7, f.desired("2.0.0"))
		f.want(6, f.desired("3.0.0"))
		time.Sleep(time.Hour)
		require.Len(t, f.asked, asked, "a replay changes nothing")
		require.EqualValues(t, 7, f.u.journal().Counter)

		f.want(8, f.desired("3.0.0"))
		f.stop()
		f.settled(f.start(), "3.0.0")
		require.Len(t, f.boil(), 2)
	})
}

// Statements that nobody who counts signed, for another device or of another kind,
// change nothing.
func TestRunIgnoresOthers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		good := f.w.statement(t, me, 1, f.desired("2.0.0"))
		bad := slices.Clone(good.Statement)
		bad[len(bad)/2] ^= 1
		for _, want := range []transport.Want{
			f.w.statement(t, "pump-8", 1, f.desired("2.0.0")),
			{Statement: bad},
			{Statement: json.RawMessage(`{}`)},
		} {
			f.wants <- want
			synctest.Wait()
			require.Nil(t, f.u.journal().Want)
			require.Zero(t, f.u.journal().Counter)
			require.NotEmpty(t, f.u.State().Error)
		}
		f.stop()
	})
}

// What passes with time is tried again, more and more rarely, until it works; the
// place is kept meanwhile.
func TestRunTriesAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		var at []time.Duration
		begin := time.Now()
		f.serves(func(s *source) {
			at = append(at, time.Since(begin).Round(time.Second))
			if len(at) < 10 {
				s.broken = syscall.ECONNREFUSED
			} else if len(at) < 12 {
				s.onRead = fails(syscall.EIO)
			}
		})
		f.want(1, f.desired("2.0.0"))
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.NotEmpty(t, f.rebooting)
		f.stop()
		require.Len(t, at, 12)
		for i := 1; i < len(at); i++ {
			rest := at[i] - at[i-1]
			require.LessOrEqual(t, rest, retryMost)
			if i > 1 {
				require.GreaterOrEqual(t, rest, at[i-1]-at[i-2], "%v", at)
			}
		}
		f.settled(f.start(), "2.0.0")
		require.Len(t, f.boil(), 1)
	})
}

// What this device will never run is refused with a verdict, once; the device waits
// for another statement, also after a restart.
func TestRunRefuses(t *testing.T) {
	for version, want := range map[string]error{
		"2.3.0-board": ErrBoard, "0.9.0": ErrDowngrade, "3.0.0": ErrNoDelta, "2.1.0-deltas": ErrNoDelta, "2.9.0-unlisted": nil,
	} {
		t.Run(version, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newDevice(t, "1.0.0", "").follow()
				f.want(3, f.desired(version))
				time.Sleep(time.Hour)
				require.Len(t, f.boil(), 1)
				v := f.verdict()
				require.Equal(t, transport.Refused, v.Result)
				require.EqualValues(t, 3, v.Counter)
				require.Equal(t, string(f.w.by[version].digest), v.Release)
				if want != nil {
					require.Contains(t, v.Detail, want.Error())
				}
				// It is not offered: the metadata may be late, so the device asks again.
				asked := map[bool]int{true: 1, false: f.u.p.MaxBegun}[want != nil]
				require.Len(t, f.asked, asked)
				require.Empty(t, f.u.journal().Failed)
				f.stop()
				f.u = f.start()
				f.again()
				time.Sleep(time.Hour)
				require.Len(t, f.asked, asked)
				require.Len(t, f.boil(), 1, "the same verdict again")
				require.Greater(t, len(f.verdicts), 1, "it is repeated after a restart")
				f.want(4, f.desired("2.0.0"))
				f.stop()
				f.settled(f.start(), "2.0.0")
			})
		})
	}
}

// With the policy to wait, the device waits for leave and says nothing final; the leave
// is a statement like any other.
func TestRunWaitsForLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		d := f.desired("3.0.0")
		d.Full = transport.FullWait
		f.want(1, d)
		time.Sleep(time.Hour)
		require.Empty(t, f.verdicts)
		require.True(t, f.u.State().Drift)
		d.Full = transport.FullGo
		f.want(2, d)
		require.NotEmpty(t, f.rebooting)
		f.stop()
		f.settled(f.start(), "3.0.0")
	})
}

// A release that fails here is not taken again because the fleet still wants it, and
// is when it insists.
func TestRunDoesNotLoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.sick["2.0.0"] = "works"
		f.want(1, f.desired("2.0.0"))
		f.stop()
		f.u = f.start()
		f.settled(f.u, "1.0.0")
		boots := f.boots
		f.again()
		time.Sleep(24 * time.Hour)
		require.Empty(t, f.rebooting)
		require.Len(t, f.boil(), 1)
		f.stop()
		require.Equal(t, boots, f.boots)

		f.sick = nil
		f.again()
		d := f.desired("2.0.0")
		d.Force = true
		f.want(2, d)
		f.stop()
		f.settled(f.start(), "2.0.0")
	})
}

// A source that answers with another release than the one that is wanted, signed and
// offered as it may be, does not get it installed.
func TestRunInstallsOnlyWhatIsWanted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.serves(func(s *source) { s.r = f.w.by["4.0.0-full"] })
		f.want(1, f.desired("2.0.0"))
		require.Empty(t, f.rebooting)
		require.Nil(t, f.u.journal().Update)
		f.serves(nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		f.stop()
		f.settled(f.start(), "2.0.0")
	})
}

// An operator's cancel ends the desired state too: the device does not begin again by
// itself.
func TestRunCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.serves(func(s *source) {
			s.onRead = func(manifest.Digest, int64, []byte) error { return f.u.Cancel() }
		})
		f.want(1, f.desired("2.0.0"))
		f.serves(nil)
		time.Sleep(24 * time.Hour)
		require.Empty(t, f.rebooting)
		require.Len(t, f.boil(), 1)
		require.Equal(t, transport.ReasonOperator, f.verdict().Reason)
		f.stop()
	})
}

// Every attempt has one verdict, and one id: whoever starts the program again hears
// the last one again.
func TestVerdictOncePerAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		d.cancelled(u, "2.0.0")
		require.Len(t, d.boil(), 1)
		for range 3 {
			u = d.start()
		}
		require.Len(t, d.verdicts, 4)
		require.Len(t, d.boil(), 1)

		// Another release is asked for in the middle of one.
		require.Error(t, u.Install(ctx, &source{w: d.w, r: d.w.by["2.0.0"], onRead: fails(syscall.EPIPE)}, Options{}))
		require.Len(t, d.boil(), 1)
		require.NoError(t, d.install(u, "4.0.0-full", Options{}))
		require.Len(t, d.boil(), 2)
		require.Equal(t, "superseded", d.verdict().Reason)
		u = d.start()
		d.settled(u, "4.0.0-full")
		require.Len(t, d.boil(), 3)
		last := u.Last()
		require.Equal(t, transport.Committed, last.Result)
		require.Equal(t, d.verdict().ID, last.ID)
	})
}

// Going back to the other system is a trial like any other, which an operator asked for.
func TestRollback(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		require.NoError(t, u.Rollback(ctx, false))
		require.NotEmpty(t, d.rebooting)
		require.Equal(t, d.w.by["1.0.0"].m.Trial.Tries, d.record().Tries)
		d.powerOn() // a power cut in the first of them
		u = d.start()
		d.settled(u, "1.0.0")
		require.Equal(t, transport.Committed, d.verdict().Result)
		require.Equal(t, 2, d.verdict().Tries)

		// The old system does not come up any more: back again.
		d.hangs["2.0.0"] = "panic"
		require.NoError(t, u.Rollback(ctx, false))
		u = d.start()
		d.settled(u, "1.0.0")
		require.Equal(t, transport.ReasonPanic, d.verdict().Reason)
		require.ErrorIs(t, u.Rollback(ctx, true), ErrNoFallback, "it is marked bad now")
	})
}

// A rollback that would lose data is refused unless forced; one below the floor, into
// nothing, or into a slot whose record nobody signed, is refused in any case.
func TestRollbackRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		require.ErrorIs(t, u.Rollback(ctx, true), ErrNoFallback, "a new device has one system")

		u, err := d.update("2.7.0-schema", Options{})
		require.NoError(t, err)
		require.ErrorIs(t, u.Rollback(ctx, false), ErrNewerData)
		require.Empty(t, d.rebooting)
		require.NoError(t, u.Rollback(ctx, true))
		d.settled(d.start(), "1.0.0")

		d = newDevice(t, "1.0.0", "0.9.0")
		u = d.start()
		u.change(func(j *journal.Journal) { j.EpochFloor = 1 })
		require.ErrorIs(t, u.Rollback(ctx, true), ErrEpoch)

		d = newDevice(t, "1.0.0", "0.9.0")
		d.clear(rootB, int64(d.root(bootctl.B).Size())-64<<10, d.root(bootctl.B).Size())
		record := d.record()
		u = d.powerOnUnchecked()
		require.ErrorIs(t, u.Rollback(ctx, true), ErrNoFallback)
		require.True(t, record.Same(d.record()))
	})
}

// The hook makes the new layout in the trial and removes the old one after the
// commit; where it fails, the trial is over. A system that cannot read data as old as
// it is there does not touch it.
func TestMigration(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type call struct {
			phase    string
			from, to int
			good     bootctl.Slot
		}
		var calls []call
		d := newDevice(t, "1.0.0", "")
		d.migrate = func(_, phase string, from, to int) error {
			calls = append(calls, call{phase, from, to, d.record().Good})
			return nil
		}
		u, err := d.update("2.7.0-schema", Options{})
		require.NoError(t, err)
		d.settled(u, "2.7.0-schema")
		require.Equal(t, []call{{"prepare", 0, 3, bootctl.A}, {"commit", 0, 3, bootctl.B}}, calls)
		require.Equal(t, 3, u.schema())

		calls = nil
		u, err = d.update("3.2.0-schema", Options{Full: transport.FullGo})
		require.NoError(t, err)
		d.settled(u, "2.7.0-schema")
		require.Empty(t, calls, "it reads from 5, and 3 is there")
		require.Equal(t, "migration", d.verdict().Reason)

		d = newDevice(t, "1.0.0", "")
		d.migrate = func(_, phase string, from, to int) error { return syscall.ENOSPC }
		u, err = d.update("2.7.0-schema", Options{})
		require.NoError(t, err)
		d.settled(u, "1.0.0")
		require.Equal(t, "migration", d.verdict().Reason)
		require.Zero(t, u.schema())
	})
}

// A plant whose network is down does not revert its updates, unless the release says
// that a system without network is a bad one.
func TestNetworkInTrial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for version, want := range map[string]string{"2.0.0": "2.0.0", "3.1.0-network": "1.0.0"} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			require.NoError(t, d.install(u, version, Options{}))
			d.linkUp = false
			u = d.start()
			d.settled(u, want)
			if want == "1.0.0" {
				require.Equal(t, "link", d.verdict().Check)
			}
		}
	})
}

// While the trial goes on, an operator may end it either way, and the device does
// that and nothing else.
func TestOperatorEndsTrial(t *testing.T) {
	for name, end := range map[string]func(*Updater) error{
		"by commit":   func(u *Updater) error { return u.Commit(ctx) },
		"by rollback": func(u *Updater) error { return u.Rollback(ctx, false) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				d.sick["2.0.0"] = "works"
				u := d.start()
				require.ErrorIs(t, u.Commit(ctx), ErrNotOnTrial)
				require.NoError(t, d.install(u, "2.0.0", Options{}))
				u = d.powerOn()
				done := make(chan error)
				go func() { done <- u.Resume(ctx) }()
				time.Sleep(3 * time.Second)
				synctest.Wait()
				require.ErrorIs(t, d.install(u, "4.0.0-full", Options{}), ErrBusy)
				require.NoError(t, end(u))
				require.NoError(t, <-done)
				if name == "by commit" {
					require.Empty(t, d.rebooting)
					d.settled(u, "2.0.0")
					require.Len(t, d.boil(), 1)
					return
				}
				require.NotEmpty(t, d.rebooting)
				d.settled(d.start(), "1.0.0")
				require.Equal(t, transport.ReasonOperator, d.verdict().Reason)
				require.Len(t, d.boil(), 1)
			})
		})
	}
}

// Shutting down in the middle of a trial is neither commit nor revert: the next boot
// is the next try.
func TestShutDownInTrial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u := d.powerOn()
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.ErrorIs(t, u.Resume(ctx), context.DeadlineExceeded)
		require.Equal(t, bootctl.B, d.record().Trying)
		require.Empty(t, d.verdicts)
		d.settled(d.start(), "2.0.0")
	})
}

// A system that dies in the middle of each of its tries cannot say why. The last lines of
// its log are with the verdict of the one that survives it.
func TestLogOfDeadTrial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		for range d.w.by["2.0.0"].m.Trial.Tries {
			u := d.powerOn()
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			require.ErrorIs(t, u.Resume(ctx), context.DeadlineExceeded)
			cancel()
		}
		d.settled(d.start(), "1.0.0")
		require.Equal(t, transport.Reverted, d.verdict().Result)
		require.Equal(t, []string{"line of 2.0.0"}, d.verdict().Log)
	})
}

// Held back, the trial waits for the next reboot, whoever restarts the program.
func TestHold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		require.NoError(t, d.install(u, "2.0.0", Options{Hold: true}))
		require.Empty(t, d.rebooting)
		require.Equal(t, bootctl.B, d.record().Trying)
		d.settled(d.start(), "2.0.0")
	})
}

// powerOnUnchecked starts the program of slot A, whatever the other slot is.
func (d *device) powerOnUnchecked() *Updater {
	d.slot, d.bootID = bootctl.A, "unchecked"
	u, err := New(d.parts(d.holds(bootctl.A)))
	require.NoError(d.t, err)
	return u
}

// When the watchdog's keeper says that the deadline is over, a trial is given up with
// that as its reason; a system that is not on trial is only restarted.
func TestExpired(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		require.NoError(t, u.Expired(context.DeadlineExceeded))
		require.NotEmpty(t, d.rebooting)
		require.Zero(t, d.ops())

		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u = d.powerOn()
		done := make(chan error)
		go func() { done <- u.Resume(ctx) }()
		time.Sleep(time.Second)
		require.NoError(t, u.Expired(context.DeadlineExceeded))
		require.NoError(t, <-done)
		d.settled(d.start(), "1.0.0")
		require.Equal(t, transport.ReasonDeadline, d.verdict().Reason)
	})
}

// A slot that has rotted since it was written is found out by looking at all of it.
func TestVerifySlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.powerOn()
		require.NoError(t, u.VerifySlot(ctx, bootctl.A))
		require.NoError(t, u.VerifySlot(ctx, bootctl.B))
		for _, disk := range []int{bootB, rootB} {
			d := newDevice(t, "1.0.0", "0.9.0")
			d.disks[disk].Flip(bootSize-1, 7)
			u := d.powerOnUnchecked()
			require.NoError(t, u.VerifySlot(ctx, bootctl.A))
			require.Error(t, u.VerifySlot(ctx, bootctl.B))
		}
		d = newDevice(t, "1.0.0", "")
		require.ErrorIs(t, d.powerOn().VerifySlot(ctx, bootctl.B), partition.ErrNoRecord)

		// What was written over the rot is in the cache, and never came to the medium.
		d = newDevice(t, "1.0.0", "0.9.0")
		whole := d.disks[rootB].Bytes()[:leaf]
		d.clear(rootB, 0, leaf)
		d.disks[rootB].Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: syscall.EIO})
		_, err := d.disks[rootB].WriteAt(whole, 0)
		require.NoError(t, err)
		require.ErrorIs(t, d.disks[rootB].Sync(), syscall.EIO)
		require.ErrorIs(t, d.powerOnUnchecked().VerifySlot(ctx, bootctl.B), ErrMismatch)
	})
}

// What the device says about itself, at each step of an update.
func TestState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		var phases []string
		d.onReport = func(s transport.State) {
			require.Equal(t, me, s.Device)
			require.Len(t, s.Slots, 2)
			line := s.Slot + " " + s.Phase + " " + s.Slots[0].Mark + "/" + s.Slots[1].Mark
			if len(phases) == 0 || phases[len(phases)-1] != line {
				phases = append(phases, line)
			}
		}
		_, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		require.Equal(t, []string{"a armed ok/trial", "b trial ok/trial", "b idle ok/ok"}, phases)
	})
}

// Whoever looks on while an update goes on gets answers, and changes nothing. (What
// this is about shows under the race detector.)
func TestOnlookers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		progress, end := u.Watch()
		ctx, stop := context.WithCancel(ctx)
		var looking sync.WaitGroup
		looking.Go(func() {
			for ctx.Err() == nil {
				_, _, _ = u.State(), u.Cost(), u.Last()
				u.Alive()
			}
		})
		err := d.install(u, "2.0.0", Options{})
		stop()
		looking.Wait()
		end()
		require.NoError(t, err)
		require.NotEmpty(t, progress)
		for range progress { // up to the end of it
		}
		end() // twice is once
		d.settled(d.start(), "2.0.0")
	})
}

// What a person sees of a long download adds up: bytes, rate and what is left, in each
// phase up to the whole. It is about this release and none before it, and goes on where it
// was interrupted. A message a second is enough.
func TestProgressAddsUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const pause = 700 * time.Millisecond
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		get := func(version string, reads int) error {
			d.progress = nil
			src := d.w.source(version)
			src.onRead = func(manifest.Digest, int64, []byte) error {
				time.Sleep(pause)
				if reads--; reads < 0 {
					return syscall.ECONNRESET
				}
				return nil
			}
			return u.Install(ctx, src, Options{Full: transport.FullGo})
		}
		require.ErrorIs(t, get("3.0.0", 5), syscall.ECONNRESET)
		require.ErrorIs(t, get("4.0.0-full", 6), syscall.ECONNRESET)
		from := u.journal().Update.Written["root.img"]
		require.Positive(t, from)
		begin := time.Now().Add(pause) // for the list of leaves
		require.NoError(t, get("4.0.0-full", 100))

		last := map[string]seen{}
		for _, p := range d.progress {
			require.Equal(t, string(d.w.by["4.0.0-full"].digest), p.Target)
			before, later := last[p.Phase]
			require.Greater(t, p.Done, before.Done)
			if later && p.Done < p.Total {
				require.GreaterOrEqual(t, p.when.Sub(before.when), time.Second)
			}
			if p.Phase == "writing root.img" {
				require.Equal(t, p.Done-from, p.Written+p.Skipped)
				require.Equal(t, int64(float64(p.Done-from)/p.when.Sub(begin).Seconds()), p.Rate)
				require.Equal(t, (p.Total-p.Done)/p.Rate, p.Left)
			}
			last[p.Phase] = p
		}
		require.Equal(t, u.Cost().Downloaded, last["writing root.img"].Downloaded)
		for _, phase := range []string{"writing root.img", "reading back boot.img", "reading back root.img"} {
			require.Positive(t, last[phase].Total, phase)
			require.Equal(t, last[phase].Total, last[phase].Done, phase)
		}

		d.progress = nil
		d.settled(d.start(), "4.0.0-full")
		window := int64(d.w.by["4.0.0-full"].m.Trial.WindowSeconds)
		for i, p := range d.progress {
			require.Equal(t, transport.Progress{Phase: "trial", Done: 2 * int64(i), Total: window, Left: window - 2*int64(i)}, p.Progress)
		}
		require.Len(t, d.progress, 2)
	})
}

// crowded is a boot record that notices when two are at it.
type crowded struct {
	bootctl.Store
	t testing.TB
	n *atomic.Int32
}

func (c crowded) alone() func() {
	if c.n.Add(1) != 1 {
		c.t.Error("two at the boot record")
	}
	runtime.Gosched() // lets others in, if they may
	return func() { c.n.Add(-1) }
}

func (c crowded) Load() (bootctl.Record, error) { defer c.alone()(); return c.Store.Load() }

func (c crowded) Save(r bootctl.Record) error { defer c.alone()(); return c.Store.Save(r) }

// Whoever looks at the boot record while it is saved waits: a copy that is half written
// would be shown as a garbled one.
func TestNobodyDisturbsTheRecord(t *testing.T) {
	d := newDevice(t, "1.0.0", "0.9.0")
	u := d.start()
	c := crowded{u.record.store, t, new(atomic.Int32)}
	u.record.store = c
	record := d.record()
	errs := make(chan error, 40)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { errs <- u.p.Record.Save(record) })
		all.Go(func() { errs <- u.VerifySlots(ctx) })
		all.Go(func() { u.Hold(func() { c.alone()() }) })
		all.Go(func() { u.State() })
	}
	all.Wait()
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
	d.clear(rootB, 0, 4096)
	require.ErrorIs(t, u.VerifySlots(ctx), ErrMismatch, "the other slot may boot, and is looked at")
}
