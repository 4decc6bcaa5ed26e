package mkrelease

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkleaves"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
)

// leastSaving is how many bytes of download are worth it that a device reads and hashes its
// old image once more.
const leastSaving = 4 << 10

// leaves adds to a delta the blob that tells the image's leaf digests from the base, where that
// takes much less than their list.
func (b *build) leaves(ctx context.Context, im manifest.Image, target mkdelta.Image, base leaves.Image, version string, p *manifest.Payload) error {
	if im.TreeSize() < leastSaving {
		return nil
	}
	list, err := os.ReadFile(b.out.blobPath(im.Tree))
	if err != nil {
		return err
	}
	blob, err := mkleaves.Make(ctx, base, leaves.Image(target), list)
	if err != nil {
		return fmt.Errorf("leaves of %s from %s: %w", im.Name, version, err)
	}
	if len(list)-len(blob) < max(leastSaving, len(list)/4) {
		return nil
	}
	sum := newHasher()
	sum.Write(blob)
	c, err := b.out.add(blob)
	if err != nil {
		return err
	}
	title := im.Name + ".leaves-from-" + version
	b.layer(release.TreeMedia, title, c)
	p.Leaves = sum.content()
	return b.tree(title+".tree", sum)
}

// leavesOf compares what a leaves blob makes with the image's list.
func leavesOf(ctx context.Context, r *release.Release, im manifest.Image, p manifest.Payload, base leaves.Image) error {
	if p.Leaves.Size == 0 {
		return nil
	}
	if p.Leaves.Size > im.TreeSize() {
		return fmt.Errorf("%w: %s: leaves of %d bytes for a list of %d", ErrDamaged, im.Name, p.Leaves.Size, im.TreeSize())
	}
	blob := make([]byte, p.Leaves.Size)
	if _, err := io.ReadFull(io.NewSectionReader(source{ctx, r, p.Leaves.Digest}, 0, p.Leaves.Size), blob); err != nil {
		return err
	}
	list, err := leaves.List(blob, im.Size, base, ctx.Err)
	if err != nil {
		return fmt.Errorf("%s: %w", im.Name, err)
	}
	if manifest.DigestOf(list) != im.Tree {
		return fmt.Errorf("%w: %s: leaves are told wrongly", ErrDamaged, im.Name)
	}
	return nil
}
