package tpm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// LedgerIndex is the NV index of the ledger unless the board states another, in
// the range that the TCG leaves to owners.
const LedgerIndex = 0x01805400

var (
	// ErrLedgerMismatch means that the log does not lead to what the TPM holds:
	// log lost, TPM cleared, or somebody tampered. Nothing is extended in this
	// state. Callers report it, go on with the update, and leave it to a person
	// to call Adopt.
	ErrLedgerMismatch = errors.New("ledger log and TPM disagree")

	// ErrNoLog means that no copy of the log can be written. Nothing was extended.
	ErrNoLog = errors.New("no copy of the ledger log can be written")
)

// Ledger is the list of all installs, kept by the hardware.
//
// The NV index holds one value, the log the entries that lead to it. Extending is
// not idempotent and cannot be undone, so an entry goes to the logs first;
// whether it also reached the TPM is seen by comparing the TPM's value with the
// entry's values before and after. There is no mark "done" that could be lost.
type Ledger struct {
	nv   index
	logs []Log
	now  func() time.Time
}

// index is an extendIndex, or a pretended one in a test.
type index interface {
	// value is the present value, zero if never extended.
	value() (Digest, error)
	// extend makes it SHA-256(value ‖ data). After an error it may have.
	extend(data Digest) error
}

// LedgerOptions say where a ledger is.
type LedgerOptions struct {
	// Logs are the copies of the log, at least one. Where two claim different last
	// entries the earlier one in this list is believed: put the copy that is hardest
	// to lose first.
	Logs []Log
	// Index is the NV index; 0 means LedgerIndex.
	Index uint32
	// OwnerAuth authorises the TPM's owner to define the index, which is needed once.
	OwnerAuth []byte
	// Now dates the entries; nil means time.Now. Nothing relies on it.
	Now func() time.Time
}

// Ledger opens the ledger. It neither reads nor writes anything yet.
func (t *TPM) Ledger(o LedgerOptions) *Ledger {
	if o.Index == 0 {
		o.Index = LedgerIndex
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Ledger{nv: extendIndex{t.t, tpm2.TPMHandle(o.Index), o.OwnerAuth}, logs: o.Logs, now: o.Now}
}

// Install is Add for an attempt whose name is a text.
func (l *Ledger) Install(id string, digest [sha256.Size]byte) error {
	name := sha256.Sum256([]byte(id))
	return l.Add(digest, [16]byte(name[:16]))
}

// Add enters the install of the manifest with this digest. install names the
// attempt: the same attempt is entered once however often Add is called, as long as
// the log still has it.
//
// nil guarantees that the TPM holds the entry and that at least one copy of the
// log does; the others are mended at the next opportunity. After an error the entry may
// or may not be in the ledger. Add with the same arguments is safe to repeat and
// finishes it.
func (l *Ledger) Add(digest Digest, install [16]byte) error {
	h, err := l.resume()
	if err != nil {
		return err
	}
	for _, e := range h.done {
		if !e.Adopted && e.Install == install && e.Digest == digest {
			return nil
		}
	}
	e := Entry{
		Sequence: h.next(), Digest: digest, Install: install, Time: l.now().Unix(),
		Before: h.value, After: Extended(h.value, digest),
	}
	// Both copies are durable before the TPM is asked. A power cut before leaves an
	// entry whose Before is the TPM's value, or none; a cut after, one whose
	// After is. Resume tells them apart.
	if err := l.write(e); err != nil {
		return err
	}
	return l.extend(e)
}

// Resume finishes an entry that a power cut interrupted, exactly once, and mends
// the copies of the log. To be called before other use after each boot;
// repeating it is safe.
func (l *Ledger) Resume() error {
	_, err := l.resume()
	return err
}

// Adopt starts a new history from whatever the TPM holds, after
// ErrLedgerMismatch. It extends nothing, and the log shows it for ever.
// Without a mismatch it does nothing. It is safe to repeat.
func (l *Ledger) Adopt() error {
	h, err := l.history()
	if err != nil {
		return err
	}
	if !h.mismatch {
		return nil
	}
	return l.write(Entry{Sequence: h.next(), Adopted: true, Time: l.now().Unix(), Before: h.value, After: h.value})
}

func (l *Ledger) resume() (history, error) {
	h, err := l.history()
	if err != nil {
		return h, err
	}
	if h.mismatch {
		return h, fmt.Errorf("TPM holds %s: %w", h.value, ErrLedgerMismatch)
	}
	if h.pending != nil {
		// The copy that has not seen the intent gets it first: if the one that
		// has is lost after the TPM was extended, nothing could explain the value.
		l.mend(append(h.done, *h.pending))
		if err := l.extend(*h.pending); err != nil {
			return h, err
		}
		return l.history()
	}
	l.mend(h.done)
	return h, nil
}

// extend brings a logged entry into the TPM and looks whether it is there.
func (l *Ledger) extend(e Entry) error {
	if err := l.nv.extend(e.Digest); err != nil {
		return fmt.Errorf("enter install in ledger: %w", err)
	}
	got, err := l.nv.value()
	if err != nil {
		return err
	}
	if got != e.After {
		return fmt.Errorf("TPM holds %s, expected %s: %w", got, e.After, ErrLedgerMismatch)
	}
	return nil
}

// write puts e into every copy of the log. One that cannot be written is no
// reason to stop: that is what the other is for.
func (l *Ledger) write(e Entry) error {
	var errs []error
	for i, log := range l.logs {
		if err := writeEntry(log, e); err != nil {
			errs = append(errs, fmt.Errorf("write ledger log %d: %w", i, err))
		}
	}
	if len(errs) == len(l.logs) {
		return errors.Join(append(errs, ErrNoLog)...)
	}
	return nil
}

// mend writes entries that a copy lacks. Errors are left to Check, which sees
// the entry missing: a bad copy must not stop an install.
func (l *Ledger) mend(entries []Entry) {
	for _, log := range l.logs {
		has := map[Entry]bool{}
		there, _ := readLog(log)
		for _, e := range there {
			has[e] = true
		}
		slots := int(log.Size() / entrySize)
		for _, e := range entries[max(0, len(entries)-slots):] {
			if !has[e] {
				if err := writeEntry(log, e); err != nil {
					break
				}
			}
		}
	}
}

// history is what logs and TPM say together.
type history struct {
	value    Digest   // of the TPM
	done     []Entry  // that lead to value without a gap, oldest first
	pending  *Entry   // logged, not yet in the TPM
	newest   *Entry   // the highest sequence in any log
	mismatch bool     // neither explains value
	copies   []copyOf // per log
}

type copyOf struct {
	entries []Entry
	err     error
}

func (h history) last() *Entry {
	if len(h.done) == 0 {
		return nil
	}
	return &h.done[len(h.done)-1]
}

func (h history) next() uint64 {
	if h.newest == nil {
		return 0
	}
	return h.newest.Sequence + 1
}

// complete says that the entries go back to the very first install.
func (h history) complete() bool {
	return !h.mismatch && (len(h.done) == 0 || h.done[0].Sequence == 0 && !h.done[0].Adopted && h.done[0].Before == Digest{})
}

// history reads everything and changes nothing.
func (l *Ledger) history() (history, error) {
	var h history
	var err error
	if h.value, err = l.nv.value(); err != nil {
		return h, err
	}
	// By value, not only by number: an entry counts because the TPM's value can
	// be reached through it. Of two that claim the same the copy listed first wins.
	type claim struct {
		after    Digest
		sequence uint64
	}
	claims := map[claim]Entry{}
	var all []Entry
	var last *Entry // that explains the value
	for _, log := range l.logs {
		entries, err := readLog(log)
		h.copies = append(h.copies, copyOf{entries, err})
		for _, e := range entries {
			all = append(all, e)
			if c := (claim{e.After, e.Sequence}); claims[c] == (Entry{}) {
				claims[c] = e
			}
			if h.newest == nil || e.Sequence > h.newest.Sequence {
				h.newest = &e
			}
			if e.After == h.value && (last == nil || e.Sequence > last.Sequence) {
				last = &e
			}
		}
	}
	for e := last; e != nil; {
		h.done = append(h.done, *e)
		before, ok := claims[claim{e.Before, e.Sequence - 1}]
		if !ok || e.Adopted || e.Sequence == 0 {
			break
		}
		e = &before
	}
	slices.Reverse(h.done)
	// Only the newest entry can be pending. An older one whose Before fits means
	// that the TPM was cleared: to go on from there would forge a history.
	for _, e := range all {
		if h.pending == nil && !e.Adopted && e.Before == h.value && e.Sequence == h.newest.Sequence {
			h.pending = &e
		}
	}
	switch {
	case h.pending != nil:
		// The entry before must be known, or be none at all.
		h.mismatch = h.last() == nil && h.pending.Sequence != 0 ||
			h.last() != nil && h.last().Sequence+1 != h.pending.Sequence
	case h.newest == nil:
		h.mismatch = h.value != Digest{}
	default:
		h.mismatch = h.last() == nil || h.last().Sequence != h.newest.Sequence
	}
	if h.mismatch {
		h.pending = nil
	}
	return h, nil
}
