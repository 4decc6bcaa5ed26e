package recodescan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"hash/crc32"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// DeflateStream is a whole deflate stream inside a file. What frames it – names,
// times, checksums – is outside and stays as it is.
type DeflateStream struct {
	// Offset and Length are bytes of the file.
	Offset, Length int
	// Content is what the stream unpacks to; its checksum was right.
	Content []byte

	packed []byte
}

// Pieces takes the stream apart into pieces of at most limit bytes of plain form, see [recode.SplitDeflate]. Offsets
// of pieces count from the stream's own. With content their bodies follow each other to be Content; otherwise
// they are tokens, which can be expanded without the blocks before them.
//
// Every piece has been packed again and gave the same bytes. The error is
// recode.ErrUnsupported if one did not.
func (s *DeflateStream) Pieces(content bool, limit int) ([]recode.DeflatePiece, error) {
	most := len(s.packed)*1032 + 1032 // the most that deflate can make of it
	pieces, n, err := recode.SplitDeflate(s.packed, content, limit, most)
	if err != nil {
		return nil, err
	}
	if n != s.Length {
		return nil, fmt.Errorf("stream of %d bytes, not %d: %w", n, s.Length, recode.ErrUnsupported)
	}
	var c recode.Coder
	for _, p := range pieces {
		out := make([]byte, p.Length)
		k, err := c.Pack(recode.Deflate, p.Params, p.Plain, out)
		if err != nil || !bytes.Equal(out[:k], s.packed[p.Offset:p.Offset+p.Length]) {
			return nil, fmt.Errorf("piece at %d does not pack to the same (%v): %w", p.Offset, err, recode.ErrUnsupported)
		}
	}
	return pieces, nil
}

// Deflate finds the deflate streams of a file, in order: gzip members wherever they lie (a kernel has one in its
// middle), members of zip archives, and PNG pictures whose data is in one chunk. Streams that unpack to more than
// most bytes are left out. A stream counts only if the checksum of its content is right.
func Deflate(file []byte, most int) []DeflateStream {
	var found []DeflateStream
	for at := 0; at < len(file); {
		next, header, check := candidate(file[at:])
		if next < 0 {
			break
		}
		at += next
		if header < 0 {
			at++
			continue
		}
		s, ok := stream(file, at+header, most)
		if !ok || !check(file[at:], s.Content, file[s.Offset+s.Length:]) {
			at++
			continue
		}
		found = append(found, s)
		at = s.Offset + s.Length
	}
	return found
}

// Zlib takes block for one zlib stream (RFC 1950), as squashfs has them.
func Zlib(block []byte, most int) (DeflateStream, bool) {
	if len(block) < 2 || block[0]&15 != 8 || block[0]>>4 > 7 || binary.BigEndian.Uint16(block)%31 != 0 || block[1]&32 != 0 {
		return DeflateStream{}, false
	}
	s, ok := stream(block, 2, most)
	return s, ok && adler(s.Content, block[2+s.Length:])
}

func stream(file []byte, at, most int) (DeflateStream, bool) {
	if at > len(file) {
		return DeflateStream{}, false
	}
	pieces, n, err := recode.SplitDeflate(file[at:], true, 1<<62, most)
	if err != nil {
		return DeflateStream{}, false
	}
	return DeflateStream{
		Offset: at, Length: n, Content: pieces[0].Plain[:pieces[0].Body],
		packed: file[at : at+n],
	}, true
}

// check tells whether a stream's content is what its frame says. It is given
// the file from the frame's start, and what follows the stream.
type check func(frame, content, rest []byte) bool

// candidate finds the first place where a stream may be framed. header is what
// lies between there and the stream, negative if it is no frame after all.
func candidate(b []byte) (at, header int, f check) {
	at = -1
	for _, m := range []struct {
		magic  string
		header func([]byte) int
		check  check
	}{
		{"\x1f\x8b\x08", gzipHeader, gzipCheck},
		{"PK\x03\x04", zipHeader, zipCheck},
		{"\x89PNG\r\n\x1a\n", pngHeader, func(_, content, rest []byte) bool { return adler(content, rest) }},
	} {
		end := len(b)
		if at >= 0 { // only what is earlier than the best counts
			end = min(end, at+len(m.magic))
		}
		if i := bytes.Index(b[:end], []byte(m.magic)); i >= 0 && (at < 0 || i < at) {
			at, header, f = i, m.header(b[i:]), m.check
		}
	}
	return at, header, f
}

// gzipHeader is the length of the header of a gzip member (RFC 1952, section 2.3).
func gzipHeader(b []byte) int {
	if len(b) < 10 || b[3]&0xe0 != 0 {
		return -1
	}
	n := 10
	if b[3]&4 != 0 { // extra field
		if len(b) < n+2 {
			return -1
		}
		n += 2 + int(binary.LittleEndian.Uint16(b[n:]))
	}
	for _, flag := range []byte{8, 16} { // name, comment
		if b[3]&flag != 0 {
			if n > len(b) {
				return -1
			}
			end := bytes.IndexByte(b[n:min(len(b), n+1<<12)], 0)
			if end < 0 {
				return -1
			}
			n += end + 1
		}
	}
	if b[3]&2 != 0 { // checksum of the header
		n += 2
	}
	return n
}

func gzipCheck(_, content, rest []byte) bool {
	return len(rest) >= 8 && binary.LittleEndian.Uint32(rest) == crc32.ChecksumIEEE(content) &&
		binary.LittleEndian.Uint32(rest[4:]) == uint32(len(content))
}

// zipHeader is the length of a local file header (APPNOTE 4.3.7) of a deflated, unencrypted member.
func zipHeader(b []byte) int {
	if len(b) < 30 || b[6]&1 != 0 || binary.LittleEndian.Uint16(b[8:]) != 8 {
		return -1
	}
	return 30 + int(binary.LittleEndian.Uint16(b[26:])) + int(binary.LittleEndian.Uint16(b[28:]))
}

func zipCheck(frame, content, rest []byte) bool {
	sum := frame[14:]
	if frame[6]&8 != 0 { // in a descriptor behind the data, which may have a signature
		if bytes.HasPrefix(rest, []byte("PK\x07\x08")) {
			rest = rest[4:]
		}
		sum = rest
	}
	return len(sum) >= 4 && binary.LittleEndian.Uint32(sum) == crc32.ChecksumIEEE(content)
}

// pngHeader goes to the data of the first IDAT chunk, past the two bytes of zlib. If the data goes on in another
// chunk, the stream's checksum will not be where the stream ends.
func pngHeader(b []byte) int {
	for at := 8; at+12 <= len(b); {
		n := int(binary.BigEndian.Uint32(b[at:]))
		if n > len(b)-at-12 {
			return -1
		}
		if string(b[at+4:at+8]) == "IDAT" {
			return at + 8 + 2
		}
		at += n + 12
	}
	return -1
}

func adler(content, rest []byte) bool {
	return len(rest) >= 4 && binary.BigEndian.Uint32(rest) == adler32.Checksum(content)
}
