package mkdelta

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

const (
	short = 8 // bytes that agree at least where a file is compared with its older self

	// finePiece is how many old bytes are indexed at a time, byte by byte: 8 bytes
	// of memory each. Larger files are compared piece by piece.
	finePiece = 4 << 20

	// besideGap is how far around the same place bytes of no file are looked for.
	besideGap = 128 << 10

	// fineTries is how many places with the same 8 bytes are compared, those
	// nearest to where the bytes are expected.
	fineTries = 24
)

// fine finds 8 bytes of one old file, or of a piece of it, wherever they are.
// Places are sorted by hash and, with the same hash, by position, so that those near
// a position are found without going through thousands.
type fine struct {
	pieces []piece
	bits   uint
	bucket []int32 // by hash: where in place its places begin
	place  []int32 // positions, counted over the pieces
}

// piece is a stretch of the old image.
type piece struct {
	at    int64 // old offset
	start int32 // position of its first byte
	n     int32
}

// build indexes pieces of old.
func (f *fine) build(old []byte, pieces []piece) {
	f.pieces = pieces
	total := 0
	if n := len(pieces); n > 0 {
		total = int(pieces[n-1].start + pieces[n-1].n)
	}
	f.bits = uint(max(bits.Len(uint(total))-1, 8))
	f.bucket = append(f.bucket[:0], make([]int32, 1<<f.bits+1)...)
	f.each(old, func(slot uint64, _ int32) { f.bucket[slot+1]++ })
	for i := range 1 << f.bits {
		f.bucket[i+1] += f.bucket[i]
	}
	f.place = slices.Grow(f.place[:0], int(f.bucket[1<<f.bits]))[:f.bucket[1<<f.bits]]
	// Filling moves each bucket's beginning to its end, which is the next one's beginning.
	f.each(old, func(slot uint64, at int32) {
		f.place[f.bucket[slot]] = at
		f.bucket[slot]++
	})
	copy(f.bucket[1:], f.bucket[:1<<f.bits])
	f.bucket[0] = 0
}

func (f *fine) each(old []byte, do func(slot uint64, at int32)) {
	for _, p := range f.pieces {
		b := old[p.at : p.at+int64(p.n)]
		var before uint64
		for i := 0; i+short <= len(b); i++ {
			v := binary.LittleEndian.Uint64(b[i:])
			if v == before && i > 0 {
				continue // of a run of one byte, its beginning is enough
			}
			before = v
			do(f.slot(v), p.start+int32(i))
		}
	}
}

func (f *fine) slot(v uint64) uint64 { return v * factor >> (64 - f.bits) }

// position returns where an old offset is, or where it would be.
func (f *fine) position(at int64) int32 {
	for _, p := range f.pieces {
		if at < p.at+int64(p.n) && at >= p.at {
			return p.start + int32(at-p.at)
		}
	}
	if len(f.pieces) > 0 && at > f.pieces[0].at {
		last := f.pieces[len(f.pieces)-1]
		return last.start + last.n
	}
	return 0
}

// offset is the old offset of a position.
func (f *fine) offset(at int32) int64 {
	i, ok := slices.BinarySearchFunc(f.pieces, at, func(p piece, at int32) int {
		return int(p.start) - int(at)
	})
	if !ok {
		i--
	}
	return f.pieces[i].at + int64(at-f.pieces[i].start)
}

// near calls do with old offsets that may hold the 8 bytes v, those nearest to expected first.
func (f *fine) near(v uint64, expected int64, do func(at int64)) {
	if len(f.pieces) == 0 {
		return
	}
	slot := f.slot(v)
	places := f.place[f.bucket[slot]:f.bucket[slot+1]]
	if len(places) == 0 {
		return
	}
	want := f.position(expected)
	hi, _ := slices.BinarySearch(places, want)
	lo := hi - 1
	for range min(fineTries, len(places)) {
		if lo < 0 || hi < len(places) && places[hi]-want <= want-places[lo] {
			do(f.offset(places[hi]))
			hi++
		} else {
			do(f.offset(places[lo]))
			lo--
		}
	}
}

// pieces returns the parts of an old file around [logical, logical+n), at most
// finePiece bytes.
func pieces(f files.File, logical, n, size int64) []piece {
	around := max(finePiece-n, 0) / 2
	from, to := max(logical-around, 0), min(logical+n+around, f.Size)
	if f.Size <= finePiece {
		from, to = 0, f.Size
	}
	var out []piece
	total := int64(0)
	for _, e := range f.Extents {
		lo, hi := max(e.Logical, from), min(e.Logical+e.Size, to)
		hi = min(hi, lo+finePiece-total)
		if e.Codec != files.Stored || lo >= hi {
			continue
		}
		at := e.Offset + lo - e.Logical
		if at < 0 || at+hi-lo > size {
			continue
		}
		out = append(out, piece{at, int32(total), int32(hi - lo)})
		total += hi - lo
	}
	return out
}
