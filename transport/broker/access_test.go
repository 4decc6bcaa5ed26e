package broker_test

import (
	"crypto/tls"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

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
		return c, f.settle(c)
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
		require.Error(t, f.settle(c), name)
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
