package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// How connections are kept. See reference figures in transport/FORMAT.md.
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

// session is one connection with its own paho client.
type session struct {
	paho paho.Client
	conn *guard
	lost chan struct{}
	once sync.Once
	why  error // set before lost is closed
}

func (s *session) end(why error) {
	s.once.Do(func() {
		s.why = why
		close(s.lost)
	})
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

// probe asks the broker for a sign of life, by a subscription that exists
// already, and kicks the connection if there is none within timeout. MQTT's own
// ping would take up to keep-alive and time-out together, 40 seconds.
func (c *Client) probe(filter string, timeout time.Duration) {
	c.mu.Lock()
	s, sub := c.cur, c.subs[filter]
	c.mu.Unlock()
	if s == nil || sub.handler == nil {
		return
	}
	if err := c.subscribe(c.ctx, s, map[string]subscription{filter: sub}, timeout); err != nil {
		c.cfg.Log.Warn("no sign of life from the broker, connecting anew", "error", err)
		s.conn.Close()
	}
}

func (c *Client) subscribe(ctx context.Context, s *session, subs map[string]subscription, timeout time.Duration) error {
	filters := map[string]byte{}
	for f, sub := range subs {
		h := sub.handler
		s.paho.AddRoute(f, func(_ paho.Client, m paho.Message) { h(m.Topic(), m.Payload(), m.Retained()) })
		filters[f] = sub.qos
	}
	if len(filters) == 0 {
		return nil
	}
	tok := s.paho.SubscribeMultiple(filters, nil).(*paho.SubscribeToken)
	if err := c.await(ctx, s, tok, timeout, "subscribe"); err != nil {
		return err
	}
	// paho reports no error for a refused subscription; only the result tells.
	for f, code := range tok.Result() {
		if code > 2 {
			return fmt.Errorf("%w: %s", ErrRefused, f)
		}
	}
	return nil
}

func (c *Client) await(ctx context.Context, s *session, tok paho.Token, timeout time.Duration, what string) error {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-tok.Done():
		if err := tok.Error(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-s.lost:
		return fmt.Errorf("%s: %w", what, ErrDown)
	case <-t.C:
		return fmt.Errorf("%s: no answer within %v", what, timeout)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// run makes connections until the client ends.
func (c *Client) run() {
	defer close(c.done)
	h := fnv.New32a()
	h.Write([]byte(c.cfg.ID))
	// A fleet that shares one list must not land on the same first broker.
	next := int(h.Sum32() % uint32(len(c.brokers)))
	for failures := 0; c.ctx.Err() == nil; {
		if failures > 0 {
			if !c.pause(failures) {
				return
			}
		}
		good, err := c.connection(c.brokers[next])
		c.mu.Lock()
		c.lastErr = err
		c.mu.Unlock()
		if good {
			// Jitter applies after every loss: a broker that restarts would get
			// the whole fleet back in one instant.
			failures = 1
		} else {
			failures++
			next = (next + 1) % len(c.brokers)
		}
		if c.ctx.Err() == nil {
			c.cfg.Log.Warn("no connection to the broker", "error", err, "attempt", failures)
		}
	}
}

// pause waits between zero and a limit that doubles with each failure.
func (c *Client) pause(failures int) bool {
	limit := min(backoffBase<<min(failures-1, 10), backoffMax)
	t := time.NewTimer(rand.N(limit))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// connection makes one connection and returns when it is lost. good says that
// it had been usable.
func (c *Client) connection(b broker) (good bool, err error) {
	s := &session{lost: make(chan struct{})}
	conn, err := c.dial(b)
	if err != nil {
		return false, err
	}
	s.conn = newGuard(conn, c.cfg.MaxPacket)
	defer s.conn.Close()
	o := paho.NewClientOptions().
		AddBroker("tcp://" + b.addr). // a name only: the connection exists already
		SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return s.conn, nil }).
		SetProtocolVersion(4).
		SetClientID(c.cfg.ID).
		SetUsername(c.cfg.User).
		SetPassword(c.cfg.Password).
		SetCleanSession(true).
		SetOrderMatters(true).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetKeepAlive(keepAlive).
		SetPingTimeout(pingTimeout).
		SetConnectTimeout(connectTimeout).
		SetWriteTimeout(writeTimeout).
		SetResumeSubs(false).
		SetStore(paho.NewMemoryStore()).
		SetDefaultPublishHandler(func(paho.Client, paho.Message) {}).
		SetConnectionLostHandler(func(_ paho.Client, err error) { s.end(err) })
	if c.cfg.WillTopic != "" {
		o.SetBinaryWill(c.cfg.WillTopic, c.cfg.Will, 1, true)
	}
	s.paho = paho.NewClient(o)
	defer s.paho.Disconnect(0)
	if err := c.await(c.ctx, s, s.paho.Connect(), connectTimeout, "connect to "+b.addr); err != nil {
		return false, err
	}
	c.mu.Lock()
	subs := make(map[string]subscription, len(c.subs))
	for f, sub := range c.subs {
		subs[f] = sub
	}
	c.mu.Unlock()
	if err := c.subscribe(c.ctx, s, subs, ackTimeout); err != nil {
		return false, err
	}

	c.changed(s)
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		c.pump(s)
	}()
	select {
	case <-s.lost:
	case <-c.ctx.Done():
		c.farewell(s)
	}
	s.end(ErrClosed)
	c.changed(nil)
	<-pumped
	return true, s.why
}

func (c *Client) changed(s *session) {
	c.mu.Lock()
	c.cur = s
	if s != nil {
		c.connects++
	}
	close(c.change)
	c.change = make(chan struct{})
	c.mu.Unlock()
	if c.onChange != nil {
		c.onChange(s != nil)
	}
}

// farewell says in the device's own name what the will would say; the broker
// drops the will when a client disconnects in good order.
func (c *Client) farewell(s *session) {
	if c.cfg.WillTopic != "" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// Unheard, the broker will say it for us.
		_ = c.publish(ctx, s, letter{topic: c.cfg.WillTopic, qos: 1, retain: true, payload: c.cfg.Will})
	}
	s.paho.Disconnect(250)
}

func (c *Client) dial(b broker) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(c.ctx, dialTimeout)
	defer cancel()
	dial := c.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: keepAlive, Control: userTimeout}).DialContext
	}
	conn, err := dial(ctx, "tcp", b.addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", b.addr, err)
	}
	if b.tls == nil {
		return conn, nil
	}
	t := tls.Client(conn, b.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %s: %w", b.addr, err)
	}
	return t, nil
}
