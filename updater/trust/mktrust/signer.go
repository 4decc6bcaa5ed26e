package mktrust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Signer signs whole messages: Ed25519 has no other way, and an external
// signer can then show or log what it signs.
type Signer interface {
	Public() crypto.PublicKey // ed25519.PublicKey or *ecdsa.PublicKey on P-256
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// KeyID is the TUF id of a public key.
func KeyID(public crypto.PublicKey) (string, error) {
	k, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		return "", err
	}
	return k.ID()
}

// supported keeps keys out that devices would not count.
func supported(public crypto.PublicKey) error {
	switch k := public.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	}
	return fmt.Errorf("a key of type %T is not supported: Ed25519 and ECDSA P-256 are", public)
}

// FromCrypto makes a Signer of any crypto.Signer: a key in memory, a TPM, a
// KMS client.
func FromCrypto(s crypto.Signer) (Signer, error) {
	if err := supported(s.Public()); err != nil {
		return nil, err
	}
	return cryptoSigner{s}, nil
}

type cryptoSigner struct{ crypto.Signer }

func (s cryptoSigner) Sign(_ context.Context, message []byte) ([]byte, error) {
	if _, ok := s.Public().(ed25519.PublicKey); ok {
		return s.Signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return s.Signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// NewKey makes a private key of the kind.
func NewKey(kind string) (crypto.Signer, error) {
	switch kind {
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case ECDSA:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("key kind %q is neither %q nor %q", kind, Ed25519, ECDSA)
}

// WriteKey writes a private key as PKCS #8 in PEM, readable by the owner only.
// It refuses to replace a file: a lost private key is lost for good.
func WriteKey(path string, private crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return errors.Join(err, f.Sync(), f.Close())
}

// LoadKey opens a signer by its specification: the path of a PEM file, or
// "exec:" and the command line of an external signer (see the package doc).
func LoadKey(ctx context.Context, spec, role string) (Signer, error) {
	if command, ok := strings.CutPrefix(spec, "exec:"); ok {
		return newExec(ctx, command, role)
	}
	data, err := os.ReadFile(spec)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("key %s: not a private key in PEM (PKCS #8)", spec)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", spec, err)
	}
	private, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key %s: a %T cannot sign", spec, k)
	}
	s, err := FromCrypto(private)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", spec, err)
	}
	return s, nil
}

// execSigner runs a command for each signature.
type execSigner struct {
	command, role string
	public        crypto.PublicKey
}

func newExec(ctx context.Context, command, role string) (Signer, error) {
	s := &execSigner{command: command, role: role}
	out, err := s.run(ctx, "public", nil)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(out)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%w %q: did not print a public key in PEM", ErrSigner, command)
	}
	if s.public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrSigner, command, err)
	}
	if err := supported(s.public); err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrSigner, command, err)
	}
	return s, nil
}

func (s *execSigner) Public() crypto.PublicKey { return s.public }

func (s *execSigner) Sign(ctx context.Context, message []byte) ([]byte, error) {
	sig, err := s.run(ctx, "sign", message)
	if err != nil {
		return nil, err
	}
	// A signer that hashes once too often, or encodes another way, would be
	// noticed by the first device otherwise.
	ok := false
	switch k := s.public.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		ok = ecdsa.VerifyASN1(k, sum[:], sig)
	}
	if !ok {
		return nil, fmt.Errorf("%w %q: the signature does not hold for its own public key", ErrSigner, s.command)
	}
	return sig, nil
}

func (s *execSigner) run(ctx context.Context, op string, in []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", s.command)
	cmd.Env = append(os.Environ(), "TANDEM_SIGNER_OP="+op, "TANDEM_SIGNER_ROLE="+s.role)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w %q: %s: %w: %s", ErrSigner, s.command, op, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// tufSigner lets go-tuf sign with a Signer.
type tufSigner struct {
	ctx context.Context // go-tuf's interface has no place for it
	s   Signer
	err error // go-tuf drops the cause
}

func (t *tufSigner) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return t.s.Public(), nil
}

func (t *tufSigner) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	data, err := io.ReadAll(message)
	if err != nil {
		return nil, err
	}
	var sig []byte
	sig, t.err = t.s.Sign(t.ctx, data)
	return sig, t.err
}
