package mqtt

import (
	"time"

	"github.com/tandem-ota/tandem/transport"
)

const (
	firstWindow = 256 << 10 // bytes in flight before anything was measured
	minRTO      = 2 * time.Second
	firstRTO    = 10 * time.Second
	maxRTO      = time.Minute
	// A block must be through in half of paho's ping time-out: the answer to a
	// ping queues behind it, and a connection that carries data must not be
	// taken for a dead one. 1 MiB blocks on 128 kbit/s never completed.
	maxBlockTime = pingTimeout / 2
	// More in flight than this much time's worth only makes what is lost with a
	// connection dearer.
	maxInFlightTime = 5 * time.Second
)

// window decides how many bytes may be in flight, how large a block is, and
// when a block is lost. It grows by what arrives, up to its cap and then slowly
// (additive increase), and halves when something was lost. It is a value
// without clock or I/O: the same calls give the same window.
type window struct {
	cap      int // bytes, from the configuration
	maxBlock int
	block    int
	cur      int // bytes that may be in flight
	slow     int // above this it grows by a block per window, not per block

	srtt, rttvar time.Duration // RFC 6298
	perByte      float64       // seconds that the line needs for a byte, smoothed
	lastLoss     time.Time
}

func newWindow(cap, block int) *window {
	return &window{cap: cap, maxBlock: block, block: block, cur: min(firstWindow, cap), slow: cap}
}

// arrived accounts for a block of n bytes that took rtt since it was asked for
// (0: not known, it was asked for twice) and dt since the line was last busy
// with another.
func (w *window) arrived(n int, rtt, dt time.Duration) {
	if rtt > 0 {
		if w.srtt == 0 {
			w.srtt, w.rttvar = rtt, rtt/2
		} else {
			w.rttvar += ((w.srtt - rtt).Abs() - w.rttvar) / 4
			w.srtt += (rtt - w.srtt) / 8
		}
	}
	if n > 0 && dt >= 0 {
		s := dt.Seconds() / float64(n)
		if w.perByte == 0 {
			w.perByte = s
		} else {
			w.perByte += (s - w.perByte) / 8
		}
	}
	if w.cur < w.slow {
		w.cur += n
	} else {
		w.cur += max(1, n*w.block/w.cur)
	}
	w.clamp()
}

func (w *window) clamp() {
	most := w.cap
	if w.perByte > 0 {
		for w.block > transport.MinBlock && w.perByte*float64(w.block) > maxBlockTime.Seconds() {
			w.block /= 2
		}
		for w.block < w.maxBlock && w.perByte*float64(w.block) < maxBlockTime.Seconds()/8 {
			w.block *= 2
		}
		if b := maxInFlightTime.Seconds() / w.perByte; b < float64(most) {
			most = int(b)
		}
	}
	w.cur = max(min(w.cur, most), 2*w.block)
}

// lost accounts for a loss; several within one round trip count once.
func (w *window) lost(now time.Time) {
	if now.Sub(w.lastLoss) < max(w.srtt, time.Millisecond) {
		return
	}
	w.lastLoss = now
	w.cur /= 2
	w.slow = w.cur
	w.clamp()
}

// rto is the time after which a block that was asked for tries times is asked
// for again, if nothing else has come meanwhile.
func (w *window) rto(tries int) time.Duration {
	d := firstRTO
	if w.srtt > 0 {
		d = max(w.srtt+4*w.rttvar, minRTO)
	}
	return min(d<<min(tries, 6), maxRTO)
}
