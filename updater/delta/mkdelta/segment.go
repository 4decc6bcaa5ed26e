package mkdelta

import (
	"encoding/binary"
	"math/bits"
)

const (
	zeroRun = 64 // zeros worth an operation of their own

	// A place elsewhere has to explain so many bytes more than the displacement
	// in use to be tried in its place, as in bsdiff: what happens to agree is no relation.
	jump = 8

	enough = 16 << 10 // a match that needs no rival
)

// segment says where a range of a frame comes from: from a space, with some
// bytes different, or from zeros. Between segments lie literals.
type segment struct {
	start, end int // in the frame
	zero       bool
	space      uint8 // 0: the old image; 1: the new image in front of the frame; 2: the expansion
	at         int64 // displacement: source offset minus new offset
}

// common returns the length of the common beginning of a and b.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

func zeros(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if x := binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for i < len(b) && b[i] == 0 {
		i++
	}
	return i
}
