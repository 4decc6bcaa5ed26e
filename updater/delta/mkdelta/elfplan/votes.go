package elfplan

import (
	"cmp"
	"slices"
)

// ballot is n fields that know by how much the address they hold was shifted.
type ballot struct {
	at    uint64
	shift int64
	n     int
}

// stepCost is what a step of a map has to save, in fields that are predicted right.
const stepCost = 1.5

// fit returns the steps that predict the votes at the least cost: a wrong
// prediction costs 1, a step stepCost. This is Viterbi's algorithm with shifts as
// states; a vote changes only the cost of its own state against all others, so
// it takes one look-up.
func fit(votes []ballot, cost float64) (steps []step) {
	slices.SortFunc(votes, func(a, b ballot) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.shift, b.shift))
	})
	type node struct {
		at    uint64
		shift int64
		prev  *node
	}
	type state struct {
		cost float64
		path *node
	}
	states := make(map[int64]*state)
	best := state{}
	for i := 0; i < len(votes); {
		at, before := votes[i].at, best
		for i < len(votes) && votes[i].at == at {
			// Votes of one address that agree count together, and those that do not
			// exclude each other: all start from what was best before the address.
			v, weight := votes[i], 0.0
			for ; i < len(votes) && votes[i].at == v.at && votes[i].shift == v.shift; i++ {
				weight += float64(votes[i].n)
			}
			s := states[v.shift]
			if s == nil || before.cost+cost < s.cost {
				if s == nil {
					s = &state{}
					states[v.shift] = s
				}
				*s = state{before.cost + cost, &node{v.at, v.shift, before.path}}
			}
			s.cost -= weight
			if s.cost < best.cost || best.path == nil {
				best = *s
			}
		}
	}
	for n := best.path; n != nil; n = n.prev {
		steps = append(steps, step{n.at, n.shift})
	}
	slices.Reverse(steps)
	// A state that was left and taken up again may have gone on all the time.
	out := steps[:0]
	for _, s := range steps {
		if len(out) == 0 || out[len(out)-1].shift != s.shift {
			out = append(out, s)
		}
	}
	return out
}

// makeMap fits a map to votes. Its domain ends behind the last of them.
func makeMap(votes []ballot, cost float64) shiftMap {
	if len(votes) == 0 {
		return shiftMap{end: 1}
	}
	m := shiftMap{steps: fit(votes, cost)}
	last := votes[len(votes)-1].at
	if last+1 != 0 {
		m.end = last + 1
	} else {
		m.end = last
	}
	return m
}

// shift is predict's look-up.
func (m *shiftMap) shift(t uint64) (int64, bool) {
	if m == nil || len(m.steps) == 0 || t < m.steps[0].at || t >= m.end {
		return 0, false
	}
	i, ok := slices.BinarySearchFunc(m.steps, t, func(s step, t uint64) int { return cmp.Compare(s.at, t) })
	if !ok {
		i--
	}
	return m.steps[i].shift, ok || !m.exact
}
