package updater

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// leaves returns the list of leaf digests of an image: what an installation fetched before,
// else what the running slot says by the help of a short blob, else the list itself. Whatever
// says it, the list is checked against its signed digest.
func (u *Updater) leaves(ctx context.Context, src Source, img manifest.Image) ([]byte, error) {
	if list := u.lists[img.Tree]; list != nil {
		return list, nil
	}
	list, err := u.leavesOfBase(ctx, src, img)
	if err == nil && list == nil {
		list, err = u.tree(ctx, src, img.Content)
	}
	if err == nil && img.Tree != "" && u.lists != nil {
		u.lists[img.Tree] = list
	}
	return list, err
}

// leavesOfBase makes the list from what runs, and returns none where there is no blob for
// that, or where the slot does not hold what it should: then the list costs its download, and
// whether the image does is for the delta to find out.
func (u *Updater) leavesOfBase(ctx context.Context, src Source, img manifest.Image) ([]byte, error) {
	var blob manifest.Content
	var base *manifest.Image
	for _, p := range img.Payloads {
		if base = u.base(img, p.Base); base != nil && p.Leaves.Size > 0 && p.Leaves.Size < img.TreeSize() {
			blob = p.Leaves
			break
		}
	}
	if blob.Size == 0 {
		return nil, nil
	}
	step := u.watch("hashing "+base.Name, stepTime)
	defer step.done()
	r, err := u.blob(ctx, src, blob, step)
	if err != nil {
		return nil, err
	}
	data := make([]byte, blob.Size)
	if _, err := r.ReadAt(data, 0); err != nil && err != io.EOF {
		return nil, err
	}
	d, err := u.p.Slots.Read(u.running.Slot, img.Target)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	u.meter.start(u, "hashing", fmt.Sprintf("%s in slot %s", base.Name, u.running.Slot), img.Size, 0)
	done := int64(0)
	list, err := leaves.List(data, img.Size, leaves.Image{ReaderAt: d, Size: base.Size}, func() error {
		step.progress()
		u.meter.advance(done, partition.Counters{})
		done += manifest.LeafSize
		return context.Cause(ctx)
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err == nil && manifest.DigestOf(list) != img.Tree {
		err = errors.New("they are not those of its manifest")
	}
	if err != nil {
		u.event("damaged", fmt.Sprintf("leaves of %s in slot %s: %v", base.Name, u.running.Slot, err))
		return nil, nil
	}
	return list, nil
}
