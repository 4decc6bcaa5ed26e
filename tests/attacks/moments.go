package attacks

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"syscall"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// thirtyYears is how far a clock without a battery is off, or one that an attacker on the
// network sets.
const thirtyYears = 30 * 365 * 24 * time.Hour

// wall is a clock that shows another time than it should.
func wall(off time.Duration) func() time.Time {
	return func() time.Time { return time.Now().Add(off) }
}

// clockAttacks are clocks that are wrong. No time counts that was not signed.
var clockAttacks = []Attack{
	{
		Name: "clock/off-by-thirty-years", Input: "a clock at 1970, at -30 and at +30 years, all through an update", Threats: []string{tufFreeze, uptaneFreeze},
		Run: func(s *Scene) error {
			for _, off := range []time.Duration{-thirtyYears, thirtyYears, -time.Since(time.Unix(0, 0)), 9 * thirtyYears} {
				s.Compare()
				s.Bubble(func() {
					d := s.device(theDesk().first, theDesk().old).keep(running)
					d.now = wall(off)
					require.NoError(s, must(d.on()).Install(background, d.source(theDesk().next), updater.Options{Online: true}))
					d.ends(theDesk().next)
				})
				s.Variant(nil, "off by %s", off)
			}
			return nil
		},
	},
	{
		Name: "clock/jumps-while-installing", Input: "a clock that jumps by 30 years, forth and back, with every range that is read", Threats: []string{tufFreeze, uptaneSlowRetrieval},
		Run: func(s *Scene) error {
			s.Bubble(func() {
				d := s.device(theDesk().first, theDesk().old).keep(running)
				src, off := d.source(theDesk().next), thirtyYears
				src.read = func(_ context.Context, _ manifest.Digest, _ int64, _ []byte, n int, err error) (int, error) {
					off = -off
					d.now = wall(off)
					return n, err
				}
				require.NoError(s, must(d.on()).Install(background, src, updater.Options{Online: true, Full: transport.FullGo}))
				d.ends(theDesk().next)
				require.GreaterOrEqual(s, d.verdicts[0].Duration, int64(0))
			})
			return nil
		},
	},
	{
		Name: "clock/jumps-before-the-trial", Input: "a clock that is 30 years back or ahead when the new system starts, and a system that does not work", Threats: []string{uptaneFreeze},
		Run: func(s *Scene) error {
			for _, off := range []time.Duration{-thirtyYears, thirtyYears} {
				s.Compare()
				s.Bubble(func() {
					d := s.device(theDesk().first, theDesk().old).keep(running)
					require.NoError(s, must(d.on()).Install(background, d.source(theDesk().next), updater.Options{}))
					d.now, d.sick = wall(off), true
					d.ends(theDesk().first)
					require.Equal(s, transport.Reverted, d.verdicts[0].Result)
				})
				s.Variant(nil, "off by %s", off)
			}
			return nil
		},
	},
	{
		Name: "clock/set-back-to-revive-the-expired", Input: "expired metadata, and a clock that was set back to when it was good", Want: trust.ErrExpired, Threats: []string{tufFreeze, uptaneFreeze, suitExpiredOffline},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			done(journal.Save(d.store, journal.Journal{TimeFloor: today.AddDate(3, 0, 0).Unix()}))
			d.keep(running, spare, record, memo)
			d.now = func() time.Time { return time.Unix(0, 0) }
			return d.offer(theDesk().next)
		},
	},
	{
		Name: "clock/statement-that-sets-it", Input: "an order from the year 9999 by a stranger, and then expired metadata by the right people", Threats: []string{tufFastForward, suitUnapproved},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running, spare, record, memo)
			order := theDesk().order(theDesk().next, 7)
			order.Issued, order.Expires = today.AddDate(7000, 0, 0), today.AddDate(7001, 0, 0)
			forged := must(mktrust.Statement(background, order, theDesk().keys[stranger]...))
			require.ErrorIs(s, d.hears(d.source(theDesk().next), time.Minute, forged), trust.ErrSignature)
			// The floor of time is where it was: what expires in a year is still good.
			_, err := must(d.on()).CheckRelease(background, d.source(theDesk().next), updater.Options{Online: true})
			return err
		},
	},
}

// raceAttacks are orders that come at the wrong moment.
var raceAttacks = []Attack{
	{
		Name: "race/second-while-installing", Input: "an installation and a rollback while another installation runs", Want: updater.ErrBusy, Threats: []string{uptaneMixedBundles, suitTOCTOU},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			s.Bubble(func() {
				u := must(d.on())
				src, asked := d.source(theDesk().next), false
				src.read = func(_ context.Context, _ manifest.Digest, _ int64, _ []byte, n int, err error) (int, error) {
					if !asked {
						asked = true
						s.Variant(u.Install(background, d.source(theDesk().epoch), updater.Options{Force: true}), "install")
						s.Variant(u.Rollback(background, true), "rollback")
					}
					return n, err
				}
				require.NoError(s, u.Install(background, src, updater.Options{}))
				d.ends(theDesk().next)
			})
			return nil
		},
	},
	{
		Name: "race/install-while-rebooting", Input: "an installation into a slot whose trial is armed", Want: updater.ErrRebooting, Threats: []string{uptaneMixedBundles, suitReplace},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			u := must(d.on())
			require.NoError(s, u.Install(background, d.source(theDesk().next), updater.Options{}))
			d.keep(everything...)
			return u.Install(background, d.source(theDesk().epoch), updater.Options{Force: true, Full: transport.FullGo})
		},
	},
	{
		Name: "race/install-while-on-trial", Input: "an installation over the only slot that is known to work", Want: either(updater.ErrBusy, updater.ErrOnTrial), Threats: []string{uptaneMixedBundles, suitReplace},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			s.Bubble(func() {
				require.NoError(s, must(d.on()).Install(background, d.source(theDesk().next), updater.Options{}))
				trial := d.trial()
				s.Variant(trial.Install(background, d.source(theDesk().epoch), updater.Options{Force: true, Full: transport.FullGo}), "before the program looks around")
				ended := make(chan error)
				go func() { ended <- trial.Resume(background) }()
				synctest.Wait()
				s.Variant(trial.Install(background, d.source(theDesk().epoch), updater.Options{Force: true, Full: transport.FullGo}), "in the trial")
				require.NoError(s, <-ended)
				d.ends(theDesk().next)
			})
			return nil
		},
	},
	{
		Name: "race/commit-against-rollback", Input: "two operators, one of whom commits a trial while the other gives it up", Threats: []string{uptaneMixedBundles, suitTOCTOU},
		Run: func(s *Scene) error {
			for n := range 24 {
				s.Compare()
				s.Bubble(func() {
					d := s.device(theDesk().first, theDesk().old).keep(running)
					require.NoError(s, must(d.on()).Install(background, d.source(theDesk().next), updater.Options{}))
					u := d.trial()
					var work sync.WaitGroup
					at := []func(){
						func() { _ = u.Resume(background) }, func() { _ = u.Commit(background) }, func() { _ = u.Rollback(background, true) },
					}
					for i := range at {
						work.Go(func() {
							// In every order, and all of them at the same moment.
							time.Sleep(time.Duration((i*(1+n%3)+n)%4*(n%2)) * time.Second)
							at[i]()
						})
					}
					work.Wait()
					if d.rebooting != "" {
						d.ends(theDesk().first)
					} else {
						require.Equal(s, bootctl.B, d.record().Good, "neither of them won")
						d.ends(theDesk().next)
					}
					results := map[string]bool{}
					for _, v := range d.verdicts {
						results[v.Result] = true
					}
					require.Len(s, results, 1, "both of them won")
				})
				s.Variant(nil, "order %d", n)
			}
			return nil
		},
	},
	{
		Name: "race/cancel-at-every-moment", Input: "an operator who cancels an installation at each of its steps", Want: updater.ErrCancelled, Threats: []string{uptanePartialBundle, uptaneDropRequest},
		Run: func(s *Scene) error {
			for n := 1; ; n++ {
				s.Compare()
				d := s.device(theDesk().first, theDesk().old).keep(running)
				var u *updater.Updater
				step := 0
				moment := func() {
					if step++; step == n {
						_ = u.Cancel()
					}
				}
				d.parts = func(p *updater.Parts) { p.Link = watched{p.Link, moment} }
				u = must(d.on())
				src := d.source(theDesk().next)
				src.read = func(_ context.Context, _ manifest.Digest, _ int64, _ []byte, n int, err error) (int, error) {
					moment()
					return n, err
				}
				err := u.Install(background, src, updater.Options{})
				if err == nil { // it came too late, and says so to nobody: the trial is armed
					require.Greater(s, n, 10)
					s.Bubble(func() { d.ends(theDesk().next) })
					return nil
				}
				s.Variant(err, "at step %d", n)
				require.Empty(s, d.record().Trying, "step %d", n)
				d.parts = nil
				if n%4 == 0 {
					d.takes(theDesk().next)
				}
			}
		},
	},
	{
		Name: "race/cancel-of-nothing", Input: "an operator who cancels what does not run", Want: updater.ErrNotInstalling, Threats: []string{uptaneDropRequest},
		Run: func(s *Scene) error {
			return must(s.device(theDesk().first, theDesk().old).keep(everything...).on()).Cancel()
		},
	},
	{
		Name: "race/commit-of-nothing", Input: "an operator who commits what is not on trial", Want: updater.ErrNotOnTrial, Threats: []string{suitUnapproved},
		Run: func(s *Scene) error {
			return must(s.device(theDesk().first, theDesk().old).keep(everything...).on()).Commit(background)
		},
	},
	{
		Name: "race/begun-again-and-again", Input: "a mirror that breaks off each time, and an operator who gives up each time", Want: updater.ErrAttempts, Threats: []string{uptaneSlowRetrieval, tufEndless},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			u := must(d.on())
			for range 3 {
				src := d.source(theDesk().next)
				src.read = func(context.Context, manifest.Digest, int64, []byte, int, error) (int, error) {
					done(u.Cancel())
					return 0, syscall.ECONNRESET
				}
				require.ErrorIs(s, u.Install(background, src, updater.Options{}), updater.ErrCancelled)
			}
			return u.Install(background, d.source(theDesk().next), updater.Options{})
		},
	},
}

// trial starts the slot that the loader tries, without letting the program look around.
func (d *device) trial() *updater.Updater {
	d.slot = d.record().Trying
	next := d.record()
	next.Tries--
	done(d.saves(next))
	return must(d.on())
}

// watched is a link that somebody listens to.
type watched struct {
	updater.Link
	moment func()
}

func (w watched) Event(e transport.Event) error {
	w.moment()
	return w.Link.Event(e)
}

// diskAttacks are media that are full, or fail.
var diskAttacks = []Attack{
	{
		Name: "disk/full-at-every-write-of-the-journal", Input: "a data partition without room, at each write, once and for good", Want: syscall.ENOSPC, Threats: []string{tufEndless, uptaneEndlessData},
		Run: func(s *Scene) error {
			return s.fails(func(d *device) *folder { return d.store })
		},
	},
	{
		Name: "disk/full-at-every-write-of-the-metadata", Input: "no room for metadata, at each write, once and for good", Want: syscall.ENOSPC, Threats: []string{tufEndless, uptaneEndlessData},
		Run: func(s *Scene) error {
			return s.fails(func(d *device) *folder { return d.trust })
		},
	},
	broken("spare-slot-fails-to-write", "a spare slot whose n-th write fails", disktest.Write, "b/boot", "b/root"),
	broken("spare-slot-fails-to-sync", "a spare slot whose n-th sync fails and loses what it should keep", disktest.Sync, "b/boot", "b/root"),
	broken("spare-slot-fails-to-read", "a spare slot whose n-th read fails", disktest.Read, "b/boot", "b/root"),
	broken("boot-record-fails-to-write", "a boot record whose n-th write fails", disktest.Write, "record"),
	broken("boot-record-fails-to-sync", "a boot record whose n-th sync fails", disktest.Sync, "record"),
}

// saves writes a boot record as the loader leaves it.
func (d *device) saves(r bootctl.Record) error {
	var store bootctl.Store
	keep := d.parts
	d.parts = func(p *updater.Parts) { store = p.Record }
	defer func() { d.parts = keep }()
	must(d.on())
	return store.Save(r)
}

// fails goes through an update as often as it has writes to a folder, each of which finds
// no room.
func (s *Scene) fails(which func(d *device) *folder) error {
	for _, forGood := range []bool{false, true} {
		for n := 1; ; n++ {
			s.Compare()
			d := s.device(theDesk().first, theDesk().old).keep(running)
			f, hit := which(d), false
			f.full = func(put int) error {
				if put == n || forGood && put > n {
					hit = true
					return syscall.ENOSPC
				}
				return nil
			}
			err := must(d.on()).Install(background, d.source(theDesk().next), updater.Options{Online: true})
			f.full = nil
			if !hit {
				break
			}
			if err == nil { // it can do without what it could not write
				s.Bubble(func() { d.ends(theDesk().next) })
				continue
			}
			s.Variant(err, "write %d, for good: %t", n, forGood)
			require.Empty(s, d.record().Trying)
			d.takes(theDesk().next)
		}
	}
	return nil
}

// broken is a case of a medium whose n-th operation fails, once or from then on.
func broken(name, input string, op disktest.Kind, disks ...string) Attack {
	return Attack{Name: "disk/" + name, Input: input, Want: syscall.EIO, Threats: []string{suitReplace, uptanePartialBundle}, Run: func(s *Scene) error {
		for _, disk := range disks {
			for _, sticky := range []bool{false, true} {
				for n := 1; ; n++ {
					s.Compare()
					d := s.device(theDesk().first, theDesk().old).keep(running)
					u := must(d.on())
					d.disks[disk].Inject(disktest.Fault{Op: op, At: n, Sticky: sticky, Err: syscall.EIO, Seed: uint64(n)})
					err := u.Install(background, d.source(theDesk().next), updater.Options{})
					fired := d.disks[disk].Fired()
					d.disks[disk].Heal()
					if !fired {
						break
					}
					if err == nil { // it can do without what it could not read
						s.Bubble(func() { d.ends(theDesk().next) })
						continue
					}
					s.Variant(err, "%s of %s, the %dth, for good: %t", op, disk, n, sticky)
					if sticky {
						d.takes(theDesk().next)
					}
				}
			}
		}
		return nil
	}}
}

// sourceAttacks are sources that hand out too much, too little, too late, or not at all.
var sourceAttacks = []Attack{
	{
		Name: "source/never-ends", Input: "a mirror whose every file goes on for ever", Want: transport.ErrLeaf, Threats: []string{tufEndless, uptaneEndlessData, suitExtra},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			src, moved := d.source(theDesk().next), 0
			src.read = func(_ context.Context, _ manifest.Digest, off int64, p []byte, _ int, _ error) (int, error) {
				for i := range p {
					p[i] = byte(off) + byte(i)
				}
				moved += len(p)
				return len(p), nil
			}
			err := must(d.on()).Install(background, src, updater.Options{Full: transport.FullGo})
			require.Less(s, moved, 4*leaf, "no more is asked for than the manifest says, a few times")
			return err
		},
	},
	{
		Name: "source/makes-no-progress", Input: "a mirror that answers each request with nothing", Want: either(io.ErrNoProgress, transport.ErrLeaf), Threats: []string{uptaneSlowRetrieval, tufEndless},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			for i, kind := range []string{manifest.KindFull, manifest.KindDelta, manifest.KindIndex} {
				r := theDesk().next.changed(func(m *manifest.Manifest) {
					// The large one, which has a list of leaves.
					m.Images = m.Images[1:]
					m.Images[0].Payloads = m.Images[0].Payloads[i : i+1]
					m.Images[0].Payloads[0].Leaves = manifest.Content{}
				})
				src, asked := d.source(r), 0
				src.read = func(_ context.Context, _ manifest.Digest, _ int64, p []byte, _ int, _ error) (int, error) {
					clear(p)
					if asked++; asked > 1000 {
						return 0, errors.New("asked a thousand times")
					}
					return 0, nil
				}
				s.Variant(must(d.on()).Install(background, src, updater.Options{Full: transport.FullGo}), "%s", kind)
			}
			return nil
		},
	},
	{
		Name: "source/takes-an-hour-for-each-range", Input: "a mirror that hands out a range an hour", Threats: []string{uptaneSlowRetrieval},
		Run: func(s *Scene) error {
			s.Bubble(func() {
				d := s.device(theDesk().first, theDesk().old).keep(running)
				src := d.source(theDesk().next)
				src.read = func(_ context.Context, _ manifest.Digest, _ int64, _ []byte, n int, err error) (int, error) {
					time.Sleep(time.Hour)
					return n, err
				}
				require.NoError(s, must(d.on()).Install(background, src, updater.Options{}))
				d.ends(theDesk().next)
			})
			return nil
		},
	},
	{
		Name: "source/never-answers", Input: "a mirror that takes a request and says nothing more", Want: updater.ErrCancelled, Threats: []string{uptaneSlowRetrieval, uptaneDropRequest},
		Run: func(s *Scene) (err error) {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			s.Bubble(func() {
				u, src, ended := must(d.on()), d.source(theDesk().next), make(chan error)
				src.read = func(ctx context.Context, _ manifest.Digest, _ int64, _ []byte, _ int, _ error) (int, error) {
					<-ctx.Done()
					return 0, ctx.Err()
				}
				go func() { ended <- u.Install(background, src, updater.Options{}) }()
				time.Sleep(30 * 24 * time.Hour) // nothing is lost by waiting: it still can be told to stop
				done(u.Cancel())
				err = <-ended
			})
			return err
		},
	},
	{
		Name: "source/metadata-never-comes", Input: "a mirror that takes the request for metadata and says nothing more", Want: context.DeadlineExceeded, Threats: []string{uptaneSlowRetrieval, tufMirrors},
		Run: func(s *Scene) (err error) {
			d := s.device(theDesk().first, theDesk().old).keep(everything...)
			s.Bubble(func() {
				err = must(d.on()).Install(background, mute{d.source(theDesk().next)}, updater.Options{Online: true})
			})
			return err
		},
	},
	{
		Name: "source/drops-every-request", Input: "a network that drops all requests for a day", Threats: []string{uptaneDropRequest, suitOnPath},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			src, begun := d.source(theDesk().next), false
			var since time.Time
			src.read = func(_ context.Context, _ manifest.Digest, _ int64, _ []byte, n int, err error) (int, error) {
				if !begun {
					begun, since = true, time.Now()
				}
				if time.Since(since) < 24*time.Hour {
					return 0, syscall.ECONNRESET
				}
				return n, err
			}
			require.ErrorIs(s, d.hears(src, 25*time.Hour, theDesk().statement(theDesk().order(theDesk().next, 7))), syscall.ECONNRESET)
			require.NotEmpty(s, d.rebooting, "the network is back, and the device has not noticed")
			s.Bubble(func() { d.ends(theDesk().next) })
			return nil
		},
	},
	{
		Name: "source/half-of-a-release", Input: "a mirror that has the payload of the first image only", Want: fs.ErrNotExist, Threats: []string{uptanePartialBundle, tufMirrors},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			src := d.source(theDesk().next.changed(func(*manifest.Manifest) {}))
			delete(src.blobs, src.m.Images[1].Payloads[1].Blob.Digest)
			err := must(d.on()).Install(background, src, updater.Options{})
			require.Empty(s, d.record().Trying)
			require.False(s, d.holds(d.slot.Other(), theDesk().next))
			d.takes(theDesk().next)
			return err
		},
	},
	{
		Name: "source/images-of-two-releases", Input: "a mirror that hands out one image of one release and one of another", Want: transport.ErrLeaf, Threats: []string{uptaneMixedBundles, uptaneMixAndMatch, tufMixAndMatch},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			src := d.source(theDesk().next.changed(func(*manifest.Manifest) {}))
			other := theDesk().old.m.Images[1].Payloads[0].Blob.Digest
			src.blobs[src.m.Images[1].Payloads[0].Blob.Digest] = theDesk().old.blobs[other]
			src.blobs[src.m.Images[1].Payloads[1].Blob.Digest] = theDesk().old.blobs[other]
			err := must(d.on()).Install(background, src, updater.Options{})
			require.Empty(s, d.record().Trying)
			return err
		},
	},
	{
		Name: "source/another-release-in-the-middle", Input: "a mirror that goes on with another release where the first was interrupted", Threats: []string{uptaneMixedBundles, suitTOCTOU},
		Run: func(s *Scene) error {
			s.Bubble(func() {
				d := s.device(theDesk().first, theDesk().old).keep(running)
				u, src, n := must(d.on()), d.source(theDesk().next), 0
				src.read = func(_ context.Context, _ manifest.Digest, _ int64, _ []byte, got int, err error) (int, error) {
					if n++; n > 2 {
						return 0, syscall.ECONNRESET
					}
					return got, err
				}
				require.ErrorIs(s, u.Install(background, src, updater.Options{Full: transport.FullGo}), syscall.ECONNRESET)
				// The other one has no image in common with what is half written.
				require.NoError(s, u.Install(background, d.source(theDesk().epoch), updater.Options{Full: transport.FullGo}))
				d.ends(theDesk().epoch)
			})
			return nil
		},
	},
}

// mute is a source whose metadata never comes.
type mute struct{ *source }

func (mute) Metadata(ctx context.Context, _ string) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
