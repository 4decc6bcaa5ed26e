package updater

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition"
)

// The TPM's ledger lists what was read back from the medium, and not what was merely
// written to it: nothing can be taken out of it again.
func TestLedgerListsWhatWasReadBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		img, _ := d.w.by["2.0.0"].m.Image("root.img")
		u.p.Slots = rotting{u.p.Slots, d, "root", img.Size}
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), partition.ErrMismatch)
		require.Empty(t, d.ledger)

		u.p.Slots = &slots{d: d, held: map[string]bool{}}
		require.NoError(t, d.install(u, "2.0.0", Options{}))
		require.Len(t, d.ledger, 1)
	})
}
