// Package bootctl holds the record that the bootloader and the updater share:
// which slot is good, whether another one is on trial, and how many boots that
// trial has left.
//
// The record lives in the bootloader's own storage and is the truth about what
// boots next; whatever the updater keeps elsewhere is a hint. The package itself
// is values without I/O: a method takes a record and returns the next one, and
// saving it is somebody else's line. The packages below it speak one
// bootloader's native format each (bootctl/grubenv), bootctl/boottest has the
// model of a loader that they are tested against, and bootctl/watchdog the timer
// that ends a trial which hangs.
//
// The life of the spare slot, with slot A good:
//
//	Invalidate(b)   B is bad: it is about to be written and must not boot
//	Try(b, 3)       B is whole and verified: boot it at most three times
//	                (before each of them the loader takes one try away)
//	Commit(b)       B proved itself: B is good; A stays bootable behind it
//	Revert()        B did not: B is bad, A is good as before
//
// Rules that every state of a record keeps, and that Check verifies: the good
// slot is not bad; a slot on trial is neither good nor bad; tries are counted
// only during a trial, so that power cycles of a committed system cost nothing.
// A trial whose tries are used up still has a name in Trying: the slot may be
// running its last try, and if the other one runs, the trial has ended.
package bootctl

import (
	"errors"
	"fmt"
)

// MaxTries is the most boots that a trial may have: the largest count that
// every backend can hold (a loader's script counts in one decimal digit).
const MaxTries = 9

var (
	// ErrNoRecord means that no copy of the record is whole. The storage was
	// never provisioned or is failing. The record that comes with it has at most
	// Confirmed set; nothing may be written to any slot on the strength of it.
	ErrNoRecord = errors.New("no valid boot record")

	// ErrGoodSlot means that the operation would take the good slot away. The
	// caller has confused the running slot with the spare one and must stop.
	ErrGoodSlot = errors.New("this is the good slot")

	// ErrTrial means that the slot's trial has begun and would be given more
	// boots. The caller ends the trial first: Commit, Revert or Invalidate.
	ErrTrial = errors.New("a trial has begun already")

	// ErrNoTrial means that the slot is not on trial. A caller that resumes after
	// a power cut may find its work done; any other caller must stop.
	ErrNoTrial = errors.New("slot is not on trial")

	// ErrInvalid means that the record, a slot's name or a number of tries is
	// none that a loader could act on. It is a fault of the calling program.
	ErrInvalid = errors.New("invalid boot record")
)

// Slot is one of the two systems of a device: "a" or "b". The empty Slot means
// none.
type Slot string

// The two slots.
const (
	A Slot = "a"
	B Slot = "b"
)

// Valid tells whether s names a slot.
func (s Slot) Valid() bool { return s == A || s == B }

// Other returns the slot beside s, and none for what is no slot.
func (s Slot) Other() Slot {
	switch s {
	case A:
		return B
	case B:
		return A
	}
	return ""
}

// Mark says whether a slot may boot at all.
type Mark string

const (
	// Bad means that the slot's content is not, or no longer, known to be a whole
	// verified image. The loader never boots it.
	Bad Mark = "bad"
	// OK means that the slot holds a whole verified image.
	OK Mark = "ok"
)

// Record is what the loader decides by. Records are compared with Same.
type Record struct {
	Good   Slot // the slot that boots unless a trial is on
	Trying Slot // the slot on trial; "" if none
	Tries  int  // boots that the trial has left, 0..MaxTries; 0 without a trial
	A, B   Mark

	// Confirmed is the good slot according to the copy that is written only at
	// commit; "" if that copy is not whole. Load sets it, Save ignores it and
	// leaves that copy naming Good.
	Confirmed Slot
	// Degraded lists what is not as it should be in the storage although the
	// record could be read: a garbled copy, a stale confirmed copy. Load sets
	// it; the next Save repairs what can be repaired.
	Degraded []error
}

// Mark returns the mark of slot s.
func (r Record) Mark(s Slot) Mark {
	switch s {
	case A:
		return r.A
	case B:
		return r.B
	}
	return Bad
}

func (r *Record) mark(s Slot, m Mark) {
	switch s {
	case A:
		r.A = m
	case B:
		r.B = m
	}
}

// Same tells whether r and o mean the same to the loader; it does not look at
// Confirmed and Degraded, which describe the storage.
func (r Record) Same(o Record) bool {
	return r.Good == o.Good && r.Trying == o.Trying && r.Tries == o.Tries && r.A == o.A && r.B == o.B
}

// String describes the record for people, as in "slot a good, slot b on trial
// (2 tries left)".
func (r Record) String() string {
	if !r.Good.Valid() {
		return "no record"
	}
	other := r.Good.Other()
	switch {
	case r.Trying != "":
		return fmt.Sprintf("slot %s good, slot %s on trial (%d tries left)", r.Good, r.Trying, r.Tries)
	case r.Mark(other) == OK:
		return fmt.Sprintf("slot %s good, slot %s ok", r.Good, other)
	}
	return fmt.Sprintf("slot %s good, slot %s bad", r.Good, other)
}

// Check tells whether r keeps the rules in the package comment; the error wraps
// ErrInvalid and names the rule.
func (r Record) Check() error {
	switch {
	case !r.Good.Valid():
		return fmt.Errorf("%w: good slot %q", ErrInvalid, r.Good)
	case r.A != OK && r.A != Bad, r.B != OK && r.B != Bad:
		return fmt.Errorf("%w: marks %q and %q", ErrInvalid, r.A, r.B)
	case r.Mark(r.Good) != OK:
		return fmt.Errorf("%w: good slot %s is marked bad", ErrInvalid, r.Good)
	case r.Trying == "" && r.Tries != 0:
		return fmt.Errorf("%w: %d tries without a trial", ErrInvalid, r.Tries)
	case r.Trying == "":
		return nil
	case r.Trying != r.Good.Other():
		return fmt.Errorf("%w: slot %q on trial while slot %s is good", ErrInvalid, r.Trying, r.Good)
	case r.Mark(r.Trying) != OK:
		return fmt.Errorf("%w: slot %s is on trial and marked bad", ErrInvalid, r.Trying)
	case r.Tries < 0 || r.Tries > MaxTries:
		return fmt.Errorf("%w: %d tries", ErrInvalid, r.Tries)
	}
	return nil
}

// Invalidate marks the spare slot s bad, which ends a trial of it. It comes
// before the first byte is written to the slot. Doing it twice is harmless.
// The good slot is refused with ErrGoodSlot.
func (r Record) Invalidate(s Slot) (Record, error) {
	if err := r.spare(s); err != nil {
		return r, fmt.Errorf("invalidate slot %s: %w", s, err)
	}
	r.mark(s, Bad)
	r.Trying, r.Tries = "", 0
	return r, nil
}

// Try puts the spare slot s on trial for the given number of boots,
// 1..MaxTries. It is the caller's word that s holds a whole verified image.
//
// A trial that has lost a try is never given it back: ErrTrial. Repeating the
// very same Try before the first boot is harmless.
func (r Record) Try(s Slot, tries int) (Record, error) {
	if err := r.spare(s); err != nil {
		return r, fmt.Errorf("try slot %s: %w", s, err)
	}
	if tries < 1 || tries > MaxTries {
		return r, fmt.Errorf("try slot %s: %w: %d tries, want 1 to %d", s, ErrInvalid, tries, MaxTries)
	}
	if r.Trying == s && r.Tries != tries {
		return r, fmt.Errorf("try slot %s: %w, %d tries left", s, ErrTrial, r.Tries)
	}
	r.mark(s, OK)
	r.Trying, r.Tries = s, tries
	return r, nil
}

// Commit ends the trial of slot s: s becomes the good slot. The other slot keeps
// its mark, so that the loader can still fall back to it if s does not load.
// Committing the good slot while no trial is on changes nothing; any other slot
// is refused with ErrNoTrial.
func (r Record) Commit(s Slot) (Record, error) {
	if err := r.Check(); err != nil {
		return r, fmt.Errorf("commit slot %s: %w", s, err)
	}
	switch {
	case r.Trying == "" && s == r.Good:
		return r, nil
	case r.Trying == "" || s != r.Trying:
		return r, fmt.Errorf("commit slot %s: %w", s, ErrNoTrial)
	}
	r.Good = s
	r.Trying, r.Tries = "", 0
	return r, nil
}

// Revert ends the trial in the other way: the slot on trial becomes bad, the
// good slot stays. Without a trial it is ErrNoTrial.
func (r Record) Revert() (Record, error) {
	if err := r.Check(); err != nil {
		return r, fmt.Errorf("revert: %w", err)
	}
	if r.Trying == "" {
		return r, fmt.Errorf("revert: %w", ErrNoTrial)
	}
	return r.Invalidate(r.Trying)
}

// spare tells whether s may be taken away: r is sound, and s is the slot beside
// the good one.
func (r Record) spare(s Slot) error {
	if err := r.Check(); err != nil {
		return err
	}
	switch {
	case s == r.Good:
		return ErrGoodSlot
	case !s.Valid():
		return fmt.Errorf("%w: no such slot", ErrInvalid)
	}
	return nil
}

// Store keeps the record where the bootloader finds it.
type Store interface {
	// Load returns the record that the bootloader would act on now. It never
	// writes. ErrNoRecord means that there is none; the record returned with it
	// may still have Confirmed.
	Load() (Record, error)

	// Save makes r the record in effect, and the confirmed copy name r.Good.
	// On nil, r is on the medium and was read back from it.
	// After an error, the old or the new record is in effect.
	// Calling it again with the same record is safe.
	Save(r Record) error
}
