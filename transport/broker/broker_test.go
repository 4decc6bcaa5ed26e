package broker_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// fleet is a broker on loopback with its certificates and its store.
type fleet struct {
	t     testing.TB
	home  broker.Home
	dir   string
	store *broker.Store
	b     *broker.Broker
	url   string
}

func newFleet(t testing.TB, change func(*broker.Config)) *fleet {
	dir := t.TempDir()
	f := &fleet{t: t, home: broker.Home(filepath.Join(dir, "home")), dir: filepath.Join(dir, "store")}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f.url = "tls://" + l.Addr().String()
	require.NoError(t, f.home.Init([]string{"127.0.0.1"}, []string{f.url}, time.Now()))
	f.store, err = broker.OpenStore(f.dir)
	require.NoError(t, err)
	f.start(l, change)
	t.Cleanup(func() {
		if f.b != nil {
			f.b.Close()
		}
		f.store.Close()
	})
	return f
}

func (f *fleet) start(l net.Listener, change func(*broker.Config)) {
	st, err := f.home.ServerTLS()
	require.NoError(f.t, err)
	cfg := broker.Config{Listener: l, TLS: st, Store: f.store, State: f.home.Retained(), Passwords: f.home.Password}
	if change != nil {
		change(&cfg)
	}
	f.b, err = broker.Start(cfg)
	require.NoError(f.t, err)
}

func (f *fleet) config(id string) mqtt.Config {
	dir, err := f.home.Enroll(id, mqtt.Provision{Brokers: []string{f.url}}, false, true)
	require.NoError(f.t, err)
	cfg, err := mqtt.Load(dir)
	require.NoError(f.t, err)
	return cfg
}

func (f *fleet) link(id string) *mqtt.Link {
	l, err := mqtt.Dial(f.t.Context(), f.config(id))
	require.NoError(f.t, err)
	f.t.Cleanup(func() { l.Close() })
	require.NoError(f.t, l.WaitUp(f.soon()))
	return l
}

func (f *fleet) desk() *mqtt.Client {
	cfg, err := mqtt.Load(f.home.Desk())
	require.NoError(f.t, err)
	cfg.ID = "desk-test"
	c, err := mqtt.Connect(f.t.Context(), cfg)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { c.Close() })
	require.NoError(f.t, c.WaitUp(f.soon()))
	return c
}

// soon is a deadline against tests that hang, not a measure.
func (f *fleet) soon() context.Context {
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	f.t.Cleanup(cancel)
	return ctx
}

// blob puts random bytes into the store.
func (f *fleet) blob(size int) (manifest.Digest, []byte) {
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size)})
	r.Read(data)
	d := manifest.DigestOf(data)
	require.NoError(f.t, os.WriteFile(filepath.Join(f.dir, "blobs/sha256", d.Hex()), data, 0o644))
	return d, data
}

func download(ctx context.Context, s *mqtt.Source, d manifest.Digest, w io.Writer) (int64, error) {
	p := make([]byte, transport.LeafSize)
	var off int64
	for {
		n, err := s.ReadRange(ctx, d, off, p)
		w.Write(p[:n])
		off += int64(n)
		if err == io.EOF {
			return off, nil
		}
		if err != nil {
			return off, err
		}
	}
}

// An update's messages, from the desk's word to the device's last.
func TestDeskAndDevice(t *testing.T) {
	f := newFleet(t, nil)
	desk := f.desk()
	seen := make(chan [2]string, 100)
	require.NoError(t, desk.Handle(f.soon(), transport.AllUp, 1, func(topic string, p []byte, _ bool) {
		_, kind, err := transport.ParseTopic(topic)
		if err == nil {
			seen <- [2]string{string(kind), string(p)}
		}
	}))
	await := func(kind transport.Kind, part string) {
		t.Helper()
		for {
			select {
			case m := <-seen:
				if m[0] == string(kind) && bytes.Contains([]byte(m[1]), []byte(part)) {
					return
				}
			case <-f.soon().Done():
				t.Fatalf("no %s with %s", kind, part)
			}
		}
	}
	// Retained: the device is not there yet.
	w := transport.Want{Statement: json.RawMessage(`{"payload":"eA=="}`)}
	require.NoError(t, broker.PublishWant(f.soon(), desk, "pump-7", w))

	l := f.link("pump-7")
	await(transport.KindLive, `"online":true`)
	select {
	case got := <-l.Wants():
		require.JSONEq(t, string(w.Statement), string(got.Statement))
	case <-f.soon().Done():
		t.Fatal("no want")
	}
	require.NoError(t, l.Report(transport.State{Board: "qemu", Agent: "1", Slot: "a", Good: "a", Phase: "idle"}))
	await(transport.KindState, `"slot":"a"`)
	require.NoError(t, l.Event(transport.Event{Sequence: 1, Phase: "writing"}))
	await(transport.KindEvent, `"writing"`)
	require.NoError(t, l.Progress(transport.Progress{Phase: "writing", Done: 5, Total: 10}))
	await(transport.KindProgress, `"done":5`)
	require.NoError(t, l.Verdict(transport.Verdict{ID: "1", Result: transport.Committed}))
	await(transport.KindVerdict, `"committed"`)
	l.Close()
	await(transport.KindLive, `"online":false`)
}

// What the desk said, and what a device has to say, outlive the broker.
func TestBrokerRestart(t *testing.T) {
	f := newFleet(t, nil)
	desk := f.desk()
	l := f.link("pump-7")
	require.NoError(t, broker.PublishWant(f.soon(), desk, "pump-8", transport.Want{Statement: json.RawMessage(`{"n":8}`)}))
	require.NoError(t, broker.PublishMetadata(f.soon(), desk, map[string][]byte{"timestamp.json": []byte("{}")}))
	addr := f.b.Addr().String()
	require.NoError(t, f.b.Close())
	require.NoError(t, l.Verdict(transport.Verdict{ID: "1", Result: transport.Reverted}))

	var ln net.Listener
	require.Eventually(t, func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", addr)
		return err == nil
	}, 30*time.Second, 50*time.Millisecond)
	f.start(ln, nil)
	l8 := f.link("pump-8")
	select {
	case got := <-l8.Wants():
		require.JSONEq(t, `{"n":8}`, string(got.Statement))
	case <-f.soon().Done():
		t.Fatal("the broker forgot what pump-8 should run")
	}
	data, err := l8.Source("").Metadata(f.soon(), "timestamp.json")
	require.NoError(t, err)
	require.Equal(t, "{}", string(data))
	got := make(chan struct{})
	require.NoError(t, desk.WaitUp(f.soon()))
	require.NoError(t, desk.Handle(f.soon(), transport.Topic("pump-7", transport.KindVerdict), 1, func(_ string, p []byte, _ bool) {
		if v, err := transport.ParseVerdict(p); err == nil && v.ID == "1" {
			close(got)
		}
	}))
	select {
	case <-got:
	case <-f.soon().Done():
		t.Fatal("the verdict was lost with the broker")
	}
}

// A blob, a manifest and metadata come as they are in the store, and what is
// not there is an error and not a wait.
func TestSource(t *testing.T) {
	f := newFleet(t, nil)
	l := f.link("pump-7")
	for _, size := range []int{0, 1, 65535, 65536, 65537, 3<<20 + 5} {
		d, want := f.blob(size)
		var got bytes.Buffer
		_, err := download(f.soon(), l.Source(d), d, &got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got.Bytes()), "size %d", size)
	}
	payload := []byte(`{"format":1}`)
	envelope, err := json.Marshal(map[string]any{"payload": payload})
	require.NoError(t, err)
	d := manifest.DigestOf(payload)
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, "manifests/sha256", d.Hex()), envelope, 0o644))
	got, err := l.Source(d).Manifest(f.soon())
	require.NoError(t, err)
	require.Equal(t, envelope, got)

	other := manifest.DigestOf([]byte("other"))
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, "manifests/sha256", other.Hex()), envelope, 0o644))
	_, err = l.Source(other).Manifest(f.soon())
	require.ErrorIs(t, err, transport.ErrLeaf)

	_, err = l.Source(d).Metadata(f.soon(), "2.root.json")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, f.store.PutMetadata("2.root.json", []byte("root")))
	got, err = l.Source(d).Metadata(f.soon(), "2.root.json")
	require.NoError(t, err)
	require.Equal(t, "root", string(got))
	_, err = l.Source(d).Metadata(f.soon(), "../../etc/passwd")
	require.Error(t, err)
	_, err = l.Source(d).ReadRange(f.soon(), manifest.DigestOf([]byte("none")), 0, make([]byte, 10))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// A link in the store leads nowhere.
func TestStoreStaysInside(t *testing.T) {
	f := newFleet(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	d := manifest.DigestOf([]byte("x"))
	require.NoError(t, os.Symlink(secret, filepath.Join(f.dir, "blobs/sha256", d.Hex())))
	l := f.link("pump-7")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	n, err := l.Source(d).ReadRange(ctx, d, 0, make([]byte, 6))
	require.Error(t, err)
	require.Zero(t, n)
}

// A device is the one that its certificate names, and reaches its own topics.
func TestAccess(t *testing.T) {
	f := newFleet(t, nil)
	desk := f.desk()
	victim := f.link("pump-8")
	require.NoError(t, broker.PublishWant(f.soon(), desk, "pump-8", transport.Want{Statement: json.RawMessage(`{}`)}))

	connect := func(cfg mqtt.Config) (*mqtt.Client, error) {
		c, err := mqtt.Connect(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		return c, c.WaitUp(ctx)
	}
	cfg := f.config("pump-7")
	c, err := connect(cfg)
	require.NoError(t, err)
	heard := make(chan string, 100)
	hear := func(topic string, _ []byte, _ bool) { heard <- topic }
	for _, filter := range []string{
		"#", "+", "ota/#", "ota/v1/d/+/dn/want", "ota/v1/d/pump-8/dn/want", "ota/v1/d/pump-8/#", "ota/v1/d/pump-7/up/is",
		"$SYS/#", "$share/x/ota/v1/d/+/up/get", transport.AllGets, "ota/v1/d/pump-7/+/want",
	} {
		require.ErrorIs(t, c.Handle(f.soon(), filter, 0, hear), mqtt.ErrRefused, filter)
		c.Forget(filter)
	}
	require.NoError(t, c.Handle(f.soon(), "ota/v1/d/pump-7/dn/#", 0, hear))

	watched := make(chan string, 100)
	require.NoError(t, desk.Handle(f.soon(), "ota/v1/#", 0, func(topic string, p []byte, _ bool) { watched <- topic + " " + string(p) }))
	for _, topic := range []string{
		"ota/v1/d/pump-8/up/is", "ota/v1/d/pump-7/dn/want", "ota/v1/d/pump-8/dn/want", "ota/v1/meta/timestamp", "ota/v1/d/pump-7/up/other", "x",
	} {
		c.Publish(f.soon(), topic, 1, false, []byte("forged"))
		require.NoError(t, c.WaitUp(f.soon()))
	}
	require.Eventually(t, func() bool {
		return c.Publish(t.Context(), "ota/v1/d/pump-7/up/evt", 1, false, []byte("own")) == nil
	}, 30*time.Second, 100*time.Millisecond)
	for done := false; !done; {
		select {
		case m := <-watched:
			require.NotContains(t, m, "forged")
			done = m == "ota/v1/d/pump-7/up/evt own"
		case <-f.soon().Done():
			t.Fatal("own event did not arrive")
		}
	}
	require.Empty(t, heard)

	spoof := cfg
	spoof.ID = "pump-8"
	_, err = connect(spoof)
	require.Error(t, err, "a certificate of pump-7 let in pump-8")
	require.True(t, victim.Up())
	spoof.ID = "desk-1"
	_, err = connect(spoof)
	require.Error(t, err, "a device became a desk")
	will := cfg
	will.WillTopic, will.Will = "ota/v1/d/pump-8/up/live", []byte("{}")
	_, err = connect(will)
	require.Error(t, err, "a will in the name of another device")
	bare := cfg
	bare.TLS = &tls.Config{RootCAs: cfg.TLS.RootCAs}
	_, err = connect(bare)
	require.Error(t, err, "no certificate and no password")
	plain := f.config("pump-9")
	plain.TLS = plain.TLS.Clone()
	plain.TLS.ServerName = "other.example"
	_, err = connect(plain)
	require.Error(t, err, "a broker with another name")
}

// Without certificates a device needs its password, and in the lab nothing; in
// neither does it reach another's topics.
func TestAccessWithoutCertificate(t *testing.T) {
	f := newFleet(t, nil)
	dir, err := f.home.Enroll("meter-1", mqtt.Provision{Brokers: []string{f.url}}, true, false)
	require.NoError(t, err)
	cfg, err := mqtt.Load(dir)
	require.NoError(t, err)
	c, err := mqtt.Connect(t.Context(), cfg)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.WaitUp(f.soon()))
	require.ErrorIs(t, c.Handle(f.soon(), "ota/v1/d/pump-8/dn/want", 0, func(string, []byte, bool) {}), mqtt.ErrRefused)

	for name, change := range map[string]func(*mqtt.Config){
		"wrong password": func(c *mqtt.Config) { c.Password = "x" },
		"other's id":     func(c *mqtt.Config) { c.ID = "meter-2" },
		"other's name":   func(c *mqtt.Config) { c.ID, c.User = "meter-2", "meter-2" },
	} {
		bad := cfg
		change(&bad)
		c, err := mqtt.Connect(t.Context(), bad)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		require.Error(t, c.WaitUp(ctx), name)
		cancel()
		c.Close()
	}

	lab := newFleet(t, func(c *broker.Config) { c.Open = true })
	cfg = lab.config("lab-1")
	cfg.TLS = &tls.Config{RootCAs: cfg.TLS.RootCAs}
	l, err := mqtt.Dial(t.Context(), cfg)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, l.WaitUp(lab.soon()))
	cfg.ID = "lab-2"
	c2, err := mqtt.Connect(t.Context(), cfg)
	require.NoError(t, err)
	defer c2.Close()
	require.NoError(t, c2.WaitUp(lab.soon()))
	require.ErrorIs(t, c2.Handle(lab.soon(), "ota/v1/d/lab-1/dn/want", 0, func(string, []byte, bool) {}), mqtt.ErrRefused)
}

// A device that asks for megabytes and then reads nothing costs the broker a
// few blocks, and the others do not notice.
func TestFrozenDevice(t *testing.T) {
	f := newFleet(t, nil)
	d, want := f.blob(8 << 20)
	cfg := f.config("frozen")
	thaw := make(chan struct{})
	var ice *freezer
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			c.(*net.TCPConn).SetReadBuffer(4096)
			ice = &freezer{Conn: c, thaw: thaw}
			c = ice
		}
		return c, err
	}
	frozen, err := mqtt.Connect(t.Context(), cfg)
	require.NoError(t, err)
	defer frozen.Close()
	defer close(thaw)
	require.NoError(t, frozen.WaitUp(f.soon()))
	require.NoError(t, frozen.Handle(f.soon(), transport.Topic("frozen", transport.KindBlock), 0, func(string, []byte, bool) {}))
	ice.stiff.Store(true)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 200 {
		g := transport.Get{Transfer: uint32(i), Blob: string(d), Block: 128 << 10, Ranges: []transport.Range{{0, 4 << 20}}}
		msg, err := g.Encode()
		require.NoError(t, err)
		frozen.Publish(t.Context(), transport.Topic("frozen", transport.KindGet), 0, false, msg)
	}
	l := f.link("pump-7")
	var got bytes.Buffer
	got.Grow(len(want))
	_, err = download(f.soon(), l.Source(d), d, &got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got.Bytes()))
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(len(want)+8<<20))
}

// freezer is a connection that stops reading when told to.
type freezer struct {
	net.Conn
	stiff atomic.Bool
	thaw  chan struct{}
}

func (c *freezer) Read(p []byte) (int, error) {
	if c.stiff.Load() {
		<-c.thaw
	}
	return c.Conn.Read(p)
}
