package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

// Home is the folder of a broker:
//
//	ca.pem, ca-key.pem          signs all certificates
//	server.pem, server-key.pem  of the broker
//	desk/                       provisioning folder of the desk's own tools
//	devices/ID/                 provisioning folder of a device, to be put on it
//	passwords.json              hashes of the passwords of devices without certificate
//	retained/                   what the desk said, over restarts
//
// Whoever has ca-key.pem can be any device and the desk. It signs no software.
type Home string

func (h Home) file(parts ...string) string {
	return filepath.Join(append([]string{string(h)}, parts...)...)
}

// Desk is the provisioning folder of the desk's own tools.
func (h Home) Desk() string { return h.file("desk") }

// Retained is the folder for Config.State.
func (h Home) Retained() string { return h.file("retained") }

// certificates live long, because a device on a shelf must be able to connect
// years later; who may connect is decided anew at each connection.
const lifetime = 20 * 365 * 24 * time.Hour

// ServerName is in every broker certificate, and provisioned clients ask for it:
// a broker may then move to another address, as long as it has a certificate of
// the same authority.
const ServerName = "tandem-broker"

// Init makes the authority, the certificate of the broker for ServerName and
// the given hosts (names and addresses, for clients that were not provisioned
// here), and the desk's folder, whose tools look for the broker at the given
// URLs. It refuses a folder that has an authority: devices trust that one.
func (h Home) Init(hosts []string, brokers []string, now time.Time) error {
	if _, err := os.Stat(h.file("ca.pem")); err == nil {
		return fmt.Errorf("init broker: %s exists, and devices may trust it", h.file("ca.pem"))
	}
	if err := os.MkdirAll(string(h), 0o700); err != nil {
		return fmt.Errorf("init broker: %w", err)
	}
	ca := &x509.Certificate{
		Subject: pkix.Name{CommonName: "tandem broker"}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	if err := h.issue(ca, nil, nil, h.file("ca.pem"), h.file("ca-key.pem")); err != nil {
		return fmt.Errorf("init broker: %w", err)
	}
	caCert, caKey, err := h.authority()
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:   pkix.Name{CommonName: ServerName, OrganizationalUnit: []string{"tandem-broker"}},
		NotBefore: caCert.NotBefore, NotAfter: caCert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	server.DNSNames = []string{ServerName}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			server.IPAddresses = append(server.IPAddresses, ip)
		} else {
			server.DNSNames = append(server.DNSNames, host)
		}
	}
	if err := h.issue(server, caCert, caKey, h.file("server.pem"), h.file("server-key.pem")); err != nil {
		return fmt.Errorf("init broker: %w", err)
	}
	return h.folder(h.Desk(), "desk", roleDesk, mqtt.Provision{Brokers: brokers}, true)
}

// EnrollDesk makes a provisioning folder, under devices/, for one more tool of
// the desk. Its id begins with "desk-". Brokers that tie the client id to the
// certificate need one for each tool that runs at the same time.
func (h Home) EnrollDesk(id string, p mqtt.Provision, again bool) (string, error) {
	if err := transport.CheckID(id); err != nil || !strings.HasPrefix(id, deskPrefix) {
		return "", fmt.Errorf("enroll: %.80q does not begin with %q: %w", id, deskPrefix, transport.ErrID)
	}
	dir, err := h.fresh(id, again)
	if err != nil {
		return "", err
	}
	return dir, h.folder(dir, id, roleDesk, p, true)
}

func (h Home) fresh(id string, again bool) (string, error) {
	dir := h.file("devices", id)
	if _, err := os.Stat(dir); err == nil && !again {
		return "", fmt.Errorf("enroll: %s: %w", dir, fs.ErrExist)
	}
	return dir, nil
}

// Enroll makes the provisioning folder of a device, with a certificate or, for
// devices that cannot keep one, a password. It returns the folder. A second
// certificate for the same id is made only with again.
func (h Home) Enroll(id string, p mqtt.Provision, password, again bool) (string, error) {
	if err := transport.CheckID(id); err != nil {
		return "", fmt.Errorf("enroll: %w", err)
	}
	if strings.HasPrefix(id+"-", deskPrefix) {
		return "", fmt.Errorf("enroll: %s: ids that begin with %q belong to the desk", id, deskPrefix)
	}
	dir, err := h.fresh(id, again)
	if err != nil {
		return "", err
	}
	if password {
		secret := make([]byte, 32)
		if _, err := rand.Read(secret); err != nil {
			return "", fmt.Errorf("enroll: %w", err)
		}
		p.User, p.Password = id, base64.RawURLEncoding.EncodeToString(secret)
		if err := h.setPassword(id, p.Password); err != nil {
			return "", fmt.Errorf("enroll: %w", err)
		}
	}
	return dir, h.folder(dir, id, roleDevice, p, !password)
}

// folder writes a provisioning folder; see mqtt.Load.
func (h Home) folder(dir, id, role string, p mqtt.Provision, cert bool) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("enroll: %w", err)
	}
	ca, key, err := h.authority()
	if err != nil {
		return err
	}
	if cert {
		client := &x509.Certificate{
			Subject:   pkix.Name{CommonName: id, OrganizationalUnit: []string{role}},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if err := h.issue(client, ca, key, filepath.Join(dir, mqtt.FileCert), filepath.Join(dir, mqtt.FileKey)); err != nil {
			return fmt.Errorf("enroll: %w", err)
		}
	}
	p.ServerName = ServerName
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("enroll: %w", err)
	}
	return errors.Join(
		replace(filepath.Join(dir, mqtt.FileCA), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o644),
		replace(filepath.Join(dir, mqtt.FileMQTT), append(data, '\n'), 0o600),
		replace(filepath.Join(dir, mqtt.FileID), []byte(id+"\n"), 0o644),
	)
}

// ServerTLS returns the TLS side of the broker.
func (h Home) ServerTLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(h.file("server.pem"), h.file("server-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("load broker certificate: %w", err)
	}
	ca, _, err := h.authority()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// Password returns the stored hash for Config.Passwords. It reads the file each
// time, so that enrolling needs no restart.
func (h Home) Password(id string) string {
	all, err := h.passwords()
	if err != nil {
		return ""
	}
	return all[id]
}

func (h Home) passwords() (map[string]string, error) {
	all := map[string]string{}
	data, err := os.ReadFile(h.file("passwords.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(data, &all)
}

func (h Home) setPassword(id, password string) error {
	all, err := h.passwords()
	if err != nil {
		return err
	}
	// 256 random bits cannot be guessed, so that a plain hash keeps them.
	sum := sha256.Sum256([]byte(password))
	all[id] = hex.EncodeToString(sum[:])
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return replace(h.file("passwords.json"), append(data, '\n'), 0o600)
}

func (h Home) authority() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.LoadX509KeyPair(h.file("ca.pem"), h.file("ca-key.pem"))
	if err != nil {
		return nil, nil, fmt.Errorf("load authority of the broker: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, errors.New("load authority of the broker: key is not ECDSA")
	}
	return pair.Leaf, key, nil
}

// issue makes a P-256 key and a certificate for it; without parent it signs
// itself.
func (h Home) issue(t, parent *x509.Certificate, signer *ecdsa.PrivateKey, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return err
	}
	if parent == nil {
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		replace(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
		replace(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
	)
}
