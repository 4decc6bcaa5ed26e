package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tandem-ota/tandem/transport"
)

// Link is a device's way to its fleet. All methods are safe for concurrent use.
type Link struct {
	c     *Client
	id    string
	log   *slog.Logger
	meter meter
	wants chan transport.Want

	lastWant []byte // only touched by the reading goroutine
	probing  atomic.Bool

	reading chan struct{} // holds a token while nobody reads
	mu      sync.Mutex
	cur     *transfer // nil, or the one that blocks go to
	plan    plan      // what was said that will be read
	win     *window   // outlives transfers: the line stays the same
}

// Dial starts the link of a device and returns at once; it connects, and
// connects again, until ctx ends or Close. Only a configuration that cannot work
// is an error. The will is set by Dial: transport.Live with Online false.
func Dial(ctx context.Context, cfg Config) (*Link, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	offline, err := transport.Live{}.Encode()
	if err != nil {
		return nil, err
	}
	online, err := transport.Live{Online: true}.Encode()
	if err != nil {
		return nil, err
	}
	live := transport.Topic(cfg.ID, transport.KindLive)
	cfg.WillTopic, cfg.Will = live, offline
	l := &Link{
		id: cfg.ID, log: cfg.Log,
		wants:   make(chan transport.Want, 1),
		reading: make(chan struct{}, 1),
		win:     newWindow(cfg.Window, cfg.BlockSize),
	}
	l.meter.rate, l.meter.budget = cfg.Rate, cfg.Budget
	l.reading <- struct{}{}
	l.c, err = connect(ctx, cfg, func(c *Client) {
		c.subs[transport.Topic(cfg.ID, transport.KindWant)] = subscription{1, l.onWant}
		c.subs[transport.Topic(cfg.ID, transport.KindBlock)] = subscription{0, l.onBlock}
		c.onChange = l.onChange
		c.out.put(letter{topic: live, payload: online, retain: true, qos: 1, level: true, keep: true})
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Close ends the link in good order: the device is reported offline.
func (l *Link) Close() error { return l.c.Close() }

// Up reports whether the device is connected and the broker lets it hear what
// it should run. An access list that refuses is not Up.
func (l *Link) Up() bool { return l.c.Up() }

// WaitUp waits until Up or ctx ends, and then says what is in the way.
func (l *Link) WaitUp(ctx context.Context) error { return l.c.WaitUp(ctx) }

// Err returns why the link is not Up, as far as it is known.
func (l *Link) Err() error { return l.c.Err() }

// Counters returns what the link did so far.
func (l *Link) Counters() Counters {
	l.c.out.mu.Lock()
	dropped := l.c.out.dropped
	l.c.out.mu.Unlock()
	return Counters{
		Downloaded: l.meter.bytes.Load(), Duplicates: l.meter.duplicates.Load(),
		Foreign: l.meter.foreign.Load(), Damaged: l.meter.damaged.Load(),
		Retransmits: l.meter.retransmits.Load(), Connects: l.c.Connects(), Dropped: dropped,
	}
}

// Wants delivers what the device should run. Only the newest is kept for a
// reader that comes late; the same one is not delivered twice. Its statement has
// not been verified.
func (l *Link) Wants() <-chan transport.Want { return l.wants }

func (l *Link) onWant(_ string, payload []byte, _ bool) {
	if len(payload) == 0 || bytes.Equal(payload, l.lastWant) {
		return
	}
	w, err := transport.ParseWant(payload)
	if err != nil {
		l.log.Warn("ignoring what the broker says this device should run", "error", err)
		return
	}
	l.lastWant = payload
	for {
		select {
		case l.wants <- w:
			return
		default:
		}
		select {
		case <-l.wants:
		default:
		}
	}
}

// Report says what the device is. The newest report replaces those before it,
// and is repeated on every new connection.
func (l *Link) Report(s transport.State) error {
	s.Device = l.id
	data, err := s.Encode()
	if err != nil {
		return err
	}
	l.c.out.put(letter{topic: l.topic(transport.KindState), payload: data, retain: true, qos: 1, level: true, keep: true})
	return nil
}

// Event says that a phase began. Events wait for a connection in a short queue
// that drops the oldest; their numbers show the gap.
func (l *Link) Event(e transport.Event) error {
	data, err := e.Encode()
	if err != nil {
		return err
	}
	l.c.out.put(letter{topic: l.topic(transport.KindEvent), payload: data, qos: 1})
	return nil
}

// Progress says how far a phase is, if there is a connection. Only the newest
// waits for its turn on a slow line. The caller sends it at most once a second.
func (l *Link) Progress(p transport.Progress) error {
	data, err := p.Encode()
	if err != nil {
		return err
	}
	if l.c.Up() {
		l.c.out.put(letter{topic: l.topic(transport.KindProgress), payload: data, level: true})
	}
	return nil
}

// Verdict says how an update ended. It is published until a broker has
// acknowledged it, and then again on each new connection, since a broker may
// forget. A verdict that nobody has acknowledged does not survive the end of the
// program: the core keeps it and says it again.
func (l *Link) Verdict(v transport.Verdict) error {
	v.Device = l.id
	data, err := v.Encode()
	if err != nil {
		return err
	}
	l.c.out.put(letter{topic: l.topic(transport.KindVerdict), payload: data, retain: true, qos: 1, level: true, keep: true})
	return nil
}

func (l *Link) topic(k transport.Kind) string { return transport.Topic(l.id, k) }

func (l *Link) onBlock(_ string, payload []byte, _ bool) {
	h, data, err := transport.ParseBlock(payload)
	if err != nil {
		l.meter.damaged.Add(1)
		return
	}
	l.mu.Lock()
	t := l.cur
	l.mu.Unlock()
	if t == nil {
		l.meter.foreign.Add(1)
		return
	}
	t.block(h, data)
}

func (l *Link) onChange(bool) {
	l.mu.Lock()
	t := l.cur
	l.mu.Unlock()
	if t != nil {
		t.reconnected()
	}
}

// linkWire is the Link as a transfer sees it.
type linkWire struct{ *Link }

func (w linkWire) send(get []byte) bool { return w.c.send(w.topic(transport.KindGet), get) }

func (w linkWire) silent() time.Duration { return w.c.silent() }

func (w linkWire) probe() {
	if !w.probing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer w.probing.Store(false)
		w.c.probe(w.topic(transport.KindBlock), probeTime)
	}()
}

// read reads of one object. One reader at a time: two would throw each other's
// read-ahead away, and memory is promised once.
func (l *Link) read(ctx context.Context, get transport.Get, off int64, p []byte) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.c.ctx, cancel)()
	select {
	case <-l.reading:
		defer func() { l.reading <- struct{}{} }()
	case <-ctx.Done():
		return 0, l.why(ctx.Err())
	}
	l.mu.Lock()
	t := l.cur
	// What a name stands for may change between two reads of it, a digest not.
	again := off == 0 && get.Blob == ""
	if t == nil || again || t.get.Blob != get.Blob || t.get.Meta != get.Meta || t.get.Manifest != get.Manifest {
		var err error
		if t, err = newTransfer(get, l.win, linkWire{l}, &l.meter); err != nil {
			l.mu.Unlock()
			return 0, err
		}
		l.cur = t
	}
	l.follow(t)
	l.mu.Unlock()
	n, err := t.readAt(ctx, off, p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = l.why(err)
	}
	return n, err
}

func (l *Link) why(err error) error {
	if l.c.ctx.Err() != nil {
		return ErrClosed
	}
	if up := l.c.Err(); up != nil {
		return fmt.Errorf("%w: %w", err, up)
	}
	return err
}
