package trust_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

var ctx = context.Background()

// newSigners makes keys of both kinds in turn, and the set of them.
func newSigners(t testing.TB, n, threshold int) ([]mktrust.Signer, trust.KeySet) {
	var out []mktrust.Signer
	var public []crypto.PublicKey
	for i := range n {
		k, err := mktrust.NewKey([]string{mktrust.Ed25519, mktrust.ECDSA}[i%2])
		require.NoError(t, err)
		s, err := mktrust.FromCrypto(k)
		require.NoError(t, err)
		out = append(out, s)
		public = append(public, k.Public())
	}
	data, err := mktrust.KeySet(threshold, public...)
	require.NoError(t, err)
	set, err := trust.ParseKeySet(data)
	require.NoError(t, err)
	return out, set
}

// oracle lets the DSSE authors' own library use a key, both ways.
type oracle struct{ mktrust.Signer }

func (o oracle) KeyID() (string, error)   { return mktrust.KeyID(o.Signer.Public()) }
func (o oracle) Public() crypto.PublicKey { return o.Signer.Public() }
func (o oracle) Verify(_ context.Context, data, sig []byte) error {
	ok := false
	switch k := o.Signer.Public().(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, data, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(data)
		ok = ecdsa.VerifyASN1(k, sum[:], sig)
	}
	if !ok {
		return errors.New("bad signature")
	}
	return nil
}

// Envelopes of the reference library are accepted by us and ours by it.
func TestEnvelopeOracle(t *testing.T) {
	signers, keys := newSigners(t, 2, 2)
	payload := []byte(`{"a":1}`)

	theirs, err := dsse.NewMultiEnvelopeSigner(2, oracle{signers[0]}, oracle{signers[1]})
	require.NoError(t, err)
	env, err := theirs.SignPayload(ctx, trust.ManifestType, payload)
	require.NoError(t, err)
	data, err := json.Marshal(env)
	require.NoError(t, err)
	got, err := trust.Verify(data, trust.ManifestType, keys)
	require.NoError(t, err)
	require.Equal(t, payload, got)

	data, err = mktrust.Seal(ctx, trust.ManifestType, payload, signers...)
	require.NoError(t, err)
	var ours dsse.Envelope
	require.NoError(t, json.Unmarshal(data, &ours))
	verifier, err := dsse.NewMultiEnvelopeVerifier(2, oracle{signers[0]}, oracle{signers[1]})
	require.NoError(t, err)
	accepted, err := verifier.Verify(ctx, &ours)
	require.NoError(t, err)
	require.Len(t, accepted, 2)

	require.Equal(t, dsse.PAE("é type", payload), trust.PAE("é type", payload))
}

// What a signature does not cover, or covers for another use, is not accepted.
func TestEnvelopeRefused(t *testing.T) {
	signers, keys := newSigners(t, 3, 2)
	strangers, _ := newSigners(t, 2, 1)
	payload := []byte("payload")
	seal := func(typ string, by ...mktrust.Signer) []byte {
		data, err := mktrust.Seal(ctx, typ, payload, by...)
		require.NoError(t, err)
		return data
	}
	good := seal(trust.ManifestType, signers[0], signers[1])
	edit := func(f func(env map[string]any)) []byte {
		var env map[string]any
		require.NoError(t, json.Unmarshal(good, &env))
		f(env)
		data, err := json.Marshal(env)
		require.NoError(t, err)
		return data
	}
	sig := func(env map[string]any, i int) map[string]any { return env["signatures"].([]any)[i].(map[string]any) }

	for name, row := range map[string]struct {
		data []byte
		want error
	}{
		"two of three":               {good, nil},
		"key ids left out":           {edit(func(e map[string]any) { delete(sig(e, 0), "keyid"); delete(sig(e, 1), "keyid") }), nil},
		"a stranger signed as well":  {seal(trust.ManifestType, strangers[0], signers[1], signers[2]), nil},
		"URL-safe base64":            {edit(func(e map[string]any) { e["payload"] = base64.URLEncoding.EncodeToString(payload) }), nil},
		"one of two":                 {seal(trust.ManifestType, signers[0]), trust.ErrThreshold},
		"nobody":                     {seal(trust.ManifestType), trust.ErrSignature},
		"only strangers":             {seal(trust.ManifestType, strangers...), trust.ErrSignature},
		"one and a stranger":         {seal(trust.ManifestType, signers[0], strangers[0]), trust.ErrThreshold},
		"another use":                {seal(trust.StatementType, signers[0], signers[1]), trust.ErrFormat},
		"another use, relabelled":    {edit(func(e map[string]any) { e["payloadType"] = trust.StatementType }), trust.ErrFormat},
		"signed for another use":     {bytes.Replace(seal(trust.StatementType, signers[0], signers[1]), []byte("statement"), []byte("manifest"), 1), trust.ErrSignature},
		"another payload":            {edit(func(e map[string]any) { e["payload"] = base64.StdEncoding.EncodeToString([]byte("Payload")) }), trust.ErrSignature},
		"one signature twice":        {edit(func(e map[string]any) { s := e["signatures"].([]any); s[1] = s[0] }), trust.ErrThreshold},
		"one signature, two key ids": {edit(func(e map[string]any) { sig(e, 1)["sig"] = sig(e, 0)["sig"] }), trust.ErrThreshold},
		"signature cut short":        {edit(func(e map[string]any) { sig(e, 0)["sig"] = "AAAA" }), trust.ErrThreshold},
		"line breaks in base64":      {edit(func(e map[string]any) { e["payload"] = "cGF5\nbG9hZA==" }), trust.ErrFormat},
		"padding left out":           {edit(func(e map[string]any) { e["payload"] = "cGF5bG9hZA" }), trust.ErrFormat},
		"100 signatures":             {edit(func(e map[string]any) { e["signatures"] = make([]struct{}, 100) }), trust.ErrTooLarge},
		"endless data":               {append(bytes.Clone(good), bytes.Repeat([]byte(" "), trust.MaxEnvelope)...), trust.ErrTooLarge},
		"two payloads":               {bytes.Replace(good, []byte(`"payload":`), []byte(`"payload":"QQ==","payload":`), 1), trust.ErrFormat},
		"two payloads, other case":   {bytes.Replace(good, []byte(`"payload":`), []byte(`"Payload":"QQ==","payload":`), 1), trust.ErrFormat},
		"empty":                      {nil, trust.ErrFormat},
	} {
		got, err := trust.Verify(row.data, trust.ManifestType, keys)
		if row.want == nil {
			require.NoError(t, err, name)
			require.Equal(t, payload, got, name)
			continue
		}
		require.ErrorIs(t, err, row.want, name)
		require.Nil(t, got, name)
	}
	_, err := trust.Verify(good, trust.ManifestType, trust.KeySet{})
	require.ErrorIs(t, err, trust.ErrThreshold, "the zero key set trusts nobody")
}

// Any flipped bit and any truncation of an envelope is refused, or changes
// nothing that counts.
func TestEnvelopeCorruption(t *testing.T) {
	signers, keys := newSigners(t, 1, 1)
	payload := []byte("what was signed")
	good, err := mktrust.Seal(ctx, trust.ManifestType, payload, signers...)
	require.NoError(t, err)
	for i := range good {
		_, err := trust.Verify(good[:i], trust.ManifestType, keys)
		require.Error(t, err, "%d bytes", i)
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			got, err := trust.Verify(bad, trust.ManifestType, keys)
			if err == nil {
				require.Equal(t, payload, got, "byte %d bit %d", i, bit)
			}
		}
	}
}

// A file of keys that could count a key twice, or nobody, is refused.
func TestKeySetRefused(t *testing.T) {
	k, err := mktrust.NewKey(mktrust.Ed25519)
	require.NoError(t, err)
	good, err := mktrust.KeySet(1, k.Public())
	require.NoError(t, err)
	for old, row := range map[string]struct {
		new  string
		want error
	}{
		`"threshold": 1`:       {`"threshold": 0`, trust.ErrThreshold},
		`"threshold": 1 `:      {`"threshold": 2`, trust.ErrThreshold},
		`"scheme": "ed25519"`:  {`"scheme": "rsa"`, trust.ErrFormat}, // the id no longer fits
		`"public": "`:          {`"public": "00`, trust.ErrFormat},
		`"keytype": "ed25519"`: {`"keytype": "ed25519", "keytype": "ed25519"`, trust.ErrFormat},
	} {
		_, err := trust.ParseKeySet([]byte(strings.Replace(string(good), strings.TrimSpace(old), row.new, 1)))
		require.ErrorIs(t, err, row.want, old)
	}
}

// Whatever the bytes, Verify returns, and accepts nothing that was not signed.
func FuzzVerify(f *testing.F) {
	signers, keys := newSigners(f, 1, 1)
	good, err := mktrust.Seal(ctx, trust.ManifestType, []byte("signed"), signers...)
	require.NoError(f, err)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := trust.Verify(data, trust.ManifestType, keys)
		if err == nil {
			require.Equal(t, []byte("signed"), payload)
		}
	})
}
