package watchdog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

var (
	// ErrLate means that a check did not report within its deadline; the error
	// names it and says by how much. The caller writes the reason down and
	// reboots, or, where it mended the cause, goes on feeding.
	ErrLate = errors.New("check is late")

	// ErrTrialOver means that the trial reached its deadline without a commit.
	// The Keeper never feeds again; the caller writes the reason down and
	// reboots.
	ErrTrialOver = errors.New("trial deadline has passed")

	// ErrNoChecks means that nothing was registered whose progress could be
	// proven. It is a fault of the calling program.
	ErrNoChecks = errors.New("no checks to feed the watchdog by")
)

// Feeder starts a timeout anew; Device is one.
type Feeder interface {
	Feed() error
}

// Keeper decides whether the watchdog is fed. It is safe for use by several
// goroutines.
type Keeper struct {
	feeder Feeder
	now    func() time.Time

	mu     sync.Mutex
	checks []*Check
	ended  bool      // Stop was called
	trial  time.Time // zero: no trial
	over   bool      // the trial's deadline was seen to pass
}

// Check is something whose progress is proven by reports.
type Check struct {
	keeper   *Keeper
	name     string
	deadline time.Duration
	last     time.Time
}

// ErrStopped means that Stop was called: the machine is on its way down, and the caller
// of Run has nothing more to do.
var ErrStopped = errors.New("no longer fed")

// Stop ends the feeding for good. It is called when a reboot has been asked for, so
// that one which hangs ends with the watchdog.
func (k *Keeper) Stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
}

// NewKeeper returns a Keeper that feeds f by the clock now, as a rule time.Now.
// The clock should be monotonic: a step of the wall clock must neither starve
// the watchdog nor stretch a trial.
func NewKeeper(f Feeder, now func() time.Time) *Keeper {
	return &Keeper{feeder: f, now: now}
}

// Register adds a check that has to report at least once per deadline, counted
// from now on. The deadline is what the thing needs when it is at its slowest
// and still healthy, so a reader of a report can take it for dead beyond.
func (k *Keeper) Register(name string, deadline time.Duration) *Check {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &Check{keeper: k, name: name, deadline: deadline, last: k.now()}
	k.checks = append(k.checks, c)
	return c
}

// Report says that the check has just seen progress.
func (c *Check) Report() {
	c.keeper.mu.Lock()
	defer c.keeper.mu.Unlock()
	c.last = c.keeper.now()
}

// Unregister ends the check: what it watched is finished, not stuck.
func (c *Check) Unregister() {
	c.keeper.mu.Lock()
	defer c.keeper.mu.Unlock()
	for i, other := range c.keeper.checks {
		if other == c {
			c.keeper.checks = append(c.keeper.checks[:i], c.keeper.checks[i+1:]...)
			return
		}
	}
}

// StartTrial sets the deadline of a trial: however healthy everything looks,
// nothing is fed after d from now unless EndTrial came before. A trial that is
// on keeps the earlier deadline.
func (k *Keeper) StartTrial(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	end := k.now().Add(d)
	if k.trial.IsZero() || end.Before(k.trial) {
		k.trial = end
	}
}

// EndTrial lifts the deadline, because the commit is durable. It is ErrTrialOver
// when the deadline has passed: the machine is on its way to a reset then, with
// the new slot committed.
func (k *Keeper) EndTrial() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.trialOver(k.now()); err != nil {
		return err
	}
	k.trial = time.Time{}
	return nil
}

// Feed feeds the watchdog once if everything allows it now, and otherwise says
// what does not: ErrTrialOver, ErrLate, ErrNoChecks or the device's error.
func (k *Keeper) Feed() error {
	k.mu.Lock()
	err := k.verdict(k.now())
	if k.ended {
		err = ErrStopped
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	return k.feeder.Feed()
}

// Run calls Feed at once and then every interval, a quarter of the device's
// timeout as a rule, until Feed fails or ctx is done. It returns Feed's error or
// ctx's cause. The timer runs on in both cases: whoever calls Run writes the
// reason down and reboots, and if that hangs, the watchdog does it.
func (k *Keeper) Run(ctx context.Context, interval time.Duration) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := k.Feed(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// verdict says why the watchdog must not be fed now, nil if it may.
func (k *Keeper) verdict(now time.Time) error {
	if err := k.trialOver(now); err != nil {
		return err
	}
	if len(k.checks) == 0 {
		return ErrNoChecks
	}
	for _, c := range k.checks {
		if silent := now.Sub(c.last); silent > c.deadline {
			return fmt.Errorf("%w: %s: silent for %v, allowed %v", ErrLate, c.name, silent.Round(time.Millisecond), c.deadline)
		}
	}
	return nil
}

// trialOver remembers that the deadline passed, so that nothing can lift it
// afterwards, not even a clock that steps back.
func (k *Keeper) trialOver(now time.Time) error {
	if !k.trial.IsZero() && !now.Before(k.trial) {
		k.over = true
	}
	if k.over {
		return ErrTrialOver
	}
	return nil
}
