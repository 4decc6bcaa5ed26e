package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest is a SHA-256 as text: "sha256:" and 64 lower-case hexadecimal
// digits. The zero value "" names nothing.
type Digest string

const digestPrefix = "sha256:"

// ParseDigest checks the form. Only one spelling is taken for a digest, so
// that digests can be compared as strings and used as file names.
func ParseDigest(s string) (Digest, error) {
	if !Digest(s).Valid() {
		return "", fmt.Errorf("%w: %q is not a SHA-256 digest", ErrFormat, clip(s))
	}
	return Digest(s), nil
}

// DigestOf hashes data.
func DigestOf(data []byte) Digest { return DigestFromSum(sha256.Sum256(data)) }

// DigestFromSum spells a SHA-256.
func DigestFromSum(sum [32]byte) Digest {
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// Valid reports whether d is well-formed.
func (d Digest) Valid() bool {
	return strings.HasPrefix(string(d), digestPrefix) && isHex(d.Hex(), 64, 64)
}

// Hex is the digest without its prefix: the name of the blob in an OCI layout.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Sum is the digest as bytes; zero bytes for a digest that is not Valid.
func (d Digest) Sum() (sum [32]byte) {
	if d.Valid() {
		// Valid has seen 64 hexadecimal digits, so that this cannot fail.
		_, _ = hex.Decode(sum[:], []byte(d.Hex()))
	}
	return sum
}

// isHex reports whether s is lower-case hexadecimal for whole bytes with at
// least low and at most high digits.
func isHex(s string, low, high int) bool {
	if len(s) < low || len(s) > high || len(s)%2 != 0 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// clip shortens what goes into an error message: it may come from an attacker
// and ends in logs.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
