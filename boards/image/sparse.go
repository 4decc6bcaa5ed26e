package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// extent is a range of a file, in bytes.
type extent struct{ off, size int64 }

// extents returns what of the file's [0, size) holds data. What lies between is
// holes, which read as zeros.
func extents(f *os.File, size int64) ([]extent, error) {
	var all []extent
	for off := int64(0); off < size; {
		data, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole is left
		} else if err != nil {
			return nil, fmt.Errorf("look for holes in %s: %w", f.Name(), err)
		}
		if data >= size {
			break
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("look for holes in %s: %w", f.Name(), err)
		}
		hole = min(hole, size)
		all = append(all, extent{data, hole - data})
		off = hole
	}
	return all, nil
}

// copyChunk is how much is copied at once, in bytes.
const copyChunk = 1 << 20

var zeroChunk = make([]byte, copyChunk)

// copySparse copies the file from to w at offset at, and leaves out what is zero,
// page by page: w must be zero there. It returns the number of bytes of the file.
func copySparse(w io.WriterAt, at int64, from string) (int64, error) {
	f, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	data, err := extents(f, info.Size())
	if err != nil {
		return 0, err
	}
	buf := make([]byte, copyChunk)
	for _, e := range data {
		for off := e.off; off < e.off+e.size; off += copyChunk {
			chunk := buf[:min(copyChunk, e.off+e.size-off)]
			if _, err := f.ReadAt(chunk, off); err != nil {
				return 0, fmt.Errorf("read %s: %w", from, err)
			}
			if err := writeSparse(w, at+off, chunk); err != nil {
				return 0, err
			}
		}
	}
	return info.Size(), nil
}

// writeSparse writes b at off, page by page, leaving out pages that are zero.
func writeSparse(w io.WriterAt, off int64, b []byte) error {
	for start := 0; start < len(b); {
		end := start
		for end < len(b) && !isZero(b[end:min(end+pageSize, len(b))]) {
			end = min(end+pageSize, len(b))
		}
		if end > start {
			if _, err := w.WriteAt(b[start:end], off+int64(start)); err != nil {
				return err
			}
		}
		start = min(end+pageSize, len(b))
	}
	return nil
}

func isZero(b []byte) bool { return bytes.Equal(b, zeroChunk[:len(b)]) }
