package mqtt

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// mqtt.json is read strictly: nothing in it is ignored.
func TestProvisionIsStrict(t *testing.T) {
	for world, text := range map[string]string{
		"misspelt":       `{"broker":["tls://h"]}`,
		"said twice":     `{"brokers":["tls://h"],"brokers":["tls://i"]}`,
		"two in one":     `{"brokers":["tls://h"]}{"rate":1}`,
		"a word after":   `{"brokers":["tls://h"]} x`,
		"null":           `{"brokers":null}`,
		"another number": `{"rate":1e99}`,
	} {
		_, err := parseProvision([]byte(text))
		require.Error(t, err, world)
	}
}

// Whatever is in mqtt.json: a configuration that is taken leads to brokers over TLS, with
// a name to check, or on this machine, and nowhere else.
func FuzzProvision(f *testing.F) {
	f.Add([]byte(`{"brokers":["tls://broker.example:8883","mqtts://192.0.2.1"],"server_name":"b","rate":1000,"budget":5}`))
	f.Add([]byte(`{"brokers":["tcp://127.0.0.1:1883","mqtt://localhost","tcp://[::1]:1"],"user":"u","password":"p"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseProvision(data)
		if err != nil {
			return
		}
		require.True(t, json.Valid(data))
		base := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: p.ServerName}
		cfg, err := Config{Brokers: p.Brokers, ID: "dev-1", TLS: base, Rate: p.Rate, Budget: p.Budget}.withDefaults()
		if err != nil {
			return
		}
		require.NotEmpty(t, cfg.Brokers)
		require.GreaterOrEqual(t, cfg.Window, 2*cfg.BlockSize)
		for _, s := range cfg.Brokers {
			b, err := parseBroker(s, base)
			require.NoError(t, err)
			host, _, err := net.SplitHostPort(b.addr)
			require.NoError(t, err, b.addr)
			if b.tls == nil {
				ip := net.ParseIP(host)
				require.True(t, host == "localhost" || ip.IsLoopback(), host)
				continue
			}
			require.NotEmpty(t, b.tls.ServerName)
			require.GreaterOrEqual(t, b.tls.MinVersion, uint16(tls.VersionTLS12))
			require.False(t, b.tls.InsecureSkipVerify)
		}
	})
}
