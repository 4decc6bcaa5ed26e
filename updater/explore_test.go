package updater

import (
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// The classes of faults beside those of a cut alone (disktest.Class).
const (
	Lying    disktest.Class = "C6"  // a flush that lies
	Failing  disktest.Class = "C7"  // EIO, ENOSPC and short writes, once and for good
	Misread  disktest.Class = "C8"  // flipped bits and reads that go astray
	Shape    disktest.Class = "C9"  // partitions of another size, or read-only
	Slow     disktest.Class = "C10" // operations of minutes
	Compound disktest.Class = "C11" // a second fault during recovery
)

// explorer goes through the states in which a device may be left, and counts them.
// A state counts when it was looked at, or when everything that looking reads is the
// same as in one that was.
type explorer struct {
	quick bool // go through a little of everything
	begin time.Time
	share uint32 // but for the simplest, one of so many states is gone through to the end

	looked *looked

	mu        sync.Mutex
	cuts      map[disktest.Class]int
	evaluated int // looked at
	equal     int // shown equal to one that was
	resumed   int // gone through to the end
	most      int // writes that were pending at once
	depth     int // cuts in a row
}

func newExplorer() *explorer {
	e := &explorer{begin: time.Now(), share: 8, looked: &looked{}, cuts: map[disktest.Class]int{}}
	if os.Getenv("TANDEM_EXPLORE") == "" {
		e.quick, e.share = true, 2000
	}
	return e
}

// known are the states that were looked at, by what looking read: a disk, then by what
// it holds the next one that is read, until nothing more is.
//
// Looking depends on nothing but disks, so what it reads next follows from what it has
// read.
type known struct {
	end  bool // this is all that was read
	disk int
	then map[uint64]*known
}

// has tells whether looking at c would read what it has read before.
func (k *known) has(c *disktest.Crash) bool {
	for k != nil && !k.end {
		k = k.then[c.Sum(k.disk)]
	}
	return k != nil
}

// add notes that looking at c read these disks, in this order; false if that is known.
func (k *known) add(c *disktest.Crash, read []int) bool {
	for _, disk := range read {
		if k.then == nil {
			k.disk, k.then = disk, map[uint64]*known{}
		}
		if k.end || k.disk != disk {
			panic("the same content was read in another order: looking depends on more than disks")
		}
		next := k.then[c.Sum(disk)]
		if next == nil {
			next = &known{}
			k.then[c.Sum(disk)] = next
		}
		k = next
	}
	isNew := !k.end
	k.end = true
	return isNew
}

// looked are the states of all stories that were looked at. What is asked of a state in
// which a medium has lost what it had called durable is less.
type looked struct {
	mu              sync.Mutex
	sound, betrayed known
}

func (l *looked) at(betrayed bool) *known {
	if betrayed {
		return &l.betrayed
	}
	return &l.sound
}

func (l *looked) has(c *disktest.Crash, betrayed bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at(betrayed).has(c)
}

func (l *looked) add(c *disktest.Crash, betrayed bool, read []int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at(betrayed).add(c, read)
}

// sound requires what must be so in every state that a device can be in, before any
// program of it has run: a whole and signed system boots, and whatever else may boot
// is one; a slot that the record calls good or gives a trial is one; each boot of a
// trial has fewer left, and the last one is followed by the good slot.
//
// What a medium loses that it had called durable (betrayed) is lost whatever anybody
// does: then a slot that is on trial may not be whole, whose kernel may load and whose
// root does not; nor one that is good already, if the medium kept up its lie for a whole
// trial. What must be so is that each such trial comes to its end, and that the system
// from before is whole, and boots where the other one does not.
func (d *device) sound(betrayed bool) {
	env := d.disks[envDisk]
	_, _ = env.ReadAt(make([]byte, 1), 0) // whoever reads it below reads past the log of reads
	if r, err := grubenv.Open(env).Load(); err == nil && !betrayed {
		require.NotEmpty(d.t, d.holds(r.Good), "%s: slot %s is good and not whole: %s", d.state, r.Good, r)
		if r.Trying != "" {
			require.NotEmpty(d.t, d.holds(r.Trying), "%s: slot %s is on trial and not whole: %s", d.state, r.Trying, r)
		}
	}
	for left := bootctl.MaxTries + 1; ; {
		before := env.Bytes()
		boot := boottest.GRUB(before, boottest.World{})
		require.NotEmpty(d.t, boot.Slot, "%s: nothing boots; loader: %q", d.state, boot.Lines)
		version := d.holds(boot.Slot)
		if !betrayed {
			require.NotEmpty(d.t, version, "%s: slot %q boots and is not whole; loader: %q", d.state, boot.Slot, boot.Lines)
		}
		for _, broken := range []bootctl.Slot{bootctl.A, bootctl.B} {
			s := boottest.GRUB(before, boottest.World{Broken: []bootctl.Slot{broken}}).Slot
			lost := version == "" && !boot.Trial && broken == boot.Slot
			if lost || s != "" && !betrayed {
				require.NotEmpty(d.t, d.holds(s), "%s: slot %q would boot if slot %s did not load, and is not whole", d.state, s, broken)
			}
		}
		d.write(boot.Env)
		if !boot.Trial {
			return
		}
		r, err := grubenv.Open(env).Load()
		require.NoError(d.t, err, "%s", d.state)
		require.Less(d.t, r.Tries, left, "%s: a boot of slot %s that does not count", d.state, boot.Slot)
		if version != "" {
			require.Less(d.t, r.Tries, d.w.by[version].m.Trial.Tries, "%s: slot %s has more tries than its manifest gives it", d.state, boot.Slot)
		}
		left = r.Tries
	}
}

// look goes through the states that a cut may have left of what d did so far, as far as
// they can be told before a program runs, and counts them as class, or as what they are.
func (e *explorer) look(d *device, l *looked, class disktest.Class, bounds disktest.Bounds, visit func(*disktest.Crash)) {
	cuts, evaluated, equal, most := map[disktest.Class]int{}, 0, 0, 0
	for c := range d.disks[0].Bench().Crashes(bounds) {
		count := class
		if count == "" {
			count = c.Class
		}
		cuts[count]++
		most = max(most, c.Pending())
		betrayed := class == Lying && c.Lost()
		if l.has(c, betrayed) {
			equal++
		} else {
			n := onDisks(d.t, c.Disks())
			n.state = d.line(c)
			n.sound(betrayed)
			if l.add(c, betrayed, n.disks[0].Bench().Seen()) {
				evaluated++
			} else {
				equal++ // somebody else was looking at it
			}
		}
		if visit != nil {
			visit(c)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for c, n := range cuts {
		e.cuts[c] += n
	}
	e.evaluated, e.equal, e.most = e.evaluated+evaluated, e.equal+equal, max(e.most, most)
}

// stayed requires that nothing was written but the boot record, the journal, and a slot
// that neither runs nor was good when this system was started: what the log does not
// write is the same in every state of it.
func (d *device) stayed() {
	at := 0
	for i, op := range d.disks[0].Bench().Log() {
		for at+1 < len(d.ran) && d.ran[at+1].ops <= i {
			at++
		}
		if op.Kind != disktest.Write || op.Disk == envDisk || op.Disk == dataDisk || len(d.ran) == 0 || i < d.ran[0].ops {
			continue
		}
		slot := bootctl.A
		if op.Disk == bootB || op.Disk == rootB {
			slot = bootctl.B
		}
		boot := d.ran[at]
		require.NotContains(d.t, []bootctl.Slot{boot.runs, boot.good}, slot, "%s: operation %d writes %d bytes at %d of slot %s: slot %s runs, slot %s is good",
			d.state, i, len(op.Data), op.Off, slot, boot.runs, boot.good)
	}
}

// chosen tells whether a state is gone through to the end: the simplest of each cut
// are, and one of share of all others.
func (e *explorer) chosen(c *disktest.Crash, nth int, name string) bool {
	if replaying() || nth == 1 || nth <= 3 && !e.quick {
		return true
	}
	h := fnv.New32a()
	fmt.Fprint(h, name, c.Cut, nth)
	return h.Sum32()%e.share == 0
}

// explore cuts the story at every disk operation, looks at every state that it may
// leave, and takes some of them to the end; and looks at every state in which a cut of
// that may leave the device, and takes one of these to the end; and so once more.
func (e *explorer) explore(t *testing.T, name string, s story, l loss) {
	if replayedFault() != "" {
		return
	}
	d := s.begin(t)
	s.ends(d, s.tell(d), nothing)
	d.stayed()
	cut, nth, resumed := -1, 0, 0
	redo, written := int64(0), d.written()
	bounds := disktest.Bounds{Samples: 64, Writes: 6, Sectors: 9}
	if l != nothing {
		bounds = disktest.Bounds{Samples: 2, Writes: 3, Sectors: 4}
	}
	count := e
	if l != nothing {
		// What is lost beside is lost after the cut: the states of the cut are those of the
		// same story without a loss, and counted there.
		count = &explorer{looked: &looked{}, cuts: map[disktest.Class]int{}}
	}
	visit := func(c *disktest.Crash) {
		if c.Cut != cut {
			cut, nth = c.Cut, 0
		}
		if nth++; !e.chosen(c, nth, name) {
			return
		}
		resumed++
		n := d.after(c)
		n.lose(l)
		n.unlucky()
		s.ends(n, s.tell(n), l)
		n.stayed()
		if l == nothing && !n.destroyed {
			// What was durable is not downloaded again: at most one checkpoint, the frame
			// around it, the table of frames and the lists of leaves; and where there are
			// indexes, these, in whole leaves, since the choice is made again. A payload comes in
			// leaves, and these deltas are one: all of it or, after the last checkpoint, nothing.
			again := int64(4096)
			if c.Cut <= written {
				again += every + 2*leaf
				if s.indexed(d) {
					again += 2 * leaf
				}
			}
			redo = max(redo, d.movedAt(c.Cut)+n.moved-d.moved)
			require.LessOrEqual(t, d.movedAt(c.Cut)+n.moved, d.moved+again, "%s", n.state)
		}
		resumed += e.again(n, s, l, 2)
	}
	count.look(d, count.looked, "", bounds, visit)
	e.mu.Lock()
	e.resumed += resumed
	e.mu.Unlock()
	t.Logf("%d operations, %d states taken to the end; %d bytes, at most %d again", d.ops(), resumed, d.moved, redo)
}

// written is after how many operations the slots were written for the last time: what
// comes last is a slot record.
func (d *device) written() (ops int) {
	for i, op := range d.disks[0].Bench().Log() {
		if op.Kind == disktest.Write && op.Disk != envDisk && op.Disk != dataDisk {
			ops = i
		}
	}
	return ops
}

// indexed tells whether the release of the story offers index payloads.
func (s story) indexed(d *device) bool {
	for _, img := range d.w.by[s.goal].m.Images {
		for _, p := range img.Payloads {
			if p.Kind == manifest.KindIndex {
				return true
			}
		}
	}
	return false
}

// lot is a number that depends on the state alone, so that its line brings back what was
// drawn by it.
func (d *device) lot() int {
	h := fnv.New32a()
	fmt.Fprint(h, d.state)
	return int(h.Sum32())
}

// unlucky makes something else go wrong beside the power, by lot: the metadata that
// the device had stored is gone, or its clock is.
func (d *device) unlucky() {
	switch d.lot() % 4 {
	case 1:
		d.tuf = memoryStore{}
		d.state += " without metadata"
	case 2:
		d.jump = 30 * 365 * 24 * time.Hour
		d.state += " and 30 years later"
	case 3:
		d.jump = -56 * 365 * 24 * time.Hour
		d.state += " and the clock at 1970"
	}
}

// again cuts a recovery: it looks at every state that may leave, takes one of them to
// the end, and cuts that, until depth is reached. It returns how many it took.
func (e *explorer) again(d *device, s story, l loss, depth int) (resumed int) {
	if replaying() && depth > strings.Count(replayed(), "; ")+1 {
		return 0 // the line ends before
	}
	log, number := d.disks[0].Bench(), d.lot()
	if l == nothing {
		e.look(d, e.looked, Compound, disktest.Bounds{Samples: 2, Writes: 3, Sectors: 3}, nil)
		e.mu.Lock()
		e.depth = max(e.depth, depth)
		e.mu.Unlock()
	}
	if depth > 3 {
		return 0
	}
	at, n := number%(log.Ops()+1), 0
	if replaying() {
		at = 0
	}
	for c := range log.Crashes(disktest.Bounds{Samples: 1, Writes: 2, Sectors: 2, From: at}) {
		if c.Cut > at && !replaying() {
			break
		}
		if n++; !replaying() && n != 1+number%7 && !(n == 1 && number%3 == 0) {
			continue
		}
		m := d.after(c)
		m.lose(l)
		s.ends(m, s.tell(m), l)
		m.stayed()
		resumed++
		if number%5 == 0 || replaying() {
			resumed += e.again(m, s, l, depth+1)
		}
	}
	return resumed
}

// publish prints what was gone through, and requires as much as was promised.
func (e *explorer) publish(t *testing.T) {
	total, violations := 0, 0
	if t.Failed() {
		violations = 1 // or more: each ends its story
	}
	for _, class := range slices.Sorted(maps.Keys(e.cuts)) {
		total += e.cuts[class]
		t.Logf("%-4s %9d", class, e.cuts[class])
		t.Attr("cuts-"+strings.ToLower(string(class)), strconv.Itoa(e.cuts[class]))
	}
	for key, n := range map[string]int{"cuts": total, "cuts-evaluated": e.evaluated, "cuts-equal": e.equal, "cuts-classes": e.evaluated, "cuts-resumed": e.resumed, "cuts-depth": e.depth, "cuts-violations": violations, "cuts-pending-writes": e.most,
		"cuts-seconds": int(time.Since(e.begin).Seconds())} {
		t.Attr(key, strconv.Itoa(n))
	}
	if replaying() {
		require.NotZero(t, total+e.resumed, "the state %q does not occur in what was run", replayed())
	}
	t.Logf("%d cuts: %d looked at, %d shown equal to one of these; %d taken to the end", total, e.evaluated, e.equal, e.resumed)
	if t.Failed() || replaying() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // or only a part was asked for
	}
	// A test that quietly had less to look at would prove less: what it promises, and of
	// each class and of different states most of what there was when this was written.
	different, cuts, resumed := 1_200, 300_000, 1000
	least := map[disktest.Class]int{disktest.Between: 400, disktest.Torn: 2_000, disktest.Scattered: 13_000, disktest.Lost: 6_000, disktest.Destroyed: 8_500,
		Lying: 3_000, Failing: 16_000, Misread: 23_000, Slow: 14_000, Shape: 32_000, Compound: 210_000}
	if !e.quick {
		different, cuts, resumed = 3_500, 1_000_000, 20_000
		maps.Copy(least, map[disktest.Class]int{Lying: 70_000, Failing: 310_000, Misread: 340_000, Slow: 230_000, Compound: 3_600_000})
	}
	require.GreaterOrEqual(t, e.evaluated, different)
	require.GreaterOrEqual(t, total, cuts)
	require.GreaterOrEqual(t, e.resumed, resumed)
	for class, n := range least {
		require.GreaterOrEqual(t, e.cuts[class], n, "%s", class)
	}
	require.LessOrEqual(t, e.most, 16, "writes that no checkpoint bounds")
}
