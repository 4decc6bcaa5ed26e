package updater

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/updater/journal"
)

var (
	states     = []State{Idle, Writing, Written, Armed, Trial}
	situations = []Situation{Settled, Untried, Tried, OnTrial, Fallback, NoBootRec, BadRecord}
)

// What happens between two lines of the table is a line of the table: every pair
// of journal and boot record has its action.
func TestPlanIsWhole(t *testing.T) {
	require.Len(t, plan, len(states))
	for _, state := range states {
		require.Len(t, plan[state], len(situations), "%s", state)
		for _, s := range situations {
			require.NotEmpty(t, plan[state][s], "%s, %s", state, s)
		}
	}
}

// Over every record that can be, either running slot, every journal and what it
// may remember: the actions keep the promises that the device makes.
func TestDecideKeepsPromises(t *testing.T) {
	type disk struct {
		r   bootctl.Record
		err error
	}
	disks := []disk{{err: bootctl.ErrNoRecord}, {err: errors.New("cannot be read")}}
	for _, r := range boottest.Records() {
		disks = append(disks, disk{r: r})
	}
	var updates []*journal.Update
	updates = append(updates, nil)
	for _, slot := range []string{"a", "b"} {
		for _, boot := range []string{"", "this", "other"} {
			for _, tries := range []int{0, 1, 3, 9} {
				updates = append(updates, &journal.Update{Slot: slot, BootID: boot, Tries: tries})
			}
		}
	}
	cases := 0
	for _, running := range []bootctl.Slot{bootctl.A, bootctl.B} {
		for _, on := range disks {
			for _, state := range append([]State{"", "of a newer program"}, states...) {
				for _, u := range updates {
					cases++
					tries := 0
					if u != nil {
						tries = u.Tries
					}
					s := situate(running, on.r, on.err, tries)
					a := decide(journal.Journal{State: string(state), Update: u}, running, "this", s)
					name := fmt.Sprintf("%s runs, record %s (%v), journal %q %+v: %s, %s", running, on.r, on.err, state, u, s, a)

					require.NotEmpty(t, a, name)
					// Nothing is committed that is not on trial, and every trial that runs is decided.
					require.Equal(t, on.err == nil && on.r.Trying == running, a == Probation, name)
					// A reboot only into a trial that this boot armed and that has lost no try: anything else could loop.
					if a == Restart {
						require.True(t, on.r.Trying == running.Other() && state == Armed && u.BootID == "this" && on.r.Tries == u.Tries, name)
					}
					// A trial of the other slot never stays as it is, or nobody would ever end it.
					if on.err == nil && on.r.Good == running && on.r.Trying != "" {
						require.Contains(t, []Action{Restart, Reverted, Skipped}, a, name)
					}
					// Nobody goes on writing without an update, into the running slot, or beside a trial.
					if a == Continue {
						require.True(t, u != nil && u.Slot != string(running) && on.r.Trying == "" && on.r.Good == running, name)
					}
					// Committed is said only by the good slot about itself.
					if a == Committed {
						require.True(t, u != nil && u.Slot == string(running) && on.r.Good == running && on.r.Trying == "", name)
					}
					// What cannot be read, or contradicts what runs, is for a person; a record that is gone is made anew.
					switch {
					case errors.Is(on.err, bootctl.ErrNoRecord):
						require.Equal(t, Rewrite, a, name)
					case on.err != nil, on.r.Good != running && on.r.Trying != running:
						require.Equal(t, Alarm, a, name)
					default:
						require.NotContains(t, []Action{Alarm, Rewrite}, a, name)
					}
				}
			}
		}
	}
	require.Equal(t, 2*len(disks)*7*len(updates), cases)
	t.Logf("%d cases", cases)
}
