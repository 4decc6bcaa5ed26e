package updater

import (
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// story is something that a device goes through, to be cut at every moment of it.
type story struct {
	begin func(t testing.TB) *device // switched off
	goal  string                     // what the fleet asks for; "" for nothing
	// ends checks where the device ends after any cut. lost says what else went.
	ends func(d *device, u *Updater, lost loss)
}

// loss is what goes beside what was not synced.
type loss string

const (
	nothing    loss = "nothing"
	theJournal loss = "the journal"
	theRecord  loss = "the boot record"
	both       loss = "the journal and the boot record"
)

// lose is the loss itself. Of the boot record the copy remains that is written only
// at commit.
func (d *device) lose(l loss) {
	if l != nothing {
		d.state += " without " + string(l)
	}
	if l == theJournal || l == both {
		d.clear(dataDisk, 0, 4*fileCopy)
	}
	if l == theRecord || l == both {
		d.clear(envDisk, envCopies, envConfirmed)
	}
}

// tell goes through the story, or what is left of it, without a cut.
func (s story) tell(d *device) *Updater {
	u := d.start()
	for range 5 {
		if s.goal == "" || u.running.Manifest.Version == s.goal {
			return u
		}
		if _, failed := u.journal().FailedBefore(d.w.by[s.goal].digest); failed {
			return u
		}
		require.NoError(d.t, d.install(u, s.goal, Options{Full: transport.FullGo}), "%s", d.state)
		u = d.start()
	}
	require.Fail(d.t, "never gets there", "%s: runs %s", d.state, u.running.Manifest.Version)
	return nil
}

// replaying means that one state is looked at again, by its line: what came before the
// cuts, if anything did, and each cut (see package disktest).
func replaying() bool { return replayed() != "" }

func replayed() string { return os.Getenv("DISKTEST") }

func replayedFault() string {
	fault, _, ok := strings.Cut(replayed(), ": ")
	if !ok {
		return ""
	}
	return fault
}

// told is a story, what is lost beside, and what it is called.
type told struct {
	name string
	s    story
	l    loss
}

func fresh(t testing.TB) *device { return newDevice(t, "1.0.0", "") }
func older(t testing.TB) *device { return newDevice(t, "1.0.0", "0.9.0") }

// reported requires one report of the update. Of what a cut or a loss brings to an end
// there is one too, and then the fleet asks once more.
func (d *device) reported(l loss) {
	most := 1
	if l != nothing || d.destroyed {
		most += d.cuts
	}
	require.LessOrEqual(d.t, len(d.boil()), most, "%s: %v", d.state, d.verdicts)
}

// commits is how an update ends that nothing is wrong with. There are three ways to stay
// with the old release: without its journal, the device takes a trial that it finds for
// one that failed; a cut that destroys the sector in which the loader counts makes it end
// the trial, since it could not be counted; and cuts can use up all tries.
func commits(version string) func(d *device, u *Updater, l loss) {
	return func(d *device, u *Updater, l loss) {
		d.reported(l)
		if u.running.Manifest.Version == "1.0.0" && (l != nothing || d.destroyed || d.cuts >= d.w.by[version].m.Trial.Tries) {
			d.settled(u, "1.0.0")
			require.Equal(d.t, transport.Reverted, d.verdict().Result, "%s", d.state)
			return
		}
		d.settled(u, version)
		if l == nothing {
			require.Equal(d.t, transport.Committed, d.verdict().Result, "%s", d.state)
		}
	}
}

// reverts is how a trial ends that does not prove itself: with the old release, by
// itself, with one reason; and the device does not take the release again.
func reverts(reason string) func(d *device, u *Updater, l loss) {
	return func(d *device, u *Updater, l loss) {
		d.reported(l)
		d.settled(u, "1.0.0")
		_, failed := u.journal().FailedBefore(d.w.by["2.0.0"].digest)
		require.True(d.t, failed, "%s", d.state)
		require.Equal(d.t, transport.Reverted, d.verdict().Result, "%s", d.state)
		if l == nothing && !d.destroyed && d.state == "" {
			require.Equal(d.t, reason, d.verdict().Reason, "%s", d.state)
		}
	}
}

// raises is how an update ends that raises the floor: at its commit, and not before.
func raises(version string, floor uint64) func(d *device, u *Updater, l loss) {
	return func(d *device, u *Updater, l loss) {
		commits(version)(d, u, l)
		want := floor
		if u.running.Manifest.Version != version {
			want = 0
		}
		require.Equal(d.t, want, u.floor(), "%s", d.state)
		require.Equal(d.t, want, u.journal().EpochFloor, "%s", d.state)
	}
}

func sick(t testing.TB) *device {
	d := older(t)
	d.sick["2.0.0"] = "works"
	return d
}

func hangs(t testing.TB) *device {
	d := fresh(t)
	d.hangs["2.0.0"] = "watchdog"
	return d
}

var stories = []told{
	{"by deltas, into a new slot", story{fresh, "2.0.0", commits("2.0.0")}, nothing},
	{"by deltas, over an older system", story{older, "2.0.0", commits("2.0.0")}, nothing},
	{"in full, over an older system", story{older, "4.0.0-full", commits("4.0.0-full")}, nothing},
	{"by indexes, over an older system", story{older, "3.3.0-index", commits("3.3.0-index")}, nothing},
	{"by indexes, nothing in common", story{older, "3.5.0-alien", commits("3.5.0-alien")}, nothing},
	{"and the journal with it", story{older, "2.0.0", commits("2.0.0")}, theJournal},
	{"and the boot record with it", story{older, "2.0.0", commits("2.0.0")}, theRecord},
	{"and both with it", story{older, "2.0.0", commits("2.0.0")}, both},
	{"and the floor rises", story{older, "2.5.0-epoch", raises("2.5.0-epoch", 2)}, nothing},
	{"and the data migrates", story{older, "2.7.0-schema", commits("2.7.0-schema")}, nothing},
	{"and a modem is updated", story{older, "2.8.0-external", commits("2.8.0-external")}, nothing},
	{"checks fail", story{sick, "2.0.0", reverts(transport.ReasonHealth)}, nothing},
	{"checks fail, and the journal is lost", story{sick, "2.0.0", reverts(transport.ReasonHealth)}, theJournal},
	{"hangs", story{hangs, "2.0.0", reverts(transport.ReasonWatchdog)}, nothing},
}

// The power may fail at any disk operation of an update, of its trial, of its commit,
// of the loader's own counting, and in the middle of what the device does about it;
// the journal may go with it, and the boot record. Whatever is left: what boots is a
// whole, signed system, no trial lasts longer than its tries, and the device gets to
// where it would have got, re-doing at most one checkpoint.
//
// With TANDEM_EXPLORE=1 it goes as far as the project promises.
func TestExplorer(t *testing.T) {
	e := newExplorer()
	t.Run("cut", func(t *testing.T) {
		for _, c := range stories {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) { e.explore(t, c.name, c.s, c.l) })
			})
		}
	})
	t.Run("fault", e.faults)
	e.publish(t)
}

// The line of a state brings that state back, with whatever else was drawn for it by lot,
// however many cuts it took.
func TestStateComesBack(t *testing.T) {
	var lines []string
	s := story{begin: older, goal: "2.0.0", ends: func(d *device, _ *Updater, _ loss) { lines = append(lines, d.state) }}
	explore := func() {
		lines = nil
		e := newExplorer()
		e.quick, e.share = true, 2000
		bubble(t, func(t *testing.T) { e.explore(t, "", s, nothing) })
	}
	explore()
	deepest := map[string]int{}
	for _, line := range lines {
		if strings.Contains(line, "and 30 years later") || strings.Count(line, "; ") == 2 {
			deepest[line] = strings.Count(line, "; ")
		}
	}
	all := slices.Sorted(maps.Keys(deepest))
	require.Greater(t, len(all), 10)
	for i := 0; i < len(all); i += len(all) / 5 {
		t.Setenv("DISKTEST", all[i])
		explore()
		require.Contains(t, lines, all[i])
		require.Less(t, len(lines), 5+deepest[all[i]], "that state, and those on the way to it")
	}
}

// missed is a test in which something is not as it must be.
type missed struct{ testing.TB }

func (missed) Errorf(string, ...any) {}
func (missed) FailNow()              { panic(missed{}) }

// What the explorer asks of a state can be missed, and where the medium broke its word
// it asks for less, but not for nothing.
func TestSoundFindsFault(t *testing.T) {
	const whole, rotten = "1.0.0", ""
	for _, c := range []struct {
		state           string
		a, b            string
		record          bootctl.Record
		sound, betrayed bool
	}{
		{"two systems", whole, whole, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK}, true, true},
		{"one system", whole, rotten, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}, true, true},
		{"a fallback that is none", whole, rotten, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK}, false, true},
		{"a trial of nothing", whole, rotten, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: 3}, false, true},
		{"a trial with too many tries", whole, whole, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: 9}, false, false},
		{"good is lost, the other is there", whole, rotten, bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK}, false, true},
		{"good is lost, the other may not boot", whole, rotten, bootctl.Record{Good: bootctl.B, A: bootctl.Bad, B: bootctl.OK}, false, false},
		{"the last system is lost", rotten, rotten, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}, false, false},
		{"all is lost", rotten, rotten, bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK}, false, false},
	} {
		for betrayed, want := range map[bool]bool{false: c.sound, true: c.betrayed} {
			d := newDevice(t, c.a, c.b)
			_, err := d.disks[envDisk].WriteAt(grubenv.Image(c.record)[:grubenv.LedgerOffset], 0)
			require.NoError(t, err)
			d.t = missed{t}
			sound := func() (ok bool) {
				defer func() { ok = recover() == nil }()
				d.sound(betrayed)
				return
			}()
			require.Equal(t, want, sound, "%s, betrayed %v", c.state, betrayed)
		}
	}
}

// A program that is killed between the write of a boot record and its sync leaves one
// that can be read and is not on the medium. The program that comes after it neither
// writes to a slot that only such a record calls bad, nor reports a commit that only
// such a record knows.
func TestRecordOfKilledProgram(t *testing.T) {
	for _, c := range []struct {
		name string
		nth  int // sync of the boot record, of all programs
	}{
		{"while it takes the spare slot away", 1},
		{"while it commits", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := older(t)
				s := story{begin: older, goal: "2.0.0"}
				d.disks[envDisk].Inject(disktest.Fault{Op: disktest.Sync, At: c.nth, Halt: true})
				s.endure(d, true)
				require.True(t, d.disks[envDisk].Fired())
				d.settled(d.start(), "2.0.0")
				for crash := range d.disks[0].Bench().Crashes(disktest.Bounds{}) {
					n := d.after(crash)
					n.sound(false)
					if crash.Cut >= d.verdicts[0].ops && !n.destroyed {
						require.Equal(t, bootctl.B, n.record().Good, "%s: the fleet was told", n.state)
					}
				}
			})
		})
	}
}

// Wherever the power fails while a release is given up that cannot be installed, the
// fleet hears of it, once, and the device is left with nothing half done.
func TestFailureIsReported(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fails := func(d *device) {
			u := d.start()
			_, failed := u.journal().FailedBefore(d.w.by["2.8.0-external"].digest)
			if !failed {
				require.Error(t, d.install(u, "2.8.0-external", Options{}))
			}
		}
		refuses := func(manifest.Image, string, io.Reader) (bool, error) { return false, external.ErrHandler }
		d := older(t)
		d.handler = refuses
		fails(d)
		for crash := range d.disks[0].Bench().Crashes(disktest.Bounds{Samples: 1, Writes: 2, Sectors: 2}) {
			n := d.after(crash)
			fails(n)
			u := n.start()
			require.Nil(t, u.journal().Update, "%s", n.state)
			require.Len(t, n.boil(), 1, "%s", n.state)
			require.Equal(t, transport.Failed, n.verdict().Result, "%s", n.state)
		}
	})
}
