package updater

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// Disks of a device on its bench, in this order.
const (
	envDisk = iota
	bootA
	bootB
	rootA
	rootB
	dataDisk
)

// device is a machine with two slots in memory: disks on one power supply, the
// model of a loader, the first program's check, and what the world around it sees.
type device struct {
	t         testing.TB
	w         *world
	disks     []*disktest.Disk
	store     *files
	tuf       memoryStore
	state     string // of the crash that it comes from, for messages
	fault     string // that came before, which its states begin with
	destroyed bool   // by any crash so far, beside what was lost
	cuts      int    // of its power so far

	// What it meets.
	loader   boottest.World
	sick     map[string]string // version to the check that fails
	hangs    map[string]string // version to how it dies in every boot: "watchdog", "panic", "power"
	noData   map[string]bool   // versions that cannot mount the data partition
	handler  func(img manifest.Image, verb string, stdin io.Reader) (bool, error)
	migrate  func(hook, phase string, from, to int) error
	linkUp   bool
	noLedger bool

	// What happens to it.
	slot      bootctl.Slot // that runs
	bootID    string
	boots     int
	trials    int // boots in a row of the slot on trial
	tried     bootctl.Slot
	rebooting string
	died      string // how the boot before this one ended
	attempts  []bootreport.Attempt
	ids       int
	ledger    map[string]entry
	verdicts  []heard
	events    []transport.Event
	progress  []seen
	onReport  func(transport.State)
	moved     int64 // bytes downloaded
	timeline  []mark
	ran       []choice
	jump      time.Duration // how wrong its clock is
	guard     bool          // it has a watchdog
	deny      error         // of every write to the spare slot
}

// entry is what the ledger of installs holds.
type entry struct {
	digest [32]byte
	ops    int
}

// choice is what the loader chose, and how many disk operations came before it.
type choice struct {
	runs, tried bootctl.Slot
	good        bootctl.Slot // of the boot record
	trials      int          // of the slot that is tried, in a row
	ops         int
}

// heard is a verdict and when it was said.
type heard struct {
	transport.Verdict
	ops int
}

// seen is how far something was, and when that was said.
type seen struct {
	transport.Progress
	when time.Time
}

// memoryStore is a trust.Store.
type memoryStore map[string][]byte

func (m memoryStore) Get(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}
func (m memoryStore) Put(name string, data []byte) error { m[name] = bytes.Clone(data); return nil }
func (m memoryStore) Delete(name string) error           { delete(m, name); return nil }

// files is a journal.Store on a disk that loses power: two copies of each file,
// of which Put writes over the older one.
type files struct {
	d     *disktest.Disk
	lossy bool // nothing is synced: a power cut may take any of it
	full  error
}

const fileCopy = 16 << 10

func (f *files) at(name string, i int) int64 {
	n := map[string]int64{"journal": 0, trialLogName: 1}
	return (2*n[name] + int64(i)) * fileCopy
}

// copyOf returns a copy and its generation; 0 if it is not whole.
func (f *files) copyOf(name string, i int) ([]byte, uint64) {
	b := make([]byte, fileCopy)
	if n, _ := f.d.ReadAt(b[:disktest.Sector], f.at(name, i)); n < disktest.Sector {
		return nil, 0
	}
	size := binary.LittleEndian.Uint32(b[12:])
	if size > fileCopy-16 {
		return nil, 0
	}
	b = b[:(16+size+disktest.Sector-1)/disktest.Sector*disktest.Sector]
	if n, _ := f.d.ReadAt(b, f.at(name, i)); n < len(b) || crc32.ChecksumIEEE(b[4:16+size]) != binary.LittleEndian.Uint32(b) {
		return nil, 0
	}
	return b[16 : 16+size], binary.LittleEndian.Uint64(b[4:])
}

func (f *files) Get(name string) ([]byte, error) {
	a, ga := f.copyOf(name, 0)
	b, gb := f.copyOf(name, 1)
	if gb > ga {
		a, ga = b, gb
	}
	if ga == 0 {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(a), nil
}

func (f *files) Put(name string, data []byte) error {
	if f.full != nil {
		return f.full
	}
	_, ga := f.copyOf(name, 0)
	_, gb := f.copyOf(name, 1)
	older := 0
	if gb < ga {
		older = 1
	}
	b := make([]byte, (16+len(data)+disktest.Sector-1)/disktest.Sector*disktest.Sector)
	if len(b) > fileCopy {
		return fmt.Errorf("file of %d bytes", len(data))
	}
	binary.LittleEndian.PutUint64(b[4:], max(ga, gb)+1)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(data)))
	copy(b[16:], data)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:16+len(data)]))
	if _, err := f.d.WriteAt(b, f.at(name, older)); err != nil {
		return err
	}
	if f.lossy {
		return nil
	}
	return f.d.Sync()
}

// newDevice comes from the factory with a release in slot A, and with another one
// in slot B unless that is "".
func newDevice(t testing.TB, a, b string) *device { return theWorld().device(t, a, b) }

func (w *world) device(t testing.TB, a, b string) *device {
	bench := disktest.NewBench()
	record := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}
	if b != "" {
		record.B = bootctl.OK
	}
	bench.Disk(grubenv.Image(record)[:grubenv.LedgerOffset])
	for _, role := range []string{"boot", "root"} {
		for _, version := range []string{a, b} {
			bench.Disk(w.partition(t, role, version))
		}
	}
	bench.Disk(make([]byte, 4*fileCopy))
	d := onDisks(t, bench.Disks())
	d.w = w
	return d
}

// partition returns the bytes of a partition in which a release was installed.
func (w *world) partition(t testing.TB, role, version string) []byte {
	size := map[string]int{"boot": bootSize + 4096, "root": rootSize + 4*4096 + partition.RecordSize}[role]
	d := disktest.New(bytes.Repeat([]byte{0xff}, size))
	if version != "" {
		_, err := d.WriteAt(w.by[version].images[role], 0)
		require.NoError(t, err)
		if role == "root" {
			require.NoError(t, partition.WriteRecord(d, partition.Record{Envelope: w.by[version].envelope}))
		}
	}
	return d.Bytes()
}

// onDisks is a machine around existing disks, switched off.
func onDisks(t testing.TB, disks []*disktest.Disk) *device {
	return &device{
		t: t, w: theWorld(), disks: disks, store: &files{d: disks[dataDisk]}, tuf: memoryStore{}, linkUp: true,
		sick: map[string]string{}, hangs: map[string]string{}, noData: map[string]bool{}, ledger: map[string]entry{},
	}
}

// line is a state of the device that DISKTEST brings back.
func (d *device) line(c *disktest.Crash) string {
	if d.fault == "" {
		return c.String()
	}
	return d.fault + ": " + c.String()
}

// after is the machine after a power cut, in the same world.
func (d *device) after(crash *disktest.Crash) *device {
	n := onDisks(d.t, crash.Disks())
	n.w = d.w
	n.sick, n.hangs, n.noData, n.loader, n.handler, n.migrate = d.sick, d.hangs, d.noData, d.loader, d.handler, d.migrate
	n.store.lossy = d.store.lossy
	n.fault = d.fault
	n.state, n.destroyed, n.cuts = d.line(crash), d.destroyed || crash.Destroyed(), d.cuts+1
	n.jump, n.guard = d.jump, d.guard
	n.tuf = maps.Clone(d.tuf)
	for id, e := range d.ledger {
		if e.ops <= crash.Cut {
			n.ledger[id] = entry{e.digest, 0}
		}
	}
	for _, b := range d.ran {
		if b.ops <= crash.Cut {
			n.trials, n.tried = b.trials, b.tried
		}
	}
	n.ids = 1000 * (1 + d.ids/1000) // ids stay unique
	for _, v := range d.verdicts {
		if v.ops <= crash.Cut {
			n.verdicts = append(n.verdicts, heard{v.Verdict, 0})
		}
	}
	return n
}

func (d *device) ops() int { return d.disks[0].Bench().Ops() }

func (d *device) root(s bootctl.Slot) *disktest.Disk { return d.part(s, "root") }

func (d *device) part(s bootctl.Slot, role string) *disktest.Disk {
	n := map[string]int{"boot": bootA, "root": rootA}[role]
	if s == bootctl.B {
		n++
	}
	return d.disks[n]
}

// record is what the boot record says.
func (d *device) record() bootctl.Record {
	var r bootctl.Record
	d.look(func() {
		var err error
		r, err = grubenv.Open(d.disks[envDisk]).Load()
		require.NoError(d.t, err, "%s", d.state)
	})
	return r
}

// look lets the test use the disks: whatever fails on them, it fails for the updater.
func (d *device) look(f func()) { d.disks[0].Bench().Calm(f) }

// holds returns the version of the whole, signed system that a slot holds; "" if
// what is there is none, or there is no such slot. It looks at the medium and trusts
// nothing.
func (d *device) holds(s bootctl.Slot) (version string) {
	if !s.Valid() {
		return ""
	}
	d.look(func() {
		record, err := partition.ReadRecord(d.root(s))
		if err != nil {
			return
		}
		r := d.w.signed(record.Envelope)
		if r == nil {
			return
		}
		for _, role := range []string{"boot", "root"} { // in one order, whatever is read
			image := r.images[role]
			have := make([]byte, len(image))
			if n, _ := d.part(s, role).ReadMedium(have, 0); n < len(have) || !bytes.Equal(have, image) {
				return
			}
		}
		version = r.m.Version
	})
	return version
}

// signed returns the release whose manifest is in the envelope, if who may sign it has.
func (w *world) signed(envelope []byte) *made {
	key := string(envelope)
	if r, ok := w.verified.Load(key); ok {
		return r.(*made)
	}
	var r *made
	if payload, err := trust.Verify(envelope, trust.ManifestType, w.keys); err == nil {
		r = w.by[w.names[manifest.DigestOf(payload)]]
	}
	w.verified.Store(key, r)
	return r
}

// powerOn lets the loader choose, and starts the program of the slot that it chose.
// Whatever happened before: what boots is a whole and signed system.
//
// It returns nil where the system dies before the program runs.
func (d *device) powerOn() *Updater {
	version := d.load()
	if version == "" {
		return nil
	}
	u, err := New(d.parts(version))
	require.NoError(d.t, err, "%s", d.state)
	return u
}

// load is what happens until the program is started: loader, kernel, first program.
// It returns the version that runs, "" where it dies before its program does.
func (d *device) load() (version string) {
	env := d.disks[envDisk]
	var boot boottest.Boot
	var good bootctl.Slot
	d.look(func() {
		before := env.Bytes()
		boot = boottest.GRUB(before, d.loader)
		d.write(boot.Env)
		d.slot, d.rebooting = boot.Slot, ""
		if r, err := grubenv.Open(env).Load(); err == nil {
			good = r.Good
		}
		// Nor would anything else boot, should a slot not load now.
		for _, broken := range []bootctl.Slot{bootctl.A, bootctl.B} {
			if s := boottest.GRUB(before, boottest.World{Broken: []bootctl.Slot{broken}}).Slot; s != "" {
				require.NotEmpty(d.t, d.holds(s), "%s: slot %s would boot if slot %s did not load, and is not whole", d.state, s, broken)
			}
		}
		version = d.holds(d.slot)
	})
	require.NotEmpty(d.t, version, "%s: slot %q boots and is not whole; loader: %q", d.state, d.slot, boot.Lines)
	if !boot.Trial || d.tried != d.slot {
		d.trials, d.tried = 0, ""
	}
	if boot.Trial {
		d.trials++
		d.tried = d.slot
		most := d.w.by[version].m.Trial.Tries
		require.LessOrEqual(d.t, d.trials, most, "%s: slot %s is tried for ever", d.state, d.slot)
	}
	d.ran = append(d.ran, choice{d.slot, d.tried, good, d.trials, d.ops()})
	d.boots++
	d.bootID = fmt.Sprintf("boot-%d-%d", d.ids/1000, d.boots)
	started := bootreport.Attempt{BootID: d.bootID, Slot: string(d.slot), Manifest: string(d.w.by[version].digest), Version: version, Stage: bootreport.StageStarted}
	switch d.died {
	case "watchdog":
		started.BootStatus = bootreport.CardReset
	case "panic":
		started.Pstore = "Kernel panic - not syncing: by test"
	}
	d.attempts = append(d.attempts, started)
	if d.died = d.hangs[version]; d.died != "" {
		return ""
	}
	started.Stage, started.BootStatus, started.Pstore = bootreport.StageSwitched, 0, ""
	d.attempts = append(d.attempts, started)
	return version
}

// write is what the loader leaves of the environment: it changes one sector.
func (d *device) write(env []byte) {
	disk := d.disks[envDisk]
	before := disk.Bytes()
	for at := 0; at < len(before); at += disktest.Sector {
		if now := env[at : at+disktest.Sector]; !bytes.Equal(now, before[at:at+disktest.Sector]) {
			_, err := disk.WriteAt(now, int64(at))
			require.NoError(d.t, err)
			require.NoError(d.t, disk.Sync())
		}
	}
}

func (d *device) parts(version string) Parts {
	client, err := trust.Open(d.tuf, d.w.anchor)
	require.NoError(d.t, err)
	p := Parts{
		Device: me, Board: board, Agent: "test",
		Boot:   bootreport.Boot{Slot: string(d.slot), BootID: d.bootID, Manifest: string(d.w.by[version].digest), Version: version, Data: bootreport.DataMounted},
		Record: grubenv.Open(d.disks[envDisk]), Slots: &slots{d: d, held: map[string]bool{}}, Store: d.store,
		Keys: d.w.keys, TUF: client, Ledger: ledger{d}, Link: link{d}, Handlers: handlers{d},
		Check: func(_ context.Context, c manifest.Check) health.Result {
			if c.Kind == manifest.CheckMQTT && !d.linkUp || c.Name == d.sick[version] {
				return health.Result{Detail: "by test"}
			}
			return health.Result{OK: true}
		},
		Migrate: func(_ context.Context, hook, phase string, from, to int) error {
			if d.migrate == nil {
				return nil
			}
			return d.migrate(hook, phase, from, to)
		},
		Tail:     func() []string { return []string{"line of " + version} },
		Attempts: func() ([]bootreport.Attempt, error) { return slices.Clone(d.attempts), nil },
		Lock:     func() (func(), error) { return func() {}, nil },
		Reboot:   func(why string) error { d.rebooting = why; return nil },
		Now:      func() time.Time { return time.Now().Add(d.jump) },
		NewID:    func() string { d.ids++; return fmt.Sprintf("attempt-%d", d.ids) },
		Log:      slog.New(slog.DiscardHandler),
		Memory:   memory, Checkpoint: every, MaxBegun: 3,
	}
	if d.state == "" || replaying() { // thousands of crashes are too much to read
		p.Log = slog.New(slog.NewTextHandler(d.t.Output(), nil))
	}
	if d.noLedger {
		p.Ledger = nil
	}
	if d.noData[version] {
		p.Store = &files{d: disktest.New(make([]byte, 4*fileCopy))} // a RAM disk in its place
		p.Boot.Data = bootreport.DataMissing
		p.Attempts = func() ([]bootreport.Attempt, error) { return nil, nil }
	}
	return p
}

// slots opens the partitions of a device. The spare one is for one holder at a time.
type slots struct {
	d    *device
	held map[string]bool
}

type openPart struct {
	*disktest.Disk
	close func()
}

func (o openPart) Close() error { o.close(); return nil }

func (s *slots) Spare(role string) (Disk, error) {
	if s.held[role] {
		return nil, errors.New("held")
	}
	s.held[role] = true
	part := openPart{s.d.part(s.d.slot.Other(), role), func() { s.held[role] = false }}
	if s.d.deny != nil {
		return denied{part, s.d.deny}, nil
	}
	return part, nil
}

// denied is a partition that cannot be written.
type denied struct {
	openPart
	err error
}

func (d denied) WriteAt([]byte, int64) (int, error) { return 0, d.err }

func (s *slots) Read(slot bootctl.Slot, role string) (Disk, error) {
	return denied{openPart{s.d.part(slot, role), func() {}}, fs.ErrPermission}, nil
}

// ledger notes each id once, as the TPM does, and outlives the power.
type ledger struct{ d *device }

func (l ledger) Install(id string, digest [32]byte) error {
	if old, ok := l.d.ledger[id]; ok && old.digest != digest {
		return fmt.Errorf("id %s was used for another release", id)
	} else if !ok {
		l.d.ledger[id] = entry{digest, l.d.ops()}
	}
	return nil
}

type handlers struct{ d *device }

func (h handlers) Run(_ context.Context, _ manifest.Manifest, img manifest.Image, verb string, stdin io.Reader) (bool, error) {
	if h.d.handler == nil {
		return true, nil
	}
	return h.d.handler(img, verb, stdin)
}

// link is the way to the fleet. Everything said must be something that can be sent.
type link struct{ d *device }

func (l link) Report(s transport.State) error {
	_, err := s.Encode()
	require.NoError(l.d.t, err, "%s", l.d.state)
	if l.d.onReport != nil {
		l.d.onReport(s)
	}
	return nil
}

func (l link) Event(e transport.Event) error {
	_, err := e.Encode()
	require.NoError(l.d.t, err, "%s", l.d.state)
	l.d.events = append(l.d.events, e)
	return nil
}

func (l link) Progress(p transport.Progress) error {
	_, err := p.Encode()
	require.NoError(l.d.t, err, "%s", l.d.state)
	require.True(l.d.t, 0 <= p.Done && p.Done <= p.Total && 0 <= p.Left, "%+v", p)
	l.d.progress = append(l.d.progress, seen{p, time.Now()})
	return nil
}

func (l link) Verdict(v transport.Verdict) error {
	_, err := v.Encode()
	require.NoError(l.d.t, err, "%s", l.d.state)
	if l.d.disks[0].Bench().Cut() {
		return nil // no power, and so nobody who says it
	}
	l.d.verdicts = append(l.d.verdicts, heard{v, l.d.ops()})
	return nil
}

func (l link) Up() bool { return l.d.linkUp }

// start is powerOn and Resume, for as many boots as the system wants by itself. It
// returns the program of the system that stays.
func (d *device) start() *Updater {
	for range 30 {
		u := d.powerOn()
		if u == nil {
			continue
		}
		err := u.Resume(ctx)
		require.NoError(d.t, err, "%s", d.state)
		if d.rebooting == "" {
			return u
		}
	}
	require.Fail(d.t, "never stops rebooting", "%s: last: %s", d.state, d.rebooting)
	return nil
}

// update installs a version as often as it takes, and lets the device go through
// its trial. It returns the program of the system that stays and the last error.
func (d *device) update(version string, o Options) (*Updater, error) {
	u := d.start()
	err := d.install(u, version, o)
	if err != nil {
		return u, err
	}
	return d.start(), nil
}

func (d *device) install(u *Updater, version string, o Options) error {
	src, before := d.w.source(version), d.moved
	src.onRead = func(manifest.Digest, int64, []byte) error {
		d.moved = before + src.moved
		d.timeline = append(d.timeline, mark{d.ops(), d.moved})
		return nil
	}
	return u.Install(ctx, src, o)
}

// mark is how many bytes had been downloaded after so many disk operations.
type mark struct {
	ops   int
	moved int64
}

// movedAt is how many bytes had been downloaded when the power failed.
func (d *device) movedAt(cut int) (moved int64) {
	for _, m := range d.timeline {
		if m.ops <= cut {
			moved = m.moved
		}
	}
	return moved
}

// clear overwrites a part of a disk, as a broken one would lose it.
func (d *device) clear(disk int, from, to int64) {
	_, err := d.disks[disk].WriteAt(make([]byte, to-from), from)
	require.NoError(d.t, err)
	require.NoError(d.t, d.disks[disk].Sync())
}

const (
	envCopies    = grubenv.Copy0Offset
	envConfirmed = grubenv.ConfirmedOffset
)

// settled requires that a version runs, is committed, and that nothing is under way.
func (d *device) settled(u *Updater, version string) {
	d.t.Helper()
	require.Equal(d.t, version, u.running.Manifest.Version, "%s", d.state)
	r := d.record()
	require.Equal(d.t, u.running.Slot, r.Good, "%s: %s", d.state, r)
	require.Empty(d.t, r.Trying, "%s: %s", d.state, r)
	j := u.journal()
	require.Nil(d.t, j.Update, "%s", d.state)
	for _, slot := range []bootctl.Slot{bootctl.A, bootctl.B} {
		if v := d.holds(slot); v != "" && r.Mark(slot) == bootctl.OK {
			require.GreaterOrEqual(d.t, d.w.by[v].m.Epoch, j.EpochFloor, "%s: slot %s may boot and is below the floor", d.state, slot)
		}
	}
	require.Contains(d.t, []State{"", Idle}, State(j.State), "%s", d.state)
}

// verdict returns the last thing that was said about how an update ended.
func (d *device) verdict() transport.Verdict {
	d.t.Helper()
	require.NotEmpty(d.t, d.verdicts, "%s: no verdict", d.state)
	return d.verdicts[len(d.verdicts)-1].Verdict
}

// phases are the events so far, without their texts.
func (d *device) phases() []string {
	var out []string
	for _, e := range d.events {
		out = append(out, e.Phase)
	}
	return out
}

// bubble runs a test in time that passes by itself: a trial takes its minute, and
// nobody waits for it.
func bubble(t *testing.T, f func(t *testing.T)) {
	theWorld() // real time makes it
	synctest.Test(t, f)
}

// boil returns the verdicts by id, each said at least once and always the same.
func (d *device) boil() map[string]transport.Verdict {
	all := map[string]transport.Verdict{}
	for _, h := range d.verdicts {
		if old, ok := all[h.ID]; ok {
			require.Equal(d.t, old, h.Verdict, "%s: two verdicts with one id", d.state)
		}
		all[h.ID] = h.Verdict
	}
	return maps.Clone(all)
}
