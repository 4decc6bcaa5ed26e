package mkrelease

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
)

// source reads a blob of a release as a file.
type source struct {
	ctx context.Context
	r   *release.Release
	d   manifest.Digest
}

func (s source) ReadAt(p []byte, off int64) (int, error) { return s.r.ReadRange(s.ctx, s.d, off, p) }

// Rebuild decodes a payload of an image and writes the image, which it checks
// against its digest and its hash tree. old is the base of a delta, nil otherwise; out is empty.
func Rebuild(ctx context.Context, r *release.Release, im manifest.Image, p manifest.Payload, old io.ReaderAt, out *os.File, progress func(done int64)) error {
	blob := source{ctx, r, p.Blob.Digest}
	sum := newHasher()
	add := func(dst []byte, done int64) error {
		if _, err := io.MultiWriter(sum, out).Write(dst); err != nil {
			return err
		}
		progress(done)
		return nil
	}
	var err error
	if p.Kind == manifest.KindIndex {
		err = rebuildIndex(blob, im, p, out, add)
	} else {
		err = rebuildDelta(blob, im, p, old, out, add)
	}
	if err != nil {
		return err
	}
	got := sum.content()
	if got.Digest != im.Digest || got.Size != im.Size {
		return fmt.Errorf("%w: image %s becomes %s, not %s", ErrDamaged, im.Name, got.Digest, im.Digest)
	}
	if got.Tree != im.Tree {
		return fmt.Errorf("%w: the hash tree of image %s is %s, the manifest says %s", ErrDamaged, im.Name, got.Tree, im.Tree)
	}
	return nil
}

// budget is what decoding at the desk may take, in bytes.
const budget = 1 << 30

func rebuildDelta(blob source, im manifest.Image, p manifest.Payload, old io.ReaderAt, out *os.File, add func([]byte, int64) error) error {
	patch, err := delta.Open(blob, p.Blob.Size, delta.Limits{Memory: budget, Size: im.Size})
	if err != nil {
		return err
	}
	for i := range patch.Frames() {
		frame := patch.Frame(i)
		in, dst := make([]byte, frame.BlobLength), make([]byte, frame.Length)
		if n, err := blob.ReadAt(in, frame.Blob); n < len(in) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err := patch.Decode(i, in, delta.Sources{Old: old, New: out}, dst); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err := add(dst, frame.Target+frame.Length); err != nil {
			return err
		}
	}
	return nil
}

// rebuildIndex does it as a device that has nothing: every unit is decoded.
func rebuildIndex(blob source, im manifest.Image, p manifest.Payload, out *os.File, add func([]byte, int64) error) error {
	x, err := blocks.Open(blob, p.Blob.Size, blocks.Limits{Memory: budget, Size: im.Size})
	if err != nil {
		return err
	}
	for i := range x.Frames() {
		target, length := x.Frame(i)
		dst := make([]byte, length)
		if err := x.Build(i, blocks.Sources{Blob: blob, Done: out}, dst); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err := add(dst, target+length); err != nil {
			return err
		}
	}
	return nil
}
