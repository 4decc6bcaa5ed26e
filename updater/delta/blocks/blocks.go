// Package blocks rebuilds a new image from whatever a device already has: the
// "index" payload of a release, for devices whose old system is the base of no
// delta.
//
// For the people who operate devices: the payload is one blob. In front stands an
// index, about 0.2 % of the image, that names every block of 4 KiB by a short
// hash. The device reads its slots once, from front to back, and finds out
// which blocks it has, wherever they lie. Of the rest of the blob it fetches only
// the units (at most 8 KiB of the image each, compressed) in which something is missing.
//
// For the people who build on it: [Open] reads and checks the index, [Index.Scan]
// looks for blocks in one old image, [Index.Missing] says what the download will
// be, and [Index.Build] makes one frame of the new image. Frames are made front to
// back and an install that was cut goes on at any frame: after a reboot the
// scan is done again, what was written and checkpointed is not.
//
// A short hash is a hint and no proof: two blocks may share one. Therefore Build is
// given the manifest's leaves (Sources.Check), and a leaf that comes out wrong is
// made again from fetched units only. A false hint costs bytes, never the update.
//
// What compresses a unit well is what stands before it in the image, not only what
// was fetched before it: when a unit is unpacked, all bytes before it are there,
// whichever source they came from. So a unit refers to them freely, and the
// pieces are as small to fetch as single chunks and almost as dense as one stream.
//
// Nobody needs to check the blob's units in leaves of 64 KiB, which would make
// small ranges dear: the index holds a hash for the directory of every frame and
// the directory one for each of its units. Only the index (bytes [0, IndexSize)) is
// to be read through a checked reader. The zstd decoder sees no byte that was not
// signed for.
//
// FORMAT.md beside this file has the bytes. Sizes and offsets are in bytes,
// integers little-endian. The errors are those of package delta. The encoder is
// package mkblocks and no part of the device program.
package blocks

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta"
)

// What the bytes of the blob are called. FORMAT.md explains each.
const (
	Magic      = "TNDMBLKS"
	Version    = 1
	HeaderSize = 128
	Leaf       = 64 << 10
	SumSize    = 16 // of the truncated SHA-256 of a directory or unit

	KindFresh  = 0 // a hash and a place in a unit belong to each block
	KindZero   = 1
	KindRepeat = 2 // the same as a block of an earlier frame
	KindBits   = 2

	MaxSize   = 1 << 37 // of an image, old or new
	MaxBlocks = 1 << 22
	MinBlock  = 512
	MaxBlock  = 64 << 10
	MaxFrame  = 4 << 20 // image bytes of a frame
	MaxWindow = 4 << 20 // image bytes before a frame that its units may refer to
	MaxUnit   = 128 << 10
	HashBits  = 48 // of the 64 that are computed, the upper ones
)

// Limits bound what a blob may ask for. They come from signed data and from
// the device's own policy, never from the blob.
type Limits struct {
	Memory int64 // bytes that scanning and building may take, the caller's frame buffer included
	Size   int64 // exact size of the image, from the manifest
}

// Index knows which blocks make the new image and where they are to be had. It
// is not safe for use by several goroutines.
type Index struct {
	size      int64
	block     int64
	frame     int64
	window    int64
	indexSize int64
	memory    int64
	seed      uint64
	mask      uint64 // of a hash, its stored bits

	// For every block: where it is had from. While it is missing and hashes are
	// looked for, lo is the next block of the same bucket and key its hash.
	hi  []uint8
	lo  []uint32
	key []uint32

	heads  []uint32 // bucket → 1 + its first block; nil after the last Scan
	filter []uint64 // bit set: some block's hash begins so
	shift  uint     // hash >> shift is the number of the bit
	bucket uint     // and hash >> bucket that of the bucket

	missing int64 // fresh blocks not found yet, while scanning

	units  []uint32 // packed size << unitShift | count of blocks
	frames []frame

	work work
}

type frame struct {
	unit uint32 // its first
	blob int64  // where its directory begins, its units behind
	sum  [SumSize]byte
}

// A unit is stored as it is if that is no longer than packed: then its packed
// size equals the size of its blocks.
const (
	unitShift  = 9
	unitBlocks = 1<<unitShift - 1
)

// MaxUnit is what bounds the count: the smallest blocks of the largest unit have to fit, or
// this does not compile.
const _ = uint(unitBlocks - MaxUnit/MinBlock)

// Where a block is had from: three bits of hi; the other five are bits 32 to
// 36 of an offset.
const (
	placeMissing = iota
	placeZero
	placeRepeat // lo is the number of the earlier block
	placeRunning
	placeSpare
	placeBits = 3
	placeMask = 1<<placeBits - 1
)

// decoderMemory is what zstd and the bookkeeping take besides stated buffers.
const decoderMemory = 1 << 20

// scanBuffer is how much of an old image is read at a time.
const scanBuffer = 256 << 10

// FilterBits is the binary logarithm of the size of the filter for n blocks: about one bit
// in eight is set, so that seven of eight misses cost one look.
func FilterBits(n int64) int {
	bits := 12
	for ; bits < 23 && int64(1)<<bits < 8*n; bits++ {
	}
	return bits
}

// bucketBits is that of the number of buckets. Of a hash's 48 bits the lower 32 are kept
// with the block; in fewer buckets than 2^16 that leaves some out, which few blocks can afford.
func bucketBits(n int64) int { return min(FilterBits(n)-3, 16) }

// MemoryNeeded is what this decoder and the caller's buffer for a frame take for
// a blob with these numbers, in bytes. FORMAT.md has the same formula.
func MemoryNeeded(blocks, units, frames, block, frame, window int64) int64 {
	scan := int64(1)<<FilterBits(blocks)/8 + 4<<bucketBits(blocks) + scanBuffer + block
	build := 2*(window+frame) + frame
	return 9*blocks + 4*units + 32*frames + max(scan, build) + decoderMemory
}

// Open reads header and index of a blob and checks them against lim. blob must hand
// out only bytes that were checked against the blob's signed leaves; Open
// keeps no reference to it.
//
// The errors are delta.ErrFormat, ErrMemory, ErrLimit, ErrUnsupported, or what
// reading the blob returned.
func Open(blob io.ReaderAt, blobSize int64, lim Limits) (*Index, error) {
	var h [HeaderSize]byte
	if blobSize < HeaderSize {
		return nil, fmt.Errorf("header of %d bytes: %w", blobSize, delta.ErrFormat)
	}
	if err := readFull(blob, h[:], 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != Magic {
		return nil, fmt.Errorf("magic: %w", delta.ErrFormat)
	}
	if v := le.Uint16(h[8:]); v != Version {
		return nil, fmt.Errorf("version %d: %w", v, delta.ErrUnsupported)
	}
	if flags, features := le.Uint16(h[10:]), le.Uint32(h[12:]); flags != 0 || features != 0 {
		return nil, fmt.Errorf("flags %#x, features %#x: %w", flags, features, delta.ErrUnsupported)
	}
	size, memory, indexSize := le.Uint64(h[16:]), le.Uint64(h[24:]), le.Uint64(h[64:])
	block, frameSize, window := int64(le.Uint32(h[32:])), int64(le.Uint32(h[36:])), int64(le.Uint32(h[40:]))
	width, most, fresh, units := int64(h[44]), int64(le.Uint16(h[46:])), int64(le.Uint32(h[56:])), int64(le.Uint32(h[60:]))
	switch {
	case size > MaxSize || memory > 1<<32 || indexSize > 1<<32:
		return nil, fmt.Errorf("header: %w", delta.ErrLimit)
	case int64(size) != lim.Size:
		return nil, fmt.Errorf("makes %d bytes, the manifest says %d: %w", size, lim.Size, delta.ErrLimit)
	case block < MinBlock || block > MaxBlock || block&(block-1) != 0,
		frameSize < Leaf || frameSize > MaxFrame || frameSize%Leaf != 0,
		window > MaxWindow || window%Leaf != 0,
		width < 1 || width > HashBits/8,
		most < 1 || most*block > MaxUnit:
		return nil, fmt.Errorf("block %d, frame %d, window %d, hash %d, unit %d: %w", block, frameSize, window, width, most, delta.ErrLimit)
	case h[45] != 0 || [24]byte(h[72:96]) != [24]byte{}:
		return nil, fmt.Errorf("reserved bytes: %w", delta.ErrFormat)
	}
	blocks := (int64(size) + block - 1) / block
	frames := (int64(size) + frameSize - 1) / frameSize
	switch {
	case blocks > MaxBlocks:
		return nil, fmt.Errorf("%d blocks: %w", blocks, delta.ErrLimit)
	case fresh > blocks || units > fresh || int64(indexSize) > blobSize-HeaderSize,
		fresh*width+units > int64(indexSize):
		return nil, fmt.Errorf("counts contradict sizes: %w", delta.ErrFormat)
	case int64(memory) < MemoryNeeded(blocks, units, frames, block, frameSize, window):
		return nil, fmt.Errorf("stated memory too small: %w", delta.ErrFormat)
	case int64(memory) > lim.Memory:
		return nil, fmt.Errorf("needs %d bytes, allowed are %d: %w", memory, lim.Memory, delta.ErrMemory)
	}
	x := &Index{
		size: int64(size), block: block, frame: frameSize, window: window,
		indexSize: HeaderSize + int64(indexSize), memory: int64(memory), seed: le.Uint64(h[48:]),
		hi: make([]uint8, blocks), lo: make([]uint32, blocks), key: make([]uint32, blocks),
		heads: make([]uint32, 1<<bucketBits(blocks)),
		units: make([]uint32, 0, units), frames: make([]frame, 0, frames),
	}
	bits := FilterBits(blocks)
	x.filter, x.shift, x.bucket = make([]uint64, 1<<bits/64), uint(64-bits), uint(64-bucketBits(blocks))
	x.mask = ^uint64(0) << (64 - 8*width)
	x.missing = fresh
	if err := x.parse(blob, h[:], fresh, units, width, most, blobSize); err != nil {
		return nil, err
	}
	return x, nil
}

// Length is how much of a blob Open reads from its beginning, going by the first
// HeaderSize bytes, for those who fetch ahead. Open does not rely on it.
func Length(header []byte) int64 {
	n := binary.LittleEndian.Uint64(header[64:HeaderSize])
	return HeaderSize + int64(min(n, 1<<32))
}

// parse reads the index in small pieces, so that it exists only once in memory.
func (x *Index) parse(blob io.ReaderAt, h []byte, fresh, units, width, most, blobSize int64) error {
	sum := sha256.New()
	sum.Write(h[:HeaderSize-sha256.Size])
	r := &reader{blob: blob, at: HeaderSize, end: x.indexSize, sum: sum}
	runs := x.parseKinds(r, fresh)
	next := x.parseUnits(r, units, uint64(most))
	x.parseHashes(r, width)
	if r.err == nil && (r.at != r.end || len(r.buf) != 0) {
		r.fail("bytes left over")
	}
	if r.err != nil {
		return fmt.Errorf("index: %w", r.err)
	}
	if [sha256.Size]byte(sum.Sum(nil)) != [sha256.Size]byte(h[HeaderSize-sha256.Size:]) {
		return fmt.Errorf("checksum of header and index: %w", delta.ErrFormat)
	}
	if runs != fresh || next != blobSize {
		return fmt.Errorf("units end at %d, the blob at %d: %w", next, blobSize, delta.ErrFormat)
	}
	return nil
}

// parseKinds fills hi and lo with what the blob says of the blocks and returns the
// number of fresh ones.
func (x *Index) parseKinds(r *reader, fresh int64) int64 {
	var found int64
	for at := 0; at < len(x.hi) && r.err == nil; {
		word := r.uvarint()
		kind, n := word&(1<<KindBits-1), word>>KindBits
		if n == 0 || n > uint64(len(x.hi)-at) || kind > KindRepeat {
			r.fail("run of %d blocks of kind %d", n, kind)
			break
		}
		var distance uint64
		if kind == KindRepeat {
			// What is repeated lies in an earlier frame: there it is done and checked.
			distance = r.uvarint()
			last := at + int(n) - 1
			if distance > uint64(at) || (uint64(last)-distance)/uint64(x.frame/x.block) >= uint64(at)/uint64(x.frame/x.block) {
				r.fail("block %d repeats what is %d before", at, distance)
				break
			}
		}
		for range n {
			switch kind {
			case KindFresh:
				found++
			case KindZero:
				x.hi[at] = placeZero
			case KindRepeat:
				x.hi[at], x.lo[at] = placeRepeat, uint32(uint64(at)-distance)
			}
			at++
		}
	}
	if r.err == nil && found != fresh {
		r.fail("%d fresh blocks, the header says %d", found, fresh)
	}
	return found
}

// parseUnits fills units and frames and returns where the last unit ends in the blob.
func (x *Index) parseUnits(r *reader, units int64, most uint64) (next int64) {
	next = x.indexSize
	per := int(x.frame / x.block)
	for first := 0; first < len(x.hi) && r.err == nil; first += per {
		f := frame{unit: uint32(len(x.units)), blob: next}
		for b := first; b < min(first+per, len(x.hi)) && r.err == nil; {
			if x.hi[b] != placeMissing {
				b++
				continue
			}
			word := r.uvarint()
			n, packed := word%most+1, word/most
			switch {
			case n > uint64(min(first+per, len(x.hi))-b):
				r.fail("unit of %d blocks", n)
			case packed == 0 || int64(packed) > x.sizeOf(b, int(n)):
				r.fail("unit of %d bytes", packed)
			case int64(len(x.units)) == units:
				r.fail("more units than the header says")
			}
			for range n {
				if r.err == nil && x.hi[b] != placeMissing {
					r.fail("unit across block %d, which is in none", b)
				}
				b++
			}
			if r.err == nil {
				x.units = append(x.units, uint32(packed)<<unitShift|uint32(n))
				next += SumSize + int64(packed)
			}
		}
		if r.err == nil && len(x.units) > int(f.unit) {
			r.full(f.sum[:])
		}
		x.frames = append(x.frames, f)
	}
	if r.err == nil && int64(len(x.units)) != units {
		r.fail("%d units, the header says %d", len(x.units), units)
	}
	return next
}

// parseHashes puts every fresh block into its bucket.
func (x *Index) parseHashes(r *reader, width int64) {
	var b [8]byte
	for i := range x.hi {
		if x.hi[i] != placeMissing {
			continue
		}
		r.full(b[8-width:]) // the upper bytes, the lowest first
		if r.err != nil {
			return
		}
		h := binary.LittleEndian.Uint64(b[:])
		x.key[i] = uint32(h >> (64 - HashBits))
		head := &x.heads[h>>x.bucket]
		x.lo[i], *head = *head, uint32(i)+1
		// Bits of the filter that lie below a narrow hash are set for all values.
		for bit := h >> x.shift; bit <= (h|^x.mask)>>x.shift; bit++ {
			x.filter[bit/64] |= 1 << (bit % 64)
		}
	}
}

// sizeOf is the number of image bytes in n blocks from block b on.
func (x *Index) sizeOf(b, n int) int64 {
	return min(int64(b+n)*x.block, x.size) - int64(b)*x.block
}

// Size is the size of the new image.
func (x *Index) Size() int64 { return x.size }

// IndexSize is how much of the blob Open has read, from its beginning.
func (x *Index) IndexSize() int64 { return x.indexSize }

// Memory is what scanning and building take in all, in bytes, the caller's
// buffer for a frame included.
func (x *Index) Memory() int64 { return x.memory }

// Frames is the number of frames.
func (x *Index) Frames() int { return len(x.frames) }

// Frame says which range of the new image frame i is, 0 ≤ i < Frames().
func (x *Index) Frame(i int) (target, length int64) {
	target = int64(i) * x.frame
	return target, min(x.frame, x.size-target)
}

// FrameAt returns the frame that contains the byte at target of the new image:
// where to go on after a checkpoint. At or past the end it returns Frames().
func (x *Index) FrameAt(target int64) int {
	if target >= x.size {
		return len(x.frames)
	}
	return int(max(target, 0) / x.frame)
}

// reader reads the index forward and remembers the first thing that was wrong.
type reader struct {
	blob    io.ReaderAt
	at, end int64 // what is not yet in buf
	buf     []byte
	room    [4096]byte
	sum     io.Writer
	err     error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format+": %w", append(args, delta.ErrFormat)...)
	}
}

func (r *reader) byte() byte {
	if len(r.buf) == 0 && r.err == nil {
		n := min(int64(len(r.room)), r.end-r.at)
		if n == 0 {
			r.fail("ends early")
			return 0
		}
		r.buf = r.room[:n]
		if r.err = readFull(r.blob, r.buf, r.at); r.err == nil {
			r.sum.Write(r.buf)
			r.at += n
		}
	}
	if r.err != nil {
		return 0
	}
	b := r.buf[0]
	r.buf = r.buf[1:]
	return b
}

func (r *reader) full(p []byte) {
	for i := range p {
		p[i] = r.byte()
	}
}

// uvarint reads a number of at most nine groups of seven bits.
func (r *reader) uvarint() (v uint64) {
	for shift := 0; shift < 63; shift += 7 {
		b := r.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	r.fail("number of more than nine bytes")
	return 0
}

// readFull reads exactly len(b) bytes. A blob that ends early is a truncated
// one, which is not the same as one that cannot be read just now.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%d of %d bytes at %d: %w", n, len(b), off, delta.ErrFormat)
	default:
		return err
	}
}
