package disktest

import (
	"math/rand/v2"
	"syscall"
	"time"
)

var errUnreadable error = syscall.EIO

// Fault is something that goes wrong other than the power.
type Fault struct {
	Op     Kind          // what fails
	At     int           // which one, 1-based, counted from Inject
	Sticky bool          // and all later ones of the kind too
	Err    error         // as syscall.EIO or syscall.ENOSPC; nil for those that lie, halt or take their time
	Flip   int64         // of a Read without Err: the number of the bit that is wrong, modulo the length
	Astray int64         // of a Read without Err: so many bytes from where it should be, if that is on the disk
	Lie    bool          // of a Sync: nothing becomes durable, and nil is returned
	Halt   bool          // nothing is done, nor anything after it (see Bench.Halt)
	Delay  time.Duration // the operation takes so long, and nothing else is wrong with it
	Seed   uint64

	seen  int
	fired bool
	at    int // operations of the bench before it fired
}

// Inject lets a fault happen. A loop over At is done when Fired says no:
//
//	for n := 1; ; n++ {
//		disk := disktest.New(content)
//		disk.Inject(disktest.Fault{Op: disktest.Write, At: n, Err: syscall.EIO})
//		err := save(disk)
//		if !disk.Fired() {
//			break // save has fewer than n writes
//		}
//		…
//	}
//
// A write that fails has taken its first half. A sync that fails has made a part
// of the pending sectors durable, chosen by Seed, and forgets the others: the
// cache shows them, a later Sync does not write them.
func (d *Disk) Inject(f Fault) {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	f.seen, f.fired = 0, false
	d.faults = append(d.faults, &f)
}

// Fired says whether any injected fault has happened.
func (d *Disk) Fired() bool {
	_, fired := d.FiredAt()
	return fired
}

// FiredAt returns after how many writes and syncs of the bench the first fault of the
// disk happened; false if none has.
func (d *Disk) FiredAt() (ops int, fired bool) {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	for _, f := range d.faults {
		if f.fired && (!fired || f.at < ops) {
			ops, fired = f.at, true
		}
	}
	return ops, fired
}

// Calm lets f use the disks of the bench without faults, and without counting for
// them: it is the test that looks, not the code under test.
func (b *Bench) Calm(f func()) {
	set := func(on bool) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		was := b.calm
		b.calm = on
		return was
	}
	defer set(set(true))
	f()
}

// Heal takes all faults away; what they did stays.
func (d *Disk) Heal() {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	d.faults = nil
}

// Flip inverts one bit on the medium and in the cache, as decay would.
func (d *Disk) Flip(off int64, bit int) {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	if len(d.bench.log) > 0 {
		panic("disktest: Flip after the first operation would not be in the log")
	}
	d.base[off] ^= 1 << bit // and so the view
}

// fault returns what goes wrong with this operation, nil if nothing does. It may take a
// while, and the bench may be down afterwards.
func (d *Disk) fault(op Kind) *Fault {
	if d.bench.down() || d.bench.calm {
		return nil
	}
	var hit *Fault
	for _, f := range d.faults {
		if f.Op != op {
			continue
		}
		f.seen++
		if f.seen == f.At || f.Sticky && f.seen > f.At {
			if !f.fired {
				f.fired, f.at = true, len(d.bench.log)
			}
			hit = f
		}
	}
	switch {
	case hit == nil:
	case hit.Halt:
		d.bench.off = true
		return nil // there is no operation that could fail
	case hit.Delay > 0:
		// Not while others wait for the lock: a slow disk does not stop a clock.
		d.bench.mu.Unlock()
		time.Sleep(hit.Delay)
		d.bench.mu.Lock()
		return nil // it takes its time, and works
	}
	return hit
}

// lose decides which pending sectors a failed Sync makes durable, in the order of
// the log, and remembers for the others what the medium has instead.
func (d *Disk) lose(seed uint64) []bool {
	r := rand.New(rand.NewPCG(seed, uint64(len(d.bench.log))))
	m := d.bench.start()
	for i, op := range d.bench.log {
		m.apply(i, op)
	}
	op := Op{Disk: d.index, Kind: Sync, kept: []bool{}}
	var lost []int64
	for _, p := range m.pending {
		if p.disk == d.index {
			op.kept = append(op.kept, r.IntN(2) == 0)
			lost = append(lost, p.sector)
		}
	}
	m.apply(len(d.bench.log), op)
	for _, s := range lost {
		d.stale[s] = m.durable[d.index][s*Sector : (s+1)*Sector]
	}
	return op.kept
}
