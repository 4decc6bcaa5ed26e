package bootctl

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The states that a device with slot A good goes through.
var (
	fresh     = Record{Good: A, A: OK, B: Bad}
	both      = Record{Good: A, A: OK, B: OK}
	trial     = Record{Good: A, A: OK, B: OK, Trying: B, Tries: 3}
	oneLeft   = Record{Good: A, A: OK, B: OK, Trying: B, Tries: 1}
	noneLeft  = Record{Good: A, A: OK, B: OK, Trying: B}
	committed = Record{Good: B, A: OK, B: OK}
	broken    = Record{Good: A, A: Bad, B: OK}
)

// Each operation leads from a state of the world to the next one, or refuses
// with the sentinel that tells the caller what to do.
func TestRecord(t *testing.T) {
	invalidate := func(s Slot) func(Record) (Record, error) {
		return func(r Record) (Record, error) { return r.Invalidate(s) }
	}
	try := func(s Slot, n int) func(Record) (Record, error) {
		return func(r Record) (Record, error) { return r.Try(s, n) }
	}
	commit := func(s Slot) func(Record) (Record, error) {
		return func(r Record) (Record, error) { return r.Commit(s) }
	}
	for _, tt := range []struct {
		state string
		from  Record
		do    func(Record) (Record, error)
		to    Record
		err   error
	}{
		{"spare about to be written", both, invalidate(B), fresh, nil},
		{"spare invalidated twice", fresh, invalidate(B), fresh, nil},
		{"trial abandoned for a new install", trial, invalidate(B), fresh, nil},
		{"good slot is not written over", both, invalidate(A), both, ErrGoodSlot},
		{"good slot is not written over during a trial", trial, invalidate(A), trial, ErrGoodSlot},
		{"no slot to invalidate", both, invalidate(""), both, ErrInvalid},
		{"no record to invalidate in", Record{}, invalidate(B), Record{}, ErrInvalid},

		{"spare written and verified", fresh, try(B, 3), trial, nil},
		{"back to the slot before", both, try(B, 3), trial, nil},
		{"trial started twice before its first boot", trial, try(B, 3), trial, nil},
		{"trial is not given more boots", oneLeft, try(B, 3), oneLeft, ErrTrial},
		{"trial used up is not started again", noneLeft, try(B, 1), noneLeft, ErrTrial},
		{"good slot needs no trial", both, try(A, 3), both, ErrGoodSlot},
		{"trial of no boots", fresh, try(B, 0), fresh, ErrInvalid},
		{"trial of more boots than a digit holds", fresh, try(B, 10), fresh, ErrInvalid},
		{"trial of a slot that does not exist", fresh, try("c", 3), fresh, ErrInvalid},
		{"record is broken", broken, try(B, 3), broken, ErrInvalid},

		{"trial proved itself", trial, commit(B), committed, nil},
		{"trial proved itself at its last boot", noneLeft, commit(B), committed, nil},
		{"committed twice", committed, commit(B), committed, nil},
		{"good slot while another is on trial", trial, commit(A), trial, ErrNoTrial},
		{"slot that was never tried", both, commit(B), both, ErrNoTrial},
		{"no slot to commit", both, commit(""), both, ErrNoTrial},
		{"no record to commit in", Record{}, commit(A), Record{}, ErrInvalid},

		{"trial failed", trial, Record.Revert, fresh, nil},
		{"trial failed at its last boot", noneLeft, Record.Revert, fresh, nil},
		{"nothing to revert", both, Record.Revert, both, ErrNoTrial},
		{"no record to revert in", Record{}, Record.Revert, Record{}, ErrInvalid},
	} {
		t.Run(tt.state, func(t *testing.T) {
			to, err := tt.do(tt.from)
			require.ErrorIs(t, err, tt.err)
			require.Equal(t, tt.to, to)
		})
	}
}

// No sequence of operations, whatever their arguments, leads to a record that
// breaks the rules, takes the good slot away without a commit, or gives a
// running trial more boots.
func TestRecordReachable(t *testing.T) {
	slots := []Slot{"", A, B, "c"}
	seen := map[string]bool{}
	todo := []Record{fresh}
	for len(todo) > 0 {
		r := todo[0]
		todo = todo[1:]
		if seen[key(r)] {
			continue
		}
		seen[key(r)] = true
		require.NoError(t, r.Check(), "%+v", r)
		for _, s := range slots {
			for tries := -1; tries <= MaxTries+1; tries++ {
				if next, err := r.Try(s, tries); err == nil {
					require.Equal(t, r.Good, next.Good)
					if r.Trying == s {
						require.Equal(t, r.Tries, next.Tries)
					}
					todo = append(todo, next)
				}
			}
			if next, err := r.Invalidate(s); err == nil {
				require.Equal(t, r.Good, next.Good)
				todo = append(todo, next)
			}
			if next, err := r.Commit(s); err == nil {
				require.True(t, next.Good == r.Good || next.Good == r.Trying)
				todo = append(todo, next)
			}
		}
		if next, err := r.Revert(); err == nil {
			require.Equal(t, r.Good, next.Good)
			todo = append(todo, next)
		}
		if r.Tries > 0 { // the loader takes a try
			r.Tries--
			todo = append(todo, r)
		}
	}
	// Per good slot: the other bad, ok, or on trial with 0 to 9 boots left.
	require.Len(t, seen, 2*(2+10))
}

func key(r Record) string { return r.String() + string(r.A) + string(r.B) }

// Check refuses every record that a loader could not act on, and says which
// rule it breaks.
func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		state string
		r     Record
		want  string
	}{
		{"nothing", Record{}, `good slot ""`},
		{"no mark", Record{Good: A, A: OK}, "marks"},
		{"no mark of slot a", Record{Good: B, B: OK}, "marks"},
		{"good slot bad", broken, "slot a is marked bad"},
		{"tries without trial", Record{Good: A, A: OK, B: OK, Tries: 1}, "1 tries without a trial"},
		{"good slot on trial", Record{Good: A, A: OK, B: OK, Trying: A, Tries: 1}, `slot "a" on trial`},
		{"bad slot on trial", Record{Good: A, A: OK, B: Bad, Trying: B, Tries: 1}, "slot b is on trial and marked bad"},
		{"tries below zero", Record{Good: A, A: OK, B: OK, Trying: B, Tries: -1}, "-1 tries"},
		{"tries of two digits", Record{Good: A, A: OK, B: OK, Trying: B, Tries: 10}, "10 tries"},
	} {
		t.Run(tt.state, func(t *testing.T) {
			err := tt.r.Check()
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// Two records are the same if a loader would do the same by them: each of its fields
// counts, and what describes the storage does not.
func TestSame(t *testing.T) {
	stored := trial
	stored.Confirmed, stored.Degraded = A, []error{ErrNoRecord}
	require.True(t, trial.Same(stored))
	for what, change := range map[string]func(*Record){
		"good slot":     func(r *Record) { r.Good = B },
		"slot on trial": func(r *Record) { r.Trying = "" },
		"tries":         func(r *Record) { r.Tries-- },
		"mark of a":     func(r *Record) { r.A = Bad },
		"mark of b":     func(r *Record) { r.B = Bad },
	} {
		other := trial
		change(&other)
		require.False(t, trial.Same(other), what)
	}
}

func TestString(t *testing.T) {
	require.Equal(t, "no record", Record{}.String())
	require.Equal(t, "slot a good, slot b bad", fresh.String())
	require.Equal(t, "slot b good, slot a ok", committed.String())
	require.Equal(t, "slot a good, slot b on trial (3 tries left)", trial.String())
	require.Equal(t, Slot(""), Slot("c").Other())
}
