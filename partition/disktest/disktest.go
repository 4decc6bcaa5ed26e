// Package disktest is a disk that loses power.
//
// Its [Disk] satisfies partition.Disk. It keeps what is written in a volatile
// cache until Sync, as real disks do, and records every write and sync. After
// the code under test has run once, [Bench.Crashes] goes through the states in
// which a power cut at any moment of that run could have left the disks:
//
//	bench := disktest.NewBench()
//	disk := bench.Disk(make([]byte, 1<<20))
//	save(disk)                                   // the code under test
//	for crash := range bench.Crashes(disktest.Bounds{}) {
//		disk := crash.Disks()[0]             // a machine that was switched on again
//		require.True(t, oldOrNew(load(disk)), "%s", crash)
//	}
//
// The loop ends by itself when no state is left. A state prints as one line,
// such as `cut=7 n128o3x1`; with DISKTEST set to that line, only this state is
// visited:
//
//	DISKTEST='cut=7 n128o3x1' go test -run TestSavePowerCut
//
// A test may put words of its own before the line, with ": " between.
//
// # What can happen
//
// A sector is 512 bytes, the unit in which a host addresses the disk. Each sector of
// each write that was not followed by a completed Sync of its disk has one of
// four fates: old (lost), new (kept), noise or unreadable (destroyed under the
// write). They are independent of the order of the writes, because a cache
// writes back as it likes. Several disks on one bench lose power together and
// sync apart. The states that are visited, within [Bounds]: everything lost,
// everything kept, the write in flight torn at each of its sectors with and
// without the sector under the head destroyed, each single write lost or kept
// alone, all subsets of few writes, all subsets of few sectors, and seeded
// samples where there are more.
//
// Most disks and all flash write larger units, and write a sector by reading the rest
// of its unit and writing that again. With [Disk.SetUnit] a cut can also destroy a whole
// unit in which a sector was pending, with sectors that nobody wrote, and a write of a
// part of a unit that cannot be read fails.
//
// With [Disk.Inject] an operation fails with an error, once or for good, a read
// flips a bit or goes astray, a Sync lies, any of them takes its time or is the last
// one. A failed Sync behaves as Linux does: part of what was pending is lost, the
// cache goes on showing it, and the next Sync succeeds.
//
// # What it does not do
//
// Sectors that were synced never change by themselves, except by [Disk.Flip].
// Erase blocks, wear, misdirected writes, and disks whose sectors are larger than 512
// bytes for the host too, are not modelled.
package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Sector is what is written whole, or not at all, or is destroyed; in bytes. Disks with
// larger units destroy more (see Disk.SetUnit).
const Sector = 512

// ErrPower is what every operation returns after the cut that Bench.CutAt set.
var ErrPower = errors.New("disktest: no power")

// Kind is what an operation does.
type Kind string

// The kinds of operation. Reads are counted for faults but not recorded.
const (
	Read  Kind = "read"
	Write Kind = "write"
	Sync  Kind = "sync"
)

// Op is one recorded operation.
type Op struct {
	Disk int // as in Bench.Disks
	Kind Kind
	// Off and Data are what the cache held after a write, in whole sectors.
	Off  int64
	Data []byte

	lied bool   // a Sync that did nothing and said that it did
	kept []bool // of a Sync that failed: which pending sectors of its disk made it
}

// sectors returns the number of sectors that a write covers.
func (o Op) sectors() int { return len(o.Data) / Sector }

// Bench is a machine: disks on one power supply, with one log. Its methods and
// those of its disks may be called from several goroutines.
type Bench struct {
	mu    sync.Mutex
	disks []*Disk
	log   []Op
	cutAt int    // 0: never
	dead  bool   // the last operation of the log was in flight
	off   bool   // nothing is in flight, and nothing is done any more
	calm  bool   // faults do not happen
	seen  []int  // disks in the order in which they were read first
	path  string // the crashes that led here
}

// NewBench returns a bench without disks.
func NewBench() *Bench { return &Bench{} }

// New returns a disk on a bench of its own.
func New(content []byte) *Disk { return NewBench().Disk(content) }

// Disk adds a disk that holds content, durably. Its size must be a whole number
// of sectors. Add all disks before the first operation.
func (b *Bench) Disk(content []byte) *Disk {
	if len(content)%Sector != 0 {
		panic(fmt.Sprintf("disktest: disk of %d bytes, which is no whole number of sectors", len(content)))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.log) > 0 {
		panic("disktest: disk added after the first operation")
	}
	content = bytes.Clone(content)
	d := &Disk{
		bench: b, index: len(b.disks), base: content, view: content, unit: 1,
		stale: make(map[int64][]byte), bad: make(map[int64]bool), baseBad: make(map[int64]bool),
	}
	b.disks = append(b.disks, d)
	return d
}

// Disks returns the disks in the order in which they were added.
func (b *Bench) Disks() []*Disk { return b.disks }

// Ops returns the number of writes and syncs that were completed. A promise that
// was made when Ops returned n must hold in every Crash whose Cut is at least n.
func (b *Bench) Ops() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.completed()
}

func (b *Bench) completed() int {
	if b.dead {
		return len(b.log) - 1
	}
	return len(b.log)
}

// Log returns the operations so far, the one in flight at a cut included.
func (b *Bench) Log() []Op {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Op(nil), b.log...)
}

// CutAt makes the n-th write or sync (1-based, over all disks) and all that
// follows, reads included, fail with ErrPower.
func (b *Bench) CutAt(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cutAt = n
}

// Halt ends everything now, as a reset does: what follows fails with ErrPower.
func (b *Bench) Halt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off = true
}

// Seen returns the disks that were read since the bench was made, in the order in
// which they were read first. Code that depends on nothing else does the same for all
// states in which these disks have the same [Crash.Sum].
func (b *Bench) Seen() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.seen)
}

// Cut says whether the cut that CutAt set has happened; if not, the code under
// test had fewer operations, and a loop over n is done.
func (b *Bench) Cut() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dead
}

// Revive ends a cut as if only the program had died: caches keep what they had,
// unsynced writes stay unsynced, the operation in flight did not happen.
func (b *Bench) Revive() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead {
		b.log = b.log[:len(b.log)-1]
	}
	b.dead, b.off, b.cutAt = false, false, 0
}

// down tells that nothing is done any more, until Revive.
func (b *Bench) down() bool { return b.dead || b.off }

// begin counts a write or sync; false means that there is no power.
func (b *Bench) begin(op Op) bool {
	if b.down() {
		return false
	}
	b.log = append(b.log, op)
	b.dead = b.cutAt > 0 && len(b.log) >= b.cutAt
	return !b.dead
}

// Disk is a disk with a volatile cache. It satisfies partition.Disk and
// partition.Medium.
type Disk struct {
	bench *Bench
	index int
	base  []byte // content when the log was empty
	view  []byte // what reads see; the same memory as base until the first write
	// stale holds, by sector number, what the medium has where a failed Sync lost
	// what the cache still shows.
	stale   map[int64][]byte
	bad     map[int64]bool // sectors that cannot be read until they are written
	baseBad map[int64]bool // those of base
	faults  []*Fault
	unit    int64 // sectors that it writes at once
}

// Bench returns the bench that the disk is on.
func (d *Disk) Bench() *Bench { return d.bench }

// SetUnit makes the disk write units of so many bytes, a whole number of sectors: what is
// less is written by reading the rest of its unit. A machine after a crash has disks with
// the same units. To be called before the first operation.
func (d *Disk) SetUnit(bytes int64) {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	if bytes < Sector || bytes%Sector != 0 || len(d.bench.log) > 0 {
		panic(fmt.Sprintf("disktest: unit of %d bytes after %d operations", bytes, len(d.bench.log)))
	}
	d.unit = bytes / Sector
}

// around returns the first sector of the unit in which a sector lies, and the one after
// its last.
func (d *Disk) around(sector int64) (first, end int64) {
	first = sector / d.unit * d.unit
	return first, min(first+d.unit, d.Size()/Sector)
}

// Size returns the size in bytes.
func (d *Disk) Size() int64 { return int64(len(d.base)) }

// Bytes returns a copy of what reads see.
func (d *Disk) Bytes() []byte {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	return bytes.Clone(d.view)
}

// ReadAt reads through the cache.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) { return d.read(p, off, false) }

// ReadMedium reads past the cache: it shows what a failed Sync lost.
func (d *Disk) ReadMedium(p []byte, off int64) (int, error) { return d.read(p, off, true) }

func (d *Disk) read(p []byte, off int64, medium bool) (int, error) {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	if d.bench.down() {
		return 0, ErrPower
	}
	if off < 0 {
		return 0, fmt.Errorf("disktest: read at %d", off)
	}
	if !slices.Contains(d.bench.seen, d.index) {
		d.bench.seen = append(d.bench.seen, d.index)
	}
	fault := d.fault(Read)
	if d.bench.down() {
		return 0, ErrPower
	}
	if fault != nil && fault.Err != nil {
		return 0, fault.Err
	}
	if fault != nil && fault.Astray != 0 && off+fault.Astray >= 0 && off+fault.Astray+int64(len(p)) <= d.Size() {
		off += fault.Astray
	}
	if off >= int64(len(d.view)) {
		return 0, io.EOF
	}
	n := copy(p, d.view[off:])
	for s := off / Sector; s*Sector < off+int64(n); s++ {
		if d.bad[s] {
			return int(max(0, s*Sector-off)), errUnreadable
		}
		if old, ok := d.stale[s]; ok && medium {
			from := max(off, s*Sector)
			copy(p[from-off:n], old[from-s*Sector:])
		}
	}
	if fault != nil && fault.Astray == 0 && n > 0 {
		bit := fault.Flip % int64(n*8)
		p[bit/8] ^= 1 << (bit % 8)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes into the cache.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(d.view)) {
		return 0, fmt.Errorf("disktest: write %d bytes at %d of %d", len(p), off, len(d.view))
	}
	var failed error
	if fault := d.fault(Write); fault != nil {
		// An error in the middle: what came before it was taken.
		p, failed = p[:len(p)/2/Sector*Sector], fault.Err
	}
	if len(p) == 0 {
		if d.bench.down() {
			return 0, ErrPower
		}
		return 0, failed
	}
	first, last := off/Sector, (off+int64(len(p))-1)/Sector
	whole := bytes.Clone(d.view[first*Sector : (last+1)*Sector])
	begin, _ := d.around(first)
	_, end := d.around(last)
	for s := begin; s < end; s++ {
		if partly := off > s*Sector || off+int64(len(p)) < (s+1)*Sector; partly && d.bad[s] {
			return 0, errUnreadable // a part of a unit is written by reading the rest
		}
	}
	copy(whole[off-first*Sector:], p)
	if !d.bench.begin(Op{Disk: d.index, Kind: Write, Off: first * Sector, Data: whole}) {
		return 0, ErrPower
	}
	d.unshare()
	copy(d.view[first*Sector:], whole)
	for s := first; s <= last; s++ {
		delete(d.stale, s)
		delete(d.bad, s)
	}
	return len(p), failed
}

// unshare comes before a change of the view. Most states of a crash are only
// looked at, and a copy for each would be most of a test's time.
func (d *Disk) unshare() {
	if len(d.view) > 0 && &d.view[0] == &d.base[0] {
		d.view = bytes.Clone(d.base)
	}
}

// Sync makes what was written durable.
func (d *Disk) Sync() error {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	fault := d.fault(Sync)
	op := Op{Disk: d.index, Kind: Sync, lied: fault != nil && fault.Lie}
	if fault != nil && !fault.Lie {
		op.kept = d.lose(fault.Seed)
	}
	if !d.bench.begin(op) {
		return ErrPower
	}
	if op.lied {
		return nil
	}
	if fault != nil {
		return fault.Err
	}
	return nil
}

// DropCache makes later reads show what the medium has.
func (d *Disk) DropCache() error {
	d.bench.mu.Lock()
	defer d.bench.mu.Unlock()
	d.unshare()
	for s, old := range d.stale {
		copy(d.view[s*Sector:], old)
	}
	clear(d.stale)
	return nil
}
