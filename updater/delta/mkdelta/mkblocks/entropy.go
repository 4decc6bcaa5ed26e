package mkblocks

import (
	"math"
	"math/bits"
)

// distribution is one of the three tables of a block's sequences: how it is
// written, and how symbols are put into states (RFC 8878, section 4.1).
type distribution struct {
	mode   byte // modePredefined, modeRLE or modeFSE
	header []byte
	log    uint
	next   []uint16
	delta  [maxSymbol + 1]struct {
		bits  uint32
		state int32
	}
}

const (
	maxSymbol      = 63
	modePredefined = 0
	modeRLE        = 1
	modeFSE        = 2
)

// field is what is fixed about one kind of symbol.
type field struct {
	most       uint // largest table, binary logarithm
	predefined []int16
	log        uint // of the predefined one
}

var (
	literalLengths = field{9, []int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}, 6}
	matchLengths   = field{9, []int16{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}, 6}
	offsets        = field{8, []int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}, 5}
)

// logTable is 256 times the binary logarithm of 1 to 512: whole numbers, so that
// every machine makes the same choices.
var logTable = func() (t [513]int32) {
	for i := 1; i < len(t); i++ {
		t[i] = int32(math.Round(256 * math.Log2(float64(i))))
	}
	return t
}()

// choose sets d to the cheapest way to write symbols of which counts are given.
func (d *distribution) choose(f field, counts *[maxSymbol + 1]int, total int) {
	symbols, last := 0, 0
	for s, n := range counts {
		if n > 0 {
			symbols++
			last = s
		}
	}
	if symbols == 1 {
		*d = distribution{mode: modeRLE, header: append(d.header[:0], byte(last)), next: d.next}
		return
	}
	best := int64(math.MaxInt64)
	var norm [maxSymbol + 1]int16
	d.mode, d.log, d.header = modeFSE, 0, d.header[:0]
	if last < len(f.predefined) {
		best = cost(counts, f.predefined, f.log)
		d.mode, d.log = modePredefined, f.log
	}
	var header []byte
	for log := max(5, uint(bits.Len(uint(symbols-1)))); log <= f.most; log++ {
		var try [maxSymbol + 1]int16
		normalise(&try, counts, total, log)
		header = appendCounts(header[:0], try[:last+1], log)
		if c := cost(counts, try[:last+1], log) + int64(len(header))*8*256; c < best {
			best, norm = c, try
			d.mode, d.log, d.header = modeFSE, log, append(d.header[:0], header...)
		}
	}
	if d.mode == modePredefined {
		copy(norm[:], f.predefined)
		last = len(f.predefined) - 1
	}
	d.build(norm[:last+1])
}

// cost is what the symbols take, in 256ths of a bit.
func cost(counts *[maxSymbol + 1]int, norm []int16, log uint) (c int64) {
	for s, n := range norm {
		if counts[s] > 0 {
			c += int64(counts[s]) * int64(int32(log)*256-logTable[max(n, 1)])
		}
	}
	return c
}

// normalise scales counts to a sum of 1<<log, with at least 1 for every symbol that occurs.
func normalise(norm *[maxSymbol + 1]int16, counts *[maxSymbol + 1]int, total int, log uint) {
	left := 1 << log
	var rest [maxSymbol + 1]int
	for s, n := range counts {
		if n == 0 {
			continue
		}
		share := n << log
		norm[s] = int16(max(share/total, 1))
		rest[s] = share - int(norm[s])*total
		left -= int(norm[s])
	}
	for left != 0 {
		// One more where the most was cut off, one less where it hurts the least.
		best := -1
		for s, n := range norm {
			if n == 0 || left < 0 && n == 1 {
				continue
			}
			if best < 0 || left > 0 && rest[s] > rest[best] || left < 0 && rest[s]*int(norm[best]) < rest[best]*int(n) {
				best = s
			}
		}
		step := 1
		if left < 0 {
			step = -1
		}
		norm[best] += int16(step)
		rest[best] -= step * total
		left -= step
	}
}

// appendCounts writes a table description (RFC 8878, section 4.1.1).
func appendCounts(out []byte, norm []int16, log uint) []byte {
	w := bitWriter{out: out}
	w.add(uint64(log-5), 4)
	remaining, threshold, width := 1<<log+1, 1<<log, log+1
	zero := false
	for s := 0; s < len(norm) && remaining > 1; {
		if zero {
			start := s
			for norm[s] == 0 {
				s++
			}
			for ; s >= start+3; start += 3 {
				w.add(3, 2)
			}
			w.add(uint64(s-start), 2)
		}
		n := int(norm[s])
		s++
		most := 2*threshold - 1 - remaining
		remaining -= max(n, -n)
		zero = n == 0
		n++
		if n >= threshold {
			n += most
		}
		if n < most {
			w.add(uint64(n), width-1)
		} else {
			w.add(uint64(n), width)
		}
		for remaining < threshold {
			width--
			threshold >>= 1
		}
	}
	return w.flush()
}

// build makes the tables that encode from normalised counts.
func (d *distribution) build(norm []int16) {
	size := 1 << d.log
	if cap(d.next) < 512 {
		d.next = make([]uint16, 512)
	}
	d.next = d.next[:size]
	var symbolAt [512]uint8
	var first [maxSymbol + 2]int
	high := size - 1
	for s, n := range norm {
		if n == -1 {
			first[s+1] = first[s] + 1
			symbolAt[high] = uint8(s)
			high--
		} else {
			first[s+1] = first[s] + int(n)
		}
	}
	pos, step := 0, size>>1+size>>3+3
	for s, n := range norm {
		for range max(n, 0) {
			symbolAt[pos] = uint8(s)
			for pos = (pos + step) & (size - 1); pos > high; pos = (pos + step) & (size - 1) {
			}
		}
	}
	for u, s := range symbolAt[:size] {
		d.next[first[s]] = uint16(size + u)
		first[s]++
	}
	total := 0
	for s, n := range norm {
		switch n {
		case 0:
			d.delta[s].bits = uint32(d.log+1)<<16 - uint32(size)
		case -1, 1:
			d.delta[s].bits, d.delta[s].state = uint32(d.log)<<16-uint32(size), int32(total-1)
			total++
		default:
			out := d.log - uint(bits.Len16(uint16(n-1))-1)
			d.delta[s].bits, d.delta[s].state = uint32(out)<<16-uint32(n)<<out, int32(total-int(n))
			total += int(n)
		}
	}
}

// start is the state in which symbol s was the last to be written.
func (d *distribution) start(s uint8) uint32 {
	if d.mode == modeRLE {
		return 0
	}
	t := d.delta[s]
	n := (t.bits + 1<<15) >> 16
	v := n<<16 - t.bits
	return uint32(d.next[int32(v>>n)+t.state])
}

func (d *distribution) write(w *bitWriter, state *uint32, s uint8) {
	if d.mode == modeRLE {
		return
	}
	t := d.delta[s]
	n := (*state + t.bits) >> 16
	w.add(uint64(*state), uint(n))
	*state = uint32(d.next[int32(*state>>n)+t.state])
}

// bitWriter writes bits from the lowest of every byte up.
type bitWriter struct {
	out  []byte
	acc  uint64
	have uint
}

// add appends the lowest n ≤ 32 bits of v.
func (w *bitWriter) add(v uint64, n uint) {
	w.acc |= (v & (1<<n - 1)) << w.have
	w.have += n
	for w.have >= 8 {
		w.out = append(w.out, byte(w.acc))
		w.acc >>= 8
		w.have -= 8
	}
}

func (w *bitWriter) flush() []byte {
	if w.have > 0 {
		w.out = append(w.out, byte(w.acc))
	}
	return w.out
}
