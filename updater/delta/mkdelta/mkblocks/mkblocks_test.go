package mkblocks

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
)

func image(b []byte) Image { return Image{bytes.NewReader(b), int64(len(b))} }

// mixture is text, records, zeros, noise and repetitions, by turns.
func mixture(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, 0, size+1<<17)
	for len(b) < size {
		n := 1 + r.IntN(30000)
		switch r.IntN(6) {
		case 0:
			b = append(b, make([]byte, n)...)
		case 1:
			for range n {
				b = append(b, byte(r.Uint32()))
			}
		case 2:
			for i := range n / 16 {
				b = binary.LittleEndian.AppendUint64(b, uint64(seed)<<40|uint64(i*24))
				b = binary.LittleEndian.AppendUint64(b, uint64(r.IntN(300)))
			}
		case 3:
			from := r.IntN(len(b) + 1)
			b = append(b, b[from:min(from+n, len(b))]...)
		default:
			for range n {
				b = append(b, "etaoin shrdlu\ncmfwyp"[r.IntN(20)])
			}
		}
	}
	return b[:size]
}

// The same image and options make the same bytes, on any number of cores.
func TestDeterministic(t *testing.T) {
	data := mixture(1, 500000)
	var first []byte
	for _, workers := range []int{1, 2, 5} {
		var out bytes.Buffer
		var last int64
		s, err := Make(t.Context(), image(data), Options{Workers: workers, FrameSize: 64 << 10, Progress: func(done, total int64) {
			require.Greater(t, done, last)
			require.EqualValues(t, len(data), total)
			last = done
		}}, &out)
		require.NoError(t, err)
		require.EqualValues(t, len(data), last)
		require.EqualValues(t, out.Len(), s.Size)
		if first == nil {
			first = out.Bytes()
		}
		require.True(t, bytes.Equal(first, out.Bytes()), "%d workers", workers)
	}
}

// Of a run of repeated blocks all lie in a frame before the run: one whose sources reach into the frame that it begins
// in is cut there.
func TestRepeatsAcrossFrames(t *testing.T) {
	const block, per = 4 << 10, 16 // blocks of a frame
	for _, c := range []struct {
		what            string
		from, to, count int
	}{
		{"one frame back, over a border", 15, 31, 8},
		{"over many borders", 3, 40, 100},
		{"two frames back", 0, 32, 32},
		{"what was repeated itself", 10, 30, 64},
	} {
		t.Run(c.what, func(t *testing.T) {
			data := make([]byte, 160*block)
			r := rand.New(rand.NewPCG(7, 7))
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			for i := range c.count { // block by block, so that what was copied is copied on
				copy(data[(c.to+i)*block:][:block], data[(c.from+i)*block:])
			}
			var out bytes.Buffer
			_, err := Make(t.Context(), image(data), Options{Block: block, FrameSize: per * block}, &out)
			require.NoError(t, err)
		})
	}
}

// The index stays below half a percent of the image, and compressible content shrinks.
func TestStats(t *testing.T) {
	data := mixture(2, 4<<20)
	var out bytes.Buffer
	s, err := Make(t.Context(), image(data), Options{Depth: 4}, &out)
	require.NoError(t, err)
	require.Less(t, s.Index*200, int64(len(data)))
	require.Less(t, s.Size, int64(len(data))*7/10)
	require.Equal(t, 1024, s.Blocks)
	x, err := blocks.Open(bytes.NewReader(out.Bytes()), s.Size, blocks.Limits{Memory: s.Memory, Size: int64(len(data))})
	require.NoError(t, err)
	require.Equal(t, s.Frames, x.Frames())
	require.Equal(t, s.Index, x.IndexSize())
	require.Equal(t, s.Size-s.Index, x.Missing(0), "a device that has nothing fetches everything")
}

// What the block coder writes is what zstd's own program reads: units follow each other in
// one frame, with nothing but headers between, as if they were its blocks.
func TestZstdReadsUnits(t *testing.T) {
	program, err := exec.LookPath("zstd")
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("zstd is missing: apt install zstd")
		}
		t.Skip("needs Debian's zstd")
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		data := mixture(seed, 1+r.IntN(300000))
		var c coder
		c.match.reset(data, r.IntN(40))
		out := binary.LittleEndian.AppendUint32([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, uint32(len(data)))
		for at := 0; at < len(data); {
			end := min(at+1+r.IntN(40000), len(data))
			c.reset()
			rest := c.parse(at, end)
			content, kind := c.block(data[rest:end]), 2
			if len(content) >= end-at || r.IntN(5) == 0 {
				content, kind = data[at:end], 0
			}
			v := len(content)<<3 | kind<<1
			if end == len(data) {
				v |= 1
			}
			out = append(append(out, byte(v), byte(v>>8), byte(v>>16)), content...)
			at = end
		}
		cmd := exec.CommandContext(t.Context(), program, "-d", "-c", "-q")
		cmd.Stdin = bytes.NewReader(out)
		got, err := cmd.Output()
		require.NoError(t, err, "seed %d", seed)
		require.True(t, bytes.Equal(data, got), "seed %d", seed)
	}
}

// An image that is smaller than it said, options that make no sense, and a context that ends.
func TestMakeRefuses(t *testing.T) {
	data := mixture(3, 200000)
	var out bytes.Buffer
	short := image(data)
	short.Size++
	_, err := Make(t.Context(), short, Options{}, &out)
	require.Error(t, err)
	_, err = Make(t.Context(), Image{Size: blocks.MaxSize + 1}, Options{}, &out)
	require.ErrorIs(t, err, delta.ErrLimit)
	for _, o := range []Options{{Block: 1000}, {Block: 256}, {Unit: 1000}, {Unit: 1 << 20}, {FrameSize: 1000}, {FrameSize: 8 << 20},
		{Window: 5}, {Window: 8 << 20}, {HashBytes: 7}, {Depth: -1}, {Workers: -1}} {
		_, err := Make(t.Context(), image(data), o, &out)
		require.Error(t, err, "%+v", o)
	}
	ctx := cancelled{t.Context()}
	_, err = Make(ctx, image(data), Options{}, &out)
	require.ErrorIs(t, err, errStop)
	require.Zero(t, out.Len())
}

// An image that changes while it is read makes no payload.
func TestChanged(t *testing.T) {
	data := mixture(4, 200000)
	var out bytes.Buffer
	_, err := Make(t.Context(), Image{&changing{Reader: bytes.NewReader(data), size: len(data)}, int64(len(data))}, Options{Workers: 1}, &out)
	require.ErrorIs(t, err, ErrChanged)
	require.Zero(t, out.Len())
}
