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
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	dir, err := os.MkdirTemp("", "guest") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	tar := filepath.Join(dir, "two.tar")
	require.NoError(t, mkrelease.Pack(t.Context(), f.Release("two"), tar, nil))
	g := &guest{t: t, dir: dir, image: f.Disk("one"), release: tar}
	t.Cleanup(func() { _ = g.d.Cut() })

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

// guest is the machine that is killed.
type guest struct {
	t              *testing.T
	d              *qemu.Device
	dir            string
	image, release string
	boot           time.Duration // how long one takes
}

// fresh is a device that comes from the factory, with the release at hand.
func (g *guest) fresh() qemu.Hello {
	g.t.Helper()
	if g.d != nil {
		require.NoError(g.t, g.d.Cut())
		require.NoError(g.t, g.d.Remove())
	}
	var err error
	// Without its watchdog, which would reset a guest that a busy host makes slow.
	g.d, err = qemu.New(g.t.Context(), qemu.Config{Dir: filepath.Join(g.dir, "device"), Name: "guest-killed", Image: g.image, NoWatchdog: true})
	require.NoError(g.t, err)
	h := g.boots()
	require.Equal(g.t, "1.0.0", h.Version)
	require.NoError(g.t, g.d.Push(g.t.Context(), g.release, "/data/two.tar"))
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

// install begins the installation, also of a release whose trial was killed before; what
// it returns is closed when the machine restarts or is killed.
func (g *guest) install() <-chan struct{} {
	g.t.Helper()
	g.run("sh", "-c", "until [ -S /run/tandem/updater.sock ]; do sleep 0.2; done")
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := g.d.Run(g.t.Context(), qemu.Command{Argv: []string{"updater", "install", "-force", "/data/two.tar"}, Timeout: 10 * time.Minute})
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
