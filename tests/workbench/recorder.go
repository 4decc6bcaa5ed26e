package workbench

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
)

// Installation is what `updater install -hold -full` does on a device whose slot a runs.
type Installation struct {
	Board      string
	Parts      []Part // where what Disk holds is
	Disk       Disk
	Keys       trust.KeySet
	Anchor     []byte          // the first root of trust
	Version    string          // that runs
	Manifest   manifest.Digest // of what runs
	Release    string          // the folder of what is installed
	Checkpoint int64           // bytes between two checkpoints
}

// Record makes the installation in this process that `updater install -hold -full`
// makes on a bench with the same disk, and returns what partition/disktest recorded of
// it: all disks together, and each one, as [Bench.Watched] does. A sync has the offset
// of its partition.
func (g *Goods) Record(t *testing.T, disk Disk, running, version string) (whole []Entry, parts map[string][]Entry) {
	t.Helper()
	return Installation{
		Board: board, Parts: Parts, Disk: disk, Keys: g.keys, Anchor: g.anchor, Version: running,
		Manifest: g.Release(running).Digest, Release: g.Release(version).Dir, Checkpoint: checkpoint,
	}.Record(t)
}

// Record makes the installation in this process, and returns what partition/disktest
// recorded of it, as [Goods.Record] does.
func (i Installation) Record(t *testing.T) (whole []Entry, parts map[string][]Entry) {
	t.Helper()
	bench := disktest.NewBench()
	disks := map[string]*disktest.Disk{}
	for _, p := range i.Parts {
		disks[p.Label] = bench.Disk(i.Disk[p.Label])
	}
	client, err := trust.Open(trust.Dir(t.TempDir()), i.Anchor)
	require.NoError(t, err)
	id := 0
	u, err := updater.New(updater.Parts{
		Device: "bench", Board: i.Board, Agent: "test",
		Boot:   bootreport.Boot{Slot: "a", Manifest: string(i.Manifest), Version: i.Version, Data: bootreport.DataMounted, BootID: "bench-1"},
		Record: grubenv.Open(disks["env"]), Slots: slotsOf(disks), Store: trust.Dir(t.TempDir()), Keys: i.Keys, TUF: client,
		Link: silent{}, Handlers: external.Handlers{},
		Check:    func(context.Context, manifest.Check) health.Result { return health.Result{OK: true} },
		Migrate:  func(context.Context, string, string, int, int) error { return nil },
		Tail:     func() []string { return nil },
		Attempts: func() ([]bootreport.Attempt, error) { return nil, nil },
		Lock:     func() (func(), error) { return func() {}, nil },
		Reboot:   func(string) error { return nil },
		Now:      time.Now,
		NewID:    func() string { id++; return fmt.Sprint(id) },
		Memory:   24 << 20, Checkpoint: i.Checkpoint, MaxBegun: 5,
		Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	source, err := release.Open(i.Release)
	require.NoError(t, err)
	defer source.Close()
	require.NoError(t, u.Install(t.Context(), source, updater.Options{Full: transport.FullGo, Hold: true}))

	parts = map[string][]Entry{}
	for _, op := range bench.Log() {
		p := i.Parts[op.Disk]
		e := Entry{Sync: op.Kind == disktest.Sync, Off: op.Off, Data: op.Data}
		parts[p.Label] = append(parts[p.Label], e)
		e.Off += p.Start
		whole = append(whole, e)
	}
	return whole, parts
}

// slotsOf opens partitions by role; slot a runs.
type slotsOf map[string]*disktest.Disk

type openDisk struct{ *disktest.Disk }

func (openDisk) Close() error { return nil }

func (s slotsOf) Spare(role string) (updater.Disk, error) { return openDisk{s[role+"_b"]}, nil }

func (s slotsOf) Read(slot bootctl.Slot, role string) (updater.Disk, error) {
	return openDisk{s[role+"_"+string(slot)]}, nil
}

// silent is a link to nobody.
type silent struct{}

func (silent) Report(transport.State) error      { return nil }
func (silent) Event(transport.Event) error       { return nil }
func (silent) Progress(transport.Progress) error { return nil }
func (silent) Verdict(transport.Verdict) error   { return nil }
func (silent) Up() bool                          { return false }
