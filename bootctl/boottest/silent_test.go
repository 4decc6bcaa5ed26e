package boottest

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// silent is a disk that does not answer for some sectors until they are written to.
type silent struct {
	*disktest.Disk
	sectors map[int64]bool
	writes  int
}

func (s *silent) ReadAt(p []byte, off int64) (int, error) {
	if s.sectors[off/grubenv.SectorSize] {
		return 0, syscall.EIO
	}
	return s.Disk.ReadAt(p, off)
}

func (s *silent) ReadMedium(p []byte, off int64) (int, error) { return s.ReadAt(p, off) }

func (s *silent) WriteAt(p []byte, off int64) (int, error) {
	s.writes++
	delete(s.sectors, off/grubenv.SectorSize)
	return s.Disk.WriteAt(p, off)
}

// One copy that cannot be read is a sector that a power cut destroyed, and is written over. A
// disk that answers for neither says nothing about what it holds, and nothing is written to it.
func TestGrubenvSilentDisk(t *testing.T) {
	const copy0, copy1 = grubenv.Copy0Offset / grubenv.SectorSize, grubenv.Copy1Offset / grubenv.SectorSize
	for _, one := range []int64{copy0, copy1} {
		d := &silent{Disk: disktest.New(image(trial)), sectors: map[int64]bool{one: true}}
		require.NoError(t, grubenv.Open(d).Save(fresh))
		r, err := grubenv.Open(d).Load()
		require.NoError(t, err)
		require.True(t, fresh.Same(r))
	}
	d := &silent{Disk: disktest.New(image(trial)), sectors: map[int64]bool{copy0: true, copy1: true}}
	require.ErrorIs(t, grubenv.Open(d).Save(fresh), syscall.EIO)
	require.Zero(t, d.writes)
}
