// Package recode takes the entropy coding off compressed data, and puts the
// same bits on again.
//
// A byte differ cannot see into compressed files: one changed byte changes
// every bit that follows. What the compressor decided – which bytes stand as
// literals, which matches it took – changes as little as the content does.
// [Coder.Expand] turns compressed bytes of the old image into such decisions,
// as columns of fixed width; the patch says how they differ; [Coder.Pack] makes
// the compressed bytes of the new image from them, bit for bit.
//
// Nothing here compresses: no match is searched, no table is chosen. Every
// choice that the encoder of the file was free to make is among the decisions,
// so it does not matter which program that was. What cannot be written down in
// this way (a bit stream that no known encoder would end so) does not survive
// Expand followed by Pack, which the desk tries before it relies on either.
//
// No window is needed: matches are numbers here, nobody follows them. Memory
// is one [Coder], of fixed size, besides the caller's buffers.
//
// Both directions treat their input as hostile: every length is compared with
// what is there before it is used, and an error leaves nothing but a partly
// written buffer. FORMAT.md beside this file has the columns.
package recode

import "errors"

// Kind names a compression and the form that its decisions are written in. The
// numbers stand in patches: one is never used again for something else.
type Kind uint8

const (
	// Zstd is a run of whole zstd blocks (RFC 8878, section 3.1.1.2), without
	// the headers and checksums of frames around them.
	Zstd Kind = 1

	// ZstdMatches is such a run by its content and what its matches were in the
	// old one: Expand makes the matches of the old blocks, and Pack foresees those
	// of the new blocks from them. Expand followed by Pack is not the identity here.
	ZstdMatches Kind = 3

	// ZstdContent is Expand only: the blocks at the beginning of a frame become
	// their content, which serves where frames are as small as those of squashfs.
	ZstdContent Kind = 4

	// Deflate is a run of deflate blocks (RFC 1951).
	Deflate Kind = 2

	// LZ4 is a run of LZ4 blocks, without any frame.
	LZ4 Kind = 5
)

var (
	// ErrFormat means that the input is not what its kind demands. On a device
	// the patch is damaged or was made for another image.
	ErrFormat = errors.New("not valid data to recode")

	// ErrRoom means that the output does not fit in the room that was given.
	ErrRoom = errors.New("recoded data does not fit")

	// ErrUnsupported means that the kind, or a feature that the parameters ask
	// for, is newer than this program, or that data cannot be recoded exactly.
	// The desk leaves such data as it is.
	ErrUnsupported = errors.New("data cannot be recoded")
)

// A Coder holds the tables of the codecs, so that a device that recodes
// thousands of pieces allocates them once. The zero value is ready. It is not
// safe for use by several goroutines.
type Coder struct {
	zstd    *zstdCoder
	deflate *deflateCoder
}

// Expand writes the decisions found in src to dst and returns their length.
//
// Errors are of the classes ErrFormat, ErrRoom and ErrUnsupported; dst is then
// spoilt.
func (c *Coder) Expand(kind Kind, params, src, dst []byte) (int, error) {
	switch kind {
	case Zstd, ZstdMatches, ZstdContent:
		if c.zstd == nil {
			c.zstd = new(zstdCoder)
		}
		if kind == ZstdContent {
			return c.zstd.expandContent(params, src, dst)
		}
		return c.zstd.expand(kind, params, src, dst)
	case Deflate:
		if c.deflate == nil {
			c.deflate = new(deflateCoder)
		}
		return c.deflate.expand(params, src, dst)
	case LZ4:
		return expandLZ4(params, src, dst)
	}
	return 0, ErrUnsupported
}

// Pack writes the compressed form of plain to dst and returns its length. It
// is the inverse of Expand, if both are given their own params.
//
// Errors are of the classes ErrFormat, ErrRoom and ErrUnsupported; dst is then
// spoilt.
func (c *Coder) Pack(kind Kind, params, plain, dst []byte) (int, error) {
	switch kind {
	case Zstd:
		if c.zstd == nil {
			c.zstd = new(zstdCoder)
		}
		return c.zstd.pack(params, plain, dst)
	case ZstdMatches:
		if c.zstd == nil {
			c.zstd = new(zstdCoder)
		}
		return c.zstd.packMatches(params, plain, dst)
	case Deflate:
		if c.deflate == nil {
			c.deflate = new(deflateCoder)
		}
		return c.deflate.pack(params, plain, dst)
	case LZ4:
		return packLZ4(params, plain, dst)
	}
	return 0, ErrUnsupported
}
