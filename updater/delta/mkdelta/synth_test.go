package mkdelta

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
)

func image(b []byte) Image { return Image{bytes.NewReader(b), int64(len(b))} }

// systems returns two images of size bytes that resemble root file systems: text
// and code and noise in files, the new one with files moved, edited, relinked at
// other addresses, added and removed.
func systems(seed uint64, size int) (old, new []byte) {
	r := rand.New(rand.NewPCG(seed, 0))
	old, new = make([]byte, size), make([]byte, size)
	inOld, inNew := 0, 0
	for inOld < size*9/10 && inNew < size*9/10 {
		f := file(r, 4096+r.IntN(1<<18))
		inOld += copy(old[inOld:], f)
		switch r.IntN(8) {
		case 0: // removed
			f = nil
		case 1: // added
			f = append(f, file(r, 4096+r.IntN(1<<16))...)
		case 2: // edited
			for range 1 + r.IntN(20) {
				at, n := r.IntN(len(f)), r.IntN(200)
				f = append(append(append([]byte(nil), f[:at]...), file(r, n)...), f[min(at+r.IntN(200), len(f)):]...)
			}
		case 3: // relinked: addresses grow by a constant
			by := uint32(r.IntN(1 << 16))
			for at := 0; at+4 <= len(f); at += 20 + r.IntN(60) {
				binary.LittleEndian.PutUint32(f[at:], binary.LittleEndian.Uint32(f[at:])+by)
			}
		}
		inNew += copy(new[inNew:], f)
		inOld, inNew = (inOld+4095)&^4095, (inNew+4095)&^4095
	}
	return old, new
}

// file makes bytes that compress to about half, or not at all.
func file(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	noise := r.IntN(4) == 0
	for i := range b {
		if b[i] = byte(r.Uint32()); !noise {
			b[i] = "etaoin shrdlu\n\x00\x01\x02"[b[i]&15]
		}
	}
	return b
}
