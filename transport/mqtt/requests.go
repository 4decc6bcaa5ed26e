package mqtt

import (
	"time"

	"github.com/tandem-ota/tandem/transport"
)

// requests returns as few Gets as the limits on ranges allow.
func (t *transfer) requests(send []*span, now time.Time) (gets [][]byte) {
	if t.planned {
		return t.scattered(send, now)
	}
	for len(send) > 0 {
		g := t.get
		g.Block = send[0].n
		var sum int64
		i := 0
		for ; i < len(send) && send[i].n == g.Block && sum+int64(send[i].n) <= transport.MaxRequest; i++ {
			s := send[i]
			if k := len(g.Ranges); k > 0 && g.Ranges[k-1][0]+g.Ranges[k-1][1] == s.off {
				g.Ranges[k-1][1] += int64(s.n)
			} else if k == transport.MaxRanges {
				break
			} else {
				g.Ranges = append(g.Ranges, transport.Range{s.off, int64(s.n)})
			}
			sum += int64(s.n)
		}
		gets = t.request(gets, g, send[:i], now)
		send = send[i:]
	}
	return gets
}

// request adds a Get for spans.
func (t *transfer) request(gets [][]byte, g transport.Get, send []*span, now time.Time) [][]byte {
	msg, err := g.Encode()
	if err != nil {
		return gets // cannot be: the limits of its caller are those of Encode
	}
	for _, s := range send {
		t.order++
		s.asked, s.order = now, t.order
		s.tries++
	}
	return append(gets, msg)
}

// As many of the largest blocks as a Get has ranges are within what one may ask for, so
// that pieces of a plan need no sum; this does not compile otherwise.
const _ = uint(transport.MaxRequest - transport.MaxRanges*transport.MaxBlock)

// scattered returns Gets for pieces of a plan, each of which comes as one block.
func (t *transfer) scattered(send []*span, now time.Time) (gets [][]byte) {
	for len(send) > 0 {
		g := t.get
		g.Block = transport.MinBlock
		i := 0
		for ; i < len(send) && i < transport.MaxRanges; i++ {
			g.Block = max(g.Block, send[i].n)
			g.Ranges = append(g.Ranges, transport.Range{send[i].off, int64(send[i].n)})
		}
		gets = t.request(gets, g, send[:i], now)
		send = send[i:]
	}
	return gets
}
