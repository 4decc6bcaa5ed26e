package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Log is where a copy of the ledger's log is kept: a partition.Disk serves, and
// so does [CreateLog].
//
// WriteAt that returned nil need not survive a power cut before a later Sync
// returned nil. Entries are one sector of 512 bytes at a multiple of it.
type Log interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64
}

const (
	entrySize    = 512
	entryMagic   = "TNDMLEDG"
	entryVersion = 1
	smallestLog  = 2 * entrySize // an entry must not take the place of the one before it

	kindInstall = 1 // the NV index was, or is about to be, extended with Digest
	kindAdopted = 2 // history before this entry is not known; nothing was extended
)

// Entry is one line of the ledger.
type Entry struct {
	Sequence uint64   `json:"sequence"` // 0, 1, 2 …
	Digest   Digest   `json:"digest"`   // of the manifest that was installed; zero if adopted
	Install  [16]byte `json:"-"`        // names the attempt, see Ledger.Add
	Time     int64    `json:"time"`     // Unix seconds as the device believed them; nothing relies on it
	Before   Digest   `json:"before"`   // NV value before this entry
	After    Digest   `json:"after"`    // and after it
	Adopted  bool     `json:"adopted,omitempty"`
}

var errEntry = errors.New("no entry")

// marshal makes the sector of an entry; FORMAT.md has the table.
func (e Entry) marshal() []byte {
	b := make([]byte, entrySize)
	le := binary.LittleEndian
	copy(b, entryMagic)
	le.PutUint16(b[8:], entryVersion)
	le.PutUint16(b[10:], kindInstall)
	if e.Adopted {
		le.PutUint16(b[10:], kindAdopted)
	}
	le.PutUint64(b[16:], e.Sequence)
	le.PutUint64(b[24:], uint64(e.Time))
	copy(b[32:], e.Install[:])
	copy(b[48:], e.Digest[:])
	copy(b[80:], e.Before[:])
	copy(b[112:], e.After[:])
	sum := sha256.Sum256(b[:entrySize-sha256.Size])
	copy(b[entrySize-sha256.Size:], sum[:])
	return b
}

// parseEntry reads a sector. Anything that is not exactly an entry is errEntry: a sector never
// written, torn, damaged, or of a version to come.
func parseEntry(b []byte) (Entry, error) {
	le := binary.LittleEndian
	if len(b) != entrySize {
		return Entry{}, errEntry
	}
	e := Entry{
		Sequence: le.Uint64(b[16:]), Time: int64(le.Uint64(b[24:])),
		Install: [16]byte(b[32:48]), Digest: Digest(b[48:80]), Before: Digest(b[80:112]), After: Digest(b[112:144]),
		Adopted: le.Uint16(b[10:]) == kindAdopted,
	}
	// One entry has one form: magic, version, checksum and padding follow from the fields.
	if !bytes.Equal(e.marshal(), b) {
		return Entry{}, errEntry
	}
	after := Extended(e.Before, e.Digest)
	if e.Adopted {
		after = e.Before
	}
	if e.After != after || e.Sequence == 0 && !e.Adopted && e.Before != (Digest{}) {
		return Entry{}, errEntry
	}
	return e, nil
}

// place is where entry n of a log of this size stands: the log is a ring.
func place(log Log, n uint64) int64 {
	return int64(n%uint64(log.Size()/entrySize)) * entrySize
}

// readLog returns the whole entries of a log in no special order.
func readLog(log Log) ([]Entry, error) {
	if log.Size() < smallestLog {
		return nil, fmt.Errorf("log of %d bytes: %w", log.Size(), io.ErrUnexpectedEOF)
	}
	var entries []Entry
	var firstErr error
	b := make([]byte, entrySize)
	for at := int64(0); at+entrySize <= log.Size(); at += entrySize {
		// One unreadable sector must not hide the others.
		if n, err := log.ReadAt(b, at); n != len(b) {
			if firstErr == nil {
				firstErr = fmt.Errorf("read log at %d: %w", at, err)
			}
			continue
		}
		if e, err := parseEntry(b); err == nil && place(log, e.Sequence) == at {
			entries = append(entries, e)
		}
	}
	return entries, firstErr
}

// writeEntry writes e durably. After an error the entry may be there, or not, or
// torn; writing it again is safe.
func writeEntry(log Log, e Entry) error {
	if log.Size() < smallestLog {
		return fmt.Errorf("log of %d bytes: %w", log.Size(), io.ErrShortWrite)
	}
	if _, err := log.WriteAt(e.marshal(), place(log, e.Sequence)); err != nil {
		return err
	}
	return log.Sync()
}
