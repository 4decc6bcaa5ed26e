package mkdelta

import (
	"context"
	"fmt"
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

// newPlan indexes the images and pairs their files.
func newPlan(ctx context.Context, old []byte, target Image, o Options) (*plan, error) {
	step, both, err := planSteps(int64(len(old)), target.Size, o)
	if err != nil {
		return nil, err
	}
	p := &plan{old: old, noSpace1: !both}
	var work sync.WaitGroup
	work.Go(func() { p.ix = newIndex(old, step) })
	var readErr error
	if both {
		p.fresh = make([]byte, target.Size)
		if n, err := target.ReadAt(p.fresh, 0); n != len(p.fresh) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			readErr = fmt.Errorf("read new image: %w", err)
		} else {
			work.Go(func() { p.again = newIndex(p.fresh, step) })
		}
	}
	// An image that nobody can list has no files: the index finds what it finds.
	p.oldFiles, _ = files.List(asReader(old), int64(len(old)))
	p.newFiles, _ = files.List(target, target.Size)
	p.oldAt, p.newAt = regions(p.oldFiles), regions(p.newFiles)
	work.Wait()
	if readErr != nil {
		return nil, readErr
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.pairs = pairFiles(p.oldFiles, p.newFiles, func(f files.File) int { return p.vote(target, f) })
	return p, nil
}

// planSteps chooses the finest indexes that fit the memory, and whether the
// new image is indexed too.
func planSteps(old, fresh int64, o Options) (step int, both bool, err error) {
	if step, err = indexStep(old+fresh, o); err == nil && step <= 64 {
		return step, true, nil
	}
	step, err = indexStep(old, o)
	return step, false, err
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

type asReader []byte

func (b asReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
