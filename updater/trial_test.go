package updater

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// fed is a watchdog that only counts.
type fed struct{ times int }

func (f *fed) Feed() error { f.times++; return nil }

// guarded gives a system a watchdog and returns what ends the feeding of it.
func (u *Updater) guarded(t *testing.T) <-chan error {
	u.p.Keeper = watchdog.NewKeeper(&fed{}, time.Now)
	lives := u.p.Keeper.Register("core", 1000*time.Hour)
	ctx, stop := context.WithCancel(ctx)
	t.Cleanup(func() { lives.Unregister() })
	end := make(chan error, 1)
	go func() { end <- u.p.Keeper.Run(ctx, time.Second) }()
	t.Cleanup(stop)
	return end
}

// What programs do after a commit is no part of the trial. However long they take,
// whatever they do to the machine, the release is committed, the fleet has heard of it,
// and after a few attempts they are left alone.
func TestCleanUpCannotUndoCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.7.0-schema", Options{}))
		begun, dies := 0, true
		d.migrate = func(_, phase string, from, to int) error {
			if phase == "prepare" {
				return nil
			}
			begun++
			require.Equal(t, 0, from)
			require.Equal(t, transport.Committed, d.verdict().Result, "said before the hook runs")
			time.Sleep(hookTime)
			if dies {
				panic("the machine")
			}
			return context.DeadlineExceeded
		}
		for range 10 {
			u := d.powerOn()
			end := u.guarded(t)
			func() {
				defer func() { _ = recover() }()
				require.NoError(t, u.Resume(ctx))
			}()
			require.Empty(t, end, "the watchdog is fed")
			require.Equal(t, 3, u.schema())
			u.p.Keeper.Stop()
		}
		require.Equal(t, 3, begun)
		d.settled(d.start(), "2.7.0-schema")
		require.Len(t, d.boil(), 1)
	})
}

// A clean-up that fails is done again at the next start, with the schema of before.
func TestCleanUpIsRepeated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		var verbs []string
		d.handler = func(_ manifest.Image, verb string, stdin io.Reader) (bool, error) {
			verbs = append(verbs, verb)
			if verb == "write" {
				_, _ = io.Copy(io.Discard, stdin)
			}
			if verb == "commit" && len(verbs) < 4 {
				return false, errors.New("not now")
			}
			return false, nil
		}
		u, err := d.update("2.8.0-external", Options{})
		require.NoError(t, err)
		d.settled(u, "2.8.0-external")
		d.settled(d.start(), "2.8.0-external")
		d.settled(d.start(), "2.8.0-external")
		require.Equal(t, []string{"prepare", "write", "commit", "commit"}, verbs)
	})
}

// A step is stuck when it takes longer than its own program may, not before.
func TestSlowProgramsAreNotStuck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.7.0-schema", Options{}))
		d.migrate = func(_, _ string, _, _ int) error { time.Sleep(hookTime); return nil }
		u := d.powerOn()
		u.running.Manifest.Trial.DeadlineSeconds = 7200
		u.running.Manifest.Health[0].TimeoutSeconds = 600
		check := u.p.Check
		u.p.Check = func(ctx context.Context, c manifest.Check) health.Result {
			time.Sleep(time.Duration(c.TimeoutSeconds) * time.Second)
			return check(ctx, c)
		}
		end := u.guarded(t)
		require.NoError(t, u.Resume(ctx))
		require.Empty(t, end)
		d.settled(u, "2.7.0-schema")
		u.p.Keeper.Stop()
	})
}

// A program of the system that does not end is ended when its time is over, by the one
// who watches it, and the update goes its way.
func TestProgramsHaveTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.7.0-schema", Options{}))
		u := d.powerOn()
		u.running.Manifest.Trial.DeadlineSeconds = 7200
		u.p.Migrate = func(ctx context.Context, _, _ string, _, _ int) error { <-ctx.Done(); return ctx.Err() }
		begin, end := time.Now(), u.guarded(t)
		require.NoError(t, u.Resume(ctx))
		require.Empty(t, end)
		require.Equal(t, hookTime, time.Since(begin))
		u.p.Keeper.Stop()
		u = d.start()
		d.settled(u, "1.0.0")
		require.Equal(t, "migration", d.verdict().Reason)

		u.p.Handlers = stuck{}
		begin = time.Now()
		require.ErrorIs(t, d.install(u, "2.8.0-external", Options{}), context.DeadlineExceeded)
		require.Equal(t, handlerTime, time.Since(begin))
	})
}

// stuck is a handler that does not end by itself.
type stuck struct{}

func (stuck) Run(ctx context.Context, _ manifest.Manifest, _ manifest.Image, _ string, _ io.Reader) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

// The deadline of a trial counts from the boot. A program that is killed and started
// again in it does not get a new one.
func TestDeadlineCountsFromBoot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		d.sick["2.0.0"] = "works"
		boot := time.Now()
		u := d.powerOn()
		for d.rebooting == "" {
			require.Less(t, time.Since(boot), 12*time.Second, "for ever")
			u.p.Uptime = func() time.Duration { return time.Since(boot) }
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			_ = u.Resume(ctx)
			cancel()
			if d.rebooting == "" {
				var err error
				u, err = New(d.parts("2.0.0"))
				require.NoError(t, err)
			}
		}
		d.settled(d.start(), "1.0.0")

		// The watchdog has the same deadline.
		d = newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.7.0-schema", Options{}))
		d.migrate = func(_, _ string, _, _ int) error { time.Sleep(time.Minute); return nil }
		u = d.powerOn()
		u.p.Uptime = func() time.Duration { return 7 * time.Second }
		end := u.guarded(t)
		begin := time.Now()
		go func() { _ = u.Resume(ctx) }()
		require.ErrorIs(t, <-end, watchdog.ErrTrialOver)
		require.Equal(t, 3*time.Second, time.Since(begin))
		time.Sleep(time.Hour)
	})
}

// One good moment is not a good window, and the time before it does not count.
func TestWindowBeginsWhenAllIsWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u := d.powerOn()
		begin := time.Now()
		var rounds []time.Duration
		u.p.Check = func(_ context.Context, c manifest.Check) health.Result {
			if c.Name == "works" {
				rounds = append(rounds, time.Since(begin))
				time.Sleep(5 * time.Second) // the first round alone is longer than the window
			}
			return health.Result{OK: true}
		}
		u.running.Manifest.Trial.DeadlineSeconds = 60
		require.NoError(t, u.Resume(ctx))
		d.settled(u, "2.0.0")
		require.Len(t, rounds, 2)
	})
}

// A device that has no journal, new from the factory or without its data partition,
// still has the floor and the schema of the system that runs.
func TestFloorAndSchemaWithoutJournal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "2.5.0-epoch", "")
		u := d.start()
		require.EqualValues(t, 2, u.floor())
		require.ErrorIs(t, d.install(u, "2.6.0-again", Options{Force: true}), ErrEpoch)

		d = newDevice(t, "2.7.0-schema", "1.0.0")
		u = d.start()
		require.Equal(t, 3, u.schema())
		require.ErrorIs(t, u.Rollback(ctx, false), ErrNewerData)
		// In the trial too it is the schema of what was committed that counts.
		var from []int
		d.migrate = func(_, _ string, f, _ int) error { from = append(from, f); return nil }
		v := d.w.by["3.2.0-schema"].m.DataSchema
		require.Greater(t, v.ReadableFrom, 3)
		u, err := d.update("3.2.0-schema", Options{Full: transport.FullGo})
		require.NoError(t, err)
		d.settled(u, "2.7.0-schema")
		require.Empty(t, from)
		require.Equal(t, "migration", d.verdict().Reason)
	})
}

// A release that writes an older layout than the data has is refused, unless somebody
// insists; committing it does not make the data older.
func TestReleaseOfOlderData(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "2.7.0-schema", "")
		u := d.start()
		require.ErrorIs(t, d.install(u, "3.1.0-network", Options{}), ErrNewerData)
		require.True(t, permanent(ErrNewerData))
		require.NoError(t, d.install(u, "3.1.0-network", Options{Force: true}))
		u.change(func(j *journal.Journal) { j.DataSchema = 3 })
		u = d.start()
		d.settled(u, "3.1.0-network")
		require.Equal(t, 3, u.schema())
	})
}

// Going back to a system does not make the data older that the one after it left.
func TestRollbackKeepsSchema(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u, err := d.update("2.7.0-schema", Options{Full: transport.FullGo})
		require.NoError(t, err)
		require.ErrorIs(t, u.Rollback(ctx, false), ErrNewerData)
		require.NoError(t, u.Rollback(ctx, true))
		u = d.start()
		d.settled(u, "1.0.0")
		require.Equal(t, 3, u.schema())
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrNewerData)
	})
}

// An operator cannot commit a system whose data is not ready, and waits until it is.
func TestOperatorCommitsPreparedData(t *testing.T) {
	for _, fails := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			d := newDevice(t, "1.0.0", "")
			require.NoError(t, d.install(d.start(), "2.7.0-schema", Options{}))
			var calls []string
			d.migrate = func(_, phase string, _, _ int) error {
				calls = append(calls, phase)
				time.Sleep(5 * time.Second)
				if fails {
					return errors.New("no room")
				}
				return nil
			}
			u := d.powerOn()
			done := make(chan error)
			go func() { done <- u.Resume(ctx) }()
			synctest.Wait()
			err := u.Commit(ctx)
			require.NoError(t, <-done)
			if fails {
				require.ErrorContains(t, err, "no room")
				d.settled(d.start(), "1.0.0")
				require.Equal(t, []string{"prepare"}, calls)
				return
			}
			require.NoError(t, err)
			d.settled(u, "2.7.0-schema")
			require.Equal(t, []string{"prepare", "commit"}, calls)
		})
	}
}
