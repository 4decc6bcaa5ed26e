package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// The slot of these tests: an old image and record, and a new image that shares
// some blocks with it and ends in the middle of a leaf.
const (
	slotSize  = 4 * LeafSize
	imageSize = 2*LeafSize + 3*BlockSize + 512
	every     = 2 // leaves between checkpoints
)

var (
	oldRecord = Record{Envelope: []byte(`{"release":"old"}`)}
	newRecord = Record{Envelope: []byte(`{"release":"new","of":"` + strings.Repeat("several sectors", 80) + `"}`)}
)

// Made once and never written: disktest copies.
var (
	oldSlot  = makeOldSlot()
	newImage = makeNewImage()
	leaves   = digests(newImage)
)

func makeOldSlot() []byte {
	slot := noise(1, slotSize)
	if err := WriteRecord(memory(slot), oldRecord); err != nil {
		panic(err)
	}
	return slot
}

func makeNewImage() []byte {
	image := bytes.Clone(oldSlot[:imageSize])
	copy(image[2*BlockSize:], noise(2, 3*BlockSize))
	copy(image[LeafSize-BlockSize:], noise(3, 2*BlockSize))
	copy(image[2*LeafSize+BlockSize:], noise(4, 2*BlockSize+512))
	return image
}

func digests(image []byte) []byte {
	var list []byte
	for off := 0; off < len(image); off += LeafSize {
		sum := sha256.Sum256(image[off:min(off+LeafSize, len(image))])
		list = append(list, sum[:]...)
	}
	return list
}

// install does what the updater does with the spare slot, from an offset that an
// earlier run promised, and reports each promise.
func install(d Disk, from int64, promise func(int64)) (Counters, error) {
	if from == 0 {
		if err := EraseRecord(d); err != nil {
			return Counters{}, err
		}
	}
	w := NewWriter(d, imageSize, from)
	for n := 1; w.Offset() < imageSize; n++ {
		off := w.Offset()
		if err := w.WriteLeaf(newImage[off:min(off+LeafSize, imageSize)]); err != nil {
			return w.Counters(), err
		}
		if n%every == 0 {
			durable, err := w.Checkpoint()
			if err != nil {
				return w.Counters(), err
			}
			promise(durable)
		}
	}
	if err := w.Finish(); err != nil {
		return w.Counters(), err
	}
	promise(imageSize)
	if err := ReadBack(context.Background(), d, imageSize, leaves, nil); err != nil {
		return w.Counters(), err
	}
	return w.Counters(), WriteRecord(d, newRecord)
}

// promises is the journal of these tests: what was promised, and after how many
// operations of the disk.
type promises struct {
	disk *disktest.Disk
	list []struct {
		ops    int
		offset int64
	}
}

func (p *promises) add(offset int64) {
	p.list = append(p.list, struct {
		ops    int
		offset int64
	}{p.disk.Bench().Ops(), offset})
}

// at returns the last promise that had been made when the power failed.
func (p *promises) at(cut int) (offset int64) {
	for _, q := range p.list {
		if q.ops <= cut {
			offset = q.offset
		}
	}
	return offset
}

// requireHonest checks what must be true of the slot at any moment: a record
// speaks the truth, promised bytes are there, and nothing else was touched.
func requireHonest(t *testing.T, d *disktest.Disk, promised int64, state fmt.Stringer) {
	t.Helper()
	slot := make([]byte, slotSize)
	readable := true
	if _, err := d.ReadAt(slot, 0); err != nil {
		readable = false // a sector was destroyed: then there must be no claim about it
	}
	switch r, err := ReadRecord(d); {
	case err != nil && (errors.Is(err, ErrNoRecord) || !readable):
	case err != nil:
		require.NoError(t, err, "%s", state)
	case bytes.Equal(r.Envelope, oldRecord.Envelope):
		got := make([]byte, imageSize)
		_, err := d.ReadAt(got, 0)
		require.NoError(t, err, "%s", state)
		require.True(t, bytes.Equal(oldSlot[:imageSize], got), "%s: the old record speaks of another image", state)
	default:
		require.Equal(t, newRecord, r, "%s", state)
		require.NoError(t, ReadBack(context.Background(), d, imageSize, leaves, nil), "%s", state)
	}
	got := make([]byte, promised)
	_, err := d.ReadAt(got, 0)
	require.NoError(t, err, "%s", state)
	require.True(t, bytes.Equal(newImage[:promised], got), "%s: %d bytes were promised", state, promised)
	between := make([]byte, slotSize-RecordSize-imageSize)
	_, err = d.ReadAt(between, imageSize)
	if err == nil && imageSize%disktest.Sector == 0 {
		require.True(t, bytes.Equal(oldSlot[imageSize:slotSize-RecordSize], between), "%s: wrote behind the image", state)
	}
}

// The power may fail at any operation of an installation, and anything that was
// not synced may be lost, torn or destroyed. What is left never lies; and the
// installation goes on from its last checkpoint, or one that is older, to the
// new image, also if the power fails once more.
func TestInstallPowerCut(t *testing.T) {
	d := disktest.New(oldSlot)
	journal := &promises{disk: d}
	count, err := install(d, 0, journal.add)
	require.NoError(t, err)
	require.EqualValues(t, imageSize, count.Written+count.Skipped)
	end := d.Bench().Ops()
	states, nested := 0, 0
	for crash := range d.Bench().Crashes(disktest.Bounds{}) {
		states++
		promised := journal.at(crash.Cut)
		requireHonest(t, crash.Disks()[0], promised, crash)
		if crash.Cut >= end {
			r, err := ReadRecord(crash.Disks()[0])
			require.NoError(t, err, "%s", crash)
			require.Equal(t, newRecord, r, "%s", crash)
		}
		// The journal is a hint that may be one step behind.
		after := crash.Disks()[0]
		resumed := &promises{disk: after}
		resumed.add(promised)
		_, err := install(after, promised/(every*LeafSize)*(every*LeafSize), resumed.add)
		require.NoError(t, err, "%s", crash)
		requireHonest(t, after, imageSize, crash)
		if states%25 != 0 {
			continue
		}
		for again := range after.Bench().Crashes(disktest.Bounds{Samples: 2, Writes: 2}) {
			nested++
			requireHonest(t, again.Disks()[0], resumed.at(again.Cut), again)
		}
	}
	// A test that explores nothing passes too: notice if it ever does.
	require.Greater(t, states, 300)
	require.Greater(t, nested, 2000)
	t.Logf("%d states, %d of a second cut", states, nested)
}

// The program may be killed at any operation while the power stays on. What it
// wrote is then in the cache and looks right, and is promised only after a sync.
func TestInstallKilled(t *testing.T) {
	for n := 1; ; n++ {
		d := disktest.New(oldSlot)
		journal := &promises{disk: d}
		d.Bench().CutAt(n)
		_, err := install(d, 0, journal.add)
		if !d.Bench().Cut() {
			require.NoError(t, err)
			require.Greater(t, n, 8)
			return
		}
		require.ErrorIs(t, err, disktest.ErrPower)
		d.Bench().Revive()
		restart := d.Bench().Ops()
		_, err = install(d, journal.at(restart)/(every*LeafSize)*(every*LeafSize), journal.add)
		require.NoError(t, err)
		for crash := range d.Bench().Crashes(disktest.Bounds{From: restart, Writes: 2, Samples: 4}) {
			requireHonest(t, crash.Disks()[0], journal.at(crash.Cut), crash)
		}
	}
}

// Any operation may fail, once or for good. The error is passed on; once the
// disk works again the installation goes on from the last promise, and what it
// then calls done is on the medium, whatever a failed sync threw away.
func TestInstallFaults(t *testing.T) {
	for _, kind := range []disktest.Kind{disktest.Read, disktest.Write, disktest.Sync} {
		for _, fault := range []disktest.Fault{{Err: syscall.EIO}, {Err: syscall.EIO, Seed: 7}, {Err: syscall.ENOSPC, Sticky: true}} {
			for n := 1; ; n++ {
				d := disktest.New(oldSlot)
				fault.Op, fault.At = kind, n
				d.Inject(fault)
				journal := &promises{disk: d}
				_, err := install(d, 0, journal.add)
				if !d.Fired() {
					require.NoError(t, err)
					require.Greater(t, n, 2, "%s", kind)
					break
				}
				if kind != disktest.Read || err != nil {
					// A read that fails before a write is no reason to give up: the
					// write may mend the sector.
					require.ErrorIs(t, err, fault.Err, "%s %d", kind, n)
				}
				d.Heal()
				_, err = install(d, journal.at(d.Bench().Ops()), journal.add)
				require.NoError(t, err, "%s %d", kind, n)
				for crash := range d.Bench().Crashes(disktest.Bounds{From: d.Bench().Ops()}) {
					requireHonest(t, crash.Disks()[0], imageSize, crash)
					r, err := ReadRecord(crash.Disks()[0])
					require.NoError(t, err, "%s %d: %s", kind, n, crash)
					require.Equal(t, newRecord, r)
				}
			}
		}
	}
}

// A bit that is read wrong can make a good slot look bad, but never a bad one
// good: the record is written only if what was read back was right.
func TestInstallReadsWrong(t *testing.T) {
	for n := 1; ; n++ {
		d := disktest.New(oldSlot)
		d.Inject(disktest.Fault{Op: disktest.Read, At: n, Flip: int64(n * 1237)})
		_, err := install(d, 0, func(int64) {})
		if !d.Fired() {
			require.NoError(t, err)
			return
		}
		if err != nil {
			require.ErrorIs(t, err, ErrMismatch, "read %d", n)
			continue
		}
		require.NoError(t, ReadBack(context.Background(), d, imageSize, leaves, nil), "read %d", n)
	}
}
