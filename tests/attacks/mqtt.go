package attacks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/transport/mqtttest"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// mqttAttacks are a broker, or somebody on the way to it, that says anything. The client is
// the one that ships; the time is simulated.
var mqttAttacks = []Attack{
	// Whole connections.
	unframed("header-of-256-mib", "five bytes that announce 256 MiB", []byte{0x30, 0xff, 0xff, 0xff, 0x7f}),
	unframed("packet-over-the-limit", "a packet of a byte more than the limit", append(lengthOf(0x30, transport.MaxPacket+1), make([]byte, 100)...)),
	unframed("length-without-end", "a length of more than four bytes", []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}),
	unframed("topic-longer-than-its-packet", "a topic of 64 KiB in a packet of nine bytes", []byte{0x30, 7, 0xff, 0xff, 'o', 't', 'a', '/', 'x'}),
	{
		Name: "mqtt/malformed-packets", Input: "each type of packet with each flag, of no, of few and of absurd bytes", Threats: []string{suitOnPath, uptaneDropRequest},
		Run: func(s *Scene) error {
			s.linked(mqtttest.Faults{}, func(r *rogue) {
				for first := range 256 {
					for i, body := range [][]byte{nil, {0, 0}, bytes.Repeat([]byte{0xff}, 60), {0}, {0xff, 0xff, 0xff}, {0, 1, 'x', 0, 0}, {0, 1, 0x80, 0x80}} {
						if first&15 != 0 && i != first%3 {
							continue // each body with each type, each flag with some
						}
						require.NoError(s, r.link.WaitUp(background))
						r.broker.Raw(append([]byte{byte(first), byte(len(body))}, body...))
						time.Sleep(time.Second)
						s.Variant(nil, "%#x % x", first, body)
					}
				}
				r.hears()
			})
			return nil
		},
	},
	{
		Name: "mqtt/answers-to-connect", Input: "a CONNACK that refuses, is cut off, is none, or never ends", Want: context.DeadlineExceeded, Threats: []string{uptaneDropRequest},
		Run: func(s *Scene) error {
			for _, answer := range [][]byte{
				{0x20, 2, 0, 1}, {0x20, 2, 0, 5}, {0x20, 2, 0, 0xff}, {0x20, 2, 0xff, 0}, {0x20, 0}, {0x20, 1, 0}, {0x20}, {}, {0x00, 0}, {0xf0, 0}, {0x30, 0}, {0xd0, 0},
				bytes.Repeat([]byte{0x20}, 100), []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), {0x16, 3, 1, 0, 0}, {0x30, 0xff, 0xff, 0xff, 0x7f},
			} {
				s.Variant(s.dialled(nil, func(c net.Conn) { c.Write(answer) }), "% x", answer)
			}
			return nil
		},
	},
	{
		Name: "mqtt/slow-loris", Input: "a CONNACK and a desired state that come a byte at a time and never end", Want: context.DeadlineExceeded, Threats: []string{uptaneSlowRetrieval},
		Run: func(s *Scene) error {
			s.Variant(s.dialled(nil, func(c net.Conn) {
				for range 600 {
					if _, err := c.Write([]byte{0x30 | 0x80}); err != nil {
						return
					}
					time.Sleep(5 * time.Second)
				}
			}), "instead of a CONNACK")
			s.linked(mqtttest.Faults{}, func(r *rogue) {
				require.NoError(s, r.link.WaitUp(background))
				r.broker.Raw(lengthOf(0x30, 10_000))
				for range 60 {
					r.broker.Raw([]byte{0})
					time.Sleep(5 * time.Second)
				}
				require.Greater(s, r.broker.Connects(), 1, "it is still listening to the same packet")
				r.hears()
			})
			s.Variant(context.DeadlineExceeded, "inside of a packet")
			return nil
		},
	},
	{
		Name: "mqtt/subscription-refused", Input: "a broker that lets the device connect and not listen", Want: mqtt.ErrRefused, Threats: []string{uptaneDropRequest, uptaneFreeze},
		Run: func(s *Scene) (err error) {
			s.linked(mqtttest.Faults{}, func(r *rogue) {
				r.broker.Refuse(func(filter string) bool { return strings.HasSuffix(filter, "want") })
				r.broker.Cut()
				ctx, cancel := context.WithTimeout(background, 5*time.Minute)
				defer cancel()
				time.Sleep(time.Minute)
				err = r.link.WaitUp(ctx)
				require.Less(s, r.broker.Connects(), 60, "it hammers the broker")
				r.broker.Refuse(nil)
				r.hears()
			})
			return err
		},
	},
	unmet("wrong-authority", "a broker with a certificate of somebody else's authority", func(c *certificates) *tls.Config { return c.stranger }),
	unmet("certificate-expired", "a broker whose certificate ran out", func(c *certificates) *tls.Config { return c.expired }),
	unmet("certificate-not-yet-valid", "a broker with a certificate of next year", func(c *certificates) *tls.Config { return c.early }),
	unmet("certificate-of-another-name", "a broker with the certificate of another host", func(c *certificates) *tls.Config { return c.renamed }),
	unmet("certificate-of-a-client", "a device's certificate in the place of the broker's", func(c *certificates) *tls.Config { return c.client }),
	unmet("old-tls", "a broker that speaks no TLS newer than 1.1", func(c *certificates) *tls.Config { return c.old }),
	unmet("plain-text", "a broker without TLS where TLS is due", nil),

	// What a device should run.
	orders("replayed", "the same retained order on each of ten connections", func(r *rogue) {
		r.order(1)
		for range 10 {
			r.broker.Cut()
			time.Sleep(2 * time.Minute)
		}
	}, 1),
	orders("doubled", "an order that comes twenty times", func(r *rogue) {
		for range 20 {
			r.order(1)
		}
	}, 1),
	orders("for-another-device", "orders on the topics of other devices, and on topics that look like ours", func(r *rogue) {
		for _, topic := range []string{
			"ota/v1/d/pump-8/dn/want", "ota/v1/d/pump-7/dn/want/", "ota/v1/d/pump-7/dn/wan", "ota/v1/d/PUMP-7/dn/want", "ota/v1/d//dn/want", "ota/v1/d/+/dn/want", "#", "", "ota/v1/d/pump-7/up/get", "ota/v2/d/pump-7/dn/want",
		} {
			r.broker.Raw(published(topic, must(transport.Want{Statement: json.RawMessage(`{"n":9}`)}.Encode())))
		}
	}, 0),
	orders("empty", "an order of no bytes", func(r *rogue) { r.want(nil); r.want([]byte{}) }, 0),
	orders("absurd", "orders that are too large, nested, doubled, of another version, or no order", func(r *rogue) {
		statement := `"statement":{"n":1}`
		for _, text := range []string{
			`{}`, `[]`, `null`, `5`, `{"v":1}`, `{"v":2,` + statement + `}`, `{` + statement + `}`, `{"v":1,` + statement + `}x`, `{"v":1,` + statement + `,"V":1}`, `{"v":1,"v":1,` + statement + `}`, `{"v":1,"statement":[]}`, `{"v":1,"statement":"x"}`,
			`{"v":1,` + statement + `,"sources":["http://plain.example"]}`, `{"v":1,` + statement + `,"sources":["file:///etc/passwd"]}`, `{"v":1,` + statement + `,"sources":["mqtt","mqtt","mqtt","mqtt","mqtt"]}`,
			`{"v":1,` + statement + `,"x":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`, `{"v":1,"statement":{"n":"` + strings.Repeat("x", 9000) + `"}}`, `{"v":1,` + statement + strings.Repeat(" ", 200_000) + `}`, "{\"v\":1,\"statement\":{\"n\":\"\xff\"}}",
			`{"v":1e400,` + statement + `}`, `{"v":1,"statement":{`,
		} {
			r.want([]byte(text))
		}
	}, 0),
	orders("flood", "two thousand orders at once", func(r *rogue) {
		for n := range 2000 {
			r.order(n)
			if n%500 == 0 {
				time.Sleep(time.Second)
			}
		}
	}, 1),

	// Blocks of a release that is being installed.
	arriving("out-of-order", "the blocks of each request in the wrong order", nil, func(r *rogue, answer [][]byte) [][]byte {
		for i, j := 0, len(answer)-1; i < j; i, j = i+1, j-1 {
			answer[i], answer[j] = answer[j], answer[i]
		}
		return answer
	}),
	arriving("of-another-transfer", "blocks with the number of another transfer, or the name of another blob", nil, func(_ *rogue, answer [][]byte) [][]byte {
		return beside(answer, func(h *transport.BlockHeader, data []byte) []byte { h.Transfer++; return wrong(data) }, func(h *transport.BlockHeader, data []byte) []byte { h.Object[15] ^= 1; return wrong(data) })
	}),
	arriving("overlapping", "blocks that begin before and within those that were asked for", nil, func(_ *rogue, answer [][]byte) [][]byte {
		return beside(answer, func(h *transport.BlockHeader, data []byte) []byte { h.Offset++; return wrong(data) }, func(h *transport.BlockHeader, data []byte) []byte {
			h.Offset += int64(len(data) / 2)
			return wrong(data)
		},
			func(h *transport.BlockHeader, data []byte) []byte {
				h.Offset, h.Flags = max(0, h.Offset-1), 0
				return wrong(data)[:len(data)/2]
			})
	}),
	arriving("longer-than-asked", "blocks that bring more than was asked for", nil, func(_ *rogue, answer [][]byte) [][]byte {
		return beside(answer, func(h *transport.BlockHeader, data []byte) []byte {
			h.Flags = 0
			return append(wrong(data), make([]byte, 60<<10)...)
		})
	}),
	arriving("shorter-than-asked", "blocks that bring less than was asked for and are not the end", nil, func(_ *rogue, answer [][]byte) [][]byte {
		return beside(answer, func(h *transport.BlockHeader, data []byte) []byte {
			h.Flags = 0
			return wrong(data)[:1+len(data)/2][:max(1, len(data)/2)]
		})
	}),
	arriving("doubled", "each block five times", nil, func(_ *rogue, answer [][]byte) (out [][]byte) {
		for _, msg := range answer {
			out = append(out, msg, msg, msg, msg, msg)
		}
		return out
	}),
	arriving("malformed", "blocks cut off, of another version, with wrong sums, lengths and flags", nil, func(_ *rogue, answer [][]byte) (out [][]byte) {
		for _, msg := range answer {
			for _, at := range []int{0, 1, 2, 31, 32, 35, 36, 39, len(msg) - 1} {
				bad := bytes.Clone(msg)
				bad[at] ^= 0x80
				out = append(out, bad)
			}
			out = append(out, nil, msg[:1], msg[:39], msg[:len(msg)-1], append(bytes.Clone(msg), 0), make([]byte, transport.MaxPacket-100), msg)
		}
		return out
	}),
	arriving("behind-the-end", "blocks behind the end of a blob, at offsets that wrap, and ends where none is", nil, func(_ *rogue, answer [][]byte) [][]byte {
		return beside(answer, func(h *transport.BlockHeader, data []byte) []byte { h.Offset += 1 << 30; return wrong(data) }, func(h *transport.BlockHeader, data []byte) []byte { h.Offset = transport.MaxBlob; return wrong(data) },
			func(h *transport.BlockHeader, _ []byte) []byte {
				h.Offset, h.Flags = transport.MaxBlob-1, transport.FlagEnd
				return nil
			}, func(h *transport.BlockHeader, data []byte) []byte { h.Offset = -1; return wrong(data) })
	}),
	arriving("of-wrong-content", "blocks that are in every way as asked for, with other bytes", either(transport.ErrLeaf, updater.ErrMismatch), func(r *rogue, answer [][]byte) [][]byte {
		return r.forBlobs(answer, func(h *transport.BlockHeader, data []byte) []byte { return wrong(data) })
	}),
	arriving("end-too-early", "blobs that end after a byte, and at once", either(transport.ErrLeaf, updater.ErrMismatch, io.ErrUnexpectedEOF), func(r *rogue, answer [][]byte) [][]byte {
		return r.forBlobs(answer[:min(1, len(answer))], func(h *transport.BlockHeader, data []byte) []byte { h.Flags = transport.FlagEnd; return data[:1] })
	}),
	arriving("absent", "a server that says it has none of it", fs.ErrNotExist, func(_ *rogue, answer [][]byte) [][]byte {
		return changedBlocks(answer, func(h *transport.BlockHeader, _ []byte) []byte { h.Flags = transport.FlagAbsent; return nil })
	}),
	arriving("busy-for-ever", "a server that is always busy", context.DeadlineExceeded, func(_ *rogue, answer [][]byte) [][]byte {
		return changedBlocks(answer, func(h *transport.BlockHeader, _ []byte) []byte {
			h.Flags, h.Retry = transport.FlagBusy, 0xffff
			return nil
		})
	}),
	arriving("silent", "a server that takes every request and answers none", context.DeadlineExceeded, func(*rogue, [][]byte) [][]byte { return nil }),
	{
		Name: "mqtt/disconnected-at-every-packet", Input: "a connection that breaks at each packet of an install", Threats: []string{uptaneDropRequest, uptanePartialBundle},
		Run: func(s *Scene) error {
			for cut := 1; ; cut += 3 {
				packets := 0
				err := s.installs(mqtttest.Faults{CutAfter: cut}, func(r *rogue) { packets = r.broker.Packets() }, nil)
				s.Variant(err, "at packet %d", cut)
				if packets < cut || err != nil {
					require.Greater(s, cut, 10)
					return nil
				}
			}
		},
	},
}

// rogue is a broker of our own, with what it serves, and the link of a device to it.
type rogue struct {
	s      *Scene
	broker *mqtttest.Broker
	link   *mqtt.Link
	change func(r *rogue, answer [][]byte) [][]byte

	mu      sync.Mutex
	objects map[transport.Object][]byte
	blobs   map[[16]byte]bool // the names in blocks, of those objects that are blobs
}

// linked gives f a device's link in simulated time.
func (s *Scene) linked(faults mqtttest.Faults, f func(r *rogue)) {
	if len(s.kept) == 0 {
		s.device(theDesk().first, theDesk().old).keep(everything...)
	}
	s.Bubble(func() {
		r := &rogue{s: s, broker: mqtttest.New(1, faults), objects: map[transport.Object][]byte{}, blobs: map[[16]byte]bool{}}
		r.broker.Subscribe(transport.AllGets, r.answer)
		r.link = must(mqtt.Dial(background, mqtt.Config{ID: me, Brokers: []string{"tcp://127.0.0.1"}, Dial: r.broker.Dial}))
		f(r)
		r.link.Close()
		r.broker.Close()
		time.Sleep(time.Hour) // paho leaves goroutines behind that end with their timers
	})
}

// want publishes what a device should run, order one that it can take.
func (r *rogue) want(payload []byte) {
	r.broker.Publish(transport.Topic(me, transport.KindWant), payload, len(payload) > 0)
}

func (r *rogue) order(n int) {
	r.want(must(transport.Want{Statement: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n))}.Encode()))
}

// hears requires that the link still takes an honest order.
func (r *rogue) hears() {
	r.s.Helper()
	require.NoError(r.s, r.link.WaitUp(background))
	r.order(-1)
	time.Sleep(2 * time.Minute) // also where this very connection is on its way down
	var last transport.Want
	for len(r.link.Wants()) > 0 {
		last = <-r.link.Wants()
	}
	require.JSONEq(r.s, `{"n":-1}`, string(last.Statement))
}

// lengthOf is the fixed header of a packet of n bytes.
func lengthOf(first byte, n int) []byte {
	out := []byte{first}
	for ; n > 127; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

// published is a PUBLISH at QoS 0, whoever subscribed to it.
func published(topic string, payload []byte) []byte {
	body := append(binary.BigEndian.AppendUint16(nil, uint16(len(topic))), topic...)
	return append(lengthOf(0x30, len(body)+len(payload)), append(body, payload...)...)
}

// unframed is a case of bytes after which a connection cannot be trusted: the link leaves it
// and makes another.
func unframed(name, input string, data []byte) Attack {
	return Attack{Name: "mqtt/" + name, Input: input, Threats: []string{tufEndless, uptaneEndlessData, suitOnPath}, Run: func(s *Scene) error {
		s.linked(mqtttest.Faults{}, func(r *rogue) {
			require.NoError(s, r.link.WaitUp(background))
			r.broker.Raw(data)
			time.Sleep(5 * time.Second) // before a ping could go unanswered
			require.Equal(s, 2, r.broker.Connects())
			r.hears()
		})
		return nil
	}}
}

// orders is a case of orders, of which the device hears as many as are some.
func orders(name, input string, attack func(r *rogue), heard int) Attack {
	return Attack{Name: "mqtt/order-" + name, Input: input, Threats: []string{suitOnPath, tufRollback}, Run: func(s *Scene) error {
		s.linked(mqtttest.Faults{}, func(r *rogue) {
			require.NoError(s, r.link.WaitUp(background))
			var orders int
			done := make(chan struct{})
			ctx, cancel := context.WithCancel(background)
			go func() {
				defer close(done)
				for heard != 1 || name != "flood" { // a flood is for a reader that comes late
					select {
					case <-r.link.Wants():
						orders++
					case <-ctx.Done():
						return
					}
				}
			}()
			attack(r)
			time.Sleep(time.Minute)
			cancel()
			<-done
			orders += len(r.link.Wants())
			require.Equal(s, heard, orders)
			r.hears()
		})
		return nil
	}}
}

// dialled is what a link has to say about a server that does something else than MQTT.
func (s *Scene) dialled(client *tls.Config, serve func(c net.Conn)) (err error) {
	if len(s.kept) == 0 {
		s.device(theDesk().first, theDesk().old).keep(everything...)
	}
	s.Bubble(func() {
		var wg sync.WaitGroup
		dial := func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			wg.Go(func() { io.Copy(io.Discard, there) })
			wg.Go(func() { serve(there) })
			return here, nil
		}
		if client != nil {
			dial = func(context.Context, string, string) (net.Conn, error) {
				here, there := net.Pipe()
				wg.Go(func() { serve(there) })
				return here, nil
			}
		}
		url := "tcp://127.0.0.1"
		if client != nil {
			url = "tls://" + honestName
		}
		link := must(mqtt.Dial(background, mqtt.Config{ID: me, Brokers: []string{url}, TLS: client, Dial: dial}))
		ctx, cancel := context.WithTimeout(background, 5*time.Minute)
		defer cancel()
		err = link.WaitUp(ctx)
		link.Close()
		wg.Wait()
		time.Sleep(time.Hour)
	})
	return err
}

const honestName = "broker.example"

// certificates are servers of which none is the product's broker.
type certificates struct {
	roots                                          *x509.CertPool
	honest                                         *tls.Config
	stranger, expired, early, renamed, client, old *tls.Config
}

func newCertificates(now time.Time) *certificates {
	c := &certificates{roots: x509.NewCertPool()}
	authority := func() (*x509.Certificate, *ecdsa.PrivateKey) {
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)))), key
	}
	ca, caKey := authority()
	other, otherKey := authority()
	c.roots.AddCert(ca)
	issue := func(parent *x509.Certificate, signer *ecdsa.PrivateKey, change func(t *x509.Certificate)) *tls.Config {
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		t := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{honestName}, NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(1, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		change(t)
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer))}, PrivateKey: key}}}
	}
	c.honest = issue(ca, caKey, func(*x509.Certificate) {})
	c.stranger = issue(other, otherKey, func(*x509.Certificate) {})
	c.expired = issue(ca, caKey, func(t *x509.Certificate) { t.NotAfter = now.AddDate(0, 0, -1) })
	c.early = issue(ca, caKey, func(t *x509.Certificate) { t.NotBefore = now.AddDate(0, 0, 1) })
	c.renamed = issue(ca, caKey, func(t *x509.Certificate) { t.DNSNames = []string{"other.example", "*.broker.example"} })
	c.client = issue(ca, caKey, func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	c.old = issue(ca, caKey, func(*x509.Certificate) {})
	c.old.MaxVersion = tls.VersionTLS11
	c.old.MinVersion = tls.VersionTLS10
	return c
}

// unmet is a case of servers to which the device says nothing at all: no byte behind the
// handshake, and so neither its name nor its password.
func unmet(name, input string, which func(c *certificates) *tls.Config) Attack {
	return Attack{Name: "mqtt/" + name, Input: input, Want: context.DeadlineExceeded, Threats: []string{suitRedirect, suitOnPath}, Run: func(s *Scene) error {
		said := 0
		serve := func(config *tls.Config) func(net.Conn) {
			return func(c net.Conn) {
				defer c.Close()
				if config != nil {
					c = tls.Server(c, config)
				}
				b := make([]byte, 1<<16)
				n, _ := c.Read(b)
				if config == nil {
					// In plain text the device asks for TLS, and leaves at any other answer.
					require.False(s, bytes.Contains(b[:n], []byte(me)))
					c.Write([]byte{0x20, 2, 0, 0})
					n, _ = c.Read(b)
					if n > 0 && b[0] == 0x15 { // the alert that says why
						n = 0
					}
				}
				said += n
			}
		}
		c := newCertificates(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) // simulated time begins there
		config := func() *tls.Config { return &tls.Config{RootCAs: c.roots} }
		// The honest one of the same authority is spoken to, or this would show nothing.
		_ = s.dialled(config(), serve(c.honest))
		require.NotZero(s, said)
		said = 0
		var bad *tls.Config
		if which != nil {
			bad = which(c)
		}
		err := s.dialled(config(), serve(bad))
		require.Zero(s, said, "bytes that the server read behind the handshake")
		return err
	}}
}

// offer has the rogue serve a release, and its metadata.
func (r *rogue) offer(rel *bundle) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for digest, data := range rel.blobs {
		o := must(transport.ParseDigest(string(digest)))
		r.objects[o], r.blobs[o.Prefix()] = data, true
	}
	r.objects[must(transport.Get{Manifest: string(manifest.DigestOf(rel.payload))}.Object())] = rel.envelope
	for name, data := range rel.desk.repository(rel).files {
		r.objects[must(transport.Get{Meta: name}.Object())] = data
	}
}

// answer sends the blocks of a request, as the case changes them.
func (r *rogue) answer(_ string, payload []byte) {
	g := must(transport.ParseGet(payload))
	o := must(g.Object())
	r.mu.Lock()
	data, ok := r.objects[o]
	r.mu.Unlock()
	var answer [][]byte
	block := func(off int64, flags uint8, data []byte) {
		answer = append(answer, sealed(transport.BlockHeader{Flags: flags, Transfer: g.Transfer, Object: o.Prefix(), Offset: off}, data))
	}
	size := int64(len(data))
	for _, want := range g.Ranges {
		switch {
		case !ok:
			block(want[0], transport.FlagAbsent, nil)
		case want[0] >= size:
			block(want[0], transport.FlagEnd, nil)
		}
		for off := want[0]; off < min(want[0]+want[1], size); off += int64(g.Block) {
			end, flags := min(off+int64(g.Block), want[0]+want[1], size), uint8(0)
			if end == size {
				flags = transport.FlagEnd
			}
			block(off, flags, data[off:end])
		}
	}
	if r.change != nil && ok {
		answer = r.change(r, answer)
	}
	for _, msg := range answer {
		r.broker.Publish(transport.Topic(me, transport.KindBlock), msg, false)
	}
}

func sealed(h transport.BlockHeader, data []byte) []byte {
	msg := append(make([]byte, transport.HeaderSize), data...)
	h.Seal(msg)
	return msg
}

// changedBlocks are an answer's blocks with another header and other data.
func changedBlocks(answer [][]byte, change func(h *transport.BlockHeader, data []byte) []byte) (out [][]byte) {
	for _, msg := range answer {
		h, data, err := transport.ParseBlock(msg)
		if err != nil {
			panic(err)
		}
		changed := change(&h, bytes.Clone(data))
		out = append(out, sealed(h, changed))
	}
	return out
}

// beside puts lies before each honest block that has data.
func beside(answer [][]byte, lies ...func(h *transport.BlockHeader, data []byte) []byte) (out [][]byte) {
	for _, msg := range answer {
		if len(msg) > transport.HeaderSize+1 {
			for _, lie := range lies {
				out = append(out, changedBlocks([][]byte{msg}, lie)...)
			}
		}
		out = append(out, msg)
	}
	return out
}

// forBlobs changes the blocks of blobs only: manifest and metadata are honest.
func (r *rogue) forBlobs(answer [][]byte, change func(h *transport.BlockHeader, data []byte) []byte) (out [][]byte) {
	return changedBlocks(answer, func(h *transport.BlockHeader, data []byte) []byte {
		if !r.blobs[h.Object] || len(data) == 0 {
			return data
		}
		return change(h, data)
	})
}

func wrong(data []byte) []byte {
	for i := range data {
		data[i] ^= 0xff
	}
	return data
}

// installs has a device install a release over the link, for at most an hour.
func (s *Scene) installs(faults mqtttest.Faults, after func(r *rogue), change func(r *rogue, answer [][]byte) [][]byte) (err error) {
	d, next := s.device(theDesk().first, theDesk().old), theDesk().next
	d.keep(running)
	s.linked(faults, func(r *rogue) {
		r.change = change
		r.offer(next)
		ctx, cancel := context.WithTimeout(background, time.Hour)
		defer cancel()
		err = d.start().Install(ctx, r.link.Source(manifest.DigestOf(next.payload)), updater.Options{Full: transport.FullGo})
		if after != nil {
			after(r)
		}
	})
	if err != nil {
		require.Equal(s, bootctl.A, d.record().Good)
		require.Empty(s, d.record().Trying, "a trial of what did not come whole")
		require.False(s, errors.Is(err, context.Canceled))
		d.takes(next)
		return err
	}
	s.Bubble(func() { d.ends(next) })
	return nil
}

// arriving is a case of an install whose blocks come with others, or are others.
func arriving(name, input string, want error, change func(r *rogue, answer [][]byte) [][]byte) Attack {
	return Attack{Name: "mqtt/blocks-" + name, Input: input, Want: want, Threats: []string{suitReplace, suitOnPath, uptaneMixAndMatch}, Run: func(s *Scene) error {
		return s.installs(mqtttest.Faults{}, nil, change)
	}}
}
