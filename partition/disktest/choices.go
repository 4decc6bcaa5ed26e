package disktest

import (
	"iter"
	"math/rand/v2"
	"slices"
)

// choices goes through fates for the pending sectors, of which the last inFlight
// belong to a write that had not returned. Each slice is its own.
func choices(list []pending, inFlight int, cut uint64, bounds Bounds) iter.Seq2[Class, []fate] {
	return func(yield func(Class, []fate) bool) {
		done := len(list) - inFlight
		// Everything that had returned is on the medium, of the write in flight the
		// first k sectors; then the sector under the head is destroyed too.
		if !yield(Between, prefix(len(list), done)) {
			return
		}
		for k := done + 1; k <= len(list); k++ {
			if !yield(Torn, prefix(len(list), k)) {
				return
			}
		}
		for k := done; k < len(list); k++ {
			for _, f := range []fate{noise, unreadable} {
				fates := prefix(len(list), k)
				fates[k] = f
				if !yield(Destroyed, fates) {
					return
				}
			}
		}
		if bounds.InOrder || len(list) == 0 {
			return
		}
		for fates := range scattered(len(list), done, cut, bounds) {
			if !yield(Scattered, fates) {
				return
			}
		}
		if !yield(Lost, prefix(len(list), 0)) {
			return
		}
		for fates := range byWrite(list, bounds.Writes) {
			if !yield(Lost, fates) {
				return
			}
		}
		if len(list) <= bounds.Sectors {
			for set := range uint64(1) << len(list) {
				if !yield(Lost, subset(len(list), set)) {
					return
				}
			}
		}
		r := rand.New(rand.NewPCG(bounds.Seed, cut))
		for i := range bounds.Samples {
			class := Lost
			if i%2 == 1 {
				class = Destroyed
			}
			if !yield(class, sample(list, r, i)) {
				return
			}
		}
	}
}

// choices goes through the states of a cut: those of disks that write sectors, then
// those that units add.
func (c *Crash) choices(inFlight int, bounds Bounds) iter.Seq2[Class, []fate] {
	return func(yield func(Class, []fate) bool) {
		for class, fates := range choices(c.pending, inFlight, uint64(c.Cut), bounds) {
			if !yield(class, fates) {
				return
			}
		}
		done := len(c.pending) - inFlight
		for i := range c.units(done, len(c.pending)) {
			// The unit under the head, with all that was written before on the medium,
			// and with nothing of it.
			if !units(len(c.pending), i, i, bounds, yield) {
				return
			}
		}
		before := slices.Collect(c.units(0, done))
		if len(before) > bounds.Samples {
			r := rand.New(rand.NewPCG(bounds.Seed+2, uint64(c.Cut)))
			r.Shuffle(len(before), func(i, j int) { before[i], before[j] = before[j], before[i] })
			before = before[:bounds.Samples]
		}
		for _, i := range before {
			// A unit that the cache was writing back, as last or as first of all.
			if !bounds.InOrder && !units(len(c.pending), i, done, bounds, yield) {
				return
			}
		}
	}
}

// units yields the states in which the unit of sector i is destroyed: the first k
// sectors are kept, or none is.
func units(n, i, k int, bounds Bounds, yield func(Class, []fate) bool) bool {
	for _, f := range []fate{unitNoise, unitUnreadable} {
		for _, k := range []int{k, 0} {
			if k == 0 && bounds.InOrder && i > 0 {
				continue
			}
			fates := prefix(n, k)
			fates[i] = f
			if !yield(Unit, fates) {
				return false
			}
		}
	}
	return true
}

// units goes through the pending sectors from one to another that are the first of their
// unit, on disks whose units are larger than sectors.
func (c *Crash) units(from, to int) iter.Seq[int] {
	return func(yield func(int) bool) {
		type unit struct {
			disk  int
			first int64
		}
		seen := map[unit]bool{}
		for i, p := range c.pending[from:to] {
			d := c.bench.disks[p.disk]
			if d.unit == 1 {
				continue
			}
			first, _ := d.around(p.sector)
			if u := (unit{p.disk, first}); !seen[u] {
				seen[u] = true
				if !yield(from + i) {
					return
				}
			}
		}
	}
}

// scattered tears the write in flight, whose sectors begin at done, out of order: all
// subsets of few sectors, else the first alone, the last alone, every other one, and
// samples.
func scattered(n, done int, cut uint64, bounds Bounds) iter.Seq[[]fate] {
	return func(yield func([]fate) bool) {
		inFlight := n - done
		only := func(keep func(i int) bool) []fate {
			fates := prefix(n, done)
			for i := range inFlight {
				if keep(i) {
					fates[done+i] = kept
				}
			}
			return fates
		}
		switch {
		case inFlight < 2:
			return
		case inFlight <= bounds.Sectors:
			for set := range uint64(1) << inFlight {
				if !yield(only(func(i int) bool { return set&(1<<i) != 0 })) {
					return
				}
			}
			return
		}
		for _, keep := range []func(i int) bool{
			func(i int) bool { return i == 0 },
			func(i int) bool { return i == inFlight-1 },
			func(i int) bool { return i%2 == 0 },
			func(i int) bool { return i%2 == 1 },
		} {
			if !yield(only(keep)) {
				return
			}
		}
		r := rand.New(rand.NewPCG(bounds.Seed+1, cut))
		for range bounds.Samples {
			if !yield(only(func(int) bool { return r.IntN(2) == 0 })) {
				return
			}
		}
	}
}

// byWrite treats each write as a whole: one lost, one kept, and all subsets if
// there are few.
func byWrite(list []pending, most int) iter.Seq[[]fate] {
	return func(yield func([]fate) bool) {
		writes := slices.Compact(writesOf(list))
		for _, w := range writes {
			lost, alone := prefix(len(list), len(list)), prefix(len(list), 0)
			for i, p := range list {
				if p.write == w {
					lost[i], alone[i] = old, kept
				}
			}
			if !yield(lost) || !yield(alone) {
				return
			}
		}
		if len(writes) > most {
			return
		}
		for set := range uint64(1) << len(writes) {
			fates := prefix(len(list), 0)
			for i, p := range list {
				if set&(1<<slices.Index(writes, p.write)) != 0 {
					fates[i] = kept
				}
			}
			if !yield(fates) {
				return
			}
		}
	}
}

func writesOf(list []pending) []int {
	writes := make([]int, len(list))
	for i, p := range list {
		writes[i] = p.write
	}
	return writes
}

// sample draws a state: by turns few, half or most of the sectors are kept, and
// every other state has one sector destroyed.
func sample(list []pending, r *rand.Rand, i int) []fate {
	share := []int{10, 50, 90}[i%3]
	fates := prefix(len(list), 0)
	for j := range fates {
		if r.IntN(100) < share {
			fates[j] = kept
		}
	}
	if i%2 == 1 {
		fates[r.IntN(len(fates))] = []fate{noise, unreadable}[r.IntN(2)]
	}
	return fates
}

// prefix keeps the first k of n sectors.
func prefix(n, k int) []fate {
	fates := make([]fate, n)
	for i := range fates {
		fates[i] = old
		if i < k {
			fates[i] = kept
		}
	}
	return fates
}

// subset keeps the sectors whose bit is set.
func subset(n int, set uint64) []fate {
	fates := prefix(n, 0)
	for i := range fates {
		if set&(1<<i) != 0 {
			fates[i] = kept
		}
	}
	return fates
}
