package mqtt

import (
	"sync"
	"sync/atomic"
	"time"
)

// Counters say what a link did since it was made.
type Counters struct {
	Downloaded  int64 // bytes of blocks that were used
	Duplicates  int64 // blocks that came twice, or too late
	Foreign     int64 // blocks of somebody else's transfer, or not as asked for
	Damaged     int64 // blocks with a wrong checksum or form
	Retransmits int64 // blocks that were asked for again
	Connects    int64 // usable connections
	Dropped     int64 // events that found the queue full
}

// meter counts, and holds a link to its rate and its budget.
type meter struct {
	bytes, duplicates, foreign, damaged, retransmits atomic.Int64

	rate   int64 // bytes a second, 0: no limit
	budget int64 // bytes, 0: no limit

	mu     sync.Mutex
	tokens float64
	filled time.Time
}

// allow reports whether n bytes more may be asked for, and if not, when.
func (m *meter) allow(n, flight int, now time.Time) (bool, time.Time, error) {
	if m.budget > 0 && m.bytes.Load()+int64(flight)+int64(n) > m.budget {
		return false, now, ErrBudget
	}
	if m.rate <= 0 {
		return true, now, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// One second's worth may be saved up, and always one block, or a rate below
	// one block a second would allow nothing ever.
	full := max(float64(m.rate), float64(n))
	if m.filled.IsZero() {
		m.tokens = full
	} else {
		m.tokens = min(full, m.tokens+now.Sub(m.filled).Seconds()*float64(m.rate))
	}
	m.filled = now
	if m.tokens >= float64(n) {
		m.tokens -= float64(n)
		return true, now, nil
	}
	return false, now.Add(time.Duration((float64(n) - m.tokens) / float64(m.rate) * float64(time.Second))), nil
}
