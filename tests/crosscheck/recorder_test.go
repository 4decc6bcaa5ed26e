package crosscheck

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/tests/workbench"
)

// installs are the installations that are looked at: over what, and of what.
var installs = []struct{ name, spare, version string }{
	{"a delta, into an empty slot", "", "2.0.0"},
	{"whole images, into an empty slot", "", "3.0.0"},
	{"an index, over an older system", "0.9.0", "3.0.0"},
}

// epochs are what is written between two syncs that have something to sync. A sync of
// nothing does nothing, and QEMU flushes at each close of a file too; what a program
// has left without a sync stays an epoch without an end.
func epochs(log []workbench.Entry) (lines []string) {
	pending := false
	for _, e := range log {
		if e.Sync && !pending {
			continue
		}
		pending = !e.Sync
		lines = append(lines, e.String())
	}
	return lines
}

// sensitive requires that the comparison notices any one operation that is missing, and
// any two neighbours that have changed places.
func sensitive(t *testing.T, log []workbench.Entry) {
	t.Helper()
	want := epochs(log)
	for i := range log {
		if log[i].Sync && (i == 0 || log[i-1].Sync) {
			continue // of nothing
		}
		require.NotEqual(t, want, epochs(slices.Delete(slices.Clone(log), i, i+1)), "without operation %d, %s", i, log[i])
		if i+1 < len(log) && log[i].String() != log[i+1].String() {
			swapped := slices.Clone(log)
			swapped[i], swapped[i+1] = log[i+1], log[i]
			require.NotEqual(t, want, epochs(swapped), "operations %d and %d in the other order", i, i+1)
		}
	}
}

// An independent recorder, QEMU's blklogwrites, under the device program as it is
// shipped, sees the same writes (place, length, content) in the same order, with the
// same syncs between them, as partition/disktest records of the same installation by
// package updater: on each partition, and on the disk as a whole. What the crash tests
// cut is what the program does.
func TestRecorder(t *testing.T) {
	g := theGoods(t)
	compared := 0
	for _, i := range installs {
		t.Run(i.name, func(t *testing.T) {
			disk := g.Factory(t, "1.0.0", i.spare)
			saw, sawParts := watched(t, g, disk, i.version)
			recorded, recordedParts := g.Record(t, disk, "1.0.0", i.version)
			for _, p := range workbench.Parts {
				require.Equal(t, epochs(recordedParts[p.Label]), epochs(sawParts[p.Label]), "partition %s", p.Label)
			}
			require.Equal(t, epochs(recorded), epochs(saw), "whole disk")
			sensitive(t, recorded)
			compared += len(epochs(saw))
			t.Logf("%d operations, %d of them in epochs", len(saw), len(epochs(saw)))
		})
	}
	t.Attr("crosscheck-ops", fmt.Sprint(compared))
}

// watched is what QEMU sees of an installation by the shipped program, on a disk whose
// slot a runs 1.0.0.
func watched(t *testing.T, g *workbench.Goods, disk workbench.Disk, version string) (whole []workbench.Entry, parts map[string][]workbench.Entry) {
	b := g.New(t, disk, "1.0.0")
	return b.Watched(func() {
		res := b.Run("install", "-hold", "-full", "/media/"+version)
		require.Zero(t, res.Code, res.Output)
	})
}
