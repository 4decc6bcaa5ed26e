package attacks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// device is a machine in memory that runs the updater through its public interface: two
// slots, a boot record, the folders of journal and trust, and a loader.
type device struct {
	s     *Scene
	desk  *desk
	disks map[string]*disktest.Disk // "record", and "a/boot" to "b/root"
	store *folder                   // of the journal
	trust *folder
	keys  trust.KeySet
	parts func(*updater.Parts) // may change them, nil if nothing is to be

	slot      bootctl.Slot // that runs
	boots     int
	rebooting string // why, if the machine is on its way down
	sick      bool   // the system on trial does not work
	now       func() time.Time

	mu       sync.Mutex
	verdicts []transport.Verdict
	warned   []error // what the log had to say, newest last
}

// folder is a store of files that are written whole. It serves as journal.Store and as
// trust.Store.
type folder struct {
	mu    sync.Mutex
	files map[string][]byte
	puts  int
	full  func(put int) error // of the n-th Put
}

func newFolder() *folder { return &folder{files: map[string][]byte{}} }

func (f *folder) Get(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if data, ok := f.files[name]; ok {
		return bytes.Clone(data), nil
	}
	return nil, fs.ErrNotExist
}

func (f *folder) Put(name string, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	if f.full != nil {
		if err := f.full(f.puts); err != nil {
			return err
		}
	}
	f.files[name] = bytes.Clone(data)
	return nil
}

func (f *folder) Delete(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, name)
	return nil
}

// bytes is everything in the folder.
func (f *folder) bytes() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		fmt.Fprintf(h, "%s %d %x\n", name, len(f.files[name]), f.files[name])
	}
	return h.Sum(nil)
}

// device comes from the factory with a release in slot a, which runs, and another one in
// slot b.
func (s *Scene) device(running, spare *bundle) *device {
	d := &device{s: s, desk: running.desk, disks: map[string]*disktest.Disk{}, store: newFolder(), trust: newFolder(), keys: running.desk.releaseKeys(), slot: bootctl.A, now: time.Now}
	bench := disktest.NewBench()
	d.disks["record"] = bench.Disk(grubenv.Image(bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK})[:grubenv.LedgerOffset])
	for slot, r := range map[bootctl.Slot]*bundle{bootctl.A: running, bootctl.B: spare} {
		d.disks[string(slot)+"/boot"] = bench.Disk(slices.Concat(r.images["boot"], make([]byte, 4096)))
		// The record is written to a disk of its own first: the bench begins with an empty log.
		root := disktest.New(slices.Concat(r.images["root"], make([]byte, 4*4096+partition.RecordSize)))
		if err := partition.WriteRecord(root, partition.Record{Envelope: r.envelope}); err != nil {
			panic(err)
		}
		d.disks[string(slot)+"/root"] = bench.Disk(root.Bytes())
	}
	return d
}

// What an attack may have to leave alone.
const (
	running = "running" // the slot that runs
	spare   = "spare"   // the other one
	record  = "record"  // what the loader goes by
	memo    = "journal" // what the updater remembers
	tuf     = "trust"   // the metadata that was accepted
)

// everything is for attacks that are refused before anything is written.
var everything = []string{running, spare, record, memo, tuf}

// keep tells the scene what of the device the attack must not change.
func (d *device) keep(what ...string) *device {
	slot := d.slot
	for _, name := range what {
		switch name {
		case running:
			d.s.Keep("the running slot", func() []byte { return d.slotBytes(slot) })
		case spare:
			d.s.Keep("the spare slot", func() []byte { return d.slotBytes(slot.Other()) })
		case record:
			d.s.Keep("the boot record", d.disks["record"].Bytes)
		case memo:
			d.s.Keep("the journal", d.store.bytes)
		case tuf:
			d.s.Keep("the accepted metadata", d.trust.bytes)
		default:
			panic(name)
		}
	}
	return d
}

func (d *device) slotBytes(slot bootctl.Slot) []byte {
	return slices.Concat(d.disks[string(slot)+"/boot"].Bytes(), d.disks[string(slot)+"/root"].Bytes())
}

func (d *device) record() bootctl.Record { return must(grubenv.Open(d.disks["record"]).Load()) }

// holds tells whether a slot has all of a release, and its signed record.
func (d *device) holds(slot bootctl.Slot, r *bundle) bool {
	rec, err := partition.ReadRecord(d.disks[string(slot)+"/root"])
	if err != nil || !bytes.Equal(rec.Envelope, r.envelope) {
		return false
	}
	for role, image := range r.images {
		if !bytes.HasPrefix(d.disks[string(slot)+"/"+role].Bytes(), image) {
			return false
		}
	}
	return true
}

// on starts the program of the slot that runs.
func (d *device) on() (*updater.Updater, error) {
	d.rebooting = ""
	d.boots++
	held := manifest.Manifest{}
	rec, err := partition.ReadRecord(d.disks[string(d.slot)+"/root"])
	if err == nil {
		if _, payload, _, err := trust.Unverified(rec.Envelope); err == nil {
			held, _ = manifest.Parse(payload)
		}
	}
	client, err := trust.Open(d.trust, d.desk.anchor)
	if err != nil {
		return nil, err
	}
	boots := d.boots
	p := updater.Parts{
		Device: me, Board: board, Agent: "test",
		Boot:   bootreport.Boot{Slot: string(d.slot), BootID: fmt.Sprintf("boot-%d", boots), Version: held.Version, Data: bootreport.DataMounted},
		Record: grubenv.Open(d.disks["record"]), Slots: slots{d}, Store: d.store, Keys: d.keys, TUF: client, Link: link{d},
		Handlers: noHandlers{},
		Check:    func(context.Context, manifest.Check) health.Result { return health.Result{OK: !d.sick} },
		Migrate:  func(context.Context, string, string, int, int) error { return nil },
		Tail:     func() []string { return nil },
		Attempts: func() ([]bootreport.Attempt, error) { return nil, nil },
		Lock:     func() (func(), error) { return func() {}, nil },
		Reboot:   func(why string) error { d.rebooting = why; return nil },
		Now:      func() time.Time { return d.now() },
		NewID:    func() string { boots += 1000; return fmt.Sprintf("attempt-%d", boots) },
		Log:      slog.New(ear{d}),
		Memory:   memory, Checkpoint: leaf, MaxBegun: 3,
	}
	if d.parts != nil {
		d.parts(&p)
	}
	return updater.New(p)
}

// start goes through the boots that the system wants by itself, and returns the program
// of the one that stays.
func (d *device) start() *updater.Updater {
	for range 10 {
		boot := boottest.GRUB(d.disks["record"].Bytes(), boottest.World{})
		require.NotEmpty(d.s, boot.Slot, "nothing boots")
		must(d.disks["record"].WriteAt(boot.Env, 0))
		d.slot = boot.Slot
		u := must(d.on())
		if err := u.Resume(background); err != nil {
			panic(err)
		}
		if d.rebooting == "" {
			return u
		}
	}
	panic("never stops rebooting: " + d.rebooting)
}

// ends requires that after all the device runs a release, committed.
func (d *device) ends(r *bundle) {
	d.s.Helper()
	u := d.start()
	require.Equal(d.s, r.m.Version, u.Running().Manifest.Version)
	require.True(d.s, d.holds(d.slot, r), "what runs is not whole")
	require.Equal(d.s, d.slot, d.record().Good)
	require.Empty(d.s, d.record().Trying)
}

// takes requires that an honest source brings the device to the next release, whatever it
// was offered before. What said that it failed may have gone far enough to be tried.
func (d *device) takes(r *bundle) {
	d.s.Helper()
	d.s.Bubble(func() {
		if u := d.start(); u.Running().Manifest.Version != r.m.Version {
			require.NoError(d.s, u.Install(background, d.source(r), updater.Options{Full: transport.FullGo}))
		}
		d.ends(r)
	})
}

// slots opens the partitions.
type slots struct{ d *device }

type open struct {
	*disktest.Disk
	writable bool
}

func (o open) Close() error { return nil }

func (o open) WriteAt(p []byte, off int64) (int, error) {
	if !o.writable {
		return 0, fs.ErrPermission
	}
	return o.Disk.WriteAt(p, off)
}

func (s slots) open(slot bootctl.Slot, role string, writable bool) (updater.Disk, error) {
	disk, ok := s.d.disks[string(slot)+"/"+role]
	if !ok {
		return nil, fmt.Errorf("partition %s of slot %s: %w", role, slot, fs.ErrNotExist)
	}
	return open{disk, writable}, nil
}

func (s slots) Spare(role string) (updater.Disk, error) { return s.open(s.d.slot.Other(), role, true) }

func (s slots) Read(slot bootctl.Slot, role string) (updater.Disk, error) {
	return s.open(slot, role, false)
}

// noHandlers is a system without programs for external images.
type noHandlers struct{}

func (noHandlers) Run(context.Context, manifest.Manifest, manifest.Image, string, io.Reader) (bool, error) {
	return false, external.ErrNoHandler
}

// link is the way to the fleet. What is said must be something that can be sent.
type link struct{ d *device }

func (l link) Report(s transport.State) error { return sendable(l.d, s) }

func (l link) Event(e transport.Event) error { return sendable(l.d, e) }

func (l link) Progress(p transport.Progress) error { return sendable(l.d, p) }

func (l link) Verdict(v transport.Verdict) error {
	l.d.mu.Lock()
	l.d.verdicts = append(l.d.verdicts, v)
	l.d.mu.Unlock()
	return sendable(l.d, v)
}

func (l link) Up() bool { return true }

func sendable(d *device, m interface{ Encode() ([]byte, error) }) error {
	if _, err := m.Encode(); err != nil {
		d.s.Errorf("not to be sent: %v", err)
	}
	return nil
}

// ear keeps the errors that the updater logs: what Run does about them, it tells nobody
// else.
type ear struct{ d *device }

func (e ear) Enabled(context.Context, slog.Level) bool { return true }
func (e ear) WithAttrs([]slog.Attr) slog.Handler       { return e }
func (e ear) WithGroup(string) slog.Handler            { return e }

func (e ear) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok {
			e.d.mu.Lock()
			e.d.warned = append(e.d.warned, err)
			e.d.mu.Unlock()
		}
		return true
	})
	return nil
}

// heard is the last error that was logged; nil if there was none.
func (d *device) heard() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.warned...)
}

// source is a release on its way to the device. Its hooks make it lie.
type source struct {
	*bundle
	files    map[string][]byte // metadata
	asked    int               // calls of Manifest
	manifest func(n int) ([]byte, error)
	// read sees each range before the device does, and may change it.
	read func(ctx context.Context, blob manifest.Digest, off int64, p []byte, n int, err error) (int, error)
}

// source brings a release with metadata that offers it.
func (d *device) source(r *bundle) *source {
	return &source{bundle: r, files: d.desk.repository(r).files}
}

// from brings a release with other metadata.
func (r *bundle) from(repo *repository) *source { return &source{bundle: r, files: repo.files} }

func (s *source) Manifest(context.Context) ([]byte, error) {
	s.asked++
	if s.manifest != nil {
		return s.manifest(s.asked)
	}
	return s.envelope, nil
}

func (s *source) Metadata(_ context.Context, name string) ([]byte, error) {
	if data, ok := s.files[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}

func (s *source) ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := 0, error(nil)
	data, ok := s.blobs[blob]
	switch {
	case !ok:
		err = fs.ErrNotExist
	case off >= int64(len(data)):
		err = io.EOF
	default:
		if n = copy(p, data[off:]); n < len(p) {
			err = io.EOF
		}
	}
	if s.read != nil {
		return s.read(ctx, blob, off, p, n, err)
	}
	return n, err
}
