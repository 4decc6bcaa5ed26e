package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The four roles that every root names. The metadata of a role is never taken
// for that of another: the type is part of what is signed.
const (
	roleRoot      = "root"
	roleTimestamp = "timestamp"
	roleSnapshot  = "snapshot"
	roleTargets   = "targets"
)

// FleetRole is the delegation in targets whose keys sign statements.
const FleetRole = "fleet"

// file is any TUF metadata, opened but not verified.
type file struct {
	canonical  []byte // of the signed part: what the signatures are over
	signed     json.RawMessage
	signatures []signature
	head       head
}

type head struct {
	Type    string `json:"_type"`
	Spec    string `json:"spec_version"`
	Version int64  `json:"version"`
	Expires string `json:"expires"`

	expires time.Time
}

// open reads what is common to all metadata.
func open(data []byte, role string, limit int) (file, error) {
	var outer struct {
		Signed     json.RawMessage `json:"signed"`
		Signatures []struct {
			KeyID string `json:"keyid"`
			Sig   string `json:"sig"`
		} `json:"signatures"`
	}
	if err := decode(data, limit, &outer); err != nil {
		return file{}, err
	}
	f := file{signed: outer.Signed}
	if len(outer.Signed) == 0 {
		return file{}, fmt.Errorf("%w: nothing is signed", ErrFormat)
	}
	if err := json.Unmarshal(outer.Signed, &f.head); err != nil {
		return file{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	var err error
	if f.head.expires, err = time.Parse(time.RFC3339, f.head.Expires); err != nil {
		return file{}, fmt.Errorf("%w: expires: %w", ErrFormat, err)
	}
	switch {
	case f.head.Type != role:
		return file{}, fmt.Errorf("%w: type is %.40q, not %q", ErrFormat, f.head.Type, role)
	case !strings.HasPrefix(f.head.Spec, "1."):
		return file{}, fmt.Errorf("%w: specification version %.40q, not 1.x", ErrFormat, f.head.Spec)
	case f.head.Version < 1:
		return file{}, fmt.Errorf("%w: version %d", ErrFormat, f.head.Version)
	case len(outer.Signatures) > maxSignatures:
		return file{}, fmt.Errorf("%w: over %d signatures", ErrTooLarge, maxSignatures)
	}
	if f.canonical, err = canonicalize(outer.Signed); err != nil {
		return file{}, err
	}
	seen := make(map[string]bool)
	for _, s := range outer.Signatures {
		raw, err := hex.DecodeString(s.Sig)
		if err != nil || s.KeyID == "" || seen[s.KeyID] {
			return file{}, fmt.Errorf("%w: signature of key %.80q is not hexadecimal, or there twice", ErrFormat, s.KeyID)
		}
		seen[s.KeyID] = true
		f.signatures = append(f.signatures, signature{id: s.KeyID, bytes: raw})
	}
	return f, nil
}

// verified opens metadata of a role and checks its signatures, so that v is
// filled only from bytes that the keys vouch for.
func verified(data []byte, role string, limit int, keys KeySet, v any) (file, error) {
	f, err := open(data, role, limit)
	if err != nil {
		return file{}, err
	}
	if err := keys.check(f.canonical, f.signatures); err != nil {
		return file{}, err
	}
	if err := json.Unmarshal(f.signed, v); err != nil {
		return file{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return f, nil
}

// root is the signed part of root metadata, with its roles resolved.
type root struct {
	Consistent bool                       `json:"consistent_snapshot"`
	Keys       map[string]json.RawMessage `json:"keys"`
	Roles      map[string]struct {
		KeyIDs    []string `json:"keyids"`
		Threshold int      `json:"threshold"`
	} `json:"roles"`

	head  head
	roles map[string]KeySet
}

// openRoot reads root metadata and checks that it is signed by itself. The
// caller checks who else must have signed it, on the file that is returned.
func openRoot(data []byte) (*root, file, error) {
	f, err := open(data, roleRoot, MaxMetadata)
	if err != nil {
		return nil, file{}, err
	}
	r := &root{head: f.head, roles: make(map[string]KeySet)}
	if err := json.Unmarshal(f.signed, r); err != nil {
		return nil, file{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, name := range []string{roleRoot, roleTimestamp, roleSnapshot, roleTargets} {
		role, ok := r.Roles[name]
		if !ok {
			return nil, file{}, fmt.Errorf("%w: %s", ErrUnknownRole, name)
		}
		keys, err := newKeySet(r.Keys, role.KeyIDs, role.Threshold)
		if err != nil {
			return nil, file{}, fmt.Errorf("role %s: %w", name, err)
		}
		r.roles[name] = keys
	}
	if err := r.roles[roleRoot].check(f.canonical, f.signatures); err != nil {
		return nil, file{}, err
	}
	return r, f, nil
}

// rotated reports whether next gives a role other keys than r does.
func (r *root) rotated(next *root, role string) bool {
	a, b := r.roles[role], next.roles[role]
	if a.threshold != b.threshold || len(a.keys) != len(b.keys) {
		return true
	}
	for id := range a.keys {
		if _, ok := b.keys[id]; !ok {
			return true
		}
	}
	return false
}

// reference is how one file of metadata names another.
type reference struct {
	Version int64             `json:"version"`
	Length  *int64            `json:"length"`
	Hashes  map[string]string `json:"hashes"`
}

// check holds the bytes of metadata against the reference, before they are
// parsed. Length and hashes are optional in TUF; the version is not.
func (r reference) check(data []byte) error {
	if r.Length != nil && int64(len(data)) != *r.Length {
		return fmt.Errorf("%w: %d bytes, not %d", ErrMismatch, len(data), *r.Length)
	}
	return checkHashes(data, r.Hashes, false)
}

func checkHashes(data []byte, hashes map[string]string, must bool) error {
	want, ok := hashes["sha256"]
	if !ok {
		// A hash of a kind that we do not compute must not count as checked.
		if must || len(hashes) > 0 {
			return fmt.Errorf("%w: no SHA-256 is given", ErrFormat)
		}
		return nil
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
		return fmt.Errorf("%w: SHA-256", ErrMismatch)
	}
	return nil
}

// index is the signed part of timestamp and snapshot metadata.
type index struct {
	Meta map[string]reference `json:"meta"`

	head head
}

func openIndex(data []byte, role string, limit int, keys KeySet) (*index, error) {
	x := new(index)
	f, err := verified(data, role, limit, keys, x)
	if err != nil {
		return nil, err
	}
	for name, ref := range x.Meta {
		if ref.Version < 1 || ref.Length != nil && *ref.Length < 0 {
			return nil, fmt.Errorf("%w: version or length of %.80q", ErrFormat, name)
		}
	}
	x.head = f.head
	return x, nil
}

// needs returns the reference to a file that must be listed.
func (x *index) needs(name string) (reference, error) {
	ref, ok := x.Meta[name]
	if !ok {
		return reference{}, fmt.Errorf("%w: %s is not listed", ErrFormat, name)
	}
	return ref, nil
}

// targets is the signed part of targets metadata.
type targets struct {
	Targets map[string]struct {
		Length *int64            `json:"length"`
		Hashes map[string]string `json:"hashes"`
	} `json:"targets"`
	Delegations *struct {
		Keys  map[string]json.RawMessage `json:"keys"`
		Roles []struct {
			Name      string   `json:"name"`
			KeyIDs    []string `json:"keyids"`
			Threshold int      `json:"threshold"`
		} `json:"roles"`
	} `json:"delegations"`

	head head
}

func openTargets(data []byte, keys KeySet) (*targets, error) {
	t := new(targets)
	f, err := verified(data, roleTargets, MaxMetadata, keys, t)
	if err != nil {
		return nil, err
	}
	for name, target := range t.Targets {
		if target.Length == nil || *target.Length < 0 {
			return nil, fmt.Errorf("%w: target %.80q has no length", ErrFormat, name)
		}
	}
	t.head = f.head
	return t, nil
}

// delegated returns the keys of a delegation.
func (t *targets) delegated(name string) (KeySet, error) {
	if t.Delegations != nil {
		for _, role := range t.Delegations.Roles {
			if role.Name == name {
				return newKeySet(t.Delegations.Keys, role.KeyIDs, role.Threshold)
			}
		}
	}
	return KeySet{}, fmt.Errorf("%w: %s", ErrUnknownRole, name)
}
