package recode

// prob is an adaptive estimate that a bit is 0, in 1/65536 with the top bit
// inverted, so that the zero value means even odds. It is the mean of one that
// learns fast and one that learns slowly.
type prob struct{ fast, slow uint16 }

const (
	probEven = 1 << 15
	probFast = 4
	probSlow = 7
)

func (p *prob) bound(rng uint32) uint32 {
	return uint32(uint64(rng) * (uint64(p.fast^probEven) + uint64(p.slow^probEven)) >> 17)
}

func (p *prob) learn(bit uint32) {
	f, s := p.fast^probEven, p.slow^probEven
	if bit == 0 {
		f += (65535 - f) >> probFast
		s += (65535 - s) >> probSlow
	} else {
		f -= f >> probFast
		s -= s >> probSlow
	}
	p.fast, p.slow = f^probEven, s^probEven
}

// bitCoder is one of the two directions, so that both share one model. When
// reading, the bit that is given counts for nothing; it is returned in any case.
type bitCoder interface {
	bit(p *prob, b uint32) uint32
	even(v uint32, n int) uint32 // n bits that are not worth a model
}

// rangeReader is the binary range decoder of LZMA, with probabilities of 16
// bits. Behind its end it reads zeros; whoever uses it looks at over.
type rangeReader struct {
	src       []byte
	at        int
	rng, code uint32
}

func (r *rangeReader) init(src []byte) {
	*r = rangeReader{src: src, rng: 1<<32 - 1}
	for range 4 {
		r.code = r.code<<8 | r.next()
	}
}

func (r *rangeReader) next() (b uint32) {
	if r.at < len(r.src) {
		b = uint32(r.src[r.at])
	}
	r.at++
	return b
}

// over says whether more was read than there was.
func (r *rangeReader) over() bool { return r.at > len(r.src) }

func (r *rangeReader) bit(p *prob, _ uint32) (b uint32) {
	bound := p.bound(r.rng)
	if r.code < bound {
		r.rng = bound
	} else {
		r.code -= bound
		r.rng -= bound
		b = 1
	}
	p.learn(b)
	for r.rng < 1<<24 {
		r.rng <<= 8
		r.code = r.code<<8 | r.next()
	}
	return b
}

func (r *rangeReader) even(_ uint32, n int) (v uint32) {
	for range n {
		r.rng >>= 1
		v <<= 1
		if r.code >= r.rng {
			r.code -= r.rng
			v |= 1
		}
		for r.rng < 1<<24 {
			r.rng <<= 8
			r.code = r.code<<8 | r.next()
		}
	}
	return v
}

// numberModel writes whole numbers: how many bits, then the leading ones of
// them by what was seen before, and the others as they are.
type numberModel struct {
	size [4][32]prob // by context
	head [32][8]prob // by size
	tail [32]prob    // the last 4 bits of large numbers
}

// tree codes n bits of v, the highest first.
func tree(c bitCoder, probs []prob, v uint32, n int) uint32 {
	at := uint32(1)
	for n--; n >= 0; n-- {
		at = at<<1 | c.bit(&probs[at], v>>uint(n)&1)
	}
	return at
}

// code codes v < 1<<31.
func (m *numberModel) code(c bitCoder, context int, v uint32, aligned bool) uint32 {
	n := 0
	for x := v; x > 0; x >>= 1 {
		n++
	}
	n = int(tree(c, m.size[context][:], uint32(n), 5)) & 31
	if n < 2 {
		return uint32(n)
	}
	// The highest bit is known. Three more are learnt.
	rest := n - 1
	k := min(rest, 3)
	rest -= k
	head := tree(c, m.head[n][:], v>>uint(rest)&(1<<uint(k)-1), k) // with the highest bit on top
	if rest == 0 {
		return head
	}
	if !aligned || rest < 4 {
		return head<<uint(rest) | c.even(v&(1<<uint(rest)-1), rest)
	}
	rest -= 4
	head = head<<uint(rest) | c.even(v>>4&(1<<uint(rest)-1), rest)
	// Distances in tables are multiples of the entry: the lowest bits first.
	at, low := uint32(1), uint32(0)
	for i := range 4 {
		b := c.bit(&m.tail[at], v>>uint(i)&1)
		at = at<<1 | b
		low |= b << uint(i)
	}
	return head<<4 | low
}
