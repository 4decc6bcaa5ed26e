package mktrust

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// RotateOptions say what replaces the keys of a role.
type RotateOptions struct {
	Kind   string // of the new keys; Ed25519 when empty
	Quorum Quorum // 1 of 1 when zero
	Signer string // an external signer instead of a new key, "exec:COMMAND"
}

// Rotate gives a role new keys and publishes what follows from it.
//
// The old private keys of a TUF role or of "fleet" move to keys/old/: devices
// stop trusting them as soon as they see the new metadata. A new root is signed
// by the old and the new keys, so that a device that slept through any number of
// rotations follows them one by one.
//
// Release keys are different: they are inside the images that devices run. The
// old ones stay where they are and go on signing next to the new ones, which
// alone are in release-keys.json from now on. Delete the old ones when no
// device runs an image that knows only them.
func (f *Folder) Rotate(ctx context.Context, role string, o RotateOptions) error {
	if o.Kind == "" {
		o.Kind = Ed25519
	}
	if o.Quorum == (Quorum{}) {
		o.Quorum = Quorum{1, 1}
	}
	if o.Quorum.Threshold < 1 || o.Quorum.Threshold > o.Quorum.Keys || o.Signer != "" && o.Quorum.Keys > 1 {
		return fmt.Errorf("role %s: a threshold of %d with %d keys makes no sense", role, o.Quorum.Threshold, o.Quorum.Keys)
	}
	// Before keys are made: a second try must not leave keys that nobody names.
	if err := f.nothingStaged(); err != nil {
		return err
	}
	old, err := f.keyFiles(role)
	if err != nil {
		return err
	}
	fresh, err := f.freshKeys(ctx, role, len(old), o)
	if err != nil {
		return err
	}
	switch role {
	case Release:
		data, err := KeySet(o.Quorum.Threshold, fresh...)
		if err != nil {
			return err
		}
		return f.write("release-keys.json", data)
	case Fleet:
		err = f.editTargets(ctx, func(t *metadata.TargetsType) error { return delegate(t, o.Quorum.Threshold, fresh) })
	case Root, Targets, Snapshot, Timestamp:
		err = f.editRoot(ctx, func(r *metadata.RootType) error { return replaceKeys(r, role, o.Quorum.Threshold, fresh) })
	default:
		return fmt.Errorf("no role is named %q", role)
	}
	// Staged metadata still needs the old keys of root, and must not lose the
	// new ones: only what is published retires keys.
	if err != nil {
		return err
	}
	return f.retire(old)
}

// RenewRoot publishes the same root keys with a new expiry.
func (f *Folder) RenewRoot(ctx context.Context) error {
	return f.editRoot(ctx, func(*metadata.RootType) error { return nil })
}

// keyFiles lists the files in keys/ that belong to a role.
func (f *Folder) keyFiles(role string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(f.path, "keys"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if isKeyFile(e.Name(), role) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// freshKeys makes the new keys under names that are not taken.
func (f *Folder) freshKeys(ctx context.Context, role string, taken int, o RotateOptions) ([]crypto.PublicKey, error) {
	before, err := f.Signers(ctx, role)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for _, s := range before {
		id, err := KeyID(s.Public())
		if err != nil {
			return nil, err
		}
		known[id] = true
	}
	if err := os.MkdirAll(filepath.Join(f.path, "keys"), 0o700); err != nil {
		return nil, err
	}
	n := taken + 1
	for range o.Quorum.Keys {
		for f.taken(role, n) {
			n++
		}
		if err := f.addKey(role, n, o.Kind, o.Signer); err != nil {
			return nil, err
		}
	}
	all, err := f.Signers(ctx, role)
	if err != nil {
		return nil, err
	}
	var out []crypto.PublicKey
	for _, s := range all {
		id, err := KeyID(s.Public())
		if err != nil {
			return nil, err
		}
		if !known[id] {
			out = append(out, s.Public())
		}
	}
	return out, nil
}

// taken reports whether the n-th key of a role has, or had, a file.
func (f *Folder) taken(role string, n int) bool {
	for _, dir := range []string{"keys", "keys/old"} {
		for _, ext := range []string{".pem", ".exec"} {
			if _, err := os.Lstat(filepath.Join(f.path, dir, role+"-"+strconv.Itoa(n)+ext)); err == nil {
				return true
			}
		}
	}
	return false
}

func replaceKeys(r *metadata.RootType, role string, threshold int, fresh []crypto.PublicKey) error {
	for _, id := range append([]string(nil), r.Roles[role].KeyIDs...) {
		if err := r.RevokeKey(id, role); err != nil {
			return err
		}
	}
	for _, p := range fresh {
		k, err := metadata.KeyFromPublicKey(p)
		if err != nil {
			return err
		}
		if err := r.AddKey(k, role); err != nil {
			return err
		}
	}
	r.Roles[role].Threshold = threshold
	return nil
}

// retire moves key files out of the way. They are not deleted: whether a key
// was used anywhere else is for people to know.
func (f *Folder) retire(names []string) error {
	dir := filepath.Join(f.path, "keys", "old")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(f.path, "keys", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (f *Folder) editRoot(ctx context.Context, edit func(*metadata.RootType) error) error {
	if err := f.nothingStaged(); err != nil {
		return err
	}
	old, err := f.Root()
	if err != nil {
		return err
	}
	next, err := f.Root()
	if err != nil {
		return err
	}
	if err := edit(&next.Signed); err != nil {
		return err
	}
	next.ClearSignatures()
	next.Signed.Version++
	next.Signed.Expires = f.expires(Root)
	return f.publishRoot(ctx, next, old)
}

// nothingStaged refuses a second change while the first lacks signatures: it
// would have the same version.
func (f *Folder) nothingStaged() error {
	for _, name := range []string{"root.json", "targets.json"} {
		if _, err := os.Stat(filepath.Join(f.path, "staged", name)); err == nil {
			return fmt.Errorf("%w: staged/%s comes first", ErrIncomplete, name)
		}
	}
	return nil
}

// publishRoot signs a root by its own keys and those of the one before, if
// any, publishes it, and signs again what the new keys must sign.
func (f *Folder) publishRoot(ctx context.Context, next, old *metadata.Metadata[metadata.RootType]) error {
	ids := append([]string(nil), next.Signed.Roles[Root].KeyIDs...)
	if old != nil {
		ids = append(ids, old.Signed.Roles[Root].KeyIDs...)
	}
	if err := sign(ctx, f, next, Root, ids); err != nil {
		return err
	}
	data, err := encode(next)
	if err != nil {
		return err
	}
	err = next.VerifyDelegate(Root, next)
	if err == nil && old != nil {
		err = old.VerifyDelegate(Root, next)
	}
	if err != nil {
		if err := f.write("staged/root.json", data); err != nil {
			return err
		}
		return fmt.Errorf("%w: root metadata (see staged/)", ErrIncomplete)
	}
	if err := f.write("metadata/"+strconv.FormatInt(next.Signed.Version, 10)+".root.json", data); err != nil {
		return err
	}
	if err := f.write("root.json", data); err != nil {
		return err
	}
	if err := remove(f.path, "staged/root.json"); err != nil {
		return err
	}
	targets, err := f.Targets()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the very first root
	}
	if err != nil {
		return err
	}
	if next.VerifyDelegate(Targets, targets) != nil {
		return f.editTargets(ctx, func(*metadata.TargetsType) error { return nil })
	}
	return f.Refresh(ctx)
}

// SignStaged adds the signatures of the keys at hand to what waits in staged/,
// and publishes what is complete.
func (f *Folder) SignStaged(ctx context.Context) error {
	if data, err := os.ReadFile(filepath.Join(f.path, "staged", "root.json")); err == nil {
		next, err := metadata.Root().FromBytes(data)
		if err != nil {
			return err
		}
		old, err := f.Root()
		if err != nil {
			return err
		}
		if err := f.publishRoot(ctx, next, old); err != nil {
			return err
		}
	}
	if data, err := os.ReadFile(filepath.Join(f.path, "staged", "targets.json")); err == nil {
		t, err := metadata.Targets().FromBytes(data)
		if err != nil {
			return err
		}
		return f.publishTargets(ctx, t)
	}
	return nil
}
