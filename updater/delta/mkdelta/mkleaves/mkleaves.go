// Package mkleaves makes the blobs that package leaves reads. It runs on a desk.
package mkleaves

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
)

// ErrChanged means that the blob does not make the list: an image was written to while it was
// read, or the machine is faulty.
var ErrChanged = errors.New("leaves do not make the list")

// block is the unit in which files move inside an image.
const block = 4096

// Make returns the blob that makes list, the digests of all leaves of target, on a device that
// has base. It takes 24 bytes of memory for every 4 KiB of base.
func Make(ctx context.Context, base, target leaves.Image, list []byte) ([]byte, error) {
	if int64(len(list)) != sha256.Size*leaves.Count(target.Size) {
		return nil, fmt.Errorf("list of %d bytes for an image of %d", len(list), target.Size)
	}
	m := &maker{base: base, seed: maphash.MakeSeed(), at: map[uint64]int64{}}
	if err := m.index(ctx); err != nil {
		return nil, fmt.Errorf("read old image: %w", err)
	}
	leaf, b := make([]byte, delta.Leaf), []byte(leaves.Magic)
	var last run
	displacement := int64(0)
	flush := func(end int64) {
		count := end - last.first
		if count == 0 {
			return
		}
		b = binary.AppendUvarint(b, uint64(count)<<leaves.Kinds|uint64(last.kind))
		switch last.kind {
		case leaves.Listed:
			b = append(b, list[sha256.Size*last.first:sha256.Size*end]...)
		case leaves.Old:
			step := last.displacement - displacement
			b = binary.AppendUvarint(b, uint64(step<<1)^uint64(step>>63))
			displacement = last.displacement
		}
	}
	for i := range leaves.Count(target.Size) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at := i * delta.Leaf
		data := leaf[:min(delta.Leaf, target.Size-at)]
		if n, err := target.ReadAt(data, at); n != len(data) {
			return nil, fmt.Errorf("read new image at %d: %w", at, errors.Join(io.ErrUnexpectedEOF, err))
		}
		kind, shift := m.find(data, at, last)
		if kind != last.kind || shift != last.displacement {
			flush(i)
			last = run{kind: kind, first: i, displacement: shift}
		}
	}
	flush(leaves.Count(target.Size))
	got, err := leaves.List(b, target.Size, base, ctx.Err)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrChanged, err)
	}
	if !bytes.Equal(got, list) {
		return nil, ErrChanged
	}
	return b, nil
}

// run is an operation that may still grow.
type run struct {
	kind                int
	first, displacement int64
}

type maker struct {
	base leaves.Image
	seed maphash.Seed
	at   map[uint64]int64 // by hash: the first block of base that has it
	old  []byte
}

func (m *maker) index(ctx context.Context) error {
	b := make([]byte, 1<<20)
	for at := int64(0); at+block <= m.base.Size; at += int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := b[:min(int64(len(b)), m.base.Size-at)]
		if n, err := m.base.ReadAt(part, at); n != len(part) {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
		for i := 0; i+block <= len(part); i += block {
			h := maphash.Bytes(m.seed, part[i:i+block])
			if _, known := m.at[h]; !known {
				m.at[h] = at + int64(i)
			}
		}
	}
	return nil
}

// find says what a leaf at a new offset is: as before, if that is so, else where it was, else
// where a block of it is.
func (m *maker) find(data []byte, at int64, last run) (kind int, displacement int64) {
	if zeros(data) {
		return leaves.Zero, 0
	}
	if last.kind == leaves.Old && m.same(data, at+last.displacement) {
		return leaves.Old, last.displacement
	}
	if m.same(data, at) {
		return leaves.Old, 0
	}
	for i := 0; i+block <= len(data); i += block {
		if zeros(data[i : i+block]) {
			continue // found anywhere
		}
		from, known := m.at[maphash.Bytes(m.seed, data[i:i+block])]
		if !known {
			return leaves.Listed, 0
		}
		if m.same(data, from-int64(i)) {
			return leaves.Old, from - int64(i) - at
		}
	}
	return leaves.Listed, 0
}

func (m *maker) same(data []byte, from int64) bool {
	if from < 0 || from > m.base.Size-int64(len(data)) {
		return false
	}
	if m.old == nil {
		m.old = make([]byte, delta.Leaf)
	}
	n, _ := m.base.ReadAt(m.old[:len(data)], from)
	return bytes.Equal(data, m.old[:n])
}

func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
