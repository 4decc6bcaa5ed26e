package mqtt

import "sync"

// maxQueued bounds what waits for a connection. Level messages replace their
// predecessor, so only events can pile up, and the oldest of those are dropped.
const maxQueued = 32

// letter is a message that waits to be published.
type letter struct {
	topic   string
	payload []byte
	retain  bool
	qos     byte
	level   bool // the newest one says all: it replaces what waits on its topic
	keep    bool // said again on every new connection: brokers may forget
	version uint64
}

// outbox holds what a client still has to say, in order.
type outbox struct {
	mu      sync.Mutex
	queue   []letter
	kept    map[string]letter
	wake    chan struct{}
	version uint64
	dropped int64
}

func newOutbox() *outbox {
	return &outbox{kept: map[string]letter{}, wake: make(chan struct{}, 1)}
}

func (o *outbox) put(l letter) {
	o.mu.Lock()
	o.version++
	l.version = o.version
	if l.keep {
		o.kept[l.topic] = l
	}
	o.add(l)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) add(l letter) {
	if l.level {
		for i := range o.queue {
			if o.queue[i].topic == l.topic {
				o.queue[i] = l
				return
			}
		}
	}
	if len(o.queue) >= maxQueued {
		for i := range o.queue {
			if !o.queue[i].level {
				o.queue = append(o.queue[:i], o.queue[i+1:]...)
				o.dropped++
				break
			}
		}
	}
	o.queue = append(o.queue, l)
}

// requeue puts what is to be said on every connection in front of what waits.
func (o *outbox) requeue() {
	o.mu.Lock()
	defer o.mu.Unlock()
	waiting := o.queue
	o.queue = nil
	for _, l := range o.kept {
		o.add(l)
	}
	for _, l := range waiting {
		o.add(l)
	}
}

func (o *outbox) first() (letter, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		return letter{}, false
	}
	return o.queue[0], true
}

// sent removes a letter, unless a newer one has taken its place meanwhile.
func (o *outbox) sent(l letter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.queue {
		if o.queue[i].version == l.version {
			o.queue = append(o.queue[:i], o.queue[i+1:]...)
			return
		}
	}
}

// pump publishes what waits, one after the other, until the session ends. A
// message leaves the queue only when the broker has acknowledged it.
func (c *Client) pump(s *session) {
	c.out.requeue()
	for {
		l, ok := c.out.first()
		if !ok {
			select {
			case <-c.out.wake:
				continue
			case <-s.lost:
				return
			}
		}
		if err := c.publish(c.ctx, s, l); err != nil {
			// Unanswered: this connection is no good, and a repeat belongs on the next.
			s.conn.Close()
			select {
			case <-s.lost:
			case <-c.ctx.Done():
			}
			return
		}
		c.out.sent(l)
	}
}
