package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// How connections are kept. They answer to the figures at the end of FORMAT.md.
const (
	keepAlive      = 30 * time.Second
	pingTimeout    = 10 * time.Second
	dialTimeout    = 15 * time.Second
	connectTimeout = 20 * time.Second // dial, TLS and MQTT handshake
	ackTimeout     = 20 * time.Second // SUBACK, PUBACK
	backoffBase    = time.Second
	backoffMax     = time.Minute
)

// ErrClosed means that the link was closed, by Close or by the end of the
// context that it was made with. It does not come back.
var ErrClosed = errors.New("link is closed")

// ErrDown means that there is no connection now. The client is at work on it;
// repeat when Up.
var ErrDown = errors.New("no connection to the broker")

// ErrRefused means that the broker does not let this client subscribe. It
// stands in the last error of the client, which goes on trying, slower and
// slower, because access lists get mended.
var ErrRefused = errors.New("subscription refused by the broker")

// Handler takes a message. It runs on the goroutine that reads the connection,
// so it must hand the message on and return; payload belongs to the handler.
type Handler func(topic string, payload []byte, retained bool)

type subscription struct {
	qos     byte
	handler Handler
}

// Client keeps one connection to one of several brokers. Its subscriptions are
// made anew on every connection; what is queued is published until a broker has
// acknowledged it. Devices use it through Link, desks directly.
type Client struct {
	cfg     Config
	brokers []broker
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
	out     *outbox

	mu       sync.Mutex
	subs     map[string]subscription
	cur      *session // nil: not connected, or not yet subscribed
	lastErr  error
	change   chan struct{} // closed, and replaced, when the connection comes or goes
	connects int64
	onChange func(up bool) // set before the client runs; must not block
}

// Connect starts a client and returns at once; the connection is made, and made
// again whenever it breaks, until ctx ends or Close. Only a configuration that
// cannot work is an error.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	return connect(ctx, cfg, nil)
}

// connect makes a client whose subscriptions are known before it connects.
func connect(ctx context.Context, cfg Config, prepare func(*Client)) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, subs: map[string]subscription{}, done: make(chan struct{}), change: make(chan struct{})}
	for _, b := range cfg.Brokers {
		p, err := parseBroker(b, cfg.TLS)
		if err != nil {
			return nil, err
		}
		c.brokers = append(c.brokers, p)
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.out = newOutbox()
	if prepare != nil {
		prepare(c)
	}
	go c.run()
	return c, nil
}

// Close says farewell, disconnects and waits until nothing of the client runs.
// What was queued and not acknowledged is gone; who must not lose it says it
// again after the next start.
func (c *Client) Close() error {
	c.cancel()
	<-c.done
	return nil
}

// Up reports whether the client is connected and subscribed.
func (c *Client) Up() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur != nil
}

// Err returns why the client is not Up, nil if it is or does not know.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur != nil {
		return nil
	}
	return c.lastErr
}

// Connects returns how many connections became usable so far.
func (c *Client) Connects() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connects
}

// Handle subscribes on this and all later connections. It returns nil when the
// broker has granted it, or when there is no connection yet.
func (c *Client) Handle(ctx context.Context, filter string, qos byte, h Handler) error {
	c.mu.Lock()
	c.subs[filter] = subscription{qos, h}
	s := c.cur
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	return c.subscribe(ctx, s, map[string]subscription{filter: {qos, h}}, ackTimeout)
}

// Forget ends a subscription.
func (c *Client) Forget(filter string) {
	c.mu.Lock()
	delete(c.subs, filter)
	s := c.cur
	c.mu.Unlock()
	if s != nil {
		s.paho.Unsubscribe(filter)
	}
}

// Publish sends a message and waits until the broker has acknowledged it (QoS
// 1) or it was written (QoS 0). It does not queue: without a connection it
// returns ErrDown.
func (c *Client) Publish(ctx context.Context, topic string, qos byte, retain bool, payload []byte) error {
	s := c.session()
	if s == nil {
		return ErrDown
	}
	return c.publish(ctx, s, letter{topic: topic, qos: qos, retain: retain, payload: payload})
}

// publish hands a message to paho and waits for its acknowledgement. paho's
// Publish itself waits for the writer of the connection, for up to the write
// time-out, and does not notice that the connection is gone: it gets a goroutine.
func (c *Client) publish(ctx context.Context, s *session, l letter) error {
	handed := make(chan paho.Token, 1)
	go func() { handed <- s.paho.Publish(l.topic, l.qos, l.retain, l.payload) }()
	select {
	case tok := <-handed:
		return c.await(ctx, s, tok, ackTimeout, "publish "+l.topic)
	case <-s.lost:
		return fmt.Errorf("publish %s: %w", l.topic, ErrDown)
	case <-ctx.Done():
		return fmt.Errorf("publish %s: %w", l.topic, ctx.Err())
	}
}

// WaitUp waits for a usable connection.
func (c *Client) WaitUp(ctx context.Context) error {
	for {
		c.mu.Lock()
		up, change := c.cur != nil, c.change
		c.mu.Unlock()
		if up {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			if err := c.Err(); err != nil {
				return fmt.Errorf("%w: %w", ctx.Err(), err)
			}
			return ctx.Err()
		case <-c.ctx.Done():
			return ErrClosed
		}
	}
}

// send publishes at QoS 0; false if the connection does not take it.
func (c *Client) send(topic string, payload []byte) bool {
	s := c.session()
	return s != nil && c.publish(c.ctx, s, letter{topic: topic, payload: payload}) == nil
}

func (c *Client) session() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur
}

// Kick breaks the connection, so that a new one is made. It is for those who
// know better than TCP that this one is dead.
func (c *Client) Kick() {
	if s := c.session(); s != nil {
		s.conn.Close()
	}
}

// silent returns for how long no byte came on the present connection.
func (c *Client) silent() time.Duration {
	if s := c.session(); s != nil {
		return s.conn.silent()
	}
	return 0
}
