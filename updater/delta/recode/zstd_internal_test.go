package recode

import (
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// The device's memory budget counts on this.
func TestZstdCoderSize(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(zstdCoder{}), uintptr(300<<10))
}

// What the range coder's writer writes, its reader reads: runs that carry far,
// probabilities at both ends, bits without a model.
func TestRangeCoder(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		w := newRangeWriter()
		var probs, same [4]prob
		bias := r.IntN(1000)
		var bits []uint32
		n := r.IntN(3000)
		for range n {
			b := flag(r.IntN(1000) < bias)
			bits = append(bits, b)
			w.bit(&probs[len(bits)&3], b)
			if len(bits)%7 == 0 {
				w.even(uint32(len(bits))&0xfff, 12)
			}
		}
		var d rangeReader
		d.init(w.close())
		for i, b := range bits {
			require.Equal(t, b, d.bit(&same[(i+1)&3], 0), "seed %d, bit %d", seed, i)
			if (i+1)%7 == 0 {
				require.Equal(t, uint32(i+1)&0xfff, d.even(0, 12), "seed %d, bit %d", seed, i)
			}
		}
		require.False(t, d.over(), "seed %d", seed)
	}
}

// Numbers of every size come back, in every context.
func TestNumberModel(t *testing.T) {
	var numbers []uint32
	for n := range 31 {
		numbers = append(numbers, 1<<n-1, 1<<n, 1<<n|1<<n>>1|1)
	}
	numbers = append(numbers, 1<<31-1)
	w := newRangeWriter()
	var a, b numberModel
	for i, v := range numbers {
		require.Equal(t, v, a.code(w, i&3, v, i%3 == 0))
	}
	var d rangeReader
	d.init(w.close())
	for i, v := range numbers {
		require.Equal(t, v, b.code(&d, i&3, 0, i%3 == 0))
	}
}
