package disktest

import (
	"bytes"
	"fmt"
	"hash/maphash"
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
)

// Crash is one state in which a power cut may have left the disks. It is valid
// until the loop goes on.
type Crash struct {
	// Cut is the number of writes and syncs that were completed before the power
	// failed; the one after it was in flight.
	Cut int

	bench   *Bench
	medium  *medium // what is durable; shared, not to be written
	pending []pending
	fates   []fate
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
		b.Disk(content).bad = maps.Clone(c.medium.bad[i])
	}
	for i, f := range c.fates {
		if f == old {
			continue
		}
		p := c.pending[i]
		d := b.disks[p.disk]
		copy(d.base[p.sector*Sector:], content(p, f)) // and so the view
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
		for cut := 0; cut <= last; cut++ {
			if cut > 0 {
				medium.apply(cut-1, log[cut-1])
			}
			if cut < bounds.From {
				continue
			}
			c := &Crash{Cut: cut, bench: b, medium: medium, pending: medium.pending}
			inFlight := 0 // sectors of the write that had not returned
			if cut < len(log) && log[cut].Kind == Write {
				list := log[cut].pending(cut)
				inFlight = len(list)
				c.pending = slices.Concat(medium.pending, list)
			}
			if wanted != "" {
				if fates, ok := parse(wanted, cut, len(c.pending)); ok {
					c.fates = fates
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
	seed := maphash.MakeSeed()
	for fates := range choices(c.pending, inFlight, uint64(c.Cut), bounds) {
		key := c.key(seed, fates)
		if seen[key] {
			continue
		}
		seen[key] = true
		c.fates = fates
		if !yield(c) {
			return false
		}
	}
	return true
}

// key tells states apart by what the disks hold.
func (c *Crash) key(seed maphash.Seed, fates []fate) uint64 {
	type place struct {
		disk   int
		sector int64
	}
	result := make(map[place][]byte)
	for i, f := range fates {
		if f == old {
			continue
		}
		p := c.pending[i]
		b := content(p, f)
		if f == unreadable {
			b = nil
		}
		result[place{p.disk, p.sector}] = b
	}
	var sum uint64 // the sum does not depend on the order of the map
	for at, b := range result {
		if b != nil && bytes.Equal(b, c.medium.durable[at.disk][at.sector*Sector:(at.sector+1)*Sector]) {
			continue
		}
		var h maphash.Hash
		h.SetSeed(seed)
		maphash.WriteComparable(&h, at)
		h.Write(b)
		maphash.WriteComparable(&h, len(b))
		sum += h.Sum64()
	}
	return sum
}
