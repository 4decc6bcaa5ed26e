package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

// A configuration that cannot work, or that mistypes a limit, is refused and not repaired.
func TestConfigEdges(t *testing.T) {
	good := Config{ID: "pump-7", Brokers: []string{"tls://broker.example"}, TLS: &tls.Config{RootCAs: x509.NewCertPool()}}
	judge := func(change func(c *Config)) error {
		c := good
		change(&c)
		_, err := c.withDefaults()
		return err
	}
	for name, change := range map[string]func(c *Config){
		"as it is":                  func(*Config) {},
		"the smallest block":        func(c *Config) { c.BlockSize = transport.MinBlock },
		"the largest block":         func(c *Config) { c.BlockSize = transport.MaxBlock },
		"a port of its own":         func(c *Config) { c.Brokers = []string{"mqtts://broker.example:443"} },
		"plain to this machine":     func(c *Config) { c.Brokers = []string{"tcp://127.0.0.1"} },
		"plain by its other name":   func(c *Config) { c.Brokers = []string{"mqtt://localhost:1884"} },
		"plain by the newer number": func(c *Config) { c.Brokers = []string{"tcp://[::1]:1883"} },
	} {
		require.NoError(t, judge(change), name)
	}
	for name, change := range map[string]func(c *Config){
		"no name":                    func(c *Config) { c.ID = "" },
		"no broker":                  func(c *Config) { c.Brokers = nil },
		"a broker of no host":        func(c *Config) { c.Brokers = []string{"tls://:8883"} },
		"a broker by another scheme": func(c *Config) { c.Brokers = []string{"http://broker.example"} },
		"plain to another machine":   func(c *Config) { c.Brokers = []string{"tcp://broker.example"} },
		"plain to another number":    func(c *Config) { c.Brokers = []string{"tcp://192.0.2.1"} },
		"the roots of everybody":     func(c *Config) { c.TLS = &tls.Config{} },
		"no TLS":                     func(c *Config) { c.TLS = nil },
		"a rate below zero":          func(c *Config) { c.Rate = -1 },
		"a budget below zero":        func(c *Config) { c.Budget = -1 },
		"a window below zero":        func(c *Config) { c.Window = -1 },
		"a block below the smallest": func(c *Config) { c.BlockSize = transport.MinBlock / 2 },
		"a block above the largest":  func(c *Config) { c.BlockSize = transport.MaxBlock * 2 },
		"a block of no power of two": func(c *Config) { c.BlockSize = transport.MinBlock * 3 },
	} {
		require.ErrorIs(t, judge(change), ErrConfig, name)
	}
	for broker, addr := range map[string]string{"tls://a": "a:8883", "tls://a:1": "a:1", "tcp://localhost": "localhost:1883", "tcp://localhost:1": "localhost:1"} {
		b, err := parseBroker(broker, good.TLS)
		require.NoError(t, err)
		require.Equal(t, addr, b.addr)
	}
	old := good.TLS.Clone()
	old.MinVersion = tls.VersionTLS10
	b, err := parseBroker("tls://a", old)
	require.NoError(t, err)
	require.EqualValues(t, tls.VersionTLS12, b.tls.MinVersion)
}

// A file of a provisioning folder is read up to its limit, and only a file.
func TestProvisioningFileEdges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	for n, want := range map[int]error{100: nil, 101: ErrConfig, 1 << 20: ErrConfig} {
		require.NoError(t, os.WriteFile(path, make([]byte, n), 0o600))
		data, err := readFile(dir, "x", 100)
		require.ErrorIs(t, err, want)
		if want == nil {
			require.Len(t, data, n)
		}
	}
	// It takes no more memory than that, whatever its size says.
	require.NoError(t, os.Truncate(path, 64<<20))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := readFile(dir, "x", 100)
	runtime.ReadMemStats(&after)
	require.ErrorIs(t, err, ErrConfig)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	_, err = readFile(dir, "folder", 100)
	require.ErrorIs(t, err, ErrConfig)
	require.ErrorContains(t, err, "is not a file")
}

// What waits for a connection is bounded: the oldest event goes, never what says how things
// are, and each such message has one place.
func TestOutboxBounded(t *testing.T) {
	o := newOutbox()
	o.put(letter{topic: "state", level: true, payload: []byte("old")})
	o.put(letter{topic: "verdict", level: true})
	for i := range maxQueued + 10 {
		o.put(letter{topic: "event", payload: []byte(fmt.Sprint(i))})
	}
	o.put(letter{topic: "state", level: true, payload: []byte("new")})
	require.Len(t, o.queue, maxQueued)
	require.EqualValues(t, 12, o.dropped)
	require.Equal(t, "new", string(o.queue[0].payload))
	require.Equal(t, "verdict", o.queue[1].topic)
	require.Equal(t, "12", string(o.queue[2].payload))
	require.Equal(t, fmt.Sprint(maxQueued+9), string(o.queue[maxQueued-1].payload))
}

// Every write on a connection has an end in time.
func TestGuardWriteDeadline(t *testing.T) {
	c := &deadlines{}
	g := newGuard(c, 100)
	before := time.Now()
	_, err := g.Write([]byte("x"))
	require.NoError(t, err)
	require.WithinRange(t, c.at, before.Add(writeTimeout), time.Now().Add(writeTimeout))
}

type deadlines struct {
	net.Conn
	at time.Time
}

func (d *deadlines) SetWriteDeadline(at time.Time) error { d.at = at; return nil }
func (d *deadlines) Write(p []byte) (int, error)         { return len(p), nil }

// A packet of the largest size passes, and one byte more does not, whatever its length looks like.
func TestGuardEdge(t *testing.T) {
	for size, want := range map[int]error{127: nil, 128: nil, 1000: nil, 1001: ErrPacketTooLarge} {
		g := newGuard(nil, 1000)
		head := []byte{0x30, byte(size&0x7f) | 0x80, byte(size >> 7)}
		require.ErrorIs(t, g.follow(head), want, "%d bytes", size)
	}
}

// Nothing is read at an offset that no object has, with or without a connection.
func TestReadAtEdges(t *testing.T) {
	tr, err := newTransfer(transport.Get{Meta: "timestamp.json"}, newWindow(1<<20, 64<<10), nil, &meter{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for off, refused := range map[int64]bool{0: false, transport.MaxBlob: false, -1: true, transport.MaxBlob + 1: true} {
		_, err := tr.readAt(ctx, off, make([]byte, 1))
		if refused {
			require.ErrorContains(t, err, "read at offset", "%d", off)
		} else {
			require.ErrorIs(t, err, context.Canceled, "%d", off)
		}
	}
}
