package updater

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// calls are the verbs that a handler was run with, and when.
type calls struct {
	verbs []string
	at    []time.Time
	fail  map[string]error
}

func (c *calls) run(_ manifest.Image, verb string, stdin io.Reader) (bool, error) {
	c.verbs, c.at = append(c.verbs, verb), append(c.at, time.Now())
	if verb == "write" {
		_, _ = io.Copy(io.Discard, stdin)
	}
	return false, c.fail[verb]
}

func (c *calls) count(verb string) (n int) {
	for _, v := range c.verbs {
		if v == verb {
			n++
		}
	}
	return n
}

// external brings a device to where the handler of a committed release, or of one that
// did not prove itself, has to hear of it.
func (d *device) external(t *testing.T, verb string, c *calls) *following {
	d.handler = c.run
	if verb == "revert" {
		d.sick["2.8.0-external"] = "works"
	}
	require.NoError(t, d.install(d.start(), "2.8.0-external", Options{}))
	f := d.follow()
	require.Equal(t, map[string]string{"commit": transport.Committed, "revert": transport.Reverted}[verb], f.verdict().Result, "said in any case")
	return f
}

// A handler that is asked to commit or to revert, and says "not now", is asked again,
// more and more rarely, at every start too, until it has done it; however often that is.
func TestNotNowIsTriedAgain(t *testing.T) {
	for _, verb := range []string{"commit", "revert"} {
		bubble(t, func(t *testing.T) {
			c := &calls{fail: map[string]error{verb: external.ErrNotNow}}
			f := newDevice(t, "1.0.0", "").external(t, verb, c)
			time.Sleep(24 * time.Hour)
			require.Greater(t, c.count(verb), 120)
			at := c.at[slices.Index(c.verbs, verb):]
			for i := 3; i < len(at); i++ {
				require.GreaterOrEqual(t, at[i].Sub(at[i-1]), at[i-1].Sub(at[i-2]))
				require.LessOrEqual(t, at[i].Sub(at[i-1]), retryMost+stepTime)
			}
			f.stop()
			before := c.count(verb)
			f.u = f.start()
			require.Equal(t, before+1, c.count(verb))
			f.again()
			c.fail = nil
			time.Sleep(2 * retryMost)
			require.Equal(t, before+2, c.count(verb))
			time.Sleep(24 * time.Hour)
			require.Equal(t, before+2, c.count(verb), "done")
			require.Len(t, f.boil(), 1)
			f.stop()
			f.settled(f.start(), map[string]string{"commit": "2.8.0-external", "revert": "1.0.0"}[verb])
			require.Equal(t, before+2, c.count(verb))
		})
	}
}

// One that fails is asked again at the next starts, and a few times only.
func TestFailedHandlerIsTriedAtStarts(t *testing.T) {
	for _, verb := range []string{"commit", "revert"} {
		bubble(t, func(t *testing.T) {
			c := &calls{fail: map[string]error{verb: errors.New("no answer")}}
			f := newDevice(t, "1.0.0", "").external(t, verb, c)
			time.Sleep(24 * time.Hour)
			f.stop()
			require.Equal(t, 1, c.count(verb))
			for range 10 {
				f.start()
			}
			require.Equal(t, 3, c.count(verb))
		})
	}
}

// While a part has not taken an update back, no other one is begun on it: what comes too
// late would take the new image away. Updates that have nothing to do with it go on.
func TestPrepareWaitsForRevert(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := &calls{fail: map[string]error{"revert": external.ErrNotNow}}
		f := newDevice(t, "1.0.0", "").external(t, "revert", c)
		f.sick = nil
		d := f.desired("2.8.0-external")
		d.Force = true
		f.want(1, d)
		time.Sleep(time.Hour)
		require.Empty(t, f.rebooting)
		require.Equal(t, 1, c.count("prepare"))
		c.fail = nil
		time.Sleep(2 * retryMost)
		synctest.Wait()
		require.NotEmpty(t, f.rebooting)
		f.stop()
		f.settled(f.start(), "2.8.0-external")
		i := slices.Index(c.verbs, "revert")
		verbs := slices.Compact(c.verbs[i:])
		require.Equal(t, []string{"revert", "prepare", "write", "commit"}, verbs)

		c = &calls{fail: map[string]error{"revert": external.ErrNotNow}}
		f = newDevice(t, "1.0.0", "").external(t, "revert", c)
		f.want(1, f.desired("2.0.0"))
		require.NotEmpty(t, f.rebooting)
		f.stop()
		f.settled(f.start(), "2.0.0")
	})
}
