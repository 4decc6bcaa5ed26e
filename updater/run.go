package updater

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// Fleet is the other direction of the link: what the device should run, and where the
// bytes come from.
type Fleet interface {
	// Wants delivers the newest statement; only the newest is kept.
	Wants() <-chan transport.Want
	// Source returns the release with the manifest's digest; "" is for metadata only.
	Source(manifest.Digest) Source
}

// retry is how long a failed installation rests before it goes on.
const (
	retryFirst = 5 * time.Second
	retryMost  = 10 * time.Minute
)

// Run follows the desired state until ctx ends. The state is level, not edge: whatever
// interrupted the last attempt, the device goes on until it runs what it should, or
// knows that it will not.
func (u *Updater) Run(ctx context.Context, fleet Fleet) error {
	u.report()
	rest := retryFirst
	var again <-chan time.Time
	if u.pending() != nil {
		again = time.After(0)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case want := <-fleet.Wants():
			changed, err := u.accept(ctx, fleet, want)
			if err != nil {
				u.setErr(err)
				u.p.Log.Warn("statement not accepted", "err", err)
				u.report()
			}
			if changed || (err == nil && u.pending() != nil) {
				rest, again = retryFirst, time.After(0)
			}
		case <-again:
			again = nil
			want := u.pending()
			if want == nil {
				continue
			}
			o := Options{Force: want.Force, Online: true, Full: want.Full, Counter: want.Counter, Manifest: want.Manifest}
			err := u.Install(ctx, fleet.Source(want.Manifest), o)
			if err == nil || ctx.Err() != nil {
				continue
			}
			if errors.Is(err, ErrInstalled) {
				u.report()
				continue
			}
			if u.refuse(*want, err) {
				continue
			}
			u.p.Log.Warn("installation interrupted, trying again later", "err", err, "after", rest)
			again, rest = time.After(rest), min(2*rest, retryMost)
		}
	}
}

// pending is the desired state that this device has not reached and may still reach.
func (u *Updater) pending() *journal.Want {
	j := u.journal()
	if j.Want == nil || j.Want.Refused != "" || j.Want.Manifest == u.running.Digest {
		return nil
	}
	if _, failed := j.FailedBefore(j.Want.Manifest); failed && !j.Want.Force {
		return nil
	}
	return j.Want
}

// accept verifies a statement and makes it the desired state. changed is false for the
// one that is known already, which a broker repeats on every connection.
func (u *Updater) accept(ctx context.Context, fleet Fleet, want transport.Want) (changed bool, err error) {
	fetch, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	j := u.journal()
	// Who may make statements is in the TUF metadata, which is fetched first: keys
	// may have been changed since. Without fresh metadata the keys known so far count.
	u.tuf.Lock()
	if err := u.p.TUF.Update(fetch, fleet.Source(""), trust.Options{Online: true, Now: u.trusted()}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.p.Log.Warn("TUF metadata not updated", "err", err)
	}
	keys, err := u.p.TUF.StatementKeys()
	u.tuf.Unlock()
	if err != nil {
		return false, fmt.Errorf("keys for statements: %w", err)
	}
	s, err := trust.VerifyStatement(want.Statement, keys, u.p.Device, u.trusted(), j.Counter)
	if errors.Is(err, trust.ErrReplayed) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("statement: %w", err)
	}
	if s.Kind != transport.KindDesired {
		return false, fmt.Errorf("statement of unknown kind %q", s.Kind)
	}
	d, err := transport.ParseDesired(s.Body)
	if err != nil {
		return false, fmt.Errorf("statement: %w", err)
	}
	// Counter and want in one write: a counter that is ahead would make the device
	// deaf to a statement that it never acted on.
	err = u.must(func(j *journal.Journal) {
		j.Counter = s.Counter
		j.TimeFloor = max(j.TimeFloor, s.Issued.Unix())
		j.Want = &journal.Want{Manifest: manifest.Digest(d.Manifest), Version: d.Version, Force: d.Force, Full: d.Full, Counter: s.Counter}
	})
	if err != nil {
		return false, err
	}
	u.event("wanted", fmt.Sprintf("release %s, statement %d", d.Version, s.Counter))
	u.report()
	return true, nil
}

// refuse ends a desired state that this device will never reach, with a verdict.
// It reports whether it did; other errors pass with time.
func (u *Updater) refuse(want journal.Want, err error) bool {
	cancelled := errors.Is(err, ErrCancelled)
	if !cancelled && !permanent(err) && !errors.Is(err, trust.ErrNoTarget) && !errors.Is(err, trust.ErrMismatch) {
		return false
	}
	if errors.Is(err, ErrNoDelta) && want.Full == transport.FullWait {
		u.p.Log.Warn("waiting for leave to download the whole images", "err", err)
		return true
	}
	concluded := u.journal().Last
	u.change(func(j *journal.Journal) {
		if j.Want != nil && j.Want.Counter == want.Counter {
			j.Want.Refused = err.Error()
		}
		// An installation that had begun was concluded where it failed.
		if j.Update == nil && (concluded == nil || concluded.Counter != want.Counter) {
			j.Update = &journal.Update{
				ID: u.p.NewID(), Manifest: want.Manifest, Version: want.Version, Slot: string(u.spare()),
				Counter: want.Counter, Started: u.p.Now().Unix(),
			}
		}
	})
	if u.journal().Update != nil {
		u.conclude(transport.Refused, "refused", "", err.Error())
	}
	u.report()
	return true
}
