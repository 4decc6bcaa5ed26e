package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"
)

// Fetcher brings metadata from a source: "2.root.json", "timestamp.json",
// "3.snapshot.json", "3.targets.json", and "targets.json" where the source is
// read offline. It returns fs.ErrNotExist for a file that the source does not
// have, and must not return more than MaxMetadata bytes.
type Fetcher interface {
	Metadata(ctx context.Context, name string) ([]byte, error)
}

// Options say how much an update of the metadata can ask for.
type Options struct {
	// Online asks for timestamp and snapshot as well: they bound how long a
	// source can hold back news, and bind files together. A stick or file
	// cannot keep them fresh; from there root chain and targets suffice.
	Online bool
	// Now is a lower bound of the time that the caller vouches for; zero is
	// "no clock", and expiry does not count.
	Now time.Time
}

// Client holds the metadata that a device trusts. It is not safe for
// concurrent use.
type Client struct {
	store   Store
	root    *root
	targets *targets // nil until metadata was once accepted
}

// Open starts from the root that the device was built with and what the store
// has kept since. Stored metadata is verified again as if it were new; what
// does not hold is left out, since it can be fetched again, and a device with a
// broken store must still be able to update. Errors other than from the store
// therefore mean that the built-in root itself is unusable.
func Open(store Store, anchor []byte) (*Client, error) {
	r, _, err := openRoot(anchor)
	if err != nil {
		return nil, fmt.Errorf("built-in root metadata: %w", err)
	}
	c := &Client{store: store, root: r}
	for range maxRotations {
		data, err := c.stored(rootName(c.root.head.Version + 1))
		if err != nil {
			return nil, err
		}
		next, err := c.root.follow(data)
		if err != nil {
			break
		}
		c.root = next
	}
	data, err := c.stored("targets.json")
	if err != nil {
		return nil, err
	}
	if t, err := openTargets(data, c.root.roles[roleTargets]); err == nil {
		c.targets = t
	}
	return c, nil
}

// stored is Get where a missing file is empty, and so fails to verify.
func (c *Client) stored(name string) ([]byte, error) {
	data, err := c.store.Get(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read stored metadata: %w", err)
	}
	return data, nil
}

func rootName(version int64) string {
	return strconv.FormatInt(version, 10) + "." + roleRoot + ".json"
}

// follow verifies the successor of a root: signed by the old keys, so that it
// is theirs, and by its own, so that the new keys exist.
func (r *root) follow(data []byte) (*root, error) {
	next, f, err := openRoot(data)
	if err != nil {
		return nil, err
	}
	if err := r.roles[roleRoot].check(f.canonical, f.signatures); err != nil {
		return nil, fmt.Errorf("by the keys of version %d: %w", r.head.Version, err)
	}
	if next.head.Version != r.head.Version+1 {
		return nil, fmt.Errorf("%w: version %d follows %d", ErrRollback, next.head.Version, r.head.Version)
	}
	return next, nil
}

// Update fetches and verifies newer metadata.
//
// When it returns nil, what Target and StatementKeys answer from is durable and
// the newest that the source has. On error the targets are those from before;
// roots that verified are kept, and so are versions that hold off rollbacks.
// Calling it again, with another source too, is always safe.
func (c *Client) Update(ctx context.Context, f Fetcher, o Options) error {
	if err := c.updateRoot(ctx, f); err != nil {
		return fmt.Errorf("root metadata: %w", err)
	}
	if err := c.root.head.current(o.Now); err != nil {
		return fmt.Errorf("root metadata: %w", err)
	}
	if !o.Online {
		return c.updateTargets(ctx, f, o.Now, "targets.json", nil)
	}
	timestamp, err := c.updateTimestamp(ctx, f, o.Now)
	if err != nil {
		return fmt.Errorf("timestamp metadata: %w", err)
	}
	snapshot, err := c.updateSnapshot(ctx, f, o.Now, timestamp)
	if err != nil {
		return fmt.Errorf("snapshot metadata: %w", err)
	}
	ref, err := snapshot.needs("targets.json")
	if err != nil {
		return fmt.Errorf("snapshot metadata: %w", err)
	}
	return c.updateTargets(ctx, f, o.Now, c.named(roleTargets, ref), &ref)
}

func fetch(ctx context.Context, f Fetcher, name string) ([]byte, error) {
	data, err := f.Metadata(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", name, err)
	}
	return data, nil
}

// named is the file name of a role's metadata: with its version where the
// repository keeps versions apart.
func (c *Client) named(role string, ref reference) string {
	if c.root.Consistent {
		return strconv.FormatInt(ref.Version, 10) + "." + role + ".json"
	}
	return role + ".json"
}

// current checks expiry against a lower bound of the time.
func (h head) current(now time.Time) error {
	if !now.IsZero() && now.After(h.expires) {
		return fmt.Errorf("%w: version %d, %s, and it is %s or later", ErrExpired, h.Version, h.expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func (c *Client) updateRoot(ctx context.Context, f Fetcher) error {
	for range maxRotations {
		name := rootName(c.root.head.Version + 1)
		data, err := fetch(ctx, f, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		next, err := c.root.follow(data)
		if err != nil {
			return fmt.Errorf("version %d: %w", c.root.head.Version+1, err)
		}
		// New keys are also the cure after somebody has signed absurdly high
		// versions with stolen ones: what the old keys said is forgotten (TUF
		// 5.3.11). This comes before the root is stored: after a power cut
		// between the two, the same root is fetched and forgets again; the
		// other way round the high versions would stay for ever.
		if c.root.rotated(next, roleTimestamp) || c.root.rotated(next, roleSnapshot) || c.root.rotated(next, roleTargets) {
			for _, role := range []string{roleTimestamp, roleSnapshot, roleTargets} {
				if err := c.store.Delete(role + ".json"); err != nil {
					return err
				}
			}
			c.targets = nil
		}
		if err := c.store.Put(name, data); err != nil {
			return err
		}
		c.root = next
	}
	return fmt.Errorf("%w: over %d new versions in one update", ErrTooLarge, maxRotations)
}

func (c *Client) updateTimestamp(ctx context.Context, f Fetcher, now time.Time) (*index, error) {
	keys := c.root.roles[roleTimestamp]
	data, err := c.stored("timestamp.json")
	if err != nil {
		return nil, err
	}
	old, err := openIndex(data, roleTimestamp, maxTimestamp, keys)
	if err != nil {
		old = nil // missing, torn, or by keys that have been rotated away
	}
	if data, err = fetch(ctx, f, "timestamp.json"); err != nil {
		return nil, err
	}
	next, err := openIndex(data, roleTimestamp, maxTimestamp, keys)
	if err != nil {
		return nil, err
	}
	ref, err := next.needs("snapshot.json")
	if err != nil {
		return nil, err
	}
	if old != nil {
		if next.head.Version < old.head.Version {
			return nil, fmt.Errorf("%w: version %d, after %d", ErrRollback, next.head.Version, old.head.Version)
		}
		if was := old.Meta["snapshot.json"]; ref.Version < was.Version {
			return nil, fmt.Errorf("%w: names snapshot %d, after %d", ErrRollback, ref.Version, was.Version)
		}
		if next.head.Version == old.head.Version {
			// One version has one content; the first seen stays.
			return old, old.head.current(now)
		}
	}
	// Kept even where it has expired: its version still holds off older ones.
	if err := c.store.Put("timestamp.json", data); err != nil {
		return nil, err
	}
	return next, next.head.current(now)
}

func (c *Client) updateSnapshot(ctx context.Context, f Fetcher, now time.Time, timestamp *index) (*index, error) {
	ref, err := timestamp.needs("snapshot.json")
	if err != nil {
		return nil, err
	}
	keys := c.root.roles[roleSnapshot]
	data, err := c.stored("snapshot.json")
	if err != nil {
		return nil, err
	}
	old, err := openIndex(data, roleSnapshot, MaxMetadata, keys)
	if err != nil {
		old = nil
	}
	if old != nil && old.head.Version == ref.Version && ref.check(data) == nil {
		return old, old.head.current(now)
	}
	if data, err = fetch(ctx, f, c.named(roleSnapshot, ref)); err != nil {
		return nil, err
	}
	if err := ref.check(data); err != nil {
		return nil, err
	}
	next, err := openIndex(data, roleSnapshot, MaxMetadata, keys)
	if err != nil {
		return nil, err
	}
	if next.head.Version != ref.Version {
		return nil, fmt.Errorf("%w: version %d, the timestamp names %d", ErrMismatch, next.head.Version, ref.Version)
	}
	if old != nil {
		for name, was := range old.Meta {
			if is, ok := next.Meta[name]; !ok || is.Version < was.Version {
				return nil, fmt.Errorf("%w: %.80q, version %d, after %d", ErrRollback, name, is.Version, was.Version)
			}
		}
	}
	if err := next.head.current(now); err != nil {
		return nil, err
	}
	return next, c.store.Put("snapshot.json", data)
}

func (c *Client) updateTargets(ctx context.Context, f Fetcher, now time.Time, name string, ref *reference) error {
	data, next, err := c.fetchTargets(ctx, f, name, ref)
	if err != nil {
		return fmt.Errorf("targets metadata: %w", err)
	}
	if c.targets != nil && next.head.Version < c.targets.head.Version {
		return fmt.Errorf("targets metadata: %w: version %d, after %d", ErrRollback, next.head.Version, c.targets.head.Version)
	}
	if err := next.head.current(now); err != nil {
		return fmt.Errorf("targets metadata: %w", err)
	}
	// Every connection brings the device here: what it has must not be written each time.
	if have, err := c.stored("targets.json"); err != nil || !bytes.Equal(have, data) {
		if err := c.store.Put("targets.json", data); err != nil {
			return err
		}
	}
	c.targets = next
	return nil
}

func (c *Client) fetchTargets(ctx context.Context, f Fetcher, name string, ref *reference) ([]byte, *targets, error) {
	keys := c.root.roles[roleTargets]
	// What is stored is often what the snapshot names: a device that looks for
	// news every hour need not fetch it again.
	if data, err := c.stored("targets.json"); ref != nil && err == nil && ref.check(data) == nil {
		if t, err := openTargets(data, keys); err == nil && t.head.Version == ref.Version {
			return data, t, nil
		}
	}
	data, err := fetch(ctx, f, name)
	if err != nil {
		return nil, nil, err
	}
	if ref != nil {
		if err := ref.check(data); err != nil {
			return nil, nil, err
		}
	}
	t, err := openTargets(data, keys)
	if err != nil {
		return nil, nil, err
	}
	if ref != nil && t.head.Version != ref.Version {
		return nil, nil, fmt.Errorf("%w: version %d, the snapshot names %d", ErrMismatch, t.head.Version, ref.Version)
	}
	return data, t, nil
}

// RootVersion is the version of the root in force, for people.
func (c *Client) RootVersion() int64 { return c.root.head.Version }

// TargetsVersion is the version of the accepted targets; 0 when there are none.
func (c *Client) TargetsVersion() int64 {
	if c.targets == nil {
		return 0
	}
	return c.targets.head.Version
}

// TargetInfo is what the metadata says of a target.
type TargetInfo struct {
	Length int64
	SHA256 string // hexadecimal
}

// Target looks a target up in the accepted metadata; ErrNoTarget when it is not
// listed. It answers from the last successful Update, in this process or an
// earlier one, and does not look at expiry.
func (c *Client) Target(name string) (TargetInfo, error) {
	if c.targets != nil {
		if t, ok := c.targets.Targets[name]; ok {
			sum, ok := t.Hashes["sha256"]
			if !ok {
				return TargetInfo{}, fmt.Errorf("target %q: %w: no SHA-256 is given", name, ErrFormat)
			}
			return TargetInfo{Length: *t.Length, SHA256: sum}, nil
		}
	}
	return TargetInfo{}, fmt.Errorf("%w: %q", ErrNoTarget, name)
}

// Check holds the bytes of a target against what the metadata says of it.
func (t TargetInfo) Check(data []byte) error {
	if int64(len(data)) != t.Length {
		return fmt.Errorf("%w: %d bytes, not %d", ErrMismatch, len(data), t.Length)
	}
	return checkHashes(data, map[string]string{"sha256": t.SHA256}, true)
}

// StatementKeys returns the keys that may make statements to devices, by the
// role "fleet" that the accepted targets delegate; ErrUnknownRole when they do
// not.
func (c *Client) StatementKeys() (KeySet, error) {
	if c.targets == nil {
		return KeySet{}, fmt.Errorf("%w: %s (no targets metadata was accepted yet)", ErrUnknownRole, FleetRole)
	}
	return c.targets.delegated(FleetRole)
}
