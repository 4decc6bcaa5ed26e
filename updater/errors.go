package updater

import (
	"errors"
	"io/fs"
	"slices"
	"syscall"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

var (
	// ErrBusy means that another installation runs, here or in another process.
	// Wait for it or cancel it.
	ErrBusy = errors.New("another installation is running")
	// ErrCancelled means that an operator gave the installation up.
	ErrCancelled = errors.New("installation cancelled")
	// ErrSuperseded means that the fleet asked for another release meanwhile.
	ErrSuperseded = errors.New("another release was asked for instead")
	// ErrRebooting means that the machine is on its way down, and that nothing is
	// begun any more. Ask again after the restart.
	ErrRebooting = errors.New("the machine is restarting")
	// ErrNotInstalling means that there is nothing to cancel.
	ErrNotInstalling = errors.New("no installation is running")

	// ErrBoard means that the release is for other boards. It is never forced.
	ErrBoard = errors.New("not made for this board")
	// ErrDowngrade means that the release is not newer than what runs. It can be
	// forced down to the floor of epochs.
	ErrDowngrade = errors.New("not newer than the running release")
	// ErrInstalled means that the release runs already. There is nothing to do.
	ErrInstalled = errors.New("is running already")
	// ErrEpoch means that the release is older than the device's floor of epochs:
	// it has a fault that must never run again. It cannot be forced.
	ErrEpoch = errors.New("below the floor of epochs")
	// ErrFailedBefore means that the release was tried here and did not prove
	// itself. It can be forced.
	ErrFailedBefore = errors.New("failed on this device before")
	// ErrAttempts means that the release was begun too often without getting to
	// its trial. It can be forced.
	ErrAttempts = errors.New("begun too often on this device")
	// ErrOther means that the source brought another release than the one that was
	// asked for, whoever signed it. Ask again, or ask another source.
	ErrOther = errors.New("another release than the one asked for")
	// ErrOnTrial means that the running system is on trial: commit or revert first.
	ErrOnTrial = errors.New("the running system is on trial")
	// ErrNotOnTrial means that there is no trial to commit.
	ErrNotOnTrial = errors.New("the running system is not on trial")
	// ErrNoDelta means that no delta of the release fits what runs here, that no index
	// payload spares much either, and that policy does not allow to download the whole images.
	ErrNoDelta = errors.New("no delta fits what runs here")
	// ErrBudget means that an index payload costs more bytes than the source may still
	// bring. A delta from what runs here would cost less, another source may have no budget.
	ErrBudget = errors.New("over the byte budget")
	// ErrBase means that the running system is damaged on its medium, so that deltas make
	// something else of it than they should. The whole images help, where policy allows
	// them; the medium may be failing.
	ErrBase = errors.New("the running system is damaged on its medium")
	// ErrMemory means that no payload of an image can be applied within the
	// device's memory budget.
	ErrMemory = errors.New("needs more memory than allowed")
	// ErrNewerData means that the release, or the other slot's system, is older than
	// the layout of the data that the running one has written. Forcing it may lose
	// that data.
	ErrNewerData = errors.New("it cannot read the present data")
	// ErrNoFallback means that the other slot holds no bootable system.
	ErrNoFallback = errors.New("the other slot holds no bootable system")
	// ErrMismatch means that what was rebuilt is not what the manifest names. Base or
	// source is damaged.
	ErrMismatch = errors.New("rebuilt content differs from the manifest")
	// ErrAlarm means that journal and boot record contradict each other in a way
	// that no power cut explains, and that nothing is written until a person looked and
	// vouched for what runs (EndAlarm).
	ErrAlarm = errors.New("boot record needs a person")
	// ErrNoAlarm means that there is none to end: the boot record says what runs, or says
	// something that the program acts on by itself when it starts.
	ErrNoAlarm = errors.New("there is no alarm to end")
)

// permanent tells errors that the same release will meet again from those that pass
// with time: the link, a full disk, a signal. It goes by what verified bytes say; what
// an untrusted source says about them is for unsound.
func permanent(err error) bool {
	if among(err, external.ErrNoHandler, ErrAttempts) {
		return true // though they wrap what would pass
	}
	return !unsound(err) && !among(err, fs.ErrNotExist, syscall.EIO, syscall.ENOSPC, syscall.ENOMEM) && among(err,
		ErrMismatch, ErrMemory, ErrBoard, ErrDowngrade, ErrEpoch, ErrFailedBefore, ErrAttempts, ErrNoDelta, ErrBudget, ErrNewerData,
		delta.ErrFormat, delta.ErrLimit, delta.ErrMemory, delta.ErrUnsupported, external.ErrHandler,
		manifest.ErrFormat, manifest.ErrCritical, manifest.ErrTooLarge, manifest.ErrUnsupported,
		partition.ErrWriter, partition.ErrOutside)
}

// unsound tells errors that mean that a source sent something that nobody who counts
// has signed, or did not send what they have signed. Another answer may be better: no
// source can make a device give a release up for good.
func unsound(err error) bool {
	return among(err, transport.ErrLeaf,
		trust.ErrSignature, trust.ErrThreshold, trust.ErrFormat, trust.ErrTooLarge, trust.ErrNoTarget, trust.ErrMismatch)
}

func among(err error, those ...error) bool {
	return slices.ContainsFunc(those, func(that error) bool { return errors.Is(err, that) })
}
