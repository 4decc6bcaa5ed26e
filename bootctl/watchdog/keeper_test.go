package watchdog

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// hardware is a Feeder that remembers when it was fed, and would have reset the
// machine after its timeout.
type hardware struct {
	start, fed time.Time
	longest    time.Duration
	fail       error
}

func newHardware() *hardware { now := time.Now(); return &hardware{start: now, fed: now} }

func (h *hardware) Feed() error {
	if h.fail != nil {
		return h.fail
	}
	now := time.Now()
	h.longest = max(h.longest, now.Sub(h.fed))
	h.fed = now
	return nil
}

// alive reports every half deadline until ctx is done or stop has passed.
func alive(ctx context.Context, c *Check, every, stop time.Duration) {
	end := time.After(stop)
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			return
		case <-time.After(every):
			c.Report()
		}
	}
}

const (
	timeout  = 60 * time.Second
	interval = timeout / 4
	forever  = 1000 * time.Hour
)

// A healthy system is fed in time for as long as it is healthy, and an hour
// after, nothing has come of it.
func TestKeeperFeedsHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardware()
		k := NewKeeper(h, time.Now)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go alive(ctx, k.Register("updater", 10*time.Second), 5*time.Second, forever)
		go alive(ctx, k.Register("link", time.Minute), 30*time.Second, forever)
		require.ErrorIs(t, k.Run(ctx, interval), context.DeadlineExceeded)
		require.LessOrEqual(t, h.longest, interval)
	})
}

// One check that stops reporting is enough: the feeding stops within one
// interval of its deadline, whatever the others say, and the reason names it.
func TestKeeperStopsForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardware()
		k := NewKeeper(h, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go alive(ctx, k.Register("updater", 10*time.Second), 5*time.Second, forever)
		go alive(ctx, k.Register("disk", 20*time.Second), 10*time.Second, 10*time.Minute)
		err := k.Run(ctx, interval)
		require.ErrorIs(t, err, ErrLate)
		require.ErrorContains(t, err, "disk: silent for")
		require.LessOrEqual(t, h.fed.Sub(h.start), 10*time.Minute+20*time.Second)

		// It is not fed behind anybody's back either.
		fed := h.fed
		time.Sleep(time.Hour)
		require.Equal(t, fed, h.fed)
	})
}

// A trial that nobody commits ends at its deadline although everything looks
// healthy, and nothing lifts it afterwards.
func TestKeeperTrialDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHardware()
		k := NewKeeper(h, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go alive(ctx, k.Register("updater", 10*time.Second), 5*time.Second, forever)
		k.StartTrial(10 * time.Minute)
		k.StartTrial(time.Hour) // a second start does not stretch it
		require.ErrorIs(t, k.Run(ctx, interval), ErrTrialOver)
		require.Less(t, h.fed.Sub(h.start), 10*time.Minute)
		require.ErrorIs(t, k.EndTrial(), ErrTrialOver)
		require.ErrorIs(t, k.Feed(), ErrTrialOver)
	})
}

// A second start of a trial may bring its deadline forward.
func TestKeeperTrialEarlier(t *testing.T) {
	now := time.Unix(0, 0)
	k := NewKeeper(newHardware(), func() time.Time { return now })
	k.Register("updater", 24*time.Hour)
	k.StartTrial(time.Hour)
	k.StartTrial(time.Minute)
	now = now.Add(time.Minute - 1)
	require.NoError(t, k.Feed())
	now = now.Add(1)
	require.ErrorIs(t, k.Feed(), ErrTrialOver)
}

// The end of one check leaves the others: the one that is stuck still counts.
func TestKeeperUnregistersItsOwn(t *testing.T) {
	now := time.Unix(0, 0)
	k := NewKeeper(newHardware(), func() time.Time { return now })
	k.Register("stuck", time.Minute)
	k.Register("finished", time.Hour).Unregister()
	now = now.Add(time.Minute)
	require.NoError(t, k.Feed())
	now = now.Add(1)
	require.ErrorIs(t, k.Feed(), ErrLate)
}

// A clock that steps back after the deadline does not give the trial more time.
func TestKeeperTrialClockBack(t *testing.T) {
	now := time.Unix(0, 0)
	h := newHardware()
	k := NewKeeper(h, func() time.Time { return now })
	k.Register("updater", time.Hour)
	k.StartTrial(time.Minute)
	require.NoError(t, k.Feed())
	now = now.Add(time.Minute)
	require.ErrorIs(t, k.Feed(), ErrTrialOver)
	now = now.Add(-time.Minute)
	require.ErrorIs(t, k.Feed(), ErrTrialOver)
}

// A commit lifts the deadline.
func TestKeeperCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKeeper(newHardware(), time.Now)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go alive(ctx, k.Register("updater", 10*time.Second), 5*time.Second, forever)
		k.StartTrial(10 * time.Minute)
		go func() {
			time.Sleep(5 * time.Minute)
			if err := k.EndTrial(); err != nil {
				t.Error(err)
			}
		}()
		require.ErrorIs(t, k.Run(ctx, interval), context.DeadlineExceeded)
	})
}

// There is no blind feeding: without checks, after the last one ended, and when
// the device fails, Run returns.
func TestKeeperNeverBlind(t *testing.T) {
	h := newHardware()
	k := NewKeeper(h, time.Now)
	require.ErrorIs(t, k.Run(t.Context(), interval), ErrNoChecks)
	c := k.Register("install", time.Hour)
	require.NoError(t, k.Feed())
	c.Unregister()
	c.Unregister()
	require.ErrorIs(t, k.Feed(), ErrNoChecks)

	k.Register("updater", time.Hour)
	h.fail = errors.New("gone")
	require.ErrorIs(t, k.Run(t.Context(), interval), h.fail)
}

// Shutting down ends the feeding; the timer itself runs on, so that a shutdown
// which hangs is reset.
func TestKeeperShutdown(t *testing.T) {
	cause := errors.New("going down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	h := newHardware()
	k := NewKeeper(h, time.Now)
	k.Register("updater", time.Hour)
	fed := h.fed
	require.ErrorIs(t, k.Run(ctx, interval), cause)
	require.Equal(t, fed, h.fed)
}

// Once a reboot has been asked for nothing is fed any more, however healthy the checks
// look: a shutdown that hangs ends with the watchdog.
func TestKeeperStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hw := newHardware()
		k := NewKeeper(hw, time.Now)
		k.Register("loop", time.Hour)
		require.NoError(t, k.Feed())
		k.Stop()
		require.ErrorIs(t, k.Feed(), ErrStopped)
		require.ErrorIs(t, k.Run(t.Context(), time.Second), ErrStopped)
	})
}
