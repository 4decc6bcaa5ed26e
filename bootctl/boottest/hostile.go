package boottest

import (
	"math/rand/v2"

	"github.com/tandem-ota/tandem/bootctl/grubenv"
)

// Hostile returns the storage with some bytes of its copies changed, as decay, a
// bug or an attacker would: bits flipped, sectors exchanged, bytes of the record
// set to others of its alphabet.
func Hostile(r *rand.Rand, env []byte) []byte {
	out := append([]byte(nil), env...)
	places := []int{grubenv.Copy0Offset, grubenv.Copy1Offset, grubenv.ConfirmedOffset}
	const alphabet = "ab0123456789none=\n#\\\x00"
	for range 1 + r.IntN(4) {
		sector := out[places[r.IntN(3)]:][:grubenv.SectorSize]
		at := r.IntN(200) // the text is shorter; behind it only # follows
		switch r.IntN(4) {
		case 0:
			sector[at] ^= 1 << r.IntN(8)
		case 1:
			sector[at] = alphabet[r.IntN(len(alphabet))]
		case 2:
			copy(sector, out[places[r.IntN(3)]:][:grubenv.SectorSize])
		case 3:
			copy(sector[at:], sector[r.IntN(200):][:r.IntN(40)])
		}
	}
	return out
}
