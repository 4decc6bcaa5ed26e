package workbench

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/disktest"
)

// Entry is one operation that reached a disk.
type Entry struct {
	Sync bool // all writes before it are durable
	Off  int64
	Data []byte
}

// String is for comparing: two entries are the same if it is.
func (e Entry) String() string {
	if e.Sync {
		return "sync"
	}
	return fmt.Sprintf("write %d+%d %x", e.Off, len(e.Data), sha256.Sum256(e.Data))
}

// The format is that of Linux's dm-log-writes
// (Documentation/admin-guide/device-mapper/log-writes.rst and
// drivers/md/dm-log-writes.c), little-endian. A super block of one sector:
//
//	0  8  magic 0x6a736677736872    16  8  number of entries
//	8  8  version 1                 24  4  bytes of a sector
//
// then the entries, each a sector with this and zeros, and then the data of a write:
//
//	0  8  first sector              16  8  flags: 1 flush, 2 FUA, 4 discard, 8 mark
//	8  8  number of sectors         24  8  bytes of a mark
const (
	logMagic              = 0x6a736677736872
	logFlush, logFUA      = 1, 2
	logDiscard, logMarker = 4, 8
)

// ReadLog reads what QEMU's blklogwrites has logged.
func ReadLog(t *testing.T, file string) []Entry {
	t.Helper()
	log, err := os.Open(file)
	require.NoError(t, err)
	defer log.Close()
	at := int64(0)
	next := func(n uint64) []byte {
		b := make([]byte, n*disktest.Sector)
		_, err := log.ReadAt(b, at)
		require.NoError(t, err, "%s at %d", file, at)
		at += int64(len(b))
		return b
	}
	le := binary.LittleEndian
	super := next(1)
	if le.Uint64(super) == 0 {
		return nil // it comes with the first entry
	}
	require.EqualValues(t, logMagic, le.Uint64(super))
	require.EqualValues(t, 1, le.Uint64(super[8:]))
	require.EqualValues(t, disktest.Sector, le.Uint32(super[24:]))
	var entries []Entry
	for range le.Uint64(super[16:]) {
		head := next(1)
		first, n, flags := int64(le.Uint64(head)), le.Uint64(head[8:]), le.Uint64(head[16:])
		require.Zero(t, flags&(logDiscard|logMarker), "%s: an entry that nobody asked for", file)
		// A flush comes before the data of the same entry, FUA after it.
		if flags&logFlush != 0 {
			entries = append(entries, Entry{Sync: true})
		}
		if n > 0 {
			entries = append(entries, Entry{Off: first * disktest.Sector, Data: next(n)})
		}
		if flags&logFUA != 0 {
			entries = append(entries, Entry{Sync: true})
		}
	}
	return entries
}
