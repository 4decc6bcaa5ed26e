package mkdelta

import "fmt"

const (
	window = 32 // bytes that a hash covers; shorter matches are found only beside longer ones

	// chainLimit bounds the places of the old image that are tried for one
	// place of the new one. Common blocks have thousands, all about as good.
	chainLimit = 24

	none = ^uint32(0)

	perWorker = 100 << 20 // zstd tables, a frame, its streams, the fine index of a file
)

// index finds blocks of the old image by their hash. Blocks begin at every
// multiple of step, so any common stretch of window+step-1 bytes is found.
type index struct {
	old  []byte
	step int
	bits int
	head []uint32 // by hash: number of the first block, or none
	next []uint32 // by block: the next one with this hash, or none
}

// indexStep chooses the finest index of size bytes that fits the memory beside other things.
func indexStep(size, other int64, o Options) (int, error) {
	for step := int64(16); step <= 4096; step *= 2 {
		blocks := size/step + 1
		if blocks >= int64(none) {
			continue
		}
		need := other + size + 4*blocks + 4<<hashBits(blocks) + int64(o.Workers)*perWorker
		if o.Memory == 0 || need <= o.Memory {
			return int(step), nil
		}
	}
	return 0, fmt.Errorf("images of %d bytes within %d: %w", size+other, o.Memory, ErrMemory)
}

// hashBits chooses a table with about as many slots as blocks.
func hashBits(blocks int64) int {
	bits := 8
	for int64(3)<<bits < 2*blocks {
		bits++
	}
	return bits
}

// newIndex indexes an image. The index must be closed.
func newIndex(old []byte, step int) (*index, error) {
	blocks := len(old)/step + 1
	ix := &index{old: old, step: step, bits: hashBits(int64(blocks))}
	var err error
	if ix.head, err = numbers(1 << ix.bits); err != nil {
		return nil, err
	}
	if ix.next, err = numbers(blocks); err != nil {
		ix.close()
		return nil, err
	}
	for i := range ix.head {
		ix.head[i] = none
	}
	// Backwards, so that chains begin with the lowest block.
	var after uint64
	for b := blocks - 1; b >= 0; b-- {
		at := b * step
		if at+window > len(old) {
			continue
		}
		h := hash(old[at : at+window])
		// A run of equal blocks, zeros mostly, is worth one entry: its first, so
		// that the extension goes over all of it.
		slot := h >> (64 - ix.bits)
		if h == after && ix.head[slot] == uint32(b+1) {
			ix.next[b] = ix.next[b+1]
		} else {
			ix.next[b] = ix.head[slot]
		}
		ix.head[slot], after = uint32(b), h
	}
	return ix, nil
}

func (ix *index) close() {
	if ix != nil {
		releaseNumbers(ix.head)
		releaseNumbers(ix.next)
	}
}

// The hash is a polynomial over the bytes, so that it can roll, and its upper
// bits, which every byte reaches, choose the slot.
const factor = 0x9E3779B97F4A7C15

// factorOut is factor to the power of window: what the byte that leaves has grown to.
var factorOut = func() uint64 {
	p := uint64(1)
	for range window {
		p *= factor
	}
	return p
}()

func hash(b []byte) uint64 {
	var h uint64
	for _, c := range b {
		h = h*factor + uint64(c) + 1
	}
	return h
}

func roll(h uint64, out, in byte) uint64 {
	return h*factor + uint64(in) + 1 - (uint64(out)+1)*factorOut
}
