package mktrust

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tandem-ota/tandem/updater/trust"
)

// Folder is a trust folder on disk.
type Folder struct {
	path string
	now  time.Time
}

// Quorum is how many keys a role has, and how many of them must sign.
type Quorum struct {
	Keys      int
	Threshold int
}

// InitOptions describe a new trust folder.
type InitOptions struct {
	Kind    string            // of the keys that are made; Ed25519 when empty
	Quorums map[string]Quorum // by role; 1 of 1 where not given
	Signers map[string]string // by role: an external signer instead of a new key, "exec:COMMAND"
}

// Open opens a trust folder. now is what expiry is counted from.
func Open(path string, now time.Time) (*Folder, error) {
	f := &Folder{path: path, now: now.UTC().Truncate(time.Second)}
	if _, err := f.Root(); err != nil {
		return nil, fmt.Errorf("open trust folder %s: %w", path, err)
	}
	return f, nil
}

// Init makes a trust folder with new keys and a first set of metadata. It
// refuses a folder that has any content.
func Init(ctx context.Context, path string, now time.Time, o InitOptions) (*Folder, error) {
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("make trust folder %s: %w: the folder is not empty", path, fs.ErrExist)
	}
	f := &Folder{path: path, now: now.UTC().Truncate(time.Second)}
	for _, dir := range []string{"metadata", "staged"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(filepath.Join(path, "keys"), 0o700); err != nil {
		return nil, err
	}
	if o.Kind == "" {
		o.Kind = Ed25519
	}
	for _, role := range Roles {
		if _, ok := o.Quorums[role]; !ok {
			if o.Quorums == nil {
				o.Quorums = make(map[string]Quorum)
			}
			o.Quorums[role] = Quorum{Keys: 1, Threshold: 1}
		}
		q := o.Quorums[role]
		if q.Keys < 1 || q.Threshold < 1 || q.Threshold > q.Keys || o.Signers[role] != "" && q.Keys > 1 {
			return nil, fmt.Errorf("role %s: a threshold of %d with %d keys makes no sense", role, q.Threshold, q.Keys)
		}
		for i := range q.Keys {
			if err := f.addKey(role, i+1, o.Kind, o.Signers[role]); err != nil {
				return nil, err
			}
		}
	}
	if err := f.first(ctx, o); err != nil {
		return nil, err
	}
	return f, nil
}

// addKey makes the n-th key of a role, or notes its external signer.
func (f *Folder) addKey(role string, n int, kind, signer string) error {
	name := role
	if n > 1 {
		name += "-" + strconv.Itoa(n)
	}
	path := filepath.Join(f.path, "keys", name)
	if command, ok := strings.CutPrefix(signer, "exec:"); ok {
		return os.WriteFile(path+".exec", []byte(command+"\n"), 0o600)
	} else if signer != "" {
		return fmt.Errorf("signer %q of role %s does not start with exec:", signer, role)
	}
	k, err := NewKey(kind)
	if err != nil {
		return err
	}
	return WriteKey(path+".pem", k)
}

// Signers opens the keys of a role that are in the folder.
func (f *Folder) Signers(ctx context.Context, role string) ([]Signer, error) {
	names, err := f.keyFiles(role)
	if err != nil {
		return nil, err
	}
	var out []Signer
	for _, name := range names { // sorted by name: the order of signatures is stable
		spec := filepath.Join(f.path, "keys", name)
		if strings.HasSuffix(name, ".exec") {
			data, err := os.ReadFile(spec)
			if err != nil {
				return nil, err
			}
			spec = "exec:" + strings.TrimSpace(string(data))
		}
		s, err := LoadKey(ctx, spec, role)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// isKeyFile reports whether a file name in keys/ is that of a key of the role.
func isKeyFile(name, role string) bool {
	base, ext, _ := strings.Cut(name, ".")
	if ext != "pem" && ext != "exec" {
		return false
	}
	n, numbered := strings.CutPrefix(base, role+"-")
	_, err := strconv.Atoi(n)
	return base == role || numbered && err == nil
}

// first makes version 1 of everything.
func (f *Folder) first(ctx context.Context, o InitOptions) error {
	root := metadata.Root(f.expires(Root))
	var release, fleet []crypto.PublicKey
	for _, role := range Roles {
		signers, err := f.Signers(ctx, role)
		if err != nil {
			return err
		}
		for _, s := range signers {
			switch role {
			case Release:
				release = append(release, s.Public())
			case Fleet:
				fleet = append(fleet, s.Public())
			default:
				k, err := metadata.KeyFromPublicKey(s.Public())
				if err != nil {
					return err
				}
				if err := root.Signed.AddKey(k, role); err != nil {
					return err
				}
			}
		}
		if r, ok := root.Signed.Roles[role]; ok {
			r.Threshold = o.Quorums[role].Threshold
		}
	}
	keys, err := KeySet(o.Quorums[Release].Threshold, release...)
	if err != nil {
		return err
	}
	if err := f.write("release-keys.json", keys); err != nil {
		return err
	}
	if err := f.publishRoot(ctx, root, nil); err != nil {
		return err
	}
	targets := metadata.Targets(f.expires(Targets))
	if err := delegate(&targets.Signed, o.Quorums[Fleet].Threshold, fleet); err != nil {
		return err
	}
	return f.publishTargets(ctx, targets)
}

// delegate gives the role "fleet" to keys, instead of those that had it.
func delegate(t *metadata.TargetsType, threshold int, public []crypto.PublicKey) error {
	role := metadata.DelegatedRole{Name: Fleet, Threshold: threshold, Terminating: true, Paths: []string{Fleet + "/*"}}
	keys := make(map[string]*metadata.Key)
	for _, p := range public {
		k, err := metadata.KeyFromPublicKey(p)
		if err != nil {
			return err
		}
		id, err := k.ID()
		if err != nil {
			return err
		}
		keys[id] = k
		role.KeyIDs = append(role.KeyIDs, id)
	}
	t.Delegations = &metadata.Delegations{Keys: keys, Roles: []metadata.DelegatedRole{role}}
	return nil
}

func (f *Folder) expires(role string) time.Time { return f.now.Add(lifetimes[role]) }

// write replaces a public file of the folder.
func (f *Folder) write(name string, data []byte) error {
	path := filepath.Join(f.path, name)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Root returns the newest root metadata.
func (f *Folder) Root() (*metadata.Metadata[metadata.RootType], error) {
	data, err := os.ReadFile(filepath.Join(f.path, "root.json"))
	if err != nil {
		return nil, err
	}
	return metadata.Root().FromBytes(data)
}

// Targets returns the newest targets metadata.
func (f *Folder) Targets() (*metadata.Metadata[metadata.TargetsType], error) {
	data, err := os.ReadFile(filepath.Join(f.path, "metadata", "targets.json"))
	if err != nil {
		return nil, err
	}
	return metadata.Targets().FromBytes(data)
}

// ReleaseKeys returns release-keys.json.
func (f *Folder) ReleaseKeys() (trust.KeySet, error) {
	data, err := os.ReadFile(filepath.Join(f.path, "release-keys.json"))
	if err != nil {
		return trust.KeySet{}, err
	}
	return trust.ParseKeySet(data)
}

// Metadata makes a Folder a trust.Fetcher.
func (f *Folder) Metadata(_ context.Context, name string) ([]byte, error) {
	if name != filepath.Base(name) {
		return nil, fs.ErrNotExist
	}
	return os.ReadFile(filepath.Join(f.path, "metadata", name))
}

// Files lists the metadata that a client needs, by name: every root, and the
// newest of the other roles. Older ones stay in the folder for audits.
func (f *Folder) Files() ([]string, error) {
	names := []string{"targets.json", "timestamp.json"}
	root, err := f.Root()
	if err != nil {
		return nil, err
	}
	for n := range root.Signed.Version {
		names = append(names, strconv.FormatInt(n+1, 10)+".root.json")
	}
	targets, err := f.Targets()
	if err != nil {
		return nil, err
	}
	names = append(names, strconv.FormatInt(targets.Signed.Version, 10)+".targets.json")
	data, err := f.Metadata(context.Background(), "timestamp.json")
	if err != nil {
		return nil, err
	}
	timestamp, err := metadata.Timestamp().FromBytes(data)
	if err != nil {
		return nil, err
	}
	names = append(names, strconv.FormatInt(timestamp.Signed.Meta["snapshot.json"].Version, 10)+".snapshot.json")
	slices.Sort(names)
	return names, nil
}

// Seal puts a payload into an envelope signed by all keys of the role that are
// in the folder; ErrNoKey when there is none.
func (f *Folder) Seal(ctx context.Context, role, payloadType string, payload []byte) ([]byte, error) {
	signers, err := f.need(ctx, role)
	if err != nil {
		return nil, err
	}
	return Seal(ctx, payloadType, payload, signers...)
}

// need is Signers, where none at all is an error.
func (f *Folder) need(ctx context.Context, role string) ([]Signer, error) {
	signers, err := f.Signers(ctx, role)
	if err == nil && len(signers) == 0 {
		err = fmt.Errorf("%w %s in %s", ErrNoKey, role, filepath.Join(f.path, "keys"))
	}
	return signers, err
}

// Countersign adds the folder's release signatures to a manifest envelope.
func (f *Folder) Countersign(ctx context.Context, data []byte) ([]byte, error) {
	signers, err := f.need(ctx, Release)
	if err != nil {
		return nil, err
	}
	return Countersign(ctx, data, signers...)
}

func encode[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	data, err := m.ToBytes(true)
	return append(bytes.TrimSpace(data), '\n'), err
}
