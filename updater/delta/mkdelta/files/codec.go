package files

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// maxPlain is the largest block that a file system packs as one: 1 MiB for
// squashfs and for the clusters of erofs, more for what repeats bytes.
const maxPlain = 16 << 20

// Unpack returns at most limit bytes of what packed holds. ErrUnsupported
// means a codec that is not read here: LZMA, XZ, LZO.
func Unpack(c Codec, packed []byte, limit int64) ([]byte, error) {
	if limit < 0 || limit > maxPlain {
		return nil, fmt.Errorf("block of %d bytes: %w", limit, ErrUnsupported)
	}
	var out []byte
	var err error
	switch c {
	case Stored:
		return packed[:min(int64(len(packed)), limit)], nil
	case Gzip:
		var r io.ReadCloser
		if r, err = zlib.NewReader(bytes.NewReader(packed)); err == nil {
			out, err = io.ReadAll(io.LimitReader(r, limit))
		}
	case Deflate:
		out, err = io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(bytes.TrimLeft(packed, "\x00"))), limit))
	case Zstd:
		out, err = unzstd(packed, limit)
	case ZstdPadded:
		out, err = unzstd(bytes.TrimLeft(packed, "\x00"), limit)
	case LZ4:
		out, err = unlz4(packed, int(limit))
	case LZ4Padded:
		out, err = unlz4(bytes.TrimLeft(packed, "\x00"), int(limit))
	default:
		return nil, fmt.Errorf("codec %s: %w", c, ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %w", c, err, ErrFormat)
	}
	return out, nil
}

// decoders holds zstd decoders: starting one costs more than a block.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxPlain))
	if err != nil {
		return err
	}
	return d
}}

// unzstd reads as a stream, since a frame may lie about how much it unpacks to.
func unzstd(packed []byte, limit int64) ([]byte, error) {
	d, ok := decoders.Get().(*zstd.Decoder)
	if !ok {
		return nil, errors.New("no decoder")
	}
	defer decoders.Put(d)
	if err := d.Reset(bytes.NewReader(packed)); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(d, limit))
}

var errLZ4 = errors.New("damaged block")

// unlz4 unpacks a block (lz4_Block_format.md) until its end or until limit
// bytes are there: erofs may ask for a part.
func unlz4(b []byte, limit int) ([]byte, error) {
	out := make([]byte, 0, limit)
	number := func(n int) (int, error) {
		if n != 15 {
			return n, nil
		}
		for {
			if len(b) == 0 || n > limit+255 {
				return 0, errLZ4
			}
			c := b[0]
			b = b[1:]
			n += int(c)
			if c != 255 {
				return n, nil
			}
		}
	}
	for len(b) > 0 {
		token := b[0]
		b = b[1:]
		n, err := number(int(token >> 4))
		if err != nil {
			return nil, err
		}
		room := limit - len(out)
		if n > len(b) && room > len(b) {
			return nil, errLZ4
		}
		out = append(out, b[:min(n, room, len(b))]...)
		if n >= room || n == len(b) {
			return out, nil
		}
		b = b[n:]
		if len(b) < 2 {
			return nil, errLZ4
		}
		distance := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		if n, err = number(int(token & 15)); err != nil {
			return nil, err
		}
		if distance == 0 || distance > len(out) {
			return nil, errLZ4
		}
		for range min(n+4, limit-len(out)) {
			out = append(out, out[len(out)-distance])
		}
		if len(out) == limit {
			return out, nil
		}
	}
	return out, nil
}
