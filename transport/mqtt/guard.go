package mqtt

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// ErrPacketTooLarge means that the broker announced a packet above the limit.
// The connection is closed: what follows cannot be skipped without trust in the
// length, and an honest broker does not send such packets.
var ErrPacketTooLarge = errors.New("mqtt packet too large")

// writeTimeout bounds every single write. paho itself limits only PUBLISH, and
// a PINGREQ that blocks would hide the dead connection that it is to find.
const writeTimeout = 20 * time.Second

// guard is a connection that reads along with the MQTT framing. It fails, before
// paho sees the length, when a packet is larger than max; paho allocates that
// length at once, so that 5 bytes from a broker would cost 256 MiB.
type guard struct {
	net.Conn
	max int

	// The framing of what was read: bytes of the current packet's body that are
	// still to come, or the state within its fixed header.
	body   int
	inSize bool
	size   int
	shift  int

	lastRead atomic.Int64 // Unix nanoseconds
	received atomic.Int64 // bytes
}

func newGuard(c net.Conn, max int) *guard {
	g := &guard{Conn: c, max: max}
	g.lastRead.Store(time.Now().UnixNano())
	return g
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if n > 0 {
		g.lastRead.Store(time.Now().UnixNano())
		g.received.Add(int64(n))
		if ferr := g.follow(p[:n]); ferr != nil {
			// Nothing of this read is handed on: it may hold the length.
			g.Conn.Close()
			return 0, ferr
		}
	}
	return n, err
}

// follow advances the framing over p.
func (g *guard) follow(p []byte) error {
	for len(p) > 0 {
		switch {
		case g.body > 0:
			n := min(g.body, len(p))
			g.body -= n
			p = p[n:]
		case !g.inSize:
			g.inSize, g.size, g.shift = true, 0, 0
			p = p[1:]
		default:
			b := p[0]
			p = p[1:]
			g.size |= int(b&0x7f) << g.shift
			g.shift += 7
			if g.size > g.max {
				return fmt.Errorf("%w: at least %d bytes, at most %d", ErrPacketTooLarge, g.size, g.max)
			}
			if b&0x80 == 0 {
				g.inSize, g.body = false, g.size
			} else if g.shift > 21 {
				return fmt.Errorf("%w: length of more than 4 bytes", ErrPacketTooLarge)
			}
		}
	}
	return nil
}

func (g *guard) Write(p []byte) (int, error) {
	if err := g.Conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return g.Conn.Write(p)
}

// silent returns for how long nothing has come.
func (g *guard) silent() time.Duration {
	return time.Since(time.Unix(0, g.lastRead.Load()))
}
