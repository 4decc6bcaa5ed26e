package updater

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Another program that has the slots keeps this one from them, whatever it was asked for;
// and what this one is done with, the other one gets.
func TestAnotherProgramHasTheSlots(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		u.p.Lock = func() (func(), error) { return nil, ErrBusy }
		before := d.ops()
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrBusy)
		require.ErrorIs(t, u.Rollback(ctx, true), ErrBusy)
		require.ErrorIs(t, u.EndAlarm(ctx), ErrBusy)
		require.Equal(t, before, d.ops(), "nothing is written")
		require.Empty(t, d.rebooting)

		held := 0
		u.p.Lock = func() (func(), error) { held++; return func() { held-- }, nil }
		require.NoError(t, d.install(u, "2.0.0", Options{Hold: true}))
		require.Zero(t, held)

		require.NoError(t, d.install(u, "2.0.0", Options{}))
		require.ErrorIs(t, d.install(u, "3.0.0", Options{}), ErrRebooting)
		require.Zero(t, held, "nor does one that is on its way down keep them")
	})
}

// A system on trial begins no installation: it would go into the slot that it may have to go
// back to.
func TestNothingIsInstalledDuringTrial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u, err := New(d.parts(d.load()))
		require.NoError(t, err)
		before := d.ops()
		for _, force := range []bool{false, true} {
			require.ErrorIs(t, d.install(u, "3.0.0", Options{Force: force}), ErrOnTrial)
		}
		require.Equal(t, before, d.ops(), "nothing is written")
	})
}
