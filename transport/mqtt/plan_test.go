package mqtt

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

// scatter returns n ranges with gaps between them, and their sum.
func (l *line) scatter(n, longest int) (ranges []transport.Range, sum int64) {
	at := int64(0)
	for range n {
		at += 1 + l.rng.Int64N(int64(len(l.content)/n-longest))
		length := 1 + l.rng.Int64N(int64(longest))
		ranges = append(ranges, transport.Range{at, length})
		at, sum = at+length, sum+length
	}
	return ranges, sum
}

// readPlanned reads ranges as the core reads units: each by itself, in order.
func readPlanned(t *testing.T, l *line, tr *transfer, ranges []transport.Range) {
	t.Helper()
	for _, r := range ranges {
		p := make([]byte, r[1])
		n, err := tr.readAt(t.Context(), r[0], p)
		require.NoError(t, err)
		require.Equal(t, len(p), n)
		require.True(t, bytes.Equal(l.content[r[0]:r[0]+r[1]], p), "at %d", r[0])
	}
}

// Planned ranges come to the byte, in windows and not one by one, and with few requests.
func TestPlanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 1, 16<<20)
		ranges, sum := l.scatter(1000, 5000)
		tr.follow(ranges)
		start := time.Now()
		readPlanned(t, l, tr, ranges)
		require.Equal(t, sum, tr.meter.bytes.Load())
		require.Zero(t, tr.meter.duplicates.Load()+tr.meter.foreign.Load()+tr.meter.retransmits.Load())
		require.Less(t, time.Since(start), 5*time.Second, "and not a round trip of 50 ms for each")
		require.Less(t, l.gets, len(ranges)/8)
		require.LessOrEqual(t, l.most, DefaultWindow)
	})
	synctest.Test(t, func(t *testing.T) { // ranges longer than a block, on a line that takes small ones
		l, tr := newLine(t, 1, 4<<20)
		l.perByte = time.Second / 8_000
		ranges, sum := l.scatter(8, 200_000)
		tr.follow(ranges)
		readPlanned(t, l, tr, ranges)
		require.Equal(t, sum, tr.meter.bytes.Load())
		require.Less(t, tr.win.block, DefaultBlock)
	})
}

// Over any line, with the plan told again and again while it is followed, with reads of
// what was read already and of what nobody planned: what is read is what was sent.
func TestPlannedOverBadLine(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			l, tr := newLine(t, seed, 2<<20)
			l.drop, l.double, l.delay, l.damage = int(seed%4)*10, int(seed%3)*10, int(seed%5)*10, int(seed%2)*10
			l.cutAt = int(seed) * 7
			ranges, _ := l.scatter(100, 9000)
			for i := range ranges {
				switch l.rng.IntN(6) {
				case 0, 1:
					tr.follow(ranges[i:min(i+20, len(ranges))])
				case 2: // as where what came was wrong
					again := max(0, i-l.rng.IntN(3))
					tr.follow(ranges[again:])
					readPlanned(t, l, tr, ranges[again:i])
				case 3:
					readPlanned(t, l, tr, []transport.Range{{l.rng.Int64N(1 << 20), 1 + l.rng.Int64N(70_000)}})
				}
				readPlanned(t, l, tr, ranges[i:i+1])
			}
		})
	}
}

// What was asked for ahead is kept when the plan is told again as it goes on.
func TestPlanGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 1, 16<<20)
		ranges, sum := l.scatter(500, 5000)
		for i := range ranges {
			if i%5 == 0 {
				tr.follow(ranges[i:min(i+100, len(ranges))])
			}
			readPlanned(t, l, tr, ranges[i:i+1])
		}
		require.Equal(t, sum, tr.meter.bytes.Load())
		require.Zero(t, tr.meter.duplicates.Load())
	})
}

// A plan counts against the budget as every read does.
func TestPlannedWithinBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 1, 4<<20)
		ranges, sum := l.scatter(100, 5000)
		tr.meter.budget = sum - 1
		tr.follow(ranges)
		readPlanned(t, l, tr, ranges[:len(ranges)-1])
		last := ranges[len(ranges)-1]
		_, err := tr.readAt(t.Context(), last[0], make([]byte, last[1]))
		require.ErrorIs(t, err, ErrBudget)
	})
}
