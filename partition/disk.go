// Package partition finds the two slots of a board, writes the spare one and
// reads it back.
//
// Offsets and sizes are in bytes. A sector is what the disk reports (512 or
// 4096), a block is 4096 bytes, a leaf is 64 KiB: the piece that a manifest
// carries a digest of, and the piece that is written and read back at once.
// Slots are found by GPT partition label (UEFI 2.10, section 5.3.3), never by
// number: numbers move when an OEM adds a partition.
//
// # The parts
//
//   - [Disk] is the one seam for disk I/O: four methods, so that
//     partition/disktest can cut the power at every one of them.
//   - [OpenFile] and [OpenRead] make a Disk of a block device or a file.
//   - [ReadTable] reads a GPT and trusts nothing in it; [Find] picks a label.
//   - [Host] maps labels to device nodes and tells who uses them.
//   - [Writer] writes an image forward, leaf by leaf, with durable checkpoints;
//     [ReadBack] compares the medium with the manifest.
//   - [ReadRecord], [WriteRecord], [EraseRecord] keep the slot record, the note
//     at the end of a slot that says what the slot holds. FORMAT.md has its bytes.
//
// # The order that makes an update safe
//
//	EraseRecord → Writer … Checkpoint … Finish → ReadBack → WriteRecord
//
// Whenever the power fails, a slot without a record is worth nothing, and a slot
// with a record holds what the record says. Nothing in this package decides
// which slot to boot or whether a signature is good; see packages bootctl and
// updater/trust.
package partition

import (
	"errors"
	"fmt"
	"io"
)

const (
	// LeafSize is the size of the pieces that a manifest has digests of, in bytes.
	LeafSize = 64 << 10
	// BlockSize is the unit in which equal content is left alone, in bytes. It is
	// the page of the kernel's cache and of all flash translation layers we know.
	BlockSize = 4096
)

// Disk is a medium with a volatile cache in front of it.
//
// WriteAt that returned nil is seen by later reads, but survives a power cut
// only after a later Sync returned nil. Until then each sector of it may be
// old, new or neither, in any order. After a Sync that failed nothing is known
// about what was written since the last good one; a further Sync proves nothing.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64
}

// Medium is a Disk that can be read past the caches of the machine, so that a
// comparison is with what the medium holds and not with what was meant for it.
type Medium interface {
	// ReadMedium is ReadAt, past the caches.
	ReadMedium(p []byte, off int64) (int, error)
}

// Counters says what a Writer cost, in bytes.
type Counters struct {
	Read    int64 // read from the spare slot in order to compare
	Written int64 // written to the spare slot
	Skipped int64 // already right on the medium, so not written again
}

// ErrOutside means that a caller tried to go past the end of a window or disk.
// Nothing was written.
var ErrOutside = errors.New("outside of the partition")

// Section returns the window [off, off+n) of d as a Disk of its own. A read at
// its end is io.EOF, a write across its end is ErrOutside and writes nothing:
// what lies behind may be the running slot. A window that d does not contain is
// empty.
func Section(d Disk, off, n int64) Disk {
	if off < 0 || n < 0 || n > d.Size()-off {
		off, n = 0, 0
	}
	return &section{disk: d, off: off, size: n}
}

type section struct {
	disk      Disk
	off, size int64
}

func (s *section) Size() int64 { return s.size }
func (s *section) Sync() error { return s.disk.Sync() }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	return s.read(s.disk.ReadAt, p, off)
}

func (s *section) ReadMedium(p []byte, off int64) (int, error) {
	return s.read(func(p []byte, off int64) (int, error) { return readMedium(s.disk, p, off) }, p, off)
}

func (s *section) read(readAt func([]byte, int64) (int, error), p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, ErrOutside)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	whole := len(p)
	p = p[:min(int64(whole), s.size-off)]
	n, err := readAt(p, s.off+off)
	if err == nil && n < whole {
		err = io.EOF
	}
	return n, err
}

func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("write %d bytes at %d of %d: %w", len(p), off, s.size, ErrOutside)
	}
	return s.disk.WriteAt(p, s.off+off)
}

// readMedium reads past the caches where d can.
func readMedium(d Disk, p []byte, off int64) (int, error) {
	if m, ok := d.(Medium); ok {
		return m.ReadMedium(p, off)
	}
	return d.ReadAt(p, off)
}

// readFull reads all of p from the medium; fewer bytes are an error.
func readFull(d Disk, p []byte, off int64) error {
	return full(p, func(p []byte) (int, error) { return readMedium(d, p, off) })
}

// full turns what an io.ReaderAt may return at the end of its input (all bytes
// together with io.EOF, or too few with io.EOF) into success or an error.
func full(p []byte, read func([]byte) (int, error)) error {
	n, err := read(p)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
