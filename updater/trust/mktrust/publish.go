package mktrust

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// AddTarget lists data under a name in new targets metadata, and publishes it:
// targets, snapshot and timestamp get new versions. Repeating it with the same
// data only refreshes expiry. ErrIncomplete means that the targets wait in
// staged/ for other keys; ErrNoKey that snapshot or timestamp do, after which
// Refresh completes them on the machine with their keys. custom is for people
// and tools; devices do not read it.
func (f *Folder) AddTarget(ctx context.Context, name string, data []byte, custom map[string]string) error {
	sum := sha256.Sum256(data)
	entry := &metadata.TargetFiles{Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
	// Left out where it is empty: go-tuf would sign a null that it does not
	// see when it reads the file again.
	if len(custom) > 0 {
		note, err := json.Marshal(custom)
		if err != nil {
			return err
		}
		entry.Custom = (*json.RawMessage)(&note)
	}
	return f.editTargets(ctx, func(t *metadata.TargetsType) error {
		t.Targets[name] = entry
		return nil
	})
}

// RemoveTarget withdraws a target: devices that see the new metadata no longer
// install it.
func (f *Folder) RemoveTarget(ctx context.Context, name string) error {
	return f.editTargets(ctx, func(t *metadata.TargetsType) error {
		if _, ok := t.Targets[name]; !ok {
			return fmt.Errorf("target %q: %w", name, fs.ErrNotExist)
		}
		delete(t.Targets, name)
		return nil
	})
}

func (f *Folder) editTargets(ctx context.Context, edit func(*metadata.TargetsType) error) error {
	if err := f.nothingStaged(); err != nil {
		return err
	}
	t, err := f.Targets()
	if err != nil {
		return err
	}
	if err := edit(&t.Signed); err != nil {
		return err
	}
	t.ClearSignatures()
	t.Signed.Version++
	t.Signed.Expires = f.expires(Targets)
	return f.publishTargets(ctx, t)
}

// sign adds the signatures of the folder's keys for a role. Keys that the
// delegator does not list are left out: they would only be noise.
func sign[T metadata.Roles](ctx context.Context, f *Folder, m *metadata.Metadata[T], role string, ids []string) error {
	signers, err := f.Signers(ctx, role)
	if err != nil {
		return err
	}
	for _, s := range signers {
		id, err := KeyID(s.Public())
		if err != nil {
			return err
		}
		signed := slices.ContainsFunc(m.Signatures, func(x metadata.Signature) bool { return x.KeyID == id })
		if signed || !slices.Contains(ids, id) {
			continue
		}
		t := &tufSigner{ctx: ctx, s: s}
		if _, err := m.Sign(t); err != nil {
			return errors.Join(fmt.Errorf("sign %s metadata: %w", role, err), t.err)
		}
	}
	return nil
}

// publishTargets signs targets, and snapshot and timestamp after them. The
// timestamp is written last: until then clients see the old state whole.
func (f *Folder) publishTargets(ctx context.Context, t *metadata.Metadata[metadata.TargetsType]) error {
	root, err := f.Root()
	if err != nil {
		return err
	}
	if err := sign(ctx, f, t, Targets, root.Signed.Roles[Targets].KeyIDs); err != nil {
		return err
	}
	data, err := encode(t)
	if err != nil {
		return err
	}
	if err := root.VerifyDelegate(Targets, t); err != nil {
		if err := f.write("staged/targets.json", data); err != nil {
			return err
		}
		return fmt.Errorf("%w: targets metadata has %d of %d (see staged/)", ErrIncomplete, len(t.Signatures), root.Signed.Roles[Targets].Threshold)
	}
	if err := f.write("metadata/"+strconv.FormatInt(t.Signed.Version, 10)+".targets.json", data); err != nil {
		return err
	}
	// The copy without a version is for sticks, where no snapshot says which
	// version is the newest.
	if err := f.write("metadata/targets.json", data); err != nil {
		return err
	}
	if err := remove(f.path, "staged/targets.json"); err != nil {
		return err
	}
	return f.Refresh(ctx)
}

func remove(parts ...string) error {
	if err := os.Remove(filepath.Join(parts...)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Refresh signs a new snapshot where the targets are newer than it or its keys
// have changed, and in any case a new timestamp.
func (f *Folder) Refresh(ctx context.Context) error {
	root, err := f.Root()
	if err != nil {
		return err
	}
	targets, err := f.Targets()
	if err != nil {
		return err
	}
	timestamp := metadata.Timestamp(f.expires(Timestamp))
	if old, err := os.ReadFile(filepath.Join(f.path, "metadata", "timestamp.json")); err == nil {
		if timestamp, err = timestamp.FromBytes(old); err != nil {
			return err
		}
		timestamp.Signed.Version++
		timestamp.Signed.Expires = f.expires(Timestamp)
		timestamp.ClearSignatures()
	}
	snapshot := metadata.Snapshot(f.expires(Snapshot))
	version := timestamp.Signed.Meta["snapshot.json"].Version
	name := func() string { return "metadata/" + strconv.FormatInt(version, 10) + ".snapshot.json" }
	current := false
	if old, err := os.ReadFile(filepath.Join(f.path, name())); err == nil {
		if snapshot, err = snapshot.FromBytes(old); err != nil {
			return err
		}
		current = snapshot.Signed.Meta["targets.json"].Version == targets.Signed.Version && root.VerifyDelegate(Snapshot, snapshot) == nil &&
			snapshot.Signed.Expires.After(f.expires(Timestamp))
		if !current {
			version++
		}
	}
	if !current {
		snapshot.Signed.Version = version
		snapshot.Signed.Expires = f.expires(Snapshot)
		snapshot.Signed.Meta["targets.json"] = metadata.MetaFile(targets.Signed.Version)
		snapshot.ClearSignatures()
		if err := signAll(ctx, f, root, snapshot, Snapshot); err != nil {
			return err
		}
		data, err := encode(snapshot)
		if err != nil {
			return err
		}
		if err := f.write(name(), data); err != nil {
			return err
		}
	}
	timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(version)
	if err := signAll(ctx, f, root, timestamp, Timestamp); err != nil {
		return err
	}
	data, err := encode(timestamp)
	if err != nil {
		return err
	}
	return f.write("metadata/timestamp.json", data)
}

// signAll is for roles that are signed on line by one machine.
func signAll[T metadata.Roles](ctx context.Context, f *Folder, root *metadata.Metadata[metadata.RootType], m *metadata.Metadata[T], role string) error {
	if _, err := f.need(ctx, role); err != nil {
		return err
	}
	if err := sign(ctx, f, m, role, root.Signed.Roles[role].KeyIDs); err != nil {
		return err
	}
	if err := root.VerifyDelegate(role, m); err != nil {
		return fmt.Errorf("%w: %s metadata has %d of %d", ErrIncomplete, role, len(m.Signatures), root.Signed.Roles[role].Threshold)
	}
	return nil
}
