package blocks_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
)

const plenty = 64 << 20

// small makes blobs of many frames and units from small images.
var small = mkblocks.Options{Block: 512, Unit: 4096, FrameSize: 64 << 10, Window: 128 << 10, Workers: 2}

func encode(t testing.TB, image []byte, o mkblocks.Options) []byte {
	var out bytes.Buffer
	_, err := mkblocks.Make(t.Context(), mkblocks.Image{ReaderAt: bytes.NewReader(image), Size: int64(len(image))}, o, &out)
	require.NoError(t, err)
	return out.Bytes()
}

// system makes a file system of sorts: files of text, code-like records and noise, each
// beginning at a multiple of block, zeros between.
func system(seed uint64, size, block int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for at := 0; at < size*9/10; {
		n := min(r.IntN(12*block)+1, size-at)
		kind := r.IntN(4)
		for i := range n {
			c := byte(r.Uint32())
			if kind > 0 {
				c = "etaoin shrdlu\n\x00\x01"[c&15]
			}
			b[at+i] = c
		}
		at = (at + n + block - 1) / block * block
		at += r.IntN(2) * r.IntN(4) * block
	}
	return b
}

// edited is b with files changed, moved by whole blocks and by bytes, and removed.
func edited(seed uint64, b []byte, block int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	out := bytes.Clone(b)
	for range 6 {
		from, to, n := r.IntN(len(out)), r.IntN(len(out)), r.IntN(len(out)/8)
		n = min(n, len(out)-from, len(out)-to)
		if r.IntN(2) == 0 {
			from, to = from/block*block, to/block*block
		}
		copy(out[to:to+n], bytes.Clone(out[from:from+n]))
		for range 10 {
			out[r.IntN(len(out))]++
		}
	}
	return out
}

// device is what an installation has: slots, the spare one of which changes under way.
type device struct {
	running, spare []byte // nil: not scanned
	medium         []byte // the spare slot
	fetched        int64
	blob           []byte
}

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	d.fetched += int64(len(p))
	return bytes.NewReader(d.blob).ReadAt(p, off)
}

// install opens, scans and builds from the byte at from on, up to the frame stop,
// writing to d.medium frame by frame.
func (d *device) install(want []byte, from int64, stop int) (*blocks.Index, error) {
	x, err := blocks.Open(bytes.NewReader(d.blob), int64(len(d.blob)), blocks.Limits{Memory: plenty, Size: int64(len(want))})
	if err != nil {
		return nil, err
	}
	src := blocks.Sources{Blob: d, Check: func(off int64, leaf []byte) bool {
		return bytes.Equal(leaf, want[off:off+int64(len(leaf))])
	}}
	if d.running != nil {
		src.Running = bytes.NewReader(d.running)
		if err := x.Scan(blocks.Running, src.Running, int64(len(d.running)), nil); err != nil {
			return x, err
		}
	}
	if d.medium == nil {
		d.medium = make([]byte, len(want))
	}
	src.Done = bytes.NewReader(d.medium)
	if d.spare != nil {
		src.Spare = src.Done
		if err := x.Scan(blocks.Spare, src.Spare, int64(len(d.medium)), nil); err != nil {
			return x, err
		}
	}
	for i := x.FrameAt(from); i < min(stop, x.Frames()); i++ {
		at, n := x.Frame(i)
		dst := make([]byte, n)
		if err := x.Build(i, src, dst); err != nil {
			return x, err
		}
		copy(d.medium[at:], dst)
	}
	return x, nil
}

const all = 1 << 30

// Whatever the slots hold, the image comes out, and what was fetched is what Missing
// had announced. What the device has, it does not fetch.
func TestFromAnything(t *testing.T) {
	const size = 1<<20 + 777
	want := system(1, size, 512)
	r := rand.New(rand.NewPCG(3, 3))
	noise := make([]byte, size)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	shuffled := make([]byte, 0, size)
	for _, k := range r.Perm(size / 512) {
		shuffled = append(shuffled, want[k*512:(k+1)*512]...)
	}
	blob := encode(t, want, small)
	for _, row := range []struct {
		state          string
		running, spare []byte
		most           float64 // of the units, as a share of what an empty device fetches
	}{
		{"nothing on either slot", nil, nil, 1},
		{"noise on both", noise, noise, 1},
		{"a slot that is too small", noise[:100], nil, 1},
		{"the new image in the running slot", want, nil, 0},
		{"the new image in the spare slot", nil, want, 0},
		{"the new image, moved by 13 bytes, in the running slot", append(noise[:13:13], want...), nil, 0.01},
		{"all blocks in another order", shuffled, nil, 0.01},
		{"the old image in the running slot", edited(4, want, 512), nil, 0.6},
		{"an older one in the spare slot too", edited(4, want, 512), edited(5, want, 512), 0.6},
		{"half of it in the running slot", want[:size/2], nil, 0.55},
		{"the halves in the two slots", want[:size/2], append(noise[:size/2:size/2], want[size/2:]...), 0.01},
		{"moved towards the front in the spare slot", nil, append(want[200000:size:size], noise[:200000]...), 1},
		{"moved towards the back in the spare slot", nil, append(noise[:200000:200000], want[:size-200000]...), 0.3},
	} {
		d := &device{running: row.running, spare: row.spare, blob: blob}
		if row.spare != nil {
			d.medium = append(bytes.Clone(row.spare), make([]byte, 1000)...)
		}
		x, err := d.install(want, 0, 0)
		require.NoError(t, err, row.state)
		announced := x.Missing(0)
		_, err = d.install(want, 0, all)
		require.NoError(t, err, row.state)
		require.True(t, bytes.Equal(want, d.medium[:size]), row.state)
		require.Equal(t, announced, d.fetched, row.state)
		require.LessOrEqual(t, float64(d.fetched), row.most*float64(int64(len(blob))-x.IndexSize()), row.state)
	}
}

// Pairs of images of all kinds and options.
func TestRandomPairs(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 9))
		size := r.IntN(1 << 19)
		old := system(seed, size+1, 4096)
		want := edited(seed, old, 4096)[:size]
		o := mkblocks.Options{Block: 512 << r.IntN(4), Unit: 4096 << r.IntN(3), FrameSize: (1 + r.IntN(4)) * blocks.Leaf,
			Window: r.IntN(4) * blocks.Leaf, HashBytes: 1 + r.IntN(6), Depth: r.IntN(20), Workers: 2}
		d := &device{running: old, spare: old, medium: append(edited(seed+1, old, 512), 1, 2, 3), blob: encode(t, want, o)}
		_, err := d.install(want, 0, all)
		require.NoError(t, err, "seed %d", seed)
		require.True(t, bytes.Equal(want, d.medium[:size]), "seed %d", seed)
	}
}

// A hash of one byte means every block that it might be: nearly all hints are false. It
// costs bytes, and the image is right.
func TestFalseHints(t *testing.T) {
	want := system(6, 1<<20, 512)
	old := edited(7, want, 512)
	for _, bytesOfHash := range []int{1, 2} {
		o := small
		o.HashBytes = bytesOfHash
		d := &device{running: old, spare: old, medium: bytes.Clone(old), blob: encode(t, want, o)}
		x, err := d.install(want, 0, 0)
		require.NoError(t, err)
		announced := x.Missing(0)
		_, err = d.install(want, 0, all)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, d.medium), "%d bytes", bytesOfHash)
		require.Greater(t, d.fetched, announced, "%d bytes: hints were false", bytesOfHash)
	}
}

// An installation that is cut off after any frame goes on there after a reboot, with
// an index opened and slots scanned anew, and ends with the same bytes. What lies
// behind the last checkpoint may be anything by then. Frames that were written are not made again.
func TestResume(t *testing.T) {
	want := system(8, 700000, 512)
	old := edited(9, want, 512)
	blob := encode(t, want, small)
	whole := &device{running: old, spare: old, medium: bytes.Clone(old), blob: blob}
	x, err := whole.install(want, 0, all)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(10, 10))
	for stop := range x.Frames() + 1 {
		for _, torn := range []bool{false, true} {
			d := &device{running: old, spare: old, medium: bytes.Clone(old), blob: blob}
			_, err := d.install(want, 0, stop)
			require.NoError(t, err)
			from := min(int64(stop)*int64(small.FrameSize), int64(len(want)))
			if torn { // the frame that was being written
				for i := from; i < min(from+int64(small.FrameSize), int64(len(want))); i++ {
					d.medium[i] = byte(r.Uint32())
				}
			}
			d.fetched = 0
			x, err := d.install(want, from, all)
			require.NoError(t, err, "stopped before frame %d, torn %v", stop, torn)
			require.True(t, bytes.Equal(want, d.medium[:len(want)]), "stopped before frame %d, torn %v", stop, torn)
			if !torn {
				require.LessOrEqual(t, d.fetched, x.Missing(stop), "stopped before frame %d", stop)
			}
		}
	}
}

// failing cannot be read from one offset on.
type failing struct {
	io.ReaderAt
	from int64
}

var errMedium = errors.New("medium error")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errMedium
	}
	return f.ReaderAt.ReadAt(p, off)
}

// An old slot that fails while it is scanned leaves what was found before; one that
// fails later is replaced by fetching.
func TestOldSlotFails(t *testing.T) {
	want := system(11, 1<<20, 512)
	blob := encode(t, want, small)
	good := bytes.NewReader(want)
	for _, row := range []struct {
		state       string
		scan, build io.ReaderAt
		scanErr     error
	}{
		{"while scanning", failing{good, 600000}, good, delta.ErrBase},
		{"while building", good, failing{good, 300000}, nil},
		{"is gone when building", good, nil, nil},
	} {
		x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: int64(len(want))})
		require.NoError(t, err)
		err = x.Scan(blocks.Running, row.scan, int64(len(want)), nil)
		require.ErrorIs(t, err, row.scanErr, row.state)
		if row.scanErr != nil {
			require.ErrorIs(t, err, errMedium, row.state)
		}
		before := x.Missing(0)
		for i := range x.Frames() {
			at, n := x.Frame(i)
			dst := make([]byte, n)
			require.NoError(t, x.Build(i, blocks.Sources{Blob: bytes.NewReader(blob), Running: row.build, Done: good}, dst), row.state)
			require.True(t, bytes.Equal(want[at:at+n], dst), row.state)
		}
		if row.scanErr == nil {
			require.Greater(t, x.Missing(0), before, row.state)
		}
	}
}
