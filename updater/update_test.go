package updater

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
)

// A release that works is written to the spare slot, tried and committed; the old
// system stays behind it, and the next update goes the other way.
func TestUpdateCommits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u, err := d.update("2.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "2.0.0")
		require.Equal(t, bootctl.B, d.slot)
		require.Equal(t, "1.0.0", d.holds(bootctl.A))
		require.Equal(t, transport.Committed, d.verdict().Result)
		require.Equal(t, string(d.w.by["2.0.0"].digest), d.verdict().Release)
		require.Len(t, d.boil(), 1)
		require.Len(t, d.ledger, 1)
		require.Equal(t, []string{"verified", "chosen", "chosen", "writing", "writing", "reading back", "reading back", "measured", "armed", "rebooting", "committed"}, d.phases())

		u, err = d.update("3.0.0", Options{})
		require.NoError(t, err)
		d.settled(u, "3.0.0")
		require.Equal(t, bootctl.A, d.slot)
		require.Len(t, d.boil(), 2)
	})
}
