package mqtt

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

// Whatever a line does, the window stays between two blocks and its cap, and a block
// between the smallest and that of the configuration.
func TestWindowEdges(t *testing.T) {
	const limit, block = 1 << 20, transport.DefaultBlock
	for world, x := range map[string]struct {
		dt         time.Duration // that a block takes
		lost       bool
		block, cur int
	}{
		"a line that costs nothing":        {0, false, block, limit},
		"a line of the cap in its time":    {maxInFlightTime * block / limit, false, block, limit},
		"half as fast":                     {maxInFlightTime * block / limit * 2, false, block, limit / 2},
		"a block in the longest time":      {maxBlockTime, false, block, 2 * block},
		"and slower":                       {maxBlockTime * 5 / 4, false, block / 2, block},
		"slower than the smallest":         {maxBlockTime * 1000, false, transport.MinBlock, 2 * transport.MinBlock},
		"a line that loses all":            {0, true, block, 2 * block},
		"a slow line that loses all, also": {maxBlockTime * 1000, true, transport.MinBlock, 2 * transport.MinBlock},
	} {
		w := newWindow(limit, block)
		now := time.Now()
		for range 1000 {
			if now = now.Add(time.Minute); x.lost {
				w.lost(now)
			}
			w.arrived(block, 0, x.dt)
			if x.lost {
				w.lost(now.Add(time.Second))
			}
		}
		require.Equal(t, x.block, w.block, world)
		require.InDelta(t, x.cur, w.cur, 2, world) // a float rounds down
		require.LessOrEqual(t, w.cur, limit, world)
	}
	require.Equal(t, firstWindow, newWindow(limit, block).cur)
	require.Equal(t, firstWindow-1, newWindow(firstWindow-1, block).cur, "not even at first is it more than its cap")
}

// A block grows again on a line that became fast, and not above the configuration.
func TestBlockGrowsAgain(t *testing.T) {
	w := newWindow(1<<20, transport.DefaultBlock)
	w.perByte = 1
	w.clamp()
	require.Equal(t, transport.MinBlock, w.block)
	w.perByte = maxBlockTime.Seconds() / 8 / transport.MinBlock
	w.clamp()
	require.Equal(t, transport.MinBlock, w.block, "an eighth of the longest time is not yet fast")
	w.perByte /= 1.01
	w.clamp()
	require.Equal(t, 2*transport.MinBlock, w.block)
	w.perByte = 1e-12
	w.clamp()
	require.Equal(t, transport.DefaultBlock, w.block)
}

// Losses of one round trip count once, and at least a millisecond is one.
func TestLostCountsOnce(t *testing.T) {
	for _, rtt := range []time.Duration{0, time.Second} {
		w := newWindow(1<<20, transport.MinBlock)
		w.srtt, w.cur = rtt, 1<<20
		now := time.Now()
		w.lost(now)
		require.Equal(t, 1<<19, w.cur)
		once := max(rtt, time.Millisecond)
		w.lost(now.Add(once - 1))
		require.Equal(t, 1<<19, w.cur)
		w.lost(now.Add(once))
		require.Equal(t, 1<<18, w.cur)
		require.Equal(t, w.cur, w.slow, "from here it grows slowly")
		w.arrived(transport.MinBlock, 0, -1)
		require.Equal(t, 1<<18+transport.MinBlock*transport.MinBlock/(1<<18), w.cur)
	}
}

// A block is asked for again after its time, which doubles with each try: never before two
// seconds, after ten when nothing was measured, and after a minute at the latest.
func TestRTOEdges(t *testing.T) {
	for world, x := range map[string]struct {
		srtt, rttvar time.Duration
		tries        int
		want         time.Duration
	}{
		"nothing measured":        {0, 0, 0, firstRTO},
		"and a second time":       {0, 0, 1, 2 * firstRTO},
		"and a third":             {0, 0, 2, 4 * firstRTO},
		"and a fourth":            {0, 0, 3, maxRTO},
		"a near broker":           {time.Millisecond, 0, 0, minRTO},
		"the shortest":            {minRTO - 4, 1, 0, minRTO},
		"a nanosecond more":       {minRTO - 3, 1, 0, minRTO + 1},
		"the longest":             {maxRTO, 0, 0, maxRTO},
		"more than the longest":   {maxRTO, time.Second, 0, maxRTO},
		"a near broker, at last":  {time.Millisecond, 0, 5, maxRTO},
		"tries enough to run out": {time.Millisecond, 0, 1 << 30, maxRTO},
	} {
		w := newWindow(1<<20, transport.DefaultBlock)
		w.srtt, w.rttvar = x.srtt, x.rttvar
		require.Equal(t, x.want, w.rto(x.tries), world)
	}
}
