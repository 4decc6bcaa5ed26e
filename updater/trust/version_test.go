package trust_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tandem-ota/tandem/updater/trust"
)

// Versions are numbers: 10 follows 9, and 9 does not follow 10, whether or not timestamp and
// snapshot say so, too.
func TestVersionsAreNumbers(t *testing.T) {
	for _, online := range []bool{false, true} {
		w := newWorld(t)
		first := w.publish()
		for w.targets.Signed.Version < 9 {
			w.bump()
		}
		ninth := w.publish()
		tenth := w.bump().publish()
		c, err := trust.Open(memory{}, first["1.root.json"])
		require.NoError(t, err)
		for _, repo := range []files{ninth, tenth} {
			require.NoError(t, c.Update(ctx, repo, trust.Options{Online: online}))
		}
		require.EqualValues(t, 10, c.TargetsVersion())
		require.ErrorIs(t, c.Update(ctx, ninth, trust.Options{Online: online}), trust.ErrRollback)
		require.EqualValues(t, 10, c.TargetsVersion())
	}
}

// What a snapshot has listed once, it lists for ever, and never an older version of it: also of
// files that this device does not read.
func TestSnapshotForgetsNothing(t *testing.T) {
	w := newWorld(t)
	w.snapshot.Signed.Meta["other.json"] = metadata.MetaFile(5)
	first := w.bump().publish()
	c, err := trust.Open(memory{}, first["1.root.json"])
	require.NoError(t, err)
	require.NoError(t, c.Update(ctx, first, trust.Options{Online: true}))
	w.snapshot.Signed.Meta["other.json"] = metadata.MetaFile(4)
	require.ErrorIs(t, c.Update(ctx, w.bump().publish(), trust.Options{Online: true}), trust.ErrRollback)
	delete(w.snapshot.Signed.Meta, "other.json")
	require.ErrorIs(t, c.Update(ctx, w.bump().publish(), trust.Options{Online: true}), trust.ErrRollback)
	w.snapshot.Signed.Meta["other.json"] = metadata.MetaFile(6)
	require.NoError(t, c.Update(ctx, w.bump().publish(), trust.Options{Online: true}))
}
