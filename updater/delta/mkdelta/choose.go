package mkdelta

// What parts of a frame cost in the patch, in sixteenths of a bit, after zstd.
// Only the relations matter; they were tried on a pair of Debian root file systems, where the size
// is flat around these values (0.3 % between 640 and 1000 for a jump).
const (
	costLiteral   = 52  // a literal byte
	costDiffer    = 72  // a byte that differs
	costAgain     = 4   // an agreeing byte amid differing ones: a zero in the difference stream
	costRuns      = 120 // beginning differences after a stretch that agrees: two operations
	costOperation = 200 // literals, zeros, or the displacement in use after these
	costJump      = 900 // another displacement, and what zstd forgets over it

	// How far from bytes that agree a source is considered. What is farther
	// away agrees by accident.
	lead = 48

	// After so many agreeing bytes no other source has a chance.
	clearly = 256

	mostStates = 24
)

// chooser finds the cheapest sequence of sources for a frame: for each byte,
// the cost of the cheapest way to end there with each source that is worth
// considering (Viterbi's algorithm). The greedy choice of the longest match
// loses where several places resemble each other.
type chooser struct {
	states []state
	nodes  []node
}

// state is the cheapest way to the current byte that ends with one source.
type state struct {
	source
	literal bool
	bytes   []byte // source byte of frame[i] is bytes[i-first]
	first   int
	cost    int
	entry   int    // where it began
	parent  int32  // node before it
	node    int32  // its own, or -1
	differ  int    // the last byte that differed
	until   int    // it is worth considering at least so long
	use     source // the source in use, also behind literals and zeros
}

// node is a part of a way.
type node struct {
	source
	literal bool
	start   int
	parent  int32
}

const never = 1 << 50

// choose appends the segments of the frame, given the matches.
func (m *matcher) choose(out []segment) []segment {
	c := &m.chooser
	found := m.sorted()
	c.nodes = c.nodes[:0]
	c.states = append(c.states[:0], state{literal: true, cost: costOperation, parent: -1, node: -1})
	next := 0
	for i := 0; i < len(m.frame); {
		for next < len(found) && found[next].start-lead <= i {
			c.activate(m, found[next], i)
			next++
		}
		best := c.best()
		event := len(m.frame)
		if next < len(found) {
			event = found[next].start - lead
		}
		if b := &c.states[best]; !b.literal && b.space != spaceZero && i >= b.first {
			if n := min(common(m.frame[i:event], b.bytes[i-b.first:]), event-i); n >= clearly || n > short && len(c.states) == 2 {
				i += n
				c.skip(best, i)
				continue
			}
		}
		c.step(m.frame[i], i, best)
		i++
		c.prune(i)
	}
	return c.segments(out, len(m.frame))
}

// activate begins to consider a match's source.
func (c *chooser) activate(m *matcher, f match, i int) {
	until := f.end + lead
	if f.space == spaceZero {
		until = f.end
	}
	for k := range c.states {
		if s := &c.states[k]; !s.literal && s.source == f.source {
			s.until = max(s.until, until)
			return
		}
	}
	s := state{source: f.source, use: f.source, cost: never, parent: -1, node: -1, differ: -1 << 30, until: until}
	if f.space != spaceZero {
		// The first byte of the frame that the source has a byte for.
		s.first = int(max(0, -(m.offset + s.at)))
		s.bytes = m.bytesOf(f.source, s.first)
	}
	if len(c.states) < mostStates {
		c.states = append(c.states, s)
		return
	}
	// In place of the dearest; of one that was not entered yet only if there is no other.
	worst := len(c.states) - 1
	for k := 1; k < len(c.states); k++ {
		if cost := c.states[k].cost; cost < never && (c.states[worst].cost >= never || cost > c.states[worst].cost) {
			worst = k
		}
	}
	c.states[worst] = s
}

func (c *chooser) best() int {
	best := 0
	for k := range c.states {
		if c.states[k].cost < c.states[best].cost {
			best = k
		}
	}
	return best
}

// point returns the node of a state.
func (c *chooser) point(k int) int32 {
	s := &c.states[k]
	if s.node < 0 {
		c.nodes = append(c.nodes, node{s.source, s.literal, s.entry, s.parent})
		s.node = int32(len(c.nodes) - 1)
	}
	return s.node
}

// enter moves a state to the way of state from, at a cost.
func (c *chooser) enter(k, from, i, cost int) {
	parent := c.point(from)
	s := &c.states[k]
	s.cost, s.entry, s.parent, s.node, s.differ = cost, i, parent, -1, -1<<30
	if s.literal || s.space == spaceZero {
		s.use = c.states[from].use
	}
}

// step goes over byte i.
func (c *chooser) step(b byte, i, best int) {
	lit, low, use := c.states[0].cost, c.states[best].cost, c.states[best].use
	litUse := c.states[0].use
	for k := range c.states {
		s := &c.states[k]
		if k != best {
			enter := low + costJump
			if s.literal || s.space == spaceZero || s.source == use {
				enter = low + costOperation
			}
			if enter < s.cost {
				c.enter(k, best, i, enter)
			}
			// Back to the displacement that was in use before the literals, unless
			// these begin here themselves.
			if !s.literal && s.source == litUse && lit+costOperation < s.cost && c.states[0].entry < i {
				c.enter(k, 0, i, lit+costOperation)
			}
		}
		switch {
		case s.literal:
			s.cost += costLiteral
		case s.space == spaceZero:
			if b != 0 || i >= s.until {
				s.cost = never
			}
		case i < s.first || i-s.first >= len(s.bytes):
			s.cost = never
		case s.bytes[i-s.first] == b:
		default:
			if gap := i - s.differ; gap <= copyRun {
				s.cost += costDiffer + (gap-1)*costAgain
			} else {
				s.cost += costDiffer + costRuns
			}
			s.differ = i
		}
		s.cost = min(s.cost, never)
	}
}

// skip goes on to i with the state best, which agreed all the way.
func (c *chooser) skip(best, i int) {
	parent := c.point(best)
	low, use := c.states[best].cost, c.states[best].use
	c.states[0] = state{literal: true, cost: low + costOperation, entry: i, parent: parent, node: -1, use: use}
	keep := c.states[:1]
	for k, s := range c.states[1:] {
		switch {
		case k+1 == best:
			keep = append(keep, s)
		case s.until > i:
			s.cost = never
			keep = append(keep, s)
		}
	}
	c.states = keep
}

// prune drops what is no longer worth considering: sources that a jump reaches as cheaply.
func (c *chooser) prune(i int) {
	low := never
	for k := range c.states {
		low = min(low, c.states[k].cost)
	}
	keep := c.states[:1]
	for _, s := range c.states[1:] {
		if i < s.until || s.cost < low+costJump {
			keep = append(keep, s)
		}
	}
	c.states = keep
}

// segments appends the cheapest way to the end.
func (c *chooser) segments(out []segment, end int) []segment {
	begin := len(out)
	for n := c.point(c.best()); n >= 0; n = c.nodes[n].parent {
		p := c.nodes[n]
		if p.start < end && !p.literal {
			if p.space == spaceZero {
				out = append(out, segment{start: p.start, end: end, zero: true})
			} else {
				out = append(out, segment{start: p.start, end: end, space: p.space, at: p.at})
			}
		}
		end = min(end, p.start)
	}
	part := out[begin:]
	for i, j := 0, len(part)-1; i < j; i, j = i+1, j-1 {
		part[i], part[j] = part[j], part[i]
	}
	return out
}
