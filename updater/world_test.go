package updater

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkleaves"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

const (
	board  = "qemu-x86_64"
	me     = "pump-7"
	leaf   = manifest.LeafSize
	memory = 32 << 20

	bootSize = 20 << 10        // one leaf: no tree
	rootSize = 5*leaf + 3*4096 // some leaves and a tail
	frame    = leaf
	every    = leaf // bytes between checkpoints
)

// today is when metadata and statements of the tests are signed.
var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

var ctx = context.Background()

// made is a release with everything that it consists of.
type made struct {
	m        manifest.Manifest
	digest   manifest.Digest
	envelope []byte
	images   map[string][]byte // by role
	blobs    map[manifest.Digest][]byte
}

// world is the desk: keys, and the releases that it has published.
type world struct {
	keys     trust.KeySet
	anchor   []byte
	metadata map[string][]byte
	fleet    []mktrust.Signer
	by       map[string]*made // version
	names    map[manifest.Digest]string
	verified sync.Map // of the envelopes that slots were found with, the release, nil if it is none
}

// variant is how a release differs from an ordinary one.
type variant struct {
	version  string
	sequence uint64
	base     string // deltas start from here; "" for none
	deltas   bool   // offer no whole images
	index    bool   // offer index payloads
	alien    bool   // has nothing in common with the others
	change   func(m *manifest.Manifest)
	external bool
	memory   int64 // if not 0, what its deltas claim to need
	unlisted bool  // signed, and not offered by TUF
}

// The releases of the tests. Sequences are unique, since TUF lists targets by them.
var variants = []variant{
	{version: "0.9.0", sequence: 9},
	{version: "1.0.0", sequence: 10},
	{version: "2.0.0", sequence: 20, base: "1.0.0"},
	{version: "3.0.0", sequence: 30, base: "2.0.0"},
	{version: "4.0.0-full", sequence: 40},
	{version: "2.1.0-deltas", sequence: 21, base: "0.9.0", deltas: true},
	{version: "2.2.0-huge", sequence: 22, base: "1.0.0", memory: memory + 1},
	{version: "2.3.0-board", sequence: 23, change: func(m *manifest.Manifest) { m.Boards = []string{"other"} }},
	{version: "2.4.0-product", sequence: 24, change: func(m *manifest.Manifest) { m.Product = "other" }},
	{version: "2.5.0-epoch", sequence: 25, change: func(m *manifest.Manifest) { m.Epoch = 2 }},
	{version: "2.6.0-again", sequence: 26, change: func(m *manifest.Manifest) { m.Epoch = 1 }},
	{version: "2.7.0-schema", sequence: 27, change: func(m *manifest.Manifest) {
		m.DataSchema = manifest.Schema{Version: 3, ReadableFrom: 1, Migrate: "/usr/lib/migrate"}
	}},
	{version: "2.8.0-external", sequence: 28, external: true},
	{version: "2.9.0-unlisted", sequence: 29, unlisted: true},
	{version: "3.3.0-index", sequence: 33, base: "2.0.0", index: true},
	{version: "3.4.0-both", sequence: 34, base: "1.0.0", index: true},
	{version: "3.5.0-alien", sequence: 35, index: true, alien: true},
	{version: "3.1.0-network", sequence: 31, change: func(m *manifest.Manifest) { m.Trial.Network = manifest.NetworkRequire }},
	{version: "3.2.0-schema", sequence: 32, change: func(m *manifest.Manifest) {
		m.DataSchema = manifest.Schema{Version: 9, ReadableFrom: 5, Migrate: "/usr/lib/migrate"}
	}},
}

var theWorld = sync.OnceValue(func() *world {
	w, err := newWorld()
	if err != nil {
		panic(err)
	}
	return w
})

func newWorld() (*world, error) {
	dir, err := os.MkdirTemp("", "tandem-world-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // keys are in memory by then, and so is what they signed
	folder, err := mktrust.Init(ctx, filepath.Join(dir, "trust"), today, mktrust.InitOptions{})
	if err != nil {
		return nil, err
	}
	return worldOf(folder, variants)
}

// worldOf publishes releases from a folder of keys, which may go on publishing.
func worldOf(folder *mktrust.Folder, variants []variant) (*world, error) {
	w := &world{by: map[string]*made{}, names: map[manifest.Digest]string{}}
	var err error
	if w.keys, err = folder.ReleaseKeys(); err != nil {
		return nil, err
	}
	if w.fleet, err = folder.Signers(ctx, mktrust.Fleet); err != nil {
		return nil, err
	}
	for _, v := range variants {
		r, err := w.make(v)
		if err == nil {
			err = w.publish(folder, r, !v.unlisted)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.version, err)
		}
	}
	err = w.fetch(folder)
	w.anchor = w.metadata["1.root.json"]
	return w, err
}

// publish signs a release, and offers it.
func (w *world) publish(folder *mktrust.Folder, r *made, listed bool) error {
	payload, err := r.m.Marshal()
	if err != nil {
		return err
	}
	r.digest = manifest.DigestOf(payload)
	if r.envelope, err = folder.Seal(ctx, mktrust.Release, trust.ManifestType, payload); err != nil {
		return err
	}
	w.by[r.m.Version], w.names[r.digest] = r, r.m.Version
	if !listed {
		return nil
	}
	return folder.AddTarget(ctx, r.m.TargetName(), r.envelope, nil)
}

// fetch takes over the metadata as it is now.
func (w *world) fetch(folder *mktrust.Folder) error {
	names, err := folder.Files()
	if err != nil {
		return err
	}
	w.metadata = map[string][]byte{}
	for _, name := range append(names, "targets.json") {
		if w.metadata[name], err = folder.Metadata(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// content is the system of a version: most of it is the same in all.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	fill := rand.New(rand.NewPCG(1, uint64(size)))
	for i := range b {
		b[i] = byte(fill.Uint32())
	}
	own := rand.New(rand.NewPCG(seed, uint64(size)))
	for range 1 + size/leaf {
		at := own.IntN(size / 4096)
		for i := range 4096 {
			b[at*4096+i] = byte(own.Uint32())
		}
	}
	return b
}

// alien is a system like no other.
func alien(seed uint64, size int) []byte {
	b := make([]byte, size)
	fill := rand.New(rand.NewPCG(seed, uint64(size)+1))
	for i := range b {
		b[i] = byte(fill.Uint32())
	}
	return b
}

// make builds a release without signing it.
func (w *world) make(v variant) (*made, error) {
	r := &made{images: map[string][]byte{}, blobs: map[manifest.Digest][]byte{}}
	r.m = manifest.Manifest{
		Format: manifest.Format, Product: "gateway", Boards: []string{board}, Version: v.version, Sequence: v.sequence,
		Trial:  manifest.Trial{Tries: 3, DeadlineSeconds: 10, WindowSeconds: 4, Network: manifest.NetworkIgnore},
		Health: []manifest.Check{{Name: "works", Kind: manifest.CheckUnit, Target: "works.service", TimeoutSeconds: 5}, {Name: "link", Kind: manifest.CheckMQTT, TimeoutSeconds: 5}},
	}
	add := func(name, kind string, data []byte) error {
		img := manifest.Image{Name: name + ".img", Type: kind, Target: name, Content: r.tree(data)}
		r.images[name] = data
		target := mkdelta.Image{ReaderAt: bytes.NewReader(data), Size: int64(len(data))}
		if old := w.by[v.base]; old != nil {
			var patch bytes.Buffer
			base := mkdelta.Image{ReaderAt: bytes.NewReader(old.images[name]), Size: int64(len(old.images[name]))}
			stats, err := mkdelta.Make(ctx, base, target, mkdelta.Options{Level: 1, FrameSize: frame, Workers: 1}, &patch)
			if err != nil {
				return err
			}
			if v.memory != 0 {
				stats.Memory = v.memory
			}
			p := manifest.Payload{Kind: manifest.KindDelta, Base: manifest.DigestOf(old.images[name]), Blob: r.blob(patch.Bytes()), Memory: stats.Memory}
			if list := r.blobs[img.Tree]; list != nil {
				told, err := mkleaves.Make(ctx, leaves.Image(base), leaves.Image(target), list)
				if err != nil {
					return err
				}
				p.Leaves = r.blob(told)
			}
			img.Payloads = append(img.Payloads, p)
		}
		if v.index && kind == manifest.TypeSlot {
			var blob bytes.Buffer
			stats, err := mkblocks.Make(ctx, mkblocks.Image{ReaderAt: bytes.NewReader(data), Size: int64(len(data))}, mkblocks.Options{FrameSize: frame, Window: frame, Workers: 1}, &blob)
			if err != nil {
				return err
			}
			img.Payloads = append(img.Payloads, manifest.Payload{Kind: manifest.KindIndex, Blob: r.blob(blob.Bytes()), Memory: stats.Memory})
		}
		if !v.deltas {
			var patch bytes.Buffer
			stats, err := mkdelta.MakeFull(ctx, target, mkdelta.Options{Level: 1, FrameSize: frame, Workers: 1}, &patch)
			if err != nil {
				return err
			}
			img.Payloads = append(img.Payloads, manifest.Payload{Kind: manifest.KindFull, Blob: r.blob(patch.Bytes()), Memory: stats.Memory})
		}
		r.m.Images = append(r.m.Images, img)
		return nil
	}
	content := content
	if v.alien {
		content = alien
	}
	if err := add("boot", manifest.TypeSlot, content(v.sequence, bootSize)); err != nil {
		return nil, err
	}
	if err := add("root", manifest.TypeSlot, content(v.sequence, rootSize)); err != nil {
		return nil, err
	}
	if v.external {
		if err := add("modem", manifest.TypeExternal, content(v.sequence, 2*leaf+77)); err != nil {
			return nil, err
		}
	}
	if v.change != nil {
		v.change(&r.m)
	}
	return r, nil
}

// tree describes a content, and keeps its list of leaves as a blob where it needs one.
func (r *made) tree(data []byte) manifest.Content {
	c := manifest.Content{Digest: manifest.DigestOf(data), Size: int64(len(data))}
	if c.Size > leaf {
		var list []byte
		for at := 0; at < len(data); at += leaf {
			sum := sha256.Sum256(data[at:min(at+leaf, len(data))])
			list = append(list, sum[:]...)
		}
		c.Tree = manifest.DigestOf(list)
		r.blobs[c.Tree] = list
	}
	return c
}

func (r *made) blob(data []byte) manifest.Content {
	data = bytes.Clone(data)
	c := r.tree(data)
	r.blobs[c.Digest] = data
	return c
}

// source is a release on its way to the device. It may lie and fail.
type source struct {
	w *world
	r *made

	mu     sync.Mutex
	moved  int64 // bytes of blobs
	onRead func(blob manifest.Digest, off int64, p []byte) error
	asked  int // calls of Manifest
	broken error
	block  bool // blobs wait for ever
}

func (w *world) source(version string) *source { return &source{w: w, r: w.by[version]} }

func (s *source) Manifest(context.Context) ([]byte, error) {
	s.asked++
	if s.broken != nil {
		return nil, s.broken
	}
	return s.r.envelope, nil
}

func (s *source) Metadata(_ context.Context, name string) ([]byte, error) {
	if data, ok := s.w.metadata[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}

func (s *source) ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if s.block {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	data, ok := s.r.blobs[blob]
	if !ok {
		return 0, fs.ErrNotExist
	}
	if off >= int64(len(data)) {
		return 0, io.EOF
	}
	n := copy(p, data[off:])
	s.mu.Lock()
	s.moved += int64(n)
	s.mu.Unlock()
	if s.onRead != nil {
		if err := s.onRead(blob, off, p[:n]); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// statement is what the operator signs for a device.
func (w *world) statement(t testing.TB, device string, counter uint64, d transport.Desired) transport.Want {
	body, err := json.Marshal(d)
	require.NoError(t, err)
	s := trust.Statement{Device: device, Counter: counter, Kind: transport.KindDesired, Issued: today, Expires: today.AddDate(0, 1, 0), Body: body}
	envelope, err := mktrust.Statement(ctx, s, w.fleet...)
	require.NoError(t, err)
	return transport.Want{Statement: envelope}
}
