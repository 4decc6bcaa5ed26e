package trust_test

import (
	"testing"

	"github.com/stretchr/testify/require"

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
