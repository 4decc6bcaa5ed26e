package updater

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
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

// A slot that is being written to says nothing of what it held before: not even a device that
// loses its journal and its boot record meanwhile takes it for a whole system.
func TestWrittenSlotHasNoRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		require.Equal(t, "0.9.0", d.holds(bootctl.B))
		src := d.w.source("4.0.0-full")
		src.onRead = func(manifest.Digest, int64, []byte) error {
			if len(u.journal().Update.Written) == 0 {
				return nil
			}
			_, _, _, err := u.p.held(bootctl.B)
			require.ErrorIs(t, err, partition.ErrNoRecord)
			return syscall.EPIPE
		}
		require.ErrorIs(t, u.Install(ctx, src, Options{}), syscall.EPIPE)
		d.lose(both)
		d.settled(d.start(), "1.0.0")
		require.Equal(t, bootctl.Bad, d.record().Mark(bootctl.B))
	})
}

// A commit that the program finds in the boot record need not be on the medium: who wrote it
// may have been killed before the sync. It is, before anybody hears of it.
func TestCommitThatIsFoundIsDurable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		version, env := d.load(), d.disks[envDisk]
		env.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Halt: true})
		u, err := New(d.parts(version))
		require.NoError(t, err)
		require.ErrorIs(t, u.Resume(ctx), disktest.ErrPower)
		require.Empty(t, d.verdicts)

		env.Bench().Revive()
		u, err = New(d.parts(version))
		require.NoError(t, err)
		require.NoError(t, u.Resume(ctx))
		require.Equal(t, transport.Committed, d.verdict().Result)
		states := 0
		for crash := range env.Bench().Crashes(disktest.Bounds{From: env.Bench().Ops()}) {
			boot := boottest.GRUB(crash.Disks()[envDisk].Bytes(), boottest.World{})
			require.Equal(t, bootctl.B, boot.Slot, "%v", crash)
			require.False(t, boot.Trial, "%v: the commit was said and is not there", crash)
			states++
		}
		require.NotZero(t, states)
	})
}
