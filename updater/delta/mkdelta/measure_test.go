package mkdelta

import (
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkMatch says what the matches of a pair cost as operations of coding
// 1, in every nth frame (TANDEM_DELTA_EVERY) of the pair that TANDEM_DELTA_OLD and
// TANDEM_DELTA_NEW name. TANDEM_DELTA_MATCHER=index takes the global index alone.
func BenchmarkMatch(b *testing.B) {
	old, fresh := pair(b)
	every, _ := strconv.Atoi(os.Getenv("TANDEM_DELTA_EVERY"))
	every = max(every, 1)
	data := make([]byte, old.Size)
	_, err := old.ReadAt(data, 0)
	require.NoError(b, err)
	var o Options
	require.NoError(b, o.complete())
	if s := os.Getenv("TANDEM_DELTA_FRAME"); s != "" {
		o.FrameSize, _ = strconv.Atoi(s)
	}
	begin := time.Now()
	p, err := newPlan(b.Context(), data, fresh, o)
	require.NoError(b, err)
	b.Logf("plan: %v, %s with %d files, %d pairs", time.Since(begin), p.newFiles.Kind, len(p.newFiles.Files), len(p.pairs))
	p.noSpace1 = os.Getenv("TANDEM_DELTA_SPACE1") == ""
	for b.Loop() {
		var size, control, diff, literal, matching, different, copied, parts atomic.Int64
		var work sync.WaitGroup
		next := atomic.Int64{}
		for range o.Workers {
			work.Go(func() {
				w, err := newWorker(p.ix, fresh, o)
				require.NoError(b, err)
				m := p.matcher()
				for {
					i := next.Add(1) - 1
					at := i * int64(every) * int64(o.FrameSize)
					if at >= fresh.Size {
						return
					}
					frame := w.buf[:min(int64(len(w.buf)), fresh.Size-at)]
					_, err := fresh.ReadAt(frame, at)
					require.NoError(b, err)
					begin := time.Now()
					var segments []segment
					if os.Getenv("TANDEM_DELTA_MATCHER") == "index" {
						segments = p.ix.match(frame, at)
					} else {
						segments = m.match(frame, at)
						if !p.noSpace1 {
							// Not to be had in coding 1; the old image is longer, so this only counts.
							for k := range segments {
								if segments[k].space == spaceNew {
									segments[k] = segment{start: segments[k].start, end: segments[k].end, zero: true}
								}
							}
						}
					}
					matching.Add(int64(time.Since(begin)))
					w.control, w.diff, w.literal = w.control[:0], w.diff[:0], w.literal[:0]
					var s Stats
					w.operations(frame, at, segments, &s)
					body := 0
					c, d, l := len(w.stream(nil, w.control, &body)), len(w.stream(nil, w.diff, &body)), len(w.stream(nil, w.literal, &body))
					control.Add(int64(c))
					diff.Add(int64(d))
					literal.Add(int64(l))
					size.Add(int64(c + d + l + 1))
					different.Add(s.Different)
					copied.Add(s.Copied)
					parts.Add(int64(len(segments)))
				}
			})
		}
		work.Wait()
		b.Logf("size %d: control %d, difference %d, literal %d; %d segments, %d different, %d copied; matching %v", size.Load(), control.Load(), diff.Load(),
			literal.Load(), parts.Load(), different.Load(), copied.Load(), time.Duration(matching.Load()))
		b.ReportMetric(float64(size.Load()), "delta-B")
	}
}
