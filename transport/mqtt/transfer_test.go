package mqtt

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/transport"
)

const testBlob = "sha256:0000000000000000000000000000000000000000000000000000000000000001"

// line is a wire to a block server over a bad line. Everything happens in the
// fake time of a synctest bubble.
type line struct {
	t       *testing.T
	mu      sync.Mutex // never held while a transfer is called
	rng     *rand.Rand
	content []byte
	to      *transfer
	perByte time.Duration // of line time
	rtt     time.Duration
	// what happens to each block, in percent
	drop, double, delay, damage int

	down   bool
	hole   bool // takes requests, answers nothing
	free   time.Time
	heard  time.Time
	gets   int
	probes int
	blocks int
	cutAt  int // the connection breaks after so many blocks
	most   int // most bytes asked for at once
	absent bool
	busy   int
}

func (l *line) send(msg []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return false
	}
	l.gets++
	g, err := transport.ParseGet(msg)
	require.NoError(l.t, err)
	if l.hole {
		return true
	}
	obj, err := g.Object()
	require.NoError(l.t, err)
	total := 0
	for _, r := range g.Ranges {
		total += int(r[1])
		for off := r[0]; off < r[0]+r[1]; off += int64(g.Block) {
			n := min(int64(g.Block), r[0]+r[1]-off, max(0, int64(len(l.content))-off))
			h := transport.BlockHeader{Transfer: g.Transfer, Object: obj.Prefix(), Offset: off}
			switch {
			case l.absent:
				h.Flags, n = transport.FlagAbsent, 0
			case l.busy > 0:
				l.busy--
				h.Flags, h.Retry, n = transport.FlagBusy, 2, 0
			case off+n >= int64(len(l.content)):
				h.Flags = transport.FlagEnd
			}
			buf := make([]byte, transport.HeaderSize+n)
			copy(buf[transport.HeaderSize:], l.content[min(off, int64(len(l.content))):][:n])
			h.Seal(buf)
			l.carry(buf)
		}
	}
	l.most = max(l.most, total)
	return true
}

func (l *line) carry(buf []byte) {
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(len(buf)) * l.perByte)
	at := l.free.Sub(now) + l.rtt
	copies := 1
	if l.rng.IntN(100) < l.double {
		copies = 2
	}
	if l.rng.IntN(100) < l.drop {
		copies--
	}
	for range copies {
		if l.rng.IntN(100) < l.delay {
			at += time.Duration(l.rng.IntN(3000)) * time.Millisecond
		}
		msg := bytes.Clone(buf)
		if l.rng.IntN(100) < l.damage {
			msg[l.rng.IntN(len(msg))] ^= 1 << l.rng.IntN(8)
		}
		time.AfterFunc(at, func() {
			l.mu.Lock()
			if l.down || l.hole {
				l.mu.Unlock()
				return
			}
			l.heard = time.Now()
			l.blocks++
			cut := l.blocks == l.cutAt
			l.mu.Unlock()
			if h, data, err := transport.ParseBlock(msg); err == nil {
				l.to.block(h, data)
			}
			if cut {
				l.cut()
			}
		})
	}
}

// cut breaks the connection for a second.
func (l *line) cut() {
	l.mu.Lock()
	l.down = true
	l.mu.Unlock()
	l.to.reconnected()
	time.AfterFunc(time.Second, func() {
		l.mu.Lock()
		l.down, l.hole, l.heard = false, false, time.Now()
		l.mu.Unlock()
		l.to.reconnected()
	})
}

func (l *line) silent() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.heard)
}

func (l *line) probe() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probes++
	if l.hole && l.probes == 1 {
		time.AfterFunc(probeTime, l.cut)
	}
}

func newLine(t *testing.T, seed uint64, size int) (*line, *transfer) {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := &line{t: t, rng: rng, content: make([]byte, size), perByte: time.Microsecond, rtt: 50 * time.Millisecond, heard: time.Now()}
	for i := range l.content {
		l.content[i] = byte(rng.Uint32())
	}
	tr, err := newTransfer(transport.Get{Blob: testBlob}, newWindow(DefaultWindow, DefaultBlock), l, &meter{})
	require.NoError(t, err)
	l.to = tr
	return l, tr
}

// readAll reads as the core does, 64 KiB at a time.
func readAll(ctx context.Context, tr *transfer, step int) ([]byte, error) {
	var all []byte
	p := make([]byte, step)
	for {
		n, err := tr.readAt(ctx, int64(len(all)), p)
		all = append(all, p[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// Whatever a line loses, doubles, delays, reorders and damages: what is read is
// what was sent, and it ends.
func TestReadOverBadLine(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			l, tr := newLine(t, seed, int(seed)*40_000+1)
			l.drop, l.double, l.delay, l.damage = int(seed%4)*10, int(seed%3)*10, int(seed%5)*10, int(seed%2)*10
			got, err := readAll(t.Context(), tr, []int{64 << 10, 1000, 333_333}[seed%3])
			require.NoError(t, err, "seed %d", seed)
			require.True(t, bytes.Equal(l.content, got), "seed %d", seed)
			require.LessOrEqual(t, l.most, DefaultWindow, "seed %d: asked for more than the window", seed)
		})
	}
}

// The connection may break at every block, and the rest arrives over the next
// one; what is lost is at most a window.
func TestReadOverCutAtEveryBlock(t *testing.T) {
	for cut := 1; ; cut++ {
		done := false
		synctest.Test(t, func(t *testing.T) {
			l, tr := newLine(t, 7, 30*transport.DefaultBlock+17)
			l.cutAt = cut
			got, err := readAll(t.Context(), tr, transport.LeafSize)
			require.NoError(t, err, "cut at block %d", cut)
			require.True(t, bytes.Equal(l.content, got), "cut at block %d", cut)
			l.mu.Lock()
			done = l.blocks < cut
			l.mu.Unlock()
		})
		if done {
			require.Greater(t, cut, 30)
			return
		}
	}
}

// A broker that swallows everything is found out by a probe in less than twelve
// seconds, not by MQTT's own ping in forty.
func TestReadOutOfBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 3, 1<<20)
		l.hole = true
		start := time.Now()
		got, err := readAll(t.Context(), tr, transport.LeafSize)
		require.NoError(t, err)
		require.True(t, bytes.Equal(l.content, got))
		require.Less(t, time.Since(start), 14*time.Second, "11 s to find out, 1 s to connect, and the read")
		require.NotZero(t, l.probes)
	})
}

// A line of 128 kbit/s with 300 ms carries a block at a time and loses nothing
// to its own impatience: at least 90 % of what is sent is new.
func TestReadOverSlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 3, 1<<20)
		l.perByte, l.rtt = time.Second/16_000, 300*time.Millisecond
		start := time.Now()
		got, err := readAll(t.Context(), tr, transport.LeafSize)
		require.NoError(t, err)
		require.True(t, bytes.Equal(l.content, got))
		ideal := time.Duration(len(l.content)) * l.perByte
		require.Less(t, time.Since(start), ideal*10/9)
		require.Zero(t, tr.meter.retransmits.Load())
	})
}

// At 100 Mbit/s and 100 ms a window of 4 MiB fills the line.
func TestReadFillsLongFatLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 3, 64<<20)
		tr.win = newWindow(4<<20, DefaultBlock)
		l.perByte, l.rtt = 80*time.Nanosecond, 100*time.Millisecond
		start := time.Now()
		_, err := readAll(t.Context(), tr, transport.LeafSize)
		require.NoError(t, err)
		ideal := time.Duration(len(l.content)) * l.perByte
		require.Less(t, time.Since(start), ideal*10/9, "%v for ideal %v", time.Since(start), ideal)
	})
}

// Rate and budget bound what is asked for.
func TestReadWithinRateAndBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 3, 2<<20)
		tr.meter.rate = 128 << 10
		start := time.Now()
		got, err := readAll(t.Context(), tr, transport.LeafSize)
		require.NoError(t, err)
		require.True(t, bytes.Equal(l.content, got))
		require.Greater(t, time.Since(start), 14*time.Second)
		require.Less(t, time.Since(start), 18*time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		_, tr := newLine(t, 3, 2<<20)
		tr.meter.budget = 1 << 20
		got, err := readAll(t.Context(), tr, transport.LeafSize)
		require.ErrorIs(t, err, ErrBudget)
		require.Len(t, got, 1<<20)
	})
}

// What the server does not have is an error, and a busy server is waited for.
func TestReadRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 3, 1<<20)
		l.absent = true
		_, err := readAll(t.Context(), tr, transport.LeafSize)
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 3, 1<<20)
		l.busy = 3
		got, err := readAll(t.Context(), tr, transport.LeafSize)
		require.NoError(t, err)
		require.True(t, bytes.Equal(l.content, got))
	})
}

// A reader may jump, read again, and read what is not aligned to anything.
func TestReadAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 5, 900_001)
		for range 300 {
			off := l.rng.Int64N(1_000_000)
			p := make([]byte, l.rng.IntN(200_000))
			n, err := tr.readAt(t.Context(), off, p)
			want := l.content[min(off, int64(len(l.content))):]
			want = want[:min(len(want), len(p))]
			require.True(t, bytes.Equal(want, p[:n]), "at %d", off)
			if n < len(p) {
				require.ErrorIs(t, err, io.EOF)
			} else {
				require.NoError(t, err)
			}
		}
	})
}

// Who reads again does not believe what came, nor what came ahead of it, nor where the
// blob was said to end: all of it is asked for anew.
func TestReadAgain(t *testing.T) {
	const step = 64 << 10
	synctest.Test(t, func(t *testing.T) {
		l, tr := newLine(t, 6, 10*step)
		whole := l.content
		p := make([]byte, step)
		read := func(off int64) []byte {
			n, err := tr.readAt(t.Context(), off, p)
			require.NoError(t, err)
			return p[:n]
		}
		broken := append(bytes.Clone(whole[:step]), make([]byte, 3*step)...)
		for _, reads := range []int64{2, 4} { // with some of it read ahead, and to the end
			l.content = broken
			for off := int64(0); off < reads*step; off += step {
				require.True(t, bytes.Equal(broken[off:off+step], read(off)))
			}
			time.Sleep(time.Second)
			require.EqualValues(t, len(broken), tr.eof)

			l.content = whole
			for off := int64(step); off < 10*step; off += step {
				require.True(t, bytes.Equal(whole[off:off+step], read(off)), "at %d", off)
			}
		}
	})
}
