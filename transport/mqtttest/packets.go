package mqtttest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The packets of MQTT 3.1.1 that a device and its broker exchange (section 2.2.1
// of the standard), read and written here without any library, so that the
// client is tested against the standard and not against its own idea of it.
const (
	typeConnect     = 1
	typeConnack     = 2
	typePublish     = 3
	typePuback      = 4
	typeSubscribe   = 8
	typeSuback      = 9
	typeUnsubscribe = 10
	typeUnsuback    = 11
	typePingreq     = 12
	typePingresp    = 13
	typeDisconnect  = 14
)

const maxPacket = 1 << 20

type packet struct {
	kind  byte
	flags byte
	body  []byte
}

func readPacket(r *bufio.Reader) (packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return packet{}, err
	}
	size, shift := 0, 0
	for {
		b, err := r.ReadByte()
		if err != nil {
			return packet{}, err
		}
		size |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
		if shift += 7; shift > 21 {
			return packet{}, errors.New("length of more than four bytes")
		}
	}
	if size > maxPacket {
		return packet{}, fmt.Errorf("packet of %d bytes", size)
	}
	p := packet{kind: first >> 4, flags: first & 15, body: make([]byte, size)}
	_, err = io.ReadFull(r, p.body)
	return p, err
}

func (p packet) bytes() []byte {
	out := []byte{p.kind<<4 | p.flags}
	for n := len(p.body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			out = append(out, b|0x80)
			continue
		}
		out = append(out, b)
		break
	}
	return append(out, p.body...)
}

// fields reads the body of a packet from the front.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) u8() byte {
	if len(f.rest) < 1 {
		f.bad = true
		return 0
	}
	b := f.rest[0]
	f.rest = f.rest[1:]
	return b
}

func (f *fields) u16() uint16 { return uint16(f.u8())<<8 | uint16(f.u8()) }

func (f *fields) data() []byte {
	n := int(f.u16())
	if f.bad || len(f.rest) < n {
		f.bad = true
		return nil
	}
	d := f.rest[:n]
	f.rest = f.rest[n:]
	return d
}

// message is an application message.
type message struct {
	topic   string
	payload []byte
	retain  bool
	qos     byte
	id      uint16
}

func parsePublish(p packet) (message, error) {
	f := fields{rest: p.body}
	m := message{topic: string(f.data()), retain: p.flags&1 != 0, qos: p.flags >> 1 & 3}
	if m.qos > 0 {
		m.id = f.u16()
	}
	if f.bad || m.qos > 1 {
		return m, errors.New("bad PUBLISH")
	}
	m.payload = f.rest
	return m, nil
}

func (m message) packet() packet {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(m.topic)))
	body = append(body, m.topic...)
	if m.qos > 0 {
		body = binary.BigEndian.AppendUint16(body, m.id)
	}
	p := packet{kind: typePublish, flags: m.qos << 1, body: append(body, m.payload...)}
	if m.retain {
		p.flags |= 1
	}
	return p
}

type connect struct {
	id   string
	will *message
}

func parseConnect(p packet) (connect, error) {
	f := fields{rest: p.body}
	name, level, flags, _ := string(f.data()), f.u8(), f.u8(), f.u16()
	c := connect{id: string(f.data())}
	if flags&4 != 0 {
		c.will = &message{topic: string(f.data()), payload: f.data(), qos: flags >> 3 & 3, retain: flags&32 != 0}
	}
	if f.bad || p.kind != typeConnect || name != "MQTT" || level != 4 {
		return c, errors.New("bad CONNECT")
	}
	if flags&2 == 0 {
		return c, errors.New("CONNECT without clean session")
	}
	return c, nil
}
