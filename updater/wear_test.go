package updater

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// What an update may write: the blocks in which the spare slot differs from the new
// system, with some room for a block that a power cut makes it write twice, and as many
// bytes as so many sectors of flash have for what is kept about it: slot record, boot
// record, journal, the log of the trial, the release metadata and the boot log.
//
// A block is what partition.Writer compares and writes, 4 KiB; a sector of flash is as
// large. That bar is about bytes. A write of 512 bytes programs a whole page of flash all
// the same, so pages are counted too, each as often as a write touches it: that is what
// such flash would program at most. Nobody promised a number; wearPages is what it was when
// this was written, in the worst case.
//
// Not in it: what the data partition's file system writes about the files (names, sizes,
// its own journal; here journal and trial log are on a disk of their own, where a device
// replaces files), and the ledger's log on a board with a TPM, which gets 512 bytes for
// each attempt in each of its copies.
const (
	wearRatio  = 1.05
	wearSector = partition.BlockSize
	wearSpare  = 8 * wearSector
	wearPages  = 32
)

// wear is what was written to the disks of a device, in bytes by what it is for.
type wear struct {
	images, record, boot, journal, tuf, log int64
	syncs                                   int
	pages                                   int64 // that all of it but images touched, once for each write
}

func (w wear) metadata() int64 { return w.record + w.boot + w.journal + w.tuf + w.log }

func (w wear) String() string {
	return fmt.Sprintf("images %d, slot record %d, boot record %d, journal and trial log %d, release metadata %d, boot log %d; %d pages beside images, %d syncs",
		w.images, w.record, w.boot, w.journal, w.tuf, w.log, w.pages, w.syncs)
}

// pages is how many sectors of flash a write touches.
func pages(off, n int64) int64 {
	if n == 0 {
		return 0
	}
	return (off+n-1)/wearSector - off/wearSector + 1
}

// worn adds up what a bench has recorded.
func (d *device) worn(log []disktest.Op) wear {
	var w wear
	for _, op := range log {
		n := int64(len(op.Data))
		touched := pages(op.Off, n)
		switch {
		case op.Kind == disktest.Sync:
			w.syncs++
		case op.Disk == envDisk:
			w.boot += n
		case op.Disk == dataDisk:
			w.journal += n
		case (op.Disk == rootA || op.Disk == rootB) && op.Off >= d.disks[op.Disk].Size()-partition.RecordSize:
			w.record += n
		default:
			w.images += n
			touched = 0
		}
		w.pages += touched
	}
	return w
}

// noted adds what the boots of a device leave in its boot log, of which those before the
// first were there already: the lines of the first program, and the one of the agent that
// restarts the machine on purpose (here at every boot; it is not on the bench).
func (w *wear) noted(t *testing.T, attempts []bootreport.Attempt, first int) {
	path := filepath.Join(t.TempDir(), "attempts")
	size := int64(0)
	note := func(i int, a bootreport.Attempt) {
		require.NoError(t, bootreport.Append(path, a))
		info, err := os.Stat(path)
		require.NoError(t, err)
		if info.Size() < size {
			size = 0 // it was full, and is written anew
		}
		if i >= first {
			w.log += info.Size() - size
			w.pages += pages(size, info.Size()-size)
		}
		size = info.Size()
	}
	for i, a := range attempts {
		note(i, a)
		if a.Stage == bootreport.StageSwitched {
			a.Stage, a.Cause = bootreport.StageClean, "boot the new system"
			note(i, a)
		}
	}
}

// changed is how many bytes of blocks a slot has that differ from a release.
func (d *device) changed(s bootctl.Slot, version string) int64 {
	var sum int64
	for role, image := range d.w.by[version].images {
		if role != "boot" && role != "root" {
			continue
		}
		have := make([]byte, len(image))
		n, err := d.part(s, role).ReadMedium(have, 0)
		require.NoError(d.t, err)
		require.Len(d.t, image, n)
		for at := 0; at < len(image); at += partition.BlockSize {
			end := min(at+partition.BlockSize, len(image))
			if !bytes.Equal(have[at:end], image[at:end]) {
				sum += int64(end - at)
			}
		}
	}
	return sum
}

// Flash lives as long as little is written to it. From the fleet's order to the commit,
// agent, loader (that counts a try) and first program (that notes a boot) write the blocks
// that change and a few sectors about the update; so it is where the link breaks or the
// program ends in the middle of it, since a block that is right is not written again.
func TestWearOfUpdate(t *testing.T) {
	breaks := func(times int) func(s *source) {
		n := 0
		return func(s *source) {
			s.onRead = func(manifest.Digest, int64, []byte) error {
				if n < times && s.moved > leaf/2 {
					n++
					return syscall.ECONNRESET
				}
				return nil
			}
		}
	}
	dead := func(s *source) {
		s.onRead = func(manifest.Digest, int64, []byte) error {
			if s.moved > leaf/2 {
				return syscall.ECONNREFUSED
			}
			return nil
		}
	}
	stalls := func(s *source) {
		s.onRead = func(manifest.Digest, int64, []byte) error { s.block = s.moved > 2*leaf; return nil }
	}
	var ratio float64
	var spare, most int64
	for _, c := range []struct {
		name, runs, spare, goal string
		meets                   func(s *source)
		restarts                int
	}{
		{"by deltas, into a new slot", "1.0.0", "", "2.0.0", nil, 0},
		{"by deltas, over an older system", "1.0.0", "0.9.0", "2.0.0", nil, 0},
		{"by deltas, over the same system", "1.0.0", "2.0.0", "2.0.0", nil, 0},
		{"by indexes, over an older system", "1.0.0", "0.9.0", "3.3.0-index", nil, 0},
		{"by indexes, all of it new", "1.0.0", "0.9.0", "3.5.0-alien", nil, 0},
		{"in full, into a new slot", "1.0.0", "", "4.0.0-full", nil, 0},
		{"in full, over an older system", "1.0.0", "0.9.0", "4.0.0-full", nil, 0},
		{"in full, and the link breaks five times", "1.0.0", "0.9.0", "4.0.0-full", breaks(5), 0},
		{"by deltas, and the link breaks three times", "1.0.0", "0.9.0", "2.0.0", breaks(3), 0},
		{"in full, and the program is started again twice", "1.0.0", "0.9.0", "4.0.0-full", stalls, 2},
		{"in full, and the server does not answer for a week", "1.0.0", "0.9.0", "4.0.0-full", dead, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newDevice(t, c.runs, c.spare).follow()
				f.stop()
				var tuf, put int64
				meter := func(data []byte) { tuf, put = tuf+int64(len(data)), put+pages(0, int64(len(data))) }
				f.on(meter)
				changed, log := f.changed(f.u.spare(), c.goal), f.disks[0].Bench()
				before, boots := len(log.Log()), len(f.attempts)
				tuf, put = 0, 0
				f.serves(c.meets)
				order := f.desired(c.goal)
				order.Full = transport.FullGo
				f.want(1, order)
				time.Sleep(7 * 24 * time.Hour)
				for i := range c.restarts {
					if i+1 == c.restarts {
						f.serves(nil)
					}
					f.stop()
					f.on(meter)
					synctest.Wait()
				}
				f.serves(nil)
				time.Sleep(time.Hour)
				f.stop()
				f.u = f.powerOn()
				f.meters(meter)
				f.u.running.Manifest.Trial.WindowSeconds, f.u.running.Manifest.Trial.DeadlineSeconds = 600, 1200
				require.NoError(t, f.u.Resume(ctx))
				f.settled(f.u, c.goal)
				f.again()
				time.Sleep(time.Hour) // what is written after a commit counts
				f.stop()

				w := f.worn(log.Log()[before:])
				w.tuf, w.pages = tuf, w.pages+put
				w.noted(t, f.attempts, boots)
				for what, n := range map[string]int64{"slot record": w.record, "boot record": w.boot, "journal": w.journal, "release metadata": w.tuf, "boot log": w.log} {
					require.Positive(t, n, what)
				}
				t.Logf("changed %d; written: %s", changed, w)
				require.LessOrEqual(t, float64(w.images), wearRatio*float64(changed))
				require.LessOrEqual(t, float64(w.images+w.metadata()), wearRatio*float64(changed)+wearSpare)
				if changed > 0 {
					ratio = max(ratio, float64(w.images)/float64(changed))
				}
				require.LessOrEqual(t, w.pages, int64(wearPages))
				spare, most = max(spare, w.metadata()), max(most, w.pages)
			})
		})
	}
	t.Attr("wear-ratio-worst", fmt.Sprintf("%.3f", ratio))
	t.Attr("wear-metadata-sectors-worst", fmt.Sprintf("%.1f", float64(spare)/wearSector)) // bytes, in sectors of 4 KiB
	t.Attr("wear-metadata-pages-worst", fmt.Sprint(most))                                 // of 4 KiB, touched by a write
}

// counting is a store of release metadata that tells what is written.
type counting struct {
	memoryStore
	put func(data []byte)
}

func (c counting) Put(name string, data []byte) error {
	c.put(data)
	return c.memoryStore.Put(name, data)
}

// on starts the program and has it follow its fleet.
func (f *following) on(put func(data []byte)) {
	f.u = f.start()
	f.meters(put)
	f.again()
}

// meters has the program's store of release metadata tell what it writes, and lets it
// download as much between two checkpoints as on a device.
func (f *following) meters(put func(data []byte)) {
	var err error
	f.u.p.TUF, err = trust.Open(counting{f.tuf, put}, f.w.anchor)
	require.NoError(f.t, err)
	f.u.p.Checkpoint = 4 << 20
}

// The agent of a device that has nothing to do writes nothing, for months: not when the
// link comes and goes, not when the broker repeats its order on every connection, not when
// the device is switched off and on; and just so where it refused the order, or waits for
// leave to follow it. Nor does the loader. A boot leaves two lines in the boot log: the
// first program's, that it runs and that it hands over.
func TestIdleDeviceWritesNothing(t *testing.T) {
	const days = 30
	written, worst := 0, int64(0)
	for _, c := range []struct {
		name, wants string
		full        string
		sick        string
	}{
		{"it runs what it should", "1.0.0", "", ""},
		{"it was updated", "2.0.0", "", ""},
		{"it refused an older release", "0.9.0", transport.FullGo, ""},
		{"it waits for leave to go in full", "3.0.0", transport.FullWait, ""},
		{"it went back from a bad release", "2.0.0", "", "2.0.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := newDevice(t, "1.0.0", "")
				d.sick[c.sick] = "works"
				f := d.follow()
				order := f.desired(c.wants)
				order.Full = c.full
				statement := f.w.statement(t, me, 1, order)
				f.wants <- statement
				time.Sleep(time.Hour)
				f.stop()
				writes := 0
				count := func([]byte) { writes++ }
				f.on(count)
				time.Sleep(time.Hour)

				before, boots, noted := f.ops(), f.boots, len(f.attempts)
				for day := range days {
					for range 6 {
						f.linkUp = false
						time.Sleep(11 * time.Minute)
						f.linkUp = true
						f.wants <- statement
						time.Sleep(4*time.Hour - 11*time.Minute)
					}
					require.Equal(t, before, f.ops(), "day %d", day)
					require.Zero(t, writes, "metadata, day %d", day)
					f.stop()
					f.on(count)
				}
				f.stop()
				require.Equal(t, days, f.boots-boots)
				written += f.ops() - before + writes
				require.Zero(t, written)
				require.Len(t, f.attempts[noted:], 2*days, "lines in the boot log")
				var w wear
				w.noted(t, f.attempts, noted)
				worst = max(worst, (w.log+days-1)/days)
				require.Less(t, worst, int64(wearSector/2))
			})
		})
	}
	t.Attr("idle-days", fmt.Sprint(days))
	t.Attr("idle-writes", fmt.Sprint(written))       // of the agent and the loader
	t.Attr("idle-boot-log-bytes", fmt.Sprint(worst)) // of the first program, in one boot; and of the agent, if it restarts the machine
}
