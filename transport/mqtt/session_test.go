package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"
)

// mutes is a row of brokers that take every connection and stop answering somewhere.
type mutes struct {
	knows    []byte // kinds of packets that are answered
	hang     bool   // dialling does not come to an end
	refuse   bool   // dialling fails at once
	dialled  []time.Time
	addrs    []string
	got      []byte // kinds of packets
	attempts chan struct{}
}

func (m *mutes) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	m.dialled, m.addrs = append(m.dialled, time.Now()), append(m.addrs, addr)
	m.attempts <- struct{}{}
	if m.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if m.refuse {
		return nil, net.ErrClosed
	}
	client, server := net.Pipe()
	go m.serve(server)
	return client, nil
}

func (m *mutes) serve(c net.Conn) {
	defer c.Close()
	if m.knows == nil { // it reads whatever it is
		for p := make([]byte, 1024); ; {
			if _, err := c.Read(p); err != nil {
				return
			}
		}
	}
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return
		}
		var kind byte
		var answer packets.ControlPacket
		switch p := p.(type) {
		case *packets.ConnectPacket:
			kind, answer = packets.Connect, packets.NewControlPacket(packets.Connack)
		case *packets.SubscribePacket:
			a := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			a.MessageID, a.ReturnCodes = p.MessageID, slices.Repeat([]byte{0}, len(p.Topics))
			kind, answer = packets.Subscribe, a
		case *packets.PublishPacket:
			a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			a.MessageID = p.MessageID
			kind, answer = packets.Publish, a
		case *packets.PingreqPacket:
			kind, answer = packets.Pingreq, packets.NewControlPacket(packets.Pingresp)
		default:
			continue
		}
		m.got = append(m.got, kind)
		if slices.Contains(m.knows, kind) {
			if err := answer.Write(c); err != nil {
				return
			}
		}
	}
}

// toMutes runs f with a client of such brokers, in fake time.
func toMutes(t *testing.T, m *mutes, f func(t *testing.T, c *Client), brokers ...string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m.attempts = make(chan struct{}, 1<<16)
		cfg := Config{ID: "pump-7", Brokers: brokers, TLS: &tls.Config{RootCAs: x509.NewCertPool()}, Dial: m.dial}
		c, err := connect(context.Background(), cfg, func(c *Client) {
			c.subs["orders"] = subscription{1, func(string, []byte, bool) {}}
			c.out.put(letter{topic: "state", qos: 1})
		})
		require.NoError(t, err)
		f(t, c)
		c.Close()
		time.Sleep(time.Hour) // paho leaves goroutines behind that end with their timers
	})
}

// A broker that stops answering, at whatever point, is left after a time that is known.
func TestBrokerStopsAnswering(t *testing.T) {
	const connect, subscribe, publish, ping = packets.Connect, packets.Subscribe, packets.Publish, packets.Pingreq
	for world, x := range map[string]struct {
		broker string
		m      mutes
		after  time.Duration
	}{
		"it does not take the connection": {"tcp://localhost", mutes{hang: true}, dialTimeout},
		"it says nothing of TLS":          {"tls://broker.example", mutes{}, dialTimeout},
		"nor of MQTT":                     {"tcp://localhost", mutes{}, connectTimeout},
		"no CONNACK":                      {"tcp://localhost", mutes{knows: []byte{subscribe, publish, ping}}, connectTimeout},
		"no SUBACK":                       {"tcp://localhost", mutes{knows: []byte{connect, publish, ping}}, ackTimeout},
		"no PUBACK":                       {"tcp://localhost", mutes{knows: []byte{connect, subscribe, ping}}, ackTimeout},
		"no PINGRESP":                     {"tcp://localhost", mutes{knows: []byte{connect, subscribe, publish}}, keepAlive + pingTimeout},
	} {
		toMutes(t, &x.m, func(t *testing.T, c *Client) {
			<-x.m.attempts
			<-x.m.attempts
			took := x.m.dialled[1].Sub(x.m.dialled[0])
			require.LessOrEqual(t, took, x.after+backoffBase+5*time.Second, world) // paho looks for pings every 5 s
			if x.after != keepAlive+pingTimeout {
				require.GreaterOrEqual(t, took, x.after, world)
				require.Less(t, took, x.after+backoffBase, world)
			}
		}, x.broker)
	}
	// And one that answers is kept.
	m := &mutes{knows: []byte{connect, subscribe, publish, ping}}
	toMutes(t, m, func(t *testing.T, c *Client) {
		time.Sleep(time.Hour)
		require.True(t, c.Up())
		require.Len(t, m.dialled, 1)
		require.Contains(t, m.got, byte(ping))
	}, "tcp://localhost")
}

// Attempts become rarer, to one a minute at the most, and go round all brokers; they never end.
func TestBackoffEdges(t *testing.T) {
	m := &mutes{refuse: true}
	toMutes(t, m, func(t *testing.T, c *Client) {
		for range 200 {
			<-m.attempts
		}
		longest := time.Duration(0)
		for k := 1; k < 200; k++ {
			gap := m.dialled[k].Sub(m.dialled[k-1])
			require.Less(t, gap, min(backoffBase<<min(k-1, 10), backoffMax), "attempt %d", k+1)
			require.NotEqual(t, m.addrs[k-1], m.addrs[k], "attempt %d", k+1)
			longest = max(longest, gap)
		}
		require.Greater(t, longest, backoffMax/2)
		require.ErrorIs(t, c.Err(), net.ErrClosed)
		require.False(t, c.Up())
	}, "tcp://localhost:1", "tcp://localhost:2")
}

// Devices that share a list of brokers do not all begin with the same one.
func TestFleetSpreads(t *testing.T) {
	first := map[string]int{}
	for i := range 40 {
		synctest.Test(t, func(t *testing.T) {
			m := &mutes{refuse: true, attempts: make(chan struct{}, 1<<16)}
			c, err := Connect(context.Background(), Config{ID: "pump-" + string(rune('a'+i%26)) + string(rune('a'+i/26)),
				Brokers: []string{"tcp://localhost:1", "tcp://localhost:2"}, Dial: m.dial})
			require.NoError(t, err)
			<-m.attempts
			first[m.addrs[0]]++
			c.Close()
		})
	}
	require.Greater(t, first["localhost:1"], 8)
	require.Greater(t, first["localhost:2"], 8)
}

// Without a connection nothing is published, and who waits for an answer is told when the
// connection that it would come on is gone.
func TestPublishWithoutConnection(t *testing.T) {
	toMutes(t, &mutes{refuse: true}, func(t *testing.T, c *Client) {
		require.ErrorIs(t, c.Publish(t.Context(), "x", 1, false, nil), ErrDown)
		require.False(t, c.send("x", nil))
		require.NoError(t, c.Handle(t.Context(), "x", 0, func(string, []byte, bool) {}), "it is for the next connection")
		require.Zero(t, c.silent())
		c.Kick()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, c.WaitUp(ctx), net.ErrClosed)
	}, "tcp://localhost")
	// Nobody answers a PUBLISH here, so that the client leaves after its time-out.
	m := &mutes{knows: []byte{packets.Connect, packets.Subscribe, packets.Pingreq}}
	toMutes(t, m, func(t *testing.T, c *Client) {
		require.NoError(t, c.WaitUp(t.Context()))
		start := time.Now()
		time.AfterFunc(time.Second, c.Kick)
		require.Error(t, c.Publish(t.Context(), "x", 1, false, nil))
		require.Equal(t, time.Second, time.Since(start), "not when the answer is due")
		require.NoError(t, c.WaitUp(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.ErrorIs(t, c.Publish(ctx, "x", 1, false, nil), context.DeadlineExceeded)
	}, "tcp://localhost")
}
