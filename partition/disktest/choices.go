package disktest

import (
	"iter"
	"math/rand/v2"
	"slices"
)

// choices goes through fates for the pending sectors, of which the last inFlight
// belong to a write that had not returned. Each slice is its own.
func choices(list []pending, inFlight int, cut uint64, bounds Bounds) iter.Seq[[]fate] {
	return func(yield func([]fate) bool) {
		done := len(list) - inFlight
		// Everything that had returned is on the medium, of the write in flight the
		// first k sectors; then the sector under the head is destroyed too.
		for k := done; k <= len(list); k++ {
			if !yield(prefix(len(list), k)) {
				return
			}
		}
		for k := done; k < len(list); k++ {
			for _, f := range []fate{noise, unreadable} {
				fates := prefix(len(list), k)
				fates[k] = f
				if !yield(fates) {
					return
				}
			}
		}
		if bounds.InOrder || len(list) == 0 {
			return
		}
		if !yield(prefix(len(list), 0)) {
			return
		}
		for fates := range byWrite(list, bounds.Writes) {
			if !yield(fates) {
				return
			}
		}
		if len(list) <= bounds.Sectors {
			for set := range uint64(1) << len(list) {
				if !yield(subset(len(list), set)) {
					return
				}
			}
		}
		r := rand.New(rand.NewPCG(bounds.Seed, cut))
		for i := range bounds.Samples {
			if !yield(sample(list, r, i)) {
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
