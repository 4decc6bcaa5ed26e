package attacks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// indexed is an index payload for the image that patched describes, in blocks so small
// that there are some.
func indexed() []byte {
	image := append(bytes.Clone(text), theDesk().first.images["boot"][16:]...)
	var blob bytes.Buffer
	must(mkblocks.Make(background, mkblocks.Image{ReaderAt: bytes.NewReader(image), Size: bootSize}, mkblocks.Options{Block: 512, FrameSize: leaf, Window: leaf, Workers: 1}, &blob))
	return blob.Bytes()
}

// resummed mends the checksum of an index after a change, as whoever means harm would.
func resummed(blob []byte, change func(b []byte)) []byte {
	b := bytes.Clone(blob)
	change(b)
	end := min(binary.LittleEndian.Uint64(b[64:]), uint64(len(b)-blocks.HeaderSize)) + blocks.HeaderSize
	sum := sha256.Sum256(append(bytes.Clone(b[:96]), b[blocks.HeaderSize:end]...))
	copy(b[96:], sum[:])
	return b
}

// looks offers index payloads to one device. They are refused before a byte is written.
func (s *Scene) looks(offers func(offer func(blob []byte, format string, args ...any))) error {
	d := s.device(theDesk().first, theDesk().old).keep(running, spare, record, memo)
	u, repo := must(d.on()), theDesk().repository()
	offers(func(blob []byte, format string, args ...any) {
		r := patched(blob, manifest.KindIndex)
		repo.offer(r)
		s.Variant(u.Install(background, r.from(repo.bump().publish()), updater.Options{Full: transport.FullGo}), format, args...)
	})
	return nil
}

// indices is a case of index payloads whose header lies.
func indices(name, input string, want error, threats []string, changes ...func(b []byte)) Attack {
	return Attack{Name: "index/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		blob := indexed()
		return s.looks(func(offer func([]byte, string, ...any)) {
			for i, change := range changes {
				offer(resummed(blob, change), "variant %d", i)
			}
		})
	}}
}

// put returns a change of one field of a header.
func put[T uint8 | uint16 | uint32 | uint64](at int, v T) func(b []byte) {
	return func(b []byte) { copy(b[at:], must(binary.Append(nil, binary.LittleEndian, v))) }
}

var indexAttacks = []Attack{
	{
		Name: "index/truncated-at-every-byte", Input: "each beginning of an index", Want: either(delta.ErrFormat, delta.ErrLimit), Threats: []string{suitFormat},
		Run: func(s *Scene) error {
			blob := indexed()
			end := blocks.HeaderSize + int(binary.LittleEndian.Uint64(blob[64:]))
			return s.looks(func(offer func([]byte, string, ...any)) {
				for n := 1; n < end; n++ {
					offer(blob[:n], "%d bytes", n)
				}
				offer(blob[:len(blob)-1], "a byte of the last unit less")
				offer(append(bytes.Clone(blob), 0), "a byte more")
			})
		},
	},
	{
		// What an index says of units is looked at when they are fetched: this is all of
		// the blob, without a device around it.
		Name: "index/every-bit-flipped", Input: "an index payload with one other bit", Threats: []string{suitFormat, suitOnPath},
		Want: either(delta.ErrFormat, delta.ErrLimit, delta.ErrMemory, delta.ErrUnsupported, delta.ErrBase),
		Run: func(s *Scene) error {
			blob := indexed()
			image := theDesk().first.images["boot"]
			s.Keep("the old image", func() []byte { return image })
			end := blocks.HeaderSize + int(binary.LittleEndian.Uint64(blob[64:]))
			for bit := 0; bit < len(blob)*8; bit++ {
				if bit/8 > end { // noise that is stored as it is: some of its bits will do
					bit += 126
				}
				bad := bytes.Clone(blob)
				bad[min(bit/8, len(bad)-1)] ^= 1 << (bit % 8)
				s.Variant(fetchAll(bad), "bit %d", bit)
			}
			return nil
		},
	},
	indices("counts-that-wrap", "four billion units, hashes and blocks", either(delta.ErrFormat, delta.ErrLimit), []string{tufEndless, uptaneEndlessData},
		put(60, uint32(1<<32-1)), put(56, uint32(1<<32-1)), put(64, uint64(1<<63)), put(64, uint64(1<<32)), put(64, uint64(1<<64-1)), put(16, uint64(1<<63)), put(16, uint64(1<<64-1)), put(16, uint64(bootSize+1)), put(16, uint64(1<<32+bootSize)),
		put(60, uint32(0)), put(56, uint32(0)), put(64, uint64(0)), put(64, uint64(1))),
	indices("units-of-no-size", "blocks, frames and units of nothing, or of all of it", either(delta.ErrFormat, delta.ErrLimit), []string{uptaneSlowRetrieval},
		put(32, uint32(0)), put(32, uint32(513)), put(32, uint32(1<<31)), put(36, uint32(0)), put(36, uint32(leaf+1)), put(36, uint32(1<<31)), put(40, uint32(1<<31)), put(40, uint32(1)), put(44, uint8(0)), put(44, uint8(7)), put(44, uint8(255)), put(46, uint16(0)), put(46, uint16(1<<15))),
	indices("more-memory-than-granted", "an index that takes 4 GiB to use", delta.ErrMemory, []string{uptaneEndlessData}, put(24, uint64(1<<32)), put(24, uint64(memory+1))),
	indices("less-memory-than-it-takes", "an index that hides what it takes", delta.ErrFormat, []string{uptaneEndlessData}, put(24, uint64(0)), put(24, uint64(1<<16)), put(45, uint8(1)), put(72, uint8(1))),
	indices("of-tomorrow", "an index for a newer decoder, and another payload", either(delta.ErrUnsupported, delta.ErrFormat), []string{suitFormat}, put(8, uint16(2)), put(10, uint16(1)), put(12, uint32(1)), func(b []byte) { copy(b, delta.Magic) }, put(0, uint64(0))),
	indices("runs-that-make-no-sense", "runs of no blocks, of kinds that do not exist, and repetitions of what is not there", delta.ErrFormat, []string{suitFormat, uptaneSlowRetrieval},
		put(128, uint8(0)), put(128, uint8(3)), put(128, uint8(0xff)), func(b []byte) { b[128] |= 3 }, func(b []byte) { b[128] = b[128]&^3 | 2 }, func(b []byte) { copy(b[128:], bytes.Repeat([]byte{0x80}, 20)) }),
	{
		Name: "index/units-of-the-wrong-hand", Input: "units that were signed and do not unpack to what they should: bombs, noise, a byte less", Want: transport.ErrLeaf, Threats: []string{tufEndless, suitFormat},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			u, repo := must(d.on()), theDesk().repository()
			// Literals that repeat one value, and no sequences.
			sevens := func(n int) []byte { v := n<<4 | 3<<2 | 1; return []byte{byte(v), byte(v >> 8), byte(v >> 16), 7, 0} }
			for i, unit := range [][]byte{sevens(bootSize), sevens(bootSize - 1), sevens(bootSize + 1), sevens(1<<20 - 1), {0}, {3 | 1<<4, 0, 0, 0}, {1 << 3, 7, 1, 0x54, 5, 10, 20, 0xff, 0xff, 0xff}, {0xf1, 0x4d, 0x3a, 0x99}, bytes.Repeat([]byte{7}, bootSize)} {
				r := patched(oneUnit(unit), manifest.KindIndex)
				repo.offer(r)
				s.Variant(u.Install(background, r.from(repo.bump().publish()), updater.Options{Full: transport.FullGo}), "variant %d", i)
			}
			return nil
		},
	},
	{
		Name: "index/units-changed-on-the-way", Input: "a mirror that changes units, which no list of leaves guards", Want: transport.ErrLeaf, Threats: []string{suitOnPath, suitRedirect, tufMirrors},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			r := theDesk().next.changed(func(m *manifest.Manifest) {
				for i := range m.Images {
					m.Images[i].Payloads = m.Images[i].Payloads[2:]
				}
			})
			src, blob := d.source(r), r.m.Images[1].Payloads[0].Blob.Digest
			src.read = func(_ context.Context, which manifest.Digest, off int64, p []byte, n int, err error) (int, error) {
				// Units are fetched in ranges of their own, the index in leaves.
				if which == blob && off%leaf != 0 {
					p[n/2] ^= 1
				}
				return n, err
			}
			err := must(d.on()).Install(background, src, updater.Options{Full: transport.FullGo})
			require.Empty(s, d.verdicts, "no source makes a device give up")
			d.takes(r)
			return err
		},
	},

	{
		Name: "leaves/that-are-none", Input: "lists of leaves that reach outside of the old image, or end too early or too late", Want: delta.ErrFormat, Threats: []string{suitFormat, tufEndless},
		Run: func(s *Scene) error {
			old := theDesk().first.images["root"]
			s.Keep("the old image", func() []byte { return old })
			sum := make([]byte, sha256.Size)
			word := func(kind int, count uint64, more ...uint64) []byte {
				return numbers(append([]uint64{count<<leaves.Kinds | uint64(kind)}, more...)...)
			}
			for i, b := range [][]byte{
				{}, word(leaves.Zero, 0), word(leaves.Zero, 3), word(leaves.Zero, 5), word(leaves.Zero, 1<<61), word(3, 4), word(leaves.Listed, 4), append(word(leaves.Listed, 4), sum...),
				word(leaves.Old, 4), word(leaves.Old, 4, 1), word(leaves.Old, 4, 2), word(leaves.Old, 4, 1<<62), word(leaves.Old, 4, 1<<63-1), word(leaves.Old, 1<<40, 0), append(word(leaves.Zero, 4), 0),
				append(word(leaves.Old, 1, 1<<62-2), word(leaves.Old, 3, 1<<62-2)...), bytes.Repeat([]byte{0xff}, 50), bytes.Repeat(word(leaves.Zero, 0), 10000), append(word(leaves.Zero, 1), word(leaves.Listed, 1<<58)...),
			} {
				image := leaves.Image{ReaderAt: bytes.NewReader(old), Size: rootSize}
				list, err := leaves.List(append([]byte(leaves.Magic), b...), rootSize, image, func() error { return nil })
				s.Variant(err, "variant %d", i)
				require.Empty(s, list)
			}
			_, err := leaves.List([]byte("TNDMLEAF\x02"), rootSize, leaves.Image{ReaderAt: bytes.NewReader(old), Size: rootSize}, nil)
			s.Variant(err, "of tomorrow")
			return nil
		},
	},
	{
		Name: "leaves/of-wrong-hashes", Input: "a signed blob that tells other leaves than the manifest names", Threats: []string{suitModification, tufMixAndMatch},
		Run: func(s *Scene) error {
			for _, told := range [][]byte{
				append([]byte(leaves.Magic), numbers(4<<leaves.Kinds|leaves.Zero)...), append([]byte(leaves.Magic), numbers(4<<leaves.Kinds|leaves.Old, 0)...), []byte("garbage"), {0},
			} {
				s.Compare()
				d := s.device(theDesk().first, theDesk().old).keep(running)
				r := theDesk().next.changed(func(m *manifest.Manifest) {
					m.Images[1].Payloads[1].Leaves = manifest.Content{Digest: manifest.DigestOf(told), Size: int64(len(told))}
				})
				r.add(told)
				d.takes(r)
			}
			return nil
		},
	},
	onTheWay("leaves/changed-on-the-way", "a mirror that changes short ranges only", transport.ErrLeaf, []string{suitOnPath, suitRedirect}, func(p []byte, _ int64, n int, err error) (int, error) {
		if len(p) < 1000 {
			p[0] ^= 1
		}
		return n, err
	}),
}

// fetchAll builds the image of an index payload from its blob alone, and requires that
// nothing is written beside it.
func fetchAll(blob []byte) error {
	x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: memory, Size: bootSize})
	if err != nil {
		return err
	}
	dst, check := guarded()
	err = x.Build(0, blocks.Sources{Blob: bytes.NewReader(blob)}, dst)
	check()
	return err
}

// oneUnit is a flawless index payload around one unit, with hashes that no slot has.
func oneUnit(unit []byte) []byte {
	const count = bootSize / 512
	sum := sha256.Sum256(unit)
	directory := sha256.Sum256(sum[:blocks.SumSize])
	index := numbers(count<<blocks.KindBits|blocks.KindFresh, uint64(len(unit))*count+count-1)
	index = append(index, directory[:blocks.SumSize]...)
	for i := range count * 6 {
		index = append(index, byte(i)|1)
	}
	h := make([]byte, blocks.HeaderSize)
	copy(h, blocks.Magic)
	for _, field := range []func(b []byte){
		put(8, uint16(blocks.Version)), put(16, uint64(bootSize)), put(24, uint64(blocks.MemoryNeeded(count, 1, 1, 512, leaf, 0))), put(32, uint32(512)), put(36, uint32(leaf)),
		put(44, uint8(6)), put(46, uint16(count)), put(56, uint32(count)), put(60, uint32(1)), put(64, uint64(len(index))),
	} {
		field(h)
	}
	return resummed(bytes.Join([][]byte{h, index, sum[:blocks.SumSize], unit}, nil), func([]byte) {})
}
