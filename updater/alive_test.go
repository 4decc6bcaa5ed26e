package updater

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// wedged is a fleet that does not come back from one of its calls.
type wedged struct {
	*fleet
	wants, source <-chan struct{} // nil: it comes back
}

func (w wedged) Wants() <-chan transport.Want {
	if w.wants != nil {
		<-w.wants
	}
	return w.fleet.Wants()
}

func (w wedged) Source(d manifest.Digest) Source {
	if w.source != nil {
		<-w.source
	}
	return w.fleet.Source(d)
}

// A program that no longer follows its fleet is ended by the watchdog, though everything
// else in it lives; and the last thing it did is named.
func TestWedgedLoopIsNotFed(t *testing.T) {
	for name, wedge := range map[string]func(w *wedged, c chan struct{}){
		"main loop": func(w *wedged, c chan struct{}) { w.wants = c },
		"statement": func(w *wedged, c chan struct{}) { w.source = c },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newDevice(t, "1.0.0", "").follow()
				f.stop()
				end := f.u.guarded(t)
				c, stopped := make(chan struct{}), make(chan error, 1)
				w := wedged{fleet: f.fleet}
				wedge(&w, c)
				f.wants <- f.w.statement(t, me, 1, f.desired("2.0.0"))
				go func() { stopped <- f.u.Run(t.Context(), w) }()
				begin := time.Now()
				err := <-end
				require.ErrorIs(t, err, watchdog.ErrLate)
				require.ErrorContains(t, err, name)
				require.Less(t, time.Since(begin), 3*stepTime)
				f.u.p.Keeper.Stop()
				require.NoError(t, f.u.reboot("by test")) // so that nothing is begun afterwards
				close(c)
				time.Sleep(time.Hour)
				require.Empty(t, stopped)
			})
		})
	}
}

// stalled is a boot record on a medium that no longer answers.
type stalled struct {
	bootctl.Store
	until <-chan struct{}
}

func (s stalled) Save(r bootctl.Record) error { <-s.until; return s.Store.Save(r) }

// A medium that no longer answers is no reason to wait for ever.
func TestStalledMediumIsNotFed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		c := make(chan struct{})
		u.record.store = stalled{u.record.store, c}
		end, done := u.guarded(t), make(chan error, 1)
		go func() { done <- d.install(u, "2.0.0", Options{}) }()
		require.ErrorContains(t, <-end, "boot record")
		close(c)
		require.NoError(t, <-done)
	})
}

// A step that is over is not watched any more, though somebody who worked for it comes
// back from the network only then.
func TestStepIsOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := newDevice(t, "1.0.0", "").start()
		end := u.guarded(t)
		s := u.watch("step", stepTime)
		s.pause()
		s.done()
		s.resume()
		time.Sleep(2 * stepTime)
		require.Empty(t, end)
		u.p.Keeper.Stop()
	})
}

// Having nothing to do, waiting for a fleet that does not answer, and waiting for a
// handler that takes its time are not being wedged.
func TestWaitingLoopIsFed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.stop()
		end := f.u.guarded(t)
		f.again()
		time.Sleep(24 * time.Hour)
		require.Empty(t, end)

		var verbs []string
		f.handler = func(_ manifest.Image, verb string, _ io.Reader) (bool, error) {
			verbs = append(verbs, verb)
			if verb == "write" {
				return false, external.ErrNotNow
			}
			time.Sleep(handlerTime)
			return false, nil
		}
		f.want(1, f.desired("2.8.0-external"))
		time.Sleep(time.Hour)
		f.want(2, f.desired("1.0.0")) // which it runs: the other one is given up
		time.Sleep(2 * handlerTime)
		require.Equal(t, "revert", verbs[len(verbs)-1])

		f.serves(func(s *source) { s.block = true })
		f.want(3, f.desired("2.0.0"))
		time.Sleep(24 * time.Hour)
		require.Empty(t, end)
		f.serves(nil)
		f.stop()
		synctest.Wait()
		f.u.p.Keeper.Stop()
	})
}
