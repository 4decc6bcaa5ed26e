package blocks

import (
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta"
)

// Source is a place where old content lies.
type Source int

// The running slot does not change while the new image is written. The spare slot
// does, from the front: its old bytes count only as far as they are not yet
// overwritten when they are needed.
const (
	Running Source = placeRunning
	Spare   Source = placeSpare
)

// Scan looks for missing blocks in the first size bytes of old, at every offset,
// and remembers where they are. It reads each byte once, from front to back, in pieces of
// at most 256 KiB, and stops early when nothing is missing any more. progress, if
// there is one, is told how many bytes are done.
//
// Scan the running slot first: blocks found there are not looked for again. A source that
// was scanned has to be given to Build. Finished frees what scanning took.
//
// The error wraps delta.ErrBase and what the reader returned. What was found until
// then stays good; a scan can be given up at any point, for the price of a larger download.
func (x *Index) Scan(from Source, old io.ReaderAt, size int64, progress func(done int64)) error {
	if from != Running && from != Spare || size < 0 || size > MaxSize {
		return fmt.Errorf("scan %d bytes of source %d: %w", size, from, delta.ErrLimit)
	}
	if x.heads == nil {
		return fmt.Errorf("scan after the first frame was made: %w", delta.ErrLimit)
	}
	h := NewHash(x.seed, int(x.block))
	n := int(x.block)
	buf := make([]byte, scanBuffer+n)
	have := 0 // bytes of buf
	for at := int64(0); at+int64(have) < size && x.missing > 0; {
		// buf[:have] was read before and lies at offset at.
		more := int(min(int64(len(buf)-have), size-at-int64(have)))
		if got, err := old.ReadAt(buf[have:have+more], at+int64(have)); got != more {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("scan at %d: %w", at+int64(have), errors.Join(delta.ErrBase, err))
		}
		have += more
		used := x.search(h, buf[:have], from, at)
		have = copy(buf, buf[used:have])
		at += int64(used)
		if progress != nil {
			progress(at + int64(have))
		}
	}
	return nil
}

// search looks at all windows of b and returns how many bytes need not be seen
// again: all but the last window's, or fewer.
func (x *Index) search(h *Hash, b []byte, from Source, at int64) int {
	n := h.size
	i := 0
	for i+n <= len(b) {
		v := h.Sum(b[i : i+n])
		if x.found(v, from, at+int64(i)) {
			i += n
			continue
		}
		// From here byte by byte, until a block is met.
		enters := b[i+n:]
		leaves := b[i : i+len(enters)]
		met := false
		filter, shift := x.filter, x.shift
		for k, c := range enters {
			v = h.Roll(v, leaves[k], c)
			if bitSet(filter, v>>shift) && x.found(v, from, at+int64(i+k+1)) {
				i += k + 1 + n
				met = true
				break
			}
		}
		if !met {
			i += len(enters) + 1
		}
	}
	return min(i, len(b))
}

// found takes all missing blocks with the hash v out of their bucket and notes
// that they are at offset at.
func (x *Index) found(v uint64, from Source, at int64) bool {
	v &= x.mask
	met := false
	key := uint32(v >> (64 - HashBits))
	link := &x.heads[v>>x.bucket]
	for *link != 0 {
		b := *link - 1
		// What lies before the frame is overwritten by the time the frame is made.
		if x.key[b] != key || from == Spare && at < int64(b)*x.block/x.frame*x.frame {
			link = &x.lo[b]
			continue
		}
		*link = x.lo[b]
		x.lo[b] = uint32(at)
		x.hi[b] = uint8(from) | uint8(at>>32)<<placeBits
		x.missing--
		met = true
	}
	return met
}

// Finished ends scanning and frees its tables; Build does it if it was not
// called. Blocks still missing will be fetched.
func (x *Index) Finished() {
	if x.heads == nil {
		return
	}
	x.heads, x.filter, x.key = nil, nil, nil
}
