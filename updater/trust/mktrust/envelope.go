package mktrust

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tandem-ota/tandem/updater/trust"
)

type envelope struct {
	PayloadType string        `json:"payloadType"`
	Payload     string        `json:"payload"`
	Signatures  []envelopeSig `json:"signatures"`
}

type envelopeSig struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// Seal puts a payload into a DSSE envelope with a signature by each signer. No
// signer gives an envelope that nobody trusts, to be signed elsewhere.
func Seal(ctx context.Context, payloadType string, payload []byte, signers ...Signer) ([]byte, error) {
	env := envelope{PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload), Signatures: []envelopeSig{}}
	return env.sign(ctx, payload, signers)
}

// Countersign adds signatures to an envelope. A key that has signed already is
// left out, so that signing twice changes nothing.
func Countersign(ctx context.Context, data []byte, signers ...Signer) ([]byte, error) {
	_, payload, _, err := trust.Unverified(data)
	if err != nil {
		return nil, err
	}
	var env envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return nil, err
	}
	return env.sign(ctx, payload, signers)
}

func (env envelope) sign(ctx context.Context, payload []byte, signers []Signer) ([]byte, error) {
	for _, s := range signers {
		id, err := KeyID(s.Public())
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(env.Signatures, func(e envelopeSig) bool { return e.KeyID == id }) {
			continue
		}
		sig, err := s.Sign(ctx, trust.PAE(env.PayloadType, payload))
		if err != nil {
			return nil, err
		}
		env.Signatures = append(env.Signatures, envelopeSig{KeyID: id, Sig: base64.StdEncoding.EncodeToString(sig)})
	}
	return plainJSON(env)
}

// Statement signs what the fleet says to one device.
func Statement(ctx context.Context, s trust.Statement, signers ...Signer) ([]byte, error) {
	s.Format = 1
	s.Issued, s.Expires = s.Issued.UTC(), s.Expires.UTC()
	payload, err := plainJSON(s)
	if err != nil {
		return nil, err
	}
	if _, err := trust.ParseStatement(payload); err != nil {
		return nil, err
	}
	return Seal(ctx, trust.StatementType, payload, signers...)
}

// KeySet writes public keys as trust.ParseKeySet reads them.
func KeySet(threshold int, public ...crypto.PublicKey) ([]byte, error) {
	file := struct {
		Keys      map[string]*metadata.Key `json:"keys"`
		Threshold int                      `json:"threshold"`
	}{make(map[string]*metadata.Key), threshold}
	for _, p := range public {
		if err := supported(p); err != nil {
			return nil, err
		}
		k, err := metadata.KeyFromPublicKey(p)
		if err != nil {
			return nil, err
		}
		id, err := k.ID()
		if err != nil {
			return nil, err
		}
		file.Keys[id] = k
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	if _, err := trust.ParseKeySet(data); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	return data, nil
}

// plainJSON is json.Marshal without the escapes that are only for HTML.
func plainJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
