package trust

import (
	"encoding/base64"
	"fmt"
	"strconv"
)

// envelope is a DSSE envelope, protocol 1.0.2.
type envelope struct {
	PayloadType string `json:"payloadType"`
	Payload     string `json:"payload"`
	Signatures  []struct {
		KeyID string `json:"keyid"`
		Sig   string `json:"sig"`
	} `json:"signatures"`
}

// PAE is DSSE's pre-authentication encoding: the bytes that are signed. The
// lengths in it make the split between type and payload unambiguous.
func PAE(payloadType string, payload []byte) []byte {
	out := make([]byte, 0, len(payload)+len(payloadType)+64)
	out = append(out, "DSSEv1 "...)
	out = strconv.AppendInt(out, int64(len(payloadType)), 10)
	out = append(out, ' ')
	out = append(out, payloadType...)
	out = append(out, ' ')
	out = strconv.AppendInt(out, int64(len(payload)), 10)
	out = append(out, ' ')
	return append(out, payload...)
}

// Verify checks that the envelope is of the payload type and signed by enough
// of the keys, and returns the payload: bytes that the signers have seen as
// they are. Nothing else in the envelope is signed.
//
// Errors wrap ErrFormat, ErrTooLarge, ErrSignature or ErrThreshold.
func Verify(data []byte, payloadType string, keys KeySet) ([]byte, error) {
	env, payload, signatures, err := parseEnvelope(data)
	if err != nil {
		return nil, err
	}
	if env.PayloadType != payloadType {
		return nil, fmt.Errorf("%w: envelope holds %.80q, not %q", ErrFormat, env.PayloadType, payloadType)
	}
	if err := keys.check(PAE(payloadType, payload), signatures); err != nil {
		return nil, err
	}
	return payload, nil
}

// Unverified returns the payload of an envelope and the key ids named in it
// without checking anything. It is for people who look at an envelope whose
// keys they do not have; no decision may rest on it.
func Unverified(data []byte) (payloadType string, payload []byte, keyIDs []string, err error) {
	env, payload, signatures, err := parseEnvelope(data)
	if err != nil {
		return "", nil, nil, err
	}
	for _, s := range signatures {
		keyIDs = append(keyIDs, s.id)
	}
	return env.PayloadType, payload, keyIDs, nil
}

func parseEnvelope(data []byte) (env envelope, payload []byte, signatures []signature, err error) {
	if err := decode(data, MaxEnvelope, &env); err != nil {
		return env, nil, nil, fmt.Errorf("envelope: %w", err)
	}
	if payload, err = decode64(env.Payload); err != nil {
		return env, nil, nil, fmt.Errorf("envelope: payload: %w", err)
	}
	if len(env.Signatures) > maxSignatures {
		return env, nil, nil, fmt.Errorf("envelope: %w: over %d signatures", ErrTooLarge, maxSignatures)
	}
	for _, s := range env.Signatures {
		raw, err := decode64(s.Sig)
		if err != nil {
			return env, nil, nil, fmt.Errorf("envelope: signature: %w", err)
		}
		signatures = append(signatures, signature{id: s.KeyID, bytes: raw})
	}
	return env, payload, signatures, nil
}

// decode64 takes both alphabets, as the protocol asks, but each only in its
// one exact spelling.
func decode64(s string) ([]byte, error) {
	for _, c := range []byte(s) {
		if c == '\r' || c == '\n' { // encoding/base64 would skip them
			return nil, fmt.Errorf("%w: line break in base64", ErrFormat)
		}
	}
	if out, err := base64.StdEncoding.Strict().DecodeString(s); err == nil {
		return out, nil
	}
	out, err := base64.URLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return out, nil
}
