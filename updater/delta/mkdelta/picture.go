package mkdelta

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"unsafe"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/elfplan"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// picture is an image in memory, and its mask: the same bytes, but with the addresses
// inside executables that were built again replaced by a digest of what they point to. Two builds
// of a program differ in their addresses all over and hardly in their masks, so masks are what is
// matched, and the bytes what is compared.
//
// Only the mask is there as a whole; what it hides is kept beside it.
type picture struct {
	mask  []byte
	kept  []original // ascending, without overlap
	files files.System
	arena *arena // of what is kept
}

// original is what a mask hides from at on.
type original struct {
	at    int64
	bytes []byte
}

func (k original) end() int64 { return k.at + int64(len(k.bytes)) }

// newPicture reads an image, whose files are those of list, or what can be found if that is nil. It
// must be closed.
func newPicture(im Image, list *files.System) (picture, error) {
	p := picture{arena: &arena{}}
	b, err := outside(im.Size)
	if err != nil {
		return p, err
	}
	p.mask = b
	if n, err := im.ReadAt(b, 0); n != len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		p.close()
		return p, err
	}
	// An image that nobody can list has no files: the index finds what it finds.
	if list != nil {
		p.files = *list
	} else {
		p.files, _ = files.List(im, im.Size)
	}
	return p, nil
}

// close gives the memory of a picture back that newPicture made.
func (p *picture) close() {
	release(p.mask)
	p.arena.close()
	*p = picture{}
}

// hidden returns the first of what is kept that ends behind at.
func (p *picture) hidden(at int64) int {
	i, _ := slices.BinarySearchFunc(p.kept, at, func(k original, at int64) int { return cmp.Or(cmp.Compare(k.end(), at), -1) })
	return i
}

// copy fills b with the image's bytes from at on, as far as there are any.
func (p *picture) copy(b []byte, at int64) int {
	n := copy(b, p.mask[min(at, int64(len(p.mask))):])
	end := at + int64(n)
	for i := p.hidden(at); i < len(p.kept) && p.kept[i].at < end; i++ {
		k := p.kept[i]
		if k.at >= at {
			copy(b[k.at-at:n], k.bytes)
		} else {
			copy(b[:n], k.bytes[at-k.at:])
		}
	}
	return n
}

// bytes returns the image's bytes from at on, for reading only.
func (p *picture) bytes(at, length int64) []byte {
	i := p.hidden(at)
	if i == len(p.kept) || p.kept[i].at >= at+length {
		return p.mask[at : at+length : at+length]
	}
	if k := p.kept[i]; k.at <= at && at+length <= k.end() {
		return k.bytes[at-k.at:][:length:length]
	}
	b := make([]byte, length)
	p.copy(b, at)
	return b
}

// ReadAt implements io.ReaderAt.
func (p *picture) ReadAt(b []byte, at int64) (int, error) {
	if n := p.copy(b, at); n < len(b) {
		return n, io.EOF
	}
	return len(b), nil
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
		return p.bytes(where[0].Image, f.Size), where
	}
	data := make([]byte, f.Size)
	for _, e := range where {
		p.copy(data[e.File:e.File+e.Length], e.Image)
	}
	return data, where
}

// executable tells whether a file looks like an ELF file.
func (p *picture) executable(f files.File) bool {
	return len(f.Extents) > 0 && f.Extents[0].Codec == files.Stored && f.Extents[0].Logical == 0 && f.Extents[0].Size >= 64 &&
		string(p.bytes(f.Extents[0].Offset, 4)) == "\x7fELF"
}

// same tells whether two files hold the same.
func (p *picture) same(f files.File, q *picture, g files.File) bool {
	if f.Size != g.Size {
		return false
	}
	a, _ := p.content(f)
	b, _ := q.content(g)
	return a != nil && b != nil && string(a) == string(b)
}

// conceal replaces an executable by its mask and keeps what that hides. It returns the executable.
func (p *picture) conceal(f files.File) (elfplan.File, bool) {
	data, where := p.content(f)
	if data == nil {
		return elfplan.File{}, false
	}
	e := elfplan.File{Data: p.arena.keep(data), Extents: where}
	m := elfplan.Mask(e.Data)
	for _, x := range where {
		p.hide(x.Image, e.Data[x.File:][:x.Length:x.Length], m[x.File:])
	}
	return e, true
}

// hide replaces bytes from at on by their mask. Blocks that files share are hidden once.
func (p *picture) hide(at int64, b, mask []byte) {
	if i := p.hidden(at); i == len(p.kept) || p.kept[i].at >= at+int64(len(b)) {
		p.kept = slices.Insert(p.kept, i, original{at, b})
		copy(p.mask[at:at+int64(len(b))], mask)
	}
}

// arena holds copies outside of the heap, many to a mapping.
type arena struct{ rooms [][]byte }

// keep copies bytes that a mask is about to replace.
func (a *arena) keep(b []byte) []byte {
	const many = 16 << 20
	k := len(a.rooms) - 1
	if k < 0 || cap(a.rooms[k])-len(a.rooms[k]) < len(b) {
		room, err := outside(max(many, int64(len(b))))
		if err != nil {
			return slices.Clone(b) // the heap may know a way, or says why not
		}
		a.rooms, k = append(a.rooms, room[:0]), k+1
	}
	start := len(a.rooms[k])
	a.rooms[k] = append(a.rooms[k], b...)
	return a.rooms[k][start:len(a.rooms[k]):len(a.rooms[k])]
}

func (a *arena) close() {
	if a == nil {
		return
	}
	for _, b := range a.rooms {
		release(b)
	}
	a.rooms = nil
}

// outside returns n zero bytes that are not the garbage collector's: it lets the heap grow to a
// multiple of what is in use, and images are most of that.
func outside(n int64) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	b, err := syscall.Mmap(-1, 0, int(n), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%w: %d bytes: %w", ErrMemory, n, err)
	}
	return b, nil
}

// numbers is outside for an index.
func numbers(n int) ([]uint32, error) {
	b, err := outside(4 * int64(n))
	if err != nil || n == 0 {
		return nil, err
	}
	// A mapping begins at a page.
	return unsafe.Slice((*uint32)(unsafe.Pointer(&b[0])), n), nil
}

// release gives back what outside returned.
func release(b []byte) {
	if b = b[:cap(b)]; len(b) > 0 {
		_ = syscall.Munmap(b) // it fails for what is no mapping only
	}
}

func releaseNumbers(n []uint32) {
	if cap(n) > 0 {
		release(unsafe.Slice((*byte)(unsafe.Pointer(&n[0])), 4*len(n)))
	}
}
