// Package mqtttest is a broker for tests that loses, doubles, delays, swaps and
// damages what it carries, breaks connections and goes silent, all by a seed.
//
// It speaks as much of MQTT 3.1.1 as a device needs (clean session, QoS 0 and 1,
// retained messages, wills, wildcards) over net.Pipe, so that a test may run in
// the fake time of testing/synctest. What it never does is to lie about an
// acknowledgement: a PUBACK means that the message was taken.
package mqtttest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
)

// Faults says what happens to messages on their way to a client, in percent of
// those whose topic Hit accepts.
type Faults struct {
	Drop, Double, Delay, Swap, Damage int
	MaxDelay                          time.Duration // of delayed messages; default 3 s
	Hit                               func(topic string) bool
	Rate                              int // bytes a second of each connection; 0: no limit
	CutAfter                          int // break the connection once, after so many packets to the client
}

// Broker is the hostile broker.
type Broker struct {
	mu       sync.Mutex
	rng      *rand.Rand
	faults   Faults
	conns    map[*conn]bool
	retained map[string]message
	local    []local
	refuse   func(filter string) bool
	silent   bool
	packets  int
	cut      bool
	connects int
	wg       sync.WaitGroup
	closed   bool
}

type local struct {
	filter string
	f      func(topic string, payload []byte)
}

type conn struct {
	b       *Broker
	net     net.Conn
	id      string
	filters map[string]byte
	will    *message
	out     chan []byte
	done    chan struct{}
	once    sync.Once
	nextID  uint16
	held    *message // waits to be overtaken
}

// New makes a broker. The same seed and the same traffic give the same faults.
func New(seed uint64, f Faults) *Broker {
	if f.MaxDelay == 0 {
		f.MaxDelay = 3 * time.Second
	}
	return &Broker{rng: rand.New(rand.NewPCG(seed, 2)), faults: f, conns: map[*conn]bool{}, retained: map[string]message{}}
}

// Dial connects a client; it fits mqtt.Config.Dial.
func (b *Broker) Dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, net.ErrClosed
	}
	c := &conn{b: b, net: server, filters: map[string]byte{}, out: make(chan []byte, 1<<14), done: make(chan struct{})}
	b.connects++
	b.wg.Add(2)
	go c.read()
	go c.write()
	return client, nil
}

// Close breaks all connections and waits until nothing of the broker runs.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.Cut()
	b.wg.Wait()
}

// Cut breaks all connections, as a reset does: wills are published.
func (b *Broker) Cut() {
	b.mu.Lock()
	var all []*conn
	for c := range b.conns {
		all = append(all, c)
	}
	b.mu.Unlock()
	for _, c := range all {
		c.end()
	}
}

// Silence makes the broker swallow all it gets and say nothing, on the
// connections that there are: a black hole. New ones work.
func (b *Broker) Silence() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.filters = nil
	}
	b.silent = true
}

// Refuse makes the broker refuse subscriptions.
func (b *Broker) Refuse(f func(filter string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = f
}

// Connects returns how many connections were opened.
func (b *Broker) Connects() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connects
}

// Packets returns how many packets went to clients.
func (b *Broker) Packets() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.packets
}

// Retained returns what is retained on a topic, nil for nothing.
func (b *Broker) Retained(topic string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.retained[topic].payload
}

// Subscribe calls f for each message that matches, without faults.
func (b *Broker) Subscribe(filter string, f func(topic string, payload []byte)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.local = append(b.local, local{filter, f})
}

// Publish publishes in the broker's own name.
func (b *Broker) Publish(topic string, payload []byte, retain bool) {
	b.publish(message{topic: topic, payload: payload, retain: retain, qos: 1})
}

// Raw sends bytes to all clients, whatever they are.
func (b *Broker) Raw(data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.send(data)
	}
}

func (b *Broker) publish(m message) {
	b.mu.Lock()
	if m.retain {
		if len(m.payload) == 0 {
			delete(b.retained, m.topic)
		} else {
			b.retained[m.topic] = m
		}
	}
	m.retain = false
	for c := range b.conns {
		c.deliver(m)
	}
	var calls []local
	for _, l := range b.local {
		if match(l.filter, m.topic) {
			calls = append(calls, l)
		}
	}
	b.mu.Unlock()
	for _, l := range calls {
		l.f(m.topic, m.payload)
	}
}

// deliver sends a message to a client, as well as the faults let it. The
// broker is locked.
func (c *conn) deliver(m message) {
	qos, wanted := byte(0), false
	for f, q := range c.filters {
		if match(f, m.topic) {
			wanted, qos = true, max(qos, q)
		}
	}
	if !wanted {
		return
	}
	m.qos = min(m.qos, qos)
	if m.qos > 0 {
		c.nextID++
		m.id = c.nextID
	}
	b, f := c.b, &c.b.faults
	if f.Hit == nil || !f.Hit(m.topic) {
		c.send(m.packet().bytes())
		return
	}
	dice := func(percent int) bool { return b.rng.IntN(100) < percent }
	if dice(f.Drop) {
		return
	}
	if dice(f.Damage) {
		m.payload = bytes.Clone(m.payload)
		m.payload[b.rng.IntN(len(m.payload))] ^= 1 << b.rng.IntN(8)
	}
	data := m.packet().bytes()
	if dice(f.Double) {
		c.send(data)
	}
	if dice(f.Delay) {
		b.wg.Add(1)
		time.AfterFunc(time.Duration(b.rng.Int64N(int64(f.MaxDelay))), func() {
			defer b.wg.Done()
			b.mu.Lock()
			defer b.mu.Unlock()
			c.send(data)
		})
		return
	}
	if c.held == nil && dice(f.Swap) {
		c.held = &m
		return
	}
	c.send(data)
	if c.held != nil {
		c.send(c.held.packet().bytes())
		c.held = nil
	}
}

// send queues bytes for the client. The broker is locked.
func (c *conn) send(data []byte) {
	if c.b.silent && c.filters == nil {
		return
	}
	c.b.packets++
	if n := c.b.faults.CutAfter; n > 0 && c.b.packets >= n && !c.b.cut {
		c.b.cut = true
		go c.end()
		return
	}
	select {
	case c.out <- data:
	default: // a client that does not read loses messages, as with any broker
	}
}

func (c *conn) write() {
	defer c.b.wg.Done()
	for {
		select {
		case data := <-c.out:
			if r := c.b.faults.Rate; r > 0 {
				time.Sleep(time.Duration(len(data)) * time.Second / time.Duration(r))
			}
			if _, err := c.net.Write(data); err != nil {
				c.end()
				return
			}
		case <-c.done:
			return
		}
	}
}

func (c *conn) end() {
	c.once.Do(func() {
		close(c.done)
		c.net.Close()
		c.b.mu.Lock()
		delete(c.b.conns, c)
		will := c.will
		c.b.mu.Unlock()
		if will != nil {
			c.b.publish(*will)
		}
	})
}

func (c *conn) read() {
	defer c.b.wg.Done()
	defer c.end()
	r := bufio.NewReader(c.net)
	p, err := readPacket(r)
	if err != nil {
		return
	}
	hello, err := parseConnect(p)
	if err != nil {
		return
	}
	c.b.mu.Lock()
	var old []*conn
	for other := range c.b.conns {
		if other.id == hello.id {
			old = append(old, other) // MQTT-3.1.4-2: the newcomer wins
		}
	}
	c.id, c.will = hello.id, hello.will
	c.b.conns[c] = true
	c.send(packet{kind: typeConnack, body: []byte{0, 0}}.bytes())
	c.b.mu.Unlock()
	for _, o := range old {
		o.end()
	}
	for {
		p, err := readPacket(r)
		if err != nil || !c.handle(p) {
			return
		}
	}
}

func (c *conn) handle(p packet) bool {
	b := c.b
	id := func() []byte { return binary.BigEndian.AppendUint16(nil, (&fields{rest: p.body}).u16()) }
	b.mu.Lock()
	hole := b.silent && c.filters == nil
	b.mu.Unlock()
	if hole {
		return true
	}
	reply := func(q packet) {
		b.mu.Lock()
		defer b.mu.Unlock()
		c.send(q.bytes())
	}
	switch p.kind {
	case typePublish:
		m, err := parsePublish(p)
		if err != nil {
			return false
		}
		b.publish(m)
		if m.qos == 1 {
			reply(packet{kind: typePuback, body: binary.BigEndian.AppendUint16(nil, m.id)})
		}
	case typeSubscribe:
		c.subscribe(p)
	case typeUnsubscribe:
		f := fields{rest: p.body[2:]}
		b.mu.Lock()
		for len(f.rest) > 0 && !f.bad {
			delete(c.filters, string(f.data()))
		}
		b.mu.Unlock()
		reply(packet{kind: typeUnsuback, body: id()})
	case typePingreq:
		reply(packet{kind: typePingresp})
	case typePuback:
	case typeDisconnect:
		b.mu.Lock()
		c.will = nil
		b.mu.Unlock()
		return false
	default:
		return false
	}
	return true
}

func (c *conn) subscribe(p packet) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	f := fields{rest: p.body}
	ack := packet{kind: typeSuback, body: binary.BigEndian.AppendUint16(nil, f.u16())}
	var fresh []string
	for len(f.rest) > 0 && !f.bad {
		filter, qos := string(f.data()), f.u8()
		if b.refuse != nil && b.refuse(filter) {
			ack.body = append(ack.body, 0x80)
			continue
		}
		c.filters[filter] = min(qos, 1)
		ack.body = append(ack.body, min(qos, 1))
		fresh = append(fresh, filter)
	}
	c.send(ack.bytes())
	for topic, m := range b.retained {
		for _, filter := range fresh {
			if match(filter, topic) {
				c.send(message{topic: topic, payload: m.payload, retain: true}.packet().bytes())
				break
			}
		}
	}
}

// match implements MQTT 3.1.1, section 4.7.
func match(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(t) || level != "+" && level != t[i] {
			return false
		}
	}
	return len(f) == len(t)
}
