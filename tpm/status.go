package tpm

import (
	"fmt"
	"slices"
)

// Status is what the TPM proves, for people and for JSON.
type Status struct {
	// Missing says in words what is not there or does not hold; empty if all is
	// well.
	Missing []string `json:"missing,omitempty"`

	Register *RegisterStatus `json:"register,omitempty"`
	Ledger   *LedgerStatus   `json:"ledger,omitempty"`
}

// RegisterStatus compares the register with what runs.
type RegisterStatus struct {
	PCR      int    `json:"pcr"`
	Value    Digest `json:"value"`
	Expected Digest `json:"expected"` // if the running slot's digest was measured and nothing else
	Agree    bool   `json:"agree"`
}

// LedgerStatus compares the NV index with the log.
type LedgerStatus struct {
	Value    Digest  `json:"value"`             // of the NV index
	Replay   Digest  `json:"replay"`            // of the log, an unfinished entry included
	Agree    bool    `json:"agree"`             // both are the same
	Complete bool    `json:"complete"`          // the log goes back to the first install
	Entries  []Entry `json:"entries"`           // that lead to Value, oldest first
	Pending  *Entry  `json:"pending,omitempty"` // logged, and not yet in the TPM
}

// Check reports what register and ledger say. It changes nothing. t may be nil,
// with why saying what Open returned; running, the digest that the stage before
// this one should have measured, may be nil if it is not known; l may be nil.
func Check(t *TPM, why error, pcr int, running *Digest, l *Ledger) Status {
	var s Status
	missing := func(format string, a ...any) { s.Missing = append(s.Missing, fmt.Sprintf(format, a...)) }
	if t == nil {
		if why == nil {
			why = ErrNoTPM
		}
		missing("%v: what runs and what was installed cannot be proven", why)
		return s
	}
	switch value, err := t.PCR(pcr); {
	case err != nil:
		missing("%v", err)
	case running == nil:
		missing("PCR %d cannot be judged: the digest of the running system is not known", pcr)
	default:
		want := Measured(*running)
		s.Register = &RegisterStatus{PCR: pcr, Value: value, Expected: want, Agree: value == want}
		switch {
		case value == Digest{}:
			missing("nothing was measured into PCR %d at this boot", pcr)
		case value != want:
			missing("PCR %d does not prove the running system: more, or something else, was measured", pcr)
		}
	}
	if l == nil {
		missing("no ledger")
		return s
	}
	h, err := l.history()
	if err != nil {
		missing("ledger: %v", err)
		return s
	}
	r := LedgerStatus{Value: h.value, Agree: !h.mismatch && h.pending == nil, Complete: h.complete(), Entries: h.done, Pending: h.pending}
	if h.newest != nil {
		r.Replay = h.newest.After
	}
	s.Ledger = &r
	switch {
	case h.mismatch && h.newest == nil:
		missing("the ledger log is lost: the TPM holds installs that nothing explains")
	case h.mismatch:
		missing("%v", ErrLedgerMismatch)
	case h.pending != nil:
		missing("an install is logged and not yet in the TPM")
	case !r.Complete:
		missing("the ledger log does not go back to the first install")
	}
	for i, c := range h.copies {
		switch {
		case c.err != nil:
			missing("ledger log %d: %v", i, c.err)
		case h.last() != nil && !slices.Contains(c.entries, *h.last()):
			missing("ledger log %d lacks the last entry", i)
		}
	}
	return s
}
