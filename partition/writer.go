package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
)

var (
	// ErrWriter means that a Writer was used against its contract: a leaf of the
	// wrong length, an offset that is no leaf, an image that does not fit. A bug
	// or a wrong manifest; nothing was written by the call.
	ErrWriter = errors.New("invalid slot write")
	// ErrMismatch means that the medium holds something else than it should. The
	// slot must not be booted; write it again, and replace the medium if it recurs.
	ErrMismatch = errors.New("content on the medium differs")
)

// Writer writes an image to the front of a Disk: strictly forward, leaf by
// leaf, with one leaf of memory. Blocks that are already right on the medium are
// not written again. After any error the Writer is dead and returns that error
// for ever; go on with a new one from the last checkpoint.
type Writer struct {
	disk    Disk
	size    int64
	next    int64 // where the next leaf goes
	durable int64 // what the last checkpoint promised
	old     []byte
	count   Counters
	err     error
}

// NewWriter returns a Writer for an image of size bytes that continues at from,
// an offset that an earlier Writer's Checkpoint returned for the same image, or
// 0. If size or from make no sense, every method returns ErrWriter.
func NewWriter(d Disk, size, from int64) *Writer {
	w := &Writer{disk: d, size: size, next: from, durable: from, old: make([]byte, LeafSize)}
	switch {
	case size < 0 || size > d.Size():
		w.err = fmt.Errorf("%w: image of %d bytes on a partition of %d", ErrWriter, size, d.Size())
	case from < 0 || from > size || from%LeafSize != 0 && from != size:
		w.err = fmt.Errorf("%w: continue at %d of %d, which is no leaf", ErrWriter, from, size)
	}
	return w
}

// Offset returns where the next leaf goes, in bytes.
func (w *Writer) Offset() int64 { return w.next }

// Counters returns what this Writer did so far.
func (w *Writer) Counters() Counters { return w.count }

// WriteLeaf writes the next leaf: LeafSize bytes, or what is left at the end.
//
// Nil guarantees nothing about a power cut; see Checkpoint. An error names the
// offset and leaves the leaf in any state.
func (w *Writer) WriteLeaf(p []byte) error {
	if w.err != nil {
		return w.err
	}
	if want := min(LeafSize, w.size-w.next); int64(len(p)) != want || want == 0 {
		return w.fail(fmt.Errorf("%w: leaf of %d bytes at %d of %d", ErrWriter, len(p), w.next, w.size))
	}
	old := w.old[:len(p)]
	// Past the page cache: after a failed sync the cache may show blocks that
	// never reached the medium, and they would be taken for equal.
	if err := readFull(w.disk, old, w.next); err != nil {
		// A sector that cannot be read may well be writable again: flash remaps it.
		old = nil
	} else {
		w.count.Read += int64(len(p))
	}
	same := int64(len(p))
	for _, run := range differing(old, p) {
		at := w.next + int64(run.from)
		if n, err := w.disk.WriteAt(p[run.from:run.to], at); err != nil {
			return w.fail(fmt.Errorf("write at %d: %w", at+int64(n), err))
		}
		w.count.Written += int64(run.to - run.from)
		same -= int64(run.to - run.from)
	}
	w.count.Skipped += same
	w.next += int64(len(p))
	return nil
}

// span is a range of bytes within a leaf.
type span struct{ from, to int }

// differing returns the runs of whole blocks in which old and p differ; without
// old that is all of p.
func differing(old, p []byte) []span {
	if old == nil {
		return []span{{0, len(p)}}
	}
	var runs []span
	for from := 0; from < len(p); from += BlockSize {
		to := min(from+BlockSize, len(p))
		if bytes.Equal(old[from:to], p[from:to]) {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].to == from {
			runs[n-1].to = to
		} else {
			runs = append(runs, span{from, to})
		}
	}
	return runs
}

// Checkpoint makes all leaves written so far durable and returns the offset up
// to which the image is safe, whatever happens.
//
// If it fails, the image is durable only up to the returned offset, that of the
// checkpoint before; do not call it again but continue there with a new Writer.
func (w *Writer) Checkpoint() (int64, error) {
	if w.err != nil {
		return w.durable, w.err
	}
	// Also when this Writer wrote nothing: blocks may be equal because a run that
	// was killed wrote and never synced them.
	if err := w.disk.Sync(); err != nil {
		return w.durable, w.fail(fmt.Errorf("sync at %d: %w", w.next, err))
	}
	w.durable = w.next
	return w.durable, nil
}

// Finish makes the whole image durable; what lies behind it stays as it was. It
// is ErrWriter if leaves are missing. If it fails, continue from the last
// checkpoint with a new Writer.
func (w *Writer) Finish() error {
	if w.err == nil && w.next != w.size {
		return w.fail(fmt.Errorf("%w: finished at %d of %d", ErrWriter, w.next, w.size))
	}
	_, err := w.Checkpoint()
	return err
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}

// ReadBack compares the first size bytes of d with the digests of their leaves
// (SHA-256, 32 bytes each, one after the other; for an image of at most one
// leaf that is the digest of the image). It reads past the page cache where d is
// a Medium, holds one leaf in memory and calls progress, if there is one, with
// the number of bytes that are proven.
//
// Nil means that the medium held these bytes when asked. ErrMismatch names the
// offset of the first leaf that differs.
func ReadBack(ctx context.Context, d Disk, size int64, leaves []byte, progress func(done int64)) error {
	if size < 0 || size > d.Size() {
		return fmt.Errorf("read back %d bytes of a partition of %d: %w", size, d.Size(), ErrOutside)
	}
	if want := Leaves(size) * sha256.Size; int64(len(leaves)) != want {
		return fmt.Errorf("read back: %d bytes of digests instead of %d: %w", len(leaves), want, ErrMismatch)
	}
	buf := make([]byte, min(LeafSize, size))
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read back at %d: %w", off, err)
		}
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := readFull(d, buf, off); err != nil {
			return fmt.Errorf("read back at %d: %w", off, err)
		}
		if sum := sha256.Sum256(buf); !bytes.Equal(sum[:], leaves[:sha256.Size]) {
			return fmt.Errorf("read back at %d: %w", off, ErrMismatch)
		}
		leaves = leaves[sha256.Size:]
		if progress != nil {
			progress(off + int64(len(buf)))
		}
	}
	return nil
}

// Leaves returns the number of leaves of an image of size bytes.
func Leaves(size int64) int64 { return (size + LeafSize - 1) / LeafSize }
