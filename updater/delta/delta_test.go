package delta_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
)

const plenty = 64 << 20

func golden(t testing.TB, name string) []byte {
	b, err := os.ReadFile("testdata/golden." + name)
	require.NoError(t, err)
	return b
}

// rebuild decodes all frames from one on into a copy of what is there already.
func rebuild(blob, base []byte, size int64, from int, there []byte) ([]byte, error) {
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: size})
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), there...)
	for i := from; i < p.Frames(); i++ {
		f := p.Frame(i)
		dst := make([]byte, f.Length)
		if err := p.Decode(i, blob[f.Blob:f.Blob+f.BlobLength], delta.Sources{Old: bytes.NewReader(base), New: bytes.NewReader(out)}, dst); err != nil {
			return nil, err
		}
		out = append(out, dst...)
	}
	return out, nil
}

// What a stranger's program made from FORMAT.md decodes to what it meant:
// testdata/golden.py shares nothing with this module.
func TestGolden(t *testing.T) {
	blob, old, want := golden(t, "delta"), golden(t, "old"), golden(t, "new")
	got, err := rebuild(blob, old, int64(len(want)), 0, nil)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(want), sha256.Sum256(got))

	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: int64(len(want))})
	require.NoError(t, err)
	base, has := p.Base()
	require.True(t, has)
	require.Equal(t, sha256.Sum256(old), base)
	require.EqualValues(t, len(old), p.BaseSize())
	require.EqualValues(t, len(want), p.Size())
}

// The example of FORMAT.md is what the encoder makes, byte by byte.
func TestFormatExample(t *testing.T) {
	var out bytes.Buffer
	_, err := mkdelta.MakeFull(t.Context(), mkdelta.Image{ReaderAt: strings.NewReader("hello"), Size: 5}, mkdelta.Options{}, &out)
	require.NoError(t, err)
	zeros := strings.Repeat("00", 8)
	head := "544e444d444c5441" + "0100" + "0000" + "00000000" + "0500000000000000" +
		zeros + strings.Repeat("00", 32) + "3100100000000000" + "01000000" + "05000000" + "0c000000" + "00000000" + zeros
	table := "050000000c000000"
	b, err := hex.DecodeString(head + table)
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	require.Equal(t, head+hex.EncodeToString(sum[:])+table+"01"+"010028"+"00"+"0500"+hex.EncodeToString([]byte("hello")),
		hex.EncodeToString(out.Bytes()))
}

// Header, table and every frame's structure are checked: no flipped bit and no
// truncation panics, and every truncation is refused. The checksum covers header
// and table, so there every flip is refused too. A frame has no sum of its own: its
// bytes were checked against the blob's leaves before, and some flips in it, such as
// one of zstd's window size, make no difference at all.
func TestCorruption(t *testing.T) {
	blob, old, want := golden(t, "delta"), golden(t, "old"), golden(t, "new")
	size := int64(len(want))
	table := delta.HeaderSize + 2*delta.EntrySize
	for bit := range len(blob) * 8 {
		bad := append([]byte(nil), blob...)
		bad[bit/8] ^= 1 << (bit % 8)
		got, err := rebuild(bad, old, size, 0, nil)
		if err == nil {
			require.GreaterOrEqual(t, bit/8, table, "bit %d of header or table flipped", bit)
			require.Len(t, got, len(want), "bit %d flipped", bit)
		} else {
			require.True(t, known(err), "bit %d: %v", bit, err)
		}
	}
	for n := range blob {
		_, err := rebuild(blob[:n], old, size, 0, nil)
		require.ErrorIs(t, err, delta.ErrFormat, "cut to %d bytes", n)
	}
	_, err := rebuild(append(blob[:len(blob):len(blob)], 0), old, size, 0, nil)
	require.ErrorIs(t, err, delta.ErrFormat, "one byte too long")
}

func known(err error) bool {
	for _, e := range []error{delta.ErrFormat, delta.ErrMemory, delta.ErrBase, delta.ErrLimit, delta.ErrUnsupported} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reseal mends the checksum, as somebody would who means harm.
func reseal(b []byte, change func(b []byte)) []byte {
	b = append([]byte(nil), b...)
	change(b)
	n := int(min(binary.LittleEndian.Uint32(b[72:]), uint32(len(b)-delta.HeaderSize)/delta.EntrySize))
	s := sha256.New()
	s.Write(b[:96])
	s.Write(b[delta.HeaderSize : delta.HeaderSize+n*delta.EntrySize])
	s.Sum(b[96:96])
	return b
}

// A header with a valid checksum is still only a claim.
func TestOpenRefuses(t *testing.T) {
	blob, size := golden(t, "delta"), int64(len(golden(t, "new")))
	le := binary.LittleEndian
	for _, row := range []struct {
		state  string
		change func(b []byte)
		limits delta.Limits
		want   error
	}{
		{"from a newer encoder", func(b []byte) { b[8] = 2 }, delta.Limits{}, delta.ErrUnsupported},
		{"with an unknown feature", func(b []byte) { b[12] = 0x80 }, delta.Limits{}, delta.ErrUnsupported},
		{"with an unknown flag", func(b []byte) { b[10] |= 2 }, delta.Limits{}, delta.ErrUnsupported},
		{"for another image", func([]byte) {}, delta.Limits{Memory: plenty, Size: size + 1}, delta.ErrLimit},
		{"beyond the memory budget", func([]byte) {}, delta.Limits{Memory: 1 << 20, Size: size}, delta.ErrMemory},
		{"understating its memory", func(b []byte) { le.PutUint64(b[64:], 1<<20) }, delta.Limits{}, delta.ErrFormat},
		{"with 4 billion frames", func(b []byte) { le.PutUint32(b[72:], 1<<32-1) }, delta.Limits{}, delta.ErrLimit},
		{"with more frames than bytes", func(b []byte) { le.PutUint32(b[72:], 1<<16) }, delta.Limits{}, delta.ErrFormat},
		{"with a huge frame", func(b []byte) { le.PutUint32(b[76:], 1<<30) }, delta.Limits{}, delta.ErrLimit},
		{"with a huge body", func(b []byte) { le.PutUint32(b[84:], 1<<30) }, delta.Limits{}, delta.ErrLimit},
		{"with a huge old image", func(b []byte) { le.PutUint64(b[24:], 1<<63) }, delta.Limits{}, delta.ErrLimit},
		{"with an empty frame", func(b []byte) { le.PutUint32(b[128:], 0) }, delta.Limits{}, delta.ErrFormat},
		{"with a frame across leaves", func(b []byte) { le.PutUint32(b[128:], 65537); le.PutUint32(b[136:], 65538) }, delta.Limits{}, delta.ErrFormat},
		{"with a base digest and no base", func(b []byte) { b[10] = 0 }, delta.Limits{}, delta.ErrFormat},
		{"with a common part and no use for it", func(b []byte) { b[92] = 1 }, delta.Limits{}, delta.ErrFormat},
		{"with a workspace and no use for it", func(b []byte) { b[88] = 1; le.PutUint64(b[64:], plenty) }, delta.Limits{}, delta.ErrFormat},
		{"with a huge workspace", func(b []byte) { le.PutUint32(b[88:], 1<<30) }, delta.Limits{}, delta.ErrLimit},
		{"with a huge range of the blob", func(b []byte) { le.PutUint32(b[80:], delta.MaxFrameBlob+1) }, delta.Limits{}, delta.ErrLimit},
		{"with a huge new image", func(b []byte) { le.PutUint64(b[16:], delta.MaxSize+1) }, delta.Limits{Memory: plenty, Size: delta.MaxSize + 1}, delta.ErrLimit},
		{"with an old image one byte too large", func(b []byte) { le.PutUint64(b[24:], delta.MaxSize+1) }, delta.Limits{}, delta.ErrLimit},
		{"with one frame too many", func(b []byte) { le.PutUint32(b[72:], delta.MaxFrames+1) }, delta.Limits{}, delta.ErrLimit},
		{"with a largest frame one byte too long", func(b []byte) { le.PutUint32(b[76:], delta.MaxFrame+1) }, delta.Limits{}, delta.ErrLimit},
		{"with a body one byte too long", func(b []byte) { le.PutUint32(b[84:], delta.MaxBody+1) }, delta.Limits{}, delta.ErrLimit},
		{"with a workspace one byte too long", func(b []byte) { le.PutUint32(b[88:], delta.MaxWorkspace+1) }, delta.Limits{}, delta.ErrLimit},
		{"with a huge common part", func(b []byte) { le.PutUint32(b[92:], delta.MaxCommon+1) }, delta.Limits{}, delta.ErrLimit},
		{"with more memory than there is", func(b []byte) { le.PutUint64(b[64:], 1<<32+1) }, delta.Limits{Memory: 1 << 40, Size: size}, delta.ErrLimit},
		{"another file", func(b []byte) { b[0] = 'X' }, delta.Limits{}, delta.ErrFormat},
		{"with a base size and no base", func(b []byte) { b[10] = 0; clear(b[32:64]) }, delta.Limits{}, delta.ErrFormat},
		{"with a base digest of no size and no base", func(b []byte) { b[10] = 0; clear(b[24:32]) }, delta.Limits{}, delta.ErrFormat},
		{"with a frame of no blob", func(b []byte) { clear(b[132:136]) }, delta.Limits{}, delta.ErrFormat},
		{"with a longest range that is not in the table", func(b []byte) { le.PutUint32(b[80:], le.Uint32(b[80:])-1) }, delta.Limits{}, delta.ErrFormat},
		{"with less in the table than it makes", func(b []byte) { le.PutUint64(b[16:], uint64(size)+1) }, delta.Limits{Memory: plenty, Size: size + 1}, delta.ErrFormat},
		{"with a frame longer than the largest", func(b []byte) { le.PutUint32(b[76:], 1<<16) }, delta.Limits{}, delta.ErrFormat},
	} {
		if row.limits == (delta.Limits{}) {
			row.limits = delta.Limits{Memory: plenty, Size: size}
		}
		_, err := delta.Open(bytes.NewReader(reseal(blob, row.change)), int64(len(blob)), row.limits)
		require.ErrorIs(t, err, row.want, row.state)
	}
	_, err := delta.Open(bytes.NewReader(blob), delta.HeaderSize-1, delta.Limits{Memory: plenty, Size: size})
	require.ErrorIs(t, err, delta.ErrFormat)
	require.ErrorContains(t, err, "header of 127 bytes")
	// Refused by the header alone: a table that is not there is not looked for.
	_, err = delta.Open(bytes.NewReader(reseal(blob, func(b []byte) { le.PutUint32(b[72:], 1<<16) })), int64(len(blob)), delta.Limits{Memory: plenty, Size: size})
	require.ErrorContains(t, err, "beyond the end")
	// The checksum alone tells a table that is as good as any other.
	swapped := bytes.Clone(blob)
	copy(swapped[96:], blob[:32])
	_, err = delta.Open(bytes.NewReader(swapped), int64(len(blob)), delta.Limits{Memory: plenty, Size: size})
	require.ErrorContains(t, err, "checksum")
	// What is just allowed is not refused for its size, but for what is missing.
	edge := reseal(blob, func(b []byte) {
		le.PutUint64(b[16:], delta.MaxSize)
		le.PutUint64(b[24:], delta.MaxSize)
		le.PutUint64(b[64:], 1<<32)
		le.PutUint32(b[72:], delta.MaxFrames)
		le.PutUint32(b[76:], delta.MaxFrame)
		le.PutUint32(b[80:], delta.MaxFrameBlob)
		le.PutUint32(b[84:], delta.MaxBody)
		le.PutUint32(b[88:], delta.MaxWorkspace)
		le.PutUint32(b[92:], delta.MaxCommon)
		le.PutUint32(b[12:], delta.FeaturePlain)
	})
	_, err = delta.Open(bytes.NewReader(edge), int64(len(blob)), delta.Limits{Memory: 1 << 32, Size: delta.MaxSize})
	require.ErrorContains(t, err, "beyond the end")
}

// An install that was cut goes on at any frame, with a Patch opened anew, and
// ends with the same bytes.
func TestResume(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	old := noise(r, 1<<20)
	want := append(append(noise(r, 70000), old[100000:]...), old[:300000]...)
	blob := encode(t, old, want)
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: int64(len(want))})
	require.NoError(t, err)
	require.Greater(t, p.Frames(), 10)
	for i := range p.Frames() + 1 {
		at := int64(len(want))
		if i < p.Frames() {
			at = p.Frame(i).Target
			require.Equal(t, i, p.FrameAt(at))
			require.Equal(t, i, p.FrameAt(at+p.Frame(i).Length-1), "inside frame %d", i)
		}
		got, err := rebuild(blob, old, int64(len(want)), p.FrameAt(at), want[:at])
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "resumed at frame %d", i)
	}
}

// A device without the old image, or with one that cannot be read, is told so.
func TestBase(t *testing.T) {
	blob, old := golden(t, "delta"), golden(t, "old")
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: int64(len(golden(t, "new")))})
	require.NoError(t, err)
	f := p.Frame(0)
	part := blob[f.Blob : f.Blob+f.BlobLength]
	dst := make([]byte, f.Length)
	require.ErrorIs(t, p.Decode(0, part, delta.Sources{}, dst), delta.ErrBase)
	require.ErrorIs(t, p.Decode(0, part, delta.Sources{Old: bytes.NewReader(old[:1000])}, dst), delta.ErrBase)
	err = p.Decode(0, part, delta.Sources{Old: failing{}}, dst)
	require.ErrorIs(t, err, delta.ErrBase)
	require.ErrorIs(t, err, io.ErrClosedPipe, "the cause is kept")
	require.NoError(t, p.Decode(0, part, delta.Sources{Old: bytes.NewReader(old)}, dst), "and the call can be repeated")
	require.ErrorIs(t, p.Decode(0, part, delta.Sources{Old: bytes.NewReader(old)}, dst[1:]), delta.ErrFormat)
	err = p.Decode(0, part[:len(part)-1], delta.Sources{Old: bytes.NewReader(old)}, dst)
	require.ErrorIs(t, err, delta.ErrFormat)
	require.ErrorContains(t, err, "header says")
	require.ErrorIs(t, p.Decode(0, nil, delta.Sources{Old: bytes.NewReader(old)}, dst), delta.ErrFormat)
	require.ErrorIs(t, p.Decode(-1, part, delta.Sources{Old: bytes.NewReader(old)}, dst), delta.ErrFormat)
	require.ErrorIs(t, p.Decode(p.Frames(), part, delta.Sources{Old: bytes.NewReader(old)}, dst), delta.ErrFormat)
	require.ErrorIs(t, p.Decode(9, part, delta.Sources{Old: bytes.NewReader(old)}, dst), delta.ErrFormat)
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

// counting records how the old image is read.
type counting struct {
	io.ReaderAt
	reads, bytes int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads, c.bytes = c.reads+1, c.bytes+len(p)
	return c.ReaderAt.ReadAt(p, off)
}

// Bytes changed amid a stretch of the old image do not make more seeks of one.
func TestNeighbouringReadsAreOne(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	old := noise(r, delta.Leaf)
	want := append([]byte(nil), old...)
	for i := 50; i < len(want); i += 100 {
		want[i]++
	}
	blob := encode(t, old, want)
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: int64(len(want))})
	require.NoError(t, err)
	c := &counting{ReaderAt: bytes.NewReader(old)}
	f := p.Frame(0)
	require.NoError(t, p.Decode(0, blob[f.Blob:], delta.Sources{Old: c}, make([]byte, f.Length)))
	require.Equal(t, 1, c.reads)
	require.Equal(t, len(want), c.bytes)
}

// Decoding allocates what the header says, once, and nothing per frame.
func TestMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	old := noise(r, 8<<20)
	want := append([]byte(nil), old...)
	for range 20000 {
		want[r.IntN(len(want))]++
	}
	copy(want[3<<20:], bytes.Repeat([]byte("compressible literals "), 50000))
	var out bytes.Buffer
	_, err := mkdelta.Make(t.Context(), img(old), img(want), mkdelta.Options{Workers: 2}, &out)
	require.NoError(t, err)
	blob := out.Bytes()

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: int64(len(want))})
	require.NoError(t, err)
	base := bytes.NewReader(old)
	dst := make([]byte, 1<<20)
	all := func() {
		for i := range p.Frames() {
			f := p.Frame(i)
			require.NoError(t, p.Decode(i, blob[f.Blob:f.Blob+f.BlobLength], delta.Sources{Old: base, New: bytes.NewReader(want)}, dst))
		}
	}
	all()
	runtime.ReadMemStats(&after)
	allocated := int64(after.TotalAlloc - before.TotalAlloc)
	t.Logf("allocated %d, header says %d", allocated, p.Memory())
	require.Less(t, allocated, p.Memory())
	require.Less(t, p.Memory(), int64(10<<20))

	runtime.ReadMemStats(&before)
	all()
	runtime.ReadMemStats(&after)
	require.Less(t, int64(after.TotalAlloc-before.TotalAlloc), int64(256<<10), "a second pass over %d frames", p.Frames())
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func img(b []byte) mkdelta.Image {
	return mkdelta.Image{ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

func encode(t testing.TB, old, want []byte) []byte {
	var out bytes.Buffer
	_, err := mkdelta.Make(t.Context(), img(old), img(want), mkdelta.Options{FrameSize: delta.Leaf, Workers: 2}, &out)
	require.NoError(t, err)
	return out.Bytes()
}

// Whatever the bytes, opening and decoding end, with an error of ours or with
// exactly the bytes that were asked for, and nothing outside them touched.
func FuzzDecode(f *testing.F) {
	blob, old, want := golden(f, "delta"), golden(f, "old"), golden(f, "new")
	f.Add(blob)
	f.Add(blob[:200])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= delta.HeaderSize {
			b = reseal(b, func(b []byte) { binary.LittleEndian.PutUint64(b[16:], uint64(len(want))) })
		}
		p, err := delta.Open(bytes.NewReader(b), int64(len(b)), delta.Limits{Memory: plenty, Size: int64(len(want))})
		if err != nil {
			require.True(t, known(err), err)
			return
		}
		for i := range min(p.Frames(), 4) {
			fr := p.Frame(i)
			whole := make([]byte, fr.Length+16)
			err := p.Decode(i, b[fr.Blob:fr.Blob+fr.BlobLength], delta.Sources{Old: bytes.NewReader(old)}, whole[:fr.Length])
			if err != nil {
				require.True(t, known(err), err)
			}
			require.Equal(t, make([]byte, 16), whole[fr.Length:])
		}
	})
}
