package attacks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/recode"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// text is what differs between the image that a patch here makes and its base.
var text = []byte("sixteen bytes ..")

// patch is a delta for the boot image, with one frame, as far as it is honest.
type patch struct {
	header patchHeader
	table  []uint32 // lengths of frames: of the image, of the blob
	frames []byte
}

// patchHeader is the first 96 bytes of delta/FORMAT.md.
type patchHeader struct {
	Magic                                             [8]byte
	Version, Flags                                    uint16
	Features                                          uint32
	Size, BaseSize                                    uint64
	Base                                              [sha256.Size]byte
	Memory                                            uint64
	Frames, Largest, Longest, Body, Workspace, Common uint32
}

const workspace = 4 << 10

// around makes a flawless patch of one frame: the signer was fooled, or is the attacker.
func around(frame []byte) *patch {
	p := &patch{frames: frame, table: []uint32{bootSize, uint32(len(frame))}}
	p.header = patchHeader{
		Version: delta.Version, Flags: delta.FlagBase, Size: bootSize, BaseSize: bootSize, Base: sha256.Sum256(theDesk().first.images["boot"]),
		Frames: 1, Largest: bootSize, Longest: uint32(len(frame)), Body: 16 << 10, Memory: 8 << 20,
	}
	copy(p.header.Magic[:], delta.Magic)
	return p
}

// plain names what frames that predict and recode need.
func (p *patch) plain() *patch {
	p.header.Features, p.header.Workspace = delta.FeaturePlain|1<<recode.Deflate, workspace
	return p
}

// changed is the patch with a lie in its header.
func (p *patch) changed(change func(h *patchHeader)) *patch {
	change(&p.header)
	return p
}

// bytes are the blob, with a checksum that holds.
func (p *patch) bytes() []byte {
	head := must(binary.Append(nil, binary.LittleEndian, p.header))
	table := must(binary.Append(nil, binary.LittleEndian, p.table))
	sum := sha256.Sum256(append(bytes.Clone(head), table...))
	return bytes.Join([][]byte{head, sum[:], table, p.frames}, nil)
}

func numbers(n ...uint64) (b []byte) {
	for _, v := range n {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// operation is one of a frame's control stream, with what follows it.
func operation(kind, length uint64, step ...uint64) []byte {
	return numbers(append([]uint64{length<<delta.OpBits | kind}, step...)...)
}

// stream is one part of a frame, as it is or packed.
func stream(b []byte) []byte {
	if len(b) == 0 {
		return numbers(0)
	}
	return append(numbers(uint64(len(b)), 0), b...)
}

func packed(says uint64, b []byte) []byte { return append(numbers(says, uint64(len(b))), b...) }

// ops is a frame of operations without differences.
func ops(literal []byte, operations ...[]byte) []byte {
	return bytes.Join([][]byte{{delta.CodingOps}, stream(bytes.Join(operations, nil)), stream(nil), literal}, nil)
}

// honest is the frame that makes what its manifest says: the text, and the rest as it was.
func honest(literal []byte) []byte {
	return ops(literal, operation(delta.OpLiteral, 16), operation(delta.OpCopyAt, bootSize-16, 0))
}

// patched is a release whose only way to its only image is the blob. Whoever made it has
// signed it.
func patched(blob []byte, kind string) *bundle {
	r := theDesk().next.changed(func(m *manifest.Manifest) { m.Images = m.Images[:1] })
	image := append(bytes.Clone(text), theDesk().first.images["boot"][16:]...)
	r.images = map[string][]byte{"boot": image}
	p := manifest.Payload{Kind: kind, Blob: r.add(blob), Memory: 8 << 20}
	if kind == manifest.KindDelta {
		p.Base = manifest.DigestOf(theDesk().first.images["boot"])
	}
	img := &r.m.Images[0]
	img.Content = manifest.Content{Digest: manifest.DigestOf(image), Size: bootSize}
	img.Payloads = []manifest.Payload{p}
	return r.signed()
}

// applies offers patches to one device, one after the other. What runs is never touched,
// and nothing that came of them is ever tried.
func (s *Scene) applies(offers func(offer func(blob []byte, format string, args ...any))) error {
	d := s.device(theDesk().first, theDesk().old).keep(running)
	u := must(d.on())
	// Metadata is not what these cases are about.
	repo := theDesk().repository()
	offers(func(blob []byte, format string, args ...any) {
		r := patched(blob, manifest.KindDelta)
		repo.offer(r)
		s.Variant(u.Install(background, r.from(repo.bump().publish()), updater.Options{Full: transport.FullGo}), format, args...)
		if d.rebooting != "" || d.record().Trying != "" {
			s.Errorf(format+": the result is to be tried", args...)
		}
	})
	return nil
}

// apply makes the image of a patch without a device, and requires that nothing is written
// beside it.
func apply(blob []byte) error {
	old := theDesk().first.images["boot"]
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: memory, Size: bootSize})
	if err != nil {
		return err
	}
	if base, _ := p.Base(); base != sha256.Sum256(old) || p.BaseSize() != bootSize {
		return delta.ErrBase // the caller's part, by the package's doc
	}
	dst, check := guarded()
	f := p.Frame(0)
	err = p.Decode(0, blob[f.Blob:f.Blob+f.BlobLength], delta.Sources{Old: bytes.NewReader(old)}, dst)
	if check(); err == nil && !bytes.Equal(dst, append(bytes.Clone(text), old[16:]...)) {
		return updater.ErrMismatch // as the leaves would say
	}
	return err
}

// guarded is room for the boot image, and what finds out whether anything was written
// beside it.
func guarded() (dst []byte, check func()) {
	const margin = 16
	room := bytes.Repeat([]byte{0xaa}, bootSize+2*margin)
	return room[margin : margin+bootSize : margin+bootSize], func() {
		if beside := append(bytes.Clone(room[:margin]), room[margin+bootSize:]...); !bytes.Equal(beside, bytes.Repeat([]byte{0xaa}, 2*margin)) {
			panic("written beside the image")
		}
	}
}

// patches is a case of blobs that a device is to apply.
func patches(name, input string, want error, threats []string, blobs func() []*patch) Attack {
	return Attack{Name: name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		return s.applies(func(offer func([]byte, string, ...any)) {
			for i, p := range blobs() {
				offer(p.bytes(), "variant %d", i)
			}
		})
	}}
}

// frames is a case of frames in a flawless patch.
func frames(name, input string, want error, threats []string, list func() [][]byte) Attack {
	return patches(name, input, want, threats, func() (out []*patch) {
		for _, frame := range list() {
			out = append(out, around(frame))
		}
		return out
	})
}

// damaged are all the ways in which a decoder may say that a patch is none.
var damaged = either(delta.ErrFormat, delta.ErrLimit, delta.ErrMemory, delta.ErrUnsupported, delta.ErrBase, updater.ErrMismatch)

const (
	huge = 1<<62 - 1
	rest = bootSize - 16
)

// deltaAttacks are patches of the wrong hand with right signatures, and patches that were
// changed on the way.
var deltaAttacks = []Attack{
	{
		Name: "delta/truncated-at-every-byte", Input: "each beginning of a patch", Want: delta.ErrFormat, Threats: []string{suitFormat, suitModification},
		Run: func(s *Scene) error {
			blob := around(honest(stream(text))).bytes()
			return s.applies(func(offer func([]byte, string, ...any)) {
				for n := 1; n < len(blob); n++ {
					offer(blob[:n], "%d bytes", n)
				}
			})
		},
	},
	{
		Name: "delta/every-bit-flipped", Input: "a patch with one other bit, signed", Want: damaged, Threats: []string{suitFormat, suitModification},
		Run: func(s *Scene) error {
			blob := around(honest(stream(text))).bytes()
			return s.applies(func(offer func([]byte, string, ...any)) {
				for bit := range len(blob) * 8 {
					bad := bytes.Clone(blob)
					bad[bit/8] ^= 1 << (bit % 8)
					if bit%9 == 0 { // a device takes as long as a hundred decoders
						offer(bad, "bit %d", bit)
					} else {
						s.Variant(apply(bad), "bit %d, without a device", bit)
					}
				}
			})
		},
	},
	patches("delta/sizes-beyond-the-limits", "headers that ask for more than any patch may", delta.ErrLimit, []string{tufEndless, uptaneEndlessData}, func() []*patch {
		var out []*patch
		for _, change := range []func(h *patchHeader){
			func(h *patchHeader) { h.Size = bootSize + 1 }, func(h *patchHeader) { h.Size = 1 << 63 }, func(h *patchHeader) { h.Size = 1<<64 - 1 }, func(h *patchHeader) { h.Size += 1 << 32 },
			func(h *patchHeader) { h.BaseSize = 1 << 63 }, func(h *patchHeader) { h.Frames = 1<<32 - 1 }, func(h *patchHeader) { h.Largest = 1<<32 - 1 }, func(h *patchHeader) { h.Longest = 1 << 31 },
			func(h *patchHeader) { h.Body = 1<<32 - 1 }, func(h *patchHeader) { h.Workspace = 1 << 31 }, func(h *patchHeader) { h.Common = 1<<32 - 1 }, func(h *patchHeader) { h.Memory = 1 << 63 },
		} {
			out = append(out, around(honest(stream(text))).changed(change))
		}
		return out
	}),
	patches("delta/header-that-contradicts-itself", "headers and tables of which one lies", delta.ErrFormat, []string{suitFormat}, func() []*patch {
		var out []*patch
		for _, change := range []func(h *patchHeader){
			func(h *patchHeader) { h.Memory = 100 }, func(h *patchHeader) { h.Largest-- }, func(h *patchHeader) { h.Longest++ }, func(h *patchHeader) { h.Frames = 0 }, func(h *patchHeader) { h.Frames = 2 },
			func(h *patchHeader) { h.Frames = 1 << 16; h.Memory = 1 << 32 }, func(h *patchHeader) { h.Workspace = 1 }, func(h *patchHeader) { h.Common = 1 }, func(h *patchHeader) { h.Flags = 0 },
			func(h *patchHeader) { h.Magic[7] ^= 1 },
		} {
			out = append(out, around(honest(stream(text))).changed(change))
		}
		for _, table := range [][]uint32{{0, 1}, {bootSize, 0}, {bootSize, 1<<32 - 1}, {1<<32 - 1, 30}, {bootSize - 1, 30}, {bootSize, 1 << 31}} {
			p := around(honest(stream(text)))
			p.table = table
			out = append(out, p)
		}
		// Two frames, of which the first does not end on a leaf; and frames whose sum wraps.
		for _, table := range [][]uint32{{16, 10, rest, 20}, {1 << 31, 1, 1 << 31, 1, bootSize, 28}} {
			p := around(honest(stream(text))).changed(func(h *patchHeader) { h.Frames = uint32(len(table) / 2) })
			p.table = table
			out = append(out, p)
		}
		return out
	}),
	patches("delta/trailing-bytes", "a patch that does not end where it says", delta.ErrFormat, []string{suitExtra}, func() []*patch {
		p, frame := around(honest(stream(text))), append(honest(stream(text)), 0)
		p.frames = append(p.frames, 0)
		return []*patch{p, around(frame)}
	}),
	patches("delta/more-memory-than-granted", "a patch that takes 4 GiB to apply", delta.ErrMemory, []string{uptaneEndlessData}, func() []*patch {
		return []*patch{
			around(honest(stream(text))).changed(func(h *patchHeader) { h.Memory = 1 << 32 }), around(honest(stream(text))).changed(func(h *patchHeader) { h.Memory = memory + 1 }),
		}
	}),
	patches("delta/of-tomorrow", "a patch for a newer decoder", delta.ErrUnsupported, []string{suitFormat}, func() []*patch {
		return []*patch{
			around(honest(stream(text))).changed(func(h *patchHeader) { h.Version = 2 }), around(honest(stream(text))).changed(func(h *patchHeader) { h.Version = 0xffff }),
			around(honest(stream(text))).changed(func(h *patchHeader) { h.Flags |= 2 }), around(honest(stream(text))).changed(func(h *patchHeader) { h.Features = 1 << 31 }), around([]byte{9}), around([]byte{delta.CodingPlain}),
		}
	}),
	patches("delta/from-another-base-than-signed", "a patch whose header names another old image than its manifest", delta.ErrFormat, []string{suitPrecursor}, func() []*patch {
		return []*patch{
			around(honest(stream(text))).changed(func(h *patchHeader) { h.Base[0] ^= 1 }), around(honest(stream(text))).changed(func(h *patchHeader) { h.BaseSize-- }), around(honest(stream(text))).changed(func(h *patchHeader) { h.BaseSize = 1 << 30 }),
		}
	}),
	frames("delta/offsets-outside-the-old-image", "copies from before the old image, past it, and from where the sum wraps", delta.ErrFormat, []string{suitFormat, suitReplace}, func() [][]byte {
		var out [][]byte
		for _, step := range []uint64{1, 3, 2*16 + 1, 2 * 16, 2 * bootSize, 1 << 32, 1 << 40, 1<<62 - 1, 1<<63 - 1, 1 << 62} {
			out = append(out, ops(stream(nil), operation(delta.OpCopyAt, bootSize, step)))
		}
		return append(out,
			ops(stream(nil), operation(delta.OpCopyAt, 1, huge-1), operation(delta.OpCopyAt, bootSize-1, huge)),
			ops(stream(nil), operation(delta.OpCopyAt, 1, 62), operation(delta.OpCopyAt, bootSize-1, huge)),
			ops(stream(nil), operation(delta.OpDiffAt, bootSize, 2*bootSize)))
	}),
	frames("delta/lengths-that-wrap", "operations that make more than the frame, or that add up to it around the end of the numbers", delta.ErrFormat, []string{suitFormat, tufEndless}, func() [][]byte {
		return [][]byte{
			ops(stream(nil), operation(delta.OpZero, bootSize+1)), ops(stream(nil), operation(delta.OpZero, bootSize-1)), ops(stream(nil), operation(delta.OpZero, 1<<59)), ops(stream(nil), operation(delta.OpZero, 1), operation(delta.OpZero, 1<<60-1)),
			ops(stream(nil), append(bytes.Repeat(operation(delta.OpZero, 1<<60-1), 16), operation(delta.OpZero, bootSize+16)...)), ops(stream(nil), operation(delta.OpZero, bootSize), operation(delta.OpZero, 1)),
		}
	}),
	frames("delta/no-progress", "operations that make nothing", delta.ErrFormat, []string{uptaneSlowRetrieval, tufEndless}, func() [][]byte {
		return [][]byte{
			ops(stream(nil)), {delta.CodingOps}, ops(stream(nil), operation(delta.OpZero, 0), operation(delta.OpZero, bootSize)), ops(stream(nil), bytes.Repeat(operation(delta.OpCopy, 0), 10000)), ops(stream(nil), operation(6, bootSize)), ops(stream(nil), operation(7, bootSize)),
		}
	}),
	frames("delta/numbers-without-end", "numbers of ten groups and more", delta.ErrFormat, []string{suitFormat}, func() [][]byte {
		return [][]byte{
			ops(stream(nil), bytes.Repeat([]byte{0x80}, 5000)), ops(stream(nil), append(bytes.Repeat([]byte{0xff}, 9), 1)), ops(stream(nil), operation(delta.OpCopyAt, bootSize), []byte{0xff}), append([]byte{delta.CodingOps}, bytes.Repeat([]byte{0xff}, 30)...),
			append([]byte{delta.CodingOps}, numbers(1<<62, 0)...), append([]byte{delta.CodingOps}, numbers(16, huge)...), append([]byte{delta.CodingOps}, numbers(1<<31, 0)...),
		}
	}),
	frames("delta/streams-of-another-length", "literals and differences that are missing or left over", delta.ErrFormat, []string{suitExtra, suitFormat}, func() [][]byte {
		diff := func(difference []byte, operations ...[]byte) []byte {
			return bytes.Join([][]byte{{delta.CodingOps}, stream(bytes.Join(operations, nil)), stream(difference), stream(nil)}, nil)
		}
		return [][]byte{
			honest(stream(text[1:])), honest(stream(append(bytes.Clone(text), 0))), honest(stream(nil)), diff(make([]byte, 10), operation(delta.OpDiffAt, bootSize, 0)), diff(make([]byte, 10), operation(delta.OpCopyAt, bootSize, 0)), append(honest(stream(text)), stream(text)...),
		}
	}),
	frames("delta/of-another-image", "a flawless patch that makes something else than its manifest says", updater.ErrMismatch, []string{suitReplace, tufWrong, suitModification}, func() [][]byte {
		return [][]byte{
			ops(stream(nil), operation(delta.OpZero, bootSize)), ops(stream(nil), operation(delta.OpCopyAt, bootSize, 0)), honest(stream(bytes.ToUpper(text))),
		}
	}),
	patches("delta/copies-of-what-is-not-made-yet", "a frame that reads the new image where there is none, and ranges that nobody expanded", delta.ErrFormat, []string{suitFormat, suitReplace}, func() (out []*patch) {
		for _, step := range []uint64{1, 2, 3, 1 | 2<<delta.SpaceBits, 2 | 1<<40, 1 | huge&^3} {
			out = append(out, around(predicting(operation(delta.OpCopyAt, bootSize, step), nil, nil, nil)).plain())
		}
		return out
	}),
	patches("delta/hostile-parameters-of-transforms", "segments, expansions and plans that lie about sizes and places", either(delta.ErrFormat, delta.ErrUnsupported, delta.ErrBase), []string{suitFormat, uptaneEndlessData}, func() (out []*patch) {
		zero := operation(delta.OpZero, bootSize)
		for _, recoding := range [][]byte{
			numbers(1), numbers(1 << 40), numbers(huge), numbers(1, 0, 0, 8, 8, 0, 8, 0, 0, 0), numbers(1, 31, 0, 8, 8, 0, 8, 0, 0, 0), numbers(1, 2, huge, 8, 8, 0, 8, 0, 0, 0), numbers(1, 2, 0, huge, 8, 0, 8, 0, 0, 0),
			numbers(1, 2, 0, 8, huge, 0, 8, 0, 0, 0), numbers(1, 2, 0, 8, 8, huge, 8, 0, 0, 0), numbers(1, 2, 0, 8, 8, 0, huge, 0, 0, 0), numbers(1, 2, 0, 8, 8, 0, 8, huge, 0, 0), numbers(1, 2, 0, 8, 8, 0, 8, 0, huge, 0),
			numbers(1, 2, 0, 8, 8, 0, 8, 0, 0, huge), numbers(1, 2, 0, workspace+1, 8, 0, 8, 0, 0, 0), numbers(1, 2, 0, 8, 8, 0, 8, 0, 0, 1, 2, huge, 8, 8, 0, 0), numbers(1, 2, 0, 8, 8, 0, 8, 0, 0, 1, 2, 2*bootSize, 8, 8, 0, 0),
			numbers(1, 2, 0, 8, 8, 0, 8, 0, 0, 1, 2, 0, huge, 8, 0, 0), numbers(1, 2, 0, 8, 8, 0, 8, 0, 0, 1, 2, 0, 8, huge, 0, 0), numbers(2, 2, 0, 8, 8, 0, 8, 0, 0, 0), bytes.Repeat([]byte{0xff}, 40),
		} {
			out = append(out, around(predicting(zero, nil, nil, recoding)).plain())
		}
		for _, plan := range [][]byte{numbers(9), numbers(huge), numbers(0, 0, 0), append(numbers(3), 0xff, 0xff, 0xff), bytes.Repeat([]byte{0x80}, 30)} {
			out = append(out, around(predicting(zero, nil, plan, nil)).plain())
		}
		return out
	}),

	frames("zstd/bomb", "a kilobyte that unpacks to a hundred megabytes", delta.ErrFormat, []string{tufEndless, uptaneEndlessData}, func() [][]byte {
		var bomb []byte // of frames, each of which is a megabyte of zeros
		for frame := compress(make([]byte, 1<<20), 1<<20); len(bomb) < 100*len(frame); {
			bomb = append(bomb, frame...)
		}
		return [][]byte{honest(packed(16, bomb)), honest(packed(16<<10, bomb)), honest(packed(1<<20, bomb)), honest(packed(huge, bomb))}
	}),
	frames("zstd/window-too-large", "a stream that needs its last 8 MiB to go on", delta.ErrFormat, []string{uptaneEndlessData}, func() [][]byte {
		// Magic, descriptor without content size, window descriptor, an empty last block.
		wide := func(exponent byte) []byte { return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 1, 0, 0} }
		return [][]byte{honest(packed(16, wide(14))), honest(packed(16, wide(20))), honest(packed(16, wide(31))), honest(packed(16, compress(text, 2*delta.MaxWindow)))}
	}),
	frames("zstd/skippable-frames-for-ever", "a megabyte of frames that are to be skipped", delta.ErrFormat, []string{uptaneSlowRetrieval, uptaneEndlessData}, func() [][]byte {
		skip := []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}
		large := []byte{0x5f, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}
		return [][]byte{honest(packed(16, bytes.Repeat(skip, 1<<17))), honest(packed(16, large)), honest(packed(16, append(large, make([]byte, 1000)...)))}
	}),
	frames("zstd/truncated-at-every-byte", "each beginning of a packed stream", delta.ErrFormat, []string{suitFormat}, func() (out [][]byte) {
		whole := compress(text, 1<<20)
		for n := 1; n < len(whole); n++ {
			out = append(out, honest(packed(16, whole[:n])))
		}
		return out
	}),
	{
		Name: "zstd/every-bit-flipped", Input: "a packed stream with one other bit", Want: either(delta.ErrFormat, updater.ErrMismatch), Threats: []string{suitFormat},
		Run: func(s *Scene) error {
			// Without the checksum, which would notice nearly all of them first.
			whole := compress(text, 1<<20, zstd.WithEncoderCRC(false))
			another := must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(delta.MaxWindow), zstd.WithDecodeAllCapLimit(true)))
			defer another.Close()
			return s.applies(func(offer func([]byte, string, ...any)) {
				for bit := range len(whole) * 8 {
					bad := bytes.Clone(whole)
					bad[bit/8] ^= 1 << (bit % 8)
					if got, err := another.DecodeAll(bad, make([]byte, 0, len(text))); err != nil || !bytes.Equal(got, text) { // a flag of the format may mean nothing
						offer(around(honest(packed(16, bad))).bytes(), "bit %d", bit)
					}
				}
			})
		},
	},
	frames("zstd/frames-that-are-none", "streams of other formats, with dictionaries, and of blocks that do not exist", delta.ErrFormat, []string{suitFormat}, func() [][]byte {
		head := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 16}
		block := func(b ...byte) []byte { return append(bytes.Clone(head), b...) }
		return [][]byte{
			honest(packed(16, []byte("zstd"))), honest(packed(16, []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0})), honest(packed(16, block())),
			honest(packed(16, block(7, 0, 0))),                                                   // a reserved kind of block
			honest(packed(16, block(5, 0, 0))),                                                   // a packed block of nothing
			honest(packed(16, block(0xfd, 0xff, 0xff))),                                          // a packed block of 2 MiB
			honest(packed(16, block(0x80, 0, 0, 1, 2, 3))),                                       // not the last, and cut
			honest(packed(16, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x23, 1, 2, 3, 4, 16, 0x81, 0, 0})), // a dictionary
			honest(packed(15, compress(text, 1<<20))), honest(packed(17, compress(text, 1<<20))), honest(packed(16, append(compress(text, 1<<20), compress(text, 1<<20)...))),
		}
	}),

	{
		Name: "delta/base-rotten", Input: "a running system that is damaged where a delta reads it, and no leave for more", Want: updater.ErrBase, Threats: []string{suitPrecursor},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			d.disks["a/root"].Flip(2*leaf+100, 3)
			d.disks["a/root"].Flip(100, 3)
			d.keep(running)
			r := theDesk().next.changed(func(m *manifest.Manifest) {
				for i := range m.Images {
					m.Images[i].Payloads = m.Images[i].Payloads[:2]
				}
			})
			return must(d.on()).Install(background, d.source(r), updater.Options{})
		},
	},
	{
		Name: "delta/base-rotten-and-another-way", Input: "a running system that is damaged where a delta reads it", Threats: []string{suitPrecursor, tufMirrors},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			d.disks["a/root"].Flip(2*leaf+100, 3)
			d.disks["a/root"].Flip(100, 3)
			d.keep(running).takes(theDesk().next)
			return nil
		},
	},
	{
		Name: "delta/base-unreadable", Input: "a running system that cannot be read where a delta does", Want: updater.ErrBase, Threats: []string{suitPrecursor},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			u := must(d.on())
			r := theDesk().next.changed(func(m *manifest.Manifest) { m.Images[1].Payloads = m.Images[1].Payloads[1:2] })
			d.disks["a/root"].Inject(disktest.Fault{Op: disktest.Read, At: 5, Sticky: true, Err: syscall.EIO})
			err := u.Install(background, d.source(r), updater.Options{})
			d.disks["a/root"].Heal()
			return err
		},
	},
	onTheWay("delta/changed-on-the-way", "a mirror that changes one bit of every payload", transport.ErrLeaf, []string{suitOnPath, suitRedirect, suitReplace, tufArbitrary, tufMirrors}, func(p []byte, off int64, n int, err error) (int, error) {
		p[n/2] ^= 4
		return n, err
	}),
	onTheWay("delta/cut-on-the-way", "a mirror whose files end early", transport.ErrLeaf, []string{suitOnPath, suitRedirect, uptanePartialBundle}, func(p []byte, off int64, n int, err error) (int, error) {
		return n / 2, io.EOF
	}),
	onTheWay("delta/zeros-on-the-way", "a mirror that has nothing but zeros", transport.ErrLeaf, []string{suitOnPath, suitRedirect}, func(p []byte, off int64, n int, err error) (int, error) {
		clear(p)
		return len(p), nil
	}),
}

// predicting is a frame of the coding that predicts and recodes.
func predicting(control, literal, prediction, recoding []byte) []byte {
	return bytes.Join([][]byte{{delta.CodingPlain}, stream(control), stream(nil), stream(literal), stream(prediction), stream(recoding)}, nil)
}

// compress packs what a patch's streams hold.
func compress(b []byte, window int, options ...zstd.EOption) []byte {
	var out bytes.Buffer
	e := must(zstd.NewWriter(&out, append(options, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))...))
	// In two parts, so that the size is not known when the header is written, and the
	// window counts.
	must(e.Write(b[:len(b)/2]))
	if err := e.Flush(); err != nil {
		panic(err)
	}
	must(e.Write(b[len(b)/2:]))
	if err := e.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// onTheWay is a case of a mirror that changes what it hands out. Another mirror makes up
// for it.
func onTheWay(name, input string, want error, threats []string, change func(p []byte, off int64, n int, err error) (int, error)) Attack {
	return Attack{Name: name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		d := s.device(theDesk().first, theDesk().old).keep(running)
		src := d.source(theDesk().next)
		src.read = func(_ context.Context, _ manifest.Digest, off int64, p []byte, n int, err error) (int, error) {
			return change(p, off, n, err)
		}
		u := must(d.on())
		err := u.Install(background, src, updater.Options{})
		require.Empty(s, d.verdicts, "no source makes a device give up")
		d.takes(theDesk().next)
		return err
	}}
}
