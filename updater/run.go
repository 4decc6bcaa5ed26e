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

// metadataTime bounds one update of the TUF metadata, which is a few files of some
// kilobytes. Whoever asks for it next has to wait for it.
const metadataTime = 2 * time.Minute

// Run follows the desired state until ctx ends. The state is level, not edge: whatever
// interrupted the last attempt, the device goes on until it runs what it should, or
// knows that it will not.
//
// It listens while it installs: who asked for a release must be able to ask for another
// one before the first has come over a slow link. That it listens, it proves to the
// watchdog: the device would be deaf without it.
func (u *Updater) Run(ctx context.Context, fleet Fleet) error {
	u.report()
	var (
		unheard    *transport.Want // a statement that could not be accepted yet
		hear, work = pause{}, pause{}
		doing      attempt
		garbled    int // answers to the same statement that nobody signed
		rest       pause
		cleaned    chan error // nil while nothing that was put off is being done
	)
	if u.pending() != nil {
		work.now()
	}
	// Waiting for messages is turning, too. accept takes longer than a turn, and is
	// watched by itself.
	loop := u.watch("main loop", stepTime)
	defer loop.done()
	turn := time.NewTicker(stepTime / 4)
	defer turn.Stop()
	for {
		loop.progress()
		if rest.c == nil && cleaned == nil && u.putOff() {
			rest.later()
		}
		select {
		case <-turn.C:
		case <-rest.c:
			rest.c, cleaned = nil, make(chan error, 1)
			go func(c chan<- error) { c <- u.cleanUp(ctx) }(cleaned)
		case err := <-cleaned:
			if cleaned = nil; err == nil {
				rest = pause{}
			}
		case <-ctx.Done():
			if doing.ended != nil {
				<-doing.ended // it has the same ctx, and keeps its place
			}
			if cleaned != nil {
				<-cleaned
			}
			return context.Cause(ctx)
		case want := <-fleet.Wants():
			unheard = &want
			hear.now()
		case <-hear.c:
			hear.c = nil
			loop.pause()
			err := u.accept(ctx, fleet, *unheard)
			loop.resume()
			if err != nil {
				u.setErr(err)
				u.p.Log.Warn("statement not accepted", "err", err)
				u.report()
				if !errors.Is(err, errStatement) {
					hear.later()
					continue
				}
			}
			unheard, garbled = nil, 0
			switch want := u.journal().Want; {
			case err != nil:
			case doing.ended == nil:
				u.abandon()
				work.now()
			case want.Manifest != doing.want.Manifest:
				doing.stop(ErrSuperseded)
			}
		case <-work.c:
			work.c = nil
			want := u.pending()
			if want == nil {
				continue
			}
			doing = u.attempt(ctx, fleet, *want)
		case err := <-doing.ended:
			doing.ended = nil
			doing.stop(nil)
			switch want := u.journal().Want; {
			case err == nil || ctx.Err() != nil:
			case want == nil || want.Counter != doing.want.Counter:
				work.now() // it was another that failed, or the same under other conditions
			case errors.Is(err, ErrInstalled):
				u.report()
			case permanent(err), errors.Is(err, ErrCancelled), unsound(err) && garbled+1 >= u.p.MaxBegun:
				u.refuse(doing.want, err)
			default:
				if unsound(err) {
					garbled++
				}
				rest := work.later()
				u.p.Log.Warn("installation interrupted, trying again later", "err", err, "after", rest)
			}
		}
	}
}

// attempt is one installation for the fleet.
type attempt struct {
	want  journal.Want
	ended chan error // nil when there is none, or its end was heard
	stop  context.CancelCauseFunc
}

func (u *Updater) attempt(ctx context.Context, fleet Fleet, want journal.Want) attempt {
	ctx, stop := context.WithCancelCause(ctx)
	a := attempt{want: want, ended: make(chan error, 1), stop: stop}
	go func() {
		o := Options{Force: want.Force, Online: true, Full: want.Full, Counter: want.Counter, Manifest: want.Manifest}
		a.ended <- u.Install(ctx, fleet.Source(want.Manifest), o)
	}()
	return a
}

// pause is a time-out that grows with every use, until something new happens.
type pause struct {
	c    <-chan time.Time // nil while nothing is to be done
	next time.Duration
}

// now ends the pause and begins the series anew.
func (p *pause) now() { p.c, p.next = time.After(0), retryFirst }

// later waits longer than the last time, and returns how long.
func (p *pause) later() time.Duration {
	rest := max(p.next, retryFirst)
	p.c, p.next = time.After(rest), min(2*rest, retryMost)
	return rest
}

// abandon gives up an installation that was interrupted, and that the desired state no
// longer asks for. One whose trial is armed already is not touched.
func (u *Updater) abandon() {
	if !u.busy.TryLock() {
		return // somebody is at it, by hand
	}
	defer u.busy.Unlock()
	j := u.journal()
	if j.Update == nil || j.Want == nil || j.Update.Manifest == j.Want.Manifest || State(j.State) != Writing && State(j.State) != Written {
		return
	}
	u.conclude(transport.Failed, "superseded", "", "release "+j.Want.Version+" was asked for instead")
}

// pending is the desired state that this device has not reached and may still reach.
func (u *Updater) pending() *journal.Want {
	j := u.journal()
	if u.down() || j.Want == nil || j.Want.Refused != "" || j.Want.Manifest == u.running.Digest {
		return nil
	}
	if _, failed := j.FailedBefore(j.Want.Manifest); failed && !j.Want.Force {
		return nil
	}
	return j.Want
}

// errStatement means that a statement will never be acted on, whatever changes. Any
// other error of accept may pass: the keys are not here yet, the disk is full, its time
// has not come. The link delivers a statement once, so it is kept and tried again.
var errStatement = errors.New("statement refused")

// accept verifies a statement and makes it the desired state. The one that is known
// already, which a broker repeats on every connection, changes nothing.
func (u *Updater) accept(ctx context.Context, fleet Fleet, want transport.Want) error {
	// Twice, since an installation may be at the metadata, too.
	defer u.watch("statement", 2*metadataTime+stepTime).done()
	keys, fresh, err := u.speakers(ctx, fleet)
	if err != nil {
		return fmt.Errorf("keys for statements: %w", err)
	}
	s, err := trust.VerifyStatement(want.Statement, keys, u.p.Device, u.trusted(), u.journal().Counter)
	if errors.Is(err, trust.ErrReplayed) {
		return nil
	}
	if err != nil {
		unsigned := errors.Is(err, trust.ErrSignature) || errors.Is(err, trust.ErrThreshold)
		if errors.Is(err, trust.ErrNotYet) || unsigned && !fresh {
			return fmt.Errorf("statement: %w", err)
		}
		return fmt.Errorf("%w: %w", errStatement, err)
	}
	if s.Kind != transport.KindDesired {
		return fmt.Errorf("%w: unknown kind %q", errStatement, s.Kind)
	}
	d, err := transport.ParseDesired(s.Body)
	if err != nil {
		return fmt.Errorf("%w: %w", errStatement, err)
	}
	// Counter and want in one write: a counter that is ahead would make the device
	// deaf to a statement that it never acted on.
	err = u.must(func(j *journal.Journal) {
		j.Counter = s.Counter
		j.TimeFloor = max(j.TimeFloor, s.Issued.Unix())
		j.Want = &journal.Want{Manifest: manifest.Digest(d.Manifest), Version: d.Version, Force: d.Force, Full: d.Full, Counter: s.Counter}
		if j.Update != nil && j.Update.Manifest == j.Want.Manifest {
			j.Update.Counter = s.Counter // whose verdict it will be
		}
	})
	if err != nil {
		return err
	}
	u.event("wanted", fmt.Sprintf("release %s, statement %d", d.Version, s.Counter))
	u.report()
	return nil
}

// speakers returns the keys that may sign statements. They are in the TUF metadata,
// which is fetched first: they may have been changed since. Without fresh metadata the
// keys known so far count; what these do not hold may still be signed by newer ones.
func (u *Updater) speakers(ctx context.Context, fleet Fleet) (keys trust.KeySet, fresh bool, err error) {
	u.tuf.Lock()
	defer u.tuf.Unlock()
	ctx, cancel := context.WithTimeout(ctx, metadataTime)
	defer cancel()
	err = u.p.TUF.Update(ctx, fleet.Source(""), trust.Options{Online: true, Now: u.trusted()})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.p.Log.Warn("TUF metadata not updated", "err", err)
	}
	fresh = err == nil
	keys, err = u.p.TUF.StatementKeys()
	return keys, fresh, err
}

// refuse ends a desired state that this device will not reach, with a verdict.
func (u *Updater) refuse(want journal.Want, err error) {
	if errors.Is(err, ErrNoDelta) && want.Full == transport.FullWait {
		u.p.Log.Warn("waiting for leave to download the whole images", "err", err)
		return
	}
	var verdict *journal.Verdict
	u.change(func(j *journal.Journal) {
		if j.Want != nil && j.Want.Counter == want.Counter {
			j.Want.Refused = err.Error()
		}
		up := &journal.Update{
			ID: u.p.NewID(), Manifest: want.Manifest, Version: want.Version, Slot: string(u.spare()),
			Counter: want.Counter, Started: u.p.Now().Unix(),
		}
		switch {
		case j.Update != nil && j.Update.Manifest == want.Manifest:
			up = j.Update
			j.State, j.Update = string(Idle), nil
			owe(j, *up)
		case j.Last != nil && j.Last.Counter == want.Counter:
			return // it had begun, and was concluded where it failed
		}
		verdict = &journal.Verdict{Update: *up, Result: transport.Refused, Ended: u.p.Now().Unix()}
		verdict.Reason, verdict.Detail = "refused", err.Error()
		j.Last = verdict
	})
	if verdict != nil {
		u.say(*verdict)
	}
	u.report()
}
