package boottest

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/tandem-ota/tandem/bootctl/grubenv"
)

// Hostile returns the storage with some bytes of its copies changed: see Spoil.
func Hostile(r *rand.Rand, env []byte) []byte {
	out := slices.Clone(env)
	Spoil(r, out)
	return out
}

// Spoil changes copies in env as decay, a bug or an attacker who knows the format
// would: bits flipped, sectors exchanged or filled, records that exist in any
// generation, records that cannot exist with the right check word, names twice,
// newlines escaped, values that leave no room, wholly random bytes.
func Spoil(r *rand.Rand, env []byte) {
	for range 1 + r.IntN(4) {
		sector := env[copies[r.IntN(3)]:][:grubenv.SectorSize]
		if r.IntN(2) == 0 {
			damage(r, sector, env)
		} else {
			forge(r, sector)
		}
	}
}

var copies = [3]int{grubenv.Copy0Offset, grubenv.Copy1Offset, grubenv.ConfirmedOffset}

// textEnd is behind the text of a copy; only # follows.
const textEnd = 200

// damage is what happens without anybody's intent.
func damage(r *rand.Rand, sector, env []byte) {
	const alphabet = "ab0123456789none=\n#\\\x00"
	at := r.IntN(textEnd)
	switch r.IntN(6) {
	case 0:
		sector[at] ^= 1 << r.IntN(8)
	case 1:
		sector[at] = alphabet[r.IntN(len(alphabet))]
	case 2:
		copy(sector, env[copies[r.IntN(3)]:][:grubenv.SectorSize])
	case 3:
		copy(sector[at:], sector[r.IntN(textEnd):][:r.IntN(40)])
	case 4: // erased, or never written
		fill := []byte{0, 0xff, '#', '\n', '\\', '='}[r.IntN(6)]
		for i := range sector[at:] {
			sector[at+i] = fill
		}
	case 5:
		random(r, sector[[]int{0, len(blockSignature), at}[r.IntN(3)]:])
	}
}

func random(r *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

const blockSignature = "# GRUB Environment Block\n"

var everyRecord = sync.OnceValue(Records)

// forge writes what somebody would who wants a slot booted that must not be.
func forge(r *rand.Rand, sector []byte) {
	if r.IntN(3) == 0 {
		all := everyRecord()
		c := grubenv.Copy{Record: all[r.IntN(len(all))], Generation: r.IntN(3)}
		copy(sector, c.Block())
		return
	}
	lines := forgedLines(r)
	// A check word that fits, for those values that GRUB takes from several lines.
	sum := fmt.Sprintf("check=%08x", crc32.ChecksumIEEE([]byte(strings.Join(lines, "\n")+"\n")))
	lines = append(lines, sum)
	switch i := r.IntN(len(lines)); r.IntN(6) {
	case 0: // twice, with another value
		name, _, _ := strings.Cut(lines[i], "=")
		lines = slices.Insert(lines, r.IntN(len(lines)+1), name+"="+[]string{"a", "b", "none", "9", ""}[r.IntN(5)])
	case 1: // a newline that does not end the line
		lines[i] += "\\"
	case 2: // and one in the middle of it
		lines[i] = strings.Replace(lines[i], "=", "=\\\n", 1)
	case 3: // no room to save anything
		lines = slices.Insert(lines, i, "tandem="+strings.Repeat("1", r.IntN(600)))
	case 4: // hidden behind a comment
		lines = slices.Insert(lines, i, "#"+lines[i]+"\\")
	}
	text := blockSignature + strings.Join(lines, "\n") + "\n"
	copy(sector, bytes.Repeat([]byte{"#\n\x00"[r.IntN(3)]}, len(sector)))
	copy(sector, text)
}

// forgedLines are the variables of a record, most of them with values that a
// record can have.
func forgedLines(r *rand.Rand) []string {
	pick := func(sound []string, others ...string) string {
		if r.IntN(8) == 0 {
			return others[r.IntN(len(others))]
		}
		return sound[r.IntN(len(sound))]
	}
	slots, maybe := []string{"a", "b"}, []string{"none", "a", "b"}
	return []string{
		"tandem=" + pick([]string{"1"}, "2", "", "01", "1 "),
		"good=" + pick(slots, "none", "c", "", "A", "a b"),
		"trying=" + pick(maybe, "c", "", "ab"),
		"tries=" + pick([]string{"0", "1", "2", "3", "9"}, "10", "99", "-1", "03", "4294967297", "", "x"),
		"bad=" + pick(maybe, "ab", ""),
		"gen=" + pick([]string{"0", "1", "2"}, "3", "-1", "99", "", "00"),
	}
}
