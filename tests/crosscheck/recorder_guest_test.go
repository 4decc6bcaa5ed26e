package crosscheck

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/tests/factory"
	"github.com/tandem-ota/tandem/tests/workbench"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// Under the kernel of a real guest, whose page cache writes when and in what pieces it
// likes, QEMU's blklogwrites sees what partition/disktest records of the same installation
// in this process: the same sectors change, each to the same contents in the same order,
// and no other sector of the disk but the data partition's. What the program has synced is
// on the disk, and flushed, before anything changes that it writes after the sync, whichever
// partition that is on.
//
// A flush does not tell who asked for it: one by the data partition's file system hides one
// that is missing at the same place. TestRecorder has no file system beside, and notices.
//
// Guests boot for half a minute: with TANDEM_LONG only.
func TestGuestRecorded(t *testing.T) {
	if !long {
		t.Skip("boots whole guests; set TANDEM_LONG")
	}
	t.Parallel()
	f := theFactory(t)
	board := small(f.Board())
	running := opened(t, f.Release("one"))
	made := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, image.Build(t.Context(), image.DiskOptions{
		Board: board, BootImage: filepath.Join(f.Slots("one"), "boot.img"), RootImage: filepath.Join(f.Slots("one"), "root.img"),
		Envelope: running,
	}, made))
	disk, err := os.Open(made)
	require.NoError(t, err)
	defer disk.Close()
	data, err := board.Place("data")
	require.NoError(t, err)
	compared := 0
	for _, i := range []struct{ name, release string }{
		{"by delta", "two"},
		{"whole", "whole"},
	} {
		t.Run(i.name, func(t *testing.T) {
			g := newGuest(t, f.Release(i.release))
			g.image, g.logged = made, true
			g.fresh()
			g.listens()
			g.run("updater", "install", "-hold", "-full", pushed)
			require.NoError(t, g.d.Cut())
			here := installation(t, f, board, disk, i.release)
			recorded, _ := here.Record(t)
			saw := slices.DeleteFunc(workbench.ReadLog(t, g.d.Writes()), func(e workbench.Entry) bool {
				return !e.Sync && e.Off >= data.Start && e.Off < data.Start+data.Size
			})
			want, have := changes(t, disk, here.Parts, recorded), changes(t, disk, here.Parts, saw)
			require.NoError(t, agree(want, have))
			notices(t, want, have)
			n := 0
			for _, s := range want {
				n += len(s.changes)
			}
			t.Logf("%d sectors changed, in %d writes here and %d in the guest", n, len(recorded), len(saw))
			compared += n
		})
	}
	t.Attr("guest-sectors", fmt.Sprint(compared))
}

// small is a board with slots that fit into this process a few times.
func small(b boards.Board) boards.Board {
	b.Disk.Partitions = slices.Clone(b.Disk.Partitions)
	for i, p := range b.Disk.Partitions {
		if p.Label == "root_a" || p.Label == "root_b" {
			b.Disk.Partitions[i].SizeMiB = 48
		}
	}
	return b
}

// opened returns the envelope of a release.
func opened(t *testing.T, folder string) []byte {
	t.Helper()
	r, err := release.Open(folder)
	require.NoError(t, err)
	defer r.Close()
	envelope, err := r.Manifest(t.Context())
	require.NoError(t, err)
	return bytes.TrimSpace(envelope)
}

// installation is the one that the guest makes, on the disk that it was made on.
func installation(t *testing.T, f *factory.Factory, board boards.Board, disk io.ReaderAt, version string) workbench.Installation {
	t.Helper()
	folder, err := mktrust.Open(f.Trust(), time.Now())
	require.NoError(t, err)
	i := workbench.Installation{
		Board: board.Name, Disk: workbench.Disk{}, Version: "1.0.0", Release: f.Release(version), Checkpoint: 4 << 20,
	}
	i.Keys, err = folder.ReleaseKeys()
	require.NoError(t, err)
	i.Anchor, err = os.ReadFile(filepath.Join(f.Trust(), "root.json"))
	require.NoError(t, err)
	payload, err := trust.Verify(opened(t, f.Release("one")), trust.ManifestType, i.Keys)
	require.NoError(t, err)
	i.Manifest = manifest.DigestOf(payload)
	for _, label := range []string{"env", "boot_a", "boot_b", "root_a", "root_b"} {
		p, err := board.Place(label)
		require.NoError(t, err)
		i.Parts = append(i.Parts, workbench.Part{Label: label, Number: p.Number, Start: p.Start, Size: p.Size})
		content := make([]byte, p.Size)
		_, err = disk.ReadAt(content, p.Start)
		require.NoError(t, err)
		i.Disk[label] = content
	}
	return i
}

// change is what a sector becomes.
type change struct {
	sector int64
	to     [sha256.Size]byte
}

// step is a sync, or what a write changes.
type step struct {
	sync    bool
	part    int // of the installation, if it is one of these
	changes []change
}

// changes reduces a log to what it does to a disk: a sector that is written with what it
// holds already does not count, since a page cache writes whole pages.
func changes(t *testing.T, disk io.ReaderAt, parts []workbench.Part, log []workbench.Entry) (steps []step) {
	t.Helper()
	now := map[int64][sha256.Size]byte{}
	old := make([]byte, disktest.Sector)
	for _, e := range log {
		s := step{sync: e.Sync, part: slices.IndexFunc(parts, func(p workbench.Part) bool { return e.Off >= p.Start && e.Off < p.Start+p.Size })}
		for at := 0; at < len(e.Data); at += disktest.Sector {
			n := (e.Off + int64(at)) / disktest.Sector
			was, known := now[n]
			if !known {
				_, err := disk.ReadAt(old, n*disktest.Sector)
				require.NoError(t, err)
				was = sha256.Sum256(old)
			}
			if now[n] = sha256.Sum256(e.Data[at : at+disktest.Sector]); now[n] != was {
				s.changes = append(s.changes, change{n, now[n]})
			}
		}
		if s.sync || len(s.changes) > 0 {
			steps = append(steps, s)
		}
	}
	return steps
}

// agree tells what a guest did otherwise than it was recorded.
func agree(recorded, saw []step) error {
	type seen struct {
		change
		at int // step
	}
	all := map[int64][]seen{}
	var flushes []int
	for at, s := range saw {
		if s.sync {
			flushes = append(flushes, at)
		}
		for _, c := range s.changes {
			all[c.sector] = append(all[c.sector], seen{c, at})
		}
	}
	// When the guest began with what was recorded in a step, and when it had done all that
	// a sync makes durable.
	begun, done := make([]int, len(recorded)), make([]int, len(recorded))
	pending := map[int]int{}
	for n, s := range recorded {
		begun[n] = math.MaxInt
		for _, c := range s.changes {
			list := all[c.sector]
			if len(list) == 0 || list[0].change != c {
				return fmt.Errorf("step %d: sector %d does not become what it should", n, c.sector)
			}
			all[c.sector] = list[1:]
			begun[n] = min(begun[n], list[0].at)
			pending[s.part] = max(pending[s.part], list[0].at+1)
		}
		if s.sync {
			done[n] = pending[s.part]
			delete(pending, s.part)
		}
	}
	for sector, list := range all {
		if len(list) > 0 {
			return fmt.Errorf("sector %d changes %d times more", sector, len(list))
		}
	}
	next := math.MaxInt
	for n, s := range slices.Backward(recorded) {
		next = min(next, begun[n])
		if !s.sync || done[n] == 0 {
			continue
		}
		if flush, _ := slices.BinarySearch(flushes, done[n]); flush == len(flushes) || flushes[flush] > next {
			return fmt.Errorf("step %d: no flush between steps %d and %d of the guest", n, done[n]-1, next)
		}
	}
	return nil
}

// notices requires that a guest that leaves out a write, makes it late, or does not flush
// is found out.
func notices(t *testing.T, recorded, saw []step) {
	t.Helper()
	last := step{changes: []change{{sector: -1}}}
	for at, s := range saw {
		if s.sync || at%7 != 0 {
			continue
		}
		without := slices.Delete(slices.Clone(saw), at, at+1)
		require.Error(t, agree(recorded, without), "without write %d", at)
		require.Error(t, agree(recorded, append(without, s)), "write %d as the last one", at)
		last = s
	}
	require.Error(t, agree(recorded, append(slices.Clone(saw), last)), "a write more")
	require.Error(t, agree(recorded, slices.DeleteFunc(slices.Clone(saw), func(s step) bool { return s.sync })), "without a flush")
}
