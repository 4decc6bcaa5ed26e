package disktest

import (
	"hash/maphash"
)

// sums tell states apart by what the disks hold, without looking at all of it for
// each state: the sum of a disk is that of its sectors, so that a sector which
// differs is taken out and put in again.
type sums struct {
	place [][]int32 // by disk and sector: 1-based index into the slices below; 0 if no write touches it
	// By place: what the medium holds, and what the state at hand has there, which
	// counts if turn is that of the state.
	durable, now []uint64
	turns        []int
	disk         []uint64 // by disk
	turn         int
}

// seed is one for the process, so that sums of different benches can be compared.
var seed = maphash.MakeSeed()

// broken stands for a sector that cannot be read.
const broken = 0x6272_6f6b_656e

// mix is the number of a sector's content at its place.
func mix(disk int, sector int64, content uint64) uint64 {
	return maphash.Comparable(seed, [3]uint64{uint64(disk), uint64(sector), content})
}

func contentOf(b []byte) uint64 { return maphash.Bytes(seed, b) }

// newSums sums the media of b before its log.
func newSums(b *Bench, log []Op) *sums {
	s := &sums{}
	for i, d := range b.disks {
		var sum uint64
		for at := 0; at < len(d.base); at += Sector {
			sum += mix(i, int64(at/Sector), s.base(d, int64(at/Sector)))
		}
		s.disk = append(s.disk, sum)
		s.place = append(s.place, make([]int32, len(d.base)/Sector))
	}
	s.durable = []uint64{0}
	for _, op := range log {
		if op.Kind != Write {
			continue
		}
		at, _ := b.disks[op.Disk].around(op.Off / Sector)
		_, end := b.disks[op.Disk].around(op.Off/Sector + int64(op.sectors()) - 1)
		for ; at < end; at++ {
			if s.place[op.Disk][at] == 0 {
				s.place[op.Disk][at] = int32(len(s.durable))
				s.durable = append(s.durable, s.base(b.disks[op.Disk], at))
			}
		}
	}
	s.now, s.turns = make([]uint64, len(s.durable)), make([]int, len(s.durable))
	return s
}

func (s *sums) base(d *Disk, sector int64) uint64 {
	if d.baseBad[sector] {
		return broken
	}
	return contentOf(d.base[sector*Sector:][:Sector])
}

// settle notes what the medium holds at a place from now on.
func (s *sums) settle(p pending) {
	at := s.place[p.disk][p.sector]
	s.disk[p.disk] += mix(p.disk, p.sector, p.sum) - mix(p.disk, p.sector, s.durable[at])
	s.durable[at] = p.sum
}

// differ sets what the fates of a state add to the sums of the media.
func (s *sums) differ(c *Crash) {
	s.turn++
	clear(c.differs)
	for p, f := range c.changed() {
		at := s.place[p.disk][p.sector]
		before := s.durable[at]
		if s.turns[at] == s.turn {
			before = s.now[at]
		}
		after := p.sum
		switch f {
		case noise:
			if p.noise == 0 {
				p.noise = contentOf(content(*p, noise))
			}
			after = p.noise
		case unreadable:
			after = broken
		}
		if before != after {
			c.differs[p.disk] += mix(p.disk, p.sector, after) - mix(p.disk, p.sector, before)
			s.now[at], s.turns[at] = after, s.turn
		}
	}
}
