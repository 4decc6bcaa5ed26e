package advice

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/compressed"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// view is an image and what was found in it.
type view struct {
	mkdelta.Image
	system files.System
	layout *files.Ext4Layout // nil: no ext4
	files  []files.File      // without the members of archives
	sums   [][sha256.Size]byte
	items  []item    // what is compressed, by file
	signed []stretch // signatures of kernel modules
	signs  int       // how many modules have one
	unread error     // why not all files are listed
}

// item is a file that is compressed as a whole, or from some place on.
type item struct {
	file     int
	codec    string
	kind     string
	from, to int // in the file
}

// stretch is a part of an image, in bytes.
type stretch struct{ at, size int64 }

// read looks at an image, and at every file of it once.
func read(ctx context.Context, im mkdelta.Image, progress func(done, total int64)) (*view, error) {
	v := &view{Image: im}
	var err error
	v.system, v.unread = files.List(im, im.Size)
	v.layout, _ = files.Layout(im, im.Size)
	for _, f := range v.system.Files {
		if !strings.Contains(f.Path, "//") {
			v.files = append(v.files, f)
		}
	}
	if v.system.Kind == files.None {
		v.files = programs(im, im.Size)
	}
	total, done := int64(0), int64(0)
	for _, f := range v.files {
		total += f.Size
	}
	for i, f := range v.files {
		if err = ctx.Err(); err != nil {
			return nil, err
		}
		var b []byte
		if b, err = files.Read(im, f, compressed.Limit); err != nil {
			// It counts as a file that nobody can see into.
			b = nil
		}
		v.sums = append(v.sums, sha256.Sum256(b))
		if from, to, codec, kind := compressed.Look(f.Path, b); codec != "" {
			v.items = append(v.items, item{i, codec, kind, from, to})
		} else if n := signature(b); n > 0 {
			v.signs++
			v.signed = append(v.signed, places(f, f.Size-int64(n), f.Size)...)
		}
		done += f.Size
		progress(done, total)
	}
	return v, nil
}

// places returns where bytes [from, to) of a file lie, as far as they are stored as they are.
func places(f files.File, from, to int64) []stretch {
	var out []stretch
	for _, e := range f.Extents {
		lo, hi := max(e.Logical, from), min(e.Logical+e.Size, to)
		if lo < hi && e.Codec == files.Stored {
			out = append(out, stretch{e.Offset + lo - e.Logical, hi - lo})
		}
	}
	return out
}

// packs tells whether the file system itself compresses.
func (v *view) packs() bool {
	return slices.ContainsFunc(v.files, func(f files.File) bool {
		return slices.ContainsFunc(f.Extents, func(e files.Extent) bool { return e.Codec != files.Stored })
	})
}

// compression names what the file system packs its blocks with; "none" if it does not.
func (v *view) compression() string {
	bytes := map[files.Codec]int64{}
	best := files.Stored
	for _, f := range v.files {
		for _, e := range f.Extents {
			if bytes[e.Codec] += e.Size; e.Codec != files.Stored && (best == files.Stored || bytes[e.Codec] > bytes[best]) {
				best = e.Codec
			}
		}
	}
	return cmp.Or(string(best), "none")
}

// Owners of bytes; files count from ownFiles on.
const (
	ownMetadata = iota // what belongs to nothing else: inodes, directories, maps
	ownFree
	ownJournal
	ownSigned
	ownFiles
)

// owned is a stretch of an image that has an owner.
type owned struct {
	stretch
	owner int
}

// ledger counts what stretches of an image cost, by owner.
type ledger struct {
	parts []owned // ascending, without overlap
	bytes []float64
}

// ledger divides an image among its owners.
func (v *view) ledger() *ledger {
	var all []owned
	add := func(owner int, parts ...stretch) {
		for _, p := range parts {
			all = append(all, owned{p, owner})
		}
	}
	// What comes first has precedence.
	add(ownSigned, v.signed...)
	for i, f := range v.files {
		for _, e := range f.Extents {
			add(ownFiles+i, stretch{e.Offset, e.Length})
		}
	}
	if v.layout != nil {
		for _, e := range v.layout.Journal {
			add(ownJournal, stretch{e.Offset, e.Length})
		}
		for _, e := range v.layout.Free {
			add(ownFree, stretch{e.Offset, e.Length})
		}
	}
	return newLedger(all, ownFiles+len(v.files))
}

// newLedger sorts stretches; where two overlap, the one that was named first keeps its bytes.
func newLedger(all []owned, owners int) *ledger {
	l := &ledger{bytes: make([]float64, owners)}
	// Signatures are ends of files: cut what lies around them.
	var signed []stretch
	for _, o := range all {
		if o.owner == ownSigned {
			signed = append(signed, o.stretch)
		}
	}
	slices.SortFunc(signed, func(a, b stretch) int { return cmp.Compare(a.at, b.at) })
	for _, o := range all {
		if o.owner == ownSigned {
			l.parts = append(l.parts, o)
			continue
		}
		i, _ := slices.BinarySearchFunc(signed, o.at, func(s stretch, at int64) int { return cmp.Compare(s.at+s.size, at+1) })
		at, end := o.at, o.at+o.size
		for ; i < len(signed) && signed[i].at < end; i++ {
			if at < signed[i].at {
				l.parts = append(l.parts, owned{stretch{at, signed[i].at - at}, o.owner})
			}
			at = max(at, signed[i].at+signed[i].size)
		}
		if at < end {
			l.parts = append(l.parts, owned{stretch{at, end - at}, o.owner})
		}
	}
	slices.SortStableFunc(l.parts, func(a, b owned) int { return cmp.Compare(a.at, b.at) })
	keep, end := l.parts[:0], int64(0)
	for _, o := range l.parts {
		if o.at < end {
			o.size -= end - o.at
			o.at = end
		}
		if o.size > 0 {
			keep = append(keep, o)
			end = o.at + o.size
		}
	}
	l.parts = keep
	return l
}

// spend books bytes of a patch on the owners of a stretch, by length.
func (l *ledger) spend(at, size int64, bytes float64) {
	i, _ := slices.BinarySearchFunc(l.parts, at, func(o owned, at int64) int { return cmp.Compare(o.at+o.size, at+1) })
	perByte := bytes / float64(max(size, 1))
	left := size
	for ; i < len(l.parts) && l.parts[i].at < at+size; i++ {
		o := l.parts[i]
		n := min(o.at+o.size, at+size) - max(o.at, at)
		l.bytes[o.owner] += perByte * float64(n)
		left -= n
	}
	l.bytes[ownMetadata] += perByte * float64(left)
}
