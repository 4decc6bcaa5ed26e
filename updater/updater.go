// Package updater carries one update from announcement to commit or revert.
//
// The whole way, and where each part of it is:
//
//	message                           accept, run.go         whose word, for this device, not a replay
//	→ manifest → verify               Install, verify.go     whose word, for this board, newer, allowed
//	→ payload by cost                 choose.go, survey.go   a delta, what the slots lack, or all
//	→ delta apply → slot write        rebuild.go, write.go   into the spare slot, resumable
//	→ read back → slot record         finish.go              from the medium, past the caches
//	→ TPM measure → boot flip → reboot finish.go             ledger, journal, boot record, in this order
//	→ watchdog armed → health         trial.go               the new slot proves itself, or does not
//	→ commit, or revert with reason   trial.go, resume.go    and the verdict is kept until it is heard
//
// state.go is the table behind it: what the journal says, what the boot record says,
// and what to do about each pair after any power cut. Resume acts on it once per
// start of the program; Run then follows the fleet's desired state.
//
// Sizes and offsets are in bytes. The package knows no bootloader, no MQTT library
// and no TPM library: those come as the small interfaces in parts.go. What it writes
// is the spare slot, the boot record and the journal, nothing else.
package updater

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Updater is the core of one device. Its methods are safe for concurrent use; only
// one update runs at a time.
type Updater struct {
	p       Parts
	running Running
	record  *oneAtATime // is p.Record

	busy  sync.Mutex                 // held by whoever changes slots
	lists map[manifest.Digest][]byte // the leaf digests that it has fetched, by tree; nil outside of an installation

	tuf sync.Mutex // guards Parts.TUF, which an installation and a statement may both ask

	deciding sync.Mutex // held by whoever ends the trial of the running slot
	decided  bool       // it has ended

	preparing  turn // of whoever makes the kept data ready for the trial
	prepared   bool
	unprepared error // why it is not ready, if it was tried

	cleaning turn // of whoever has programs clean up after a commit

	mu     sync.Mutex // guards the rest
	j      journal.Journal
	cancel context.CancelCauseFunc
	// stopChecks ends the health checks of a trial that an operator decides.
	stopChecks context.CancelFunc
	lastErr    string
	alarm      string
	rebooting  bool            // a restart was asked for
	sequence   uint64          // of events in this boot
	fetching   manifest.Digest // the release that an installation is at
	unbooked   int64           // bytes downloaded for it before there was an update to book them on
	meter      meter
	watchers   map[chan transport.Progress]struct{}
}

// Running is the system that runs, from its own slot record.
type Running struct {
	Slot     bootctl.Slot
	Manifest manifest.Manifest
	Digest   manifest.Digest
}

// oneAtATime is a boot record that several goroutines may ask for; a bootctl.Store is
// for one. Its medium has to answer.
type oneAtATime struct {
	mu    sync.Mutex
	store bootctl.Store
	watch func(name string, limit time.Duration) *step
	saved bootctl.Record // by this program; the zero value where a save failed, or there was none
}

func (o *oneAtATime) Load() (bootctl.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.watch("reading the boot record", stepTime).done()
	return o.store.Load()
}

func (o *oneAtATime) Save(r bootctl.Record) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.watch("writing the boot record", stepTime).done()
	o.saved = bootctl.Record{}
	err := o.store.Save(r)
	if err == nil {
		o.saved = r
	}
	return err
}

// keeps tells whether r is what this program itself saved last, synced and read back.
func (o *oneAtATime) keeps(r bootctl.Record) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.saved.Same(r)
}

// turn is a lock that is held for minutes, while a program of the system runs.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) end() { <-t }

// New joins the core to the parts of its device. It reads the journal and the
// running slot's record, and writes nothing.
//
// The record of the running slot must be signed by a key of this system: the first
// program checked that before it started the system, and an updater that finds it
// different is on another machine than it thinks.
func New(p Parts) (*Updater, error) {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	slot := bootctl.Slot(p.Boot.Slot)
	if !slot.Valid() {
		return nil, fmt.Errorf("running slot %q: %w", p.Boot.Slot, bootctl.ErrInvalid)
	}
	m, digest, _, err := p.held(slot)
	if err != nil {
		return nil, fmt.Errorf("running slot %s: %w", slot, err)
	}
	u := &Updater{p: p, running: Running{Slot: slot, Manifest: m, Digest: digest}, watchers: map[chan transport.Progress]struct{}{}, preparing: make(turn, 1), cleaning: make(turn, 1)}
	u.record = &oneAtATime{store: p.Record, watch: u.watch}
	u.p.Record = u.record
	u.j, err = journal.Load(p.Store)
	if err != nil {
		// A hint that is lost costs a repeated download, never the device.
		p.Log.Warn("journal not read, going on without", "err", err)
		u.lastErr = err.Error()
	}
	return u, nil
}

// Options say how much an installation may do.
type Options struct {
	Force   bool   // also a release that failed here, was tried too often or is not newer; never below the floor of epochs
	Online  bool   // the source can keep TUF timestamp and snapshot fresh
	Full    string // transport.FullFail, FullWait or FullGo, where neither delta nor index spares the whole images; "" is FullFail
	Counter uint64 // of the statement that asked for it
	Hold    bool   // stop before the reboot; the next reboot starts the trial
	// Manifest is the digest of the release that is asked for; "" takes what the
	// source has.
	Manifest manifest.Digest
}

// Install brings the release in src into the spare slot and reboots into its trial.
//
// Nil means that the trial is armed and the reboot has been asked for. After an
// error the running slot is as it was and still boots; what was written is kept,
// and installing the same release again goes on there. Errors that the caller may
// tell apart are in errors.go.
func (u *Updater) Install(ctx context.Context, src Source, o Options) (err error) {
	unlock, err := u.claim()
	if err != nil {
		return err
	}
	defer unlock()
	ctx, done := u.cancellable(ctx)
	defer done()
	u.lists = map[manifest.Digest][]byte{}
	defer func() { u.lists = nil }()
	defer func() {
		// Before the first byte is written too: who asks must not take it for a link that broke.
		for _, why := range []error{ErrCancelled, ErrSuperseded} {
			if err != nil && context.Cause(ctx) == why && !errors.Is(err, why) {
				err = fmt.Errorf("%w: %w", why, err)
			}
		}
	}()

	rel, err := u.verify(ctx, src, o)
	if err != nil {
		return fmt.Errorf("verify release: %w", err)
	}
	if err := u.admit(rel, o); err != nil {
		return fmt.Errorf("release %s: %w", rel, err)
	}
	u.fetches(rel.digest)
	payloads, err := u.choose(ctx, src, rel, o)
	if err != nil {
		return fmt.Errorf("release %s: %w", rel, err)
	}
	if err := u.begin(ctx, rel, o); err != nil {
		return fmt.Errorf("prepare slot %s: %w", u.spare(), err)
	}
	for _, p := range payloads {
		if err := u.bring(ctx, src, p, o); err != nil {
			return u.interrupted(ctx, rel, fmt.Errorf("write %s of %s to slot %s: %w", p.image.Name, rel, u.spare(), err))
		}
	}
	if err := u.finish(ctx, src, rel); err != nil {
		return u.interrupted(ctx, rel, fmt.Errorf("finish %s in slot %s: %w", rel, u.spare(), err))
	}
	if o.Hold {
		return nil
	}
	return u.reboot("start the trial of " + rel.String())
}

// claim takes the slots for one piece of work, against this process and all others,
// until the returned function is called. It is ErrBusy if they are taken, and
// ErrRebooting if the machine is on its way down.
func (u *Updater) claim() (func(), error) {
	if !u.busy.TryLock() {
		return nil, ErrBusy
	}
	unlock, err := u.p.Lock()
	if err == nil && u.down() {
		unlock()
		err = ErrRebooting
	}
	if err != nil {
		u.busy.Unlock()
		return nil, err
	}
	return func() {
		unlock()
		u.busy.Unlock()
	}, nil
}

// spare is the slot that does not run: the only one that is ever written.
func (u *Updater) spare() bootctl.Slot { return u.running.Slot.Other() }

// cancellable lets Cancel end what runs under the returned context.
func (u *Updater) cancellable(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	u.mu.Lock()
	u.cancel = cancel
	u.mu.Unlock()
	return ctx, func() {
		u.mu.Lock()
		u.cancel = nil
		u.mu.Unlock()
		cancel(nil)
	}
}

// Cancel ends the installation that runs, if there is one, and gives it up: the
// spare slot stays invalid, and nothing is tried again by itself. A trial is not
// cancelled but reverted.
func (u *Updater) Cancel() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cancel == nil {
		return ErrNotInstalling
	}
	u.cancel(ErrCancelled)
	return nil
}

// interrupted files an installation that did not get to its trial. One that was
// merely interrupted (the link, the power, a signal) keeps its place; one that was
// cancelled, is no longer wanted or cannot succeed is given up and reported.
func (u *Updater) interrupted(ctx context.Context, rel release, err error) error {
	u.setErr(err)
	switch {
	case errors.Is(context.Cause(ctx), ErrCancelled):
		err = fmt.Errorf("%w: %w", ErrCancelled, err)
		u.conclude(transport.Failed, transport.ReasonOperator, "", "cancelled")
	case errors.Is(context.Cause(ctx), ErrSuperseded):
		err = fmt.Errorf("%w: %w", ErrSuperseded, err)
		u.conclude(transport.Failed, "superseded", "", ErrSuperseded.Error())
	case ctx.Err() != nil:
		// Shutting down. The journal knows where to go on.
		return err
	case errors.Is(err, ErrBase):
		// Nothing is wrong with the release. With leave for the whole images it goes on.
		return err
	case permanent(err):
		// In one write: a release that is known to fail and still being installed would
		// neither go on nor be reported.
		u.conclude(transport.Failed, "install", "", err.Error(), func(j *journal.Journal) {
			j.Fail(journal.Failure{Manifest: rel.digest, Version: rel.m.Version, Reason: err.Error()})
		})
	default:
		return err
	}
	_ = u.cleanUp(context.WithoutCancel(ctx))
	return err
}

// conclude ends the update in the journal, with what else has to be in it by then, and
// reports its verdict, once. What its programs have to do about it is for cleanUp.
func (u *Updater) conclude(result, reason, check, detail string, also ...func(*journal.Journal)) {
	var last *journal.Verdict
	u.change(func(j *journal.Journal) {
		for _, f := range also {
			f(j)
		}
		if j.Update == nil {
			return
		}
		v := journal.Verdict{Update: *j.Update, Result: result, Ended: u.p.Now().Unix()}
		if result == transport.Committed {
			// The count is lost with a journal that could not be written. One it was, if it was a trial.
			v.Used = max(v.Used, min(v.Tries, 1))
		}
		v.Tries = v.Used
		if v.Reason == "" {
			v.Reason = reason
		}
		if v.Check == "" {
			v.Check = check
		}
		if v.Detail == "" {
			v.Detail = detail
		}
		j.State, j.Update, j.Last = string(Idle), nil, &v
		if result != transport.Committed {
			owe(j, v.Update)
		}
		last = &v
	})
	if last == nil {
		return
	}
	u.say(*last)
	u.report()
}

// say hands a verdict to the link.
func (u *Updater) say(v journal.Verdict) {
	u.p.Log.Info("update ended", "result", v.Result, "release", v.Version, "reason", v.Reason, "check", v.Check, "detail", v.Detail)
	if err := u.p.Link.Verdict(u.verdict(v)); err != nil {
		u.p.Log.Debug("verdict waits for a connection", "err", err)
	}
}

// change applies f to the journal and saves it. A journal that cannot be saved is
// said and survived: it is a hint.
func (u *Updater) change(f func(*journal.Journal)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(&u.j)
	if err := journal.Save(u.p.Store, u.j); err != nil {
		u.lastErr = err.Error()
		u.p.Log.Error("journal not saved", "err", err)
	}
}

// note applies f to the journal and leaves it to the next change to save it: what is lost
// with the power is not worth a write of its own.
func (u *Updater) note(f func(*journal.Journal)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(&u.j)
}

// must is change for the few lines whose order against something else matters. After
// an error the core goes on with the journal as it was.
func (u *Updater) must(f func(*journal.Journal)) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	next := u.j.Clone()
	f(&next)
	if err := journal.Save(u.p.Store, next); err != nil {
		return err
	}
	u.j = next
	return nil
}

// journal returns a copy to read from.
func (u *Updater) journal() journal.Journal {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.j.Clone()
}

func (u *Updater) setErr(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lastErr = err.Error()
}

// Rebooting begins the phase of the last progress before the machine goes down.
const Rebooting = "rebooting"

// reboot asks for a restart. From then on nothing is installed: the machine may stay up
// for a while, and a slot whose trial is armed must not be written to again.
func (u *Updater) reboot(why string) error {
	u.event(Rebooting, why)
	u.p.Log.Info("rebooting", "why", why)
	set := func(on bool) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.rebooting = on
	}
	set(true)
	if err := u.p.Reboot(why); err != nil {
		set(false)
		return fmt.Errorf("reboot: %w", err)
	}
	return nil
}

// down tells whether a restart was asked for.
func (u *Updater) down() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rebooting
}

// trusted is the lower bound of the time that expiry counts against.
func (u *Updater) trusted() time.Time {
	if floor := u.journal().TimeFloor; floor > 0 {
		return time.Unix(floor, 0)
	}
	return time.Time{}
}
