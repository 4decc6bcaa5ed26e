package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// listed is a TUF key object and the id that its content gives it.
func listed(t *testing.T, kind, scheme, public string) (string, json.RawMessage) {
	data, err := json.Marshal(map[string]any{"keytype": kind, "scheme": scheme, "keyval": map[string]any{"public": public}})
	require.NoError(t, err)
	canonical, err := canonicalize(data)
	require.NoError(t, err)
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), data
}

func pemOf(t *testing.T, kind string, public any) string {
	der, err := x509.MarshalPKIXPublicKey(public)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// A key is of the kind that it says, whole, and nothing follows it. Its id is right in each
// row: only the key itself is not.
func TestKeyRefused(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	big, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	good := pemOf(t, "PUBLIC KEY", &p256.PublicKey)
	const scheme = "ecdsa-sha2-nistp256"
	for name, row := range map[string]struct {
		kind, scheme, public string
		want                 error
	}{
		"Ed25519":                    {"ed25519", "ed25519", strings.Repeat("ab", ed25519.PublicKeySize), nil},
		"P-256":                      {"ecdsa", scheme, good, nil},
		"P-256 by its longer name":   {scheme, scheme, good, nil},
		"Ed25519 a byte short":       {"ed25519", "ed25519", strings.Repeat("ab", ed25519.PublicKeySize-1), ErrFormat},
		"Ed25519 a byte long":        {"ed25519", "ed25519", strings.Repeat("ab", ed25519.PublicKeySize+1), ErrFormat},
		"Ed25519 that is not hex":    {"ed25519", "ed25519", strings.Repeat("xy", ed25519.PublicKeySize), ErrFormat},
		"P-256 with something after": {"ecdsa", scheme, good + "x", ErrFormat},
		"P-256 labelled private":     {"ecdsa", scheme, pemOf(t, "PRIVATE KEY", &p256.PublicKey), ErrFormat},
		"not PEM":                    {"ecdsa", scheme, "x", ErrFormat},
		"P-384":                      {"ecdsa", scheme, pemOf(t, "PUBLIC KEY", &p384.PublicKey), ErrFormat},
		"RSA in the place of P-256":  {"ecdsa", scheme, pemOf(t, "PUBLIC KEY", &big.PublicKey), ErrFormat},
		"RSA":                        {"rsa", "rsassa-pss-sha256", pemOf(t, "PUBLIC KEY", &big.PublicKey), errUnusable},
		"Ed25519 by another scheme":  {"ed25519", "ed25519ph", strings.Repeat("ab", ed25519.PublicKeySize), errUnusable},
	} {
		id, data := listed(t, row.kind, row.scheme, row.public)
		_, err := parseKey(id, data)
		require.ErrorIs(t, err, row.want, name)
		_, err = parseKey(strings.Repeat("0", 64), data)
		require.ErrorIs(t, err, ErrFormat, "%s, under another id", name)
	}

	// Another tool's key beside ours does no harm, and does not count.
	id, data := listed(t, "ecdsa", scheme, good)
	other, unusable := listed(t, "rsa", "rsassa-pss-sha256", "x")
	both := map[string]json.RawMessage{id: data, other: unusable}
	set, err := newKeySet(both, []string{id, other}, 1)
	require.NoError(t, err)
	require.Equal(t, []string{id}, set.IDs())
	_, err = newKeySet(both, []string{id, other}, 2)
	require.ErrorIs(t, err, ErrThreshold)
	_, err = newKeySet(both, []string{id, "absent"}, 1)
	require.ErrorIs(t, err, ErrFormat)
	require.ErrorContains(t, err, "is not listed")
}

// How many keys and signatures somebody may make a device look at: so many, and not one more.
func TestCountsOfKeysAndSignatures(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	id, data := listed(t, "ed25519", "ed25519", hex.EncodeToString(public))
	one := map[string]json.RawMessage{id: data}
	keys, err := newKeySet(one, slices.Repeat([]string{id}, maxKeys), 1)
	require.NoError(t, err)
	_, err = newKeySet(one, slices.Repeat([]string{id}, maxKeys+1), 1)
	require.ErrorIs(t, err, ErrTooLarge)
	for i := range maxKeys - 1 {
		one[fmt.Sprint(i)] = nil
	}
	_, err = newKeySet(one, []string{id}, 1)
	require.NoError(t, err)
	one["one more"] = nil
	_, err = newKeySet(one, []string{id}, 1)
	require.ErrorIs(t, err, ErrTooLarge)

	message := []byte("message")
	good := signature{id: id, bytes: ed25519.Sign(private, message)}
	require.NoError(t, keys.check(message, slices.Repeat([]signature{good}, maxSignatures)))
	require.ErrorIs(t, keys.check(message, slices.Repeat([]signature{good}, maxSignatures+1)), ErrTooLarge)

	envelope := func(n int) []byte {
		one := map[string]string{"keyid": "x", "sig": "AAAA"}
		data, err := json.Marshal(map[string]any{"payloadType": "x", "payload": "AAAA", "signatures": slices.Repeat([]map[string]string{one}, n)})
		require.NoError(t, err)
		return data
	}
	_, _, ids, err := Unverified(envelope(maxSignatures))
	require.NoError(t, err)
	require.Len(t, ids, maxSignatures)
	_, _, _, err = Unverified(envelope(maxSignatures + 1))
	require.ErrorIs(t, err, ErrTooLarge)

	metadata := func(n int) []byte {
		var signatures []map[string]string
		for i := range n {
			signatures = append(signatures, map[string]string{"keyid": fmt.Sprint(i), "sig": "00"})
		}
		signed := map[string]any{"_type": "root", "spec_version": "1.0.31", "version": 1, "expires": "2030-01-01T00:00:00Z"}
		data, err := json.Marshal(map[string]any{"signed": signed, "signatures": signatures})
		require.NoError(t, err)
		return data
	}
	_, err = open(metadata(maxSignatures), "root", MaxMetadata)
	require.NoError(t, err)
	_, err = open(metadata(maxSignatures+1), "root", MaxMetadata)
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = open([]byte(`{"signatures":[]}`), "root", MaxMetadata)
	require.ErrorContains(t, err, "nothing is signed")
}

// Bytes are what the metadata says by length and by hash, and a hash that we cannot compute
// counts as none.
func TestHashesAndLengths(t *testing.T) {
	data := []byte("release 7")
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	length := func(n int64) *int64 { return &n }
	for name, row := range map[string]struct {
		err, want error
	}{
		"no hash":                  {checkHashes(data, nil, false), nil},
		"no hash where one must":   {checkHashes(data, nil, true), ErrFormat},
		"only a hash of its own":   {checkHashes(data, map[string]string{"sha512": sum}, false), ErrFormat},
		"right hash":               {checkHashes(data, map[string]string{"sha256": sum, "md5": "x"}, true), nil},
		"wrong hash":               {checkHashes(data[1:], map[string]string{"sha256": sum}, false), ErrMismatch},
		"reference without length": {reference{Version: 1}.check(data), nil},
		"reference of its length":  {reference{Length: length(9)}.check(data), nil},
		"reference to less":        {reference{Length: length(8)}.check(data), ErrMismatch},
		"reference to more":        {reference{Length: length(10)}.check(data), ErrMismatch},
		"target":                   {TargetInfo{9, sum}.Check(data), nil},
		"target of less":           {TargetInfo{8, sum}.Check(data), ErrMismatch},
		"target of more":           {TargetInfo{10, sum}.Check(data), ErrMismatch},
		"target of another hash":   {TargetInfo{9, sum[1:] + "0"}.Check(data), ErrMismatch},
	} {
		require.ErrorIs(t, row.err, row.want, name)
	}

	var listed targets
	require.NoError(t, json.Unmarshal([]byte(`{"targets":{"a":{"length":1,"hashes":{"sha512":"x"}}}}`), &listed))
	_, err := (&Client{targets: &listed}).Target("a")
	require.ErrorIs(t, err, ErrFormat)
}

// What is signed by the right keys may still be nonsense: a length below zero is.
func TestSignedNonsense(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	id, data := listed(t, "ed25519", "ed25519", hex.EncodeToString(public))
	keys, err := newKeySet(map[string]json.RawMessage{id: data}, []string{id}, 1)
	require.NoError(t, err)
	signed := func(role, rest string) []byte {
		canonical, err := canonicalize([]byte(`{"_type":"` + role + `","spec_version":"1.0","version":1,"expires":"2030-01-01T00:00:00Z",` + rest + `}`))
		require.NoError(t, err)
		return fmt.Appendf(nil, `{"signed":%s,"signatures":[{"keyid":%q,"sig":"%x"}]}`, canonical, id, ed25519.Sign(private, canonical))
	}
	for rest, want := range map[string]error{
		`"meta":{"a":{"version":1}}`:             nil,
		`"meta":{"a":{"version":1,"length":0}}`:  nil,
		`"meta":{"a":{"version":1,"length":-1}}`: ErrFormat,
		`"meta":{"a":{"version":0}}`:             ErrFormat,
		`"meta":{"a":{"length":1}}`:              ErrFormat,
	} {
		_, err := openIndex(signed("snapshot", rest), "snapshot", MaxMetadata, keys)
		require.ErrorIs(t, err, want, rest)
	}
	for rest, want := range map[string]error{
		`"targets":{"a":{"length":0}}`:  nil,
		`"targets":{"a":{"length":-1}}`: ErrFormat,
		`"targets":{"a":{}}`:            ErrFormat,
	} {
		_, err := openTargets(signed("targets", rest), keys)
		require.ErrorIs(t, err, want, rest)
	}
	for number, want := range map[string]error{"7": nil, "-7": nil, "-0": ErrFormat, "1.0": ErrFormat, "1e2": ErrFormat, "9223372036854775808": ErrFormat} {
		_, err := canonicalize([]byte(number))
		require.ErrorIs(t, err, want, number)
	}
}

// A role is given to the keys that its own entry names. A change of the threshold alone is a
// change, too.
func TestRolesOfTheirOwn(t *testing.T) {
	public, _, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	id, data := listed(t, "ed25519", "ed25519", hex.EncodeToString(public))
	var x targets
	text := fmt.Sprintf(`{"delegations":{"keys":{%q:%s},"roles":[{"name":"other","keyids":[],"threshold":1},{"name":"fleet","keyids":[%q],"threshold":1}]}}`, id, data, id)
	require.NoError(t, json.Unmarshal([]byte(text), &x))
	keys, err := x.delegated(FleetRole)
	require.NoError(t, err)
	require.Equal(t, []string{id}, keys.IDs())
	_, err = x.delegated("absent")
	require.ErrorIs(t, err, ErrUnknownRole)

	of := func(threshold int, ids ...string) *root {
		s := KeySet{keys: map[string]key{}, threshold: threshold}
		for _, id := range ids {
			s.keys[id] = key{}
		}
		return &root{roles: map[string]KeySet{roleTargets: s}}
	}
	require.False(t, of(1, "a", "b").rotated(of(1, "b", "a"), roleTargets))
	for _, next := range []*root{of(2, "a", "b"), of(1, "a"), of(1, "a", "b", "c"), of(1, "a", "c")} {
		require.True(t, of(1, "a", "b").rotated(next, roleTargets))
	}
}

// A statement says all of it, in the format that we know, and is as long as it may be.
func TestStatementEdges(t *testing.T) {
	good := map[string]any{"format": 1, "device": "d", "counter": 1, "kind": "k", "issued": "2026-01-01T00:00:00Z", "expires": "2026-01-02T00:00:00Z", "body": map[string]any{}}
	judge := func(field string, value any) error {
		s := map[string]any{}
		for k, v := range good {
			s[k] = v
		}
		if s[field] = value; value == nil {
			delete(s, field)
		}
		data, err := json.Marshal(s)
		require.NoError(t, err)
		_, err = ParseStatement(data)
		return err
	}
	require.NoError(t, judge("x-new", 1))
	for _, field := range []string{"device", "counter", "kind", "issued", "expires", "body"} {
		err := judge(field, nil)
		require.ErrorIs(t, err, ErrFormat, field)
		require.ErrorContains(t, err, "must be given", field)
	}
	for _, format := range []any{nil, 0, 2} {
		require.ErrorIs(t, judge("format", format), ErrFormat)
	}
	require.ErrorIs(t, judge("expires", "2025-12-31T00:00:00Z"), ErrFormat)
	require.NoError(t, judge("expires", good["issued"]))

	data, err := json.Marshal(good)
	require.NoError(t, err)
	pad := func(n int) []byte { return append(slices.Clone(data), strings.Repeat(" ", n-len(data))...) }
	_, err = ParseStatement(pad(MaxStatement))
	require.NoError(t, err)
	_, err = ParseStatement(pad(MaxStatement + 1))
	require.ErrorIs(t, err, ErrTooLarge)

	// The envelope around it, too, before anything is read from it.
	envelope := fmt.Appendf(nil, `{"payloadType":%q,"payload":%q,"signatures":[]}`, StatementType, base64.StdEncoding.EncodeToString(data))
	_, err = VerifyStatement(append(envelope, strings.Repeat(" ", MaxStatement)...), KeySet{}, "d", time.Time{}, 0)
	require.ErrorIs(t, err, ErrTooLarge)

	for _, text := range []string{"QUJ\rD", "QUJD\r", "QUJD\n", "QU\nJD"} {
		_, err := decode64(text)
		require.ErrorIs(t, err, ErrFormat, "%q", text)
	}
}
