package crosscheck

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
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

// A whole machine is killed (kill -9 of QEMU) at random moments of an installation, of
// the boot into its trial, and of the trial itself. Each time it comes up again by
// itself, with the old system or on a trial that an installation has begun; at most one
// boot is a trial, since the release has one try. Left alone in the end, the device
// installs the release and commits.
//
// It takes half an hour: with TANDEM_LONG only. The stories of package tests cut the
// power of guests on every run.
func TestGuestKilled(t *testing.T) {
	if !long {
		t.Skip("takes half an hour; set TANDEM_LONG")
	}
	t.Parallel()
	f := theFactory(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	g := newGuest(t, f.Release("two"))
	g.image = f.Disk("one")

	h := g.fresh()
	for kills := range 20 {
		what := fmt.Sprintf("kill %d, seed %d", kills+1, seed)
		if h.Version == "1.0.0" {
			done := g.install()
			if kills%4 < 2 {
				wait(done, r, g.boot/2) // as it writes, most often
			} else {
				select {
				case <-done: // the machine restarts
				case <-time.After(g.d.Scaled(10 * time.Minute)):
					require.Fail(t, "the installation does not end", what)
				}
				if kills%4 == 2 {
					wait(nil, r, g.boot) // in the boot of the trial
				} else {
					var err error
					h, err = g.d.WaitBoot(t.Context(), 5*time.Minute)
					require.NoError(t, err, what)
					require.Equal(t, "2.0.0", h.Version, what)
				}
			}
		}
		if h.Version == "2.0.0" {
			wait(nil, r, 5*time.Second) // in the trial
		}
		require.NoError(t, g.d.Cut())
		before := g.record()
		h = g.boots()
		t.Logf("%s: %s; then slot %s boots with %s", what, before, h.Slot, h.Version)
		if before.Good == bootctl.B || before.Trying == bootctl.B && before.Tries > 0 {
			require.Equal(t, qemu.Hello{Slot: "b", Version: "2.0.0", BootID: h.BootID}, h, what)
		} else {
			require.Equal(t, qemu.Hello{Slot: "a", Version: "1.0.0", BootID: h.BootID}, h, what)
		}
		if before.Good == bootctl.B {
			h = g.fresh() // it had committed; from the beginning
		}
	}
	t.Attr("guest-kills", "20")
	d := g.d
	if h.Version == "1.0.0" {
		<-g.install()
		var err error
		h, err = d.WaitBoot(t.Context(), 10*time.Minute)
		require.NoError(t, err)
	}
	require.Equal(t, "2.0.0", h.Version)
	for end := time.Now().Add(d.Scaled(5 * time.Minute)); ; time.Sleep(time.Second) {
		res, err := d.Run(t.Context(), qemu.Command{Argv: []string{"updater", "status", "--json"}})
		if err == nil && strings.Contains(res.Stdout, `"good": "b"`) {
			break
		}
		require.True(t, time.Now().Before(end), "the trial is not committed")
	}
	require.NoError(t, d.Cut())
	require.Equal(t, bootctl.B, g.record().Good)
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
		NoWatchdog: true, // it would reset a guest that a busy host makes slow
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

// wait lets a random part of the time pass, or less if what is done ends first.
func wait(done <-chan struct{}, r *rand.Rand, most time.Duration) {
	select {
	case <-done:
	case <-time.After(time.Duration(r.Int64N(int64(most)))):
	}
}
