// Package files finds out where the bytes of each file lie inside an image of
// a file system: ext2 to ext4, squashfs 4.0, erofs, and cpio archives, also
// those that lie uncompressed inside a file of the others.
//
// Offsets and sizes are in bytes; offsets count from the beginning of the image. The
// package reads and never writes, belongs to the encoder (the device knows
// nothing of file systems), and trusts nothing: every number of the image is
// checked before use, and what is read and kept is bounded by Limit. Checksums of the
// file systems are not looked at: what a damaged image loses here is a better
// delta, nothing more.
//
// Sources: the ext4 disk layout of the kernel documentation
// (Documentation/filesystems/ext4), squashfs_fs.h and erofs_fs.h of Linux 6.1,
// and the kernel's zmap.c for the compacted index of erofs. Not read: symbolic links,
// devices, sockets, encrypted files.
package files

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrFormat means that the image says that it is a file system and
// contradicts itself. The files found until then may be used.
var ErrFormat = errors.New("damaged file system")

// ErrUnsupported means that a file system is whole, as far as seen, and uses
// something that this package does not read. The encoder does without.
var ErrUnsupported = errors.New("unsupported file system")

// Kind says what an image is.
type Kind string

// The kinds of image.
const (
	None     Kind = "none"
	Ext4     Kind = "ext4" // and ext2, ext3
	Squashfs Kind = "squashfs"
	Erofs    Kind = "erofs"
	Cpio     Kind = "cpio"
)

// Codec says how the bytes of an extent are packed.
type Codec string

// The codecs of extents.
const (
	Stored     Codec = ""
	Gzip       Codec = "gzip" // a zlib stream, as squashfs has it
	Zstd       Codec = "zstd"
	LZ4        Codec = "lz4"        // one LZ4 block
	LZ4Padded  Codec = "lz4-padded" // one LZ4 block behind zeros, as erofs has it
	LZMA       Codec = "lzma"
	XZ         Codec = "xz"
	LZO        Codec = "lzo"
	Deflate    Codec = "deflate"     // a raw deflate stream behind zeros, as erofs has it
	ZstdPadded Codec = "zstd-padded" // behind zeros, as erofs has it
)

// System is what an image holds.
type System struct {
	Kind  Kind
	Block int64 // bytes of a block: of the file system, or of what squashfs packs as one
	Files []File
	// Skipped counts regular files that are there and cannot be located.
	Skipped int
	// Options are the compressor's options as the superblock of squashfs has them.
	Options []byte
}

// File is a regular file that has bytes.
type File struct {
	// Path begins without a slash. A member of an archive has the archive's path,
	// two slashes and its own path. Of several names the first in walking order.
	Path    string
	Size    int64
	Extents []Extent // by Logical, without overlap; between them zeros
}

// Extent says where Size bytes of a file come from.
//
// A stored extent has Length == Size and Skip == 0. A packed one is bytes
// [Skip, Skip+Size) of what image bytes [Offset, Offset+Length) unpack to; that is Plain bytes.
type Extent struct {
	Logical int64 // in the file
	Size    int64 // bytes of the file

	Offset int64 // in the image
	Length int64 // bytes in the image

	Codec Codec
	Plain int64 // bytes that it unpacks to; as Length if stored
	Skip  int64
}

// Bounds of what List takes from an image. A root file system of 100,000 files
// stays below a tenth of each.
const (
	// Limit is how many bytes of directories, inodes and maps are read at most.
	Limit = 1 << 30

	maxFiles   = 4 << 20
	maxExtents = 32 << 20
	maxDepth   = 128
	maxName    = 255
	maxSize    = 1 << 40
)

// List finds the files of an image of size bytes.
//
// An image of no known kind is no error: its Kind is None. With ErrFormat and
// ErrUnsupported, Kind says what the image is and Files holds what was found
// before. The result depends on the image only, files are in walking order: depth
// first, names ascending.
func List(r io.ReaderAt, size int64) (System, error) {
	im := &image{r: r, size: min(max(size, 0), maxSize), left: min(Limit, 2*max(size, 0)+1<<20)}
	for _, k := range []struct {
		kind   Kind
		offset int64
		magic  string
		list   func(*image, *System) error
	}{
		{Squashfs, 0, "hsqs", listSquashfs},
		{Erofs, 1024, "\xe2\xe1\xf5\xe0", listErofs},
		{Ext4, 1024 + 56, "\x53\xef", listExt4},
		{Cpio, 0, "070701", listCpio},
		{Cpio, 0, "070702", listCpio},
	} {
		b, err := im.at(k.offset, int64(len(k.magic)))
		if errors.Is(err, ErrFormat) || err == nil && string(b) != k.magic {
			continue
		}
		if err != nil {
			return System{Kind: None}, err
		}
		s := System{Kind: k.kind}
		if err := k.list(im, &s); err != nil {
			return s, fmt.Errorf("%s: %w", k.kind, err)
		}
		if k.kind != Cpio {
			nested(im, &s)
		}
		return s, nil
	}
	return System{Kind: None}, nil
}

// Find returns the file with a path.
func (s *System) Find(path string) (File, bool) {
	for _, f := range s.Files {
		if f.Path == path {
			return f, true
		}
	}
	return File{}, false
}

// image reads within bounds.
type image struct {
	r       io.ReaderAt
	size    int64
	left    int64 // bytes that may still be read
	extents int
}

// at returns n bytes at offset. ErrFormat means that they are not all inside.
func (im *image) at(offset, n int64) ([]byte, error) {
	if offset < 0 || n < 0 || n > im.size || offset > im.size-n {
		return nil, fmt.Errorf("%d bytes at %d: %w", n, offset, ErrFormat)
	}
	if im.left -= n; im.left < 0 {
		return nil, fmt.Errorf("more than %d bytes of metadata: %w", Limit, ErrUnsupported)
	}
	b := make([]byte, n)
	if m, err := im.r.ReadAt(b, offset); int64(m) != n {
		return nil, fmt.Errorf("read image: %w", err)
	}
	return b, nil
}

// inside tells whether n bytes at offset are in the image.
func (im *image) inside(offset, n int64) bool {
	return offset >= 0 && n >= 0 && n <= im.size && offset <= im.size-n
}

// add takes a file in, if its extents are in order and in bounds.
func (im *image) add(s *System, f File) error {
	if f.Size == 0 {
		return nil
	}
	if im.extents += len(f.Extents); im.extents > maxExtents || len(s.Files) >= maxFiles {
		return fmt.Errorf("more than %d files or %d extents: %w", maxFiles, maxExtents, ErrUnsupported)
	}
	slices.SortStableFunc(f.Extents, func(a, b Extent) int { return int(min(max(a.Logical-b.Logical, -1), 1)) })
	end := int64(0)
	for _, e := range f.Extents {
		if e.Logical < end || e.Size <= 0 || e.Logical > f.Size-e.Size || e.Length <= 0 || !im.inside(e.Offset, e.Length) ||
			e.Skip < 0 || e.Plain < 0 || e.Skip > e.Plain-e.Size {
			return fmt.Errorf("%s: extent of %d bytes at %d: %w", f.Path, e.Size, e.Logical, ErrFormat)
		}
		end = e.Logical + e.Size
	}
	s.Files = append(s.Files, f)
	return nil
}

// stored is an extent of plain bytes.
func stored(logical, offset, n int64) Extent {
	return Extent{Logical: logical, Size: n, Offset: offset, Length: n, Plain: n}
}

// appendStored joins an extent to the one before it where both go on.
func appendStored(all []Extent, logical, offset, n int64) []Extent {
	if k := len(all) - 1; k >= 0 && all[k].Codec == Stored && all[k].Logical+all[k].Size == logical && all[k].Offset+all[k].Length == offset {
		all[k].Size += n
		all[k].Length += n
		all[k].Plain += n
		return all
	}
	return append(all, stored(logical, offset, n))
}

// cut returns what extents say of bytes [from, to), as if the file began at
// from and this were at logical.
func cut(extents []Extent, from, to, logical int64) []Extent {
	var out []Extent
	for _, e := range extents {
		lo, hi := max(e.Logical, from), min(e.Logical+e.Size, to)
		if lo >= hi {
			continue
		}
		skip := lo - e.Logical
		if e.Codec == Stored {
			e.Offset += skip
			e.Length, e.Plain = hi-lo, hi-lo
		} else {
			e.Skip += skip
		}
		e.Logical, e.Size = lo-from+logical, hi-lo
		out = append(out, e)
	}
	return out
}

// goodName refuses what no directory holds by right.
func goodName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
