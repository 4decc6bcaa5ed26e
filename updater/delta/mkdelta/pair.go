package mkdelta

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// pairing says which old file a new one comes from, by index; Old is -1 where
// none is known.
type pairing struct{ New, Old int }

// region is a part of an image that belongs to one file and is stored as it is.
type region struct {
	start, end int64 // in the image
	file       int   // index into Files
	logical    int64 // where in the file it begins
}

// regions returns where the bytes of files lie, ascending and without overlap.
// Of an archive, its members count.
func regions(s files.System) []region {
	archives := map[string]bool{}
	for _, f := range s.Files {
		if i := strings.Index(f.Path, "//"); i >= 0 {
			archives[f.Path[:i]] = true
		}
	}
	var all []region
	for i, f := range s.Files {
		if archives[f.Path] {
			continue
		}
		for _, e := range f.Extents {
			if e.Codec == files.Stored {
				all = append(all, region{e.Offset, e.Offset + e.Length, i, e.Logical})
			}
		}
	}
	slices.SortFunc(all, func(a, b region) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end), cmp.Compare(a.file, b.file))
	})
	// Blocks may be shared between files: the first has them.
	out := all[:0]
	end := int64(0)
	for _, r := range all {
		if r.start < end {
			r.logical += end - r.start
			r.start = end
		}
		if r.start < r.end {
			out = append(out, r)
			end = r.end
		}
	}
	return out
}

// regionAt returns the region that holds offset, or the next one; len(all) if there is none.
func regionAt(all []region, offset int64) int {
	i, _ := slices.BinarySearchFunc(all, offset, func(r region, at int64) int {
		if r.end <= at {
			return -1
		}
		return 1
	})
	return i
}

// pairFiles finds for each new file the old one that it was made from: that
// of the same path; else of the same path but for version numbers; else of the same name and about the
// same size; else that which vote returns.
func pairFiles(old, fresh files.System, vote func(f files.File) int) []pairing {
	byPath := make(map[string]int, len(old.Files))
	byPlain := map[string][]int{}
	byName := map[string][]int{}
	for i, f := range old.Files {
		byPath[f.Path] = i
		byPlain[plain(f.Path)] = append(byPlain[plain(f.Path)], i)
		name := plain(path.Base(f.Path))
		byName[name] = append(byName[name], i)
	}
	out := make([]pairing, len(fresh.Files))
	for i, f := range fresh.Files {
		out[i] = pairing{i, -1}
		if o, ok := byPath[f.Path]; ok {
			out[i].Old = o
		} else if o, ok := nearest(old, byPlain[plain(f.Path)], f); ok {
			out[i].Old = o
		} else if o := vote(f); o >= 0 {
			out[i].Old = o
		} else if o, ok := nearest(old, byName[plain(path.Base(f.Path))], f); ok && similar(old.Files[o].Size, f.Size) {
			out[i].Old = o
		}
	}
	return out
}

func similar(a, b int64) bool { return a <= 2*b && b <= 2*a }

// nearest returns the candidate whose path, then size, is nearest.
func nearest(old files.System, candidates []int, f files.File) (int, bool) {
	best, ok := 0, false
	var bestKey [2]int64
	for _, c := range candidates {
		o := old.Files[c]
		key := [2]int64{-int64(common([]byte(o.Path), []byte(f.Path))), max(o.Size-f.Size, f.Size-o.Size)}
		if !ok || slices.Compare(key[:], bestKey[:]) < 0 {
			best, bestKey, ok = c, key, true
		}
	}
	return best, ok
}

// plain is a path with every version number replaced, so that
// lib/modules/6.1.0-50-amd64 and libfoo.so.1.2.3 are found again in the next version.
func plain(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); {
		if c := p[i]; c < '0' || c > '9' {
			b.WriteByte(c)
			i++
			continue
		}
		// Digits, and what joins digits: 6.1.0-50, 1.2.3, 2:1.02.
		j := i
		for j < len(p) && (digit(p[j]) || strings.IndexByte(".-+~:", p[j]) >= 0 && j+1 < len(p) && digit(p[j+1])) {
			j++
		}
		b.WriteByte('#')
		i = j
	}
	return b.String()
}

func digit(c byte) bool { return c >= '0' && c <= '9' }
