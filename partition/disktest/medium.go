package disktest

import (
	"bytes"
	"maps"
)

// pending is one sector of a write that may be lost.
type pending struct {
	disk   int
	sector int64
	data   []byte
	write  int // index into the log
	sum    uint64
	noise  uint64 // of what it holds if it was destroyed; 0 until somebody asks
}

func (o Op) pending(index int) []pending {
	list := make([]pending, o.sectors())
	for s := range list {
		data := o.Data[s*Sector : (s+1)*Sector]
		list[s] = pending{disk: o.Disk, sector: o.Off/Sector + int64(s), data: data, write: index, sum: contentOf(data)}
	}
	return list
}

// medium is what the disks of a bench hold while their log is played again.
type medium struct {
	durable [][]byte
	bad     []map[int64]bool
	pending []pending // in the order of the log
	sums    *sums     // nil where nobody compares states
}

// start returns the media as they were when the log was empty.
func (b *Bench) start() *medium {
	m := &medium{}
	for _, d := range b.disks {
		m.durable = append(m.durable, bytes.Clone(d.base))
		m.bad = append(m.bad, maps.Clone(d.baseBad))
	}
	return m
}

// apply plays one completed operation.
func (m *medium) apply(index int, op Op) {
	switch {
	case op.Kind == Write:
		m.pending = append(m.pending, op.pending(index)...)
	case op.Kind == Sync && !op.lied:
		var others []pending
		n := 0
		for _, p := range m.pending {
			if p.disk != op.Disk {
				others = append(others, p)
				continue
			}
			if op.kept == nil || op.kept[n] {
				copy(m.durable[p.disk][p.sector*Sector:], p.data)
				delete(m.bad[p.disk], p.sector)
				if m.sums != nil {
					m.sums.settle(p)
				}
			}
			n++
		}
		m.pending = others
	}
}
