package mqtttest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"strings"
	"sync"
	"time"
)

// conn is the connection of a client, as the broker has it.
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
