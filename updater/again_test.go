package updater

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// After an operator went back, in the trial or later, the fleet's order does not bring
// the release again by itself; the next order does.
func TestRollbackLasts(t *testing.T) {
	for _, inTrial := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			f := newDevice(t, "1.0.0", "").follow()
			d := f.desired("2.0.0")
			d.Force = true
			f.want(1, d)
			f.stop()
			if inTrial {
				f.u = f.powerOn()
			} else {
				f.u = f.start()
			}
			require.NoError(t, f.u.Rollback(ctx, false))
			f.u = f.start()
			f.settled(f.u, "1.0.0")
			f.again()
			time.Sleep(time.Hour)
			require.Empty(t, f.rebooting)
			f.want(2, d)
			f.stop()
			f.settled(f.start(), "2.0.0")
		})
	}
}

// An order that insists on a release that failed here insists once.
func TestForceDoesNotLoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.sick["2.0.0"] = "works"
		d := f.desired("2.0.0")
		d.Force = true
		f.want(1, d)
		f.stop()
		f.u = f.start()
		f.again()
		time.Sleep(24 * time.Hour)
		require.Empty(t, f.rebooting)
		f.stop()
	})
}

// A disk that fails while it is written to or read back is not trusted with what it took
// before, and not asked for ever.
func TestBadMediumIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, op := range []disktest.Kind{disktest.Write, disktest.Sync} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			var err error
			for n := 1; n <= 10; n++ {
				d.disks[bootB].Heal()
				d.disks[bootB].Inject(disktest.Fault{Op: op, At: 1, Sticky: true, Err: syscall.EIO})
				if err = d.install(u, "4.0.0-full", Options{}); errors.Is(err, ErrAttempts) {
					break
				}
				require.ErrorIs(t, err, syscall.EIO)
				require.Zero(t, u.journal().Update.Written["boot.img"])
			}
			require.ErrorIs(t, err, ErrAttempts, "%s", op)
			require.Equal(t, transport.Failed, d.verdict().Result)
			require.ErrorIs(t, d.install(u, "4.0.0-full", Options{}), ErrFailedBefore)
		}
	})
}

// A boot record that is lost in a trial does not make the system on trial a good one: it
// still has to prove itself, and the old one is still there.
func TestBootRecordLostInTrial(t *testing.T) {
	for _, journalToo := range []bool{false, true} {
		for _, sick := range []bool{false, true} {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
				want := "2.0.0"
				if sick {
					d.sick["2.0.0"], want = "works", "1.0.0"
				}
				d.powerOn()
				d.clear(envDisk, envCopies, envConfirmed)
				if journalToo {
					d.lose(theJournal)
				}
				u, err := New(d.parts("2.0.0"))
				require.NoError(t, err)
				require.NoError(t, u.Resume(ctx))
				if sick {
					require.NotEmpty(t, d.rebooting)
					require.Equal(t, bootctl.A, d.record().Good)
				}
				d.settled(d.start(), want)
			})
		}
	}
}

// Handlers hear of an update that came to nothing, however that happened.
func TestHandlersTakeBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, fails := range []error{external.ErrHandler, external.ErrNotNow, nil} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			var verbs []string
			d.handler = func(_ manifest.Image, verb string, stdin io.Reader) (bool, error) {
				verbs = append(verbs, verb)
				if verb == "write" {
					if fails == nil {
						_ = u.Cancel()
						return false, ctx.Err()
					}
					return false, fails
				}
				return false, nil
			}
			require.Error(t, d.install(u, "2.8.0-external", Options{}))
			if errors.Is(fails, external.ErrNotNow) {
				require.Equal(t, []string{"prepare", "write"}, verbs, "tried again later")
				require.NotNil(t, u.journal().Update)
				continue
			}
			require.Equal(t, []string{"prepare", "write", "revert"}, verbs)
			require.Nil(t, u.journal().Update)
		}
	})
}

// So do they when another release takes the place of one that was interrupted, even
// after a restart.
func TestHandlersTakeBackSuperseded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		var verbs []string
		d.handler = func(img manifest.Image, verb string, _ io.Reader) (bool, error) {
			verbs = append(verbs, verb)
			require.Equal(t, "modem", img.Target)
			require.Equal(t, manifest.DigestOf(d.w.by["2.8.0-external"].images["modem"]), img.Digest)
			if verb == "write" {
				return false, external.ErrNotNow
			}
			return false, nil
		}
		require.ErrorIs(t, d.install(d.start(), "2.8.0-external", Options{}), external.ErrNotNow)
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		require.Equal(t, []string{"prepare", "write", "revert"}, verbs)
		d.settled(d.start(), "2.0.0")
	})
}
