package mkrelease

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
)

const (
	indexMedia = "application/vnd.oci.image.index.v1+json"
	imageMedia = "application/vnd.oci.image.manifest.v1+json"
	emptyMedia = "application/vnd.oci.empty.v1+json"

	refKey     = "org.opencontainers.image.ref.name"
	versionKey = "org.opencontainers.image.version"

	// Names under which tools such as skopeo find the two artifacts.
	releaseRef = "release"
	tufRef     = "tuf"
)

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Digest       manifest.Digest   `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

type image struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

// layout is an OCI image layout that is being written.
type layout struct{ path string }

func newLayout(path string) (*layout, error) {
	if err := os.MkdirAll(filepath.Join(path, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	return &layout{path}, os.WriteFile(filepath.Join(path, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func (l *layout) blobPath(d manifest.Digest) string {
	return filepath.Join(l.path, "blobs", "sha256", d.Hex())
}

// add writes a blob that is in memory.
func (l *layout) add(data []byte) (manifest.Content, error) {
	d := manifest.DigestOf(data)
	return manifest.Content{Digest: d, Size: int64(len(data))}, os.WriteFile(l.blobPath(d), data, 0o644)
}

// move makes a finished file a blob.
func (l *layout) move(path string, d manifest.Digest) error {
	if err := os.Chmod(path, 0o644); err != nil {
		return err
	}
	return os.Rename(path, l.blobPath(d))
}

// addCopy makes a copy of a file a blob.
func (l *layout) addCopy(ctx context.Context, tmp, path string) (manifest.Content, error) {
	in, err := os.Open(path)
	if err != nil {
		return manifest.Content{}, err
	}
	defer in.Close()
	out, err := os.CreateTemp(tmp, "copy-")
	if err != nil {
		return manifest.Content{}, err
	}
	sum := newHasher()
	err = copyAll(ctx, io.MultiWriter(out, sum), in, func(int64) {})
	if err := errors.Join(err, out.Close()); err != nil {
		return manifest.Content{}, err
	}
	c := sum.content()
	return c, l.move(out.Name(), c.Digest)
}

// addImage writes an OCI image manifest and returns how an index names it.
func (l *layout) addImage(artifact, ref string, layers []descriptor, annotations map[string]string) (descriptor, error) {
	config, err := l.add([]byte("{}"))
	if err != nil {
		return descriptor{}, err
	}
	data, err := json.Marshal(image{
		SchemaVersion: 2, MediaType: imageMedia, ArtifactType: artifact, Layers: layers, Annotations: annotations,
		Config: descriptor{MediaType: emptyMedia, Digest: config.Digest, Size: config.Size},
	})
	if err != nil {
		return descriptor{}, err
	}
	c, err := l.add(data)
	return descriptor{MediaType: imageMedia, ArtifactType: artifact, Digest: c.Digest, Size: c.Size, Annotations: map[string]string{refKey: ref}}, err
}

// writeIndex makes the artifacts visible; what it names is already there, so
// that a reader sees the old state or the new one.
func (l *layout) writeIndex(manifests ...descriptor) error {
	data, err := json.Marshal(index{SchemaVersion: 2, MediaType: indexMedia, Manifests: manifests})
	if err != nil {
		return err
	}
	tmp := filepath.Join(l.path, ".index.json.new")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(l.path, "index.json"))
}

// read returns the artifacts that the index names, by artifact type.
func (l *layout) read() (map[string]image, error) {
	var ix index
	if err := readJSON(filepath.Join(l.path, "index.json"), &ix); err != nil {
		return nil, err
	}
	out := make(map[string]image)
	for _, d := range ix.Manifests {
		if !d.Digest.Valid() {
			return nil, fmt.Errorf("%w: digest in index.json", release.ErrFormat)
		}
		var im image
		if err := readJSON(l.blobPath(d.Digest), &im); err != nil {
			return nil, err
		}
		out[im.ArtifactType] = im
	}
	return out, nil
}

// sweep removes the blobs that nothing names any more, after the index says so.
func (l *layout) sweep() error {
	var ix index
	if err := readJSON(filepath.Join(l.path, "index.json"), &ix); err != nil {
		return err
	}
	used := make(map[string]bool)
	for _, d := range ix.Manifests {
		used[d.Digest.Hex()] = true
	}
	images, err := l.read()
	if err != nil {
		return err
	}
	for _, im := range images {
		for _, d := range append(im.Layers, im.Config) {
			used[d.Digest.Hex()] = true
		}
	}
	entries, err := os.ReadDir(filepath.Join(l.path, "blobs", "sha256"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !used[e.Name()] {
			if err := os.Remove(filepath.Join(l.path, "blobs", "sha256", e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// hasher computes digest and tree of what is written to it.
type hasher struct {
	all, leaf hash.Hash
	size      int64
	leaves    []byte
}

func newHasher() *hasher { return &hasher{all: sha256.New(), leaf: sha256.New()} }

func (h *hasher) Write(p []byte) (int, error) {
	n := len(p)
	h.all.Write(p)
	for len(p) > 0 {
		part := min(len(p), int(manifest.LeafSize-h.size%manifest.LeafSize))
		h.leaf.Write(p[:part])
		h.size += int64(part)
		p = p[part:]
		if h.size%manifest.LeafSize == 0 {
			h.leaves = h.leaf.Sum(h.leaves)
			h.leaf.Reset()
		}
	}
	return n, nil
}

// tree is the content of the tree blob; nil where there is none.
func (h *hasher) tree() []byte {
	if h.size <= manifest.LeafSize {
		return nil
	}
	if h.size%manifest.LeafSize == 0 {
		return h.leaves
	}
	return h.leaf.Sum(slices.Clone(h.leaves))
}

func (h *hasher) content() manifest.Content {
	c := manifest.Content{Digest: manifest.DigestFromSum([32]byte(h.all.Sum(nil))), Size: h.size}
	if t := h.tree(); t != nil {
		c.Tree = manifest.DigestOf(t)
	}
	return c
}

// copyAll is io.Copy that can be cancelled and tells how far it is.
func copyAll(ctx context.Context, w io.Writer, r io.Reader, progress func(done int64)) error {
	buf := make([]byte, 1<<20)
	for done := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		done += int64(n)
		progress(done)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
