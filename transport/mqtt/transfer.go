package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tandem-ota/tandem/transport"
)

// ErrBudget means that reading on would take more bytes than the
// configuration allows. It is for the caller's policy to raise it or to wait.
var ErrBudget = errors.New("byte budget of the link is spent")

const (
	reorder    = 3               // later blocks that may overtake one before it counts as lost
	quietTime  = 8 * time.Second // without a byte while blocks are due: probe the broker
	probeTime  = 3 * time.Second // and connect anew if it says nothing
	maxAbsents = 2               // answers "no such object" before that is believed
)

// wire is what a transfer needs of the connection.
type wire interface {
	send(get []byte) bool  // may wait for the line; false: no connection now
	silent() time.Duration // since the last byte from the broker
	probe()                // find out, without blocking, whether the broker lives
}

// span is one block of an object that was or will be asked for.
type span struct {
	off    int64
	n      int
	data   []byte
	got    bool
	end    bool
	asked  time.Time // zero: not, or not on this connection
	after  time.Time // not to be asked for before this
	tries  int
	order  uint64 // of all requests; a block with a higher one that arrives has overtaken this one
	passed int
}

// transfer reads one object. It keeps a run of spans without gaps, from the
// place of the reader on; some have arrived, some are in flight. A reader that
// goes forward finds them filled: after its second read the transfer asks for a
// window of bytes ahead of it.
//
// One goroutine reads; blocks come from another.
type transfer struct {
	id    uint32
	get   transport.Get // blob or name
	obj   transport.Object
	w     wire
	meter *meter

	mu      sync.Mutex
	win     *window
	spans   []*span
	eof     int64             // -1: not known
	lastEnd int64             // where the last read ended; a read from there is a step forward
	planned bool              // it follows a plan: spans may have gaps between them
	plan    []transport.Range // what of it has no spans yet
	absent  int
	order   uint64
	arrival time.Time // of the last block
	wake    chan struct{}
}

func newTransfer(get transport.Get, win *window, w wire, m *meter) (*transfer, error) {
	obj, err := get.Object()
	if err != nil {
		return nil, err
	}
	get.Transfer = rand.Uint32()
	return &transfer{id: get.Transfer, get: get, obj: obj, w: w, meter: m, win: win, eof: -1, lastEnd: -1, wake: make(chan struct{}, 1)}, nil
}

// readAt has the semantics of io.ReaderAt. It waits as long as ctx allows,
// through any loss of the connection.
func (t *transfer) readAt(ctx context.Context, off int64, p []byte) (int, error) {
	if off < 0 || off > transport.MaxBlob {
		return 0, fmt.Errorf("read at offset %d", off)
	}
	t.mu.Lock()
	forward := off == t.lastEnd
	if off < t.lastEnd {
		// Who reads again does not believe what came. That goes for the end, too.
		t.unplan()
	}
	t.mu.Unlock()
	n := 0
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		t.mu.Lock()
		if t.planned && n < len(p) {
			t.seek(off + int64(n))
		}
		n += t.take(off+int64(n), p[n:])
		pos := off + int64(n)
		if t.planned && n < len(p) {
			t.seek(pos)
		}
		t.lastEnd = pos
		over := t.eof >= 0 && pos >= t.eof
		limit := off + int64(len(p))
		if forward {
			limit += int64(t.win.cap)
		}
		gets, next, err := t.ask(pos, limit)
		absent := t.absent >= maxAbsents
		t.mu.Unlock()
		// Never while locked: a block that waits for the lock stops the goroutine
		// that reads the connection, and with it the one that writes.
		for _, g := range gets {
			if !t.w.send(g) {
				break // a new connection makes us ask again
			}
		}
		switch {
		case n == len(p):
			return n, nil
		case absent:
			return n, fmt.Errorf("%s%s: %w", t.get.Blob, t.get.Meta+t.get.Manifest, fs.ErrNotExist)
		case over:
			return n, io.EOF
		case err != nil:
			return n, err
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
		select {
		case <-t.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// take copies what is there at off and forgets what lies before it. A reader
// that jumps loses what was read ahead.
func (t *transfer) take(off int64, p []byte) int {
	if len(t.spans) > 0 && !t.planned {
		last := t.spans[len(t.spans)-1]
		if off < t.spans[0].off || off > last.off+int64(last.n) {
			t.spans, t.eof = nil, -1
		}
	}
	n := 0
	for len(t.spans) > 0 {
		s := t.spans[0]
		if s.off+int64(s.n) > off {
			if !s.got || n == len(p) || s.off > off {
				break
			}
			c := copy(p[n:], s.data[min(int64(len(s.data)), off-s.off):])
			n += c
			off += int64(c)
			if off < s.off+int64(s.n) {
				break // the reader is inside it, or it is the end of the object
			}
		}
		t.spans[0] = nil
		t.spans = t.spans[1:]
	}
	return n
}

// ask requests what is needed up to limit, as the window allows, and again what
// is lost. It returns what to send and when to look again.
func (t *transfer) ask(pos, limit int64) (gets [][]byte, next time.Time, err error) {
	now := time.Now()
	next = now.Add(maxRTO)
	soon := func(at time.Time) {
		if at.Before(next) {
			next = at
		}
	}
	if t.eof >= 0 {
		limit = min(limit, t.eof)
	}

	// What is overdue is in flight no more.
	flight, held := 0, 0
	oldest := now
	for _, s := range t.spans {
		held += s.n
		if s.got || s.asked.IsZero() {
			continue
		}
		// The blocks of one connection queue behind each other: as long as some
		// arrive, the others are late, not lost.
		ref := s.asked
		if t.arrival.After(ref) {
			ref = t.arrival
		}
		due := ref.Add(t.win.rto(s.tries - 1))
		if s.passed < reorder && now.Before(due) {
			flight += s.n
			soon(due)
			if s.asked.Before(oldest) {
				oldest = s.asked
			}
			continue
		}
		t.meter.retransmits.Add(1)
		t.win.lost(now)
		s.asked, s.passed = time.Time{}, 0
	}
	if flight > 0 {
		// The line was quiet of itself before there was something to wait for.
		quiet := min(t.w.silent(), now.Sub(oldest))
		if quiet >= quietTime {
			t.w.probe() // does not wait
			quiet = 0
		}
		soon(now.Add(quietTime - quiet))
	}

	var send []*span
	want := func(s *span) (bool, error) {
		if flight > 0 && flight+s.n > t.win.cur {
			return false, nil
		}
		ok, at, err := t.meter.allow(s.n, flight, now)
		if err != nil {
			return false, err
		}
		if !ok {
			soon(at)
			return false, nil
		}
		flight += s.n
		send = append(send, s)
		return true, nil
	}
	more := true
	for _, s := range t.spans {
		if s.got || !s.asked.IsZero() || !more {
			continue
		}
		if s.after.After(now) {
			soon(s.after)
			continue
		}
		if more, err = want(s); err != nil {
			break
		}
	}
	end := pos - pos%transport.MinBlock
	if k := len(t.spans); k > 0 {
		end = t.spans[k-1].off + int64(t.spans[k-1].n)
	}
	if t.planned && more && err == nil {
		err = t.proceed(flight, held, want)
		end = limit
	}
	for more && err == nil && end < limit {
		// Blocks are aligned to their size, so that a size that grew waits for
		// its place.
		n := t.win.block
		for end%int64(n) != 0 && n > transport.MinBlock {
			n /= 2
		}
		if held > 0 && held+n > t.win.cap {
			break
		}
		s := &span{off: end, n: n}
		if more, err = want(s); more && err == nil {
			t.spans = append(t.spans, s)
			held += n
			end += int64(n)
		}
	}
	if len(send) > 0 {
		soon(now.Add(min(quietTime, t.win.rto(0))))
	}
	if err != nil && flight > 0 {
		err = nil // what is on its way may be all that the reader needs
	}
	return t.requests(send, now), next, err
}

// block takes what came on the block topic. It never blocks.
func (t *transfer) block(h transport.BlockHeader, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.Transfer != t.id || h.Object != t.obj.Prefix() {
		t.meter.foreign.Add(1)
		return
	}
	now := time.Now()
	var s *span
	for _, c := range t.spans {
		if c.off == h.Offset {
			s = c
			break
		}
	}
	switch {
	case h.Flags&transport.FlagAbsent != 0:
		t.absent++
		for _, c := range t.spans {
			c.asked, c.after = time.Time{}, time.Time{}
		}
	case s == nil || s.got:
		t.meter.duplicates.Add(1)
		return
	case h.Flags&transport.FlagBusy != 0:
		// Half of the time at random, so that a fleet does not come back at once.
		wait := time.Duration(max(h.Retry, 1)) * time.Second
		s.asked, s.passed = time.Time{}, 0
		s.after = now.Add(wait + rand.N(wait/2))
		t.win.lost(now)
	case h.Length > s.n || h.Length < s.n && h.Flags&transport.FlagEnd == 0:
		t.meter.foreign.Add(1)
		return
	default:
		t.fill(s, h, data, now)
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *transfer) fill(s *span, h transport.BlockHeader, data []byte, now time.Time) {
	var rtt time.Duration
	if s.tries == 1 && !s.asked.IsZero() {
		rtt = now.Sub(s.asked) // Karn: a repeated request has no round trip
	}
	busy := s.asked
	if t.arrival.After(busy) {
		busy = t.arrival
	}
	t.absent = 0
	t.arrival = now
	t.win.arrived(h.Length, rtt, now.Sub(busy))
	t.meter.bytes.Add(int64(h.Length))
	s.got, s.data = true, data
	for _, c := range t.spans {
		if !c.got && !c.asked.IsZero() && c.order < s.order {
			c.passed++
		}
	}
	if h.Flags&transport.FlagEnd != 0 {
		t.eof = h.Offset + int64(h.Length)
		for i, c := range t.spans {
			if c.off >= t.eof && c != s {
				t.spans = t.spans[:i]
				break
			}
		}
	}
}

// reconnected forgets what was in flight: blocks are not kept for a client
// that was away. It is called when a connection came or went.
func (t *transfer) reconnected() {
	t.mu.Lock()
	for _, s := range t.spans {
		if !s.got {
			s.asked, s.passed, s.after = time.Time{}, 0, time.Time{}
			s.tries = min(s.tries, 1)
		}
	}
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}
