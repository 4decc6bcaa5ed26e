package mkdelta

import (
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// spent is a stretch of a frame and what it weighs among the others.
type spent struct {
	at, length int
	weight     float64
}

// What an operation weighs besides its bytes: a jump writes a length and a displacement,
// and a difference a length on either side.
const (
	weighJump   = 3
	weighDiffer = 1
)

// spending tells what the stretches of the frame that was just made cost. Streams of a
// frame are compressed as wholes, so the shares within it are an estimate: literals weigh what
// they compress to alone, differences what they are long.
func (w *worker) spending(windows []stretch) []spent {
	var all []spent
	for _, h := range windows {
		sum, from := 0.0, len(all)
		add := func(start, end int, weight float64) {
			if start < end {
				sum += weight
				all = append(all, spent{start, end - start, weight})
			}
		}
		literal := func(start, end int) {
			if n := end - start; n > 0 {
				add(start, end, float64(min(n, len(w.account.EncodeAll(w.plain[start:end], nil)))))
			}
		}
		done := h.start
		for _, s := range h.segments {
			literal(done, s.start)
			done = s.end
			if s.zero {
				continue
			}
			add(s.start, s.end, weighJump)
			w.runs(w.plain[s.start:s.end], w.base[s.start:s.end], func(equal bool, a, b int) {
				if !equal {
					add(s.start+a, s.start+b, weighDiffer+float64(b-a))
				}
			})
		}
		literal(done, h.end)
		if len(h.plan) > 0 {
			// A plan is there for the code that is copied.
			n := 0
			for _, s := range h.segments {
				if !s.zero && s.space == delta.SpaceOld {
					n += s.end - s.start
				}
			}
			for _, s := range h.segments {
				if !s.zero && s.space == delta.SpaceOld {
					add(s.start, s.end, float64(len(h.plan))*float64(s.end-s.start)/float64(n))
				}
			}
		}
		if h.piece != nil {
			// What a piece of compressed data unpacks to has no place of its own.
			all = append(all[:from], spent{h.at, h.take, sum + float64(len(h.piece.pack))})
		}
	}
	return all
}

// tell hands on what the stretches of a frame at offset cost, so that they add up to the frame.
func (f *frame) tell(offset int64, do func(offset, length int64, bytes float64)) {
	sum := 0.0
	for _, s := range f.spent {
		sum += s.weight
	}
	if sum == 0 {
		do(offset, int64(f.length), float64(len(f.packed)))
		return
	}
	for _, s := range f.spent {
		do(offset+int64(s.at), int64(s.length), s.weight/sum*float64(len(f.packed)))
	}
}

// PairFiles returns for each file of the new image the index of the old file that it was made from, by path and
// size, or -1.
func PairFiles(old, fresh files.System) []int {
	out := make([]int, len(fresh.Files))
	for _, p := range pairFiles(old, fresh, func(files.File) int { return -1 }) {
		out[p.New] = p.Old
	}
	return out
}
