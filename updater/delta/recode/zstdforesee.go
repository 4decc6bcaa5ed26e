package recode

import (
	"encoding/binary"
	"fmt"
)

// Moved says where a part of the old content is in the new one: from Old on,
// until the next one begins, at New.
type Moved struct{ Old, New int }

// Foreseen is a run of blocks in the form of ZstdMatches.
type Foreseen struct {
	Expand []byte // parameters for the old blocks
	Old    int    // bytes that Expand makes
	Pack   []byte // parameters for the new blocks
	Extra  []byte // what comes after content and old matches in the plain form
}

// OldMatches is what the matches of old blocks were: what Expand makes of them, in its two parts.
type OldMatches struct {
	Records, Long []byte
	Start         int // where the first block's content begins, in positions of Moved
}

// Foresee writes down how the matches of blocks from ≤ i < to differ from those
// that the matches of old blocks let expect. content is that of the whole run s,
// moved ascends in both positions, which count from the beginning of either run.
//
// It returns ErrUnsupported if the blocks cannot be written so. The caller is
// to try that Pack gives the blocks.
func (s *ZstdBlocks) Foresee(from, to int, content []byte, old *ZstdBlocks, oldFrom, oldTo int, moved []Moved) (*Foreseen, error) {
	expand, matches, err := old.Matches(oldFrom, oldTo)
	if err != nil {
		return nil, fmt.Errorf("old matches: %w", err)
	}
	f, err := s.ForeseeFrom(from, to, content, matches, moved)
	if err != nil {
		return nil, err
	}
	f.Expand = expand
	return f, nil
}

// ForeseeFrom is Foresee from matches that the caller has put together; it leaves Expand to it.
func (s *ZstdBlocks) ForeseeFrom(from, to int, content []byte, old OldMatches, moved []Moved) (*Foreseen, error) {
	f := &Foreseen{Old: len(old.Records) + len(old.Long)}
	var c Coder
	a, b := &s.blocks[from], &s.blocks[to]
	expand, head := s.Params(from, to, true)
	room := make([]byte, s.Room(from, to))
	n, err := c.Expand(Zstd, expand, s.src[a.at:b.at], room)
	if err != nil {
		return nil, fmt.Errorf("new matches: %w", err)
	}
	columns, _ := placeZstd(room[:n], 0, b.sequences-a.sequences, b.control-a.control)

	breaks := writeMap(moved, old.Start, a.content, old.Records, old.Long)
	w := new(matchWalk)
	out := newRangeWriter()
	w.reset(out, content[a.content:b.content], a.reps)
	w.old.records, w.old.long = old.Records, old.Long
	if err := w.old.readMap(breaks); err != nil {
		return nil, fmt.Errorf("map: %w", ErrUnsupported)
	}
	if err := s.write(w, from, to, &columns); err != nil {
		return nil, err
	}
	control := room[columns.control:][:b.control-a.control]
	f.Extra = append(append(append(f.Extra, control...), breaks...), out.close()...)

	// The same tables as in the other form, but other numbers behind them.
	f.Pack = append(f.Pack, head[:len(expand)]...)
	for _, v := range a.reps {
		f.Pack = binary.AppendUvarint(f.Pack, uint64(v))
	}
	for _, v := range []int{b.content - a.content, len(old.Records), len(old.Long), len(control), len(breaks)} {
		f.Pack = binary.AppendUvarint(f.Pack, uint64(v))
	}
	return f, nil
}

// Matches returns what the matches of blocks from ≤ i < to are, and the parameters for Expand that make them.
func (s *ZstdBlocks) Matches(from, to int) (expand []byte, m OldMatches, err error) {
	a, b := &s.blocks[from], &s.blocks[to]
	expand, _ = s.Params(from, to, true)
	for _, v := range a.reps {
		expand = binary.AppendUvarint(expand, uint64(v))
	}
	room := make([]byte, s.Room(from, to))
	n, err := new(Coder).Expand(ZstdMatches, expand, s.src[a.at:b.at], room)
	if err != nil {
		return nil, OldMatches{}, err
	}
	records := zstdRecord * (b.sequences - a.sequences)
	return expand, OldMatches{Records: room[:records:records], Long: room[records:n], Start: a.content}, nil
}

// Join appends the matches of blocks of another frame, whose content follows. rest is how many bytes of content the
// matches of m leave behind the last one, which now stand before the first of next: its literal length
// grows. It returns how many bytes of next.Long were replaced, and by how many.
func (m *OldMatches) Join(next OldMatches, rest int) (replaced, by int) {
	at := len(m.Records)
	m.Records = append(m.Records, next.Records...)
	long := next.Long
	if len(next.Records) > 0 {
		first := m.Records[at : at+zstdRecord]
		n := int(first[0])
		if n == zstdLong {
			n, long, replaced = get24(long), long[3:], 3
		}
		if n += rest; n < zstdLong {
			first[0] = byte(n)
		} else {
			first[0], by = zstdLong, 3
			m.Long = append(m.Long, byte(n), byte(n>>8), byte(n>>16))
		}
	}
	m.Long = append(m.Long, long...)
	return replaced, by
}

// Cut returns the matches whose targets begin in [from, to) of the content, how many bytes of records and long lengths are
// in front of them, and how much of the content these stand for.
func (m *OldMatches) Cut(from, to int) (cut OldMatches, records, long, content int) {
	o := oldMatches{records: m.Records, long: m.Long}
	at, endRecords, endLong := 0, 0, 0
	for len(o.records) >= zstdRecord {
		l, k := int(o.records[0]), int(o.records[1])
		o.records = o.records[zstdRecord:]
		if l == zstdLong {
			l = o.takeLong()
		}
		if k == zstdLong {
			k = o.takeLong()
		}
		begin := at + l
		if begin >= to {
			break
		}
		at = begin + k + 3
		endRecords, endLong = len(m.Records)-len(o.records), len(m.Long)-len(o.long)
		if begin < from {
			records, long, content = endRecords, endLong, at
		}
	}
	return OldMatches{Records: m.Records[records:endRecords], Long: m.Long[long:endLong]}, records, long, content
}

// Covered is how many bytes of content end with the last match.
func (m *OldMatches) Covered() (n int) {
	o := oldMatches{records: m.Records, long: m.Long}
	for len(o.records) >= zstdRecord {
		l, k := int(o.records[0]), int(o.records[1])
		o.records = o.records[zstdRecord:]
		if l == zstdLong {
			l = o.takeLong()
		}
		if k == zstdLong {
			k = o.takeLong()
		}
		n += l + k + 3
	}
	return n
}

// write walks over the blocks and writes the sequences that columns hold.
func (s *ZstdBlocks) write(w *matchWalk, from, to int, columns *zstdColumns) error {
	z := zstdCoder{reps: s.blocks[from].reps}
	p := zstdPacker{long: columns.b[columns.long:]}
	at := columns.records
	for i := from; i < to; i++ {
		b := &s.blocks[i]
		n := s.blocks[i+1].sequences - b.sequences
		w.begin(b.content - s.blocks[from].content)
		for range n {
			rec := columns.b[at : at+zstdRecord]
			at += zstdRecord
			q := sequence{literals: int(rec[0]), length: int(rec[1]), value: binary.LittleEndian.Uint32(rec[2:])}
			var err error
			if q.literals == zstdLong {
				if q.literals, err = p.takeLong(); err != nil {
					return err
				}
			}
			if q.length == zstdLong {
				if q.length, err = p.takeLong(); err != nil {
					return err
				}
			}
			q.length += 3
			q.distance = int(z.distance(q.value, uint32(q.literals)))
			want := q
			if err := w.next(&q); err != nil || q != want {
				return fmt.Errorf("block %d: sequence %v: %w", i, want, ErrUnsupported)
			}
		}
	}
	return nil
}

// writeMap writes the part of the map that the old matches need. A segment
// costs some bytes, so one that nothing but a single source lies in is left out,
// and if the map has room for less, those that have the fewest.
func writeMap(moved []Moved, oldStart, newStart int, records, long []byte) []byte {
	segment := func(at int) int { // the last that begins at or before
		lo, hi := 0, len(moved)
		for lo < hi {
			if mid := (lo + hi) / 2; moved[mid].Old <= at {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		return lo - 1
	}
	uses := make(map[int]int)
	o := oldMatches{records: records, long: long}
	for at := oldStart; len(o.records) >= zstdRecord; {
		l, m := int(o.records[0]), int(o.records[1])
		d := int(binary.LittleEndian.Uint32(o.records[2:]))
		o.records = o.records[zstdRecord:]
		if l == zstdLong {
			l = o.takeLong()
		}
		if m == zstdLong {
			m = o.takeLong()
		}
		at += l
		uses[segment(at)]++
		uses[segment(at-d)]++
		at += m + 3
	}
	for least := 2; ; least *= 2 {
		if b, n := appendMap(nil, moved, uses, least, oldStart, newStart); n <= maxBreaks {
			return b
		}
	}
}

// appendMap appends the segments that have so many uses at least.
func appendMap(b []byte, moved []Moved, uses map[int]int, least, oldStart, newStart int) ([]byte, int) {
	n, last, lastShift := 0, 0, 0
	for i, m := range moved {
		shift := m.New - newStart - (m.Old - oldStart)
		if uses[i] < least || n > 0 && shift == lastShift {
			continue
		}
		at := m.Old - oldStart
		if n == 0 {
			b = binary.AppendUvarint(b, uint64(max(-at, 0)))
			at = min(at, 0)
		} else {
			b = binary.AppendUvarint(b, uint64(at-last))
		}
		b = binary.AppendVarint(b, int64(shift-lastShift))
		n, last, lastShift = n+1, at, shift
	}
	return b, n
}

// rangeWriter is the encoder to rangeReader.
type rangeWriter struct {
	out     []byte
	low     uint64
	rng     uint32
	pending int // bytes that a carry may still change
	cache   byte
	started bool // the first byte is always 0 and not written
}

func newRangeWriter() *rangeWriter { return &rangeWriter{rng: 1<<32 - 1, pending: 1} }

func (r *rangeWriter) shift() {
	if r.low < 0xff000000 || r.low >= 1<<32 {
		carry := byte(r.low >> 32)
		for b := r.cache; r.pending > 0; r.pending-- {
			if r.started {
				r.out = append(r.out, b+carry)
			}
			r.started = true
			b = 0xff
		}
		r.cache = byte(r.low >> 24)
	}
	r.pending++
	r.low = r.low << 8 & (1<<32 - 1)
}

func (r *rangeWriter) bit(p *prob, b uint32) uint32 {
	bound := p.bound(r.rng)
	if b == 0 {
		r.rng = bound
	} else {
		r.low += uint64(bound)
		r.rng -= bound
	}
	p.learn(b)
	for r.rng < 1<<24 {
		r.rng <<= 8
		r.shift()
	}
	return b
}

func (r *rangeWriter) even(v uint32, n int) uint32 {
	for i := n - 1; i >= 0; i-- {
		r.rng >>= 1
		if v>>uint(i)&1 != 0 {
			r.low += uint64(r.rng)
		}
		for r.rng < 1<<24 {
			r.rng <<= 8
			r.shift()
		}
	}
	return v
}

func (r *rangeWriter) close() []byte {
	for range 5 {
		r.shift()
	}
	return r.out
}
