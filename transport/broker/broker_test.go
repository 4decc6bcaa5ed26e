package broker_test

import (
	"bytes"
	"context"
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

// settle waits until a client is connected, or has learned why it is not.
func (f *fleet) settle(c *mqtt.Client) error {
	require.Eventually(f.t, func() bool { return c.Up() || c.Err() != nil }, time.Minute, time.Millisecond)
	return c.Err()
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
	n, err := l.Source(d).ReadRange(f.soon(), d, 0, make([]byte, 6))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Zero(t, n)
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
