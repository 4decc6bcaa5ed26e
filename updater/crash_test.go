package updater

import (
	"fmt"
	"hash/fnv"
	"iter"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
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
	d.state += " without " + string(l)
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

// cut cuts the story at every disk operation and looks how it ends, and so again, for
// some of the states, at operations of what follows.
//
// Of the states that a cut can leave (over 400 for a leaf in flight) the simplest are
// visited, which is all of them for a single sector, and a hash chooses from the others.
func (s story) cut(t *testing.T, l loss) {
	d := s.begin(t)
	s.ends(d, s.tell(d), nothing)
	first, others := 6, uint32(100)
	if l != nothing {
		first, others = 2, 300
	}
	states, second := 0, 0
	for crash := range visited(d.disks[0].Bench(), first, others) {
		states++
		n := d.after(crash)
		n.lose(l)
		s.ends(n, s.tell(n), l)
		if l == nothing && !strings.ContainsAny(n.fates, "xu") {
			// What was durable is not downloaded again: at most one checkpoint, the frame
			// around it, the table of frames and the lists of leaves.
			require.LessOrEqual(t, d.movedAt(crash.Cut)+n.moved, d.moved+every+2*leaf+4096, "%s", n.state)
		}
		for again := range oneCut(n.disks[0].Bench(), states) {
			second++
			m := n.after(again)
			m.lose(l)
			s.ends(m, s.tell(m), l)
		}
	}
	t.Logf("%d operations, %d states after one cut, %d after two", d.ops(), states, second)
}

// replaying means that one state is looked at again, by its line.
var replaying = os.Getenv("DISKTEST") != ""

// visited picks of each cut the first states and one of so many others.
func visited(b *disktest.Bench, first int, others uint32) iter.Seq[*disktest.Crash] {
	return func(yield func(*disktest.Crash) bool) {
		cut, n := -1, 0
		for c := range b.Crashes(disktest.Bounds{Samples: 2, Writes: 3, Sectors: 4}) {
			if c.Cut != cut {
				cut, n = c.Cut, 0
			}
			n++
			h := fnv.New32a()
			fmt.Fprint(h, c.Cut, n)
			if n > first && !replaying && h.Sum32()%others != 0 {
				continue
			}
			if !yield(c) {
				return
			}
		}
	}
}

// oneCut picks one cut by a number, and of it the simplest state and another one.
func oneCut(b *disktest.Bench, number int) iter.Seq[*disktest.Crash] {
	return func(yield func(*disktest.Crash) bool) {
		at, n := (number*37)%(b.Ops()+1), 0
		for c := range b.Crashes(disktest.Bounds{Samples: 1, Writes: 2, Sectors: 2, From: at}) {
			if c.Cut > at && !replaying {
				return
			}
			n++
			if (n == 1 && number%3 == 0 || n == 2+number%7 || replaying) && !yield(c) {
				return
			}
		}
	}
}

// The power may fail at any disk operation of an update, of its trial, of its commit,
// of the loader's own counting, and in the middle of what the device does about it;
// the journal may go with it, and the boot record. Whatever is left: what boots is a
// whole, signed system, no trial lasts longer than its tries, and the device gets to
// the new release, re-doing at most one checkpoint.
//
// There are two ways to stay with the old release. Without its journal, the device
// takes a trial that it finds for one that failed. And a cut that destroys the sector
// in which the loader counts makes it end the trial, since it could not be counted.
func TestUpdatePowerCut(t *testing.T) {
	commits := func(version string) func(d *device, u *Updater, l loss) {
		return func(d *device, u *Updater, l loss) {
			d.boil()
			if u.running.Manifest.Version == "1.0.0" && (l != nothing || strings.ContainsAny(d.fates, "xu")) {
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
	fresh := func(t testing.TB) *device { return newDevice(t, "1.0.0", "") }
	older := func(t testing.TB) *device { return newDevice(t, "1.0.0", "0.9.0") }
	for _, c := range []struct {
		name string
		s    story
		l    loss
	}{
		{"by deltas, into a new slot", story{fresh, "2.0.0", commits("2.0.0")}, nothing},
		{"in full, over an older system", story{older, "4.0.0-full", commits("4.0.0-full")}, nothing},
		{"by indexes, over an older system", story{older, "3.3.0-index", commits("3.3.0-index")}, nothing},
		{"and the journal with it", story{older, "2.0.0", commits("2.0.0")}, theJournal},
		{"and the boot record with it", story{older, "2.0.0", commits("2.0.0")}, theRecord},
		{"and both with it", story{older, "2.0.0", commits("2.0.0")}, both},
		{"and the floor rises", story{older, "2.5.0-epoch", commits("2.5.0-epoch")}, nothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { c.s.cut(t, c.l) })
		})
	}
}

// The same for a release that does not prove itself: the device ends with the old one,
// by itself, whatever is cut, says why once, and does not take the release again.
func TestRevertPowerCut(t *testing.T) {
	reverts := func(reason string) func(d *device, u *Updater, l loss) {
		return func(d *device, u *Updater, l loss) {
			d.boil()
			d.settled(u, "1.0.0")
			_, failed := u.journal().FailedBefore(d.w.by["2.0.0"].digest)
			require.True(d.t, failed, "%s", d.state)
			require.Equal(d.t, transport.Reverted, d.verdict().Result, "%s", d.state)
			if l == nothing && !strings.ContainsAny(d.fates, "xu") && d.state == "" {
				require.Equal(d.t, reason, d.verdict().Reason, "%s", d.state)
			}
		}
	}
	sick := func(t testing.TB) *device {
		d := newDevice(t, "1.0.0", "0.9.0")
		d.sick["2.0.0"] = "works"
		return d
	}
	hangs := func(t testing.TB) *device {
		d := newDevice(t, "1.0.0", "")
		d.hangs["2.0.0"] = "watchdog"
		return d
	}
	for _, c := range []struct {
		name string
		s    story
		l    loss
	}{
		{"checks fail", story{sick, "2.0.0", reverts(transport.ReasonHealth)}, nothing},
		{"checks fail, and the journal is lost", story{sick, "2.0.0", reverts(transport.ReasonHealth)}, theJournal},
		{"hangs", story{hangs, "2.0.0", reverts(transport.ReasonWatchdog)}, nothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { c.s.cut(t, c.l) })
		})
	}
}
