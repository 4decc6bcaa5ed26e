package updater

import (
	"context"
	"io"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
)

// disksOf are the names of the disks, any of which may fail.
var disksOf = []string{
	envDisk: "boot record", bootA: "boot_a", bootB: "boot_b", rootA: "root_a", rootB: "root_b", dataDisk: "journal",
}

// kind is a fault that may happen to every operation of its sort.
type kind struct {
	class  disktest.Class
	name   string
	fault  disktest.Fault
	again  bool // of a program that is killed: it is started again in the same boot
	guard  bool // with a watchdog
	resets bool // which has to reset the machine if it happens while the slot is written
}

// untied keeps an operation from ending at the very moment at which the watchdog is due:
// which of the two comes first then is nobody's promise.
const untied = 7 * time.Millisecond

var kinds = []kind{
	{class: Lying, name: "a sync lies", fault: disktest.Fault{Op: disktest.Sync, Lie: true}},
	{class: Lying, name: "all syncs lie from here on", fault: disktest.Fault{Op: disktest.Sync, Lie: true, Sticky: true}},
	{class: Failing, name: "a read fails", fault: disktest.Fault{Op: disktest.Read, Err: syscall.EIO}},
	{class: Failing, name: "reads fail from here on", fault: disktest.Fault{Op: disktest.Read, Err: syscall.EIO, Sticky: true}},
	{class: Failing, name: "a write fails", fault: disktest.Fault{Op: disktest.Write, Err: syscall.EIO}},
	{class: Failing, name: "writes fail from here on", fault: disktest.Fault{Op: disktest.Write, Err: syscall.EIO, Sticky: true}},
	{class: Failing, name: "a write finds no space", fault: disktest.Fault{Op: disktest.Write, Err: syscall.ENOSPC}},
	{class: Failing, name: "writes find no space from here on", fault: disktest.Fault{Op: disktest.Write, Err: syscall.ENOSPC, Sticky: true}},
	{class: Failing, name: "a write is short", fault: disktest.Fault{Op: disktest.Write, Err: io.ErrShortWrite}},
	{class: Failing, name: "a sync fails", fault: disktest.Fault{Op: disktest.Sync, Err: syscall.EIO, Seed: 1}},
	{class: Failing, name: "a sync fails and loses other sectors", fault: disktest.Fault{Op: disktest.Sync, Err: syscall.EIO, Seed: 4}},
	{class: Failing, name: "syncs fail from here on", fault: disktest.Fault{Op: disktest.Sync, Err: syscall.EIO, Sticky: true}},
	{class: Misread, name: "a read has a wrong bit", fault: disktest.Fault{Op: disktest.Read, Flip: 12345}},
	{class: Misread, name: "a read has another wrong bit", fault: disktest.Fault{Op: disktest.Read, Flip: 77}},
	{class: Misread, name: "reads have a wrong bit from here on", fault: disktest.Fault{Op: disktest.Read, Flip: 4099, Sticky: true}},
	{class: Misread, name: "a read is of the next sector", fault: disktest.Fault{Op: disktest.Read, Astray: disktest.Sector}},
	{class: Misread, name: "a read is of the block before", fault: disktest.Fault{Op: disktest.Read, Astray: -4096}},
	{class: Misread, name: "reads are of another block from here on", fault: disktest.Fault{Op: disktest.Read, Astray: 3 * 4096, Sticky: true}},
	{class: Misread, name: "reads are of another leaf from here on", fault: disktest.Fault{Op: disktest.Read, Astray: leaf, Sticky: true}},
	{class: Compound, name: "the program is killed before a write", fault: disktest.Fault{Op: disktest.Write, Halt: true}, again: true},
	{class: Compound, name: "the program is killed before a sync", fault: disktest.Fault{Op: disktest.Sync, Halt: true}, again: true},
	{class: Compound, name: "a reset before a write", fault: disktest.Fault{Op: disktest.Write, Halt: true}},
	{class: Compound, name: "a reset before a sync", fault: disktest.Fault{Op: disktest.Sync, Halt: true}},
	{class: Slow, name: "a write takes ten seconds", fault: disktest.Fault{Op: disktest.Write, Delay: 10*time.Second + untied}, guard: true},
	{class: Slow, name: "a write takes a minute", fault: disktest.Fault{Op: disktest.Write, Delay: time.Minute + untied}, guard: true},
	{class: Slow, name: "a write takes ten minutes", fault: disktest.Fault{Op: disktest.Write, Delay: 10*time.Minute + untied}, guard: true, resets: true},
	{class: Slow, name: "a sync takes a minute", fault: disktest.Fault{Op: disktest.Sync, Delay: time.Minute + untied}, guard: true},
	{class: Slow, name: "a sync takes ten minutes", fault: disktest.Fault{Op: disktest.Sync, Delay: 10*time.Minute + untied}, guard: true, resets: true},
	{class: Slow, name: "all syncs take a minute", fault: disktest.Fault{Op: disktest.Sync, Delay: time.Minute + untied, Sticky: true}, guard: true},
	{class: Slow, name: "a read takes ten minutes", fault: disktest.Fault{Op: disktest.Read, Delay: 10*time.Minute + untied}, guard: true},
}

// on names the fault on a disk, but for its number.
func (k kind) on(disk int) string { return disksOf[disk] + " " + k.name + ", number " }

// wanted tells whether a state is looked at again in which this fault was, and sets its
// number.
func (k *kind) wanted(disk int) bool {
	number, ok := strings.CutPrefix(replayedFault(), k.on(disk))
	if !ok {
		return false
	}
	at, err := strconv.Atoi(number)
	k.fault.At = at
	return err == nil
}

// endure is tell on a device on which something fails. What the program reports as an
// error is tried again; after that the machine is started anew, as somebody will. It
// returns how often the watchdog did that.
func (s story) endure(d *device, again bool) (resets int) {
	bench := d.disks[0].Bench()
	version := ""
	for range 8 {
		if version == "" || !again || d.rebooting != "" {
			if version = d.load(); version == "" {
				continue
			}
		}
		u, err := New(d.parts(version))
		if err != nil {
			bench.Revive()
			continue
		}
		starved := d.watched(u)
		err = u.Resume(ctx)
		for range 2 {
			if err != nil || d.rebooting != "" || u.running.Manifest.Version == s.goal {
				break
			}
			err = d.install(u, s.goal, Options{Full: transport.FullGo})
		}
		done := err == nil && d.rebooting == "" && u.running.Manifest.Version == s.goal
		if starved() {
			resets, d.died, done = resets+1, "watchdog", false
		}
		bench.Revive()
		if done {
			break
		}
	}
	return resets
}

// watched gives the program a watchdog, if the device has one, that resets the machine.
// The function that it returns ends that, and tells whether it was reset.
func (d *device) watched(u *Updater) (starved func() bool) {
	if !d.guard {
		return func() bool { return false }
	}
	u.p.Keeper = watchdog.NewKeeper(&fed{}, time.Now)
	lives := u.p.Keeper.Register("core", 1000*time.Hour)
	ctx, stop := context.WithCancel(ctx)
	end := make(chan bool, 1)
	go func() {
		err := u.p.Keeper.Run(ctx, time.Second)
		reset := among(err, watchdog.ErrLate, watchdog.ErrTrialOver)
		if reset {
			d.disks[0].Bench().Halt()
		}
		end <- reset
	}()
	return func() bool {
		stop()
		lives.Unregister()
		return <-end
	}
}

// finish is tell where nothing fails any more: the device ends with the release, or
// without it and with the reason why it does not take it.
func (s story) finish(d *device) {
	u := d.start()
	for range 5 {
		_, failed := u.journal().FailedBefore(d.w.by[s.goal].digest)
		if failed || u.running.Manifest.Version == s.goal {
			break
		}
		if err := d.install(u, s.goal, Options{Full: transport.FullGo}); err != nil {
			require.True(d.t, permanent(err), "%s: %v", d.state, err)
			break
		}
		u = d.start()
	}
	for _, v := range d.boil() {
		if v.Result == transport.Committed {
			require.Equal(d.t, s.goal, u.running.Manifest.Version, "%s: the fleet was told that it is committed", d.state)
		}
	}
	d.settled(u, u.running.Manifest.Version)
	require.Contains(d.t, []string{"1.0.0", s.goal}, u.running.Manifest.Version, "%s", d.state)
}

// fail lets one fault happen in the story, at its n-th operation of the sort on a disk;
// false if there are fewer. Every state that a cut in the course of that may leave is
// looked at. Then nothing fails any more, the machine is switched off and on, and the
// story comes to its end.
func (e *explorer) fail(t *testing.T, s story, f kind, disk int) bool {
	state := f.on(disk) + strconv.Itoa(f.fault.At)
	d := s.begin(t)
	d.state, d.fault, d.guard = state, state, f.guard
	d.disks[disk].Inject(f.fault)
	resets := s.endure(d, f.again)
	from, fired := d.disks[disk].FiredAt()
	if !fired {
		return false
	}
	for _, disk := range d.disks {
		disk.Heal()
	}
	d.stayed()
	if f.resets && (disk == rootB || disk == bootB) {
		require.NotZero(t, resets, "%s: fed while nothing went on", state)
	}
	if f.guard && !f.resets && f.fault.Op != disktest.Read && (disk == rootB || disk == bootB) {
		require.Zero(t, resets, "%s: not fed while something went on", state)
	}
	// What a cut before the fault may leave was looked at without it.
	bounds := disktest.Bounds{Samples: 2, Writes: 2, Sectors: 2, Seed: uint64(f.fault.At), From: from}
	e.look(d, e.looked, f.class, bounds, nil)
	if f.class == Lying {
		return true // what was lost is not known to anybody; that the old system boots is all
	}
	// The last state, and one in the middle.
	for _, at := range []int{d.ops(), (f.fault.At*13 + disk*7) % (d.ops() + 1)} {
		bounds.From = at
		if replaying() {
			bounds.From = 0
		}
		for c := range d.disks[0].Bench().Crashes(bounds) {
			n := d.after(c)
			n.guard = false
			s.finish(n)
			n.stayed()
			e.mu.Lock()
			e.resumed++
			e.mu.Unlock()
			break
		}
	}
	return true
}

// shape is a device whose partitions are not as they should be.
type shape struct {
	name   string
	change map[int]int64 // bytes more, or less
	deny   error         // of every write to the spare slot
	may    bool          // install
}

var shapes = []shape{
	{name: "the spare root has no room but for its image", change: map[int]int64{rootB: -(4*4096 + partition.RecordSize)}},
	{name: "the spare root is a sector short", change: map[int]int64{rootB: -(4*4096 + disktest.Sector)}},
	{name: "the spare root is a block short", change: map[int]int64{rootB: -5 * 4096}},
	{name: "the spare root fits to the byte", change: map[int]int64{rootB: -4 * 4096}, may: true},
	{name: "the spare boot partition fits to the byte", change: map[int]int64{bootB: -4096}, may: true},
	{name: "the spare root is half as large", change: map[int]int64{rootB: -(rootSize / 2 / 4096 * 4096)}},
	{name: "the spare root is one sector", change: map[int]int64{rootB: disktest.Sector - (rootSize + 4*4096 + partition.RecordSize)}},
	{name: "the spare boot partition is a sector short", change: map[int]int64{bootB: -4096 - disktest.Sector}},
	{name: "the spare boot partition is empty", change: map[int]int64{bootB: -(bootSize + 4096)}},
	{name: "the spare root is a sector larger", change: map[int]int64{rootB: disktest.Sector}, may: true},
	{name: "the spare root is a leaf larger", change: map[int]int64{rootB: leaf}, may: true},
	{name: "the spare slot is larger by what is no block", change: map[int]int64{rootB: 7 * disktest.Sector, bootB: 3 * disktest.Sector}, may: true},
	{name: "the spare slot is read-only", deny: syscall.EROFS},
	{name: "the spare slot may not be written", deny: syscall.EPERM},
}

// misshapen puts the device's disks on a new bench, in another shape.
func (h shape) misshapen(d *device) *device {
	bench := disktest.NewBench()
	for i, disk := range d.disks {
		content := disk.Bytes()
		size := int64(len(content)) + h.change[i]
		content = append(content, make([]byte, max(0, h.change[i]))...)
		bench.Disk(content[:max(0, size)])
	}
	n := onDisks(d.t, bench.Disks())
	n.state, n.fault = h.name, h.name
	return n
}

// Something fails beside the power: a medium, one operation of it, what it says; it is
// slow, or of another size than it should be. At every operation of the story on every
// disk, once and for good. Whatever the device makes of it, what boots is a whole,
// signed system; and when nothing fails any more, the device takes the release or
// says why it does not.
func (e *explorer) faults(t *testing.T) {
	for _, c := range []told{
		{"by deltas", story{begin: older, goal: "2.0.0"}, nothing},
		{"in full", story{begin: fresh, goal: "4.0.0-full"}, nothing},
		{"by indexes", story{begin: older, goal: "3.3.0-index"}, nothing},
	} {
		for _, f := range kinds {
			if e.quick && c.name != "by deltas" {
				continue
			}
			t.Run(f.name+", "+c.name, func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) {
					for disk := range disksOf {
						if disk == envDisk && f.fault.Sticky && f.fault.Astray == leaf {
							// Copies of the boot record are a leaf apart. If the system reads another
							// one for each, for good, while the loader reads them right, it writes over
							// the one in which the loader counts, and a trial that cannot be committed
							// begins anew. Nothing in a copy says which one it is.
							continue
						}
						if replaying() {
							if f.wanted(disk) {
								e.fail(t, c.s, f, disk)
							}
							continue
						}
						for f.fault.At = 1; e.fail(t, c.s, f, disk); f.fault.At += e.stride(f) {
						}
					}
				})
			})
		}
	}
	for _, h := range shapes {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			if replaying() && replayedFault() != h.name {
				return
			}
			bubble(t, func(t *testing.T) {
				for _, goal := range []string{"2.0.0", "4.0.0-full", "3.3.0-index"} {
					s := story{begin: fresh, goal: goal}
					d := h.misshapen(s.begin(t))
					d.deny = h.deny
					s.endure(d, false)
					e.look(d, &looked{}, Shape, disktest.Bounds{Samples: 16, Writes: 3, Sectors: 4}, nil)
					d.stayed()
					if h.may {
						s.finish(d)
						require.Equal(t, goal, d.holds(d.slot), "%s", h.name)
						continue
					}
					u := d.start()
					require.Error(t, d.install(u, goal, Options{Full: transport.FullGo}), "%s", h.name)
					require.Equal(t, "1.0.0", u.running.Manifest.Version, "%s", h.name)
				}
			})
		})
	}
}

// stride is the distance of the operations at which a fault is tried: every one, but of
// reads, which are many and much alike.
func (e *explorer) stride(f kind) int {
	switch {
	case e.quick:
		return 29
	case f.fault.Op == disktest.Read:
		return 5
	}
	return 1
}
