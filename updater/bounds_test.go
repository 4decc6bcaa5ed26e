package updater

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Of a log, wherever it comes from, the end goes into the journal, and no more of it than a
// verdict may have.
func TestLogsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := newDevice(t, "1.0.0", "0.9.0").start()
		trial := bootctl.Record{Good: bootctl.A, Trying: bootctl.B, A: bootctl.OK, B: bootctl.OK}
		for n, want := range map[int]int{1: 1, journal.MaxLog: journal.MaxLog, journal.MaxLog + 1: journal.MaxLog, 1000: journal.MaxLog} {
			var lines []string
			for i := range n {
				lines = append(lines, fmt.Sprint("line ", i))
			}
			end := lines[n-want:]
			u.p.Tail = func() []string { return lines }
			require.Equal(t, end, u.lastLines(), "%d lines of this boot", n)
			// An older or newer program may have written more of them.
			require.NoError(t, u.p.Store.Put(trialLogName, []byte(strings.Join(lines, "\n"))))
			require.Equal(t, end, u.trialLog(), "%d lines of a trial", n)
			u.p.Attempts = func() ([]bootreport.Attempt, error) {
				return []bootreport.Attempt{
					{BootID: "trial", Slot: "b", Stage: bootreport.StageStarted},
					{BootID: "back", Slot: "a", Stage: bootreport.StageStarted, Pstore: strings.Join(lines, "\n")},
				}, nil
			}
			reason, _, _, log := u.why(trial, Reverted)
			require.Equal(t, transport.ReasonPanic, reason)
			require.Equal(t, end, log, "%d lines of a panic", n)
		}
	})
}

// narrow is slots with as little room for the root file system.
type narrow struct {
	Slots
	room int64
}

func (n narrow) Spare(role string) (Disk, error) {
	d, err := n.Slots.Spare(role)
	if err != nil || role != "root" {
		return d, err
	}
	return struct {
		partition.Disk
		io.Closer
	}{partition.Section(d, 0, n.room), d}, nil
}

// An image may come up to the slot record, and not into it: one that a manifest makes a
// byte too large would be written, and then spoiled by its own record.
func TestImageKeepsClearOfRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for room, want := range map[int64]error{
			rootSize + partition.RecordSize:        nil,
			rootSize + partition.RecordSize - 4096: partition.ErrOutside,
			rootSize:                               partition.ErrOutside,
		} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			u.p.Slots = narrow{u.p.Slots, room}
			require.ErrorIs(t, d.install(u, "2.0.0", Options{}), want, "room for %d bytes", room)
		}
	})
}

// silent is a source that takes every question and has no answer.
type silent struct{ *source }

func (silent) Metadata(ctx context.Context, _ string) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// silentFleet has nothing else.
type silentFleet struct{ *source }

func (silentFleet) Wants() <-chan transport.Want      { return nil }
func (f silentFleet) Source(d manifest.Digest) Source { return silent{f.source} }

// A source that does not answer about the metadata holds up an installation, or the
// hearing of a statement, for a while only: whoever comes next waits for it.
func TestMetadataHasItsTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		begin := time.Now()
		require.ErrorIs(t, u.Install(ctx, silent{d.w.source("2.0.0")}, Options{}), context.DeadlineExceeded)
		require.Equal(t, metadataTime, time.Since(begin))

		begin = time.Now()
		desired := transport.Desired{Manifest: string(d.w.by["2.0.0"].digest), Version: "2.0.0"}
		_ = u.accept(ctx, silentFleet{d.w.source("2.0.0")}, d.w.statement(t, me, 1, desired))
		require.Equal(t, metadataTime, time.Since(begin))
		require.NoError(t, d.install(u, "2.0.0", Options{}))
	})
}

// A clock that steps back, or a count that is lost, makes no verdict that the fleet would
// have to refuse: nothing in it is less than nothing.
func TestVerdictIsNotNegative(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := newDevice(t, "1.0.0", "").start()
		v := journal.Verdict{Ended: 5}
		v.Started, v.Tries = 10, -1
		told := u.verdict(v)
		require.Zero(t, told.Duration)
		require.Zero(t, told.Tries)
		v.Started, v.Tries = 2, 1
		told = u.verdict(v)
		require.EqualValues(t, 3, told.Duration)
		require.Equal(t, 1, told.Tries)
	})
}

// A delta that was made from another image than its manifest says is refused before a byte
// of it is used, and of the partition with the base nothing is read that is not the base.
func TestDeltaIsFromItsBase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		release := d.w.by["2.0.0"]
		img, _ := release.m.Image("root.img")
		old, err := u.p.Slots.Read(bootctl.A, "root")
		require.NoError(t, err)
		step := u.watch("test", stepTime)
		defer step.done()
		open := func(base *manifest.Image) (*patched, error) {
			p := payload{Payload: release.of("root.img", manifest.KindDelta), image: img, base: base}
			return u.patched(ctx, d.w.source("2.0.0"), p, old, nil, proof{p: p}, step)
		}
		base := u.inSlot(u.running.Manifest, "root")
		r, err := open(base)
		require.NoError(t, err)
		n, err := r.sources.Old.ReadAt(make([]byte, 2), base.Size-1)
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, 1, n)

		other, shorter, longer := *base, *base, *base
		other.Digest = img.Digest
		shorter.Size--
		longer.Size++
		for name, base := range map[string]*manifest.Image{"none": nil, "another": &other, "a byte less": &shorter, "a byte more": &longer} {
			_, err := open(base)
			require.ErrorIs(t, err, delta.ErrFormat, "base: %s", name)
		}
	})
}

// counted is a system in which no two blocks are alike, and which is nearly nothing when
// it is packed.
func counted(size int) []byte {
	b := make([]byte, size)
	for at := range size {
		b[at] = byte(at / 512 >> (at % 3 * 8))
	}
	return b
}

// index returns the index payload of a system, and a release that has it.
func index(t *testing.T, data []byte, block int) (*made, payload) {
	var blob bytes.Buffer
	stats, err := mkblocks.Make(ctx, mkblocks.Image{ReaderAt: bytes.NewReader(data), Size: int64(len(data))}, mkblocks.Options{Block: block, FrameSize: frame, Window: frame, Workers: 1}, &blob)
	require.NoError(t, err)
	r := &made{blobs: map[manifest.Digest][]byte{}}
	img := manifest.Image{Name: "root.img", Type: manifest.TypeSlot, Target: "root", Content: r.tree(data)}
	return r, payload{Payload: manifest.Payload{Kind: manifest.KindIndex, Blob: r.blob(blob.Bytes()), Memory: stats.Memory}, image: img}
}

// Of an index payload, the index is read ahead, and nothing else; of a slot, what its
// system takes is looked at, or may take, and nothing that is behind its partition.
func TestSurveyIsBounded(t *testing.T) {
	const room = rootSize + 4*4096 // before the slot record
	for name, c := range map[string]struct {
		data    []byte
		block   int
		fetched int64 // for the index, its blob's list aside; 0 is all of the blob
		plan    bool
		spare   int64 // bytes that are looked at in a slot whose system nobody knows
	}{
		"all of it in one leaf":   {alien(1, bootSize), 4096, 0, false, rootSize},
		"the index in one leaf":   {alien(1, rootSize+4096), 4096, leaf, false, rootSize + 4096},
		"the index in two leaves": {alien(1, 6<<20), 512, 2 * leaf, true, room},
		"all of it in two leaves": {counted(5632 << 10), 512, 0, true, room},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				r, p := index(t, c.data, c.block)
				if c.fetched == 0 {
					c.fetched = p.Blob.Size
				}
				src := &planned{source: &source{w: d.w, r: r}, t: t}
				s, err := d.start().survey(ctx, src, p, 0)
				require.NoError(t, err)
				require.Equal(t, p.Blob.TreeSize()+c.fetched, s.fetched)
				if c.plan {
					require.Equal(t, []transport.Range{{leaf, c.fetched - leaf}}, src.plan[p.Blob.Digest])
				} else {
					require.Empty(t, src.plan)
				}
				var looked []int64
				for _, p := range d.progress {
					if strings.HasPrefix(p.Phase, "comparing") && p.Done == p.Total {
						looked = append(looked, p.Total)
					}
				}
				require.Equal(t, []int64{rootSize, c.spare}, looked)
				require.Empty(t, d.texts("damaged"))
			})
		})
	}
}

// Where little is missing, as many frames are planned ahead as there is a limit for, and
// no more: what is read ahead is kept in memory with a note for each part of it.
func TestPlanIsBoundedInFrames(t *testing.T) {
	r, p := index(t, counted(2*planFrames*frame), 4096)
	x, err := blocks.Open(bytes.NewReader(r.blobs[p.Blob.Digest]), p.Blob.Size, blocks.Limits{Memory: memory, Size: p.image.Size})
	require.NoError(t, err)
	require.Less(t, x.Missing(0), int64(planBytes), "or it is bounded by that")
	var parts int
	u := indexed{Index: x, plan: func(ranges []transport.Range) { parts = len(ranges) }}
	for i := range x.Frames() {
		want := 0
		for j := i; j < min(i+planFrames, x.Frames()); j++ {
			want += len(x.Ranges(j))
		}
		u.announce(i)
		require.Equal(t, want, parts, "frame %d", i)
	}
}

// A frame may be several leaves, and an installation go on inside it: what is there is not
// handed out again, and each leaf of the rest alone and proven by its own digest.
func TestFramesOfSeveralLeaves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		data := content(7, rootSize)
		r := &made{blobs: map[manifest.Digest][]byte{}}
		img := manifest.Image{Name: "root.img", Type: manifest.TypeSlot, Target: "root", Content: r.tree(data)}
		var blob bytes.Buffer
		_, err := mkdelta.MakeFull(ctx, mkdelta.Image{ReaderAt: bytes.NewReader(data), Size: img.Size}, mkdelta.Options{Level: 1, FrameSize: 4 * leaf, Workers: 1}, &blob)
		require.NoError(t, err)
		p := payload{Payload: manifest.Payload{Kind: manifest.KindFull, Blob: r.blob(blob.Bytes())}, image: img}
		step := u.watch("test", stepTime)
		defer step.done()
		for from := int64(0); ; from = min(from+leaf, img.Size) {
			got := data[:from:from]
			src := &source{w: d.w, r: r}
			err := u.rebuild(ctx, src, p, from, nil, r.blobs[img.Tree], step, func(b []byte) error {
				require.Len(t, b, int(min(leaf, img.Size-int64(len(got)))))
				got = append(got, b...)
				return nil
			})
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, got), "from %d", from)
			if from == img.Size {
				require.Zero(t, src.moved, "nothing is left to be done")
				return
			}
		}
	})
}

// A manifest that does not fit into the slot record is refused by that name before a slot
// is touched; one that just fits is not, and goes on to be asked for in TUF.
func TestManifestFitsIntoSlotRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		before := d.ops()
		for size, fits := range map[int]bool{partition.MaxEnvelope: true, partition.MaxEnvelope + 1: false} {
			r := *d.w.by["2.0.0"]
			r.envelope = append(bytes.Clone(r.envelope), bytes.Repeat([]byte(" "), size-len(r.envelope))...)
			err := u.Install(ctx, &source{w: d.w, r: &r}, Options{})
			if fits {
				require.ErrorContains(t, err, "TUF target")
			} else {
				require.ErrorIs(t, err, manifest.ErrTooLarge)
			}
			require.Equal(t, before, d.ops(), "nothing is written")
		}
	})
}

// Where the boot record comes to name the other slot while this one runs, nothing goes into
// that slot and nobody vouches for this one: a person has to look.
func TestRecordTurnsToTheOtherSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		require.NoError(t, u.p.Record.Save(bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK}))
		before := d.ops()
		require.ErrorIs(t, d.install(u, "2.0.0", Options{Force: true}), ErrAlarm)
		require.ErrorIs(t, u.Rollback(ctx, true), ErrAlarm)
		require.ErrorIs(t, u.Commit(ctx), ErrAlarm)
		require.Equal(t, before, d.ops(), "nothing is written")
	})
}

// A floor that rises above a release that is on trial already ends the trial, and no
// operator can commit it.
func TestFloorRisesDuringTrial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for floor, want := range map[uint64]string{0: "2.0.0", 1: "1.0.0"} {
			d := newDevice(t, "1.0.0", "")
			require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
			u := d.powerOn()
			u.change(func(j *journal.Journal) { j.EpochFloor = floor })
			if floor > 0 {
				require.ErrorIs(t, u.Commit(ctx), ErrEpoch)
			}
			require.NoError(t, u.Resume(ctx))
			require.Equal(t, want, d.start().running.Manifest.Version)
			if floor > 0 {
				require.Equal(t, "refused", d.verdict().Reason)
			}
		}
	})
}

// What is tried again is so after a pause that doubles up to the longest; what is new ends
// the series.
func TestPauseDoubles(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, p := range []*pause{{}, {next: retryMost}} {
			if p.next > 0 {
				p.now()
				require.NotNil(t, p.c)
			}
			for want := retryFirst; want < retryMost; want *= 2 {
				require.Equal(t, want, p.later())
			}
			for range 3 {
				begin := time.Now()
				require.Equal(t, retryMost, p.later())
				<-p.c
				require.Equal(t, retryMost, time.Since(begin))
			}
		}
	})
}

// Tries are counted from none to all, whatever journal and boot record say of each other;
// and what was committed was tried at least once, if it was a trial.
func TestTriesUsedAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := newDevice(t, "1.0.0", "0.9.0").start()
		begin := func(tries, used int) {
			u.change(func(j *journal.Journal) {
				j.State, j.Update = string(Trial), &journal.Update{ID: "a", Manifest: u.running.Digest, Version: "1.0.0", Slot: "a", Tries: tries, Used: used}
			})
		}
		for _, c := range []struct{ tries, used, want int }{{3, 0, 1}, {3, 1, 1}, {3, 2, 2}, {0, 0, 0}} {
			begin(c.tries, c.used)
			u.conclude(transport.Committed, "", "", "")
			require.Equal(t, c.want, u.Last().Tries, "%d of %d in the journal", c.used, c.tries)
		}
		for left, want := range map[int]int{0: 2, 1: 1, 2: 0, 3: 0} {
			begin(2, 0)
			record := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: left}
			require.NoError(t, u.reverted(record, Reverted))
			require.Equal(t, want, u.Last().Used, "%d of 2 left, after the trial", left)
		}

		d := newDevice(t, "1.0.0", "")
		d.sick["2.0.0"] = "works"
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u = d.powerOn()
		u.change(func(j *journal.Journal) { j.Update.Tries = 1 })
		require.NoError(t, u.Resume(ctx))
		require.Zero(t, u.journal().Update.Used, "2 of 1 left, in the trial")
	})
}

// The latest time that anybody who counts has named stays: a statement may raise it, and
// an older one does not lower it.
func TestTimeFloorOnlyRises(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newDevice(t, "1.0.0", "").follow()
		f.want(1, f.desired("1.0.0"))
		require.Equal(t, today.Unix(), f.u.journal().TimeFloor)
		later := today.Add(time.Hour).Unix()
		f.u.change(func(j *journal.Journal) { j.TimeFloor = later })
		f.want(2, f.desired("1.0.0"))
		require.EqualValues(t, 2, f.u.journal().Counter)
		require.Equal(t, later, f.u.journal().TimeFloor)
		f.stop()
	})
}

// Nothing is left of a trial whose deadline is past. One without a window ends with the
// first good round, however late that is.
func TestEndsOfTheTrial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		require.NoError(t, d.install(d.start(), "2.0.0", Options{}))
		u := d.powerOn()
		for up, want := range map[time.Duration]time.Duration{0: 10 * time.Second, 9 * time.Second: time.Second, 10 * time.Second: 0, time.Hour: 0} {
			u.p.Uptime = func() time.Duration { return up }
			require.Equal(t, want, u.untilDeadline(), "up for %s", up)
		}
		u.running.Manifest.Trial.WindowSeconds = 0
		rounds := 0
		u.p.Uptime, u.p.Check = nil, func(context.Context, manifest.Check) health.Result {
			rounds++
			return health.Result{OK: true}
		}
		require.NoError(t, u.Resume(ctx))
		d.settled(u, "2.0.0")
		require.Equal(t, 1, rounds, "the link does not count")
	})
}

// noticing is a source, a fleet, a boot record and a store, each of which is asked only
// while a lock keeps others from what it is asked for.
type noticing struct {
	*source
	bootctl.Store
	files journal.Store
	u     *Updater
	held  func(lock *sync.Mutex, name string)
}

func (n noticing) Wants() <-chan transport.Want    { return nil }
func (n noticing) Source(manifest.Digest) Source   { return n }
func (n noticing) Get(name string) ([]byte, error) { return n.files.Get(name) }

func (n noticing) Put(name string, data []byte) error {
	if name == "journal" {
		n.held(&n.u.mu, name)
	}
	return n.files.Put(name, data)
}

func (n noticing) Metadata(ctx context.Context, name string) ([]byte, error) {
	n.held(&n.u.tuf, "metadata of an installation, or a statement")
	return n.source.Metadata(ctx, name)
}

func (n noticing) Save(r bootctl.Record) error {
	if r.Good == n.u.running.Slot && r.Trying == "" {
		n.held(&n.u.deciding, "commit")
	}
	return n.Store.Save(r)
}

// What two must not do at once is done with its lock held: asking TUF, ending a trial, and
// saving the journal.
func TestLocksAreHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		times := map[string]int{}
		held := func(lock *sync.Mutex, name string) {
			times[name]++
			if lock.TryLock() {
				lock.Unlock()
				t.Error("not locked: ", name)
			}
		}
		u := d.start()
		n := noticing{source: d.w.source("2.0.0"), files: u.p.Store, u: u, held: held}
		u.p.Store = n
		desired := transport.Desired{Manifest: string(d.w.by["2.0.0"].digest), Version: "2.0.0"}
		require.NoError(t, u.accept(ctx, n, d.w.statement(t, me, 1, desired)))
		asked := times["metadata of an installation, or a statement"]
		require.Positive(t, asked)
		require.NoError(t, u.Install(ctx, n, Options{}))
		require.Greater(t, times["metadata of an installation, or a statement"], asked)

		u = d.powerOn()
		n = noticing{Store: u.record.store, files: u.p.Store, u: u, held: held}
		u.record.store, u.p.Store = n, n
		require.NoError(t, u.Resume(ctx))
		require.Equal(t, 1, times["commit"])
		require.Greater(t, times["journal"], 5)
		d.settled(u, "2.0.0")
	})
}
