package crosscheck

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/tests/factory"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// phase is where in an update a machine was killed.
type phase string

const (
	asked      phase = "asked"      // it was told to install, and had not said that it writes
	installing phase = "installing" // it had said that it writes, and no trial was armed
	booting    phase = "booting"    // a trial was armed, and the system on trial had not said hello
	trial      phase = "trial"      // that had said hello, and was not good yet
	committed  phase = "committed"  // it was good
)

// killed is what a device said before it was killed.
type killed struct {
	writes  bool // it writes the spare slot
	ended   bool // the installation, and with it the machine: it restarts
	version string
}

// phase follows from what the device has said, and from the boot record that is found
// after the kill.
func (k killed) phase(found bootctl.Record) phase {
	armed := found.Trying == bootctl.B
	switch {
	case found.Good == bootctl.B:
		return committed
	case armed && k.version == "2.0.0":
		return trial
	case armed && (k.ended || found.Tries > 0): // none are left once GRUB has counted
		return booting
	case k.writes && !armed:
		return installing
	}
	return asked
}

// A whole machine is killed (kill -9 of QEMU) at random moments of an installation, of
// the boot into its trial, and of the trial itself. Each time it comes up again by
// itself, with the old system or on a trial that an installation has begun; at most one
// boot is a trial, since the release has one try. Left alone in the end, the device
// installs the release and commits.
//
// That takes half an hour, with TANDEM_LONG. Otherwise one machine is killed, as soon as
// it says that it writes, and boots.
func TestGuestKilled(t *testing.T) {
	t.Parallel()
	f := theFactory(t)
	// So many, and more of them if all fell elsewhere.
	least, most, ways, must := 1, 4, 1, []phase{installing}
	if long {
		least, most, ways, must = 20, 40, 4, []phase{installing, booting, trial}
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	g := newGuest(t, f.Release("two"))
	g.image = f.Disk("one")

	h := g.fresh()
	count := map[phase]int{}
	missing := func() bool { return slices.ContainsFunc(must, func(p phase) bool { return count[p] == 0 }) }
	kills, good := 0, false
	for ; kills < least || missing() && kills < most; kills++ {
		if good {
			h = g.fresh() // it had committed; from the beginning
		}
		what := fmt.Sprintf("kill %d, seed %d", kills+1, seed)
		said := killed{version: h.Version}
		if h.Version == "1.0.0" {
			done := g.install()
			way := kills % ways
			switch way {
			case 0:
				said.writes = g.writes(done)
				if long {
					wait(done, r, g.boot/4)
				}
			case 1:
				wait(done, r, g.boot/2)
			default:
				select {
				case <-done: // the machine restarts
				case <-time.After(g.d.Scaled(10 * time.Minute)):
					require.Fail(t, "the installation does not end", what)
				}
				if way == 2 {
					wait(nil, r, g.boot) // in the boot of the trial
					break
				}
				h, err := g.d.WaitBoot(t.Context(), 5*time.Minute)
				require.NoError(t, err, what)
				require.Equal(t, "2.0.0", h.Version, what)
				said.version = h.Version
			}
			said.ended = wait(done, r, 1)
		}
		if said.version == "2.0.0" {
			wait(nil, r, 5*time.Second) // in the trial
		}
		require.NoError(t, g.d.Cut())
		before := g.record()
		at := said.phase(before)
		count[at]++
		h = g.boots()
		t.Logf("%s: %s: %s; then slot %s boots with %s", what, at, before, h.Slot, h.Version)
		if before.Good == bootctl.B || before.Trying == bootctl.B && before.Tries > 0 {
			require.Equal(t, qemu.Hello{Slot: "b", Version: "2.0.0", BootID: h.BootID}, h, what)
		} else {
			require.Equal(t, qemu.Hello{Slot: "a", Version: "1.0.0", BootID: h.BootID}, h, what)
		}
		good = before.Good == bootctl.B
	}
	for _, p := range must {
		require.Positive(t, count[p], "killed %s: %v", p, count)
		t.Attr("guest-kills-"+string(p), fmt.Sprint(count[p]))
	}
	t.Attr("guest-kills", fmt.Sprint(kills))
	if long {
		g.arrives(h)
	}
}

// arrives requires that a device, left alone, installs the release and commits.
func (g *guest) arrives(h qemu.Hello) {
	t, d := g.t, g.d
	if h.Version == "1.0.0" {
		<-g.install()
		var err error
		h, err = d.WaitBoot(t.Context(), 10*time.Minute)
		require.NoError(t, err)
	}
	require.Equal(t, "2.0.0", h.Version)
	for end := time.Now().Add(d.Scaled(5 * time.Minute)); ; time.Sleep(time.Second) {
		if strings.Contains(g.status(), `"good": "b"`) {
			break
		}
		require.True(t, time.Now().Before(end), "the trial is not committed")
	}
	require.NoError(t, d.Cut())
	require.Equal(t, bootctl.B, g.record().Good)
}

// status is what the device says about itself; "" where it does not answer.
func (g *guest) status() string {
	res, err := g.d.Run(g.t.Context(), qemu.Command{Argv: []string{"updater", "status", "--json"}})
	if err != nil {
		return ""
	}
	return res.Stdout
}

// writes waits until the device says that it writes the spare slot; false if the
// installation ends before.
func (g *guest) writes(done <-chan struct{}) bool {
	for {
		if strings.Contains(g.status(), `"phase": "writing"`) {
			return true
		}
		select {
		case <-done:
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// theFactory has made what a whole guest runs on.
func theFactory(t *testing.T) *factory.Factory {
	t.Helper()
	if err := qemu.Check(qemu.Config{}); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	f, err := factory.Open(t.Context(), root, os.Stderr)
	require.NoError(t, err)
	return f
}

// guest is a whole machine, and a release that is to be installed on it.
type guest struct {
	t              *testing.T
	d              *qemu.Device // nil until it is fresh
	dir            string
	image, release string        // files
	logged         bool          // what is written
	boot           time.Duration // how long one takes
}

// newGuest is a machine that has no disk yet, and the release in a folder.
func newGuest(t *testing.T, release string) *guest {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guest{t: t, dir: dir, release: filepath.Join(dir, "release.tar")}
	require.NoError(t, mkrelease.Pack(t.Context(), release, g.release, nil))
	t.Cleanup(func() {
		if g.d != nil {
			_ = g.d.Cut()
		}
	})
	return g
}

// pushed is the release, as the guest sees it.
const pushed = "/data/release.tar"

// fresh is a device that comes from the factory, with the release at hand.
func (g *guest) fresh() qemu.Hello {
	g.t.Helper()
	if g.d != nil {
		require.NoError(g.t, g.d.Cut())
		require.NoError(g.t, g.d.Remove())
	}
	var err error
	g.d, err = qemu.New(g.t.Context(), qemu.Config{
		Dir: filepath.Join(g.dir, "device"), Name: "crosscheck", Image: g.image, LogWrites: g.logged,
		NoWatchdog: true, // it would reset a guest that a busy host makes slow; see the package comment
	})
	require.NoError(g.t, err)
	h := g.boots()
	require.Equal(g.t, "1.0.0", h.Version)
	require.NoError(g.t, g.d.Push(g.t.Context(), g.release, pushed))
	g.run("sync")
	return h
}

// boots switches the machine on and waits for what comes up.
func (g *guest) boots() qemu.Hello {
	g.t.Helper()
	g.d.SkipBoots()
	began := time.Now()
	require.NoError(g.t, g.d.Start(g.t.Context()))
	h, err := g.d.WaitBoot(g.t.Context(), 10*time.Minute)
	require.NoError(g.t, err)
	g.boot = time.Since(began)
	return h
}

func (g *guest) run(argv ...string) {
	g.t.Helper()
	res, err := g.d.Run(g.t.Context(), qemu.Command{Argv: argv, Timeout: 5 * time.Minute})
	require.NoError(g.t, err)
	require.Zero(g.t, res.Code, "%s%s", res.Stdout, res.Stderr)
}

// listens waits for the agent.
func (g *guest) listens() {
	g.t.Helper()
	g.run("sh", "-c", "until [ -S /run/tandem/updater.sock ]; do sleep 0.2; done")
}

// install begins the installation, also of a release whose trial was killed before; what
// it returns is closed when the machine restarts or is killed.
func (g *guest) install() <-chan struct{} {
	g.t.Helper()
	g.listens()
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := g.d.Run(g.t.Context(), qemu.Command{Argv: []string{"updater", "install", "-force", pushed}, Timeout: 10 * time.Minute})
		if err == nil && res.Code != 0 {
			g.t.Errorf("installation: exit code %d\n%s%s", res.Code, res.Stdout, res.Stderr)
		}
	}()
	return done
}

// record is the boot record, read from outside while the machine is off.
func (g *guest) record() bootctl.Record {
	g.t.Helper()
	file := filepath.Join(g.dir, "env")
	require.NoError(g.t, g.d.Extract(g.t.Context(), "env", 0, grubenv.Size, file))
	env, err := os.ReadFile(file)
	require.NoError(g.t, err)
	record, err := grubenv.Open(disktest.New(env)).Load()
	require.NoError(g.t, err)
	return record
}

// wait lets a random part of the time pass, or less if what is done ends first; it
// tells whether that has ended.
func wait(done <-chan struct{}, r *rand.Rand, most time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(time.Duration(r.Int64N(int64(most)))):
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}
