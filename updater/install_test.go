package updater

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// What a device does not take, it refuses before it touches a slot, and says why in a
// way that callers can tell apart.
func TestAdmission(t *testing.T) {
	for name, c := range map[string]struct {
		runs    string
		offered string
		o       Options
		floor   uint64
		want    error
		forced  error // what force changes it to; nil: it is taken
	}{
		"for another board":          {"1.0.0", "2.3.0-board", Options{}, 0, ErrBoard, ErrBoard},
		"of another product":         {"1.0.0", "2.4.0-product", Options{}, 0, ErrBoard, ErrBoard},
		"older than what runs":       {"2.0.0", "1.0.0", Options{Full: transport.FullGo}, 0, ErrDowngrade, nil},
		"runs already":               {"2.0.0", "2.0.0", Options{}, 0, ErrInstalled, ErrInstalled},
		"below the floor of epochs":  {"1.0.0", "2.0.0", Options{}, 1, ErrEpoch, ErrEpoch},
		"at the floor of epochs":     {"1.0.0", "2.6.0-again", Options{Full: transport.FullGo}, 1, nil, nil},
		"signed and not offered":     {"1.0.0", "2.9.0-unlisted", Options{}, 0, trust.ErrNoTarget, trust.ErrNoTarget},
		"no delta fits":              {"2.0.0", "3.1.0-network", Options{}, 0, nil, nil}, // it has none: full is the way
		"deltas of another base":     {"2.0.0", "3.0.0", Options{}, 0, nil, nil},
		"only deltas, of other base": {"1.0.0", "2.1.0-deltas", Options{Full: transport.FullGo}, 0, ErrNoDelta, ErrNoDelta},
		"policy is to fail":          {"1.0.0", "3.0.0", Options{Full: transport.FullFail}, 0, ErrNoDelta, ErrNoDelta},
		"policy is to wait":          {"1.0.0", "3.0.0", Options{Full: transport.FullWait}, 0, ErrNoDelta, ErrNoDelta},
		"no policy":                  {"1.0.0", "3.0.0", Options{}, 0, ErrNoDelta, ErrNoDelta},
		"policy is to go in full":    {"1.0.0", "3.0.0", Options{Full: transport.FullGo}, 0, nil, nil},
		"delta over the budget":      {"1.0.0", "2.2.0-huge", Options{}, 0, ErrNoDelta, ErrNoDelta},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				for _, force := range []bool{false, true} {
					d := newDevice(t, c.runs, "0.9.0")
					u := d.start()
					u.change(func(j *journal.Journal) { j.EpochFloor = c.floor })
					before := d.ops()
					c.o.Force = force
					err, want := d.install(u, c.offered, c.o), c.want
					if force {
						want = c.forced
					}
					if want == nil {
						require.NoError(t, err)
						require.NotEmpty(t, d.rebooting)
						continue
					}
					require.ErrorIs(t, err, want)
					require.Equal(t, before, d.ops(), "nothing is written")
					require.Empty(t, d.rebooting)
				}
			})
		})
	}
}

// Of the payloads that fit, the smallest is downloaded, and nothing else.
func TestSmallestPayload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		require.Less(t, d.moved, int64(rootSize/2), "a delta")
		d = newDevice(t, "0.9.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{Full: transport.FullGo}))
		require.Greater(t, d.moved, int64(rootSize), "in full")
		d = newDevice(t, "1.0.0", "")
		u := d.start()
		u.p.Memory = 1 << 10
		require.ErrorIs(t, d.install(u, "2.0.0", Options{Full: transport.FullGo}), ErrMemory)
	})
}

// A release that is begun again and again without getting to its trial is left alone
// after a while; going on with one that was interrupted does not count.
func TestBegunTooOften(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		for range 5 {
			require.ErrorIs(t, u.Install(ctx, &source{w: d.w, r: d.w.by["2.0.0"], onRead: fails(syscall.ECONNRESET)}, Options{}), syscall.ECONNRESET)
		}
		require.Equal(t, 1, u.journal().Attempts[0].Count)
		for range u.p.MaxBegun - 1 {
			d.cancelled(u, "2.0.0")
			require.ErrorIs(t, u.Install(ctx, &source{w: d.w, r: d.w.by["2.0.0"], onRead: fails(syscall.ECONNRESET)}, Options{}), syscall.ECONNRESET)
		}
		d.cancelled(u, "2.0.0")
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrAttempts)
		// Nor does it come back because another one was begun in the meantime.
		require.ErrorIs(t, u.Install(ctx, &source{w: d.w, r: d.w.by["4.0.0-full"], onRead: fails(syscall.ECONNRESET)}, Options{}), syscall.ECONNRESET)
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrAttempts)
		require.NoError(t, d.install(u, "2.0.0", Options{Force: true}))
		d.settled(d.start(), "2.0.0")
	})
}

func fails(err error) func(manifest.Digest, int64, []byte) error {
	return func(manifest.Digest, int64, []byte) error { return err }
}

// cancelled begins an installation and has an operator cancel it.
func (d *device) cancelled(u *Updater, version string) {
	src := d.w.source(version)
	src.onRead = func(manifest.Digest, int64, []byte) error { return u.Cancel() }
	require.ErrorIs(d.t, u.Install(ctx, src, Options{Force: true}), ErrCancelled)
}

// An installation that goes on is for whoever asked last, and as they asked: the verdict
// has their number.
func TestResumedForAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, asked := range []Options{{Counter: 2}, {Counter: 1, Force: true}, {Counter: 2, Force: true}} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			src := d.w.source("4.0.0-full")
			src.onRead = func(manifest.Digest, int64, []byte) error { return syscall.ECONNRESET }
			require.ErrorIs(t, u.Install(ctx, src, Options{Counter: 1}), syscall.ECONNRESET)
			require.NoError(t, d.install(u, "4.0.0-full", asked))
			require.Equal(t, asked.Force, u.journal().Update.Force)
			d.settled(d.start(), "4.0.0-full")
			require.Equal(t, asked.Counter, d.verdict().Counter)
			require.Len(t, d.boil(), 1)
		}
	})
}

// The floor rises at commit and not before; the slot that is below it is retired
// before it rises, so that nothing bootable is ever below.
func TestFloorRisesAtCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		require.NoError(t, d.install(u, "2.5.0-epoch", Options{}))
		require.Zero(t, u.floor())
		d.onReport = func(s transport.State) {
			r := d.record()
			for _, slot := range []bootctl.Slot{bootctl.A, bootctl.B} {
				if v := d.holds(slot); v != "" && r.Mark(slot) == bootctl.OK {
					require.GreaterOrEqual(t, d.w.by[v].m.Epoch, s.Floor, "slot %s boots and is below the floor", slot)
				}
			}
		}
		u = d.start()
		d.settled(u, "2.5.0-epoch")
		require.EqualValues(t, 2, u.floor())
		require.EqualValues(t, 2, u.journal().EpochFloor, "nor does it fall with whatever is in the slots")
		require.Equal(t, bootctl.Bad, d.record().Mark(bootctl.A))
		require.Contains(t, d.phases(), "retired", "whoever wonders where the fallback is, finds it among the events")
		require.ErrorIs(t, d.install(u, "2.6.0-again", Options{Force: true}), ErrEpoch)
		require.ErrorIs(t, u.Rollback(ctx, true), ErrNoFallback)

		// A release of the same epoch retires nobody, not even a slot that cannot say what
		// it holds: it may be the last that boots.
		d = newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u = d.powerOn()
		d.clear(rootA, d.root(bootctl.A).Size()-partition.RecordSize, d.root(bootctl.A).Size())
		require.NoError(t, u.Resume(ctx))
		require.Equal(t, bootctl.OK, d.record().Mark(bootctl.A))
		require.NotContains(t, d.phases(), "retired")

		// Out of the factory, where nothing was committed, it is what runs.
		u = newDevice(t, "2.5.0-epoch", "").start()
		require.EqualValues(t, 2, u.State().Floor)

		// A trial does not raise it.
		d = newDevice(t, "1.0.0", "")
		d.sick["2.5.0-epoch"] = "works"
		u, err := d.update("2.5.0-epoch", Options{})
		require.NoError(t, err)
		require.Zero(t, u.floor())
	})
}

// Two installations at once: the second is refused and changes nothing. Cancel ends the
// first, which leaves the spare slot without a system and a verdict.
func TestOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		require.ErrorIs(t, u.Cancel(), ErrNotInstalling)
		src := d.w.source("2.0.0")
		reached := make(chan struct{})
		var once bool
		stalled := stall{src, func(ctx context.Context) error {
			if !once {
				once = true
				close(reached)
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		first := make(chan error)
		go func() { first <- u.Install(ctx, stalled, Options{}) }()
		<-reached
		require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrBusy)
		require.ErrorIs(t, u.Rollback(ctx, true), ErrBusy)
		require.NotNil(t, u.Cost())
		require.NoError(t, u.Cancel())
		require.ErrorIs(t, <-first, ErrCancelled)
		d.settled(u, "1.0.0")
		require.Equal(t, transport.Failed, d.verdict().Result)
		require.Equal(t, transport.ReasonOperator, d.verdict().Reason)
		require.Empty(t, d.holds(bootctl.B))
		require.Equal(t, bootctl.Bad, d.record().Mark(bootctl.B))
		d.settled(d.start(), "1.0.0")
		require.Len(t, d.boil(), 1)
	})
}

// stall is a source whose blobs wait.
type stall struct {
	*source
	wait func(ctx context.Context) error
}

func (s stall) ReadRange(ctx context.Context, _ manifest.Digest, _ int64, _ []byte) (int, error) {
	return 0, s.wait(ctx)
}

// Cancelled while the manifest is on its way: nobody goes on with it.
func TestCancelBeforeFirstByte(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		done := make(chan error)
		go func() { done <- u.Install(ctx, hangingManifest{d.w.source("2.0.0")}, Options{}) }()
		synctest.Wait()
		require.NoError(t, u.Cancel())
		require.ErrorIs(t, <-done, ErrCancelled)
		require.Zero(t, d.ops())
	})
}

type hangingManifest struct{ *source }

func (h hangingManifest) Manifest(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// What was written behind the last checkpoint is written again, and counts all the same: it
// wore the medium out.
func TestCostOfInterruption(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		u.p.Checkpoint = 100 * leaf
		src := d.w.source("4.0.0-full")
		src.onRead = func(manifest.Digest, int64, []byte) error {
			if src.moved > bootSize+3*leaf {
				return syscall.ECONNRESET
			}
			return nil
		}
		require.ErrorIs(t, u.Install(ctx, src, Options{}), syscall.ECONNRESET)
		require.Zero(t, u.journal().Update.Written["root.img"])
		require.GreaterOrEqual(t, u.Cost().Written, int64(bootSize+leaf))
		require.Equal(t, u.Cost().Written, d.start().Cost().Written, "also after a restart")
	})
}

// Whatever interrupts (the end of the program, the link), the place is kept: what is
// durable is neither downloaded nor written again.
func TestInterruptedKeepsPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		whole := newDevice(t, "1.0.0", "")
		require.NoError(t, whole.install(whole.start(), "4.0.0-full", Options{}))
		for _, reboot := range []bool{false, true} {
			for stop := int64(leaf); stop < whole.moved; stop += leaf {
				d := newDevice(t, "1.0.0", "")
				u := d.start()
				ctx, cancel := context.WithCancel(ctx)
				src := d.w.source("4.0.0-full")
				src.onRead = func(manifest.Digest, int64, []byte) error {
					if src.moved > stop && reboot {
						cancel()
						return ctx.Err()
					} else if src.moved > stop {
						return syscall.ECONNRESET
					}
					return nil
				}
				require.Error(t, u.Install(ctx, src, Options{}))
				cancel()
				require.Empty(t, d.verdicts, "it is not over")
				if reboot {
					u = d.start()
				}
				require.NoError(t, d.install(u, "4.0.0-full", Options{}))
				require.LessOrEqual(t, stop+d.moved, whole.moved+every+2*leaf+4096, "after %d bytes", stop)
				cost := u.Cost()
				require.Equal(t, int64(rootSize+bootSize), cost.Written+cost.Skipped, "each byte once")
				d.settled(d.start(), "4.0.0-full")
				require.Equal(t, d.verdict().Bytes, cost.Downloaded)
			}
		}
	})
}

// The link may break at any byte, the device restart at any: nothing is written twice, at most a
// checkpoint is downloaded twice, and the image is the image. With TANDEM_LONG (make long) it
// breaks in a thousand places of each release; the borders of frames are among them in any case.
func TestInterruptedAnywhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		places := 20
		if os.Getenv("TANDEM_LONG") != "" {
			places = 1000
		}
		for _, version := range []string{"2.0.0", "4.0.0-full"} {
			whole := newDevice(t, "1.0.0", "")
			require.NoError(t, whole.install(whole.start(), version, Options{}))
			var stops []int64
			for _, img := range whole.w.by[version].m.Images {
				blob := whole.w.by[version].blobs[img.Payloads[0].Blob.Digest]
				p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: memory, Size: img.Size})
				require.NoError(t, err)
				for i := range p.Frames() {
					stops = append(stops, p.Frame(i).Blob)
				}
			}
			r := rand.New(rand.NewPCG(12, uint64(len(version))))
			for range places {
				stops = append(stops, r.Int64N(whole.moved))
			}
			for _, stop := range stops {
				d := newDevice(t, "1.0.0", "")
				u := d.start()
				src := d.w.source(version)
				src.onRead = func(manifest.Digest, int64, []byte) error {
					if src.moved > stop {
						return syscall.ECONNRESET
					}
					return nil
				}
				require.ErrorIs(t, u.Install(ctx, src, Options{}), syscall.ECONNRESET, "after %d bytes", stop)
				u = d.start()
				require.NoError(t, d.install(u, version, Options{}), "after %d bytes", stop)
				cost := u.Cost()
				require.Equal(t, int64(rootSize+bootSize), cost.Written+cost.Skipped, "each byte once, after %d", stop)
				require.LessOrEqual(t, stop+d.moved, whole.moved+every+2*leaf+4096, "after %d bytes", stop)
				d.settled(d.start(), version)
			}
		}
	})
}

// A source that lies, about any blob, gets no byte of it into a slot that boots, and
// the device takes the release from an honest one afterwards.
func TestLyingSource(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for blob, data := range theWorld().by["4.0.0-full"].blobs {
			for _, at := range []int64{0, int64(len(data) / 2), int64(len(data) - 1)} {
				d := newDevice(t, "1.0.0", "0.9.0")
				u := d.start()
				src := d.w.source("4.0.0-full")
				lied := false
				src.onRead = func(b manifest.Digest, off int64, p []byte) error {
					if b == blob && off <= at && at < off+int64(len(p)) {
						p[at-off] ^= 0x10
						lied = true
					}
					return nil
				}
				err := u.Install(ctx, src, Options{})
				require.True(t, lied)
				require.ErrorIs(t, err, transport.ErrLeaf)
				require.Empty(t, d.holds(bootctl.B))
				require.Equal(t, bootctl.Bad, d.record().Mark(bootctl.B))
				require.Empty(t, u.journal().Failed, "it is not the release's fault")
				require.NoError(t, d.install(u, "4.0.0-full", Options{}))
				d.settled(d.start(), "4.0.0-full")
			}
		}
	})
}

// A base that has rotted makes another image than the manifest names. It is noticed
// before the byte is written, and the slot is named; it is no fault of the release.
func TestRottenBase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := theWorld()
		noticed := 0
		for at := int64(4096 + 17); at < rootSize; at += leaf {
			d := newDevice(t, "1.0.0", "")
			d.root(bootctl.A).Flip(at, 3)
			u := d.startUnverified()
			err := d.install(u, "2.0.0", Options{})
			if err == nil {
				continue // the delta does not need this block
			}
			noticed++
			require.ErrorIs(t, err, ErrBase)
			require.ErrorContains(t, err, "in slot a")
			have, want := d.root(bootctl.B).Bytes(), w.by["2.0.0"].images["root"]
			for from := 0; from < len(want); from += partition.BlockSize {
				to := min(from+partition.BlockSize, len(want))
				require.True(t, bytes.Equal(have[from:to], want[from:to]) || bytes.Count(have[from:to], []byte{0xff}) == to-from, "block at %d is neither old nor new", from)
			}
			require.Empty(t, d.holds(bootctl.B))
			require.Contains(t, d.phases(), "damaged")

			// With leave, the whole image goes on where the delta ended.
			require.NoError(t, d.install(u, "2.0.0", Options{Full: transport.FullGo}))
			d.mend(bootctl.A, "1.0.0")
			d.settled(d.start(), "2.0.0")
		}
		require.GreaterOrEqual(t, noticed, 3)
	})
}

// startUnverified starts the program of slot A, whatever that holds: the first program
// reads through verity, this one does not.
func (d *device) startUnverified() *Updater {
	d.slot, d.bootID = bootctl.A, "this"
	u, err := New(d.parts("1.0.0"))
	require.NoError(d.t, err)
	return u
}

// mend gives a slot its root file system back, as a person would.
func (d *device) mend(s bootctl.Slot, version string) {
	_, err := d.root(s).WriteAt(d.w.by[version].images["root"], 0)
	require.NoError(d.t, err)
	require.NoError(d.t, d.root(s).Sync())
}

// The fleet's policy decides what becomes of a device whose base has rotted: it says so
// and waits for another word, or downloads the whole images.
func TestRottenBasePolicy(t *testing.T) {
	for policy, result := range map[string]string{transport.FullFail: transport.Refused, transport.FullWait: "", transport.FullGo: transport.Committed} {
		bubble(t, func(t *testing.T) {
			f := newDevice(t, "1.0.0", "").follow()
			rot := int64(leaf + 4096 + 17)
			f.root(bootctl.A).Flip(rot, 3)
			d := f.desired("2.0.0")
			d.Full = policy
			f.want(1, d)
			time.Sleep(time.Hour)
			if policy != transport.FullGo {
				require.Empty(t, f.rebooting)
				require.Contains(t, f.u.State().Error, "in slot a")
				if result != "" {
					require.Equal(t, result, f.verdict().Result)
					require.Contains(t, f.verdict().Detail, ErrBase.Error())
				} else {
					require.Empty(t, f.verdicts)
				}
				d.Full = transport.FullGo
				f.want(2, d)
			}
			require.NotEmpty(t, f.rebooting)
			f.stop()
			f.mend(bootctl.A, "1.0.0")
			f.settled(f.start(), "2.0.0")
			require.Equal(t, transport.Committed, f.verdict().Result)
		})
	}
}

// A medium that does not keep what it was given is found out by reading back. What is
// wrong is written again by the next attempt; and not for ever.
func TestReadBackFindsRot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for role, size := range map[string]int{"boot": bootSize, "root": rootSize} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			img, _ := d.w.by["2.0.0"].m.Image(role + ".img")
			u.p.Slots = rotting{u.p.Slots, d, role, img.Size}
			err := d.install(u, "2.0.0", Options{})
			require.ErrorIs(t, err, partition.ErrMismatch)
			require.Empty(t, d.rebooting)
			require.Equal(t, Writing, State(u.journal().State), "to be written again")
			require.Zero(t, u.journal().Update.Written[role+".img"])
			require.Empty(t, d.verdicts)

			u.p.Slots = &slots{d: d, held: map[string]bool{}}
			require.NoError(t, d.install(u, "2.0.0", Options{}))
			d.settled(d.start(), "2.0.0")

			d = newDevice(t, "1.0.0", "")
			u = d.start()
			u.p.Slots = rotting{u.p.Slots, d, role, img.Size}
			for range u.p.MaxBegun {
				require.NotContains(t, u.journal().Failed, d.w.by["2.0.0"].digest)
				require.ErrorIs(t, d.install(u, "2.0.0", Options{}), partition.ErrMismatch)
			}
			d.settled(u, "1.0.0")
			require.Equal(t, transport.Failed, d.verdict().Result)
			require.ErrorIs(t, d.install(u, "2.0.0", Options{}), ErrFailedBefore)
			_ = size
		}
	})
}

// rotting hands out a spare partition in which one byte turns over once all is synced.
type rotting struct {
	Slots
	d    *device
	role string
	size int64
}

type rottingDisk struct {
	Disk
	at int64
}

func (r rotting) Spare(role string) (Disk, error) {
	d, err := r.Slots.Spare(role)
	if err == nil && role == r.role {
		return rottingDisk{d, r.size / 2}, nil
	}
	return d, err
}

func (r rottingDisk) ReadMedium(p []byte, off int64) (int, error) {
	n, err := r.Disk.(partition.Medium).ReadMedium(p, off)
	if off <= r.at && r.at < off+int64(n) {
		p[r.at-off] ^= 1
	}
	return n, err
}

// The whole way of an external image: prepare, all of its bytes in order, and what
// became of the update.
func TestExternalImage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, sick := range []bool{false, true} {
			d := newDevice(t, "1.0.0", "")
			if sick {
				d.sick["2.8.0-external"] = "works"
			}
			var verbs []string
			var got []byte
			d.handler = func(img manifest.Image, verb string, stdin io.Reader) (bool, error) {
				verbs = append(verbs, verb)
				if verb == "write" {
					var err error
					if got, err = io.ReadAll(stdin); err != nil {
						return false, err
					}
				}
				return false, nil
			}
			u, err := d.update("2.8.0-external", Options{})
			require.NoError(t, err)
			require.True(t, bytes.Equal(got, d.w.by["2.8.0-external"].images["modem"]))
			if sick {
				d.settled(u, "1.0.0")
				require.Equal(t, []string{"prepare", "write", "revert"}, verbs)
			} else {
				d.settled(u, "2.8.0-external")
				require.Equal(t, []string{"prepare", "write", "commit"}, verbs)
			}
		}

		// A handler that stops reading, fails, or succeeds without having read all.
		for _, broken := range []func(io.Reader) error{
			func(r io.Reader) error { return errors.New("modem does not answer") },
			func(r io.Reader) error { _, _ = io.CopyN(io.Discard, r, 10); return nil },
			func(r io.Reader) error { return nil },
		} {
			d := newDevice(t, "1.0.0", "")
			d.handler = func(_ manifest.Image, verb string, stdin io.Reader) (bool, error) {
				if verb == "write" {
					return false, broken(stdin)
				}
				return false, nil
			}
			u := d.start()
			require.Error(t, d.install(u, "2.8.0-external", Options{}))
			require.Empty(t, d.rebooting)
			d.handler = nil
			require.NoError(t, d.install(u, "2.8.0-external", Options{}))
			d.settled(d.start(), "2.8.0-external")
		}
	})
}

var _ = disktest.Sector
