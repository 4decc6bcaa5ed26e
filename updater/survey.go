package updater

import (
	"context"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// survey is the index of a payload held against what the slots hold.
type survey struct {
	index   *blocks.Index
	fetched int64 // bytes of the blob and its tree that this took
	missing int64 // bytes of it that are still to come
}

// survey fetches the index of a payload and looks in both slots for the blocks in it. It
// reads each slot once and writes nothing. Of the image, what lies before from is there.
//
// A slot that cannot be read makes the download larger, and nothing else.
func (u *Updater) survey(ctx context.Context, src Source, p payload, from int64) (*survey, error) {
	step := u.watch("comparing "+p.image.Name, stepTime)
	defer step.done()
	blob, err := u.blob(ctx, src, p.Blob, step)
	if err != nil {
		return nil, err
	}
	// The first leaf says how long the index is. What is behind it must not be read ahead.
	var header [blocks.HeaderSize]byte
	if _, err := blob.ReadAt(header[:], 0); err != nil && err != io.EOF {
		return nil, err
	}
	length := min(roundUp(blocks.Length(header[:])), p.Blob.Size)
	if planner, ok := src.(Planner); ok && length > manifest.LeafSize {
		planner.Plan(p.Blob.Digest, []transport.Range{{manifest.LeafSize, length - manifest.LeafSize}})
	}
	x, err := blocks.Open(blob, p.Blob.Size, blocks.Limits{Memory: u.p.Memory, Size: p.image.Size})
	if err != nil {
		return nil, fmt.Errorf("index payload: %w", err)
	}
	for _, slot := range []bootctl.Slot{u.running.Slot, u.spare()} {
		if err := u.scan(ctx, x, slot, p.image, step); err != nil {
			return nil, err
		}
	}
	x.Finished()
	return &survey{index: x, fetched: p.Blob.TreeSize() + length, missing: x.Missing(x.FrameAt(from))}, nil
}

// roundUp returns n bytes as whole leaves.
func roundUp(n int64) int64 {
	return (n + manifest.LeafSize - 1) / manifest.LeafSize * manifest.LeafSize
}

// scan looks for blocks in one slot.
func (u *Updater) scan(ctx context.Context, x *blocks.Index, slot bootctl.Slot, img manifest.Image, step *step) error {
	d, err := u.p.Slots.Read(slot, img.Target)
	if err != nil {
		return err
	}
	defer d.Close()
	source, size := blocks.Running, int64(0)
	if old := u.inSlot(u.running.Manifest, img.Target); old != nil {
		size = old.Size
	}
	if slot == u.spare() {
		// What it holds has no name any more once it was invalidated. Systems of one product
		// are about as large.
		source, size = blocks.Spare, max(size, img.Size)
		if m, _, _, err := u.p.held(slot); err == nil {
			if old := u.inSlot(m, img.Target); old != nil {
				size = old.Size
			}
		}
	}
	size = min(size, d.Size()-reserve(img.Target))
	u.meter.start(u, "comparing", fmt.Sprintf("%s with slot %s", img.Name, slot), size, 0)
	err = x.Scan(source, interruptible{ctx, d}, size, func(done int64) {
		step.progress()
		u.meter.advance(done, partition.Counters{})
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		u.event("damaged", fmt.Sprintf("%s in slot %s: %v", img.Name, slot, err))
	}
	return nil
}

// interruptible reads until ctx ends.
type interruptible struct {
	ctx context.Context
	r   io.ReaderAt
}

func (i interruptible) ReadAt(p []byte, off int64) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.ReadAt(p, off)
}
