package blocks

// Hash is the rolling hash of the format: a polynomial over 64-bit values that stand
// for bytes, modulo 2^64. Only its upper bits are used; the lower ones are weak.
type Hash struct {
	size int
	mul  uint64
	in   [4][256]uint64 // value of a byte, times mul^0 to mul^3
	out  [256]uint64    // the same times mul^size: what a byte weighs when it leaves
}

// NewHash returns the hash over windows of size bytes, a multiple of 4, that
// belongs to seed.
func NewHash(seed uint64, size int) *Hash {
	h := &Hash{size: size}
	state := seed
	next := func() uint64 { // SplitMix64
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	h.mul = next()&^7 | 5
	power := uint64(1)
	for range size {
		power *= h.mul
	}
	for b := range 256 {
		v := next()
		h.out[b] = v * power
		for k := range h.in {
			h.in[k][b] = v
			v *= h.mul
		}
	}
	return h
}

// Sum returns the hash of b, which must be as long as the window.
func (h *Hash) Sum(b []byte) (v uint64) {
	m2 := h.mul * h.mul
	m4 := m2 * m2
	for ; len(b) >= 4; b = b[4:] {
		v = v*m4 + h.in[3][b[0]] + h.in[2][b[1]] + h.in[1][b[2]] + h.in[0][b[3]]
	}
	return v
}

// Roll returns the hash of the window one byte further on.
func (h *Hash) Roll(v uint64, leaves, enters byte) uint64 {
	return v*h.mul + h.in[0][enters] - h.out[leaves]
}

func bitSet(filter []uint64, bit uint64) bool {
	return filter[bit/64]>>(bit%64)&1 != 0
}
