package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/disktest"
)

// What a window has synced is on the medium, and a window says so where the disk below
// cannot sync.
func TestSectionSync(t *testing.T) {
	d := disktest.New(make([]byte, 8*disktest.Sector))
	s := Section(d, 2*disktest.Sector, 4*disktest.Sector)
	want := noise(7, 2*disktest.Sector)
	_, err := s.WriteAt(want, disktest.Sector)
	require.NoError(t, err)
	require.NoError(t, s.Sync())
	promised := d.Bench().Ops()
	for crash := range d.Bench().Crashes(disktest.Bounds{From: promised}) {
		require.True(t, bytes.Equal(want, crash.Disks()[0].Bytes()[3*disktest.Sector:5*disktest.Sector]), "%s", crash)
	}
	d.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: syscall.EIO})
	require.ErrorIs(t, s.Sync(), syscall.EIO)
}

// short is a disk that gives less than it was asked for.
type short struct {
	memory
	err error
}

func (s short) ReadAt(p []byte, off int64) (int, error) { return copy(p, s.memory[off:]) - 1, s.err }

// Less than was asked for is no success, whatever the disk thinks of it.
func TestShortRead(t *testing.T) {
	for want, err := range map[error]error{io.ErrUnexpectedEOF: nil, syscall.EIO: syscall.EIO} {
		d := short{make(memory, 2*RecordSize), err}
		_, err := ReadRecord(d)
		require.ErrorIs(t, err, want)
		require.ErrorIs(t, ReadBack(context.Background(), d, 1, make([]byte, sha256.Size), nil), want)
	}
	_, err := ReadRecord(short{make(memory, 2*RecordSize), io.EOF})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}
