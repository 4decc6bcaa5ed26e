package mqtt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
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

// A device whose clock is wrong checks certificates at the time at which the newest of its
// own became valid, and one whose clock is later at its clock.
func TestTimeOfCertificates(t *testing.T) {
	old, later, latest := time.Now().Add(-48*time.Hour), time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)
	for world, x := range map[string]struct {
		roots []time.Time
		leaf  time.Time // zero: no certificate of its own
		want  time.Time // zero: now
	}{
		"the clock is right":          {[]time.Time{old}, time.Time{}, time.Time{}},
		"and with a certificate":      {[]time.Time{old}, old, time.Time{}},
		"the root is newer":           {[]time.Time{later}, time.Time{}, later},
		"the first root is newest":    {[]time.Time{latest, later}, time.Time{}, latest},
		"the second root is newest":   {[]time.Time{later, latest}, time.Time{}, latest},
		"the certificate is newest":   {[]time.Time{old, later}, latest, latest},
		"the certificate is not":      {[]time.Time{latest}, later, latest},
		"only the certificate is new": {[]time.Time{old}, later, later},
	} {
		dir := provisioned(t)
		var roots []byte
		for _, at := range x.roots {
			cert, _ := certificate(t, at)
			roots = append(roots, cert...)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, FileCA), roots, 0o600))
		if !x.leaf.IsZero() {
			cert, key := certificate(t, x.leaf)
			require.NoError(t, os.WriteFile(filepath.Join(dir, FileCert), cert, 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, FileKey), key, 0o600))
		}
		before := time.Now()
		cfg, err := Load(dir)
		require.NoError(t, err, world)
		require.Equal(t, !x.leaf.IsZero(), len(cfg.TLS.Certificates) == 1, world)
		require.EqualValues(t, tls.VersionTLS12, cfg.TLS.MinVersion, world)
		if got := cfg.TLS.Time(); x.want.IsZero() {
			require.WithinRange(t, got, before, time.Now(), world)
		} else {
			require.True(t, got.Equal(x.want.Truncate(time.Second)), "%s: %v, want %v", world, got, x.want)
		}
	}
}

// A folder that lacks something is not provisioned, or wrong, and never half a configuration.
func TestLoadRefuses(t *testing.T) {
	good, key := certificate(t, time.Now())
	_, other := certificate(t, time.Now())
	for world, x := range map[string]struct {
		files map[string]string // "": no such file
		want  error
	}{
		"as it is":                      {nil, nil},
		"no id":                         {map[string]string{FileID: ""}, fs.ErrNotExist},
		"an id that is no name":         {map[string]string{FileID: "pump/7"}, ErrConfig},
		"the longest id":                {map[string]string{FileID: strings.Repeat("a", transport.MaxID) + "\n"}, nil},
		"an id too long":                {map[string]string{FileID: strings.Repeat("a", transport.MaxID+1)}, ErrConfig},
		"no brokers":                    {map[string]string{FileMQTT: ""}, fs.ErrNotExist},
		"brokers of nobody":             {map[string]string{FileMQTT: "{}"}, ErrConfig},
		"brokers in no JSON":            {map[string]string{FileMQTT: "brokers"}, ErrConfig},
		"no roots":                      {map[string]string{FileCA: ""}, fs.ErrNotExist},
		"roots without a certificate":   {map[string]string{FileCA: "none"}, ErrConfig},
		"roots that are none":           {map[string]string{FileCA: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, ErrConfig},
		"a certificate":                 {map[string]string{FileCert: string(good), FileKey: string(key)}, nil},
		"a certificate without its key": {map[string]string{FileCert: string(good)}, fs.ErrNotExist},
		"a certificate of another key":  {map[string]string{FileCert: string(good), FileKey: string(other)}, ErrConfig},
		"a certificate too long":        {map[string]string{FileCert: strings.Repeat("\n", maxPEMFile+1)}, ErrConfig},
	} {
		dir := provisioned(t)
		for name, text := range x.files {
			if text == "" {
				require.NoError(t, os.Remove(filepath.Join(dir, name)))
			} else {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			}
		}
		cfg, err := Load(dir)
		require.ErrorIs(t, err, x.want, world)
		if x.want != nil {
			require.Empty(t, cfg.ID, world)
		}
	}
}

// provisioned returns the folder of a device that can work.
func provisioned(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, _ := certificate(t, time.Now())
	for name, data := range map[string][]byte{FileID: []byte("pump-7\n"), FileMQTT: []byte(`{"brokers":["tls://broker.example"]}`), FileCA: root} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}

// certificate returns one that is valid from a time on, signed by itself, and its key.
func certificate(t *testing.T, from time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	form := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, form, form, private.Public(), private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}
