package mqtt

import (
	"context"
	"crypto/tls"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

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
