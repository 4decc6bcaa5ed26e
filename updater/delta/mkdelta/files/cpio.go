package files

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

const (
	cpioHeader  = 110
	cpioTrailer = "TRAILER!!!"
	cpioName    = 4096
)

func listCpio(im *image, s *System) error { return cpio(im, s, "", im, im.size, nil) }

// nested finds archives that lie uncompressed in a file, such as an initrd or
// the part of it in front of what is compressed.
func nested(im *image, s *System) {
	for _, f := range slices.Clone(s.Files) {
		if f.Size < cpioHeader || len(f.Extents) == 0 || f.Extents[0].Logical != 0 || f.Extents[0].Codec != Stored || f.Extents[0].Length < 6 {
			continue
		}
		b, err := im.at(f.Extents[0].Offset, 6)
		if err != nil {
			return
		}
		if m := string(b); m == "070701" || m == "070702" {
			// Half an archive is a file all the same: its members until there count.
			_ = cpio(im, s, f.Path+"//", &view{im, f.Extents}, f.Size, f.Extents)
		}
	}
}

// Archived returns where an initramfs goes on behind the plain archive that it begins with, that of the
// microcode; 0 for all other files.
func Archived(b []byte) int {
	if !bytes.HasPrefix(b, []byte("07070")) {
		return 0
	}
	end := bytes.Index(b, []byte(cpioTrailer))
	if end < 0 {
		return 0
	}
	for end += len(cpioTrailer); end < len(b) && b[end] == 0; end++ {
	}
	return end
}

// source is what an archive is read from.
type source interface {
	at(offset, n int64) ([]byte, error)
}

// cpio takes in the members of archives in the new ASCII format that follow
// each other. Anything else behind them, such as a compressed archive, ends it.
func cpio(im *image, s *System, prefix string, r source, size int64, extents []Extent) error {
	for at := int64(0); at+cpioHeader <= size; {
		h, err := r.at(at, cpioHeader)
		if err != nil {
			return err
		}
		if h[0] == 0 { // padding between archives
			at += 4
			continue
		}
		if m := string(h[:6]); m != "070701" && m != "070702" {
			return nil
		}
		var field [13]int64
		for i := range field {
			v, err := strconv.ParseUint(string(h[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return fmt.Errorf("archive header at %d: %w", at, ErrFormat)
			}
			field[i] = int64(v)
		}
		mode, length, name := field[1], field[6], field[11]
		if name < 1 || name > cpioName {
			return fmt.Errorf("archive header at %d: %w", at, ErrFormat)
		}
		b, err := r.at(at+cpioHeader, name)
		if err != nil {
			return err
		}
		data := (at + cpioHeader + name + 3) &^ 3
		if data > size || length > size-data {
			return fmt.Errorf("archive member at %d: %w", at, ErrFormat)
		}
		path := strings.TrimPrefix(strings.TrimPrefix(strings.TrimRight(string(b), "\x00"), "."), "/")
		if mode>>12 == 8 && length > 0 && path != "" {
			f := File{Path: prefix + path, Size: length}
			if extents == nil {
				f.Extents = []Extent{stored(0, data, length)}
			} else {
				f.Extents = cut(extents, data, data+length, 0)
			}
			if err := im.add(s, f); err != nil {
				return err
			}
		}
		if path == cpioTrailer {
			data = (data + 3) &^ 3
		}
		at = (data + length + 3) &^ 3
	}
	return nil
}

// view reads a file's bytes where they are stored as they are.
type view struct {
	im      *image
	extents []Extent
}

func (v *view) at(offset, n int64) ([]byte, error) {
	b := make([]byte, n)
	for _, e := range cut(v.extents, offset, offset+n, 0) {
		if e.Codec != Stored {
			return nil, fmt.Errorf("archive in packed bytes: %w", ErrUnsupported)
		}
		part, err := v.im.at(e.Offset, e.Length)
		if err != nil {
			return nil, err
		}
		copy(b[e.Logical:], part)
	}
	return b, nil
}

// Read returns the bytes of a file, at most limit.
func Read(r io.ReaderAt, f File, limit int64) ([]byte, error) {
	if f.Size > limit || f.Size < 0 {
		return nil, fmt.Errorf("%s: %d bytes, more than %d: %w", f.Path, f.Size, limit, ErrUnsupported)
	}
	out := make([]byte, f.Size)
	for _, e := range f.Extents {
		if e.Logical < 0 || e.Size < 0 || e.Logical > f.Size-e.Size || e.Length < 0 || e.Length > 64<<20 && e.Codec != Stored {
			return nil, fmt.Errorf("%s: extent: %w", f.Path, ErrFormat)
		}
		if e.Codec == Stored {
			if n, err := r.ReadAt(out[e.Logical:e.Logical+e.Size], e.Offset); int64(n) != e.Size {
				return nil, fmt.Errorf("%s: read image: %w", f.Path, err)
			}
			continue
		}
		packed := make([]byte, e.Length)
		if n, err := r.ReadAt(packed, e.Offset); int64(n) != e.Length {
			return nil, fmt.Errorf("%s: read image: %w", f.Path, err)
		}
		plain, err := Unpack(e.Codec, packed, e.Plain)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		if int64(len(plain)) < e.Skip+e.Size {
			return nil, fmt.Errorf("%s: extent unpacks to %d bytes: %w", f.Path, len(plain), ErrFormat)
		}
		copy(out[e.Logical:], plain[e.Skip:e.Skip+e.Size])
	}
	return out, nil
}
