package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/tandem-ota/tandem/updater/trust/strictjson"
)

// key is a public key that can check a signature.
type key struct {
	verify func(message, signature []byte) bool
	// material tells keys apart by what they are. Two entries with different
	// ids for the same key must not count twice towards a threshold.
	material string
}

// KeySet is a set of public keys, of which a number must have signed. The zero
// value trusts nobody.
type KeySet struct {
	keys      map[string]key // by key id
	threshold int
}

// Threshold is the number of keys that must have signed.
func (s KeySet) Threshold() int { return s.threshold }

// IDs are the ids of the keys in the set that this package can use, in no order.
func (s KeySet) IDs() []string {
	ids := make([]string, 0, len(s.keys))
	for id := range s.keys {
		ids = append(ids, id)
	}
	return ids
}

// ParseKeySet reads a file of keys as the system image carries it
// (release-keys.json, see FORMAT.md).
func ParseKeySet(data []byte) (KeySet, error) {
	var file struct {
		Keys      map[string]json.RawMessage `json:"keys"`
		Threshold int                        `json:"threshold"`
	}
	if err := decode(data, MaxMetadata, &file); err != nil {
		return KeySet{}, fmt.Errorf("key set: %w", err)
	}
	ids := make([]string, 0, len(file.Keys))
	for id := range file.Keys {
		ids = append(ids, id)
	}
	return newKeySet(file.Keys, ids, file.Threshold)
}

// newKeySet picks the keys of a role from those that a file lists.
func newKeySet(raw map[string]json.RawMessage, ids []string, threshold int) (KeySet, error) {
	if len(raw) > maxKeys || len(ids) > maxKeys {
		return KeySet{}, fmt.Errorf("%w: over %d keys", ErrTooLarge, maxKeys)
	}
	s := KeySet{keys: make(map[string]key, len(ids)), threshold: threshold}
	for _, id := range ids {
		data, ok := raw[id]
		if !ok {
			return KeySet{}, fmt.Errorf("%w: key %.80q is not listed", ErrFormat, id)
		}
		k, err := parseKey(id, data)
		if errors.Is(err, errUnusable) {
			continue // some other tool's key: it cannot count, and does no harm
		}
		if err != nil {
			return KeySet{}, fmt.Errorf("key %.80q: %w", id, err)
		}
		s.keys[id] = k
	}
	// A threshold of 0 would accept what nobody signed (CVE-2026-23992).
	if threshold < 1 || threshold > len(s.keys) {
		return KeySet{}, fmt.Errorf("%w: %d of %d usable keys", ErrThreshold, threshold, len(s.keys))
	}
	return s, nil
}

var errUnusable = errors.New("kind of key that does not count")

// parseKey reads a TUF key object. The id must be the SHA-256 of its canonical
// form: otherwise one file could file the same key, or another key, under an
// id that people and logs know as somebody else.
func parseKey(id string, data []byte) (key, error) {
	canonical, err := canonicalize(data)
	if err != nil {
		return key{}, err
	}
	if sum := sha256.Sum256(canonical); hex.EncodeToString(sum[:]) != id {
		return key{}, fmt.Errorf("%w: the id is not the hash of the key", ErrFormat)
	}
	var object struct {
		Type   string `json:"keytype"`
		Scheme string `json:"scheme"`
		Value  struct {
			Public string `json:"public"`
		} `json:"keyval"`
	}
	if err := json.Unmarshal(data, &object); err != nil {
		return key{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	switch {
	case object.Type == "ed25519" && object.Scheme == "ed25519":
		raw, err := hex.DecodeString(object.Value.Public)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return key{}, fmt.Errorf("%w: not an Ed25519 public key", ErrFormat)
		}
		return ed25519Key(raw), nil
	// go-tuf and python-tuf write "ecdsa", the specification's text names the
	// longer key type as well.
	case (object.Type == "ecdsa" || object.Type == "ecdsa-sha2-nistp256") && object.Scheme == "ecdsa-sha2-nistp256":
		block, rest := pem.Decode([]byte(object.Value.Public))
		if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
			return key{}, fmt.Errorf("%w: not a PEM public key", ErrFormat)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return key{}, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		ec, ok := public.(*ecdsa.PublicKey)
		if !ok || ec.Curve != elliptic.P256() {
			return key{}, fmt.Errorf("%w: not a P-256 public key", ErrFormat)
		}
		return ecdsaKey(ec)
	}
	return key{}, errUnusable
}

func ed25519Key(public ed25519.PublicKey) key {
	return key{
		verify: func(message, signature []byte) bool {
			return ed25519.Verify(public, message, signature)
		},
		material: "ed25519 " + string(public),
	}
}

func ecdsaKey(public *ecdsa.PublicKey) (key, error) {
	point, err := public.Bytes()
	if err != nil {
		return key{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return key{
		verify: func(message, signature []byte) bool {
			sum := sha256.Sum256(message)
			return ecdsa.VerifyASN1(public, sum[:], signature)
		},
		material: "p256 " + string(point),
	}, nil
}

// signature is one signature over a message; id may be empty where the format
// leaves it out.
type signature struct {
	id    string
	bytes []byte
}

// check counts the keys of the set that signed message.
func (s KeySet) check(message []byte, signatures []signature) error {
	if s.threshold < 1 {
		return fmt.Errorf("%w: nobody is trusted", ErrThreshold)
	}
	if len(signatures) > maxSignatures {
		return fmt.Errorf("%w: over %d signatures", ErrTooLarge, maxSignatures)
	}
	signed := make(map[string]bool)
	for _, sig := range signatures {
		if sig.id != "" {
			if k, ok := s.keys[sig.id]; ok && k.verify(message, sig.bytes) {
				signed[k.material] = true
			}
			continue
		}
		for _, k := range s.keys {
			if !signed[k.material] && k.verify(message, sig.bytes) {
				signed[k.material] = true
			}
		}
	}
	if len(signed) == 0 {
		return ErrSignature
	}
	if len(signed) < s.threshold {
		return fmt.Errorf("%w: %d of %d", ErrThreshold, len(signed), s.threshold)
	}
	return nil
}

// decode is strictjson.Decode with the errors of this package.
func decode(data []byte, size int, v any) error {
	err := strictjson.Decode(data, strictjson.Rules{Size: size, Depth: maxDepth}, v)
	if errors.Is(err, strictjson.ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}
