package mqtt

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/trust/strictjson"
)

// Defaults of Config.
const (
	DefaultWindow = 1 << 20 // bytes
	DefaultBlock  = transport.DefaultBlock
)

// Config says where the brokers are and who this client is.
type Config struct {
	// Brokers are URLs: tls://host:port, or tcp://host:port for a broker on this
	// machine only. Each client starts with another of them, chosen by its id, and
	// goes on to the next when a connection fails.
	Brokers []string

	// ID is the client id, and for a device its name in all topics.
	ID string

	// TLS must have RootCAs: the roots of the product, not those of the Internet.
	// A device whose clock cannot be trusted sets Time. Versions below TLS 1.2 are
	// refused. It may carry a client certificate whose key is a crypto.Signer in a
	// security chip (ECC P-256: many chips do RSA-PSS wrong).
	TLS *tls.Config

	// User and Password are for brokers that want them; the user is the id.
	User, Password string

	// Will is what the broker publishes, retained, when the connection breaks.
	WillTopic string
	Will      []byte

	Window    int   // bytes of blocks in flight and waiting to be read; DefaultWindow
	BlockSize int   // bytes, DefaultBlock; made smaller by itself on slow lines
	Rate      int64 // bytes a second at most, on average; 0: no limit
	Budget    int64 // bytes of blocks at most over the life of the link; 0: no limit

	// MaxPacket is the largest packet accepted, in bytes; transport.MaxPacket.
	MaxPacket int

	// Dial replaces the TCP dialer, for proxies and tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	Log *slog.Logger // nil: no log
}

// ErrConfig means that the configuration cannot work. Repeating is useless.
var ErrConfig = errors.New("bad link configuration")

func (c Config) withDefaults() (Config, error) {
	if err := transport.CheckID(c.ID); err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if len(c.Brokers) == 0 {
		return c, fmt.Errorf("%w: no broker", ErrConfig)
	}
	for _, b := range c.Brokers {
		if _, err := parseBroker(b, c.TLS); err != nil {
			return c, err
		}
	}
	// A limit that was mistyped must not become none.
	if c.Rate < 0 || c.Budget < 0 || c.Window < 0 {
		return c, fmt.Errorf("%w: rate %d, budget %d or window %d is negative", ErrConfig, c.Rate, c.Budget, c.Window)
	}
	if c.Window == 0 {
		c.Window = DefaultWindow
	}
	if c.BlockSize == 0 {
		c.BlockSize = DefaultBlock
	}
	if c.BlockSize < transport.MinBlock || c.BlockSize > transport.MaxBlock || c.BlockSize&(c.BlockSize-1) != 0 {
		return c, fmt.Errorf("%w: block size %d is not a power of two between %d and %d",
			ErrConfig, c.BlockSize, transport.MinBlock, transport.MaxBlock)
	}
	c.Window = max(c.Window, 2*c.BlockSize)
	if c.MaxPacket == 0 {
		c.MaxPacket = transport.MaxPacket
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

type broker struct {
	addr string
	tls  *tls.Config // nil: plain
}

func parseBroker(s string, base *tls.Config) (broker, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return broker{}, fmt.Errorf("%w: broker %q is not tls://host:port", ErrConfig, s)
	}
	port := u.Port()
	switch u.Scheme {
	case "tls", "mqtts", "ssl":
		if base == nil || base.RootCAs == nil {
			return broker{}, fmt.Errorf("%w: broker %q needs TLS with roots of its own", ErrConfig, s)
		}
		if port == "" {
			port = "8883"
		}
		t := base.Clone()
		t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
		if t.ServerName == "" {
			t.ServerName = u.Hostname()
		}
		return broker{net.JoinHostPort(u.Hostname(), port), t}, nil
	case "tcp", "mqtt":
		ip := net.ParseIP(u.Hostname())
		if u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return broker{}, fmt.Errorf("%w: plain %q would leave this machine, use tls://", ErrConfig, s)
		}
		if port == "" {
			port = "1883"
		}
		return broker{net.JoinHostPort(u.Hostname(), port), nil}, nil
	}
	return broker{}, fmt.Errorf("%w: broker %q is not tls://host:port", ErrConfig, s)
}

// The files of a provisioning folder; `tandem broker enroll` writes them.
const (
	FileID     = "id"
	FileMQTT   = "mqtt.json"
	FileCA     = "ca.pem"
	FileCert   = "client.pem"
	FileKey    = "client-key.pem"
	maxPEMFile = 64 << 10
)

// Provision is the content of mqtt.json.
type Provision struct {
	Brokers    []string `json:"brokers"`
	ServerName string   `json:"server_name,omitempty"` // name in the broker's certificate, if not the host
	User       string   `json:"user,omitempty"`
	Password   string   `json:"password,omitempty"`
	Rate       int64    `json:"rate,omitempty"`   // bytes a second
	Budget     int64    `json:"budget,omitempty"` // bytes
}

func parseProvision(data []byte) (Provision, error) {
	var p Provision
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return Provision{}, err
	}
	// The decoder takes the last of two equal keys, and ignores what follows.
	if err := strictjson.Check(data, strictjson.Rules{Size: maxPEMFile, Depth: 3, PlainKeys: true}); err != nil {
		return Provision{}, err
	}
	return p, nil
}

// Load reads the provisioning folder of a device: id, mqtt.json, ca.pem and,
// if there is a certificate, client.pem and client-key.pem. An error that wraps
// fs.ErrNotExist means that the device was not provisioned.
//
// Certificates are checked at the device's clock, but not before the roots
// became valid: a device without a battery wakes up in 1970, and the roots
// themselves say that it is later than that.
func Load(dir string) (Config, error) {
	id, err := ID(dir)
	if err != nil {
		return Config{}, err
	}
	data, err := readFile(dir, FileMQTT, maxPEMFile)
	if err != nil {
		return Config{}, err
	}
	p, err := parseProvision(data)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %s: %w", ErrConfig, filepath.Join(dir, FileMQTT), err)
	}
	t, floor, err := loadTLS(dir)
	if err != nil {
		return Config{}, err
	}
	t.ServerName = p.ServerName
	t.Time = func() time.Time {
		now := time.Now()
		if now.Before(floor) {
			return floor
		}
		return now
	}
	cfg := Config{
		Brokers: p.Brokers, ID: id, TLS: t,
		User: p.User, Password: p.Password, Rate: p.Rate, Budget: p.Budget,
	}
	if _, err := cfg.withDefaults(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", dir, err)
	}
	return cfg, nil
}

// ID reads the name of a device from its provisioning folder. An error that wraps
// fs.ErrNotExist means that the device was not provisioned.
func ID(dir string) (string, error) {
	data, err := readFile(dir, FileID, transport.MaxID+1)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(data))
	if err := transport.CheckID(id); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrConfig, filepath.Join(dir, FileID), err)
	}
	return id, nil
}

// loadTLS reads ca.pem and the client certificate, if any, and returns the time
// at which the newest of them became valid.
func loadTLS(dir string) (*tls.Config, time.Time, error) {
	var floor time.Time
	ca, err := readFile(dir, FileCA, maxPEMFile)
	if err != nil {
		return nil, floor, err
	}
	roots := x509.NewCertPool()
	for rest := ca; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, floor, fmt.Errorf("%w: %s: %w", ErrConfig, filepath.Join(dir, FileCA), err)
		}
		roots.AddCert(cert)
		if cert.NotBefore.After(floor) {
			floor = cert.NotBefore
		}
	}
	if floor.IsZero() {
		return nil, floor, fmt.Errorf("%w: %s holds no certificate", ErrConfig, filepath.Join(dir, FileCA))
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	certPEM, err := readFile(dir, FileCert, maxPEMFile)
	if errors.Is(err, fs.ErrNotExist) {
		return t, floor, nil
	}
	if err != nil {
		return nil, floor, err
	}
	keyPEM, err := readFile(dir, FileKey, maxPEMFile)
	if err != nil {
		return nil, floor, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, floor, fmt.Errorf("%w: %s: %w", ErrConfig, filepath.Join(dir, FileCert), err)
	}
	t.Certificates = []tls.Certificate{pair}
	if pair.Leaf != nil && pair.Leaf.NotBefore.After(floor) {
		floor = pair.Leaf.NotBefore
	}
	return t, floor, nil
}

// LoadTLS returns the TLS side of a provisioning folder, for a client that is
// not a device.
func LoadTLS(dir string) (*tls.Config, error) {
	t, _, err := loadTLS(dir)
	return t, err
}

func readFile(dir, name string, limit int64) ([]byte, error) {
	path := filepath.Join(dir, name)
	// Nothing verifies the partition that the folder is on: a pipe in the place of a
	// file would hold the agent up for ever, and to open a device may do something.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read provisioning: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a file", ErrConfig, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read provisioning: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read provisioning: %w", err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrConfig, f.Name(), limit)
	}
	return data, nil
}
