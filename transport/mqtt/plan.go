package mqtt

import (
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// plan is what will be read of a blob, by rising offsets: ranges that may be far from each
// other. A transfer that follows it asks for just these bytes, ahead of the reader.
type plan struct {
	blob   string
	ranges []transport.Range
	known  *transfer // that follows it
}

// Plan says what will be read of a blob from now on, by rising offsets: these ranges are
// asked for ahead, to the byte, and nothing between. It takes the place of the plan before;
// what that had asked for and is in the new one is kept. A read of anything else ends it.
func (s *Source) Plan(blob manifest.Digest, ranges []transport.Range) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.plan = plan{blob: string(blob), ranges: ranges}
}

// Left returns how many bytes of blocks the link may still bring; limited is false if its
// configuration has no budget.
func (s *Source) Left() (bytes int64, limited bool) {
	m := &s.l.meter
	return max(0, m.budget-m.bytes.Load()), m.budget > 0
}

// follow makes the plan known to the transfer that reads it, once. It is called with the
// link's lock held. Another object that was read in between has made a new transfer.
func (l *Link) follow(t *transfer) {
	if l.plan.blob != "" && l.plan.blob == t.get.Blob && l.plan.known != t {
		l.plan.known = t
		t.follow(l.plan.ranges)
	}
}

// follow replaces what is read ahead by a plan. It keeps what was asked for as far as the
// plan has it, up to the first gap: spans stay in the order of their offsets.
func (t *transfer) follow(ranges []transport.Range) {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := t.spans
	t.spans, t.plan, t.planned, t.lastEnd = nil, nil, true, -1
	for k, r := range ranges {
		for r[1] > 0 {
			for len(had) > 0 && had[0].off < r[0] {
				had = had[1:]
			}
			if len(had) == 0 || had[0].off > r[0] || int64(had[0].n) > r[1] {
				t.plan = append(append(t.plan, r), ranges[k+1:]...)
				return
			}
			n := int64(had[0].n)
			t.spans, had = append(t.spans, had[0]), had[1:]
			r = transport.Range{r[0] + n, r[1] - n}
		}
	}
}

// seek drops what of the plan lies before off, and all of it if off is not in it: then
// what is read there is read as without a plan.
func (t *transfer) seek(off int64) {
	for len(t.spans) > 0 && t.spans[0].off+int64(t.spans[0].n) <= off {
		t.spans = t.spans[1:]
	}
	if len(t.spans) > 0 && t.spans[0].off <= off {
		return
	}
	if len(t.spans) == 0 {
		for len(t.plan) > 0 && t.plan[0][0]+t.plan[0][1] <= off {
			t.plan = t.plan[1:]
		}
		if len(t.plan) > 0 && t.plan[0][0] <= off {
			t.plan[0] = transport.Range{off, t.plan[0][0] + t.plan[0][1] - off}
			return
		}
	}
	t.unplan()
}

func (t *transfer) unplan() { t.spans, t.plan, t.planned, t.eof = nil, nil, false, -1 }

// proceed takes the next piece of the plan, at most a block. A piece is asked for alone, so
// that its range is one block; to ask for many small ones with few messages, it waits
// until there is room for a quarter of the window.
func (t *transfer) proceed(flight, held int, want func(*span) (bool, error)) (err error) {
	if len(t.spans) > 0 && (flight*4 > t.win.cur*3 || held*4 > t.win.cap*3) {
		return nil
	}
	for len(t.plan) > 0 {
		r := &t.plan[0]
		s := &span{off: r[0], n: int(min(int64(t.win.block), r[1]))}
		if held > 0 && held+s.n > t.win.cap {
			return nil
		}
		more, err := want(s)
		if !more || err != nil {
			return err
		}
		t.spans = append(t.spans, s)
		held += s.n
		if *r = (transport.Range{r[0] + int64(s.n), r[1] - int64(s.n)}); r[1] == 0 {
			t.plan = t.plan[1:]
		}
	}
	return nil
}
