package transport

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// Sizes, in bytes.
const (
	HeaderSize   = 40        // before the data of a block
	MinBlock     = 4 << 10   // the smallest block that a Get may ask for
	DefaultBlock = 64 << 10  // what devices ask for unless the line is slow
	MaxBlock     = 128 << 10 // AWS IoT takes no larger packet than 128 KiB
	LeafSize     = 64 << 10  // the unit of the hash tree of a content
	MaxBlob      = 1 << 46   // larger offsets are nonsense, and would overflow sums
	MaxPacket    = 256 << 10 // the largest MQTT packet that either side accepts
)

// Object names a thing that a block server has: the SHA-256 of a blob, or the
// SHA-256 of "meta/NAME" or "manifest/DIGEST" for files that may change under
// their name.
type Object [sha256.Size]byte

// ParseDigest returns the object of a blob from "sha256:" and 64 lower-case hex
// digits.
func ParseDigest(s string) (Object, error) {
	var o Object
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(o) || strings.ToLower(h) != h {
		return o, fmt.Errorf("not a sha256 digest: %.80q", s)
	}
	if _, err := hex.Decode(o[:], []byte(h)); err != nil {
		return o, fmt.Errorf("not a sha256 digest: %.80q", s)
	}
	return o, nil
}

// named is the object of something whose content its name does not fix.
func named(name string) Object { return sha256.Sum256([]byte(name)) }

// Prefix is the part of an object that travels in a block header.
func (o Object) Prefix() (p [16]byte) {
	copy(p[:], o[:])
	return p
}

// Flags of a block. At most one of the three refusals is set, and a refusal has
// no data.
const (
	FlagEnd    = 1 << 0 // the object ends with this block (its size is Offset+Length)
	FlagAbsent = 1 << 1 // refusal: the server has no such object; asking again will not help
	FlagBusy   = 1 << 2 // refusal: ask again after Retry seconds
)

// BlockHeader is what stands before the data of a block, 40 bytes, big-endian:
//
//	 0  1  version, 1
//	 1  1  flags
//	 2  2  retry: with FlagBusy, the seconds to wait; else 0
//	 4  4  transfer: the number that the Get carried
//	 8 16  first 16 bytes of the object
//	24  8  offset of the data in the object
//	32  4  length of the data
//	36  4  CRC-32C (Castagnoli) of bytes 0 to 35 and the data
//
// The CRC finds lost and mixed bytes early; it protects against nobody.
type BlockHeader struct {
	Flags    uint8
	Retry    uint16
	Transfer uint32
	Object   [16]byte
	Offset   int64
	Length   int
}

// ErrBlock means that a message on the block topic is not a whole block. The
// receiver drops it, and asks again for what it still misses.
var ErrBlock = errors.New("bad block")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal writes the header of a block into the first HeaderSize bytes of buf,
// whose other bytes are the data. It sets Length from buf.
func (h BlockHeader) Seal(buf []byte) {
	buf[0] = Version
	buf[1] = h.Flags
	binary.BigEndian.PutUint16(buf[2:], h.Retry)
	binary.BigEndian.PutUint32(buf[4:], h.Transfer)
	copy(buf[8:24], h.Object[:])
	binary.BigEndian.PutUint64(buf[24:], uint64(h.Offset))
	binary.BigEndian.PutUint32(buf[32:], uint32(len(buf)-HeaderSize))
	binary.BigEndian.PutUint32(buf[36:], sum(buf))
}

func sum(buf []byte) uint32 {
	return crc32.Update(crc32.Checksum(buf[:36], castagnoli), castagnoli, buf[HeaderSize:])
}

// ParseBlock checks a message on the block topic and returns its header and its
// data, which is part of msg. All errors wrap ErrBlock.
func ParseBlock(msg []byte) (BlockHeader, []byte, error) {
	var h BlockHeader
	bad := func(format string, args ...any) (BlockHeader, []byte, error) {
		return BlockHeader{}, nil, fmt.Errorf("%w: "+format, append([]any{ErrBlock}, args...)...)
	}
	if len(msg) < HeaderSize || len(msg) > HeaderSize+MaxBlock {
		return bad("%d bytes", len(msg))
	}
	if msg[0] != Version {
		return bad("version %d", msg[0])
	}
	h.Flags = msg[1]
	h.Retry = binary.BigEndian.Uint16(msg[2:])
	h.Transfer = binary.BigEndian.Uint32(msg[4:])
	copy(h.Object[:], msg[8:24])
	off := binary.BigEndian.Uint64(msg[24:])
	h.Length = len(msg) - HeaderSize
	if binary.BigEndian.Uint32(msg[32:]) != uint32(h.Length) {
		return bad("header says %d bytes, %d came", binary.BigEndian.Uint32(msg[32:]), h.Length)
	}
	if off > MaxBlob {
		return bad("offset %d", off)
	}
	h.Offset = int64(off)
	if binary.BigEndian.Uint32(msg[36:]) != sum(msg) {
		return bad("checksum")
	}
	refusal := h.Flags & (FlagAbsent | FlagBusy)
	if h.Flags&^(FlagEnd|FlagAbsent|FlagBusy) != 0 || refusal == FlagAbsent|FlagBusy ||
		refusal != 0 && (h.Length != 0 || h.Flags&FlagEnd != 0) {
		return bad("flags %#x", h.Flags)
	}
	if h.Retry != 0 && h.Flags&FlagBusy == 0 {
		return bad("retry without busy")
	}
	if h.Length == 0 && h.Flags == 0 {
		return bad("no data")
	}
	return h, msg[HeaderSize:], nil
}
