package partition

import (
	"bytes"
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
