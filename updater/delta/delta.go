// Package delta rebuilds a new image from an old one and a patch, or from a
// patch alone: one container serves as the "delta" and the "full" payload of a
// release.
//
// For the people who operate devices: a patch is a list of frames, each
// worth about 1 MiB of the new image. A frame decodes by itself, so an install
// that was cut goes on at the frame where it was, and nothing before that is
// fetched or computed again. The memory that a patch needs stands in its
// header and is compared with the device's budget before anything is written.
//
// For the people who build on it: [Open] reads and checks header and frame
// table, [Patch.Frame] says which bytes of the blob make which bytes of the
// image, and [Patch.Decode] turns one into the other. The caller fetches the
// bytes of a frame, checks them against the signed digest of the blob (its tree of
// 64 KiB leaves), and only then decodes: the zstd decoder is never shown bytes
// that nobody signed for. The caller also checks what came out, before it is
// written, against the leaves of the image.
//
// What a frame is made of: bytes of the old image, of the new image in front of
// the frame, differences, and literals. Two things reach where a byte differ cannot see.
// Package predict moves the addresses inside executables as the linker would have.
// Package recode takes the entropy coding off compressed files and puts it on again,
// bit by bit as it was, so that what is compressed inside an image
// can be told from its old content. Both follow recorded
// instructions; neither can make a wrong image of a right patch.
//
// For the people who implement it elsewhere: FORMAT.md beside this file has
// the bytes. Sizes and offsets are in bytes, integers little-endian.
//
// The package only decodes. Nothing here searches for matches; the encoder is
// package mkdelta and no part of the device program. Reading of the old image
// is bounded: a frame reads no more bytes of it than its plain form has, and the
// compressed ranges that it expands; ranges that lie side by side are read in one piece. A Patch does not hash the old
// image: that it is the right one is for the caller to know, by [Patch.Base],
// and a wrong one shows when the leaves of the result are compared.
package delta

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta/predict"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// What the bytes of the container are called. FORMAT.md explains each.
const (
	Magic      = "TNDMDLTA"
	Version    = 1
	HeaderSize = 128
	EntrySize  = 8 // of the frame table
	Leaf       = 64 << 10

	FlagBase = 1 << 0

	// What a frame's first byte says: copies and differences from the old image,
	// zeros and literals; or the same from all spaces, with prediction and recoding.
	CodingOps   = 1
	CodingPlain = 2

	// Where copies and differences of CodingPlain take their bytes.
	SpaceOld      = 0 // the old image
	SpaceNew      = 1 // the new image in front of the frame
	SpaceExpanded = 2 // compressed ranges of the old image, expanded for this frame
	SpaceBits     = 2 // a step is uvarint(zigzag<<SpaceBits | space)

	// What a decoder must know beside CodingOps: CodingPlain, and each kind of
	// package recode, whose bit is 1<<kind.
	FeaturePlain = 1 << 0
	features     = FeaturePlain | 1<<recode.Zstd | 1<<recode.ZstdMatches | 1<<recode.ZstdContent | 1<<recode.Deflate | 1<<recode.LZ4

	OpLiteral    = 0 // bytes from the literal stream
	OpCopyAt     = 1 // base bytes; a new displacement follows
	OpCopy       = 2 // base bytes at the displacement in use
	OpDiffAt     = 3 // base bytes plus difference bytes; a new displacement follows
	OpDiff       = 4 // base bytes plus difference bytes at the displacement in use
	OpZero       = 5 // zero bytes
	OpBits       = 3 // an operation is uvarint(length<<OpBits | kind)
	MaxFrames    = 1 << 16
	MaxFrame     = 4 << 20 // image bytes of one frame
	MaxFrameBlob = 8 << 20 // blob bytes of one frame
	MaxBody      = 12 << 20
	MaxCommon    = 1 << 20  // blob bytes that the frames have in common
	MaxWorkspace = 12 << 20 // one packed segment, plain, with what it is told from
	MaxWindow    = 4 << 20  // of any zstd frame inside
	MaxSize      = 1 << 40  // of either image
)

// decoderMemory is what the zstd decoder and the bookkeeping take besides the
// buffers whose sizes the header states: one block of 128 KiB input, output and
// literals each, the entropy tables, and room for what Go's allocator rounds up.
const decoderMemory = 1 << 20

// plainMemory is what prediction and recoding take besides the workspace: a plan and the common
// maps of package predict, and the tables of package recode.
const plainMemory = 3 << 19

var (
	// ErrFormat means that the bytes are no patch, or a damaged one. Fetch it
	// again or give it up; no part of the frame may be used.
	ErrFormat = errors.New("not a valid delta")

	// ErrMemory means that the patch needs more memory than the caller granted.
	// Policy decides whether another payload is tried.
	ErrMemory = errors.New("delta needs more memory than allowed")

	// ErrBase means that the old image, or what was made of the new one, could not
	// be read, is not there, or is visibly not what the patch was made for. The patch
	// itself may be good.
	ErrBase = errors.New("old image cannot be read")

	// ErrLimit means that sizes go beyond what the manifest or the format
	// allow. The patch does not belong to this manifest, or is hostile.
	ErrLimit = errors.New("delta exceeds its limits")

	// ErrUnsupported means that the patch was made for a newer decoder.
	// Another payload of the release may still serve.
	ErrUnsupported = errors.New("delta needs a newer updater")
)

// Limits bound what a patch may ask for. They come from signed data and from
// the device's own policy, never from the patch.
type Limits struct {
	Memory int64 // bytes that decoding may take, the caller's two frame buffers included
	Size   int64 // exact size of the image, from the manifest
}

// A Patch decodes frames. It is not safe for use by several goroutines.
type Patch struct {
	hasBase    bool
	base       [sha256.Size]byte
	baseSize   int64
	size       int64
	memory     int64
	largest    int64 // longest frame, image bytes
	longest    int64 // longest range of the blob that makes a frame
	body       int64 // most bytes that any frame unpacks to
	space      int64 // most bytes of workspace that any frame takes
	features   uint32
	target     []int64
	blob       []int64 // both have one entry more than there are frames
	unpacked   []byte
	workspace  []byte
	expansions []expansion
	segments   []segment
	windows    []window
	decompress *zstd.Decoder
	coder      recode.Coder
	plan       predict.Plan
	common     predict.Maps
}

// Frame says which range of the blob makes which range of the image. Frames
// are in order and contiguous in both.
type Frame struct {
	Target, Length   int64 // range of the new image; Target is a multiple of 64 KiB
	Blob, BlobLength int64 // range of the blob that Decode wants as a whole
}

// Maxima are the largest of each kind over the frames of a patch, in bytes.
type Maxima struct {
	Frame, Blob, Body, Workspace int64
}

// MemoryNeeded is what this decoder and the caller's two frame buffers take for
// a patch with these maxima, in bytes. FORMAT.md has the same formula.
func MemoryNeeded(frames int, m Maxima, features uint32) int64 {
	n := int64(frames+1)*16 + m.Frame + m.Blob + m.Body + m.Workspace + decoderMemory
	if features != 0 {
		n += plainMemory
	}
	return n
}

// Open reads the header and the frame table of a patch and checks them against
// lim. It allocates nothing before the size of the table has been compared
// with the limits, and keeps no reference to blob.
//
// The errors are ErrFormat, ErrMemory, ErrLimit, ErrUnsupported, or what
// reading the blob returned.
func Open(blob io.ReaderAt, blobSize int64, lim Limits) (*Patch, error) {
	var h [HeaderSize]byte
	if blobSize < HeaderSize {
		return nil, fmt.Errorf("header of %d bytes: %w", blobSize, ErrFormat)
	}
	if err := readFull(blob, h[:], 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != Magic {
		return nil, fmt.Errorf("magic: %w", ErrFormat)
	}
	// Version and features come before the checksum: a later version may have
	// moved it, and "needs a newer updater" is the more useful answer.
	if v := le.Uint16(h[8:]); v != Version {
		return nil, fmt.Errorf("version %d: %w", v, ErrUnsupported)
	}
	flags, asked := le.Uint16(h[10:]), le.Uint32(h[12:])
	if flags&^FlagBase != 0 || asked&^features != 0 {
		return nil, fmt.Errorf("flags %#x, features %#x: %w", flags, asked, ErrUnsupported)
	}
	p := &Patch{hasBase: flags&FlagBase != 0, features: asked}
	size, baseSize, memory := le.Uint64(h[16:]), le.Uint64(h[24:]), le.Uint64(h[64:])
	copy(p.base[:], h[32:64])
	frames := int64(le.Uint32(h[72:]))
	p.largest = int64(le.Uint32(h[76:]))
	p.longest = int64(le.Uint32(h[80:]))
	p.body = int64(le.Uint32(h[84:]))
	p.space = int64(le.Uint32(h[88:]))
	common := int64(le.Uint32(h[92:]))
	need := MemoryNeeded(int(frames), Maxima{p.largest, p.longest, p.body, p.space}, asked)
	switch {
	case size > MaxSize || baseSize > MaxSize || frames > MaxFrames ||
		p.largest > MaxFrame || p.longest > MaxFrameBlob || p.body > MaxBody || p.space > MaxWorkspace || common > MaxCommon || memory > 1<<32:
		return nil, fmt.Errorf("header: %w", ErrLimit)
	case int64(size) != lim.Size:
		return nil, fmt.Errorf("makes %d bytes, the manifest says %d: %w", size, lim.Size, ErrLimit)
	case asked == 0 && (p.space != 0 || common != 0):
		return nil, fmt.Errorf("workspace or common part without a feature: %w", ErrFormat)
	case !p.hasBase && (baseSize != 0 || p.base != [sha256.Size]byte{}):
		return nil, fmt.Errorf("base without its flag: %w", ErrFormat)
	case HeaderSize+frames*EntrySize+common > blobSize:
		return nil, fmt.Errorf("frame table beyond the end: %w", ErrFormat)
	case int64(memory) < need:
		return nil, fmt.Errorf("stated memory too small: %w", ErrFormat)
	case int64(memory) > lim.Memory:
		return nil, fmt.Errorf("needs %d bytes, allowed are %d: %w", memory, lim.Memory, ErrMemory)
	}
	p.size, p.baseSize, p.memory = int64(size), int64(baseSize), int64(memory)
	packed := make([]byte, common)
	if err := readFull(blob, packed, HeaderSize+frames*EntrySize); err != nil {
		return nil, fmt.Errorf("read common part: %w", err)
	}
	if err := p.readTable(blob, h[:], int(frames), packed); err != nil {
		return nil, err
	}
	if common > 0 {
		var maps []byte
		if err := p.unpack(packed, &maps); err != nil {
			return nil, fmt.Errorf("common part: %w", err)
		}
		if err := p.common.Parse(maps); err != nil {
			return nil, fmt.Errorf("common part: %w: %w", ErrFormat, err)
		}
	}
	if end := p.blob[frames]; end != blobSize {
		return nil, fmt.Errorf("frames end at %d, the blob at %d: %w", end, blobSize, ErrFormat)
	}
	return p, nil
}

// readTable fills p.target and p.blob. It reads in small pieces so that the
// table exists only once in memory.
func (p *Patch) readTable(blob io.ReaderAt, h []byte, frames int, common []byte) error {
	sum := sha256.New()
	sum.Write(h[:HeaderSize-sha256.Size])
	p.target = make([]int64, 1, frames+1)
	p.blob = make([]int64, 1, frames+1)
	p.blob[0] = HeaderSize + int64(frames)*EntrySize + int64(len(common))
	var buf [4096]byte
	var largest, longest int64
	for n := 0; n < frames; {
		piece := buf[:min(len(buf), (frames-n)*EntrySize)]
		if err := readFull(blob, piece, HeaderSize+int64(n)*EntrySize); err != nil {
			return fmt.Errorf("read frame table: %w", err)
		}
		sum.Write(piece)
		for ; len(piece) > 0; piece = piece[EntrySize:] {
			length := int64(binary.LittleEndian.Uint32(piece))
			blobLength := int64(binary.LittleEndian.Uint32(piece[4:]))
			// Only the last frame may end inside a leaf: a frame's leaves are
			// checked as soon as it is decoded.
			if length == 0 || blobLength == 0 || p.target[n]%Leaf != 0 {
				return fmt.Errorf("frame %d: %w", n, ErrFormat)
			}
			largest, longest = max(largest, length), max(longest, blobLength)
			p.target = append(p.target, p.target[n]+length)
			p.blob = append(p.blob, p.blob[n]+blobLength)
			n++
		}
	}
	sum.Write(common)
	if [sha256.Size]byte(sum.Sum(nil)) != [sha256.Size]byte(h[HeaderSize-sha256.Size:]) {
		return fmt.Errorf("checksum of header, frame table and common part: %w", ErrFormat)
	}
	if largest != p.largest || longest != p.longest || p.target[frames] != p.size {
		return fmt.Errorf("frame table contradicts header: %w", ErrFormat)
	}
	return nil
}

// Base returns the SHA-256 of the old image that the patch was made against,
// and false if it needs none.
func (p *Patch) Base() ([sha256.Size]byte, bool) { return p.base, p.hasBase }

// BaseSize is the size of that image: the digest covers the bytes [0, BaseSize).
func (p *Patch) BaseSize() int64 { return p.baseSize }

// Size is the size of the new image.
func (p *Patch) Size() int64 { return p.size }

// Memory is what decoding takes in all, in bytes, the caller's buffers for the
// largest frame and its compressed form included.
func (p *Patch) Memory() int64 { return p.memory }

// Longest is how many bytes the longest range of the blob has that makes a frame: a caller that makes
// one buffer for all of them leaves none behind for the collector.
func (p *Patch) Longest() int64 { return p.longest }

// Frames is the number of frames.
func (p *Patch) Frames() int { return len(p.target) - 1 }

// Frame describes frame i, 0 ≤ i < Frames().
func (p *Patch) Frame(i int) Frame {
	return Frame{
		Target: p.target[i], Length: p.target[i+1] - p.target[i],
		Blob: p.blob[i], BlobLength: p.blob[i+1] - p.blob[i],
	}
}

// FrameAt returns the frame that contains the byte at target of the new image:
// where to go on after a checkpoint. At or past the end it returns Frames().
func (p *Patch) FrameAt(target int64) int {
	i := sort.Search(len(p.target), func(i int) bool { return p.target[i] > target })
	return max(i-1, 0)
}

// readFull reads exactly len(b) bytes. A blob that ends early is a truncated
// patch, which is not the same as one that cannot be read just now.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%d of %d bytes at %d: %w", n, len(b), off, ErrFormat)
	default:
		return err
	}
}
