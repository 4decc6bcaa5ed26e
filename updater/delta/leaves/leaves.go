// Package leaves makes the list of an image's leaf digests from the old image and a short blob,
// whose bytes FORMAT.md describes. Sizes and offsets are in bytes.
//
// It proves nothing: who calls compares the list with its signed digest.
package leaves

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta"
)

// Names of FORMAT.md.
const (
	Magic  = "TNDMLEAF\x01"
	Listed = 0
	Old    = 1
	Zero   = 2
	Kinds  = 2 // bits
)

// An Image is the old one.
type Image struct {
	io.ReaderAt
	Size int64
}

// Count is how many leaves an image of size bytes has.
func Count(size int64) int64 { return (size + delta.Leaf - 1) / delta.Leaf }

// List returns the digests of all leaves of an image of size bytes, one behind the other, as the
// blob says. Between leaves it calls progress; an error of it ends the work.
//
// The errors are delta.ErrFormat, before anything is read, and delta.ErrBase, which wraps what the
// reader of the old image returned.
func List(blob []byte, size int64, old Image, progress func() error) ([]byte, error) {
	if err := walk(blob, size, old.Size, func(int, int64, int64, int64, []byte) error { return nil }); err != nil {
		return nil, err
	}
	list := make([]byte, 0, sha256.Size*Count(size))
	var data []byte
	err := walk(blob, size, old.Size, func(kind int, first, count, from int64, digests []byte) error {
		if kind == Listed {
			list = append(list, digests...)
			return nil
		}
		if data == nil {
			data = make([]byte, delta.Leaf)
		}
		if kind == Zero {
			clear(data)
		}
		for i := range count {
			if err := progress(); err != nil {
				return err
			}
			leaf := data[:min(delta.Leaf, size-(first+i)*delta.Leaf)]
			if kind == Old {
				at := from + i*delta.Leaf
				if n, err := old.ReadAt(leaf, at); n != len(leaf) {
					if err == nil {
						err = io.ErrUnexpectedEOF
					}
					return fmt.Errorf("leaf of %d bytes at %d: %w", len(leaf), at, errors.Join(delta.ErrBase, err))
				}
			}
			sum := sha256.Sum256(leaf)
			list = append(list, sum[:]...)
		}
		return nil
	})
	return list, err
}

// walk reads the operations. Each names count leaves from the leaf first on: from is where they
// are in the old image, digests what they have.
func walk(blob []byte, size, oldSize int64, do func(kind int, first, count, from int64, digests []byte) error) error {
	b, ok := bytes.CutPrefix(blob, []byte(Magic))
	if !ok || size < 0 || size > delta.MaxSize {
		return fmt.Errorf("list of leaves: %w", delta.ErrFormat)
	}
	number := func() (uint64, bool) {
		v, n := binary.Uvarint(b)
		if n <= 0 || n > 9 {
			return 0, false
		}
		b = b[n:]
		return v, true
	}
	total := Count(size)
	displacement := int64(0)
	for first := int64(0); first < total; {
		word, ok := number()
		kind, count := int(word&(1<<Kinds-1)), word>>Kinds
		if !ok || kind > Zero || count == 0 || count > uint64(total-first) {
			return fmt.Errorf("list of leaves: operation at leaf %d: %w", first, delta.ErrFormat)
		}
		n := int64(count)
		var digests []byte
		switch kind {
		case Listed:
			if n > int64(len(b))/sha256.Size {
				return fmt.Errorf("list of leaves: %d digests at leaf %d: %w", n, first, delta.ErrFormat)
			}
			digests, b = b[:n*sha256.Size], b[n*sha256.Size:]
		case Old:
			step, ok := number()
			displacement += int64(step>>1) ^ -int64(step&1) // at most 2^62 more than what the bound below let pass
			start, length := first*delta.Leaf+displacement, min(n*delta.Leaf, size-first*delta.Leaf)
			if !ok || start < 0 || start > oldSize-length {
				return fmt.Errorf("list of leaves: %d leaves of the old image at %d: %w", n, start, delta.ErrFormat)
			}
		}
		if err := do(kind, first, n, first*delta.Leaf+displacement, digests); err != nil {
			return err
		}
		first += n
	}
	if len(b) != 0 {
		return fmt.Errorf("list of leaves: %d bytes left over: %w", len(b), delta.ErrFormat)
	}
	return nil
}
