package updater

import (
	"bytes"
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// chosen is what the last installation chose for each image.
func (d *device) chosen() (all []string) {
	for _, e := range d.events {
		switch e.Phase {
		case "verified":
			all = nil
		case "chosen":
			all = append(all, e.Text)
		}
	}
	return all
}

// texts are those of the events of one phase.
func (d *device) texts(phase string) (all []string) {
	for _, e := range d.events {
		if e.Phase == phase {
			all = append(all, e.Text)
		}
	}
	return all
}

// of returns the payload of an image in a release.
func (r *made) of(image, kind string) manifest.Payload {
	img, _ := r.m.Image(image)
	for _, p := range img.Payloads {
		if p.Kind == kind {
			return p
		}
	}
	return manifest.Payload{}
}

// A device whose system is the base of no delta takes the index payloads, without leave for
// whole images: it downloads what it has in neither slot, and says why.
func TestIndexWhereNoDeltaFits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, spare := range []string{"", "0.9.0", "2.0.0"} {
			d := newDevice(t, "1.0.0", spare)
			u := d.start()
			require.NoError(t, d.install(u, "3.3.0-index", Options{}))
			require.Len(t, d.chosen(), 2)
			for _, text := range d.chosen() {
				require.Contains(t, text, ": index of ")
				require.Contains(t, text, "no delta that fits starts from 1.0.0")
			}
			require.Less(t, d.moved, int64(rootSize*2/3), "a leaf around the index, and what is missing")
			require.Equal(t, d.moved, u.Cost().Downloaded, "the index counts, too")
			require.Equal(t, int64(rootSize+bootSize), u.Cost().Written+u.Cost().Skipped)
			d.settled(d.start(), "3.3.0-index")
			require.Equal(t, transport.Committed, d.verdict().Result)
			require.Equal(t, d.moved, d.verdict().Bytes)
		}

		// A delta that fits is taken unseen.
		d := newDevice(t, "2.0.0", "")
		require.NoError(t, d.install(d.start(), "3.3.0-index", Options{Full: transport.FullGo}))
		require.Contains(t, d.chosen()[1], ": delta of ")
		require.NotContains(t, d.phases(), "comparing")
	})
}

// What the spare slot has already is neither downloaded nor written.
func TestIndexFindsSpareSlot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "3.3.0-index")
		u := d.start()
		require.NoError(t, d.install(u, "3.3.0-index", Options{}))
		require.Zero(t, u.Cost().Written)
		require.Less(t, d.moved, int64(2*leaf+bootSize), "the index, and what is in its leaf")
		d.settled(d.start(), "3.3.0-index")
	})
}

// Where the slots hold too little, an index payload is a whole image by another name:
// policy has to allow it, and then the smaller of the two is taken.
func TestIndexIsNoQuietFullDownload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, policy := range []string{"", transport.FullFail, transport.FullWait} {
			d := newDevice(t, "1.0.0", "0.9.0")
			err := d.install(d.start(), "3.5.0-alien", Options{Full: policy})
			require.ErrorIs(t, err, ErrNoDelta)
			require.ErrorContains(t, err, "1.0.0 in slot a has too little of it")
			require.Zero(t, d.ops(), "nothing is written")
			require.Less(t, d.moved, int64(2*leaf+bootSize), "only the indexes were read")
		}
		d := newDevice(t, "1.0.0", "0.9.0")
		require.NoError(t, d.install(d.start(), "3.5.0-alien", Options{Full: transport.FullGo}))
		require.Contains(t, d.chosen()[1], ": full of ")
		require.Contains(t, d.chosen()[1], "too little for the index payload")
		d.settled(d.start(), "3.5.0-alien")

		// With leave, too, an index payload that costs less is taken.
		d = newDevice(t, "1.0.0", "0.9.0")
		require.NoError(t, d.install(d.start(), "3.3.0-index", Options{Full: transport.FullGo}))
		require.Contains(t, d.chosen()[1], ": index of ")
	})
}

// An index payload that needs more memory than allowed is none, as any other.
func TestIndexOverMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		u.p.Memory = theWorld().by["3.3.0-index"].of("root.img", manifest.KindIndex).Memory - 1
		require.ErrorIs(t, d.install(u, "3.3.0-index", Options{}), ErrNoDelta)
		require.Zero(t, d.ops())
		require.NoError(t, d.install(u, "3.3.0-index", Options{Full: transport.FullGo}))
		require.Contains(t, d.chosen()[1], ": full of ")
	})
}

// metered is a source with a byte budget.
type metered struct {
	*source
	budget int64
}

func (m metered) Left() (int64, bool) { return m.budget - m.moved, m.budget > 0 }

// What an index payload costs is known before the first byte is written. Above the budget
// it is refused by name, with both numbers, and for good; at the budget it is taken.
func TestIndexOverBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		require.NoError(t, d.install(d.start(), "3.3.0-index", Options{}))
		// What came after the slots were compared, but for lists of leaves.
		need := d.moved
		var tree int64
		for _, img := range d.w.by["3.3.0-index"].m.Images {
			tree += img.TreeSize()
		}
		for budget, want := range map[int64]error{need - tree: nil, need - tree - 1: ErrBudget, 0: nil} {
			d := newDevice(t, "1.0.0", "0.9.0")
			err := d.start().Install(ctx, metered{d.w.source("3.3.0-index"), budget}, Options{})
			if want == nil {
				require.NoError(t, err)
				continue
			}
			require.ErrorIs(t, err, want)
			require.ErrorContains(t, err, "root.img")
			require.ErrorContains(t, err, "bytes more")
			require.True(t, permanent(err))
			require.Zero(t, d.ops(), "nothing is written")
		}
	})
}

// planned is a source that wants to know what will be read.
type planned struct {
	*source
	t    *testing.T
	plan map[manifest.Digest][]transport.Range
	kept int // reads that were planned
}

func (p *planned) Plan(blob manifest.Digest, ranges []transport.Range) {
	p.plan = map[manifest.Digest][]transport.Range{blob: ranges}
	for i, r := range ranges {
		require.Positive(p.t, r[1])
		require.True(p.t, i == 0 || r[0] >= ranges[i-1][0]+ranges[i-1][1], "offsets rise")
	}
}

func (p *planned) ReadRange(ctx context.Context, blob manifest.Digest, off int64, b []byte) (int, error) {
	if ranges, ok := p.plan[blob]; ok {
		require.Contains(p.t, ranges, transport.Range{off, int64(len(b))}, "blob %s", blob)
		p.kept++
	}
	return p.source.ReadRange(ctx, blob, off, b)
}

// A source that reads ahead is told of every unit before it is read.
func TestIndexIsPlanned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		src := &planned{source: d.w.source("3.3.0-index"), t: t}
		require.NoError(t, d.start().Install(ctx, src, Options{}))
		require.Greater(t, src.kept, 5)
		d.settled(d.start(), "3.3.0-index")
	})
}

// What is planned is enough for a fast link, or all that is missing, and no more than a
// frame above that: the source keeps what it has read ahead in memory.
func TestIndexPlanIsBounded(t *testing.T) {
	const size, step = 5 << 20, 4 * leaf
	var blob bytes.Buffer
	_, err := mkblocks.Make(ctx, mkblocks.Image{ReaderAt: bytes.NewReader(alien(1, size)), Size: size}, mkblocks.Options{FrameSize: step, Window: step, Workers: 1}, &blob)
	require.NoError(t, err)
	x, err := blocks.Open(bytes.NewReader(blob.Bytes()), int64(blob.Len()), blocks.Limits{Memory: memory, Size: size})
	require.NoError(t, err)
	var planned int64
	r := indexed{Index: x, plan: func(ranges []transport.Range) {
		planned = 0
		for _, part := range ranges {
			planned += part[1]
		}
	}}
	for i := range x.Frames() {
		r.announce(i)
		require.GreaterOrEqual(t, planned, min(planBytes, x.Missing(i)), "frame %d", i)
		require.Less(t, planned, int64(planBytes+step+leaf), "frame %d", i)
	}
}

// Interrupted anywhere, by the link or by a reboot, an index payload goes on where it was
// durable: the index is read again, and of the units what lies behind.
func TestIndexInterrupted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		whole := newDevice(t, "1.0.0", "0.9.0")
		require.NoError(t, whole.install(whole.start(), "3.3.0-index", Options{}))
		for _, reboot := range []bool{false, true} {
			for stop := int64(4096); stop < whole.moved; stop += 5 * 4096 {
				d := newDevice(t, "1.0.0", "0.9.0")
				u := d.start()
				src := d.w.source("3.3.0-index")
				src.onRead = func(manifest.Digest, int64, []byte) error {
					if src.moved > stop {
						return syscall.ECONNRESET
					}
					return nil
				}
				require.ErrorIs(t, u.Install(ctx, src, Options{}), syscall.ECONNRESET)
				require.Empty(t, d.verdicts, "it is not over")
				if reboot {
					u = d.start()
				}
				require.NoError(t, d.install(u, "3.3.0-index", Options{}))
				again := int64(leaf + bootSize + 4096) // what lies around the indexes
				require.LessOrEqual(t, stop+d.moved, whole.moved+every+again+2*leaf, "after %d bytes", stop)
				cost := u.Cost()
				require.Equal(t, int64(rootSize+bootSize), cost.Written+cost.Skipped, "each byte once")
				d.settled(d.start(), "3.3.0-index")
			}
		}
	})
}

// A source that lies about index or units gets no byte of it into a slot that boots. It is
// asked again, and then counts as a source that lies: it is no fault of the release, and
// an honest one is taken afterwards.
func TestIndexLyingSource(t *testing.T) {
	bubble(t, func(t *testing.T) {
		blob := theWorld().by["3.3.0-index"].of("root.img", manifest.KindIndex).Blob
		noticed := 0
		for at := int64(5); at < blob.Size; at += 9001 {
			for _, always := range []bool{true, false} {
				d := newDevice(t, "1.0.0", "0.9.0")
				u := d.start()
				src := d.w.source("3.3.0-index")
				lies := 0
				src.onRead = func(b manifest.Digest, off int64, p []byte) error {
					if b == blob.Digest && off <= at && at < off+int64(len(p)) && (always || lies == 0) {
						p[at-off] ^= 0x10
						lies++
					}
					return nil
				}
				err := u.Install(ctx, src, Options{})
				if lies == 0 || !always {
					require.NoError(t, err, "what is not needed, or wrong once")
					d.settled(d.start(), "3.3.0-index")
					continue
				}
				noticed++
				require.ErrorIs(t, err, transport.ErrLeaf)
				require.Equal(t, indexTries, lies)
				require.False(t, permanent(err))
				require.NotEqual(t, "3.3.0-index", d.holds(bootctl.B))
				require.Empty(t, u.journal().Failed, "it is not the release's fault")
				require.NoError(t, d.install(u, "3.3.0-index", Options{}))
				d.settled(d.start(), "3.3.0-index")
			}
		}
		require.Greater(t, noticed, 5)
	})
}

// A running slot that has rotted is no base for a delta, and still good for an index
// payload, which takes from it what is sound; nobody has to allow that.
func TestIndexForRottenBase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		noticed := 0
		for at := int64(4096 + 17); at < rootSize; at += leaf {
			d := newDevice(t, "1.0.0", "")
			d.root(bootctl.A).Flip(at, 3)
			u := d.startUnverified()
			require.NoError(t, d.install(u, "3.4.0-both", Options{}))
			if texts := d.chosen(); len(texts) > 2 {
				noticed++
				require.Contains(t, d.phases(), "damaged")
				require.Contains(t, texts[2], ": index of ")
				require.Contains(t, texts[2], "only what is sound")
			}
			d.mend(bootctl.A, "1.0.0")
			d.settled(d.start(), "3.4.0-both")
		}
		require.GreaterOrEqual(t, noticed, 3)
	})
}

// A slot that rots after it was compared, or cannot be read at all, makes the download
// larger. What is written is proven either way.
func TestIndexSlotsFail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		rots := &rots{Slots: u.p.Slots}
		u.p.Slots = rots
		src := d.w.source("3.3.0-index")
		src.onRead = func(manifest.Digest, int64, []byte) error {
			rots.now = u.journal().Update != nil // after both were compared
			return nil
		}
		require.NoError(t, u.Install(ctx, src, Options{}))
		require.Greater(t, src.moved, int64(rootSize))
		d.settled(d.start(), "3.3.0-index")

		d = newDevice(t, "1.0.0", "0.9.0")
		u = d.start()
		u.p.Slots = unreadable{u.p.Slots, bootctl.B}
		require.NoError(t, d.install(u, "3.3.0-index", Options{}))
		require.Contains(t, d.phases(), "damaged")
		d.settled(d.start(), "3.3.0-index")

		d = newDevice(t, "1.0.0", "")
		u = d.start()
		u.p.Slots = unreadable{u.p.Slots, bootctl.A}
		require.ErrorIs(t, d.install(u, "3.3.0-index", Options{}), ErrNoDelta)
		require.Contains(t, strings.Join(d.texts("damaged"), "\n"), "root.img in slot a")
	})
}

// slow is slots whose root file systems take their time while they are compared.
type slow struct {
	Slots
	u    *Updater
	read func()
}

type slowDisk struct {
	Disk
	s slow
}

func (s slow) Read(slot bootctl.Slot, role string) (Disk, error) {
	d, err := s.Slots.Read(slot, role)
	return slowDisk{d, s}, err
}

func (d slowDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < rootSize && d.s.u.journal().Update == nil {
		d.s.read()
	}
	return d.Disk.ReadAt(p, off)
}

// Comparing slow slots takes as long as it takes, and feeds the watchdog; a slot that no
// longer answers does not.
func TestIndexComparingIsWatched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		end := u.guarded(t)
		begin := time.Now()
		u.p.Slots = slow{u.p.Slots, u, func() { time.Sleep(stepTime * 2 / 3) }}
		require.NoError(t, d.install(u, "3.3.0-index", Options{}))
		require.Greater(t, time.Since(begin), 2*stepTime)
		require.Empty(t, end)
		u.p.Keeper.Stop()
	})
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		end, done, c := u.guarded(t), make(chan error, 1), make(chan struct{})
		u.p.Slots = slow{u.p.Slots, u, func() { <-c }}
		go func() { done <- d.install(u, "3.3.0-index", Options{}) }()
		require.ErrorContains(t, <-end, "comparing boot.img")
		close(c)
		require.NoError(t, <-done)
	})
}

// Who cancels while the slots are compared does not wait for that.
func TestIndexCancelledWhileComparing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "0.9.0")
		u := d.start()
		u.p.Slots = slow{u.p.Slots, u, func() { _ = u.Cancel() }}
		require.ErrorIs(t, d.install(u, "3.3.0-index", Options{}), ErrCancelled)
		require.Zero(t, d.ops())
	})
}

// rots is slots whose root file systems turn over in every third block.
type rots struct {
	Slots
	now bool
}

type rottenDisk struct {
	Disk
	rots *rots
}

func (r *rots) Read(slot bootctl.Slot, role string) (Disk, error) {
	d, err := r.Slots.Read(slot, role)
	return rottenDisk{d, r}, err
}

func (d rottenDisk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Disk.ReadAt(p, off)
	for i := range p[:n] {
		if at := off + int64(i); d.rots.now && at < rootSize && at%(3*4096) == 99 {
			p[i] ^= 1
		}
	}
	return n, err
}

// unreadable is slots of which one cannot be read, but for its record.
type unreadable struct {
	Slots
	slot bootctl.Slot
}

type unreadableDisk struct{ Disk }

func (u unreadable) Read(slot bootctl.Slot, role string) (Disk, error) {
	d, err := u.Slots.Read(slot, role)
	if slot == u.slot && role == "root" {
		d = unreadableDisk{d}
	}
	return d, err
}

func (d unreadableDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < rootSize {
		return 0, syscall.EIO
	}
	return d.Disk.ReadAt(p, off)
}
