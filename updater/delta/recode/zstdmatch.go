package recode

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Limits of ZstdMatches.
const (
	matchDistance = 1 << 30
	matchReach    = 4 << 10 // how far content is compared to find where a match would end
	maxBreaks     = 1536    // of the map
	matchNone     = math.MaxInt32
)

// match is a copy: length bytes at a position of the content come from
// distance bytes before.
type match struct{ at, length, distance int }

func (m *match) end() int { return m.at + m.length }

// oldMatches walks the matches of the old content, moved to where the map
// says that they are now. Positions count from the start of the new content.
type oldMatches struct {
	records []byte
	long    []byte
	at      int // end of the last match, in the old content
	last    int // where the last match that was returned begins

	// The map, twice: matches move forwards in it, their sources jump.
	breaks  []mapBreak
	room    [maxBreaks]mapBreak
	segment int
}

// mapBreak says that from old position at on, shift leads to the new position.
type mapBreak struct{ at, shift int32 }

// next returns the next match that still makes sense, or one at matchNone.
func (o *oldMatches) next() match {
	for len(o.records) >= zstdRecord {
		r := o.records[:zstdRecord]
		o.records = o.records[zstdRecord:]
		l, m, d := int(r[0]), int(r[1]), int(binary.LittleEndian.Uint32(r[2:])&(1<<31-1))
		if l == zstdLong {
			l = o.takeLong()
		}
		if m == zstdLong {
			m = o.takeLong()
		}
		if o.at += l; o.at >= 1<<30 {
			break
		}
		at := o.at
		o.at += m + 3
		for o.segment+1 < len(o.breaks) && int(o.breaks[o.segment+1].at) <= at {
			o.segment++
		}
		to := at + o.shift(o.segment)
		from := at - d
		from += o.shift(o.find(from))
		if to >= o.last && from < to && to-from < matchDistance {
			o.last = to
			return match{to, m + 3, to - from}
		}
	}
	return match{at: matchNone}
}

// takeLong reads a long length; old data that has too few only predicts badly.
func (o *oldMatches) takeLong() int {
	if len(o.long) < 3 {
		return zstdLong
	}
	v := get24(o.long)
	o.long = o.long[3:]
	return v
}

func (o *oldMatches) shift(segment int) int {
	if segment < len(o.breaks) {
		return int(o.breaks[segment].shift)
	}
	return 0
}

// find returns the segment of an old position.
func (o *oldMatches) find(at int) int {
	lo, hi := 0, len(o.breaks)
	for lo < hi {
		if mid := (lo + hi) / 2; int(o.breaks[mid].at) <= at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return max(lo-1, 0)
}

// matchWalk makes the sequences of new blocks from the matches of the old
// content, the content itself, and a stream of corrections. The stream is read
// or written by coder; the walk is the same.
type matchWalk struct {
	coder   bitCoder
	content []byte
	end     int // of the last match
	limit   int // where the block ends, as far as one can tell
	history int // which of the last sequences were as expected

	old               oldMatches
	before, prev, cur match // old matches: cur is the first behind end
	reps              [3]int

	model matchModel

	long [3 * (zstdBlock / zstdLong * 2)]byte
}

// matchModel holds what was learnt from the sequences before.
type matchModel struct {
	hit      [4][8]prob
	start    [4][2]prob
	from     [6][2][4]prob
	repeat   [2]prob
	whole    [4]prob
	expected [2]prob
	literals numberModel
	lengths  numberModel
	distance numberModel
}

// sequence is what a block is made of.
type sequence struct {
	literals int
	length   int
	distance int
	value    uint32 // how the distance is written (RFC 8878, section 3.1.1.5)
}

// common returns how many bytes are the same at the position and distance
// bytes before, at most n; -1 if the content at hand begins later.
func (w *matchWalk) common(at, distance, n int) int {
	from := at - distance
	if from < 0 {
		return -1
	}
	n = min(n, w.limit-at)
	if n <= 0 {
		return 0
	}
	a, b := w.content[from:from+n], w.content[at:at+n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// begin says that a block begins at a position of the content.
func (w *matchWalk) begin(at int) {
	w.end = at
	w.limit = min(at+zstdBlock, len(w.content))
}

// step goes to the next old match.
func (w *matchWalk) step() {
	w.before, w.prev, w.cur = w.prev, w.cur, w.old.next()
}

// next codes one sequence: s is what it is when writing, and becomes it when reading.
func (w *matchWalk) next(s *sequence) error {
	for w.cur.at < w.end {
		w.step()
	}
	m := &w.model
	start := w.end + s.literals
	state := 0 // of the expected match, judged by the content
	if w.cur.at <= w.limit-3 {
		if n := w.common(w.cur.at, w.cur.distance, min(w.cur.length+1, matchReach)); n >= 0 {
			switch {
			case n < w.cur.length:
				state = 1
			case n == w.cur.length:
				state = 2
			default:
				state = 3
			}
		}
	}
	known := w.cur.at < matchNone
	hit := uint32(0)
	if known {
		hit = w.coder.bit(&m.hit[state][w.history&7], flag(start == w.cur.at && s.length == w.cur.length && s.distance == w.cur.distance))
	}
	w.history = w.history<<1 | int(hit)
	if hit == 1 {
		start = w.cur.at
		s.length, s.distance = w.cur.length, w.cur.distance
	} else {
		same := uint32(0)
		if known {
			same = w.coder.bit(&m.start[state][w.history>>1&1], flag(start == w.cur.at))
		}
		if same == 1 {
			start = w.cur.at
		} else {
			start = w.end + int(m.literals.code(w.coder, w.history>>1&3, uint32(s.literals), false))
		}
		if start > w.limit-3 {
			return ErrFormat
		}
		for w.cur.at <= start {
			w.step()
		}
		w.source(s, start, int(same))
	}
	s.literals = start - w.end
	if start > w.limit-3 || s.length < 3 || s.length > w.limit-start || s.distance < 1 || s.distance >= matchDistance {
		return ErrFormat
	}
	w.write(s)
	w.end = start + s.length
	return nil
}

// source codes distance and length of a match that was not expected so. w.prev
// is the old match around or before the position, w.cur the one behind.
func (w *matchWalk) source(s *sequence, start, same int) {
	m := &w.model
	candidates := [6]int{w.prev.distance, w.reps[0], w.cur.distance, w.reps[1], w.reps[2], w.before.distance}
	found := -1
	reach := -1 // how much is the same there
tried:
	for i, d := range candidates {
		if d <= 0 {
			continue
		}
		for _, c := range candidates[:i] {
			if c == d {
				continue tried
			}
		}
		n := w.common(start, d, matchReach)
		if n >= 0 && n < 3 {
			continue // no match there
		}
		class := 0
		if n >= 0 {
			class = min(bits.Len(uint(n))-1, 3)
		}
		if w.coder.bit(&m.from[i][same][class], flag(s.distance == d)) == 1 {
			s.distance, found, reach = d, i, n
			break
		}
	}
	if found < 0 {
		s.distance = int(m.distance.code(w.coder, 0, uint32(s.distance), true))
		if s.distance > 0 {
			reach = w.common(start, s.distance, matchReach)
		}
	}
	context := 1
	if reach >= 3 && reach < matchReach {
		if w.coder.bit(&m.whole[min(bits.Len(uint(reach)), 5)-2], flag(s.length == reach)) == 1 {
			s.length = reach
			return
		}
		context = 0
	} else if i := found; i == 0 || i == 2 {
		o := &w.prev
		if i == 2 {
			o = &w.cur
		}
		if n := o.end() - start; n >= 3 {
			if w.coder.bit(&m.expected[i/2], flag(s.length == n)) == 1 {
				s.length = n
				return
			}
			context = 2
		}
	}
	s.length = 3 + int(m.lengths.code(w.coder, context, uint32(s.length-3), false))
}

// write codes how the distance is written, and remembers it. An encoder that
// can repeat a distance does; where one did not, a bit says so.
func (w *matchWalk) write(s *sequence) {
	r := &w.reps
	repeats := [3]int{r[0], r[1], r[2]}
	if s.literals == 0 {
		repeats = [3]int{r[1], r[2], r[0] - 1}
	}
	value := uint32(s.distance) + 3
	which := 3
	for i, d := range repeats {
		if d == s.distance {
			if w.coder.bit(&w.model.repeat[flag(s.literals == 0)], flag(s.value > 3)) == 0 {
				value, which = uint32(i+1), i
			}
			break
		}
	}
	s.value = value
	if s.literals == 0 {
		which++ // the third is none of the list, the others are one further
	}
	switch {
	case which >= 3:
		r[0], r[1], r[2] = s.distance, r[0], r[1]
	case which == 2:
		r[0], r[1], r[2] = s.distance, r[0], r[1]
	case which == 1:
		r[0], r[1] = s.distance, r[0]
	}
}

// block reads the sequences of a block that begins at a position of the
// content. It fills records, and returns the long lengths.
func (w *matchWalk) block(records []byte, at int) (long []byte, err error) {
	w.begin(at)
	c := zstdColumns{b: w.long[:]}
	for i := 0; i < len(records); i += zstdRecord {
		var s sequence
		if err := w.next(&s); err != nil {
			return nil, err
		}
		rec := records[i : i+zstdRecord]
		l, m := uint32(s.literals), uint32(s.length-3)
		rec[0], rec[1] = byte(l), byte(m)
		binary.LittleEndian.PutUint32(rec[2:], s.value)
		if l|m >= zstdLong && !c.lengthen(rec, l, m) {
			return nil, ErrFormat
		}
	}
	return w.long[:c.long], nil
}

// readMap takes the map: where its first segment begins before the first old
// match, then how far on the next begins and how its shift differs.
func (o *oldMatches) readMap(b []byte) error {
	at, shift := 0, 0
	n := 0
	for len(b) > 0 {
		gap, k := binary.Uvarint(b)
		if k <= 0 || gap >= 1<<30 {
			return ErrFormat
		}
		step, k2 := binary.Varint(b[k:])
		if k2 <= 0 || step <= -1<<31 || step >= 1<<31 {
			return ErrFormat
		}
		b = b[k+k2:]
		if n == 0 {
			at = -int(gap)
		} else {
			at += int(gap)
		}
		shift += int(step)
		if n == len(o.room) || at >= 1<<30 || shift <= -1<<30 || shift >= 1<<30 {
			return ErrFormat
		}
		o.room[n] = mapBreak{int32(at), int32(shift)}
		n++
	}
	o.breaks = o.room[:n]
	return nil
}

// reset prepares for another piece; the old matches are given after that.
func (w *matchWalk) reset(coder bitCoder, content []byte, reps [3]int) {
	w.coder, w.content, w.reps = coder, content, reps
	w.history = 0
	w.old.at, w.old.last, w.old.segment = 0, 0, 0
	w.before, w.prev, w.cur = match{at: -1}, match{at: -1}, match{at: -1}
	w.model = matchModel{}
}

// packMatches turns content, old matches and corrections into whole blocks.
func (z *zstdCoder) packMatches(params, plain, dst []byte) (int, error) {
	_, rest, err := z.begin(params, true)
	if err != nil {
		return 0, err
	}
	if rest, err = z.takeReps(rest); err != nil {
		return 0, err
	}
	// Content, old records, old long lengths, control, map; then corrections.
	var parts [5][]byte
	tail := plain
	for i := range parts {
		v, n := binary.Uvarint(rest)
		if n <= 0 || v > uint64(len(tail)) {
			return 0, ErrFormat
		}
		parts[i], tail, rest = tail[:v], tail[v:], rest[n:]
	}
	if len(rest) != 0 {
		return 0, ErrFormat
	}
	w := &z.walk
	w.reset(&z.reader, parts[0], z.reps)
	w.old.records, w.old.long = parts[1], parts[2]
	if err := w.old.readMap(parts[4]); err != nil {
		return 0, err
	}
	z.reader.init(tail)
	control := len(parts[0]) + len(parts[1]) + len(parts[2])
	p := zstdPacker{
		z: z, b: plain, content: true, matches: w, dst: dst,
		literalsEnd: len(parts[0]), control: control, controlEnd: control + len(parts[3]),
	}
	if err := p.blocks(); err != nil {
		return 0, err
	}
	if z.reader.over() {
		return 0, ErrFormat
	}
	return p.at, nil
}
