package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

// program finds a program of the Debian packages mosquitto and
// mosquitto-clients.
func program(t *testing.T, name string) string {
	for _, dir := range []string{"", "/usr/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatalf("%s is missing: apt install mosquitto mosquitto-clients", name)
	}
	t.Skipf("%s is missing: apt install mosquitto mosquitto-clients", name)
	return ""
}

// newMosquitto is a fleet on a real mosquitto with the shipped configuration,
// and our block server beside it.
func newMosquitto(t *testing.T) *fleet {
	binary := program(t, "mosquitto")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	dir := t.TempDir()
	f := &fleet{t: t, home: broker.Home(filepath.Join(dir, "home")), dir: filepath.Join(dir, "store"), url: "tls://" + addr}
	require.NoError(t, f.home.Init(nil, []string{f.url}, time.Now()))
	for _, name := range []string{"mosquitto.conf", "mosquitto.acl"} {
		data, err := os.ReadFile(filepath.Join("..", name))
		require.NoError(t, err)
		text := strings.ReplaceAll(string(data), "HOME/", string(f.home)+"/")
		text = strings.Replace(text, "listener 8883", "user root\nlistener "+port+" 127.0.0.1", 1)
		require.NoError(t, os.WriteFile(filepath.Join(string(f.home), name), []byte(text), 0o600))
	}
	cmd := exec.Command(binary, "-c", filepath.Join(string(f.home), "mosquitto.conf"))
	var log bytes.Buffer
	cmd.Stderr = &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	// mosquitto_sub, unlike our clients, gives up if nobody listens yet.
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return c.Close() == nil
	}, time.Minute, time.Millisecond)
	f.store, err = broker.OpenStore(f.dir)
	require.NoError(t, err)
	t.Cleanup(func() { f.store.Close() })

	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	cfg := f.tool("desk-blocks")
	go func() { served <- broker.Serve(ctx, cfg, f.store) }()
	t.Cleanup(func() {
		cancel()
		<-served
	})
	return f
}

// tool is the configuration of a tool of the desk with its own certificate.
func (f *fleet) tool(id string) mqtt.Config {
	dir, err := f.home.EnrollDesk(id, mqtt.Provision{Brokers: []string{f.url}}, true)
	require.NoError(f.t, err)
	cfg, err := mqtt.Load(dir)
	require.NoError(f.t, err)
	return cfg
}

// With mosquitto as the broker a device gets its orders and its blobs, and
// mosquitto_sub, which knows nothing of us, reads what FORMAT.md says.
func TestMosquitto(t *testing.T) {
	sub := program(t, "mosquitto_sub")
	f := newMosquitto(t)
	watch := f.tool("desk-watch")
	dir := filepath.Join(string(f.home), "devices", "desk-watch")
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(f.url, "tls://"))
	cmd := exec.CommandContext(f.soon(), sub, "-h", "127.0.0.1", "-p", port, "-i", watch.ID, "-q", "1", "-t", transport.AllUp, "-F", "%t %r %q %p",
		"--cafile", filepath.Join(dir, "ca.pem"), "--cert", filepath.Join(dir, "client.pem"), "--key", filepath.Join(dir, "client-key.pem"), "--insecure")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	await := func(topic, part string) {
		t.Helper()
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), topic) && strings.Contains(lines.Text(), part) {
				return
			}
		}
		t.Fatalf("mosquitto_sub ended before %s with %s", topic, part)
	}

	desk, err := mqtt.Connect(t.Context(), f.tool("desk-publish"))
	require.NoError(t, err)
	defer desk.Close()
	require.NoError(t, desk.WaitUp(f.soon()))
	require.NoError(t, broker.PublishWant(f.soon(), desk, "pump-7", transport.Want{Statement: json.RawMessage(`{"n":1}`)}))
	require.NoError(t, broker.PublishMetadata(f.soon(), desk, map[string][]byte{"timestamp.json": []byte("{}")}))

	l := f.link("pump-7")
	select {
	case w := <-l.Wants():
		require.JSONEq(t, `{"n":1}`, string(w.Statement))
	case <-f.soon().Done():
		t.Fatal("no want")
	}
	await("ota/v1/d/pump-7/up/live", `{"v":1,"online":true}`)
	require.NoError(t, l.Report(transport.State{Board: "qemu", Slot: "b", Good: "b", Phase: "idle"}))
	await("ota/v1/d/pump-7/up/is", `"slot":"b"`)
	require.NoError(t, l.Verdict(transport.Verdict{ID: "7", Result: transport.Reverted, Reason: transport.ReasonWatchdog}))
	await("ota/v1/d/pump-7/up/end", `"reason":"watchdog"`)

	d, want := f.blob(5<<20 + 3)
	var got bytes.Buffer
	_, err = download(f.soon(), l.Source(d), d, &got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got.Bytes()))
	data, err := l.Source(d).Metadata(f.soon(), "timestamp.json")
	require.NoError(t, err)
	require.Equal(t, "{}", string(data))

	l.Close()
	await("ota/v1/d/pump-7/up/live", `{"v":1,"online":false}`)
}

// The shipped access list keeps devices apart: another's topics are not heard,
// what is said in another's name is lost, and a certificate is one client id.
func TestMosquittoAccess(t *testing.T) {
	f := newMosquitto(t)
	watch, err := mqtt.Connect(t.Context(), f.tool("desk-watch"))
	require.NoError(t, err)
	defer watch.Close()
	seen := make(chan string, 100)
	require.NoError(t, watch.Handle(f.soon(), "ota/v1/#", 0, func(topic string, p []byte, _ bool) { seen <- topic + " " + string(p) }))
	require.NoError(t, watch.WaitUp(f.soon()))

	victim := f.link("pump-8")
	cfg := f.config("pump-7")
	cfg.ID = "pump-8" // mosquitto takes the name in the certificate
	rogue, err := mqtt.Connect(t.Context(), cfg)
	require.NoError(t, err)
	defer rogue.Close()
	require.NoError(t, rogue.WaitUp(f.soon()))
	heard := make(chan string, 100)
	for _, filter := range []string{"#", "ota/v1/d/+/dn/#", "ota/v1/d/pump-8/dn/want"} {
		err := rogue.Handle(f.soon(), filter, 0, func(topic string, _ []byte, _ bool) { heard <- topic })
		if err != nil {
			require.ErrorIs(t, err, mqtt.ErrRefused)
			rogue.Forget(filter)
		}
	}
	for _, topic := range []string{"ota/v1/d/pump-8/up/is", "ota/v1/d/pump-8/dn/want", "ota/v1/d/pump-7/dn/want", "ota/v1/meta/timestamp"} {
		require.NoError(t, rogue.Publish(f.soon(), topic, 1, true, []byte("forged")))
	}
	require.NoError(t, rogue.Publish(f.soon(), "ota/v1/d/pump-7/up/evt", 1, false, []byte("own")))
	for done := false; !done; {
		select {
		case m := <-seen:
			require.NotContains(t, m, "forged")
			done = m == "ota/v1/d/pump-7/up/evt own"
		case <-f.soon().Done():
			t.Fatal("own event did not arrive")
		}
	}
	desk, err := mqtt.Connect(t.Context(), f.tool("desk-publish"))
	require.NoError(t, err)
	defer desk.Close()
	require.NoError(t, desk.WaitUp(f.soon()))
	require.NoError(t, broker.PublishWant(f.soon(), desk, "pump-8", transport.Want{Statement: json.RawMessage(`{}`)}))
	select {
	case <-victim.Wants():
	case <-f.soon().Done():
		t.Fatal("the victim hears nothing")
	}
	require.EqualValues(t, 1, victim.Counters().Connects, "the victim was thrown out")
	require.Empty(t, heard)
}
