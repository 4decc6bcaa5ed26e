package transport

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// Ranger hands out bytes of one content that nobody has checked yet, with the
// semantics of io.ReaderAt: n < len(p) only with an error, io.EOF at the end.
type Ranger func(ctx context.Context, off int64, p []byte) (int, error)

// ErrLeaf means that a source gave bytes that are not the signed ones, again
// and again. The bytes were not handed out. The caller should take another
// source, or ask again much later; it must not use this content.
var ErrLeaf = errors.New("content does not match its signed hash")

// leafTries is how often a leaf is asked for before Verified gives up. More than
// once, because a broker that mixes two messages is no reason to fail an update.
const leafTries = 3

// Verified reads a content through a Ranger and hands out no byte before the
// SHA-256 of the 64 KiB leaf around it was right. It keeps one leaf, so that
// reads that go forward in small steps cost one check per leaf.
//
// It is not safe for concurrent use.
type Verified struct {
	src    Ranger
	size   int64
	leaves []byte
	buf    []byte
	have   int64 // number of the leaf in buf, -1 for none
	bad    int
}

// NewVerified checks that the list of leaves is the signed one and returns a
// reader for a content of size bytes. leaves holds the SHA-256 of every leaf,
// 32 bytes each; tree is the digest of that list. A content of at most one leaf
// needs no list: leaves is nil and tree is the digest of the content itself.
func NewVerified(src Ranger, size int64, tree string, leaves []byte) (*Verified, error) {
	want, err := ParseDigest(tree)
	if err != nil {
		return nil, err
	}
	n := (size + LeafSize - 1) / LeafSize
	if size < 0 || size > MaxBlob {
		return nil, fmt.Errorf("content of %d bytes", size)
	}
	if leaves == nil && n <= 1 {
		leaves = want[:]
	} else {
		if int64(len(leaves)) != n*sha256.Size {
			return nil, fmt.Errorf("list of leaves has %d bytes, %d leaves need %d", len(leaves), n, n*sha256.Size)
		}
		if sha256.Sum256(leaves) != want {
			return nil, fmt.Errorf("list of leaves: %w", ErrLeaf)
		}
	}
	return &Verified{src: src, size: size, leaves: leaves, have: -1}, nil
}

// Size returns the size of the content in bytes.
func (v *Verified) Size() int64 { return v.size }

// BadLeaves returns how many leaves came wrong so far.
func (v *Verified) BadLeaves() int { return v.bad }

// ReadAt reads len(p) bytes at off, or up to the end of the content with io.EOF.
// It returns ErrLeaf when the source keeps sending something else, and else the
// error of the source. Repeating it is safe.
func (v *Verified) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d", off)
	}
	n := 0
	for n < len(p) {
		if off >= v.size {
			return n, io.EOF
		}
		leaf := off / LeafSize
		if err := v.load(ctx, leaf); err != nil {
			return n, err
		}
		c := copy(p[n:], v.buf[off-leaf*LeafSize:])
		n += c
		off += int64(c)
	}
	return n, nil
}

func (v *Verified) load(ctx context.Context, leaf int64) error {
	if v.have == leaf {
		return nil
	}
	v.have = -1
	start := leaf * LeafSize
	n := min(LeafSize, v.size-start)
	if v.buf == nil {
		v.buf = make([]byte, min(LeafSize, v.size))
	}
	v.buf = v.buf[:n]
	want := v.leaves[leaf*sha256.Size : (leaf+1)*sha256.Size]
	for range leafTries {
		got, err := v.src(ctx, start, v.buf)
		if err != nil && !(errors.Is(err, io.EOF) && int64(got) == n) {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("source ends at %d of %d bytes: %w", start+int64(got), v.size, ErrLeaf)
			}
			return err
		}
		sum := sha256.Sum256(v.buf)
		if subtle.ConstantTimeCompare(sum[:], want) == 1 {
			v.have = leaf
			return nil
		}
		v.bad++
	}
	return fmt.Errorf("leaf %d at offset %d: %w", leaf, start, ErrLeaf)
}
