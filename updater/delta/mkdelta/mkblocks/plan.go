package mkblocks

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta/blocks"
)

// plan says of every block what it is.
type plan struct {
	hashes  []uint64 // upper bytes of each block's hash, as many as are stored
	repeats []int32  // isFresh, isZero or the block that it is the same as
	hash    *blocks.Hash
	block   int
	frame   int // blocks
	width   int
	fresh   int
	ends    []bool // the block ends with zeros, as the last of a file does
}

const (
	isFresh = -1
	isZero  = -2
)

// seeds is how many hashes are tried before two different blocks may share
// one. With six bytes the first one does for all but enormous images.
const seeds = 8

// makePlan reads the image once, or more often if different blocks share a hash.
func makePlan(ctx context.Context, target Image, o *Options) (*plan, error) {
	for try := range seeds {
		p, shared, err := tryPlan(ctx, target, *o)
		if err != nil {
			return nil, err
		}
		if !shared || try == seeds-1 || o.HashBytes < blocks.HashBits/8 {
			return p, nil
		}
		o.Seed++
	}
	panic("unreachable")
}

func tryPlan(ctx context.Context, target Image, o Options) (p *plan, shared bool, err error) {
	n := (target.Size + int64(o.Block) - 1) / int64(o.Block)
	p = &plan{hashes: make([]uint64, n), repeats: make([]int32, n), ends: make([]bool, n),
		hash: blocks.NewHash(o.Seed, o.Block), block: o.Block, frame: o.FrameSize / o.Block, width: o.HashBytes}
	first := make(map[uint64]int32, n/2)
	buf, earlier := make([]byte, o.FrameSize), make([]byte, o.Block)
	zero := make([]byte, o.Block)
	for at := int64(0); at < target.Size; at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		part := buf[:min(int64(len(buf)), target.Size-at)]
		if n, err := target.ReadAt(part, at); n != len(part) {
			return nil, false, fmt.Errorf("read image: %w", orShort(err))
		}
		clear(buf[len(part):]) // the last block counts as if zeros followed
		for i := 0; i < len(part); i += o.Block {
			b, number := buf[i:i+o.Block], int((at+int64(i))/int64(o.Block))
			if bytes.Equal(b, zero) {
				p.repeats[number] = isZero
				continue
			}
			h := p.sum(b)
			p.hashes[number], p.repeats[number] = h, isFresh
			p.ends[number] = binary.LittleEndian.Uint64(b[len(b)-8:]) == 0
			old, met := first[h]
			if !met {
				first[h] = int32(number)
				p.fresh++
				continue
			}
			clear(earlier)
			if _, err := target.ReadAt(earlier, int64(old)*int64(o.Block)); err != nil && err != io.EOF {
				return nil, false, fmt.Errorf("read image: %w", err)
			}
			switch {
			case !bytes.Equal(earlier, b):
				shared = true
				p.fresh++
			case int(old)/p.frame < number/p.frame:
				p.repeats[number] = old
			default:
				p.fresh++
			}
		}
	}
	return p, shared, nil
}

// sum is the hash of the block that b begins with, as far as it is stored. What is missing
// of a short block counts as zeros.
func (p *plan) sum(b []byte) uint64 {
	if len(b) < p.block {
		b = append(make([]byte, 0, p.block), b...)
	}
	return p.hash.Sum(b[:p.block]) &^ (1<<(64-8*p.width) - 1)
}

func orShort(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendKinds writes the runs of blocks. All that a run repeats lies in front of the frame that the run begins in.
func (p *plan) appendKinds(out []byte) []byte {
	for b := 0; b < len(p.repeats); {
		kind, first, n := blocks.KindRepeat, p.repeats[b], 1
		switch first {
		case isFresh:
			kind = blocks.KindFresh
		case isZero:
			kind = blocks.KindZero
		}
		for b+n < len(p.repeats) {
			want := first
			if kind == blocks.KindRepeat {
				want += int32(n)
			}
			if p.repeats[b+n] != want || int(want) >= b/p.frame*p.frame {
				break
			}
			n++
		}
		out = binary.AppendUvarint(out, uint64(n)<<blocks.KindBits|uint64(kind))
		if kind == blocks.KindRepeat {
			out = binary.AppendUvarint(out, uint64(b)-uint64(first))
		}
		b += n
	}
	return out
}

// appendHashes writes the hashes of the fresh blocks, in their order.
func (p *plan) appendHashes(out []byte) []byte {
	var b [8]byte
	for i, h := range p.hashes {
		if p.repeats[i] == isFresh {
			binary.LittleEndian.PutUint64(b[:], h)
			out = append(out, b[8-p.width:]...)
		}
	}
	return out
}
