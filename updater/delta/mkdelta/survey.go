package mkdelta

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime/debug"
	"sort"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/elfplan"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
	"github.com/tandem-ota/tandem/updater/delta/predict"
)

// survey is what is known of two images before frames are made. The zero value knows
// of no old image. It is not changed afterwards.
type survey struct {
	base   picture
	fresh  picture
	digest [sha256.Size]byte // of the old image

	plan     *plan            // nil: there is no old image
	old, new []packed         // compressed data, in the order of the image
	moves    *elfplan.Planner // nil: nothing to predict

	maps predict.Maps // that its plans have in common; each worker has its own copy

	executable map[int]elfplan.File // of the old image, by file
	byName     map[string]int       // the files that these are, by path without versions
	pairs      []elfplan.Pair
	addresses  int64 // given to unpacked content

	freshByName map[string]int // files of the new image
	members     []member       // by address
	spool       *spool         // plain forms of the new pieces
	arena       arena          // executables in unpacked content

	packed  *filing          // what the file system packs in the old image; nil: nothing
	anchors map[uint64]int32 // of its units
	scratch []*scratch       // what the units of both images unpack to
}

func newSurvey(ctx context.Context, base, target Image, o Options) (_ *survey, err error) {
	r, err := planRoom(base.Size, target.Size, o)
	if err != nil {
		return nil, err
	}
	s := &survey{}
	defer func() {
		if err != nil {
			s.close() // nobody else can
		}
	}()
	if s.base, err = newPicture(base, o.OldFiles); err != nil {
		return nil, fmt.Errorf("read old image: %w", err)
	}
	if s.fresh, err = newPicture(target, o.NewFiles); err != nil {
		return nil, fmt.Errorf("read new image: %w", err)
	}
	s.digest = sha256.Sum256(s.base.mask) // nothing is concealed yet
	if r.masks {
		s.executables()
	}
	if err := s.pieces(ctx, o, r.masks); err != nil {
		return nil, err
	}
	// What was unpacked is in the spool now, and the indexes need the room.
	debug.FreeOSMemory()
	if len(s.pairs) > 0 {
		s.moves = elfplan.New(s.pairs)
		if b := s.moves.Common(); b != nil {
			if err := s.maps.Parse(b); err != nil {
				return nil, fmt.Errorf("own prediction: %w", err)
			}
		}
	}
	s.plan, err = newPlan(ctx, s.base, s.fresh, r)
	return s, err
}

// executables pairs those that were built again, and conceals them in both images. One that is the
// same in both has nothing to predict, and is found by its bytes.
func (s *survey) executables() {
	s.executable, s.byName, s.freshByName = map[int]elfplan.File{}, map[string]int{}, map[string]int{}
	for i, f := range s.fresh.files.Files {
		s.freshByName[rootless(f.Path)] = i
	}
	var pairs []pairing
	changed := map[int]bool{} // old files
	for _, p := range pairFiles(s.base.files, s.fresh.files, func(files.File) int { return -1 }) {
		if p.Old < 0 {
			continue
		}
		old, fresh := s.base.files.Files[p.Old], s.fresh.files.Files[p.New]
		if s.base.executable(old) && s.fresh.executable(fresh) {
			pairs = append(pairs, p)
			changed[p.Old] = changed[p.Old] || !s.base.same(old, &s.fresh, fresh)
		}
	}
	for _, p := range pairs {
		if !changed[p.Old] {
			continue
		}
		old, ok := s.executable[p.Old]
		if !ok {
			f := s.base.files.Files[p.Old]
			if old, ok = s.base.conceal(f); !ok {
				continue
			}
			s.executable[p.Old] = old
			if _, known := s.byName[rootless(f.Path)]; !known {
				s.byName[rootless(f.Path)] = p.Old
			}
		}
		if fresh, ok := s.fresh.conceal(s.fresh.files.Files[p.New]); ok {
			s.pairs = append(s.pairs, elfplan.Pair{Old: old, New: fresh})
		}
	}
}

// common makes the part of the patch that its frames have in common, and notes what it unpacks to.
func (s *survey) common(o Options, body *int64) ([]byte, error) {
	if s.moves == nil || s.moves.Common() == nil {
		return nil, nil
	}
	e, err := newCompressor(o)
	if err != nil {
		return nil, err
	}
	w := &worker{compress: e}
	n := 0
	b := w.stream(nil, s.moves.Common(), &n)
	*body = max(*body, int64(n))
	if len(b) > delta.MaxCommon {
		return nil, fmt.Errorf("common part of %d bytes: %w", len(b), delta.ErrLimit)
	}
	return b, nil
}

func (s *survey) close() {
	if s.spool != nil {
		s.spool.Close()
	}
	if s.plan != nil {
		s.plan.close()
	}
	s.base.close()
	s.fresh.close()
	s.arena.close()
	for _, r := range s.scratch {
		r.close()
	}
}

// between returns the pieces of the new image that have bytes in [from, to).
func (s *survey) between(from, to int64) []*packed {
	var all []*packed
	for i := sort.Search(len(s.new), func(i int) bool { return s.new[i].end() > from }); i < len(s.new) && s.new[i].at < to; i++ {
		all = append(all, &s.new[i])
	}
	return all
}
