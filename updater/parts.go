package updater

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// Source is where a release comes from: a folder, a tar on a stick, the link. What
// it returns is untrusted.
type Source interface {
	// Manifest returns the DSSE envelope with the manifest.
	Manifest(ctx context.Context) ([]byte, error)
	// Metadata returns a TUF file by name ("2.root.json"); fs.ErrNotExist if there
	// is none.
	Metadata(ctx context.Context, name string) ([]byte, error)
	// ReadRange reads bytes of a blob as io.ReaderAt does. It may wait for the link
	// for as long as ctx allows.
	ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error)
}

// Planner is a Source that reads ahead where it knows what will be read: else each of
// many small ranges costs a round trip.
type Planner interface {
	// Plan says what will be read of the blob from now on, from low offsets to high. It
	// ends the plan of before, and what was read ahead for it and is not in the new one. It
	// promises nothing: ReadRange may be asked for anything.
	Plan(blob manifest.Digest, ranges []transport.Range)
}

// Metered is a Source with a limit on the bytes of blobs that it brings.
type Metered interface {
	// Left is how many more it brings; limited is false if there is no limit.
	Left() (bytes int64, limited bool)
}

// Disk is one partition of a slot, open.
type Disk interface {
	partition.Disk
	io.Closer
}

// Slots opens the partitions of the slots by role ("boot", "root").
type Slots interface {
	// Spare opens a partition of the slot that does not run, for writing, for this
	// holder alone. It refuses one that is mounted or held.
	Spare(role string) (Disk, error)
	// Read opens a partition of either slot for reading.
	Read(slot bootctl.Slot, role string) (Disk, error)
}

// Ledger is the record of everything ever installed that the TPM keeps.
type Ledger interface {
	// Install notes the manifest digest, exactly once per id however often it is
	// called with it, across power cuts.
	Install(id string, digest [32]byte) error
}

// Link is the way to the fleet, one direction. None of the methods waits for the
// network.
type Link interface {
	Report(transport.State) error
	Event(transport.Event) error
	Progress(transport.Progress) error
	// Verdict is delivered in the end, as long as the program runs; the core says it
	// again when it starts.
	Verdict(transport.Verdict) error
	Up() bool
}

// Handlers runs the programs that install external images (updater/release/FORMAT.md).
type Handlers interface {
	// Run runs the verb until ctx ends. For "write" the image comes on stdin. done means
	// that "prepare" found nothing to do.
	Run(ctx context.Context, m manifest.Manifest, img manifest.Image, verb string, stdin io.Reader) (done bool, err error)
}

// Parts is what the core is joined to.
type Parts struct {
	Device string // id of the device
	Board  string
	Agent  string // version of the device program

	Boot   bootreport.Boot
	Record bootctl.Store
	Slots  Slots
	Store  journal.Store
	Keys   trust.KeySet  // who may sign manifests
	TUF    *trust.Client // who may say which releases are offered
	Ledger Ledger        // nil without a TPM
	Link   Link
	Keeper *watchdog.Keeper // nil: somebody else feeds the watchdog, or there is none

	Handlers Handlers
	// Check runs one health check.
	Check func(ctx context.Context, c manifest.Check) health.Result
	// Migrate runs the data migration hook of the running system until ctx ends: phase
	// "prepare" in the trial, "commit" after it.
	Migrate func(ctx context.Context, hook, phase string, from, to int) error
	// Log lines of this boot, newest last, for the report of a revert.
	Tail func() []string
	// Attempts returns the log of boots that the first program keeps.
	Attempts func() ([]bootreport.Attempt, error)
	// TPM describes the TPM for reports; nil result: the board has none.
	TPM func() *transport.TPM

	// Lock excludes other processes that install; the returned function ends it.
	Lock func() (func(), error)
	// Reboot asks for a restart and returns; the machine goes down soon after.
	Reboot func(why string) error
	Now    func() time.Time
	// Uptime is the time since this boot began, also that in suspension (CLOCK_BOOTTIME);
	// nil takes the start of the program for the boot.
	Uptime func() time.Duration
	NewID  func() string // unique per attempt

	Memory     int64 // bytes that applying a payload may take
	Checkpoint int64 // bytes between durable checkpoints; a multiple of 64 KiB
	MaxBegun   int   // how often a release may be begun without getting to its trial

	Log *slog.Logger
}
