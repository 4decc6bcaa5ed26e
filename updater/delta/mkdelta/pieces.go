package mkdelta

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/elfplan"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/recodescan"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

const (
	// pieceLimit bounds the content of a piece, so that a device needs little memory for one.
	pieceLimit = 256 << 10

	// streamLimit bounds what a stream that is packed as a whole unpacks to, with its matches. A larger one
	// is packed in parts of at most streamPart; but the old one that they are told from is unpacked as a
	// whole, since its matches reach back.
	streamLimit    = 768 << 10
	streamPart     = 512 << 10
	oldStreamLimit = 1280 << 10

	// packedLimit bounds what a compressed file may unpack to.
	packedLimit = 1 << 30

	likeLimit   = 4 // old pieces that one new piece is told from
	packedLikes = 6 // old blocks of a file system, besides

	// likeRoom bounds what these unpack to together: a device holds it at once.
	likeRoom = 1 << 20
)

// pieces finds what is compressed in both images, and pairs it.
func (s *survey) pieces(ctx context.Context, o Options, masks bool) error {
	file, err := frames.Temporary(o.TempDir, "mkdelta-")
	if err != nil {
		return err
	}
	s.spool = &spool{File: file}
	old, err := s.base.compressed(ctx)
	if err != nil {
		return err
	}
	fresh, err := s.fresh.compressed(ctx)
	if err != nil {
		return err
	}
	if err := s.blocks(ctx, o, masks, fresh); err != nil {
		return err
	}
	if err := s.compressed(ctx, old, fresh); err != nil {
		return err
	}
	slices.SortStableFunc(s.new, func(a, b packed) int { return cmp.Compare(a.at, b.at) })
	// Files may share bytes: what is found twice is told once, and what lies over another piece stays as it is.
	end := int64(0)
	s.new = slices.DeleteFunc(s.new, func(p packed) bool {
		if p.at < end {
			return true
		}
		end = p.end()
		return false
	})
	return nil
}

// compressed tells compressed files from those of the old image.
func (s *survey) compressed(ctx context.Context, old, fresh []*compressed) error {
	names, anchors := map[string]*compressed{}, map[uint64]int32{}
	for _, f := range old {
		names[rootless(f.path)] = f
		s.oldStreams(f, anchors)
	}
	for _, f := range fresh {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := errors.Join(s.streams(f, anchors), s.frames(f, names[rootless(f.path)])); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return nil
}

// compressed is a file that holds compressed data.
type compressed struct {
	path    string
	where   []elfplan.Extent
	frames  []recodescan.Frame // of zstd; offsets count from start
	start   int64
	streams []recodescan.DeflateStream
}

// compressed looks into the files that are stored as they are, or mostly: of a file that does not shrink, squashfs
// packs a block here and there that does by some bytes.
func (p *picture) compressed(ctx context.Context) ([]*compressed, error) {
	var all []*compressed
	for _, f := range p.files.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if strings.Contains(f.Path, "//") || f.Size > packedLimit {
			continue
		}
		b, where := p.mostly(f)
		c := &compressed{path: f.Path, where: where, start: int64(files.Archived(b))}
		if b := b[c.start:]; recodescan.IsZstd(b) {
			c.frames = recodescan.Zstd(b, packedLimit)
		} else {
			c.streams = recodescan.Deflate(b, oldStreamLimit)
		}
		if len(c.frames)+len(c.streams) > 0 {
			all = append(all, c)
		}
	}
	return all, nil
}

// deflated is a piece of a deflate stream.
type deflated struct {
	packed
	plain []byte
}

// stream takes a deflate stream apart. Parts that are scattered over the image are left out.
func (c *compressed) stream(s *recodescan.DeflateStream, limit int) (all []deflated) {
	pieces, err := s.Pieces(true, limit)
	if err != nil {
		return nil
	}
	for _, d := range pieces {
		if at := place(c.where, c.start+int64(s.Offset+d.Offset), int64(d.Length)); at >= 0 {
			all = append(all, deflated{packed{
				at: at, length: int64(d.Length), kind: recode.Deflate, expand: d.Params, pack: d.Params,
				expanded: len(d.Plain), size: len(d.Plain), content: d.Body,
			}, d.Plain})
		}
	}
	return all
}

// oldStreams notes the deflate streams of an old file by their content.
func (s *survey) oldStreams(f *compressed, anchors map[uint64]int32) {
	for i := range f.streams {
		all := f.stream(&f.streams[i], oldStreamLimit)
		if len(all) != 1 || all[0].content != len(f.streams[i].Content) {
			continue // a device would not get hold of what its matches reach back to
		}
		for h := range anchorsOf(all[0].plain[:all[0].content]) {
			if _, known := anchors[h]; !known {
				anchors[h] = int32(len(s.old))
			}
		}
		s.old = append(s.old, all[0].packed)
	}
}

// streams tells the deflate streams of a new file from old ones of similar content.
func (s *survey) streams(f *compressed, anchors map[uint64]int32) error {
	for i := range f.streams {
		all := f.stream(&f.streams[i], streamLimit)
		if len(all) > 1 {
			all = f.stream(&f.streams[i], streamPart)
		}
		for _, d := range all {
			p := d.packed
			mask, address := s.unpacked(d.plain[:p.content])
			p.like = alike(mask, anchors, likeLimit, 8, func(k int) int64 { return int64(s.old[k].expanded) })
			if len(p.like) == 0 {
				continue // nothing to tell it from: it stays as it is
			}
			p.address = address
			if err := s.spool.keep(&p, mask, d.plain); err != nil {
				return err
			}
			s.new = append(s.new, p)
		}
	}
	return nil
}

// frames tells the zstd frames of a new file from those of the old file.
func (s *survey) frames(f, old *compressed) error {
	if old == nil {
		return nil
	}
	var coder recode.Coder
	for i := range min(len(f.frames), len(old.frames)) {
		frame, before := &f.frames[i], &old.frames[i]
		mask, address := s.unpacked(frame.Content)
		pair := recodescan.NewPair(before, frame)
		for _, q := range frame.Pieces(pieceLimit) {
			at := place(f.where, f.start+int64(q.Offset), int64(q.Length))
			told, err := pair.Foresee(q)
			if at < 0 || err != nil {
				continue // it stays as it is
			}
			from := place(old.where, old.start+int64(told.OldOffset), int64(told.OldLength))
			if from < 0 {
				continue
			}
			matches := make([]byte, told.Old)
			src := s.base.bytes(from, int64(told.OldLength))
			if n, err := coder.Expand(recode.ZstdMatches, told.Expand, src, matches); err != nil || n != told.Old {
				return fmt.Errorf("old matches: %d bytes, not %d: %w", n, told.Old, err)
			}
			start, end := q.ContentOffset, q.ContentOffset+q.ContentLength
			p := packed{
				at: at, length: int64(q.Length), kind: recode.ZstdMatches, pack: told.Pack,
				size: q.ContentLength + told.Old + len(told.Extra), content: q.ContentLength, copied: told.Old, copies: []kept{{0, 0, told.Old}},
				address: address + int64(start),
			}
			// In front of the old matches, what the file system has packed of such content.
			for _, k := range s.likes(mask[start:end], packedLikes, 64) {
				p.like = append(p.like, s.oldUnit(&s.packed.units[k])...)
			}
			for _, k := range p.like {
				p.copies[0].from += s.old[k].expanded
			}
			p.like = append(p.like, len(s.old))
			if err := s.spool.keep(&p, mask[start:end], frame.Content[start:end], matches, told.Extra); err != nil {
				return err
			}
			s.old = append(s.old, packed{at: from, length: int64(told.OldLength), kind: recode.ZstdMatches, expand: told.Expand, expanded: told.Old})
			s.new = append(s.new, p)
		}
	}
	return nil
}

// alike returns those old things that have most anchors in common with a mask, at most limit, each with a share
// of the most. Together they unpack to no more than likeRoom; but one of any size may be among them alone.
func alike(mask []byte, anchors map[uint64]int32, limit, share int, size func(int) int64) []int {
	votes := map[int]int{}
	for h := range anchorsOf(mask) {
		if k, known := anchors[h]; known {
			votes[int(k)]++
		}
	}
	for {
		all, room := elected(votes, limit, share), int64(0)
		for _, k := range all {
			room += size(k)
		}
		if room <= likeRoom || len(all) < 2 {
			return all
		}
		limit = len(all) - 1
	}
}

// elected returns the pieces with the most votes, and those with a share of these, in the order of the image.
func elected(votes map[int]int, limit, share int) []int {
	var all []int
	most := 0
	for k, n := range votes {
		all = append(all, k)
		most = max(most, n)
	}
	slices.SortFunc(all, func(a, b int) int { return cmp.Or(cmp.Compare(votes[b], votes[a]), cmp.Compare(a, b)) })
	n := 0
	for n < len(all) && n < limit && votes[all[n]]*share >= most {
		n++
	}
	all = all[:n]
	slices.Sort(all)
	return all
}

// anchorsOf yields the hashes of some windows, chosen by content.
func anchorsOf(b []byte) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		if len(b) < window {
			return
		}
		h := hash(b)
		if len(b) > window {
			h = hash(b[:window])
		}
		for i := 0; ; i++ {
			if h>>58 == 0 && !yield(h) {
				return
			}
			if i+window >= len(b) {
				return
			}
			h = roll(h, b[i], b[i+window])
		}
	}
}

// place returns where a stretch of a file lies in the image, or -1 if it is scattered.
func place(where []elfplan.Extent, at, length int64) int64 {
	for _, e := range where {
		if at >= e.File && at+length <= e.File+e.Length {
			return e.Image + at - e.File
		}
	}
	return -1
}

// unpackedAddress is where addresses of unpacked content begin, far behind any image.
const unpackedAddress = 1 << 39

// unpacked masks what a compressed file of the new image unpacks to, and pairs its executables with files
// of the old image: an initramfs holds what the root file system holds.
func (s *survey) unpacked(b []byte) (mask []byte, address int64) {
	p := picture{mask: bytes.Clone(b), arena: &s.arena}
	p.files, _ = files.List(bytes.NewReader(b), int64(len(b)))
	address = unpackedAddress + s.addresses
	s.addresses += int64(len(b))
	for _, f := range p.files.Files {
		if k, ok := s.freshByName[rootless(f.Path)]; ok {
			for _, e := range f.Extents {
				s.members = append(s.members, member{address + e.Offset, address + e.Offset + e.Size, k, e.Logical})
			}
		}
		// As in the images, a mask is for what was built again.
		k, ok := s.byName[rootless(f.Path)]
		if !ok || !p.executable(f) {
			continue
		}
		e, ok := p.conceal(f)
		if !ok {
			continue
		}
		for i := range e.Extents {
			e.Extents[i].Image += address
		}
		s.pairs = append(s.pairs, elfplan.Pair{Old: s.executable[k], New: e})
	}
	return p.mask, address
}

// member is a stretch of unpacked content that a file of the new image holds as well.
type member struct {
	start, end int64 // addresses
	file       int   // of the new image
	logical    int64 // where in the file it begins
}

// partsOf says which files the content from an address on comes from.
func (s *survey) partsOf(address int64, n int) []part {
	var all []part
	done := 0
	first := sort.Search(len(s.members), func(i int) bool { return s.members[i].end > address })
	for _, m := range s.members[first:] {
		start, end := int(max(m.start-address, int64(done))), int(min(m.end-address, int64(n)))
		if start >= n {
			break
		}
		if done < start {
			all = append(all, part{start: done, end: start, file: -1})
		}
		if start < end {
			all = append(all, part{start: start, end: end, file: m.file, logical: m.logical + address + int64(start) - m.start})
			done = end
		}
	}
	if done < n {
		all = append(all, part{start: done, end: n, file: -1})
	}
	return all
}

// rootless is a path without version numbers and the usr that some systems have and others have not.
func rootless(path string) string { return strings.TrimPrefix(plain(path), "usr/") }
