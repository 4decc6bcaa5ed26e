package updater

import (
	"errors"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/updater/journal"
)

// State is where an update is, as the journal has it. The boot record may be one
// step ahead or behind; situation and plan join the two.
type State string

const (
	Idle    State = "idle"    // no update
	Writing State = "writing" // the spare slot is invalidated and being filled
	Written State = "written" // read back, slot record written; not yet measured and armed
	Armed   State = "armed"   // the boot record gives, or is about to give, the slot its trial
	Trial   State = "trial"   // the new slot runs on probation, or has just given itself up
)

// Situation is what the boot record says about the slot that runs.
type Situation string

const (
	Settled   Situation = "settled"    // the good slot runs, no trial
	Untried   Situation = "untried"    // the good slot runs, the other's trial has all its tries
	Tried     Situation = "tried"      // the good slot runs, the other's trial has lost tries
	OnTrial   Situation = "on trial"   // the slot on trial runs
	Fallback  Situation = "fallback"   // neither good nor on trial runs: the loader's last resort
	NoBootRec Situation = "no record"  // no copy of the boot record is whole
	BadRecord Situation = "bad record" // the medium of the boot record cannot be read
)

// Action is what the program does about the two when it starts.
type Action string

const (
	Nothing   Action = "nothing"     // wait for work
	Continue  Action = "continue"    // the installation goes on where it was, once its source is there; what is written is read back again
	Restart   Action = "restart"     // the trial is armed in this very boot: reboot into it
	Probation Action = "probation"   // prove the running slot, then commit or revert
	Reverted  Action = "reverted"    // a trial ended without commit: clear it, keep the reason, report
	Committed Action = "committed"   // the commit is on the medium, only the journal does not know
	Alarm     Action = "alarm"       // write nothing to any slot; a person must look
	Rewrite   Action = "rewrite"     // give the device a boot record again that names the running slot
	Forget    Action = "forget"      // the journal is of another time; the boot record is right
	Skipped   Action = "not started" // armed in an earlier boot, and the loader never took a try: as Reverted
)

// plan is the whole of resuming: journal and boot record, each of which the power
// may have left one step behind the other, and what to do about every pair.
//
// Rows are the journal. A trial that the journal knows nothing of (it was lost with
// the data partition) is ended all the same: by commit if it proves itself, by
// revert if the good slot runs.
var plan = map[State]map[Situation]Action{
	Idle: {
		Settled: Nothing, OnTrial: Probation, Fallback: Alarm, NoBootRec: Rewrite, BadRecord: Alarm,
		// Only a lost journal leads here. Rebooting into the trial could loop for
		// ever, if the loader cannot save a try; giving it up cannot.
		Untried: Reverted, Tried: Reverted,
	},
	Writing: {
		Settled: Continue, Fallback: Alarm, NoBootRec: Rewrite, BadRecord: Alarm,
		// The slot was invalidated before the first byte was written, so nobody can
		// have armed it since but an older journal that came back. It is verified
		// all the same before it is committed.
		OnTrial: Probation,
		Untried: Reverted, Tried: Reverted,
	},
	Written: {
		Settled: Continue, Fallback: Alarm, NoBootRec: Rewrite, BadRecord: Alarm,
		OnTrial: Probation, Untried: Reverted, Tried: Reverted,
	},
	Armed: {
		// The power failed between the journal and the boot record; or, if the slot
		// that was armed runs, it was committed and the journal never heard of it.
		Settled: Continue,
		// Restart in the boot that armed it, Skipped in a later one: see resume.
		Untried: Restart,
		Tried:   Reverted, OnTrial: Probation,
		Fallback: Alarm, NoBootRec: Rewrite, BadRecord: Alarm,
	},
	Trial: {
		// With the update's slot running, the power failed between commit and
		// journal; otherwise the trial slot reverted itself before it rebooted. See
		// resume, which tells them apart by the running slot.
		Settled: Committed,
		OnTrial: Probation, Tried: Reverted, Untried: Reverted,
		Fallback: Alarm, NoBootRec: Rewrite, BadRecord: Alarm,
	},
}

// situate names the pair of running slot and boot record.
func situate(running bootctl.Slot, r bootctl.Record, err error, tries int) Situation {
	switch {
	case errors.Is(err, bootctl.ErrNoRecord):
		return NoBootRec
	case err != nil:
		return BadRecord
	case r.Trying == running:
		return OnTrial
	case r.Good != running:
		return Fallback
	case r.Trying == "":
		return Settled
	case tries > 0 && r.Tries == tries:
		return Untried
	}
	return Tried
}

// decide looks the pair up, and settles the cells that need one fact more: which slot
// the journal means, and in which boot it armed it.
func decide(j journal.Journal, running bootctl.Slot, bootID string, s Situation) Action {
	state := State(j.State)
	row, known := plan[state]
	if !known {
		// "" is a new device; anything else is a newer updater's state, and a slot
		// reverts from newer updaters too: the boot record alone decides then.
		row = plan[Idle]
	}
	action := row[s]
	u := j.Update
	switch {
	case u == nil && (action == Continue || action == Restart):
		return Forget
	case action == Restart && u.BootID != bootID:
		return Skipped
	case state == Armed && action == Continue && u.Slot == string(running):
		return Committed
	case action == Committed && (u == nil || u.Slot != string(running)):
		return Reverted
	case action == Continue && u.Slot == string(running):
		return Forget
	}
	return action
}
