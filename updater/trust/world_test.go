package trust_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// today is when the tests happen: metadata of a world expires in a year.
var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// files are what a repository serves, by name.
type files map[string][]byte

// Metadata makes files a trust.Fetcher.
func (f files) Metadata(_ context.Context, name string) ([]byte, error) {
	data, ok := f[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return data, nil
}

// DownloadFile makes files a fetcher of go-tuf.
func (f files) DownloadFile(url string, most int64, _ time.Duration) ([]byte, error) {
	data, ok := f[path.Base(url)]
	if !ok {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: url}
	}
	if int64(len(data)) > most {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: "too long"}
	}
	return data, nil
}

// memory is a trust.Store.
type memory map[string][]byte

func (m memory) Get(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}
func (m memory) Put(name string, data []byte) error { m[name] = slices.Clone(data); return nil }
func (m memory) Delete(name string) error           { delete(m, name); return nil }

// signers are made once: tests need many, and which is which does not matter.
var signers = sync.OnceValue(func() []signature.Signer {
	var out []signature.Signer
	for i := range 12 {
		kind := mktrust.Ed25519
		if i%2 == 1 {
			kind = mktrust.ECDSA
		}
		k, err := mktrust.NewKey(kind)
		if err != nil {
			panic(err)
		}
		s, err := signature.LoadSigner(k, 5 /* crypto.SHA256 */)
		if err != nil {
			panic(err)
		}
		out = append(out, s)
	}
	return out
})

func tufKey(t testing.TB, s signature.Signer) *metadata.Key {
	public, err := s.PublicKey()
	require.NoError(t, err)
	k, err := metadata.KeyFromPublicKey(public)
	require.NoError(t, err)
	return k
}

// world is a repository whose owner, or attacker, can do anything: it is made
// with go-tuf, not with our code.
type world struct {
	t         testing.TB
	root      *metadata.Metadata[metadata.RootType]
	timestamp *metadata.Metadata[metadata.TimestampType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	targets   *metadata.Metadata[metadata.TargetsType]
	keys      map[string][]signature.Signer // who signs
	out       files
}

const target = "gateway/7.json"

func newWorld(t testing.TB) *world {
	year := today.AddDate(1, 0, 0)
	w := &world{
		t: t, root: metadata.Root(year), timestamp: metadata.Timestamp(year), snapshot: metadata.Snapshot(year), targets: metadata.Targets(year),
		keys: map[string][]signature.Signer{}, out: files{},
	}
	for i, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		w.grant(role, signers()[i])
	}
	w.addTarget(target, []byte("release 7"))
	w.publish()
	return w
}

// grant gives a role to a signer, who signs from now on.
func (w *world) grant(role string, s signature.Signer) {
	require.NoError(w.t, w.root.Signed.AddKey(tufKey(w.t, s), role))
	w.keys[role] = append(w.keys[role], s)
}

// revoke takes a role from a signer, who stops signing.
func (w *world) revoke(role string, s signature.Signer) {
	id, err := tufKey(w.t, s).ID()
	require.NoError(w.t, err)
	require.NoError(w.t, w.root.Signed.RevokeKey(id, role))
	w.keys[role] = slices.DeleteFunc(slices.Clone(w.keys[role]), func(o signature.Signer) bool { return o == s })
}

func (w *world) addTarget(name string, data []byte) {
	sum := sha256.Sum256(data)
	w.targets.Signed.Targets[name] = &metadata.TargetFiles{Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
}

func seal[T metadata.Roles](w *world, m *metadata.Metadata[T], by []signature.Signer) []byte {
	m.ClearSignatures()
	for _, s := range by {
		_, err := m.Sign(s)
		require.NoError(w.t, err)
	}
	data, err := m.ToBytes(false)
	require.NoError(w.t, err)
	return data
}

// publish signs everything as it is now. Roots that were published stay.
func (w *world) publish() files {
	w.out[fmt.Sprintf("%d.root.json", w.root.Signed.Version)] = seal(w, w.root, w.keys["root"])
	w.publishRest()
	return maps.Clone(w.out)
}

func (w *world) publishRest() files {
	t := seal(w, w.targets, w.keys["targets"])
	w.out["targets.json"] = t
	w.out[strconv.FormatInt(w.targets.Signed.Version, 10)+".targets.json"] = t
	w.out[strconv.FormatInt(w.snapshot.Signed.Version, 10)+".snapshot.json"] = seal(w, w.snapshot, w.keys["snapshot"])
	w.out["timestamp.json"] = seal(w, w.timestamp, w.keys["timestamp"])
	return maps.Clone(w.out)
}

// bump makes new versions of targets, snapshot and timestamp that fit together.
func (w *world) bump() *world {
	w.targets.Signed.Version++
	w.snapshot.Signed.Version++
	w.timestamp.Signed.Version++
	w.snapshot.Signed.Meta["targets.json"].Version = w.targets.Signed.Version
	w.timestamp.Signed.Meta["snapshot.json"].Version = w.snapshot.Signed.Version
	return w
}

// rotateRoot publishes a new root with old and new keys.
func (w *world) newRoot(by ...signature.Signer) {
	w.root.Signed.Version++
	w.out[fmt.Sprintf("%d.root.json", w.root.Signed.Version)] = seal(w, w.root, by)
}

// client is a device with both verifiers: ours, and go-tuf as the oracle.
type client struct {
	t      testing.TB
	anchor []byte
	store  memory
	dir    string
}

func newClient(t testing.TB, anchor []byte) *client {
	return &client{t: t, anchor: anchor, store: memory{}, dir: t.TempDir()}
}

func (c *client) update(repo trust.Fetcher, now time.Time) (*trust.Client, error) {
	ours, err := trust.Open(c.store, c.anchor)
	if err != nil {
		return nil, err
	}
	return ours, ours.Update(context.Background(), repo, trust.Options{Online: true, Now: now})
}

func (c *client) oracle(repo files, now time.Time) error {
	cfg, err := config.New("https://example.com", c.anchor)
	require.NoError(c.t, err)
	cfg.LocalMetadataDir, cfg.LocalTargetsDir, cfg.Fetcher = c.dir, c.dir, repo
	u, err := updater.New(cfg)
	if err != nil {
		return err
	}
	u.UnsafeSetRefTime(now)
	return u.Refresh()
}
