package mkrelease

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
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

	full, err := b.payload(im, manifest.Payload{Kind: manifest.KindFull}, "full "+im.Name, func(o mkdelta.Options, w io.Writer) (int64, error) {
		stats, err := mkdelta.MakeFull(ctx, target, o, w)
		return stats.Memory, err
	})
	if err != nil {
		return err
	}
	b.keep(&im, full, "")
	if im.Type == manifest.TypeSlot {
		var index *made
		if !b.o.NoIndex {
			if index, err = b.index(ctx, im, mkblocks.Image{ReaderAt: f, Size: im.Size}); err != nil {
				return err
			}
			b.keep(&im, *index, "")
		}
		if err := b.deltas(ctx, &im, target, full, index); err != nil {
			return err
		}
	}
	b.m.Images = append(b.m.Images, im)
	return nil
}

// index makes the payload for devices that run something else than a base.
func (b *build) index(ctx context.Context, im manifest.Image, target mkblocks.Image) (*made, error) {
	p, err := b.payload(im, manifest.Payload{Kind: manifest.KindIndex}, "index "+im.Name, func(o mkdelta.Options, w io.Writer) (int64, error) {
		stats, err := mkblocks.Make(ctx, target, mkblocks.Options{TempDir: o.TempDir, Progress: o.Progress}, w)
		return stats.Memory, err
	})
	return &p, err
}

// deltas adds a delta from each base. An image that did not change gets one
// too: the spare slot has to be written all the same, and from the running one
// that costs next to no download.
func (b *build) deltas(ctx context.Context, im *manifest.Image, target mkdelta.Image, full made, index *made) error {
	seen := make(map[manifest.Digest]bool)
	for _, base := range b.bases {
		for _, old := range base.m.Images {
			if old.Type != im.Type || old.Target != im.Target || seen[old.Digest] {
				continue
			}
			seen[old.Digest] = true
			f, weighed, err := b.weigh(ctx, im, base, old, target, full, index)
			if err != nil {
				return err
			}
			if f == nil {
				continue
			}
			start := time.Now()
			step := fmt.Sprintf("delta %s from %s", im.Name, base.m.Version)
			p := manifest.Payload{Kind: manifest.KindDelta, Base: old.Digest}
			d, err := b.payload(*im, p, step, func(o mkdelta.Options, w io.Writer) (int64, error) {
				stats, err := mkdelta.Make(ctx, mkdelta.Image{ReaderAt: f, Size: old.Size}, target, o, w)
				return stats.Memory, err
			})
			if err != nil {
				return err
			}
			b.timed(im.Size, time.Since(start))
			d.instead = weighed.Index
			// Now that it is made, only what it holds counts.
			weighed.Delta, weighed.Time = d.Blob.Size, 0
			choice := b.o.Chain.Choose(weighed)
			if why := unclear(d, full, base.m.Version); why != "" {
				choice.Make, choice.Reason = false, why
			}
			b.note(*im, old, base.m.Version, weighed, choice, true)
			if !choice.Make {
				b.report(*im, d, base.m.Version, choice.Reason)
				continue
			}
			if err := b.leaves(ctx, *im, target, leaves.Image{ReaderAt: f, Size: old.Size}, base.m.Version, &d.Payload); err != nil {
				return err
			}
			b.keep(im, d, base.m.Version)
		}
	}
	return nil
}

// clearly is how large a delta may be, in percent of what a device would download without
// it. One that saves less costs the fleet's storage and the desk's time more than it is worth.
const clearly = 90

// unclear says why a delta is not worth it, and what devices will take instead; "" if it is.
func unclear(d, full made, base string) string {
	switch {
	case d.instead > 0 && d.instead < full.Blob.Size && d.Blob.Size*100 > d.instead*clearly:
		return fmt.Sprintf("not clearly smaller than the index payload: devices with %s will take that, and %d bytes of it", base, d.instead)
	case d.Blob.Size*100 > full.Blob.Size*clearly:
		return fmt.Sprintf("not clearly smaller than the full payload: devices with %s will take that, where policy allows", base)
	}
	return ""
}

// download is what a device that runs a base would fetch of an index payload. What its
// spare slot holds may make it less.
func (b *build) download(im manifest.Image, index made, old io.ReaderAt, size int64, version string) (int64, error) {
	f, err := os.Open(index.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	x, err := blocks.Open(f, index.Blob.Size, blocks.Limits{Memory: index.Memory, Size: im.Size})
	if err != nil {
		return 0, err
	}
	step := fmt.Sprintf("compare %s with %s", im.Name, version)
	if err := x.Scan(blocks.Running, old, size, func(done int64) { b.o.Progress(step, done, size) }); err != nil {
		return 0, err
	}
	x.Finished()
	// The index comes in whole leaves, with which it is checked.
	head := (x.IndexSize() + manifest.LeafSize - 1) / manifest.LeafSize * manifest.LeafSize
	return index.Blob.TreeSize() + min(head, index.Blob.Size) + x.Missing(0), nil
}

// made is a payload that waits in the temporary folder to be kept.
type made struct {
	manifest.Payload
	path    string
	sum     *hasher
	instead int64 // of a delta: what its base would have to download of the index payload
}

// payload has a payload made; encode returns the memory that applying it takes.
func (b *build) payload(im manifest.Image, p manifest.Payload, step string, encode func(mkdelta.Options, io.Writer) (int64, error)) (made, error) {
	f, err := os.CreateTemp(b.tmp, "payload-")
	if err != nil {
		return made{}, err
	}
	sum := newHasher()
	memory, err := encode(mkdelta.Options{
		Level: b.o.Level, Memory: b.o.Memory, TempDir: b.tmp,
		Progress: func(done, total int64) { b.o.Progress(step, done, total) },
	}, io.MultiWriter(f, sum))
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return made{}, fmt.Errorf("%s: %w", step, err)
	}
	p.Blob, p.Memory = sum.content(), memory
	b.o.Progress(step, im.Size, im.Size)
	return made{Payload: p, path: f.Name(), sum: sum}, nil
}

// report notes what became of a payload, for people.
func (b *build) report(im manifest.Image, p made, baseVersion, dropped string) {
	b.result.Payloads = append(b.result.Payloads, Payload{
		Image: im.Name, Kind: p.Kind, Base: p.Base, BaseVersion: baseVersion,
		ImageSize: im.Size, Size: p.Blob.Size, Memory: p.Memory, Index: p.instead, Dropped: dropped,
	})
}
