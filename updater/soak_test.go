package updater

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// A device in the field for ten years, and its vendor: releases that work, that fail
// their checks and that hang; links that are down for hours and for weeks; the power
// that fails at any disk operation of an installation or a trial; a data partition that
// is full; a clock that starts in 1970 or jumps by thirty years; operators who cancel and
// go back; orders that are too old, for another board, or were sent before. Signatures
// expire and are renewed as time goes.
//
// After each of these the device runs what it should, or the system from before, with one
// verdict for each attempt; what boots is whole and signed, no trial lasts longer than
// its tries, and the floor of epochs never falls (powerOn and settled look at that).
// And the last year costs as much memory, as many goroutines and descriptors as the first.
//
// TANDEM_SOAK is the seed; the one of a run that failed goes the same way again, but for
// the order in which goroutines happened to run.
func TestTenYears(t *testing.T) {
	seed := uint64(1)
	if env := os.Getenv("TANDEM_SOAK"); env != "" {
		var err error
		seed, err = strconv.ParseUint(env, 10, 64)
		require.NoError(t, err)
	}
	years := 10
	if os.Getenv("TANDEM_LONG") != "" {
		years = 50
	}
	t.Logf("TANDEM_SOAK=%d", seed)
	theWorld() // is the same in both measurements
	figures := map[string]int{"soak-years": years}
	synctest.Test(t, func(t *testing.T) {
		s := newSoak(t, seed)
		year := func(n int) time.Time { return s.begin.AddDate(n, 0, 0) }
		s.until(year(1))
		first := s.measure()
		s.until(year(years))
		last := s.measure()

		t.Logf("%d events, %d attempts: %v", s.events, len(s.said), s.count)
		t.Logf("after a year: %v; after %d: %v", first, years, last)
		require.Equal(t, first.goroutines, last.goroutines)
		require.Equal(t, first.descriptors, last.descriptors)
		require.Less(t, last.heap, first.heap+4<<20, "heap in use: %s", "it grew with the years")
		for _, what := range []string{"updates", "reverts", "power-cuts", "outages"} {
			require.GreaterOrEqual(t, s.count[what], years, what)
			figures["soak-"+what] = s.count[what]
		}
	})
	for key, value := range figures {
		t.Attr(key, fmt.Sprint(value))
	}
}

// level is what a process holds while it has nothing to do.
type level struct {
	goroutines, descriptors int
	heap                    uint64
}

func (l level) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB of heap", l.goroutines, l.descriptors, l.heap>>10)
}

// soak is a device and its vendor, and what is to be said about them in the end.
type soak struct {
	t     *testing.T
	r     *rand.Rand
	w     *world
	keys  string // folder
	begin time.Time
	f     *following

	running bool           // follows its fleet
	last    transport.Want // that the broker keeps
	counter uint64
	number  uint64 // of releases
	epoch   uint64
	floor   uint64
	root    int    // how often it was renewed
	cuts    int    // that are still to come in this event
	fates   string // of sectors in this event

	said   map[string]saying // by attempt
	events int
	count  map[string]int
}

// bases are the systems that all releases consist of, with deltas from each to the next.
const bases = 8

func newSoak(t *testing.T, seed uint64) *soak {
	s := &soak{
		t: t, r: rand.New(rand.NewPCG(seed, 10)), keys: filepath.Join(t.TempDir(), "trust"), begin: time.Now(), number: bases,
		said: map[string]saying{}, count: map[string]int{},
	}
	folder, err := mktrust.Init(ctx, s.keys, s.today(), mktrust.InitOptions{})
	require.NoError(t, err)
	var first []variant
	for i := range uint64(bases) {
		v := variant{version: fmt.Sprintf("1.0.%d", i+1), sequence: i + 1, index: true}
		if i > 0 {
			v.base = first[i-1].version
		}
		first = append(first, v)
	}
	s.w, err = worldOf(folder, first)
	require.NoError(t, err)
	d := s.w.device(t, first[0].version, "")
	s.f = &following{device: d}
	t.Cleanup(s.stop)
	s.order(first[0].version, nil)
	s.boot()
	return s
}

// today is when the vendor signs what it signs now.
func (s *soak) today() time.Time { return today.Add(time.Since(s.begin)) }

// until lets one thing after another happen, with days or weeks in between.
func (s *soak) until(end time.Time) {
	for time.Now().Before(end) {
		time.Sleep(time.Duration(1+s.r.IntN(36*24)) * time.Hour)
		s.events++
		s.fates = ""
		s.renew()
		s.happens()
		s.rests()
	}
}

// renew signs what would expire. A root lives for a year.
func (s *soak) renew() {
	folder, err := mktrust.Open(s.keys, s.today())
	require.NoError(s.t, err)
	if n := int(time.Since(s.begin) / (180 * 24 * time.Hour)); n > s.root {
		s.root = n
		require.NoError(s.t, folder.RenewRoot(ctx))
	}
	require.NoError(s.t, folder.Refresh(ctx))
	require.NoError(s.t, s.w.fetch(folder))
}

// release makes and offers the next release, and returns its version.
func (s *soak) release(change func(m *manifest.Manifest)) string {
	s.number++
	like := s.w.by[fmt.Sprintf("1.0.%d", 1+(s.number-1)%bases)]
	r := &made{m: like.m, images: like.images, blobs: like.blobs}
	r.m.Version, r.m.Sequence, r.m.Epoch = fmt.Sprintf("%d.0.0", s.number), s.number, s.epoch
	if change != nil {
		change(&r.m)
	}
	folder, err := mktrust.Open(s.keys, s.today())
	require.NoError(s.t, err)
	require.NoError(s.t, s.w.publish(folder, r, true))
	if old := s.w.by[fmt.Sprintf("%d.0.0", s.number-8)]; old != nil {
		require.NoError(s.t, folder.RemoveTarget(ctx, old.m.TargetName()))
	}
	require.NoError(s.t, s.w.fetch(folder))
	return r.m.Version
}

// order has the fleet ask for a release. Some orders leave it to the device what to do
// where no delta fits; the others must not stop there.
func (s *soak) order(version string, change func(d *transport.Desired)) {
	s.counter++
	d := transport.Desired{Manifest: string(s.w.by[version].digest), Version: version, Full: transport.FullGo}
	if change != nil {
		change(&d)
	}
	body, err := json.Marshal(d)
	require.NoError(s.t, err)
	statement := trust.Statement{Device: me, Counter: s.counter, Kind: transport.KindDesired, Issued: s.today(), Expires: s.today().AddDate(0, 3, 0), Body: body}
	envelope, err := mktrust.Statement(ctx, statement, s.w.fleet...)
	require.NoError(s.t, err)
	s.last = transport.Want{Statement: envelope}
	if s.running {
		s.connects()
	}
}

// connects is a new connection, on which the broker repeats its order.
func (s *soak) connects() {
	select {
	case s.f.wants <- s.last:
	default: // it has not read the one before yet
	}
	synctest.Wait()
}

// boot starts the device, as often as it takes, and has it follow its fleet.
func (s *soak) boot() {
	for range 40 {
		d := s.f.device
		u := d.powerOn()
		if u == nil {
			continue
		}
		u.p.Log = slog.New(slog.DiscardHandler) // ten years are too much to read
		s.cutSoon(20)
		err := u.Resume(ctx)
		if s.cut() {
			continue
		}
		d.disks[0].Bench().CutAt(0)
		require.NoError(s.t, err, "%s", d.state)
		if d.rebooting != "" {
			continue
		}
		source := (func(*source))(nil)
		if s.f.fleet != nil {
			source = s.f.fleet.source
		}
		s.f = &following{device: d, fleet: &fleet{d: d, wants: make(chan transport.Want, 1), source: source}, u: u}
		s.f.again()
		s.running = true
		s.connects()
		return
	}
	require.Fail(s.t, "never stops rebooting", "event %d: %s", s.events, s.f.state)
}

// stop ends the program of the device.
func (s *soak) stop() {
	if s.running {
		s.running = false
		s.f.stop()
	}
}

// cutSoon lets the power fail within so many disk operations, if it is to fail at all.
func (s *soak) cutSoon(within int) {
	if s.cuts > 0 && s.r.IntN(2) == 0 {
		bench := s.f.disks[0].Bench()
		bench.CutAt(bench.Ops() + 1 + s.r.IntN(within))
	}
}

// cut tells whether the power failed, and makes the device what it has become: any of the
// states in which its disks may be.
func (s *soak) cut() bool {
	d := s.f.device
	bench := d.disks[0].Bench()
	if !bench.Cut() {
		return false
	}
	s.cuts--
	s.count["power-cuts"]++
	bounds := disktest.Bounds{From: bench.Ops(), Samples: 8, Seed: s.r.Uint64()}
	states := 0
	for range bench.Crashes(bounds) {
		states++
	}
	chosen := s.r.IntN(states)
	for crash := range bench.Crashes(bounds) {
		if chosen--; chosen >= 0 {
			continue
		}
		n := d.after(crash)
		n.boots, n.attempts = d.boots, d.attempts
		s.fates += crash.String()
		s.hear(d)
		s.f.device = n
		break
	}
	return true
}

// saying is what a verdict says about an attempt. Its times are not in it: where the data
// partition is full the device cannot keep what it said, and says it again after a restart.
type saying struct{ release, result, reason, check string }

// hear compares what was said with what was said before: an attempt has one verdict,
// however often that is repeated.
func (s *soak) hear(d *device) {
	for _, v := range d.verdicts {
		is := saying{v.Release, v.Result, v.Reason, v.Check}
		if was, ok := s.said[v.ID]; ok {
			require.Equal(s.t, was, is, "event %d: attempt %s: %s", s.events, v.ID, d.state)
		}
		s.said[v.ID] = is
	}
}

// goes lets time pass until the device has nothing to do any more, whatever happens to it.
func (s *soak) goes() {
	for i := range 60 {
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		switch {
		case s.f.disks[0].Bench().Cut():
			s.stop()
			s.cut()
			s.boot()
		case s.f.rebooting != "":
			s.f.disks[0].Bench().CutAt(0)
			s.stop()
			s.boot()
		case s.f.u.pending() == nil && s.f.u.journal().Update == nil:
			s.f.disks[0].Bench().CutAt(0)
			return
		case i%8 == 7:
			s.connects()
		}
	}
	require.Fail(s.t, "never comes to rest", "event %d: %s", s.events, s.f.state)
}

// destroyed tells whether a cut destroyed a sector in this event. If it was the one in
// which the loader counts, the trial ends without having been started.
func (s *soak) destroyed() bool {
	return strings.ContainsAny(strings.ReplaceAll(s.fates, "cut=", ""), "xu")
}

// happens is one event.
func (s *soak) happens() {
	from := s.f.u.running.Manifest.Version
	what := s.r.IntN(100)
	switch {
	case what < 22:
		s.updates()
	case what < 34:
		s.outage()
	case what < 52:
		s.cuts = 1 + s.r.IntN(2)
		s.updates()
	case what < 66:
		s.reverts(from)
	case what < 74:
		s.full()
	case what < 80:
		s.clock()
	case what < 86:
		s.cancelled(from)
	case what < 92:
		s.rolledBack(from)
	default:
		s.wrong(from)
	}
	s.cuts = 0
}

// updates has the device take a good release.
func (s *soak) updates() {
	version := s.good()
	s.cutSoon(45)
	s.order(version, nil)
	s.goes()
	s.ends(version)
}

// good makes a release that works. A few make older ones unacceptable.
func (s *soak) good() string {
	if s.r.IntN(12) == 0 {
		s.epoch++
		s.count["epochs"]++
	}
	return s.release(nil)
}

// ends requires that the device runs the release, and said so.
func (s *soak) ends(version string) {
	s.count["updates"]++
	v := s.f.verdict()
	if running := s.f.u.running.Manifest.Version; running != version && s.destroyed() {
		require.Equal(s.t, transport.Reverted, v.Result, "event %d: %s", s.events, s.f.state)
		return
	}
	require.Equal(s.t, version, s.f.u.running.Manifest.Version, "event %d: %+v; %s", s.events, v, s.f.state)
	require.Equal(s.t, transport.Committed, v.Result, "event %d: %s", s.events, s.f.state)
}

// stays requires that the device runs what it ran, and said how the attempt ended.
func (s *soak) stays(from string, results ...string) {
	require.Equal(s.t, from, s.f.u.running.Manifest.Version, "event %d: %s", s.events, s.f.state)
	require.Contains(s.t, results, s.f.verdict().Result, "event %d: %s", s.events, s.f.state)
}

// outage takes the link away in the middle of an update, or lets the server refuse. A
// server that is there and refuses is asked every few minutes, so it does for some hours.
func (s *soak) outage() {
	s.count["outages"]++
	longest, refused := 21*24, s.r.IntN(3) == 0
	if refused {
		longest = 8
	}
	end := time.Now().Add(time.Duration(1+s.r.IntN(longest)) * time.Hour)
	after := s.r.Int64N(2 * leaf)
	s.f.linkUp = false
	s.f.serves(func(src *source) {
		src.onRead = func(manifest.Digest, int64, []byte) error {
			switch left := time.Until(end); {
			case left <= 0 || src.moved < after:
			case refused:
				return syscall.ECONNREFUSED
			default:
				time.Sleep(left)
			}
			return nil
		}
	})
	version := s.good()
	s.order(version, nil)
	time.Sleep(time.Until(end))
	s.f.linkUp = true
	s.connects()
	s.goes()
	s.ends(version)
}

// reverts has the device take a release that fails its checks, or dies in every boot.
func (s *soak) reverts(from string) {
	s.count["reverts"]++
	version := s.release(nil)
	switch end := s.r.IntN(4); end {
	case 0:
		s.f.sick[version] = "works"
	default:
		s.f.hangs[version] = []string{"watchdog", "panic", "power"}[end-1]
	}
	s.order(version, nil)
	s.goes()
	s.stays(from, transport.Reverted)
	delete(s.f.sick, version)
	delete(s.f.hangs, version)
}

// full fills the data partition before an update, in the middle of it or for its trial.
func (s *soak) full() {
	s.count["full"]++
	store := s.f.store
	version := s.good()
	switch s.r.IntN(3) {
	case 0:
		store.full = syscall.ENOSPC
		s.order(version, nil)
		time.Sleep(time.Duration(1+s.r.IntN(100)) * time.Hour)
	case 1:
		s.f.serves(func(src *source) {
			src.onRead = func(manifest.Digest, int64, []byte) error {
				store.full = syscall.ENOSPC
				return nil
			}
		})
		s.order(version, nil)
		time.Sleep(time.Duration(1+s.r.IntN(100)) * time.Hour)
	default:
		s.order(version, nil)
		store.full = syscall.ENOSPC
		s.goes()
	}
	s.f.serves(nil)
	store.full = nil
	s.connects()
	s.goes()
	s.ends(version)
}

// clock sets the device's clock, and lets an update follow.
func (s *soak) clock() {
	s.count["clocks"]++
	s.f.jump = []time.Duration{0, -time.Since(time.Unix(0, 0)), 30 * 365 * 24 * time.Hour, -365 * 24 * time.Hour}[s.r.IntN(4)]
	s.stop()
	s.boot()
	s.updates()
}

// cancelled has an operator cancel an update.
func (s *soak) cancelled(from string) {
	s.count["cancels"]++
	u, after := s.f.u, s.r.Int64N(leaf/4)
	s.f.serves(func(src *source) {
		src.onRead = func(manifest.Digest, int64, []byte) error {
			if src.moved >= after {
				_ = u.Cancel()
			}
			return nil
		}
	})
	s.order(s.good(), nil)
	s.goes()
	// Refused, where it had not begun to write.
	s.stays(from, transport.Failed, transport.Refused)
}

// rolledBack has an operator go back to the system from before, where there is one.
func (s *soak) rolledBack(from string) {
	other := s.f.holds(s.f.u.spare())
	err := s.f.u.Rollback(ctx, false)
	if err != nil {
		s.count["rollbacks refused"]++
		require.True(s.t, among(err, ErrNoFallback, ErrEpoch), "event %d: %v", s.events, err)
		return
	}
	s.count["rollbacks"]++
	s.goes()
	require.NotEqual(s.t, from, other)
	require.Equal(s.t, other, s.f.u.running.Manifest.Version, "event %d", s.events)
}

// wrong has the fleet ask for what the device must not take.
func (s *soak) wrong(from string) {
	s.count["wrong orders"]++
	switch s.r.IntN(4) {
	case 0:
		s.order(s.release(func(m *manifest.Manifest) { m.Boards = []string{"other"} }), nil)
		s.goes()
		s.stays(from, transport.Refused)
	case 1:
		older := "1.0.1"
		if from == older {
			return
		}
		s.order(older, nil)
		s.goes()
		s.stays(from, transport.Refused)
	case 2: // garbled on its way
		good := s.last
		s.last.Statement = slices.Clone(good.Statement)
		s.last.Statement[len(s.last.Statement)/2] ^= 1
		s.nothing(from)
		s.last = good
	default: // signed with the counter of the one before
		good := s.last
		s.counter--
		s.order(s.release(nil), nil)
		s.nothing(from)
		s.last = good
	}
}

// nothing requires that the device takes no notice of the order.
func (s *soak) nothing(from string) {
	before := len(s.f.verdicts)
	s.connects()
	s.goes()
	require.Len(s.t, s.f.verdicts, before)
	require.Equal(s.t, from, s.f.u.running.Manifest.Version, "event %d", s.events)
}

// rests looks at the device after an event, and starts it on a bench with an empty log.
func (s *soak) rests() {
	d, u := s.f.device, s.f.u
	s.stop()
	s.hear(d)
	d.settled(u, u.running.Manifest.Version)
	require.GreaterOrEqual(s.t, u.floor(), s.floor, "event %d: the floor fell", s.events)
	s.floor = u.floor()

	bench := disktest.NewBench()
	for _, disk := range d.disks {
		bench.Disk(disk.Bytes())
	}
	n := onDisks(s.t, bench.Disks())
	n.w, n.tuf, n.jump, n.ids, n.boots = d.w, d.tuf, d.jump, 1000*(1+d.ids/1000), d.boots
	n.attempts = d.attempts[max(0, len(d.attempts)-16):] // the first program keeps as few
	for version := range s.w.by {
		held := slices.ContainsFunc([]bootctl.Slot{bootctl.A, bootctl.B}, func(slot bootctl.Slot) bool { return d.holds(slot) == version })
		if old := s.w.by[version]; !held && old.m.Sequence > bases && old.m.Sequence+9 < s.number {
			delete(s.w.names, old.digest)
			delete(s.w.by, version)
			s.w.verified.Delete(string(old.envelope))
		}
	}
	s.f.device = n
	s.f.serves(nil)
	s.boot()
}

// measure takes the level while the device waits for work.
func (s *soak) measure() level {
	synctest.Wait()
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(s.t, err)
	return level{runtime.NumGoroutine(), len(open), m.HeapAlloc}
}
