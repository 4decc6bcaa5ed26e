package mkdelta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
}

// picture is an image in memory, and its mask: the same bytes, but with the addresses
// inside executables replaced by a digest of what they point to. Two builds of a program differ
// in their addresses all over and hardly in their masks, so masks are what is
// matched, and the bytes what is compared.
type picture struct {
	bytes, mask []byte
	files       files.System
}

func newPicture(im Image, list *files.System, masks bool) (picture, error) {
	p := picture{bytes: make([]byte, im.Size)}
	if n, err := im.ReadAt(p.bytes, 0); n != len(p.bytes) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return picture{}, err
	}
	// An image that nobody can list has no files: the index finds what it finds.
	if list != nil {
		p.files = *list
	} else {
		p.files, _ = files.List(im, im.Size)
	}
	p.mask = p.bytes
	if masks {
		p.mask = bytes.Clone(p.bytes)
	}
	return p, nil
}

// content returns a file's bytes, and where they lie, if none are packed. Mostly they are
// part of the image's; a scattered file is put together.
func (p *picture) content(f files.File) ([]byte, []elfplan.Extent) {
	var where []elfplan.Extent
	for _, e := range f.Extents {
		if e.Codec != files.Stored {
			return nil, nil
		}
		where = append(where, elfplan.Extent{File: e.Logical, Image: e.Offset, Length: e.Size})
	}
	if len(where) == 1 && where[0].Length == f.Size {
		return p.bytes[where[0].Image:][:f.Size:f.Size], where
	}
	data := make([]byte, f.Size)
	for _, e := range where {
		copy(data[e.File:], p.bytes[e.Image:e.Image+e.Length])
	}
	return data, where
}

// executable returns a file if it looks like an ELF file.
func (p *picture) executable(f files.File) (elfplan.File, bool) {
	if len(f.Extents) == 0 || f.Extents[0].Codec != files.Stored || f.Extents[0].Logical != 0 || f.Extents[0].Size < 64 ||
		string(p.bytes[f.Extents[0].Offset:][:4]) != "\x7fELF" {
		return elfplan.File{}, false
	}
	data, where := p.content(f)
	return elfplan.File{Data: data, Extents: where}, data != nil
}

// masked puts the mask of an executable into the image's.
func (p *picture) masked(f elfplan.File) {
	m := elfplan.Mask(f.Data)
	for _, e := range f.Extents {
		copy(p.mask[e.Image:e.Image+e.Length], m[e.File:])
	}
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
	if s.base, err = newPicture(base, o.OldFiles, r.masks); err != nil {
		return nil, fmt.Errorf("read old image: %w", err)
	}
	if s.fresh, err = newPicture(target, o.NewFiles, r.masks); err != nil {
		return nil, fmt.Errorf("read new image: %w", err)
	}
	s.digest = sha256.Sum256(s.base.bytes)
	if r.masks {
		s.executables()
	}
	if err := s.pieces(ctx, o); err != nil {
		return nil, err
	}
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

// executables masks them in both images and pairs them.
func (s *survey) executables() {
	s.executable, s.byName = map[int]elfplan.File{}, map[string]int{}
	for i, f := range s.base.files.Files {
		if e, ok := s.base.executable(f); ok {
			s.executable[i] = e
			s.base.masked(e)
			if name := rootless(f.Path); s.byName[name] == 0 {
				s.byName[name] = i
			}
		}
	}
	s.freshByName = map[string]int{}
	for i, f := range s.fresh.files.Files {
		s.freshByName[rootless(f.Path)] = i
	}
	for _, p := range pairFiles(s.base.files, s.fresh.files, func(files.File) int { return -1 }) {
		e, ok := s.fresh.executable(s.fresh.files.Files[p.New])
		if !ok {
			continue
		}
		s.fresh.masked(e)
		if old, ok := s.executable[p.Old]; ok {
			s.pairs = append(s.pairs, elfplan.Pair{Old: old, New: e})
		}
	}
}

// common makes the part of the patch that its frames have in common, and notes what it unpacks to.
func (s *survey) common(o Options, body *int64) ([]byte, error) {
	if s.moves == nil || s.moves.Common() == nil {
		return nil, nil
	}
	w, err := newWorker(s, Image{}, o)
	if err != nil {
		return nil, err
	}
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
}

// between returns the pieces of the new image that have bytes in [from, to).
func (s *survey) between(from, to int64) []*packed {
	var all []*packed
	for i := sort.Search(len(s.new), func(i int) bool { return s.new[i].end() > from }); i < len(s.new) && s.new[i].at < to; i++ {
		all = append(all, &s.new[i])
	}
	return all
}
