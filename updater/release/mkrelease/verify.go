package mkrelease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
)

// VerifyOptions say what to hold a release against.
type VerifyOptions struct {
	Keys     *trust.KeySet // release keys; nil leaves the signatures unchecked
	Root     []byte        // TUF root; nil leaves the metadata unchecked
	Now      time.Time     // for the expiry of the metadata
	Bases    []string      // releases to rebuild deltas from
	Quick    bool          // blobs are hashed but not decoded
	Progress Progress
}

// Verified says what Verify found good.
type Verified struct {
	Manifest  manifest.Manifest `json:"manifest"`
	Digest    manifest.Digest   `json:"digest"`
	Signature bool              `json:"signature"` // the manifest is signed by enough release keys
	Offered   bool              `json:"offered"`   // the TUF metadata offers it
	Blobs     int               `json:"blobs"`     // whose hashes were compared
	Rebuilt   []string          `json:"rebuilt"`   // payloads that were decoded to their image
	Absent    []string          `json:"absent"`    // payloads that the release does not carry
}

// Verify does at the desk what a device will do, and more: every blob is
// hashed, every payload decoded and compared with its image. Errors wrap those
// of package trust, ErrDamaged or what the file system says.
func Verify(ctx context.Context, path string, o VerifyOptions) (Verified, error) {
	v, err := verify(ctx, path, o)
	if err != nil {
		return v, fmt.Errorf("verify release %s: %w", path, err)
	}
	return v, nil
}

func verify(ctx context.Context, path string, o VerifyOptions) (v Verified, err error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	r, err := release.Open(path)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if v.Manifest, v.Digest, _, err = Read(r); err != nil {
		return v, err
	}
	if err := v.authentic(ctx, r, o); err != nil {
		return v, err
	}
	for _, im := range v.Manifest.Images {
		if err := v.blob(ctx, r, im.Name, manifest.Content{Digest: im.Tree, Size: im.TreeSize()}, o); err != nil {
			return v, err
		}
		for _, p := range im.Payloads {
			if _, ok := r.Size(p.Blob.Digest); !ok {
				v.Absent = append(v.Absent, im.Name+" "+p.Kind)
				continue
			}
			for _, c := range []manifest.Content{p.Blob, p.Leaves} {
				if err := v.blob(ctx, r, im.Name+" "+p.Kind, c, o); err != nil {
					return v, err
				}
			}
		}
	}
	if d := v.Manifest.Provenance.SBOM; d != "" {
		if size, ok := r.Size(d); ok {
			if err := v.blob(ctx, r, "SBOM", manifest.Content{Digest: d, Size: size}, o); err != nil {
				return v, err
			}
		}
	}
	if o.Quick {
		return v, nil
	}
	return v, v.decode(ctx, r, o)
}

// authentic checks who signed.
func (v *Verified) authentic(ctx context.Context, r *release.Release, o VerifyOptions) error {
	env, err := r.Manifest(ctx)
	if err != nil {
		return err
	}
	if o.Keys != nil {
		if _, err := trust.Verify(env, manifest.PayloadType, *o.Keys); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		v.Signature = true
	}
	if o.Root == nil {
		return nil
	}
	client, err := trust.Open(nothing{}, o.Root)
	if err != nil {
		return err
	}
	if err := client.Update(ctx, r, trust.Options{Now: o.Now}); err != nil {
		return err
	}
	info, err := client.Target(v.Manifest.TargetName())
	if err != nil {
		return err
	}
	if err := info.Check(env); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	v.Offered = true
	return nil
}

// nothing is a store that remembers nothing: each check stands alone.
type nothing struct{}

func (nothing) Get(string) ([]byte, error) { return nil, fs.ErrNotExist }
func (nothing) Put(string, []byte) error   { return nil }
func (nothing) Delete(string) error        { return nil }

// blob hashes one blob, and its tree where it has one.
func (v *Verified) blob(ctx context.Context, r *release.Release, name string, c manifest.Content, o VerifyOptions) error {
	if c.Digest == "" {
		return nil
	}
	sum := newHasher()
	in := io.NewSectionReader(source{ctx, r, c.Digest}, 0, c.Size)
	if err := copyAll(ctx, sum, in, func(done int64) { o.Progress("hash "+name, done, c.Size) }); err != nil {
		return fmt.Errorf("%w: %s, blob %s: %w", ErrDamaged, name, c.Digest, err)
	}
	got := sum.content()
	if got.Digest != c.Digest || got.Size != c.Size {
		return fmt.Errorf("%w: %s, blob %s is %s with %d bytes", ErrDamaged, name, c.Digest, got.Digest, got.Size)
	}
	v.Blobs++
	if c.Tree == "" {
		return nil
	}
	if got.Tree != c.Tree {
		return fmt.Errorf("%w: %s, the hash tree of blob %s is %s, the manifest says %s", ErrDamaged, name, c.Digest, got.Tree, c.Tree)
	}
	return v.blob(ctx, r, name, manifest.Content{Digest: c.Tree, Size: c.TreeSize()}, o)
}

// decode rebuilds every image from every payload for which there is a base.
func (v *Verified) decode(ctx context.Context, r *release.Release, o VerifyOptions) (err error) {
	var bases []*base
	tmp, err := os.MkdirTemp("", "tandem-verify-")
	if err != nil {
		return err
	}
	defer func() {
		for _, b := range bases {
			for _, f := range b.images {
				err = errors.Join(err, f.Close())
			}
			err = errors.Join(err, b.Close())
		}
		err = errors.Join(err, os.RemoveAll(tmp))
	}()
	for _, path := range o.Bases {
		b, err := openBase(path)
		if err != nil {
			return err
		}
		bases = append(bases, b)
	}
	for _, im := range v.Manifest.Images {
		for _, p := range im.Payloads {
			if _, ok := r.Size(p.Blob.Digest); !ok {
				continue
			}
			var old io.ReaderAt
			switch p.Kind {
			case manifest.KindFull, manifest.KindIndex:
			case manifest.KindDelta:
				f, err := findBase(ctx, bases, p.Base, tmp, o.Progress)
				if err != nil {
					return err
				}
				if f == nil {
					continue
				}
				old = f
				info, err := f.Stat()
				if err != nil {
					return err
				}
				if err := leavesOf(ctx, r, im, p, leaves.Image{ReaderAt: f, Size: info.Size()}); err != nil {
					return err
				}
			default:
				continue
			}
			step := "rebuild " + im.Name + " from " + p.Kind
			out, err := frames.Temporary(tmp, "image-")
			if err != nil {
				return err
			}
			err = Rebuild(ctx, r, im, p, old, out, func(done int64) { o.Progress(step, done, im.Size) })
			if err = errors.Join(err, out.Close()); err != nil {
				return fmt.Errorf("%s: %w", step, err)
			}
			v.Rebuilt = append(v.Rebuilt, im.Name+" "+p.Kind)
		}
	}
	return nil
}

func findBase(ctx context.Context, bases []*base, d manifest.Digest, tmp string, progress Progress) (*os.File, error) {
	for _, b := range bases {
		for _, im := range b.m.Images {
			if im.Digest == d {
				return b.rebuild(ctx, im, tmp, progress)
			}
		}
	}
	return nil, nil
}
