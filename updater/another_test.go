package updater

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// What was written for one release is no beginning of another: the interrupted one ends with
// its own verdict, and the other starts from the first byte, whichever of the two is larger.
func TestAnotherReleaseBeginsAnew(t *testing.T) {
	for _, pair := range [][2]string{{"4.0.0-full", "2.0.0"}, {"2.0.0", "4.0.0-full"}} {
		bubble(t, func(t *testing.T) {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			src := d.w.source(pair[0])
			src.onRead = func(manifest.Digest, int64, []byte) error {
				if len(u.journal().Update.Written) > 0 {
					return syscall.ECONNRESET
				}
				return nil
			}
			require.ErrorIs(t, u.Install(ctx, src, Options{}), syscall.ECONNRESET)
			require.NotEmpty(t, u.journal().Update.Written)
			require.Empty(t, d.verdicts)

			require.NoError(t, d.install(u, pair[1], Options{Hold: true}))
			v := d.verdict()
			require.Equal(t, transport.Failed, v.Result)
			require.Equal(t, "superseded", v.Reason)
			require.Equal(t, string(d.w.by[pair[0]].digest), v.Release)
			require.Equal(t, d.w.by[pair[1]].digest, u.journal().Update.Manifest)
			cost := u.Cost()
			require.EqualValues(t, bootSize+rootSize, cost.Written+cost.Skipped, "all of it was gone through")

			d.settled(d.start(), pair[1])
			require.Equal(t, transport.Committed, d.verdict().Result)
			require.Len(t, d.boil(), 2)
		})
	}
}
