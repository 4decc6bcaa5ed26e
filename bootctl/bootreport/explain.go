package bootreport

// How the boots of a slot ended, as far as the boots after them can tell.
const (
	EndPanic    = "panic"    // the kernel panicked; Detail is the end of its log
	EndWatchdog = "watchdog" // nobody fed it; a hang, before or in user space
	EndFailed   = "failed"   // the first program gave up; Detail says why
	EndClean    = "clean"    // it went down on purpose; Detail says why
	EndReset    = "reset"    // power or reset line; nothing left a trace
)

// End says how the last boot of a slot ended.
type End struct {
	Kind   string
	Detail string
	Boots  int // boots of that slot and manifest on record; 0 when none got to the first program
}

// Explain derives how the last boot of manifest in slot ended. The log must
// hold the present boot, which Explain takes as the witness: what the watchdog
// and the kernel's log say about a boot is found by the boot after it.
//
// Ask it after a revert, from the surviving slot. An answer with Boots 0 means
// that the slot was tried (the caller knows that from the boot record) and its
// first program never ran or could not write.
//
// Where two things are on record the more specific one wins: what the boot
// wrote about itself, then a panic, then the watchdog (which also ends a panic
// that hangs), then nothing.
func Explain(log []Attempt, slot, manifest string) End {
	var end End
	boot, other, last := "", "", -1
	for i, a := range log {
		if a.Slot != slot || a.BootID == other {
			continue
		}
		if a.Manifest != "" && a.Manifest != manifest {
			// Another release was in this slot, and is not any more: what was
			// counted so far, its events without a manifest included, is not ours.
			end.Boots, boot, other, last = 0, "", a.BootID, -1
			continue
		}
		if a.BootID != boot {
			boot = a.BootID
			end.Boots++
		}
		last = i
	}
	if last >= 0 {
		switch a := log[last]; a.Stage {
		case StageFailed:
			end.Kind, end.Detail = EndFailed, a.Cause
			return end
		case StageClean:
			end.Kind, end.Detail = EndClean, a.Cause
			return end
		}
	}
	witness, found := after(log, last, boot)
	switch {
	case found && witness.Pstore != "":
		end.Kind, end.Detail = EndPanic, witness.Pstore
	case found && witness.BootStatus&CardReset != 0:
		end.Kind = EndWatchdog
	default:
		end.Kind = EndReset
	}
	return end
}

// after finds how the next boot behind log[last] began; without any boot of the
// slot on record that is the newest boot.
func after(log []Attempt, last int, boot string) (Attempt, bool) {
	if last < 0 {
		for i := len(log) - 1; i >= 0; i-- {
			if log[i].Stage == StageStarted {
				return log[i], true
			}
		}
		return Attempt{}, false
	}
	for _, a := range log[last+1:] {
		if a.BootID != boot {
			return a, a.Stage == StageStarted // else how it began is not on record
		}
	}
	return Attempt{}, false
}
