// Package recodescan finds compressed data that package recode can take apart
// and put together again, for the encoder of patches. It is no part of the
// device program.
//
// Whatever it hands out has been tried: the very bytes came back. Data whose
// encoder did something that recode cannot write down is not handed out, and
// stays for the byte differ.
package recodescan

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// Frame is a zstd frame (RFC 8878) in a file.
type Frame struct {
	Offset  int    // of the first block in the file
	Length  int    // of all blocks; header and checksum are outside
	Content []byte // what it unpacks to
	Blocks  *recode.ZstdBlocks

	data  []byte // the blocks
	frame []byte // with header and checksum
}

// Zstd returns the zstd frames at the beginning of file, one behind the other
// as the zstd tools write them, skippable frames passed over. It ends quietly
// at what is no such frame or unpacks to more than limit bytes.
func Zstd(file []byte, limit int) []Frame {
	var frames []Frame
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<31), zstd.WithDecoderMaxMemory(uint64(limit)))
	if err != nil {
		return nil
	}
	defer dec.Close()
	for at := 0; at < len(file); {
		var h zstd.Header
		if h.Decode(file[at:]) != nil || h.DictionaryID != 0 {
			break
		}
		if h.Skippable {
			at += h.HeaderSize + int(h.SkippableSize)
			continue
		}
		f := Frame{Offset: at + h.HeaderSize}
		if f.Offset >= len(file) {
			break
		}
		if f.Blocks, err = recode.ScanZstd(file[f.Offset:]); err != nil {
			break
		}
		var content int
		f.Length, content = f.Blocks.At(f.Blocks.Len())
		end := f.Offset + f.Length
		if h.HasCheckSum {
			end += 4
		}
		if content > limit || end > len(file) {
			break
		}
		if f.Content, err = dec.DecodeAll(file[at:end], nil); err != nil || len(f.Content) != content {
			break
		}
		f.data = file[f.Offset : f.Offset+f.Length]
		f.frame = file[at:end]
		frames = append(frames, f)
		at = end
	}
	return frames
}

// Piece is a run of blocks that was taken apart and put together.
type Piece struct {
	From, To      int // blocks
	Offset        int // in the file
	Length        int
	ContentOffset int // in Frame.Content
	ContentLength int

	// Parameters and sizes of both forms: with the literals in a column, and
	// with the content in their place.
	Tokens, Matches Form
}

// Form says how a piece is taken apart and put together.
type Form struct {
	Expand []byte // parameters of recode.Expand
	Pack   []byte // parameters of recode.Pack
	Plain  int    // bytes that Expand makes
}

// Pieces cuts the frame into runs of blocks with at most limit bytes of content
// each (one block, if that alone has more), and leaves out those that do not
// come back bit for bit.
func (f *Frame) Pieces(limit int) []Piece {
	var pieces []Piece
	var c recode.Coder
	for from := 0; from < f.Blocks.Len(); {
		_, start := f.Blocks.At(from)
		to := from + 1
		for to < f.Blocks.Len() {
			if _, end := f.Blocks.At(to + 1); end-start > limit {
				break
			}
			to++
		}
		if p, err := f.piece(&c, from, to); err == nil {
			pieces = append(pieces, p)
		}
		from = to
	}
	return pieces
}

func (f *Frame) piece(c *recode.Coder, from, to int) (Piece, error) {
	at, content := f.Blocks.At(from)
	end, contentEnd := f.Blocks.At(to)
	p := Piece{
		From: from, To: to,
		Offset: f.Offset + at, Length: end - at,
		ContentOffset: content, ContentLength: contentEnd - content,
	}
	var err error
	if p.Tokens, err = f.form(c, &p, false); err != nil {
		return Piece{}, err
	}
	p.Matches, err = f.form(c, &p, true)
	return p, err
}

// form tries one form of a piece.
func (f *Frame) form(c *recode.Coder, p *Piece, matches bool) (Form, error) {
	var m Form
	m.Expand, m.Pack = f.Blocks.Params(p.From, p.To, matches)
	src := f.data[p.Offset-f.Offset:][:p.Length]
	room := make([]byte, f.Blocks.Room(p.From, p.To))
	n, err := c.Expand(recode.Zstd, m.Expand, src, room)
	if err != nil {
		return Form{}, fmt.Errorf("expand: %w", err)
	}
	m.Plain = n
	plain := room[:n]
	if matches {
		plain = append(bytes.Clone(f.Content[p.ContentOffset:][:p.ContentLength]), plain...)
	}
	out := make([]byte, p.Length)
	n, err = c.Pack(recode.Zstd, m.Pack, plain, out)
	if err != nil {
		return Form{}, fmt.Errorf("pack: %w", err)
	}
	if !bytes.Equal(out[:n], src) {
		return Form{}, fmt.Errorf("block %d and on: other bits: %w", p.From, recode.ErrUnsupported)
	}
	return m, nil
}

// IsZstd says whether data could begin with a frame; a quick look for callers
// that have many files.
func IsZstd(data []byte) bool {
	return len(data) >= 4 && binary.LittleEndian.Uint32(data) == 0xfd2fb528
}
