// Package release reads a release from a folder or from a single tar file.
//
// Both hold an OCI image layout (FORMAT.md): blobs under the names of their
// digests, one image manifest that lists the release's blobs as layers, and one
// beside it that lists TUF metadata. Offsets and sizes are in bytes.
//
// A release on a stick is in the hands of whoever holds the stick, during the
// installation too. Files are therefore opened once and read through that one
// descriptor; the small ones are read, checked against their digest and kept in
// memory; ranges of the large ones are returned unchecked, for the caller to
// check in its own memory before use. Links, devices and names that leave the
// folder are refused. What is signed by whom is the business of package trust.
package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/strictjson"
)

// Media types, see FORMAT.md.
const (
	ArtifactType = "application/vnd.tandem.release.v1"
	TUFType      = "application/vnd.tandem.tuf.v1"

	EnvelopeMedia = "application/vnd.tandem.manifest.v1.dsse+json"
	PayloadMedia  = "application/vnd.tandem.payload.v1"
	TreeMedia     = "application/vnd.tandem.tree.v1"
	SBOMMedia     = "application/vnd.tandem.sbom.v1"
	MetadataMedia = "application/vnd.tandem.tuf.metadata.v1+json"

	// TitleKey is the annotation with the file name of a layer.
	TitleKey = "org.opencontainers.image.title"
)

// ErrFormat means that the files are not a release, or a damaged one.
var ErrFormat = errors.New("not a release")

// ErrUnsafe means that a release contains what none contains that was made
// honestly: links, devices, names outside its folder.
var ErrUnsafe = errors.New("unsafe file in release")

const (
	maxIndex   = 1 << 20
	maxEntries = 4096
)

// container is where files of a layout are found by name, with "/" between the
// parts. open returns fs.ErrNotExist for what is not there.
type container interface {
	open(name string) (section, error)
	Close() error
}

// section is an open file: one descriptor, whatever happens to its name.
type section struct {
	io.ReaderAt
	size int64
}

// Release is an open release. It is safe for concurrent use.
type Release struct {
	files    container
	envelope []byte
	blobs    map[manifest.Digest]section
	metadata map[string][]byte
}

// descriptor is an OCI content descriptor.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      manifest.Digest   `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
}

// image is an OCI image manifest.
type image struct {
	ArtifactType string       `json:"artifactType"`
	Layers       []descriptor `json:"layers"`
}

// Open opens the release in a folder or in a tar file. Nothing is trusted yet.
// Errors wrap ErrFormat, ErrUnsafe or what the file system says.
func Open(path string) (*Release, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open release: %w", err)
	}
	var files container
	if info.IsDir() {
		files, err = openDir(path)
	} else {
		files, err = openTar(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open release %s: %w", path, err)
	}
	r := &Release{files: files, blobs: make(map[manifest.Digest]section), metadata: make(map[string][]byte)}
	if err := r.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open release %s: %w", path, err), files.Close())
	}
	return r, nil
}

// Close closes all files; ranges can no longer be read.
func (r *Release) Close() error { return r.files.Close() }

func decode(data []byte, v any) error {
	if err := strictjson.Decode(data, strictjson.Rules{Size: maxIndex, Depth: 16}, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// small reads a whole file that must be at most limit long.
func (r *Release) small(name string, limit int64) ([]byte, error) {
	s, err := r.files.open(name)
	if err != nil {
		return nil, err
	}
	if s.size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrFormat, name, s.size, limit)
	}
	data := make([]byte, s.size)
	if n, err := s.ReadAt(data, 0); n < len(data) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// blob reads a whole blob and checks it.
func (r *Release) blob(d descriptor, limit int64) ([]byte, error) {
	if !d.Digest.Valid() {
		return nil, fmt.Errorf("%w: %.80q is not a SHA-256 digest", ErrFormat, d.Digest)
	}
	data, err := r.small(blobName(d.Digest), limit)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != d.Size || manifest.DigestOf(data) != d.Digest {
		return nil, fmt.Errorf("%w: blob %s is not what its name says", ErrFormat, d.Digest)
	}
	return data, nil
}

func blobName(d manifest.Digest) string { return "blobs/sha256/" + d.Hex() }

// load finds the two artifacts. Tools that copy layouts drop annotations and
// artifact types from index.json, so that only the manifests themselves count.
func (r *Release) load() error {
	data, err := r.small("index.json", maxIndex)
	if err != nil {
		return err
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := decode(data, &index); err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) > 16 {
		return fmt.Errorf("%w: index.json lists over 16 manifests", ErrFormat)
	}
	seen := make(map[string]bool)
	for _, d := range index.Manifests {
		data, err := r.blob(d, maxIndex)
		if err != nil {
			return err
		}
		var im image
		if err := decode(data, &im); err != nil {
			return err
		}
		if im.ArtifactType != ArtifactType && im.ArtifactType != TUFType {
			continue // somebody's image beside ours
		}
		if seen[im.ArtifactType] {
			return fmt.Errorf("%w: there are two artifacts of type %s", ErrFormat, im.ArtifactType)
		}
		seen[im.ArtifactType] = true
		if len(im.Layers) > maxEntries {
			return fmt.Errorf("%w: over %d layers", ErrFormat, maxEntries)
		}
		if im.ArtifactType == TUFType {
			err = r.loadMetadata(im)
		} else {
			err = r.loadRelease(im)
		}
		if err != nil {
			return err
		}
	}
	if !seen[ArtifactType] {
		return fmt.Errorf("%w: index.json lists no artifact of type %s", ErrFormat, ArtifactType)
	}
	return nil
}

func (r *Release) loadRelease(im image) error {
	for _, d := range im.Layers {
		if d.MediaType == EnvelopeMedia {
			if r.envelope != nil {
				return fmt.Errorf("%w: two manifests", ErrFormat)
			}
			data, err := r.blob(d, trust.MaxEnvelope)
			if err != nil {
				return err
			}
			r.envelope = data
			continue
		}
		if !d.Digest.Valid() {
			return fmt.Errorf("%w: %.80q is not a SHA-256 digest", ErrFormat, d.Digest)
		}
		if _, ok := r.blobs[d.Digest]; ok {
			continue // two images may share a payload or a tree
		}
		s, err := r.files.open(blobName(d.Digest))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a stick may carry the one payload that its device needs
		}
		if err != nil {
			return err
		}
		if s.size != d.Size {
			return fmt.Errorf("%w: blob %s has %d bytes, not %d", ErrFormat, d.Digest, s.size, d.Size)
		}
		r.blobs[d.Digest] = s
	}
	if r.envelope == nil {
		return fmt.Errorf("%w: no layer of type %s", ErrFormat, EnvelopeMedia)
	}
	return nil
}

func (r *Release) loadMetadata(im image) error {
	for _, d := range im.Layers {
		name := d.Annotations[TitleKey]
		if d.MediaType != MetadataMedia || name == "" {
			continue
		}
		if _, ok := r.metadata[name]; ok {
			return fmt.Errorf("%w: metadata %.80q is there twice", ErrFormat, name)
		}
		data, err := r.blob(d, trust.MaxMetadata)
		if err != nil {
			return err
		}
		r.metadata[name] = data
	}
	return nil
}

// Manifest returns the DSSE envelope with the manifest: the same bytes each
// time, read once when the release was opened.
func (r *Release) Manifest(context.Context) ([]byte, error) { return slices.Clone(r.envelope), nil }

// Metadata returns a file of TUF metadata by its name, as "2.root.json";
// fs.ErrNotExist when the release does not carry it.
func (r *Release) Metadata(_ context.Context, name string) ([]byte, error) {
	data, ok := r.metadata[name]
	if !ok {
		return nil, fmt.Errorf("metadata %q: %w", name, fs.ErrNotExist)
	}
	return slices.Clone(data), nil
}

// MetadataNames lists the TUF metadata that the release carries, sorted.
func (r *Release) MetadataNames() []string {
	names := make([]string, 0, len(r.metadata))
	for name := range r.metadata {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ReadRange reads bytes of a blob at an offset, as io.ReaderAt does;
// fs.ErrNotExist when the release does not carry the blob. The bytes are
// unchecked, and may differ when they are read again.
func (r *Release) ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s, ok := r.blobs[blob]
	if !ok {
		return 0, fmt.Errorf("blob %.80q: %w", blob, fs.ErrNotExist)
	}
	return s.ReadAt(p, off)
}

// Size returns the size of a blob, and whether the release carries it.
func (r *Release) Size(blob manifest.Digest) (int64, bool) {
	s, ok := r.blobs[blob]
	return s.size, ok
}

// Blobs lists the digests of all blobs that the release carries, sorted: what a
// server of it must be able to serve.
func (r *Release) Blobs() []manifest.Digest {
	out := make([]manifest.Digest, 0, len(r.blobs))
	for d := range r.blobs {
		out = append(out, d)
	}
	slices.Sort(out)
	return out
}
