package mkrelease

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// image adds an image with all its payloads to the release. want is what the
// file should be; empty if nobody said.
func (b *build) image(ctx context.Context, im manifest.Image, path string, want manifest.Digest) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	sum := newHasher()
	step := "hash " + im.Name
	if err := copyAll(ctx, sum, f, func(done int64) { b.o.Progress(step, done, info.Size()) }); err != nil {
		return err
	}
	im.Content = sum.content()
	if want != "" && im.Digest != want {
		return fmt.Errorf("%w: %s is %s, slots.json says %s", ErrChanged, path, im.Digest, want)
	}
	if err := b.tree(im.Name+".tree", sum); err != nil {
		return err
	}
	target := mkdelta.Image{ReaderAt: f, Size: im.Size}

	full, err := b.payload(ctx, im, manifest.Payload{Kind: manifest.KindFull}, "full "+im.Name, func(o mkdelta.Options, w io.Writer) (mkdelta.Stats, error) {
		return mkdelta.MakeFull(ctx, target, o, w)
	})
	if err != nil {
		return err
	}
	b.keep(&im, full, "")
	if im.Type == manifest.TypeSlot {
		if err := b.deltas(ctx, &im, target, full); err != nil {
			return err
		}
	}
	b.m.Images = append(b.m.Images, im)
	return nil
}

// deltas adds a delta from each base. An image that did not change gets one
// too: the spare slot has to be written all the same, and from the running one
// that costs next to no download.
func (b *build) deltas(ctx context.Context, im *manifest.Image, target mkdelta.Image, full made) error {
	seen := make(map[manifest.Digest]bool)
	for _, base := range b.bases {
		for _, old := range base.m.Images {
			if old.Type != im.Type || old.Target != im.Target || seen[old.Digest] {
				continue
			}
			seen[old.Digest] = true
			f, weighed, err := b.weigh(ctx, im, base, old, target, full)
			if err != nil {
				return err
			}
			if f == nil {
				continue
			}
			start := time.Now()
			step := fmt.Sprintf("delta %s from %s", im.Name, base.m.Version)
			p := manifest.Payload{Kind: manifest.KindDelta, Base: old.Digest}
			d, err := b.payload(ctx, *im, p, step, func(o mkdelta.Options, w io.Writer) (mkdelta.Stats, error) {
				return mkdelta.Make(ctx, mkdelta.Image{ReaderAt: f, Size: old.Size}, target, o, w)
			})
			if err != nil {
				return err
			}
			b.timed(im.Size, time.Since(start))
			// Now that it is made, only what it holds counts.
			weighed.Delta, weighed.Time = d.Blob.Size, 0
			choice := b.o.Chain.Choose(weighed)
			b.note(*im, old, base.m.Version, weighed, choice, true)
			if !choice.Make {
				b.report(*im, d, base.m.Version, choice.Reason)
				continue
			}
			b.keep(im, d, base.m.Version)
		}
	}
	return nil
}

// made is a payload that waits in the temporary folder to be kept.
type made struct {
	manifest.Payload
	path string
	sum  *hasher
}

func (b *build) payload(_ context.Context, im manifest.Image, p manifest.Payload, step string, encode func(mkdelta.Options, io.Writer) (mkdelta.Stats, error)) (made, error) {
	f, err := os.CreateTemp(b.tmp, "payload-")
	if err != nil {
		return made{}, err
	}
	sum := newHasher()
	stats, err := encode(mkdelta.Options{
		Level: b.o.Level, TempDir: b.tmp,
		Progress: func(done, total int64) { b.o.Progress(step, done, total) },
	}, io.MultiWriter(f, sum))
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return made{}, fmt.Errorf("%s: %w", step, err)
	}
	p.Blob, p.Memory = sum.content(), stats.Memory
	b.o.Progress(step, im.Size, im.Size)
	return made{p, f.Name(), sum}, nil
}

// report notes what became of a payload, for people.
func (b *build) report(im manifest.Image, p made, baseVersion, dropped string) {
	b.result.Payloads = append(b.result.Payloads, Payload{
		Image: im.Name, Kind: p.Kind, Base: p.Base, BaseVersion: baseVersion,
		ImageSize: im.Size, Size: p.Blob.Size, Memory: p.Memory, Dropped: dropped,
	})
}
