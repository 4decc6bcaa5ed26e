package mkdelta

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// plan is what is found out once about a pair of images, before their frames are made.
// It is not changed afterwards.
type plan struct {
	old   []byte
	fresh []byte // the new image; nil if memory is too tight for matches within it
	ix    *index // of old
	again *index // of fresh

	oldFiles, newFiles files.System
	oldAt, newAt       []region
	pairs              []pairing

	noSpace1 bool // no matches within the new image
}

// newPlan indexes the masks of two images and pairs their files.
func newPlan(ctx context.Context, old, fresh picture, r room) (*plan, error) {
	p := &plan{old: old.mask, oldFiles: old.files, newFiles: fresh.files, noSpace1: !r.both}
	var work sync.WaitGroup
	var bad, bad2 error
	work.Go(func() { p.ix, bad = newIndex(p.old, r.step) })
	if r.both {
		p.fresh = fresh.mask
		work.Go(func() { p.again, bad2 = newIndex(p.fresh, r.step) })
	}
	p.oldAt, p.newAt = regions(p.oldFiles), regions(p.newFiles)
	work.Wait()
	if err := errors.Join(bad, bad2, ctx.Err()); err != nil {
		p.close()
		return nil, err
	}
	p.pairs = pairFiles(p.oldFiles, p.newFiles, func(f files.File) int { return p.vote(bytes.NewReader(fresh.mask), f) })
	return p, nil
}

// close gives the indexes back. What is left knows no matches any more.
func (p *plan) close() {
	p.ix.close()
	p.again.close()
	p.ix, p.again = nil, nil
}

// room is what the memory allows.
type room struct {
	step  int  // of the indexes
	both  bool // the new image is indexed too
	masks bool // executables are masked
}

// planRoom chooses the most useful that fits the memory. Both images are held in it.
func planRoom(old, fresh int64, o Options) (room, error) {
	if step, err := indexStep(old+fresh, old+fresh, o); err == nil && step <= 64 {
		return room{step, true, true}, nil
	}
	if step, err := indexStep(old, old+2*fresh, o); err == nil && step <= 64 {
		return room{step, false, true}, nil
	}
	step, err := indexStep(old, fresh, o)
	return room{step, false, false}, err
}

// vote returns the old file that most samples of a new one are found in, or -1.
func (p *plan) vote(target io.ReaderAt, f files.File) int {
	const (
		samples = 64
		least   = 3 // samples that have to agree
	)
	if f.Size < 256 || len(f.Extents) == 0 {
		return -1
	}
	votes := map[int]int{}
	best := -1
	b := make([]byte, 2*window+p.ix.step)
	for i := range int64(samples) {
		at := f.Size * i / samples
		var e files.Extent
		for _, e = range f.Extents {
			if at < e.Logical+e.Size {
				break
			}
		}
		if e.Codec != files.Stored || at < e.Logical || at+int64(len(b)) > e.Logical+e.Size {
			continue
		}
		if n, _ := target.ReadAt(b, e.Offset+at-e.Logical); n != len(b) {
			continue
		}
		for k := 0; k+window <= len(b); k++ {
			block := p.ix.head[hash(b[k:k+window])>>(64-p.ix.bits)]
			if block == none {
				continue
			}
			from := int64(block) * int64(p.ix.step)
			if common(b[k:], p.old[from:]) < window {
				continue
			}
			if r := regionAt(p.oldAt, from); r < len(p.oldAt) && p.oldAt[r].start <= from {
				file := p.oldAt[r].file
				if votes[file]++; votes[file] >= least && (best < 0 || votes[file] > votes[best]) {
					best = file
				}
			}
			break
		}
	}
	return best
}
