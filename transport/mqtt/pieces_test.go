package mqtt

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

// deaf is a wire that takes every request and never says anything.
type deaf struct {
	sent   int
	since  time.Time
	probes int
}

func (d *deaf) send([]byte) bool      { d.sent++; return true }
func (d *deaf) silent() time.Duration { return time.Since(d.since) }
func (d *deaf) probe()                { d.probes++ }

func newDeaf(t *testing.T, window, block int) (*deaf, *transfer) {
	t.Helper()
	w := &deaf{since: time.Now()}
	tr, err := newTransfer(transport.Get{Blob: testBlob}, newWindow(window, block), w, &meter{})
	require.NoError(t, err)
	return w, tr
}

// row returns count spans of n bytes, with gap bytes between them.
func row(count, n int, gap int64) (spans []*span) {
	for i := range count {
		spans = append(spans, &span{off: int64(i) * (int64(n) + gap), n: n})
	}
	return spans
}

func parseGets(t *testing.T, msgs [][]byte) (gets []transport.Get) {
	t.Helper()
	for _, m := range msgs {
		g, err := transport.ParseGet(m)
		require.NoError(t, err)
		gets = append(gets, g)
	}
	return gets
}

// One Get carries as many ranges, and asks for as many bytes, as a server takes, and what
// is beyond goes into another: none is lost because nobody would take it.
func TestRequestsEdges(t *testing.T) {
	const most = transport.MaxRequest / transport.MaxBlock
	for world, x := range map[string]struct {
		planned bool
		spans   []*span
		ranges  []int // of each Get
		blocks  []int
	}{
		"neighbours, the most bytes": {false, row(most, transport.MaxBlock, 0), []int{1}, []int{transport.MaxBlock}},
		"neighbours, a block more":   {false, row(most+1, transport.MaxBlock, 0), []int{1, 1}, []int{transport.MaxBlock, transport.MaxBlock}},
		"gaps, the most ranges":      {false, row(transport.MaxRanges, 4096, 1), []int{transport.MaxRanges}, []int{4096}},
		"gaps, a range more":         {false, row(transport.MaxRanges+1, 4096, 1), []int{transport.MaxRanges, 1}, []int{4096, 4096}},
		"blocks of two sizes": {false, []*span{{off: 0, n: 8192}, {off: 8192, n: 8192}, {off: 16384, n: 4096}},
			[]int{1, 1}, []int{8192, 4096}},
		"a plan, the most pieces": {true, row(transport.MaxRanges, transport.MaxBlock, 0), []int{transport.MaxRanges}, []int{transport.MaxBlock}},
		"a plan, a piece more":    {true, row(transport.MaxRanges+1, 100, 1), []int{transport.MaxRanges, 1}, []int{transport.MinBlock, transport.MinBlock}},
		"a plan of two sizes":     {true, []*span{{off: 0, n: 100}, {off: 200, n: 8192}, {off: 9000, n: 5}}, []int{3}, []int{8192}},
	} {
		_, tr := newDeaf(t, 1<<20, transport.DefaultBlock)
		tr.planned = x.planned
		gets := parseGets(t, tr.requests(x.spans, time.Now()))
		var ranges, blocks []int
		var asked, want int64
		for _, g := range gets {
			ranges, blocks = append(ranges, len(g.Ranges)), append(blocks, g.Block)
			for _, r := range g.Ranges {
				asked += r[1]
			}
		}
		for i, s := range x.spans {
			want += int64(s.n)
			require.Equal(t, 1, s.tries, world)
			require.EqualValues(t, i+1, s.order, world)
		}
		require.Equal(t, x.ranges, ranges, world)
		require.Equal(t, x.blocks, blocks, world)
		require.Equal(t, want, asked, world)
	}
}

// What is asked for ahead of the reader fills the window of the configuration, and what is
// in flight the one that was measured; neither is passed by a byte. One block is always allowed.
func TestAskWithinWindow(t *testing.T) {
	const block = 4096
	for world, x := range map[string]struct {
		cap, cur, already int // bytes
		want              int // blocks, with the one that there was
	}{
		"room for all":              {64 * block, 1 << 30, 0, 10},
		"the cap":                   {4 * block, 1 << 30, 0, 4},
		"a byte less than the cap":  {4*block - 1, 1 << 30, 0, 3},
		"what came takes room, too": {4 * block, 1 << 30, 2 * block, 4},
		"the window":                {64 * block, 3 * block, 0, 3},
		"a byte less":               {64 * block, 3*block - 1, 0, 2},
		"room for none":             {1, 1, 0, 1},
	} {
		_, tr := newDeaf(t, 64*block, block)
		tr.win.cap, tr.win.cur = x.cap, x.cur
		for off := 0; off < x.already; off += block {
			tr.spans = append(tr.spans, &span{off: int64(off), n: block, got: true, data: make([]byte, block)})
		}
		gets, _, err := tr.ask(0, 10*block)
		require.NoError(t, err, world)
		require.Len(t, tr.spans, x.want, world)
		asked := int64(0)
		for _, g := range parseGets(t, gets) {
			for _, r := range g.Ranges {
				asked += r[1]
			}
		}
		require.EqualValues(t, x.want*block-x.already, asked, world)
	}
}

// A plan is asked for up to the cap of the window and not a byte beyond; while there is
// something to wait for, only when a quarter of the window is free.
func TestProceedEdges(t *testing.T) {
	const window, piece = 1 << 20, 1 << 18
	for world, x := range map[string]struct {
		begun        bool
		flight, held int
		want         int // pieces
	}{
		"nothing held":                    {false, 0, 0, 4},
		"held to a piece":                 {false, 0, window - piece, 1},
		"and a byte more":                 {false, 0, window - piece + 1, 0},
		"three quarters in flight":        {true, window * 3 / 4, 0, 4},
		"more in flight":                  {true, window*3/4 + 1, 0, 0},
		"three quarters held":             {true, 0, window * 3 / 4, 1},
		"more held":                       {true, 0, window*3/4 + 1, 0},
		"nothing begun, much in flight":   {false, window, 0, 4},
		"nothing begun, much held":        {false, 0, window, 0},
		"half in flight, the other held":  {true, window / 2, window / 2, 2},
		"half in flight, more than rests": {true, window / 2, window/2 + 1, 1},
	} {
		_, tr := newDeaf(t, window, piece)
		tr.win.cur = window
		if x.begun {
			tr.spans = row(1, 1, 0)
		}
		begun := len(tr.spans)
		tr.planned, tr.plan = true, []transport.Range{{100, piece}, {piece + 200, 9 * piece}}
		err := tr.proceed(x.flight, x.held, func(*span) (bool, error) { return true, nil })
		require.NoError(t, err, world)
		require.Len(t, tr.spans, begun+x.want, world)
	}
}

// What of the old plan is in the new one is kept, piece by piece, and the rest is not: not
// what reaches beyond a range of the new plan, and nothing after a gap.
func TestFollowEdges(t *testing.T) {
	for world, x := range map[string]struct {
		ranges []transport.Range
		kept   int
		plan   []transport.Range
	}{
		"the same":               {[]transport.Range{{0, 300}}, 3, nil},
		"it goes on":             {[]transport.Range{{0, 400}}, 3, []transport.Range{{300, 100}}},
		"from the second on":     {[]transport.Range{{100, 300}}, 2, []transport.Range{{300, 100}}},
		"a piece reaches beyond": {[]transport.Range{{0, 150}, {200, 100}}, 1, []transport.Range{{100, 50}, {200, 100}}},
		"a gap before the first": {[]transport.Range{{50, 50}, {100, 100}}, 0, []transport.Range{{50, 50}, {100, 100}}},
		"in other pieces":        {[]transport.Range{{50, 100}}, 0, []transport.Range{{50, 100}}},
		"nothing of it":          {[]transport.Range{{900, 1}}, 0, []transport.Range{{900, 1}}},
	} {
		_, tr := newDeaf(t, 1<<20, 4096)
		tr.spans = row(3, 100, 0)
		had := slices.Clone(tr.spans)
		tr.follow(x.ranges)
		require.Len(t, tr.spans, x.kept, world)
		for _, s := range tr.spans {
			require.Contains(t, had, s, world)
		}
		require.Equal(t, x.plan, tr.plan, world)
	}
}

// A block is taken as it was asked for and once; any other changes nothing but a counter.
func TestBlocksNotAskedFor(t *testing.T) {
	const size = 4096
	for world, x := range map[string]struct {
		change              func(h *transport.BlockHeader)
		taken               bool
		foreign, duplicates int64
		eof                 int64
	}{
		"as asked for":              {func(*transport.BlockHeader) {}, true, 0, 0, -1},
		"the end, in full":          {func(h *transport.BlockHeader) { h.Flags = transport.FlagEnd }, true, 0, 0, 2 * size},
		"the end, a byte short":     {func(h *transport.BlockHeader) { h.Flags, h.Length = transport.FlagEnd, size-1 }, true, 0, 0, 2*size - 1},
		"the end, and nothing":      {func(h *transport.BlockHeader) { h.Flags, h.Length = transport.FlagEnd, 0 }, true, 0, 0, size},
		"the end, a byte too long":  {func(h *transport.BlockHeader) { h.Flags, h.Length = transport.FlagEnd, size+1 }, false, 1, 0, -1},
		"a byte too long":           {func(h *transport.BlockHeader) { h.Length = size + 1 }, false, 1, 0, -1},
		"a byte short":              {func(h *transport.BlockHeader) { h.Length = size - 1 }, false, 1, 0, -1},
		"of another transfer":       {func(h *transport.BlockHeader) { h.Transfer++ }, false, 1, 0, -1},
		"of another object":         {func(h *transport.BlockHeader) { h.Object[15]++ }, false, 1, 0, -1},
		"no, in another transfer":   {func(h *transport.BlockHeader) { h.Transfer++; h.Flags, h.Length = transport.FlagAbsent, 0 }, false, 1, 0, -1},
		"busy, in another transfer": {func(h *transport.BlockHeader) { h.Transfer++; h.Flags, h.Length = transport.FlagBusy, 0 }, false, 1, 0, -1},
		"from a byte later":         {func(h *transport.BlockHeader) { h.Offset++ }, false, 0, 1, -1},
		"from beyond":               {func(h *transport.BlockHeader) { h.Offset = 3 * size }, false, 0, 1, -1},
		"that came already":         {func(h *transport.BlockHeader) { h.Offset = 0 }, false, 0, 1, -1},
		"busy after it came":        {func(h *transport.BlockHeader) { h.Offset = 0; h.Flags, h.Length = transport.FlagBusy, 0 }, false, 0, 1, -1},
	} {
		_, tr := newDeaf(t, 1<<20, size)
		tr.spans = row(3, size, 0)
		tr.requests(tr.spans, time.Now())
		first := slices.Repeat([]byte{1}, size)
		tr.block(transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Length: size}, first)
		<-tr.wake
		cur := tr.win.cur
		h := transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Offset: size, Length: size}
		x.change(&h)
		tr.block(h, make([]byte, h.Length))
		require.Equal(t, x.foreign, tr.meter.foreign.Load(), world)
		require.Equal(t, x.duplicates, tr.meter.duplicates.Load(), world)
		require.Equal(t, first, tr.spans[0].data, world)
		require.Equal(t, x.taken, tr.spans[1].got, world)
		require.Equal(t, x.eof, tr.eof, world)
		require.Zero(t, tr.absent, world)
		if x.taken {
			require.EqualValues(t, size+h.Length, tr.meter.bytes.Load(), world)
			require.Len(t, tr.wake, 1, world)
			continue
		}
		require.EqualValues(t, size, tr.meter.bytes.Load(), world)
		require.Empty(t, tr.wake, world)
		require.Equal(t, cur, tr.win.cur, world)
		for _, s := range tr.spans[1:] {
			require.False(t, s.asked.IsZero(), world)
		}
	}
}

// What lies beyond the end is not waited for.
func TestNothingBeyondTheEnd(t *testing.T) {
	_, tr := newDeaf(t, 1<<20, 4096)
	tr.spans = row(4, 4096, 0)
	tr.requests(tr.spans, time.Now())
	tr.block(transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Offset: 4096, Flags: transport.FlagEnd, Length: 10}, make([]byte, 10))
	require.Len(t, tr.spans, 2)
	gets, _, err := tr.ask(0, 1<<20)
	require.NoError(t, err)
	require.Empty(t, gets, "the first is on its way, and after the second is nothing")
	// The end may be empty and stand where a block would begin: that block is the answer.
	_, tr = newDeaf(t, 1<<20, 4096)
	tr.spans = row(4, 4096, 0)
	tr.requests(tr.spans, time.Now())
	tr.block(transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Offset: 8192, Flags: transport.FlagEnd}, nil)
	require.Len(t, tr.spans, 3)
	require.EqualValues(t, 8192, tr.eof)
}

// One "no such object" may be of a server that is about to be told; two, with nothing
// between, are believed. A block between them takes the first back.
func TestAbsentTwice(t *testing.T) {
	_, tr := newDeaf(t, 1<<20, 4096)
	tr.spans = row(2, 4096, 0)
	tr.requests(tr.spans, time.Now())
	no := transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Flags: transport.FlagAbsent}
	tr.block(no, nil)
	require.Equal(t, 1, tr.absent)
	gets, _, err := tr.ask(0, 8192)
	require.NoError(t, err)
	require.Len(t, gets, 1, "it is asked for again")
	tr.block(transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Length: 4096}, make([]byte, 4096))
	require.Zero(t, tr.absent)
	tr.block(no, nil)
	require.Less(t, tr.absent, maxAbsents)
	tr.block(no, nil)
	require.Equal(t, maxAbsents, tr.absent)
}

// A busy server is left alone for as long as it says, one second at least, and at most half
// as long again.
func TestBusyWaits(t *testing.T) {
	for retry, seconds := range map[uint16]int{0: 1, 1: 1, 2: 2, 600: 600} {
		synctest.Test(t, func(t *testing.T) {
			_, tr := newDeaf(t, 1<<20, 4096)
			tr.spans = row(1, 4096, 0)
			tr.requests(tr.spans, time.Now())
			tr.block(transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Flags: transport.FlagBusy, Retry: retry}, nil)
			wait := time.Duration(seconds) * time.Second
			require.WithinRange(t, tr.spans[0].after, time.Now().Add(wait), time.Now().Add(wait*3/2))
			time.Sleep(wait - 1)
			gets, _, err := tr.ask(0, 4096)
			require.NoError(t, err)
			require.Empty(t, gets, "retry %d", retry)
			time.Sleep(wait / 2)
			gets, _, err = tr.ask(0, 4096)
			require.NoError(t, err)
			require.Len(t, gets, 1, "retry %d", retry)
		})
	}
}

// A block that three later ones overtook is asked for again at once; one that two overtook
// is waited for until its time is over, to the nanosecond.
func TestLostEdges(t *testing.T) {
	arrive := func(tr *transfer, k int) {
		s := tr.spans[k]
		tr.block(transport.BlockHeader{Transfer: tr.id, Object: tr.obj.Prefix(), Offset: s.off, Length: s.n}, make([]byte, s.n))
	}
	again := func(t *testing.T, tr *transfer) int {
		gets, _, err := tr.ask(0, int64(len(tr.spans))*4096)
		require.NoError(t, err)
		return len(gets)
	}
	for overtaken, want := range map[int]int{reorder - 1: 0, reorder: 1} {
		synctest.Test(t, func(t *testing.T) {
			_, tr := newDeaf(t, 1<<20, 4096)
			tr.spans = row(5, 4096, 0)
			tr.requests(tr.spans, time.Now())
			time.Sleep(time.Millisecond)
			for k := range overtaken {
				arrive(tr, k+1)
			}
			require.Equal(t, want, again(t, tr), "%d came before it", overtaken)
			require.EqualValues(t, want, tr.meter.retransmits.Load())
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w, tr := newDeaf(t, 1<<20, 4096)
		tr.spans = row(1, 4096, 0)
		tr.requests(tr.spans, time.Now())
		time.Sleep(quietTime - 1)
		require.Zero(t, again(t, tr))
		require.Zero(t, w.probes)
		time.Sleep(1)
		require.Zero(t, again(t, tr))
		require.Equal(t, 1, w.probes, "nothing came for so long: the broker is asked whether it lives")
		time.Sleep(firstRTO - quietTime - 1)
		require.Zero(t, again(t, tr))
		time.Sleep(1)
		require.Equal(t, 1, again(t, tr))
		time.Sleep(2*firstRTO - 1)
		require.Zero(t, again(t, tr), "the second time takes twice as long")
		time.Sleep(1)
		require.Equal(t, 1, again(t, tr))
		require.EqualValues(t, 2, tr.meter.retransmits.Load())
	})
	synctest.Test(t, func(t *testing.T) { // as long as others come, it is late and not lost
		_, tr := newDeaf(t, 1<<20, 4096)
		tr.win.srtt = 2 * minRTO // a round trip that is known
		tr.spans = row(3, 4096, 0)
		tr.requests(tr.spans, time.Now())
		for _, s := range tr.spans {
			s.tries = 2 // so that none of them measures another one
		}
		time.Sleep(minRTO)
		arrive(tr, 1)
		due := tr.win.rto(1)
		time.Sleep(due - 1)
		require.Zero(t, again(t, tr))
		time.Sleep(1)
		require.Equal(t, 1, again(t, tr))
	})
	synctest.Test(t, func(t *testing.T) { // the line was quiet before there was something to wait for
		w, tr := newDeaf(t, 1<<20, 4096)
		time.Sleep(time.Hour)
		tr.spans = row(1, 4096, 0)
		tr.requests(tr.spans, time.Now())
		time.Sleep(quietTime - 1)
		require.Zero(t, again(t, tr))
		require.Zero(t, w.probes)
	})
}
