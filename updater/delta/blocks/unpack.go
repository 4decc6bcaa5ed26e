package blocks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta"
)

// work is what building a frame takes. It is allocated when the first unit is
// wanted: a device that has everything does without.
type work struct {
	wanted []unit
	past   []byte // up to a window of the image before end, then room for a frame and its directory
	have   int    // bytes of past that are valid
	end    int64  // where in the image they end
	in     []byte
	zstd   *zstd.Decoder
}

func (w *work) allocate(x *Index) {
	if w.past != nil {
		return
	}
	most := 0
	for i := range x.frames {
		most = max(most, x.unitsOf(i))
	}
	w.past = make([]byte, x.window+x.frame+int64(most)*SumSize)
	w.end = -1
}

// history makes sure that the bytes of the window before target are in memory. Usually they are.
func (x *Index) history(src Sources, target int64) error {
	w := &x.work
	n := min(x.window, target)
	if w.end == target && int64(w.have) == n {
		return nil
	}
	w.end, w.have = target, int(n)
	if err := readDone(src.Done, w.past[:n], target-n); err != nil {
		w.end = -1
		return err
	}
	return nil
}

// readDone reads the part of the new image that is on the medium already.
func readDone(done io.ReaderAt, p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	if done == nil {
		return fmt.Errorf("new image before the frame is not given: %w", delta.ErrBase)
	}
	if n, err := done.ReadAt(p, at); n != len(p) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("new image at %d: %w", at, errors.Join(delta.ErrBase, err))
	}
	return nil
}

// keep remembers the frame that begins at target for the units of the next one.
func (w *work) keep(dst []byte, target, window int64) {
	if w.past == nil {
		return
	}
	old := 0
	if w.end == target {
		// How much of what was before is still in the window of the next frame.
		old = min(w.have, max(0, int(window)-len(dst)))
		copy(w.past, w.past[w.have-old:w.have])
	}
	w.have = old + copy(w.past[old:window], dst[max(0, len(dst)-int(window)):])
	w.end = target + int64(len(dst))
}

// A zstd frame with a content size of four bytes, which is the window as well; and the
// types of its blocks (RFC 8878, sections 3.1.1 and 3.1.1.2).
const (
	zstdMagic     = 0xfd2fb528
	zstdSingle4   = 0xa0
	zstdRaw       = 0
	zstdPacked    = 2
	zstdMaxBlock  = 128 << 10
	zstdTypeShift = 1
	zstdSizeShift = 3
)

// unpack decodes the wanted units into dst, where everything else is already in place.
//
// A unit is the content of one zstd block. What stands before it in the image is put
// before it as blocks that are stored as they are, so that the decoder has seen
// it: one zstd frame is composed from the window, what the device had, and units.
func (x *Index) unpack(wanted []unit, target int64, dst []byte) error {
	w := &x.work
	if w.zstd == nil {
		d, err := zstd.NewReader(nil,
			// One goroutine: a fault in another one could not be handled here.
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(MaxWindow+MaxFrame),
			// The library's own bound on memory does not bound its output;
			// the capacity of the buffer that we hand in does.
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return fmt.Errorf("start decompressor: %w", err)
		}
		w.zstd, w.in = d, make([]byte, 0, x.window+x.frame+64<<10)
	}
	last := wanted[len(wanted)-1]
	upTo := int64(last.block)*x.block - target + x.sizeOf(last.block, last.count)
	total := w.have + int(upTo)
	in := binary.LittleEndian.AppendUint32(w.in[:0], zstdMagic)
	in = append(in, zstdSingle4)
	in = binary.LittleEndian.AppendUint32(in, uint32(total))
	in = appendRaw(in, w.past[:w.have])
	at := int64(0) // in dst
	for _, u := range wanted {
		start, size := int64(u.block)*x.block-target, x.sizeOf(u.block, u.count)
		if u.packed == size {
			continue // stored, and in dst already
		}
		in = appendRaw(in, dst[at:start])
		at = start + size
		in = appendHeader(in, zstdPacked, len(u.fetched))
		in = append(in, u.fetched...)
	}
	// The last block is marked as such; an empty one serves.
	in = append(in, 1|zstdRaw<<zstdTypeShift, 0, 0)
	w.in = in[:0]
	out, err := w.zstd.DecodeAll(in, w.past[:0:total])
	if err != nil || len(out) != total || total > 0 && &out[0] != &w.past[0] {
		return fmt.Errorf("units do not unpack to %d bytes (%v): %w", total, err, delta.ErrFormat)
	}
	out = out[w.have:]
	for _, u := range wanted {
		start, size := int64(u.block)*x.block-target, x.sizeOf(u.block, u.count)
		copy(dst[start:start+size], out[start:])
	}
	return nil
}

func appendHeader(in []byte, kind, size int) []byte {
	v := size<<zstdSizeShift | kind<<zstdTypeShift
	return append(in, byte(v), byte(v>>8), byte(v>>16))
}

func appendRaw(in, b []byte) []byte {
	for len(b) > 0 {
		n := min(len(b), zstdMaxBlock)
		in = append(appendHeader(in, zstdRaw, n), b[:n]...)
		b = b[n:]
	}
	return in
}
