package blocks

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta"
)

// Sources are what a frame is made from.
type Sources struct {
	// Blob hands out bytes of the blob, checked or not: Build checks what it uses.
	Blob io.ReaderAt

	// Running and Spare are what was scanned, nil for what was not. An old block that
	// cannot be read any more is fetched instead.
	Running, Spare io.ReaderAt

	// Done holds the new image up to the frame, at the same offsets: the spare slot,
	// if the Running one was scanned as such. It may be nil if frames are made
	// from the first on and the image repeats nothing from before the frame.
	Done io.ReaderAt

	// Check tells whether leaf is what the new image has at offset, a multiple of
	// Leaf. Without it nobody notices that a hash stood for another block.
	Check func(offset int64, leaf []byte) bool
}

// Range is a range of the blob.
type Range struct{ Offset, Length int64 }

// unit is a run of blocks that are fetched together.
type unit struct {
	block, count int   // its blocks
	number       int   // in its frame
	blob, packed int64 // its range of the blob
	fetched      []byte
}

// Ranges returns what Build will read of the blob for frame i, as things stand: in order,
// neighbours joined. A caller that wants to may fetch them ahead.
func (x *Index) Ranges(i int) []Range { return x.ranges(i, x.wanted(i, nil)) }

// Missing is the number of bytes that the frames from one on will fetch, as
// things stand. The index itself is not counted.
func (x *Index) Missing(from int) (bytes int64) {
	for i := max(from, 0); i < len(x.frames); i++ {
		for _, r := range x.Ranges(i) {
			bytes += r.Length
		}
	}
	return bytes
}

func (x *Index) ranges(i int, wanted []unit) (all []Range) {
	if len(wanted) == 0 {
		return nil
	}
	all = append(all, Range{x.frames[i].blob, int64(x.unitsOf(i)) * SumSize})
	for _, u := range wanted {
		if last := &all[len(all)-1]; last.Offset+last.Length == u.blob {
			last.Length += u.packed
		} else {
			all = append(all, Range{u.blob, u.packed})
		}
	}
	return all
}

// unitsOf is the number of units of frame i.
func (x *Index) unitsOf(i int) int {
	end := len(x.units)
	if i+1 < len(x.frames) {
		end = int(x.frames[i+1].unit)
	}
	return end - int(x.frames[i].unit)
}

// blocksOf returns the blocks of frame i.
func (x *Index) blocksOf(i int) (first, end int) {
	per := int(x.frame / x.block)
	return i * per, min((i+1)*per, len(x.hi))
}

// wanted appends the units of frame i in which a block is missing.
func (x *Index) wanted(i int, list []unit) []unit {
	b, _ := x.blocksOf(i)
	f := x.frames[i]
	n := x.unitsOf(i)
	at := f.blob + int64(n)*SumSize
	for number, word := range x.units[f.unit:][:n] {
		for place := x.hi[b] & placeMask; place == placeZero || place == placeRepeat; place = x.hi[b] & placeMask {
			b++
		}
		u := unit{block: b, count: int(word & unitBlocks), number: number, blob: at, packed: int64(word >> unitShift)}
		at += u.packed
		for range u.count {
			if x.hi[b] == placeMissing && (len(list) == 0 || list[len(list)-1].block != u.block) {
				list = append(list, u)
			}
			b++
		}
	}
	return list
}

// Build makes frame i in dst, which must be as long as the frame, and checks it.
//
// After an error the content of dst is undefined and must not be written. The
// errors are delta.ErrFormat, delta.ErrBase (the blocks before the frame cannot be
// read), and what reading the blob returned; after the latter two the call
// can be repeated.
func (x *Index) Build(i int, src Sources, dst []byte) error {
	if i < 0 || i >= len(x.frames) {
		return fmt.Errorf("frame %d of %d: %w", i, len(x.frames), delta.ErrFormat)
	}
	x.Finished()
	target, length := x.Frame(i)
	if int64(len(dst)) != length {
		return fmt.Errorf("frame %d: room for %d bytes of %d: %w", i, len(dst), length, delta.ErrFormat)
	}
	// Each round but the last gives up some old blocks, the third all of the frame.
	for round := 1; ; round++ {
		good, err := x.assemble(i, src, dst)
		if err != nil {
			return fmt.Errorf("frame %d: %w", i, err)
		}
		if good && x.verify(i, src, dst) {
			x.work.keep(dst, target, x.window)
			return nil
		}
		first, end := x.blocksOf(i)
		if round > 1 && x.forget(first, end) == 0 && good || round > 4 {
			return fmt.Errorf("frame %d differs from the image that was signed: %w", i, delta.ErrFormat)
		}
	}
}

// verify checks the leaves of a frame and forgets where the blocks of a wrong one
// came from.
func (x *Index) verify(i int, src Sources, dst []byte) bool {
	if src.Check == nil {
		return true
	}
	target, length := x.Frame(i)
	good := true
	for at := int64(0); at < length; at += Leaf {
		end := min(at+Leaf, length)
		if !src.Check(target+at, dst[at:end]) {
			x.forget(int((target+at)/x.block), int((target+end+x.block-1)/x.block))
			good = false
		}
	}
	return good
}

// forget makes old blocks missing again and returns how many there were.
func (x *Index) forget(first, end int) (n int) {
	for b := first; b < end; b++ {
		if place := x.hi[b] & placeMask; place == placeRunning || place == placeSpare {
			x.hi[b] = placeMissing
			n++
		}
	}
	return n
}

// assemble puts a frame together. It returns false if something old stood in the
// way, which is forgotten then: the next try will fetch it.
func (x *Index) assemble(i int, src Sources, dst []byte) (good bool, err error) {
	target, _ := x.Frame(i)
	w := &x.work
	w.wanted = x.wanted(i, w.wanted[:0])
	if len(w.wanted) > 0 {
		w.allocate(x)
		if err := x.history(src, target); err != nil {
			return false, err
		}
		if err := x.fetch(i, src.Blob); err != nil {
			return false, err
		}
	}
	good, err = x.gather(i, src, dst)
	if err != nil || !good {
		return false, err
	}
	packed := 0
	for k, u := range w.wanted {
		if n := x.sizeOf(u.block, u.count); u.packed == n {
			copy(dst[int64(u.block)*x.block-target:], u.fetched)
		} else {
			packed = k + 1
		}
	}
	if packed == 0 {
		return true, nil
	}
	if err := x.unpack(w.wanted[:packed], target, dst); err != nil {
		first, end := x.blocksOf(i)
		if x.forget(first, end) == 0 {
			return false, err
		}
		return false, nil // something before the unit was not what its hash promised
	}
	return true, nil
}

// fetch reads the directory and the wanted units and checks them.
func (x *Index) fetch(i int, blob io.ReaderAt) error {
	w := &x.work
	room := w.past[w.have:]
	for _, r := range x.ranges(i, w.wanted) {
		part := room[:r.Length]
		room = room[r.Length:]
		if err := readFull(blob, part, r.Offset); err != nil {
			return fmt.Errorf("read blob: %w", err)
		}
	}
	n := x.unitsOf(i) * SumSize
	directory, rest := w.past[w.have:][:n], w.past[w.have+n:]
	if sum := sha256.Sum256(directory); [SumSize]byte(sum[:]) != x.frames[i].sum {
		return fmt.Errorf("directory: %w", delta.ErrFormat)
	}
	for k := range w.wanted {
		u := &w.wanted[k]
		u.fetched, rest = rest[:u.packed], rest[u.packed:]
		if sum := sha256.Sum256(u.fetched); [SumSize]byte(sum[:]) != [SumSize]byte(directory[u.number*SumSize:]) {
			return fmt.Errorf("unit %d: %w", u.number, delta.ErrFormat)
		}
	}
	return nil
}

// gather fills in what is not in a wanted unit. Neighbouring reads of one place become
// one: on eMMC a seek costs more than the bytes.
func (x *Index) gather(i int, src Sources, dst []byte) (good bool, err error) {
	target, _ := x.Frame(i)
	first, end := x.blocksOf(i)
	good = true
	wanted := x.work.wanted
	for b := first; b < end; {
		if len(wanted) > 0 && b == wanted[0].block {
			b += wanted[0].count
			wanted = wanted[1:]
			continue
		}
		stop := end
		if len(wanted) > 0 {
			stop = wanted[0].block
		}
		place, at := x.where(b)
		n := 1
		for b+n < stop {
			p, a := x.where(b + n)
			if p != place || place != placeZero && a != at+int64(n)*x.block {
				break
			}
			n++
		}
		out := dst[int64(b)*x.block-target:][:x.sizeOf(b, n)]
		switch place {
		case placeZero:
			clear(out)
		case placeRepeat:
			if err := readDone(src.Done, out, at); err != nil {
				return false, err
			}
		default:
			old := src.Running
			if place == placeSpare {
				old = src.Spare
			}
			if old == nil {
				good = false
			} else if got, _ := old.ReadAt(out, at); got != len(out) {
				good = false
			} else {
				break
			}
			x.forget(b, b+n)
		}
		b += n
	}
	return good, nil
}

// where returns the place of block b and its offset there.
func (x *Index) where(b int) (place uint8, at int64) {
	place = x.hi[b] & placeMask
	if place == placeRepeat {
		return place, int64(x.lo[b]) * x.block
	}
	return place, int64(x.hi[b]>>placeBits)<<32 | int64(x.lo[b])
}
