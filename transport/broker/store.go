package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Store is a folder with what a block server hands out:
//
//	blobs/sha256/HEX      a blob by its SHA-256
//	manifests/sha256/HEX  the signed envelope of the manifest with that SHA-256
//	meta/NAME             a TUF metadata file
//
// Names come from requests, so nothing outside the folder can be opened, by
// ".." or by a link. Files are replaced by rename, so that a reader has the old
// or the new one.
type Store struct{ root *os.Root }

// OpenStore opens a store, and makes the folder if there is none.
func OpenStore(dir string) (*Store, error) {
	for _, sub := range []string{"blobs/sha256", "manifests/sha256", "meta"} {
		if err := os.MkdirAll(path.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Store{root}, nil
}

// Close closes the folder.
func (s *Store) Close() error { return s.root.Close() }

// open opens the object of a request that was checked.
func (s *Store) open(g transport.Get) (*os.File, int64, error) {
	var name string
	switch {
	case g.Meta != "":
		name = "meta/" + g.Meta
	case g.Manifest != "":
		name = "manifests/sha256/" + manifest.Digest(g.Manifest).Hex()
	default:
		name = "blobs/sha256/" + manifest.Digest(g.Blob).Hex()
	}
	// A link is not there: where it leads may change between two requests.
	if st, err := s.root.Lstat(name); err == nil && !st.Mode().IsRegular() {
		return nil, 0, fs.ErrNotExist
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, 0, errors.Join(err, fs.ErrNotExist)
	}
	return f, st.Size(), nil
}

// Release is what Import copies: a release as package updater/release opens it.
type Release interface {
	Manifest(ctx context.Context) ([]byte, error)
	Metadata(ctx context.Context, name string) ([]byte, error)
	MetadataNames() []string
	Blobs() []manifest.Digest
	Size(blob manifest.Digest) (int64, bool)
	ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error)
}

// Import copies a release into the store and returns the digest of its
// manifest. Each blob is hashed on the way. What is there already is not copied
// again, so that Import can be repeated; the manifest and the metadata come last,
// so that nobody sees a release whose blobs are missing.
func (s *Store) Import(ctx context.Context, r Release) (manifest.Digest, error) {
	for _, d := range r.Blobs() {
		if err := s.importBlob(ctx, r, d); err != nil {
			return "", fmt.Errorf("import %s: %w", d, err)
		}
	}
	envelope, err := r.Manifest(ctx)
	if err != nil {
		return "", fmt.Errorf("import manifest: %w", err)
	}
	digest, err := manifestDigest(envelope)
	if err != nil {
		return "", err
	}
	if err := s.put("manifests/sha256/"+digest.Hex(), envelope); err != nil {
		return "", err
	}
	for _, name := range r.MetadataNames() {
		data, err := r.Metadata(ctx, name)
		if err != nil {
			return "", fmt.Errorf("import metadata %s: %w", name, err)
		}
		if err := s.PutMetadata(name, data); err != nil {
			return "", err
		}
	}
	return digest, nil
}

func manifestDigest(envelope []byte) (manifest.Digest, error) {
	var e struct {
		Payload []byte `json:"payload"`
	}
	if err := json.Unmarshal(envelope, &e); err != nil || len(e.Payload) == 0 {
		return "", fmt.Errorf("manifest is not in an envelope: %w", errors.Join(err, transport.ErrMessage))
	}
	return manifest.DigestOf(e.Payload), nil
}

// PutMetadata writes a metadata file.
func (s *Store) PutMetadata(name string, data []byte) error {
	if err := transport.CheckMetaName(name); err != nil {
		return err
	}
	return s.put("meta/"+name, data)
}

func (s *Store) importBlob(ctx context.Context, r Release, d manifest.Digest) error {
	size, ok := r.Size(d)
	if !ok || !d.Valid() {
		return fs.ErrNotExist
	}
	name := "blobs/sha256/" + d.Hex()
	if st, err := s.root.Stat(name); err == nil && st.Size() == size {
		return nil
	}
	src := io.NewSectionReader(readerAt{ctx, r, d}, 0, size)
	h := sha256.New()
	err := s.write(name, io.TeeReader(src, h), func() error {
		if manifest.DigestFromSum([32]byte(h.Sum(nil))) != d {
			return transport.ErrLeaf
		}
		return nil
	})
	return err
}

type readerAt struct {
	ctx context.Context
	r   Release
	d   manifest.Digest
}

func (a readerAt) ReadAt(p []byte, off int64) (int, error) { return a.r.ReadRange(a.ctx, a.d, off, p) }

func (s *Store) put(name string, data []byte) error {
	err := s.write(name, bytes.NewReader(data), func() error { return nil })
	if err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

// write makes a file under a temporary name, and gives it its name when check
// agrees. A power cut leaves the old file, the new one, or one with ".part".
func (s *Store) write(name string, src io.Reader, check func() error) error {
	tmp := name + ".part"
	f, err := s.root.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, src, make([]byte, 1<<20))
	if err == nil {
		err = check()
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = s.root.Rename(tmp, name)
	}
	if err != nil {
		s.root.Remove(tmp)
	}
	return err
}
