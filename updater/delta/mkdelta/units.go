package mkdelta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/elfplan"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

const (
	// unitLimit is what neighbouring clusters of erofs, of some KiB each, are taken together to.
	unitLimit = 64 << 10

	// addressGap is between files, so that a run that goes on behind a file is in no other.
	addressGap = 4 << 20
)

// unit is what a file system packs by itself: a block of squashfs, or some clusters of erofs.
type unit struct {
	at, length int64
	codec      files.Codec
	clusters   []files.Extent // that it has; one, but in erofs
	plain      int64          // bytes that it unpacks to
	address    int64          // of the first of them, for prediction
	changed    bool           // it is in one image only
	used       bool           // a file that it belongs to has changed
	mask       []byte         // of what a used one unpacks to; where in the scratch it is
	kept       int64
	old        []int // pieces of survey.old, once they are made
}

// stretchOf says where a stretch of a packed file is: skip bytes into a unit, or, where unit is negative, in the image.
type stretchOf struct {
	unit        int
	logical     int64
	size        int64
	skip, image int64
}

// filing is what the files of an image are packed in.
type filing struct {
	units []unit
	files map[int][]stretchOf // by index into files.System.Files
	order []int               // the keys, ascending
}

// filing lists what is packed in an image. What lies over one another, as no sound image has it, is
// left out; so are files that are partly in there.
func (p *picture) filing(address int64) *filing {
	g := &filing{files: map[int][]stretchOf{}}
	known := map[int64]int{} // units by where they begin
	for i, f := range p.files.Files {
		all := f.Extents
		if !slices.ContainsFunc(all, func(e files.Extent) bool { return e.Codec != files.Stored }) {
			continue
		}
		var parts []stretchOf
		for len(all) > 0 {
			e := all[0]
			if e.Codec == files.Stored {
				parts = append(parts, stretchOf{-1, e.Logical, e.Size, 0, e.Offset})
				all = all[1:]
				continue
			}
			n := together(all)
			k, ok := known[e.Offset]
			if !ok {
				k = len(g.units)
				known[e.Offset] = k
				u := unit{at: e.Offset, codec: e.Codec, clusters: all[:n], address: address}
				for _, c := range u.clusters {
					u.length += c.Length
					u.plain += c.Plain
				}
				address += u.plain
				g.units = append(g.units, u)
			}
			skip := e.Skip
			for _, c := range all[:n] {
				parts = append(parts, stretchOf{k, c.Logical, c.Size, skip, 0})
				skip += c.Size
			}
			all = all[n:]
		}
		g.files[i] = parts
		g.order = append(g.order, i)
		address += addressGap
	}
	g.disentangle()
	return g
}

// together counts the clusters at the beginning of a list that are taken as one.
func together(all []files.Extent) int {
	e := all[0]
	n := 1
	if e.Codec != files.LZ4Padded || e.Skip != 0 || e.Size != e.Plain {
		return n
	}
	size := e.Plain
	for ; n < len(all); n++ {
		c, last := all[n], all[n-1]
		if size += c.Plain; size > unitLimit || c.Codec != e.Codec || c.Length != e.Length || c.Offset != last.Offset+last.Length ||
			c.Logical != last.Logical+last.Size || c.Skip != 0 || c.Size != c.Plain {
			break
		}
	}
	return n
}

// disentangle forgets the files of units that share bytes without being the same.
func (g *filing) disentangle() {
	order := make([]int, len(g.units))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return int(min(max(g.units[a].at-g.units[b].at, -1), 1)) })
	bad := map[int]bool{}
	for i := 1; i < len(order); i++ {
		if a, b := &g.units[order[i-1]], &g.units[order[i]]; a.at+a.length > b.at {
			bad[order[i-1]], bad[order[i]] = true, true
		}
	}
	for _, i := range g.order {
		for _, p := range g.files[i] {
			if u := p.unit; bad[u] || u >= 0 && p.skip+p.size > g.units[u].plain {
				delete(g.files, i)
				break
			}
		}
	}
	g.order = slices.DeleteFunc(g.order, func(i int) bool { return g.files[i] == nil })
}

// compare notes which units are in one image only, and all that belong to the same files.
func compare(old, fresh *filing, oldImage, newImage *picture) {
	digest := func(g *filing, image *picture) [][sha256.Size]byte {
		all := make([][sha256.Size]byte, len(g.units))
		for i, u := range g.units {
			all[i] = sha256.Sum256(image.bytes(u.at, u.length))
		}
		return all
	}
	a, b := digest(old, oldImage), digest(fresh, newImage)
	mark := func(g *filing, mine, others [][sha256.Size]byte) {
		known := make(map[[sha256.Size]byte]bool, len(others))
		for _, d := range others {
			known[d] = true
		}
		for i := range g.units {
			g.units[i].changed = !known[mine[i]]
		}
		for _, f := range g.order {
			if slices.ContainsFunc(g.files[f], func(p stretchOf) bool { return p.unit >= 0 && g.units[p.unit].changed }) {
				for _, p := range g.files[f] {
					if p.unit >= 0 {
						g.units[p.unit].used = true
					}
				}
			}
		}
	}
	mark(old, a, b)
	mark(fresh, b, a)
}

// unpack returns what a unit holds.
func (p *picture) unpack(u *unit) ([]byte, error) {
	out := make([]byte, 0, u.plain)
	for _, c := range u.clusters {
		b, err := files.Unpack(c.Codec, p.bytes(c.Offset, c.Length), c.Plain)
		if err != nil {
			return nil, err
		}
		if int64(len(b)) != c.Plain {
			return nil, fmt.Errorf("%d bytes, not %d: %w", len(b), c.Plain, io.ErrUnexpectedEOF)
		}
		out = append(out, b...)
	}
	return out, nil
}

// mostly is content for a file of which some blocks may be packed; where leaves these out. It is nothing for a file
// that is packed as a rule.
func (p *picture) mostly(f files.File) (data []byte, where []elfplan.Extent) {
	stored := int64(0)
	for _, e := range f.Extents {
		if e.Codec == files.Stored {
			stored += e.Size
		}
	}
	if stored < f.Size/2 || f.Size == 0 {
		return nil, nil
	}
	if stored == f.Size {
		return p.content(f)
	}
	data = make([]byte, f.Size)
	for _, e := range f.Extents {
		if e.Codec == files.Stored {
			p.copy(data[e.Logical:e.Logical+e.Size], e.Offset)
			where = append(where, elfplan.Extent{File: e.Logical, Image: e.Offset, Length: e.Size})
			continue
		}
		b, err := files.Unpack(e.Codec, p.bytes(e.Offset, e.Length), e.Plain)
		if err != nil || int64(len(b)) < e.Skip+e.Size {
			return nil, nil
		}
		copy(data[e.Logical:e.Logical+e.Size], b[e.Skip:])
	}
	return data, where
}

// assemble puts the bytes of a file together. Its units are unpacked, and not masked yet.
func (p *picture) assemble(g *filing, i int) (data []byte, where []elfplan.Extent) {
	data = make([]byte, p.files.Files[i].Size)
	for _, s := range g.files[i] {
		e := elfplan.Extent{File: s.logical, Image: s.image, Length: s.size}
		if s.unit < 0 {
			p.copy(data[s.logical:s.logical+s.size], s.image)
		} else {
			u := &g.units[s.unit]
			copy(data[s.logical:s.logical+s.size], u.mask[s.skip:])
			e.Image = u.address + s.skip
		}
		if k := len(where) - 1; k >= 0 && where[k].File+where[k].Length == e.File && where[k].Image+where[k].Length == e.Image {
			where[k].Length += e.Length
		} else {
			where = append(where, e)
		}
	}
	return data, where
}

// lookInto unpacks the units in use, and masks the executables in them, which it returns by
// number of the file. What cannot be unpacked is used no more.
func (s *survey) lookInto(ctx context.Context, p *picture, g *filing, o Options, masks bool) (map[int]elfplan.File, error) {
	size := int64(0)
	for i := range g.units {
		if u := &g.units[i]; u.used {
			u.kept = size
			size += u.plain
		}
	}
	programs := size
	for _, i := range g.order {
		size += p.files.Files[i].Size
	}
	room, err := newScratch(o.TempDir, size) // a file that is not written to takes no room
	if err != nil {
		return nil, err
	}
	s.scratch = append(s.scratch, room)
	for i := range g.units {
		if u := &g.units[i]; u.used {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			b, err := p.unpack(u)
			if u.used = err == nil; !u.used {
				continue
			}
			if err := room.write(b, u.kept); err != nil {
				return nil, err
			}
			u.mask = room.slice(u.kept, u.plain)
		}
	}
	found := map[int]elfplan.File{}
	if !masks {
		return found, nil
	}
	for _, i := range g.order {
		if !g.isProgram(i) {
			continue
		}
		data, where := p.assemble(g, i)
		if err := room.write(data, programs); err != nil {
			return nil, err
		}
		found[i] = elfplan.File{Data: room.slice(programs, int64(len(data))), Extents: where}
		programs += int64(len(data))
	}
	// Only now, since files may share units.
	for _, i := range g.order {
		f, ok := found[i]
		if !ok {
			continue
		}
		mask := elfplan.Mask(f.Data)
		for _, part := range g.files[i] {
			b := mask[part.logical : part.logical+part.size]
			if part.unit < 0 {
				p.hide(part.image, f.Data[part.logical:][:part.size:part.size], b)
			} else if err := room.write(b, g.units[part.unit].kept+part.skip); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// isProgram tells whether all of a file is unpacked, and looks like an ELF file.
func (g *filing) isProgram(file int) bool {
	for _, p := range g.files[file] {
		if p.unit >= 0 && !g.units[p.unit].used {
			return false
		}
	}
	first := g.files[file][0]
	return first.unit >= 0 && first.logical == 0 && first.size >= 64 && bytes.HasPrefix(g.units[first.unit].mask[first.skip:], []byte("\x7fELF"))
}
