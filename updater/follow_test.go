package updater

import (
	"context"
	"io/fs"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// The device listens while it installs. Another release that is asked for takes the
// place of the one that is on its way, which gets its verdict; so does the release that
// runs already, which is how an order is withdrawn.
func TestRunListensWhileInstalling(t *testing.T) {
	for _, instead := range []string{"4.0.0-full", "1.0.0"} {
		t.Run(instead, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newDevice(t, "1.0.0", "0.9.0").follow()
				f.serves(func(s *source) { s.block = s.r.m.Version == "2.0.0" })
				f.want(1, f.desired("2.0.0"))
				require.Equal(t, Writing, State(f.u.journal().State))
				f.want(2, f.desired(instead))
				require.EqualValues(t, 2, f.u.journal().Counter)
				first := f.verdicts[0]
				require.Equal(t, "superseded", first.Reason)
				require.Equal(t, string(f.w.by["2.0.0"].digest), first.Release)
				require.EqualValues(t, 1, first.Counter)
				time.Sleep(time.Hour)
				f.stop()
				f.settled(f.start(), instead)
			})
		})
	}
}

// The same release, asked for again under other conditions, goes on where it is.
func TestRunKeepsWhatIsStillWanted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		asked := 0
		f.serves(func(s *source) {
			asked++
			s.block = asked == 1
		})
		f.want(1, f.desired("2.0.0"))
		f.want(2, f.desired("2.0.0"))
		require.Empty(t, f.verdicts)
		require.EqualValues(t, 2, f.u.journal().Update.Counter)
		f.stop()
		f.u = f.start()
		f.again()
		time.Sleep(time.Minute)
		f.stop()
		f.settled(f.start(), "2.0.0")
		require.Len(t, f.boil(), 1)
		require.EqualValues(t, 2, f.verdict().Counter)
	})
}

// Between the request for a reboot and the reboot, nothing touches the slot whose trial
// is armed, whoever asks.
func TestNothingAfterReboot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.want(1, f.desired("2.0.0"))
		require.NotEmpty(t, f.rebooting)
		before := f.record()
		f.want(2, f.desired("4.0.0-full"))
		time.Sleep(time.Hour)
		require.ErrorIs(t, f.install(f.u, "4.0.0-full", Options{}), ErrRebooting)
		require.ErrorIs(t, f.u.Rollback(ctx, true), ErrRebooting)
		require.True(t, before.Same(f.record()))
		require.Equal(t, "2.0.0", f.holds("b"))
		f.stop()
	})
}

// A statement comes once. One that cannot be accepted yet, because its keys have not
// come or the disk is full, is kept until it can.
func TestRunKeepsStatement(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.noMeta(true)
		f.want(1, f.desired("2.0.0"))
		time.Sleep(time.Minute)
		require.Nil(t, f.u.journal().Want)
		f.noMeta(false)
		f.store.full = syscall.ENOSPC
		time.Sleep(30 * time.Minute)
		require.Nil(t, f.u.journal().Want)
		require.Zero(t, f.u.journal().Counter, "it was not acted on")
		f.store.full = nil
		time.Sleep(30 * time.Minute)
		require.NotEmpty(t, f.rebooting)
		f.stop()
		f.settled(f.start(), "2.0.0")
	})
}

// deaf is a source of nothing.
type deaf struct{ Source }

func (deaf) Metadata(context.Context, string) ([]byte, error) { return nil, fs.ErrNotExist }

func (f *following) noMeta(on bool) {
	f.fleet.mu.Lock()
	defer f.fleet.mu.Unlock()
	f.fleet.deaf = on
}

// What a source sends that nobody signed makes the device ask again, and say in the end
// that it gave this order up. It does not remember it against the release.
func TestRunSurvivesGarbage(t *testing.T) {
	for name, lie := range map[string]func(s *source){
		"a manifest that nobody signed": func(s *source) {
			bad := *s.r
			bad.envelope = []byte(`{"payloadType":"x","payload":"","signatures":[]}`)
			s.r = &bad
		},
		"no manifest at all": func(s *source) {
			bad := *s.r
			bad.envelope = []byte("<html>")
			s.r = &bad
		},
		"wrong bytes of an image": func(s *source) {
			s.onRead = func(_ manifest.Digest, _ int64, p []byte) error { p[0] ^= 1; return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				for _, lies := range []int{1, 100} {
					f := newDevice(t, "1.0.0", "").follow()
					asked := 0
					f.serves(func(s *source) {
						if asked++; asked <= lies {
							lie(s)
						}
					})
					f.want(1, f.desired("2.0.0"))
					require.Empty(t, f.verdicts)
					time.Sleep(24 * time.Hour)
					require.Empty(t, f.u.journal().Failed)
					if lies == 100 {
						require.Equal(t, f.u.p.MaxBegun, asked)
						require.Len(t, f.boil(), 1)
						require.Equal(t, transport.Refused, f.verdict().Result)
						f.serves(nil)
						f.want(2, f.desired("2.0.0"))
					}
					f.stop()
					f.settled(f.start(), "2.0.0")
				}
			})
		})
	}
}

// An order that is refused says nothing about an installation by hand that was
// interrupted.
func TestRefusalLeavesOthersAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		src := f.w.source("2.0.0")
		src.onRead = fails(syscall.EPIPE)
		require.Error(t, f.u.Install(ctx, src, Options{}))
		f.u.refuse(journal.Want{Manifest: f.w.by["2.3.0-board"].digest, Counter: 1}, ErrBoard)
		require.Equal(t, string(f.w.by["2.3.0-board"].digest), f.verdict().Release)
		require.Equal(t, f.w.by["2.0.0"].digest, f.u.journal().Update.Manifest)
		f.stop()
	})
}
