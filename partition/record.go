package partition

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// RecordSize is the room at the end of a slot's root partition that belongs to
	// the slot record, in bytes. Images end before it.
	RecordSize = 64 << 10
	// MaxEnvelope is the longest envelope that fits into a slot record, in bytes.
	MaxEnvelope = RecordSize - recordHeader

	recordMagic   = "TNDMSLOT"
	recordVersion = 1
	recordHeader  = 48
)

// ErrNoRecord means that the partition has no whole slot record: never written,
// erased, damaged, or of a version that this program does not know. What the
// slot holds is unknown, so it must not be booted, and it may be written.
var ErrNoRecord = errors.New("no slot record")

// Record says what a slot holds. FORMAT.md has its bytes.
type Record struct {
	// Envelope is the signed manifest, a DSSE envelope exactly as the release
	// carried it, 1 to MaxEnvelope bytes. Whoever acts on it verifies it: the
	// record's own hash finds damage, not lies.
	Envelope []byte
}

// ReadRecord reads the slot record at the end of d, past the page cache. It is
// ErrNoRecord if there is none; other errors mean that the medium could not be
// read.
func ReadRecord(d Disk) (Record, error) {
	at, err := recordOffset(d)
	if err != nil {
		return Record{}, err
	}
	area := make([]byte, RecordSize)
	if err := readFull(d, area, at); err != nil {
		return Record{}, fmt.Errorf("read slot record: %w", err)
	}
	return parseRecord(area)
}

func parseRecord(area []byte) (Record, error) {
	if len(area) < recordHeader {
		return Record{}, fmt.Errorf("%w: %d bytes", ErrNoRecord, len(area))
	}
	if string(area[:8]) != recordMagic {
		return Record{}, ErrNoRecord
	}
	if v := binary.LittleEndian.Uint32(area[8:]); v != recordVersion {
		return Record{}, fmt.Errorf("%w: version %d is unknown", ErrNoRecord, v)
	}
	n := binary.LittleEndian.Uint32(area[12:])
	if n == 0 || int64(n) > int64(min(len(area), RecordSize)-recordHeader) {
		return Record{}, fmt.Errorf("%w: length %d", ErrNoRecord, n)
	}
	envelope := area[recordHeader : recordHeader+n]
	if sum := sha256.Sum256(envelope); !bytes.Equal(sum[:], area[16:recordHeader]) {
		return Record{}, fmt.Errorf("%w: its hash does not match", ErrNoRecord)
	}
	return Record{Envelope: bytes.Clone(envelope)}, nil
}

// EraseRecord makes d a partition without a slot record. It comes before the
// first byte of a new image, so that no record ever speaks of content that is
// half overwritten.
//
// Nil means that the record is gone from the medium, read back. If it fails, the
// old record may or may not be there; calling it again is safe.
func EraseRecord(d Disk) error {
	at, err := recordOffset(d)
	if err != nil {
		return err
	}
	if err := putRecord(d, at, make([]byte, BlockSize)); err != nil {
		return fmt.Errorf("erase slot record: %w", err)
	}
	return nil
}

// WriteRecord writes r to the end of d. It comes last, after the image has been
// read back.
//
// Nil means that the record is on the medium, read back. If it fails or the
// power does, there is the old record, the new one or none, never a mixture;
// calling it again is safe.
func WriteRecord(d Disk, r Record) error {
	at, err := recordOffset(d)
	if err != nil {
		return err
	}
	b, err := r.bytes()
	if err != nil {
		return err
	}
	if err := putRecord(d, at, b); err != nil {
		return fmt.Errorf("write slot record: %w", err)
	}
	return nil
}

// bytes returns the record, padded with zeros to whole blocks.
func (r Record) bytes() ([]byte, error) {
	n := len(r.Envelope)
	if n == 0 || n > MaxEnvelope {
		return nil, fmt.Errorf("write slot record: envelope of %d bytes, allowed are 1 to %d", n, MaxEnvelope)
	}
	b := make([]byte, (recordHeader+n+BlockSize-1)/BlockSize*BlockSize)
	copy(b, recordMagic)
	binary.LittleEndian.PutUint32(b[8:], recordVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(n))
	sum := sha256.Sum256(r.Envelope)
	copy(b[16:], sum[:])
	copy(b[recordHeader:], r.Envelope)
	return b, nil
}

// putRecord writes b unless the medium already holds it, syncs and reads back.
func putRecord(d Disk, at int64, b []byte) error {
	was := make([]byte, len(b))
	if err := readFull(d, was, at); err != nil || !bytes.Equal(was, b) {
		if _, err := d.WriteAt(b, at); err != nil {
			return err
		}
	}
	// Also when it was equal: a run that was killed may have written it and not
	// synced, and the image that comes next must not overtake the erasing.
	if err := d.Sync(); err != nil {
		return err
	}
	if err := readFull(d, was, at); err != nil {
		return err
	}
	if !bytes.Equal(was, b) {
		return fmt.Errorf("at %d: %w", at, ErrMismatch)
	}
	return nil
}

func recordOffset(d Disk) (int64, error) {
	at := d.Size() - RecordSize
	if at < 0 {
		return 0, fmt.Errorf("slot record in a partition of %d bytes: %w", d.Size(), ErrOutside)
	}
	return at, nil
}
