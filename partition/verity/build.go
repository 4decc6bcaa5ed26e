package verity

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// readSize is how much data is read at once, in bytes.
const readSize = 256 << 10

// TreeSize returns how many bytes Build writes for size bytes of data:
// superblock and tree. An error is ErrParams.
func TreeSize(size int64) (int64, error) {
	blocks, err := dataBlocks(size)
	if err != nil {
		return 0, err
	}
	total := int64(1) // superblock
	for _, n := range levelBlocks(blocks) {
		total += n
	}
	return total * BlockSize, nil
}

// Build reads [0, size) of data and writes superblock and hash tree to out,
// beginning at offset at. It returns the root hash and the number of bytes it
// wrote. Data and out may be the same file as long as at is not below size.
//
// Size must be a multiple of BlockSize, salt at most MaxSalt bytes (otherwise
// ErrParams). Memory is 256 KiB and one block for each of the tree's levels
// (three for 8 GiB); out is written strictly forward within each level and
// never read.
//
// If Build fails, what out holds is of no use; calling it again is safe. Build
// does not sync.
func Build(data io.ReaderAt, size int64, salt []byte, uuid [16]byte, out io.WriterAt, at int64) (root [32]byte, treeSize int64, err error) {
	blocks, err := dataBlocks(size)
	if err != nil {
		return root, 0, err
	}
	if len(salt) > MaxSalt {
		return root, 0, fmt.Errorf("%w: salt of %d bytes", ErrParams, len(salt))
	}
	if _, err := out.WriteAt(superblock(blocks, salt, uuid), at); err != nil {
		return root, 0, fmt.Errorf("write verity superblock at %d: %w", at, err)
	}
	t := newTree(blocks, salt, out, at+BlockSize)
	buf := make([]byte, min(readSize, size))
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		// io.ReaderAt may return io.EOF together with a full buffer at the end.
		if n, err := data.ReadAt(buf, off); n < len(buf) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return root, 0, fmt.Errorf("read data at %d: %w", off+int64(n), err)
		}
		for b := buf; len(b) > 0; b = b[BlockSize:] {
			if err := t.add(0, t.digest(b[:BlockSize])); err != nil {
				return root, 0, err
			}
		}
	}
	if err := t.finish(); err != nil {
		return root, 0, err
	}
	return t.root, BlockSize + t.size, nil
}

func dataBlocks(size int64) (int64, error) {
	if size <= 0 || size%BlockSize != 0 || size/BlockSize > maxBlocks {
		return 0, fmt.Errorf("%w: data of %d bytes is not a whole number of %d-byte blocks", ErrParams, size, BlockSize)
	}
	return size / BlockSize, nil
}

// levelBlocks returns the number of blocks in each level, the lowest first.
func levelBlocks(blocks int64) []int64 {
	var levels []int64
	for n := blocks; n > 1; {
		n = (n + perBlock - 1) >> digestShift
		levels = append(levels, n)
	}
	return levels
}

func superblock(blocks int64, salt []byte, uuid [16]byte) []byte {
	b := make([]byte, BlockSize)
	copy(b, "verity\x00\x00")
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[12:], 1)
	copy(b[16:], uuid[:])
	copy(b[32:], "sha256")
	binary.LittleEndian.PutUint32(b[64:], BlockSize)
	binary.LittleEndian.PutUint32(b[68:], BlockSize)
	binary.LittleEndian.PutUint64(b[72:], uint64(blocks))
	binary.LittleEndian.PutUint16(b[80:], uint16(len(salt)))
	copy(b[88:], salt)
	return b
}

// tree grows all levels at once: a block that fills up is written and its digest
// handed to the level above, so that no level is ever read back.
type tree struct {
	out    io.WriterAt
	salt   []byte
	hash   hash.Hash
	sum    []byte  // reused: a digest for every block would be garbage for every block
	levels []level // the lowest first
	size   int64   // of all levels, in bytes
	root   [digestSize]byte
}

type level struct {
	block []byte // the block being filled
	used  int    // bytes of it in use
	next  int64  // where it goes
}

func newTree(blocks int64, salt []byte, out io.WriterAt, at int64) *tree {
	t := &tree{out: out, salt: salt, hash: sha256.New()}
	counts := levelBlocks(blocks)
	t.levels = make([]level, len(counts))
	for i := len(counts) - 1; i >= 0; i-- { // the topmost level comes first on disk
		t.levels[i] = level{block: make([]byte, BlockSize), next: at + t.size}
		t.size += counts[i] * BlockSize
	}
	return t
}

// digest returns SHA-256(salt ‖ block); the next call overwrites it.
func (t *tree) digest(block []byte) []byte {
	t.hash.Reset()
	t.hash.Write(t.salt)
	t.hash.Write(block)
	t.sum = t.hash.Sum(t.sum[:0])
	return t.sum
}

// add appends a digest to level i; the digest of the topmost block is the root.
func (t *tree) add(i int, d []byte) error {
	if i == len(t.levels) {
		copy(t.root[:], d)
		return nil
	}
	l := &t.levels[i]
	l.used += copy(l.block[l.used:], d)
	if l.used == BlockSize {
		return t.flush(i)
	}
	return nil
}

func (t *tree) flush(i int) error {
	l := &t.levels[i]
	if _, err := t.out.WriteAt(l.block, l.next); err != nil {
		return fmt.Errorf("write verity tree at %d: %w", l.next, err)
	}
	d := t.digest(l.block)
	clear(l.block)
	l.used, l.next = 0, l.next+BlockSize
	return t.add(i+1, d)
}

// finish writes the blocks that did not fill up, from the lowest level upwards.
func (t *tree) finish() error {
	for i := range t.levels {
		if t.levels[i].used > 0 {
			if err := t.flush(i); err != nil {
				return err
			}
		}
	}
	return nil
}
