package mkdelta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/elfplan"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/recodescan"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// unitLikes is how many old units a new one is told from at most: what was inserted in front moves its content
// over a border, and a block of small files has their rests from several.
const unitLikes = 4

// manyAnchors is from how many bytes on fewer of them are remembered.
const manyAnchors = 256 << 20

// blocks tells what a file system packs in the new image from what it packs in the old one. Units that
// both images have are left to the index.
func (s *survey) blocks(ctx context.Context, o Options, masks bool, compressed []*compressed) error {
	old, fresh := s.base.filing(unpackedAddress), s.fresh.filing(unpackedAddress+s.addresses)
	if len(old.units) == 0 {
		return nil
	}
	if n := len(fresh.units); n > 0 {
		s.addresses = fresh.units[n-1].address + fresh.units[n-1].plain + addressGap - unpackedAddress
	}
	compare(old, fresh, &s.base, &s.fresh)
	pairs := pairFiles(s.base.files, s.fresh.files, func(files.File) int { return -1 })
	for _, p := range pairs {
		if p.Old >= 0 && fresh.uses(p.New) {
			old.use(p.Old)
		}
	}
	s.useMembers(old, compressed)
	before, err := s.lookInto(ctx, &s.base, old, o, masks)
	if err != nil {
		return err
	}
	s.packed, s.anchors = old, map[uint64]int32{}
	total := int64(0)
	for _, u := range old.units {
		total += int64(len(u.mask))
	}
	for i := range old.units {
		for h := range anchorsOf(old.units[i].mask) {
			if total > manyAnchors && h>>56 != 0 {
				continue
			}
			if _, known := s.anchors[h]; !known {
				s.anchors[h] = int32(i)
			}
		}
	}
	for i, e := range before {
		s.executable[i] = e
		name := rootless(s.base.files.Files[i].Path)
		if _, known := s.byName[name]; !known {
			s.byName[name] = i
		}
	}
	after, err := s.lookInto(ctx, &s.fresh, fresh, o, masks)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		a, ok := before[p.Old]
		if b, too := after[p.New]; ok && too {
			s.pairs = append(s.pairs, elfplan.Pair{Old: a, New: b})
		}
	}
	likes := make([][]int, len(fresh.units))
	for i := range fresh.units {
		u := &fresh.units[i]
		if !u.changed || !u.used {
			continue
		}
		likes[i] = s.likes(u.mask, unitLikes, 100)
		for _, k := range likes[i] {
			s.oldUnit(&old.units[k])
		}
	}
	return s.units(ctx, o, old, fresh, likes)
}

// likes returns the old units that have most in common with a mask.
func (s *survey) likes(mask []byte, limit, share int) []int {
	if s.packed == nil {
		return nil
	}
	return alike(mask, s.anchors, limit, share, func(unit int) int64 { return s.packed.units[unit].plain })
}

// useMembers marks the old files that an archive in the new image may have members of: an initramfs holds what the root
// file system holds, and its content can be told from there only.
func (s *survey) useMembers(old *filing, compressed []*compressed) {
	byName := map[string]int{}
	for _, i := range old.order {
		byName[rootless(s.base.files.Files[i].Path)] = i
	}
	for _, c := range compressed {
		for _, f := range c.frames {
			all, _ := files.List(bytes.NewReader(f.Content), int64(len(f.Content)))
			for _, m := range all.Files {
				if i, ok := byName[rootless(m.Path)]; ok {
					old.use(i)
				}
			}
		}
	}
}

func (g *filing) uses(file int) bool {
	for _, p := range g.files[file] {
		if p.unit >= 0 && g.units[p.unit].used {
			return true
		}
	}
	return false
}

func (g *filing) use(file int) {
	for _, p := range g.files[file] {
		if p.unit >= 0 {
			g.units[p.unit].used = true
		}
	}
}

// oldUnit takes an old unit apart, for new pieces to be told from, once; it returns which pieces of survey.old it is.
func (s *survey) oldUnit(u *unit) []int {
	if u.old != nil {
		return u.old
	}
	add := func(p packed) {
		u.old = append(u.old, len(s.old))
		s.old = append(s.old, p)
	}
	b := s.base.bytes(u.at, u.length)
	if u.codec == files.Zstd {
		if f := zstdUnit(u, b); f != nil {
			add(packed{
				at: u.at + int64(f.Offset), length: int64(f.Length), kind: recode.ZstdContent, expand: []byte{0},
				expanded: len(f.Content), mask: u.mask, address: u.address,
			})
		}
	} else if p, _ := tokens(u, b); p != nil {
		p.mask, p.address = u.mask, u.address
		add(*p)
	}
	return u.old
}

// zstdUnit returns the frame that a block of squashfs is.
func zstdUnit(u *unit, b []byte) *recodescan.Frame {
	frames := recodescan.Zstd(b, int(u.plain))
	if len(frames) != 1 || int64(len(frames[0].Content)) != u.plain || frames[0].Offset+frames[0].Length != len(b) {
		return nil
	}
	return &frames[0]
}

// tokens takes a unit apart whose matches are written down as they are. It returns its plain form, too.
func tokens(u *unit, b []byte) (*packed, []byte) {
	switch u.codec {
	case files.Gzip:
		stream, ok := recodescan.Zlib(b, int(u.plain))
		if !ok {
			return nil, nil
		}
		pieces, err := stream.Pieces(true, streamLimit)
		if err != nil || len(pieces) != 1 || !pieces[0].Alone || int64(pieces[0].Body) != u.plain {
			return nil, nil
		}
		d := &pieces[0]
		return &packed{
			at: u.at + int64(stream.Offset+d.Offset), length: int64(d.Length), kind: recode.Deflate, expand: d.Params, pack: d.Params,
			expanded: len(d.Plain), size: len(d.Plain), content: d.Body,
		}, d.Plain
	case files.LZ4, files.LZ4Padded:
		size, each := 0, int(u.plain)
		if u.codec == files.LZ4Padded {
			size, each = int(u.clusters[0].Length), 0
		}
		l, err := recode.SplitLZ4(b, size, each, int(u.plain))
		if err != nil || int64(l.Body) != u.plain {
			return nil, nil
		}
		out := make([]byte, len(b))
		if n, err := new(recode.Coder).Pack(recode.LZ4, l.Params, l.Plain, out); err != nil || !bytes.Equal(out[:n], b) {
			return nil, nil
		}
		return &packed{
			at: u.at, length: u.length, kind: recode.LZ4, expand: l.Params, pack: l.Params,
			expanded: len(l.Plain), size: len(l.Plain), content: l.Body,
		}, l.Plain
	}
	return nil, nil
}

// units makes pieces of the new units, each by itself.
func (s *survey) units(ctx context.Context, o Options, old, fresh *filing, likes [][]int) error {
	made := make([]*unitPiece, len(fresh.units))
	errs := make([]error, len(fresh.units))
	next := make(chan int)
	var work sync.WaitGroup
	for range o.Workers {
		work.Go(func() {
			for i := range next {
				made[i], errs[i] = s.unit(&fresh.units[i], old, likes[i])
			}
		})
	}
	var err error
	for i := range fresh.units {
		if err = ctx.Err(); err != nil {
			break
		}
		if len(likes[i]) > 0 {
			next <- i
		}
	}
	close(next)
	work.Wait()
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	for _, m := range made {
		if m == nil {
			continue
		}
		for _, p := range m.matches {
			m.like = append(m.like, len(s.old))
			s.old = append(s.old, p)
		}
		s.new = append(s.new, m.packed)
	}
	return nil
}

// unitPiece is a piece, and what it is told from besides the contents of old units.
type unitPiece struct {
	packed
	matches []packed
}

// unit makes a piece of a new unit; nil if it stays as it is.
func (s *survey) unit(u *unit, old *filing, likes []int) (*unitPiece, error) {
	b := s.fresh.bytes(u.at, u.length)
	if u.codec == files.Zstd {
		return s.followed(u, b, old, likes)
	}
	p, plain := tokens(u, b)
	if p == nil {
		return nil, nil
	}
	p.address = u.address
	for _, k := range likes {
		p.like = append(p.like, old.units[k].old...)
	}
	if len(p.like) == 0 {
		return nil, nil
	}
	return &unitPiece{packed: *p}, s.spool.keep(p, u.mask, plain)
}

// followed tells a block of squashfs from old blocks: its content from theirs, its matches from theirs.
func (s *survey) followed(u *unit, b []byte, old *filing, likes []int) (*unitPiece, error) {
	f := zstdUnit(u, b)
	if f == nil {
		return nil, nil
	}
	m := &unitPiece{packed: packed{
		at: u.at + int64(f.Offset), length: int64(f.Length), kind: recode.ZstdMatches, content: len(f.Content), address: u.address,
	}}
	var before []*recodescan.Frame
	contents := 0
	for _, k := range likes {
		v := &old.units[k]
		if len(v.old) == 0 {
			continue
		}
		m.like = append(m.like, v.old...)
		g := zstdUnit(v, s.base.bytes(v.at, v.length))
		before = append(before, g)
		contents += len(g.Content)
		m.matches = append(m.matches, packed{at: v.at + int64(g.Offset), length: int64(g.Length), kind: recode.ZstdMatches})
	}
	told, err := recodescan.Follow(f, before)
	if errors.Is(err, recode.ErrUnsupported) || len(before) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("block at %d: %w", u.at, err)
	}
	for i := range m.matches {
		m.matches[i].expand, m.matches[i].expanded = told.Expand[i], told.Size[i]
	}
	m.matches = slices.DeleteFunc(m.matches, func(p packed) bool { return p.expanded == 0 })
	for _, c := range told.Copies {
		m.copies = append(m.copies, kept{c.To, contents + c.From, c.Length})
	}
	m.pack, m.copied = told.Pack, len(told.Matches)
	m.size = m.content + m.copied + len(told.Extra)
	return m, s.spool.keep(&m.packed, u.mask, f.Content, told.Matches, told.Extra)
}
