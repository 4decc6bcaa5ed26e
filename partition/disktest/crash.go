package disktest

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
)

// Bounds says how far Crashes goes. The zero value is right for most tests.
type Bounds struct {
	// Writes: with at most so many pending writes, all their subsets are visited.
	// 0 means 6, that is 64 states.
	Writes int
	// Sectors: with at most so many pending sectors, all their subsets are visited.
	// 0 means 8, that is 256 states.
	Sectors int
	// Samples is the number of random states at each cut where there is more than
	// that. 0 means 16.
	Samples int
	// Seed of the samples.
	Seed uint64
	// From is the first cut that is visited.
	From int
	// InOrder leaves out everything but prefixes of the log and tears: a disk that
	// has no cache. It exists to show what such a test does not find.
	InOrder bool
}

func (b Bounds) orDefaults() Bounds {
	if b.Writes == 0 {
		b.Writes = 6
	}
	if b.Sectors == 0 {
		b.Sectors = 8
	}
	if b.Samples == 0 {
		b.Samples = 16
	}
	return b
}

// fate is what happened to one pending sector.
type fate byte

const (
	old        fate = 'o'
	kept       fate = 'n'
	noise      fate = 'x'
	unreadable fate = 'u'
	// Of the whole unit in which it lies, whatever the fates of others there.
	unitNoise      fate = 'X'
	unitUnreadable fate = 'U'
)

// unit tells whether a fate is that of a whole unit, and what it is for each sector.
func (f fate) unit() (fate, bool) {
	switch f {
	case unitNoise:
		return noise, true
	case unitUnreadable:
		return unreadable, true
	}
	return f, false
}

// Class says what happened to a state beside the loss of power, for reports.
type Class string

// The classes of a cut. Where a state belongs to several, it counts for the first.
const (
	// Between is a cut between two operations, with all caches written back.
	Between Class = "C1"
	// Torn is a write of which the first sectors are there.
	Torn Class = "C2"
	// Scattered is a write of which any sectors are there.
	Scattered Class = "C3"
	// Lost is the loss of writes that nobody synced, in any order.
	Lost Class = "C4"
	// Destroyed is a cut that destroyed a sector: noise, or an error when it is read.
	Destroyed Class = "C5"
	// Unit is a cut that destroyed a whole physical unit, with sectors that nobody was
	// writing. Only disks with a SetUnit have it.
	Unit Class = "C5u"
)

// Crash is one state in which a power cut may have left the disks. It is valid
// until the loop goes on.
type Crash struct {
	// Cut is the number of writes and syncs that were completed before the power
	// failed; the one after it was in flight.
	Cut   int
	Class Class

	bench   *Bench
	medium  *medium // what is durable; shared, not to be written
	pending []pending
	fates   []fate
	differs []uint64 // by disk, what the fates add to the medium's sum
}

// Sum is a number for what a disk holds: disks with the same content have the same
// one in the same process, whatever bench they are on, and others a different one
// but for 1 in 2^64.
func (c *Crash) Sum(disk int) uint64 { return c.medium.sums.disk[disk] + c.differs[disk] }

// Destroyed tells whether the cut destroyed a sector, beside losing some.
func (c *Crash) Destroyed() bool {
	return slices.ContainsFunc(c.fates, func(f fate) bool { return f != old && f != kept })
}

// Lost tells whether anything that was written is not there, or not whole.
func (c *Crash) Lost() bool {
	return slices.ContainsFunc(c.fates, func(f fate) bool { return f != kept })
}

// Pending is the number of writes that were neither synced nor in flight.
func (c *Crash) Pending() int {
	n, last := 0, -1
	for _, p := range c.medium.pending {
		if p.write != last {
			n, last = n+1, p.write
		}
	}
	return n
}

// String is the state on one line. Crashes of a bench that itself came from a
// crash are preceded by that one's line and a semicolon.
func (c *Crash) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%scut=%d ", c.bench.path, c.Cut)
	for i := 0; i < len(c.fates); {
		n := 1
		for i+n < len(c.fates) && c.fates[i+n] == c.fates[i] {
			n++
		}
		fmt.Fprintf(&s, "%c%d", c.fates[i], n)
		i += n
	}
	return strings.TrimSpace(s.String())
}

// Disks returns the disks of the machine after it was switched on again, in the
// order of Bench.Disks. They are new, on a bench of their own, with an empty log:
// run the recovery on them, and go through its crashes in turn. Each call
// returns the same state anew.
func (c *Crash) Disks() []*Disk {
	b := NewBench()
	b.path = c.String() + "; "
	for i, content := range c.medium.durable {
		d := b.Disk(content)
		d.bad, d.unit = maps.Clone(c.medium.bad[i]), c.bench.disks[i].unit
	}
	for p, f := range c.changed() {
		d := b.disks[p.disk]
		copy(d.base[p.sector*Sector:], content(*p, f)) // and so the view
		delete(d.bad, p.sector)
		if f == unreadable {
			d.bad[p.sector] = true
		}
	}
	for _, d := range b.disks {
		d.baseBad = maps.Clone(d.bad)
	}
	return b.disks
}

// changed goes through the sectors that hold something else than the medium did, and
// what became of them. A sector may come again, and then the last one counts.
func (c *Crash) changed() iter.Seq2[*pending, fate] {
	return func(yield func(*pending, fate) bool) {
		whole := false
		for i, f := range c.fates {
			_, unit := f.unit()
			whole = whole || unit
			if f != old && !unit && !yield(&c.pending[i], f) {
				return
			}
		}
		if !whole {
			return
		}
		for i, f := range c.fates {
			f, unit := f.unit()
			if !unit {
				continue
			}
			p := c.pending[i]
			first, end := c.bench.disks[p.disk].around(p.sector)
			for s := first; s < end; s++ {
				if !yield(&pending{disk: p.disk, sector: s, write: p.write}, f) {
					return
				}
			}
		}
	}
}

// content returns what a sector holds after its fate. Noise depends on the
// sector and the write only, so that a state can be replayed.
func content(p pending, f fate) []byte {
	if f == kept {
		return p.data
	}
	b := make([]byte, Sector)
	r := rand.New(rand.NewPCG(uint64(p.sector), uint64(p.write)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Crashes goes through the states in which a power cut during the operations
// recorded so far could have left the disks. At each cut the simplest states
// come first and none is visited twice. See the package comment for DISKTEST.
func (b *Bench) Crashes(bounds Bounds) iter.Seq[*Crash] {
	bounds = bounds.orDefaults()
	return func(yield func(*Crash) bool) {
		b.mu.Lock()
		log, last := b.log, b.completed()
		b.mu.Unlock()
		wanted := replayed(b.path)
		medium := b.start()
		medium.sums = newSums(b, log)
		for cut := 0; cut <= last; cut++ {
			if cut > 0 {
				medium.apply(cut-1, log[cut-1])
			}
			if cut < bounds.From {
				continue
			}
			c := &Crash{Cut: cut, bench: b, medium: medium, pending: medium.pending, differs: make([]uint64, len(b.disks))}
			inFlight := 0 // sectors of the write that had not returned
			if cut < len(log) && log[cut].Kind == Write {
				list := log[cut].pending(cut)
				inFlight = len(list)
				c.pending = slices.Concat(medium.pending, list)
			}
			if wanted != "" {
				if fates, ok := parse(wanted, cut, len(c.pending)); ok {
					c.fates = fates
					medium.sums.differ(c)
					yield(c)
					return
				}
				continue
			}
			if !visit(c, inFlight, bounds, yield) {
				return
			}
		}
		if wanted != "" {
			fmt.Fprintf(os.Stderr, "disktest: the state %q of DISKTEST does not occur in this run\n", wanted)
		}
	}
}

// visit yields the states of one cut.
func visit(c *Crash, inFlight int, bounds Bounds, yield func(*Crash) bool) bool {
	seen := make(map[uint64]bool)
	for class, fates := range c.choices(inFlight, bounds) {
		c.Class, c.fates = class, fates
		c.medium.sums.differ(c)
		var key uint64
		for disk, sum := range c.differs {
			key += mix(disk, 0, sum)
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		if !yield(c) {
			return false
		}
	}
	return true
}
