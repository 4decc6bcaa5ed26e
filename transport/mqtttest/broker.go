// Package mqtttest is a broker for tests that loses, doubles, delays, swaps and
// damages what it carries, breaks connections and goes silent, all by a seed.
//
// It speaks as much of MQTT 3.1.1 as a device needs (clean session, QoS 0 and 1,
// retained messages, wills, wildcards) over net.Pipe, so that a test may run in
// the fake time of testing/synctest. What it never does is to lie about an
// acknowledgement: a PUBACK means that the message was taken.
package mqtttest

import (
	"context"
	"math/rand/v2"
	"net"
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
