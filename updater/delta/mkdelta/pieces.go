package mkdelta

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/elfplan"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/recodescan"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

const (
	// pieceLimit bounds the content of a piece, so that a device needs little memory for
	// one. It is that of a zstd block.
	pieceLimit = 128 << 10

	// packedLimit bounds what a compressed file may unpack to.
	packedLimit = 1 << 30

	likeLimit = 4 // old pieces that one new piece is told from
)

// spool keeps the plain forms of the new image's pieces, which would fill the memory.
type spool struct {
	*os.File
	end int64
}

func (s *spool) add(parts ...[]byte) (at int64, err error) {
	at = s.end
	for _, b := range parts {
		if _, err := s.WriteAt(b, s.end); err != nil {
			return 0, fmt.Errorf("write temporary file: %w", err)
		}
		s.end += int64(len(b))
	}
	return at, nil
}

// found is a piece as a scan finds it. The slices are the scan's.
type found struct {
	packed
	content []byte // what it unpacks to
	mask    []byte // of that
	matches []byte // what follows the content in the plain form
}

// pieces finds what is compressed in both images, and pairs it by content.
func (s *survey) pieces(ctx context.Context, o Options) error {
	anchors := map[uint64]int32{}
	err := s.base.scan(ctx, maskArchive, func(f *found) error {
		f.plain = nil
		for h := range anchorsOf(f.mask) {
			if _, known := anchors[h]; !known {
				anchors[h] = int32(len(s.old))
			}
		}
		s.old = append(s.old, f.packed)
		return nil
	})
	if err != nil || len(s.old) == 0 {
		return err
	}
	file, err := temporary(o.TempDir)
	if err != nil {
		return err
	}
	s.spool = &spool{File: file}
	err = s.fresh.scan(ctx, s.unpacked, func(f *found) error {
		votes := map[int]int{}
		for h := range anchorsOf(f.mask) {
			if k, known := anchors[h]; known {
				votes[int(k)]++
			}
		}
		if f.like = elected(votes); len(f.like) == 0 {
			return nil // nothing to tell it from: it stays as it is
		}
		f.plain = s.spool
		var err error
		if f.plainAt, err = s.spool.add(f.content, f.matches); err != nil {
			return err
		}
		if f.maskAt, err = s.spool.add(f.mask); err != nil {
			return err
		}
		s.new = append(s.new, f.packed)
		return nil
	})
	slices.SortFunc(s.new, func(a, b packed) int { return cmp.Compare(a.at, b.at) })
	return err
}

// elected returns the pieces with the most votes, in the order of the image.
func elected(votes map[int]int) []int {
	var all []int
	most := 0
	for k, n := range votes {
		all = append(all, k)
		most = max(most, n)
	}
	slices.SortFunc(all, func(a, b int) int { return cmp.Or(cmp.Compare(votes[b], votes[a]), cmp.Compare(a, b)) })
	n := 0
	for n < len(all) && n < likeLimit && votes[all[n]]*8 >= most {
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

// scan hands out what is compressed in files, as far as it lies in one piece.
func (p *picture) scan(ctx context.Context, unpacked func([]byte) ([]byte, int64), hand func(*found) error) error {
	for _, f := range p.files.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.Contains(f.Path, "//") || f.Size > packedLimit {
			continue
		}
		b, where := p.content(f)
		for _, skip := range starts(b) {
			for _, scan := range []func([]byte, func([]byte) ([]byte, int64), func(*found) error) error{scanZstd, scanGzip} {
				err := scan(b[skip:], unpacked, func(f *found) error {
					if f.at = place(where, f.at+int64(skip), f.length); f.at < 0 {
						return nil
					}
					return hand(f)
				})
				if err != nil {
					return fmt.Errorf("%s: %w", f.Path, err)
				}
			}
		}
	}
	return nil
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

// starts returns where a compressed stream may begin: at the beginning of a file, or in an
// initramfs behind the archive with the microcode.
func starts(b []byte) []int {
	if !bytes.HasPrefix(b, []byte("07070")) {
		return []int{0}
	}
	end := bytes.Index(b, []byte("TRAILER!!!"))
	if end < 0 {
		return nil
	}
	for end += len("TRAILER!!!"); end < len(b) && b[end] == 0; end++ {
	}
	return []int{end}
}

func scanZstd(b []byte, unpacked func([]byte) ([]byte, int64), hand func(*found) error) error {
	var coder recode.Coder
	for _, frame := range recodescan.Zstd(b, packedLimit) {
		mask, address := unpacked(frame.Content)
		for _, p := range frame.Pieces(pieceLimit) {
			m := make([]byte, p.Matches.Plain)
			if _, err := coder.Expand(recode.Zstd, p.Matches.Expand, b[p.Offset:p.Offset+p.Length], m); err != nil {
				return err
			}
			from, to := p.ContentOffset, p.ContentOffset+p.ContentLength
			err := hand(&found{
				packed: packed{
					at: int64(p.Offset), length: int64(p.Length), kind: recode.Zstd,
					expand: p.Matches.Expand, pack: p.Matches.Pack, expanded: p.Matches.Plain,
					size: p.ContentLength + len(m), content: p.ContentLength, address: address + int64(from),
				},
				content: frame.Content[from:to], mask: mask[from:to], matches: m,
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// scanGzip finds the first member of a gzip file (RFC 1952).
func scanGzip(b []byte, unpacked func([]byte) ([]byte, int64), hand func(*found) error) error {
	r := bytes.NewReader(b)
	if _, err := gzip.NewReader(byteReader{r}); err != nil {
		return nil
	}
	start := len(b) - r.Len()
	pieces, _, err := recode.SplitDeflate(b[start:], true, 2*pieceLimit, packedLimit)
	if err != nil {
		return nil // no deflate that can be taken apart
	}
	content := make([]byte, 0, len(b))
	for _, p := range pieces {
		content = append(content, p.Plain[:p.Body]...)
	}
	mask, address := unpacked(content)
	if len(pieces) > 1 {
		return nil // only the first could be expanded by itself
	}
	for _, p := range pieces {
		err := hand(&found{
			packed: packed{
				at: int64(start + p.Offset), length: int64(p.Length), kind: recode.Deflate,
				expand: p.Params, pack: p.Params, expanded: len(p.Plain),
				size: len(p.Plain), content: p.Body, address: address,
			},
			content: p.Plain[:p.Body], mask: mask[:p.Body], matches: p.Plain[p.Body:],
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// byteReader keeps gzip from reading ahead of the header.
type byteReader struct{ *bytes.Reader }

// maskArchive masks the executables of a cpio archive, or one that stands alone.
func maskArchive(b []byte) ([]byte, int64) {
	p := unpackedPicture(b)
	for _, f := range p.files.Files {
		if e, ok := p.executable(f); ok {
			p.masked(e)
		}
	}
	return p.mask, 0
}

func unpackedPicture(b []byte) picture {
	p := picture{bytes: b, mask: bytes.Clone(b)}
	p.files, _ = files.List(bytes.NewReader(b), int64(len(b)))
	if p.files.Kind == files.None && bytes.HasPrefix(b, []byte("\x7fELF")) {
		n := int64(len(b))
		p.files.Files = []files.File{{Size: n, Extents: []files.Extent{{Size: n, Length: n, Plain: n}}}}
	}
	return p
}

// unpackedAddress is where addresses of unpacked content begin, far behind any image.
const unpackedAddress = 1 << 39

// unpacked masks what a compressed file of the new image unpacks to, and pairs its executables with files
// of the old image: an initramfs holds what the root file system holds.
func (s *survey) unpacked(b []byte) (mask []byte, address int64) {
	p := unpackedPicture(b)
	address = unpackedAddress + s.addresses
	s.addresses += int64(len(b))
	for _, f := range p.files.Files {
		e, ok := p.executable(f)
		if !ok {
			continue
		}
		p.masked(e)
		k, ok := s.byName[rootless(f.Path)]
		if !ok {
			continue
		}
		e.Extents = slices.Clone(e.Extents)
		for i := range e.Extents {
			e.Extents[i].Image += address
		}
		s.pairs = append(s.pairs, elfplan.Pair{Old: s.executable[k], New: e})
	}
	return p.mask, address
}

// rootless is a path without version numbers and the usr that some systems have and others have not.
func rootless(path string) string { return strings.TrimPrefix(plain(path), "usr/") }

// temporary makes a file without a name: a killed encoder leaves nothing behind.
func temporary(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "mkdelta-")
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlink temporary file: %w", err)
	}
	return f, nil
}
