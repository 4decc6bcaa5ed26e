package bootreport

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/datafile/datafiletest"
)

// The power may fail at any operation of an Append: the first one on a new device,
// one more line, and the one that makes the file shorter. No event from before is lost but
// the oldest of a file that was full, the new one is there if nil was returned, and the next
// boot can write.
func TestAppendPowerCut(t *testing.T) {
	const path = "/data/tandem/attempts"
	event := func(id int) Attempt {
		return Attempt{BootID: fmt.Sprint(id), Slot: "a", Stage: StageStarted, Pstore: strings.Repeat("p", maxText)}
	}
	compacted := false
	for _, before := range []int{0, 1, MaxSize/maxText - 1} {
		fsys := datafiletest.New()
		require.NoError(t, fsys.Mkdir("/data", 0o755))
		for id := range before {
			require.NoError(t, appendTo(fsys, path, event(id)))
		}
		fsys.Settle()
		old, err := attempts(fsys, path)
		require.NoError(t, err)
		require.NoError(t, appendTo(fsys, path, event(before)))
		now, err := attempts(fsys, path)
		require.NoError(t, err)
		compacted = compacted || len(now) < len(old)

		for crash := range fsys.Crashes() {
			after := crash.FS()
			got, err := attempts(after, path)
			require.NoError(t, err)
			if crash.Cut >= fsys.Ops() || !slices.Equal(ids(got), ids(old)) {
				require.Equal(t, ids(now), ids(got), "%d lines before, %s", before, crash)
			}
			require.NoError(t, appendTo(after, path, Attempt{BootID: "next"}))
			more, err := attempts(after, path)
			require.NoError(t, err)
			require.Equal(t, "next", more[len(more)-1].BootID, "%d lines before, %s", before, crash)
		}
	}
	require.True(t, compacted)
}
