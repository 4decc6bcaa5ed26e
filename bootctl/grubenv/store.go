package grubenv

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tandem-ota/tandem/bootctl"
)

// ErrReadBack means that the medium does not hold what was written although no
// write failed. The storage is failing; no trial may be started on it.
var ErrReadBack = errors.New("medium holds other bytes than were written")

// Store is the record on an environment partition. It is not safe for use by
// two goroutines at once; two processes are kept apart by whoever opens the
// partition.
type Store struct {
	d Disk
	// unsure is the copy that a Save of this Store could not finish, -1 if none.
	// What the page cache says about it need not be what the medium holds, so
	// the next Save writes it again and leaves the other one alone.
	unsure int
}

// Open returns the Store on the environment partition d. It reads nothing yet.
func Open(d Disk) *Store { return &Store{d: d, unsure: -1} }

// Location tells where one copy is and what is in it, for `updater status` and
// `updater doctor`.
type Location struct {
	Name    string // "copy 0", "copy 1", "confirmed copy"
	Offset  int64  // bytes from the start of the partition
	Content Copy   // zero if Err is not nil
	Newest  bool   // the loader acts on this one
	Err     error  // why the copy cannot be used; wraps ErrGarbled or is the read error
	Padding error  // the block's second sector is not as grub-editenv expects; GRUB does not mind
}

var places = [3]Location{
	{Name: "copy 0", Offset: Copy0Offset},
	{Name: "copy 1", Offset: Copy1Offset},
	{Name: "confirmed copy", Offset: ConfirmedOffset},
}

const confirmedCopy = 2

// Copies reads all three copies: 0, 1 and the confirmed one.
func (s *Store) Copies() [3]Location {
	all := places
	for i := range all {
		l := &all[i]
		// Twice before a copy is given up: taking the newer one for garbled
		// because of one bad transfer would let Save write over it.
		if l.Content, l.Err = s.readCopy(l.Offset); l.Err != nil {
			l.Content, l.Err = s.readCopy(l.Offset)
		}
		padding := make([]byte, BlockSize-SectorSize)
		if err := read(s.d, padding, l.Offset+SectorSize); err != nil {
			l.Padding = err
		} else if !bytes.Equal(padding, paddingSector) {
			l.Padding = fmt.Errorf("%w: second sector is not empty", ErrGarbled)
		}
	}
	if i := newest(all); i >= 0 {
		all[i].Newest = true
	}
	return all
}

func (s *Store) readCopy(at int64) (Copy, error) {
	sector := make([]byte, SectorSize)
	if err := read(s.d, sector, at); err != nil {
		return Copy{}, err
	}
	return Parse(sector)
}

var paddingSector = bytes.Repeat([]byte("#"), BlockSize-SectorSize)

// newest returns which of copies 0 and 1 is in effect, -1 if neither is whole.
// Copies of the same generation, which no sequence of saves leaves behind, are
// decided for copy 0; so are two whose order cannot be told.
func newest(all [3]Location) int {
	switch {
	case all[0].Err != nil && all[1].Err != nil:
		return -1
	case all[0].Err != nil:
		return 1
	case all[1].Err == nil && all[1].Content.Generation == after(all[0].Content.Generation):
		return 1
	}
	return 0
}

// after returns the generation that follows g.
func after(g int) int { return (g + 1) % generations }

// Load returns the record that GRUB would act on now; see bootctl.Store. Copies
// that cannot be used, a confirmed copy that names another slot than the record
// and a damaged file system are listed in Degraded.
func (s *Store) Load() (bootctl.Record, error) {
	all := s.Copies()
	var r bootctl.Record
	current := newest(all)
	if current >= 0 {
		r = all[current].Content.Record
	}
	for _, l := range all {
		if l.Err != nil {
			r.Degraded = append(r.Degraded, fmt.Errorf("%s: %w", l.Name, l.Err))
		}
		if l.Padding != nil {
			r.Degraded = append(r.Degraded, fmt.Errorf("%s: %w", l.Name, l.Padding))
		}
	}
	if all[0].Err == nil && all[1].Err == nil && all[0].Content.Generation == all[1].Content.Generation {
		r.Degraded = append(r.Degraded, fmt.Errorf("%w: copies 0 and 1 claim the same generation", ErrGarbled))
	}
	if all[confirmedCopy].Err == nil {
		r.Confirmed = all[confirmedCopy].Content.Record.Good
		if current >= 0 && r.Confirmed != r.Good {
			r.Degraded = append(r.Degraded, fmt.Errorf("confirmed copy: names slot %s, the record slot %s", r.Confirmed, r.Good))
		}
	}
	if err := s.checkMeta(); err != nil {
		r.Degraded = append(r.Degraded, err)
	}
	if current < 0 {
		return r, fmt.Errorf("load boot record: %w", errors.Join(append([]error{bootctl.ErrNoRecord}, r.Degraded...)...))
	}
	return r, nil
}

// Save writes r over the older copy, syncs it and reads it back, then does the
// same with the confirmed copy unless that names r.Good already.
//
// On nil, r is what GRUB acts on, and it was read back from the medium.
// After an error, the old or the new record is in effect.
// Calling it again with the same record is safe.
//
// Damage that Load reports is repaired on the way.
func (s *Store) Save(r bootctl.Record) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("save boot record: %w", err)
	}
	// Before the record: a damaged file system keeps GRUB from counting tries,
	// so it has to be whole when the record says that a trial is on. The bytes
	// are constant, and a power cut leaves at worst the damage that was there.
	if err := s.repair(); err != nil {
		return fmt.Errorf("save boot record: %w", err)
	}
	all := s.Copies()
	if s.unsure >= 0 {
		all[s.unsure].Err = fmt.Errorf("%w: not saved", ErrGarbled)
	}
	current := newest(all)
	// A disk that does not answer says nothing about what it holds. One copy that
	// cannot be read is a sector that a power cut destroyed, and is written over.
	if e0, e1 := all[0].Err, all[1].Err; current < 0 && !errors.Is(e0, ErrGarbled) && !errors.Is(e1, ErrGarbled) {
		return fmt.Errorf("save boot record: neither copy can be read: %w", errors.Join(e0, e1))
	}

	// Never touch the newer copy: it is what GRUB would use if the power failed
	// in the middle of this write.
	target, gen := 0, 0
	if current >= 0 {
		target = 1 - current
		gen = after(all[current].Content.Generation)
	}
	if err := s.writeCopy(all[target], Copy{Record: r, Generation: gen}); err != nil {
		s.unsure = target
		return fmt.Errorf("save boot record: %s: %w", all[target].Name, err)
	}
	s.unsure = -1

	// Neither copy was whole: nobody can have relied on the other one, and one
	// copy alone would not survive the next torn write. Or its second sector is damaged,
	// and it is not in effect any more.
	if other := all[1-target]; current < 0 || other.Padding != nil {
		if err := s.writeCopy(other, Copy{Record: r, Generation: after(gen)}); err != nil {
			s.unsure = 1 - target
			return fmt.Errorf("save boot record: %s: %w", other.Name, err)
		}
	}

	// After the record: a power cut in between leaves a confirmed copy that
	// names the former good slot. That slot still holds its image, because nobody
	// writes to it before a Save that marks it bad has returned, and that Save
	// comes through here.
	if c := all[confirmedCopy]; c.Err != nil || c.Padding != nil || c.Content.body() != confirmed(r.Good).body() {
		if err := s.writeCopy(c, confirmed(r.Good)); err != nil {
			return fmt.Errorf("save boot record: confirmed copy: %w", err)
		}
	}
	return nil
}

// unit is what disks, and the page cache, may write at once at most, in bytes. They write
// a sector by reading what is around it, and fail if that cannot be read.
const unit = 4096

// writeCopy makes the copy at l hold c: one sector, synced, read back. The rest of its
// unit is constant, and mended only with the copy: alone, it could take a copy that is in
// effect along when the power fails.
func (s *Store) writeCopy(l Location, c Copy) error {
	whole := append(c.Block(), make([]byte, unit-BlockSize)...)
	rest := make([]byte, unit-SectorSize)
	if err := read(s.d, rest, l.Offset+SectorSize); err != nil || !bytes.Equal(rest, whole[SectorSize:]) {
		return s.write(whole, l.Offset)
	}
	return s.write(whole[:SectorSize], l.Offset)
}

// write makes the medium hold p at byte at.
func (s *Store) write(p []byte, at int64) error {
	if _, err := s.d.WriteAt(p, at); err != nil {
		return err
	}
	if err := s.d.Sync(); err != nil {
		return err
	}
	back := make([]byte, len(p))
	if err := read(s.d, back, at); err != nil {
		return err
	}
	if !bytes.Equal(back, p) {
		return fmt.Errorf("%w at byte %d", ErrReadBack, at)
	}
	return nil
}

func (s *Store) checkMeta() error {
	for _, m := range metaSectors {
		if err := s.check(m); err != nil {
			return fmt.Errorf("file system of the environment partition: %w", err)
		}
	}
	return nil
}

// check requires that the medium holds m.
func (s *Store) check(m sector) error {
	have := make([]byte, len(m.bytes))
	if err := read(s.d, have, m.at); err != nil {
		return err
	}
	if !bytes.Equal(have, m.bytes) {
		return fmt.Errorf("%w: sector at byte %d", ErrGarbled, m.at)
	}
	return nil
}

// repair restores the file system, which is constant: of a damaged sector the whole unit,
// since what cannot be read is written only as a whole.
func (s *Store) repair() error {
	for _, m := range metaSectors {
		if s.check(m) == nil {
			continue
		}
		start := m.at / unit * unit
		whole := make([]byte, unit)
		for _, near := range metaSectors {
			if start <= near.at && near.at < start+unit {
				copy(whole[near.at-start:], near.bytes)
			}
		}
		if err := s.write(whole, start); err != nil {
			return fmt.Errorf("file system of the environment partition: %w", err)
		}
	}
	return nil
}

// read reads all of p from the medium if the disk can read past its cache: GRUB
// sees the medium, and what a failed sync lost is still in the cache.
func read(d Disk, p []byte, at int64) error {
	readAt := d.ReadAt
	if m, ok := d.(interface {
		ReadMedium(p []byte, off int64) (int, error)
	}); ok {
		readAt = m.ReadMedium
	}
	if n, err := readAt(p, at); n < len(p) {
		return err
	}
	return nil
}
