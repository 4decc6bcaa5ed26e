package blocks_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
)

func known(err error) bool {
	for _, e := range []error{delta.ErrFormat, delta.ErrMemory, delta.ErrBase, delta.ErrLimit, delta.ErrUnsupported} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// fetchAll builds everything on a device that has nothing.
func fetchAll(blob []byte, size int64) ([]byte, error) {
	x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: size})
	if err != nil {
		return nil, err
	}
	var out []byte
	for i := range x.Frames() {
		_, n := x.Frame(i)
		dst := make([]byte, n)
		if err := x.Build(i, blocks.Sources{Blob: bytes.NewReader(blob), Done: bytes.NewReader(out)}, dst); err != nil {
			return nil, err
		}
		out = append(out, dst...)
	}
	return out, nil
}

// Every bit and every length of the blob is under some sum: no flip and no truncation
// comes through, not even without the manifest's leaves.
func TestCorruption(t *testing.T) {
	// Fresh blocks, zeros, and in a second frame a repetition.
	want := make([]byte, blocks.Leaf+600)
	copy(want, system(20, 1500, 512))
	copy(want[blocks.Leaf:], want[:512])
	blob := encode(t, want, small)
	for bit := range len(blob) * 8 {
		bad := bytes.Clone(blob)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := fetchAll(bad, int64(len(want)))
		require.Error(t, err, "bit %d", bit)
		require.True(t, known(err), "bit %d: %v", bit, err)
	}
	for n := range blob {
		_, err := fetchAll(blob[:n], int64(len(want)))
		require.ErrorIs(t, err, delta.ErrFormat, "cut to %d bytes", n)
	}
	_, err := fetchAll(append(bytes.Clone(blob), 0), int64(len(want)))
	require.ErrorIs(t, err, delta.ErrFormat, "one byte too long")
}

// What a stranger's program made from FORMAT.md builds what it meant, from the blob alone
// and from an old slot: testdata/golden.py shares nothing with this module.
func TestGolden(t *testing.T) {
	blob, err := os.ReadFile("testdata/golden.index")
	require.NoError(t, err)
	want, err := os.ReadFile("testdata/golden.new")
	require.NoError(t, err)
	got, err := fetchAll(blob, int64(len(want)))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))

	d := &device{blob: blob, running: append([]byte("moved"), append(want, make([]byte, 512)...)...)}
	x, err := d.install(want, 0, all)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, d.medium))
	require.Zero(t, x.Missing(0), "every hash was found")
	require.Zero(t, d.fetched)
}

// reseal mends the checksum, as somebody would who means harm.
func reseal(b []byte, change func(b []byte)) []byte {
	b = bytes.Clone(b)
	change(b)
	end := min(binary.LittleEndian.Uint64(b[64:]), uint64(len(b)-blocks.HeaderSize)) + blocks.HeaderSize
	s := sha256.New()
	s.Write(b[:96])
	s.Write(b[blocks.HeaderSize:end])
	s.Sum(b[96:96])
	return b
}

// A header with a valid checksum is still only a claim.
func TestOpenRefuses(t *testing.T) {
	want := system(21, 200000, 512)
	blob := encode(t, want, small)
	size := int64(len(want))
	le := binary.LittleEndian
	for _, row := range []struct {
		state  string
		change func(b []byte)
		limits blocks.Limits
		want   error
	}{
		{"from a newer encoder", func(b []byte) { b[8] = 2 }, blocks.Limits{}, delta.ErrUnsupported},
		{"with an unknown feature", func(b []byte) { b[12] = 1 }, blocks.Limits{}, delta.ErrUnsupported},
		{"with an unknown flag", func(b []byte) { b[10] = 1 }, blocks.Limits{}, delta.ErrUnsupported},
		{"a delta", func(b []byte) { copy(b, delta.Magic) }, blocks.Limits{}, delta.ErrFormat},
		{"for another image", func([]byte) {}, blocks.Limits{Memory: plenty, Size: size + 1}, delta.ErrLimit},
		{"beyond the memory budget", func([]byte) {}, blocks.Limits{Memory: 1 << 20, Size: size}, delta.ErrMemory},
		{"understating its memory", func(b []byte) { le.PutUint64(b[24:], 1<<20) }, blocks.Limits{}, delta.ErrFormat},
		{"with blocks of 0 bytes", func(b []byte) { le.PutUint32(b[32:], 0) }, blocks.Limits{}, delta.ErrLimit},
		{"with blocks of 513 bytes", func(b []byte) { le.PutUint32(b[32:], 513) }, blocks.Limits{}, delta.ErrLimit},
		{"with other blocks", func(b []byte) { le.PutUint32(b[32:], 1024) }, blocks.Limits{}, delta.ErrFormat},
		{"with frames of 0 bytes", func(b []byte) { le.PutUint32(b[36:], 0) }, blocks.Limits{}, delta.ErrLimit},
		{"with frames across leaves", func(b []byte) { le.PutUint32(b[36:], 65537) }, blocks.Limits{}, delta.ErrLimit},
		{"with a huge window", func(b []byte) { le.PutUint32(b[40:], 1<<31) }, blocks.Limits{}, delta.ErrLimit},
		{"with hashes of no bytes", func(b []byte) { b[44] = 0 }, blocks.Limits{}, delta.ErrLimit},
		{"with hashes of 7 bytes", func(b []byte) { b[44] = 7 }, blocks.Limits{}, delta.ErrLimit},
		{"with units of no blocks", func(b []byte) { b[46] = 0 }, blocks.Limits{}, delta.ErrLimit},
		{"with units of 32,775 blocks", func(b []byte) { b[47] = 0x80 }, blocks.Limits{}, delta.ErrLimit},
		{"with shorter hashes", func(b []byte) { b[44] = 5 }, blocks.Limits{}, delta.ErrFormat},
		{"with something in the reserved bytes", func(b []byte) { b[72] = 1 }, blocks.Limits{}, delta.ErrFormat},
		{"with 4 billion units", func(b []byte) { le.PutUint32(b[60:], 1<<32-1) }, blocks.Limits{}, delta.ErrFormat},
		{"with one unit less", func(b []byte) { le.PutUint32(b[60:], le.Uint32(b[60:])-1) }, blocks.Limits{}, delta.ErrFormat},
		{"with 4 billion hashes", func(b []byte) { le.PutUint32(b[56:], 1<<32-1) }, blocks.Limits{}, delta.ErrFormat},
		{"with one hash less", func(b []byte) { le.PutUint32(b[56:], le.Uint32(b[56:])-1) }, blocks.Limits{}, delta.ErrFormat},
		{"with an index longer than the blob", func(b []byte) { le.PutUint64(b[64:], 1<<30) }, blocks.Limits{}, delta.ErrFormat},
		{"with an index of 2^63 bytes", func(b []byte) { le.PutUint64(b[64:], 1<<63) }, blocks.Limits{}, delta.ErrLimit},
		{"with an index one byte short", func(b []byte) { le.PutUint64(b[64:], le.Uint64(b[64:])-1) }, blocks.Limits{}, delta.ErrFormat},
		{"with an unknown kind", func(b []byte) { b[128] |= 3 }, blocks.Limits{}, delta.ErrFormat},
		{"with a run of no blocks", func(b []byte) { b[128] = 0 }, blocks.Limits{}, delta.ErrFormat},
		{"repeating what is not there", func(b []byte) { b[128] = b[128]&^3 | 2 }, blocks.Limits{}, delta.ErrFormat},
	} {
		if row.limits == (blocks.Limits{}) {
			row.limits = blocks.Limits{Memory: plenty, Size: size}
		}
		bad := reseal(blob, row.change)
		_, err := blocks.Open(bytes.NewReader(bad), int64(len(bad)), row.limits)
		require.ErrorIs(t, err, row.want, row.state)
	}
	_, err := blocks.Open(failing{bytes.NewReader(nil), 0}, 1000, blocks.Limits{})
	require.ErrorIs(t, err, errMedium)
	require.False(t, known(err), "storage that fails is told apart from a blob that is wrong")
}

// Each count and size of header and index has a check of its own, that names it: what the
// next check would say as well is no reason to do without.
func TestOpenEdges(t *testing.T) {
	le := binary.LittleEndian
	// An image of two frames of 64 KiB with blocks of 32 KiB, all zeros where index says so.
	forged := func(size uint64, index []byte, change func(h []byte)) []byte {
		h := make([]byte, blocks.HeaderSize)
		copy(h, blocks.Magic)
		le.PutUint16(h[8:], blocks.Version)
		le.PutUint64(h[16:], size)
		le.PutUint64(h[24:], plenty)
		le.PutUint32(h[32:], 32<<10)
		le.PutUint32(h[36:], 64<<10)
		h[44], h[46] = 1, 2
		le.PutUint64(h[64:], uint64(len(index)))
		change(h)
		return reseal(append(h, index...), func([]byte) {})
	}
	same := func([]byte) {}
	counts := func(fresh, units uint32) func(h []byte) {
		return func(h []byte) { le.PutUint32(h[56:], fresh); le.PutUint32(h[60:], units) }
	}
	run := func(kind, n byte) byte { return n<<blocks.KindBits | kind }
	const two = 128 << 10 // the image: two frames, four blocks
	zeros := []byte{run(blocks.KindZero, 4)}
	fresh := func(rest ...byte) []byte {
		return append([]byte{run(blocks.KindFresh, 2), run(blocks.KindZero, 2)}, rest...)
	}
	pad := func(n int, b ...byte) []byte { return append(b, make([]byte, n)...) }
	for name, row := range map[string]struct {
		size   uint64
		index  []byte
		change func(h []byte)
		want   string // in the error; "" if all is well
	}{
		"four blocks of zeros":           {two, zeros, same, ""},
		"the largest window":             {two, zeros, func(h []byte) { le.PutUint32(h[40:], blocks.MaxWindow) }, ""},
		"the largest frame":              {two, zeros, func(h []byte) { le.PutUint32(h[36:], blocks.MaxFrame) }, ""},
		"the largest block":              {two, []byte{run(blocks.KindZero, 2)}, func(h []byte) { le.PutUint32(h[32:], blocks.MaxBlock); h[46] = 2 }, ""},
		"the most blocks in a unit":      {two, zeros, func(h []byte) { h[46] = 4 }, ""},
		"the most memory":                {two, zeros, func(h []byte) { le.PutUint64(h[24:], 1<<32) }, ""},
		"the most blocks":                {blocks.MaxBlocks * 512, zeros, func(h []byte) { le.PutUint32(h[32:], 512) }, "ends early"},
		"one block too many":             {blocks.MaxBlocks*512 + 1, zeros, func(h []byte) { le.PutUint32(h[32:], 512) }, "4194305 blocks"},
		"the largest image":              {blocks.MaxSize, zeros, func(h []byte) { le.PutUint32(h[32:], 64<<10) }, "stated memory"},
		"an image a byte too large":      {blocks.MaxSize + 1, zeros, same, "header"},
		"more memory than there is":      {two, zeros, func(h []byte) { le.PutUint64(h[24:], 1<<32+1) }, "header"},
		"a window a leaf too large":      {two, zeros, func(h []byte) { le.PutUint32(h[40:], blocks.MaxWindow+64<<10) }, "window"},
		"a window that cuts a leaf":      {two, zeros, func(h []byte) { le.PutUint32(h[40:], 4096) }, "window"},
		"a frame a leaf too large":       {two, zeros, func(h []byte) { le.PutUint32(h[36:], blocks.MaxFrame+64<<10) }, "frame"},
		"a block too large":              {two, zeros, func(h []byte) { le.PutUint32(h[32:], 2*blocks.MaxBlock); h[46] = 1 }, "block"},
		"a unit too large":               {two, zeros, func(h []byte) { h[46] = 5 }, "unit"},
		"a byte that is reserved":        {two, zeros, func(h []byte) { h[45] = 1 }, "reserved"},
		"more hashes than blocks":        {two, pad(20, zeros...), counts(5, 0), "counts contradict"},
		"more units than hashes":         {two, pad(20, zeros...), counts(1, 2), "counts contradict"},
		"an index a byte too long":       {two, zeros, func(h []byte) { h[64]++ }, "counts contradict"},
		"hashes that the index lacks":    {two, pad(1, zeros...), counts(2, 1), "counts contradict"},
		"a run of no blocks":             {two, []byte{0, run(blocks.KindZero, 4)}, same, "run of 0 blocks"},
		"a run past the end":             {two, []byte{run(blocks.KindZero, 5)}, same, "run of 5 blocks"},
		"a run of an unknown kind":       {two, []byte{run(3, 4)}, same, "of kind 3"},
		"a repeat across two frames":     {two, []byte{run(blocks.KindZero, 2), run(blocks.KindRepeat, 2), 2}, same, ""},
		"a repeat of what is before all": {two, []byte{run(blocks.KindZero, 2), run(blocks.KindRepeat, 2), 3}, same, "repeats what is 3 before"},
		"a repeat in its own frame":      {two, []byte{run(blocks.KindZero, 3), run(blocks.KindRepeat, 1), 1}, same, "repeats what is 1 before"},
		"fresh blocks that are not told": {two, fresh(pad(40)...), counts(1, 1), "2 fresh blocks, the header says 1"},
		"one unit of two blocks":         {two, fresh(pad(18, 2*5+1)...), counts(2, 1), "units end at"},
		"a unit of no bytes":             {two, fresh(pad(40, 2*0+1)...), counts(2, 1), "unit of 0 bytes"},
		"a unit longer than its blocks":  {two, fresh(pad(40, 0x83, 0x80, 0x08)...), counts(2, 1), "unit of 65537 bytes"},
		"more units than are told":       {two, fresh(pad(40, 2*5, 2*5)...), counts(2, 1), "more units than"},
		"fewer units than are told":      {two, fresh(pad(18, 2*5+1)...), counts(2, 2), "1 units, the header says 2"},
		"a unit past its frame":          {two, []byte{run(blocks.KindZero, 1), run(blocks.KindFresh, 2), run(blocks.KindZero, 1), 2*5 + 1, 0, 0, 0, 0}, counts(2, 1), "unit of 2 blocks"},
		"a unit across another's block":  {two, append([]byte{run(blocks.KindFresh, 1), run(blocks.KindZero, 3)}, pad(40, 2*5+1)...), counts(1, 1), "unit across block 1"},
		"an index of a whole buffer":     {4096 * 512, bytes.Repeat([]byte{run(blocks.KindZero, 1)}, 4096), func(h []byte) { le.PutUint32(h[32:], 512) }, ""},
		"a byte behind a whole buffer":   {4096 * 512, pad(1, bytes.Repeat([]byte{run(blocks.KindZero, 1)}, 4096)...), func(h []byte) { le.PutUint32(h[32:], 512) }, "bytes left over"},
		"a byte behind the hashes":       {two, fresh(pad(19, 2*5+1)...), counts(2, 1), "bytes left over"},
	} {
		t.Run(name, func(t *testing.T) {
			blob := forged(row.size, row.index, row.change)
			_, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: 1 << 40, Size: int64(row.size)})
			if row.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, row.want)
			require.True(t, known(err))
		})
	}
	_, err := blocks.Open(bytes.NewReader(forged(two, zeros, same)), blocks.HeaderSize-1, blocks.Limits{Memory: plenty, Size: two})
	require.ErrorContains(t, err, "header of 127 bytes")
	garbled := forged(two, zeros, same)
	garbled[96] ^= 1
	_, err = blocks.Open(bytes.NewReader(garbled), int64(len(garbled)), blocks.Limits{Memory: plenty, Size: two})
	require.ErrorContains(t, err, "checksum")
}

// container wraps one unit for an image of 1024 bytes in a flawless blob: the signer was
// fooled, or is the attacker.
func container(unit []byte) []byte {
	index := []byte{2<<blocks.KindBits | blocks.KindFresh}
	index = binary.AppendUvarint(index, uint64(len(unit)*2+1))
	sum := sha256.Sum256(unit)
	directory := sha256.Sum256(sum[:16])
	index = append(append(index, directory[:16]...), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
	h := make([]byte, blocks.HeaderSize)
	le := binary.LittleEndian
	copy(h, blocks.Magic)
	le.PutUint16(h[8:], blocks.Version)
	le.PutUint64(h[16:], 1024)
	le.PutUint64(h[24:], uint64(blocks.MemoryNeeded(2, 1, 1, 512, 64<<10, 0)))
	le.PutUint32(h[32:], 512)
	le.PutUint32(h[36:], 64<<10)
	h[44], h[46] = 6, 2
	le.PutUint32(h[56:], 2)
	le.PutUint32(h[60:], 1)
	le.PutUint64(h[64:], uint64(len(index)))
	return reseal(bytes.Join([][]byte{h, index, sum[:16], unit}, nil), func([]byte) {})
}

// A unit in a flawless blob that is signed by the wrong hand: none panics, writes
// elsewhere or allocates beyond the header's word.
func TestHostileUnit(t *testing.T) {
	// Literals section with n literals of the value 7, and no sequences.
	rle := func(n int) []byte {
		v := n<<4 | 3<<2 | 1
		return []byte{byte(v), byte(v >> 8), byte(v >> 16), 7, 0}
	}
	// One literal and one match, by predefined tables: offset code 8, a long match.
	for _, row := range []struct {
		state string
		unit  []byte
		want  error
	}{
		{"sound: 1024 sevens", rle(1024), nil},
		{"sound: stored", bytes.Repeat([]byte{7}, 1024), nil},
		{"a byte short", rle(1023), delta.ErrFormat},
		{"a byte long", rle(1025), delta.ErrFormat},
		{"a bomb", rle(1<<20 - 1), delta.ErrFormat},
		{"tables of a block that is not there", []byte{3 | 1<<4, 0, 0, 0}, delta.ErrFormat},
		{"sequence tables of a block that is not there", []byte{1 << 3, 7, 1, 0xfc, 1, 2, 3}, delta.ErrFormat},
		{"a match before the beginning", []byte{1 << 3, 7, 1, 0x54, 5, 10, 20, 0xff, 0xff, 0xff}, delta.ErrFormat},
		{"noise", []byte{0xf1, 0x4d, 0x3a, 0x99, 0x12, 0x55}, delta.ErrFormat},
		{"one byte", []byte{0}, delta.ErrFormat},
	} {
		blob := container(row.unit)
		x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: 1024})
		require.NoError(t, err, row.state)
		whole := bytes.Repeat([]byte{0xaa}, 2048)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = x.Build(0, blocks.Sources{Blob: bytes.NewReader(blob)}, whole[512:1536])
		runtime.ReadMemStats(&after)
		require.Less(t, int64(after.TotalAlloc-before.TotalAlloc), x.Memory(), row.state)
		require.ErrorIs(t, err, row.want, row.state)
		require.Equal(t, bytes.Repeat([]byte{0xaa}, 512), whole[:512], row.state)
		require.Equal(t, bytes.Repeat([]byte{0xaa}, 512), whole[1536:], row.state)
		if row.want == nil {
			require.Equal(t, bytes.Repeat([]byte{7}, 1024), whole[512:1536], row.state)
		}
	}
}

// A unit and the sum of it in its directory may be exchanged together: the index has the sum
// of the directory, and tells.
func TestExchangedDirectory(t *testing.T) {
	unit := bytes.Repeat([]byte{7}, 1024)
	blob := container(unit)
	at := len(blob) - len(unit)
	other := bytes.Repeat([]byte{8}, 1024)
	sum := sha256.Sum256(other)
	copy(blob[at-16:], sum[:16])
	copy(blob[at:], other)
	x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: 1024})
	require.NoError(t, err)
	require.ErrorIs(t, x.Build(0, blocks.Sources{Blob: bytes.NewReader(blob)}, make([]byte, 1024)), delta.ErrFormat)
}

// Scanning and building allocate what the header says, once, and nothing per frame.
func TestMemory(t *testing.T) {
	want := system(22, 6<<20, 4096)
	old := edited(23, want, 4096)
	blob := encode(t, want, mkblocks.Options{Depth: 4})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: int64(len(want))})
	require.NoError(t, err)
	running := bytes.NewReader(old)
	require.NoError(t, x.Scan(blocks.Running, running, int64(len(old)), nil))
	dst := make([]byte, 512<<10)
	src := blocks.Sources{Blob: bytes.NewReader(blob), Running: running, Done: bytes.NewReader(want)}
	for i := range x.Frames() {
		_, n := x.Frame(i)
		require.NoError(t, x.Build(i, src, dst[:n]))
	}
	runtime.ReadMemStats(&after)
	// The total is what was ever allocated; what scanning took is free by the time that building begins.
	require.Less(t, int64(after.TotalAlloc-before.TotalAlloc), x.Memory()+2<<20)
	var again runtime.MemStats
	for i := range x.Frames() {
		_, n := x.Frame(i)
		require.NoError(t, x.Build(i, src, dst[:n]))
	}
	runtime.ReadMemStats(&again)
	require.Less(t, int64(again.TotalAlloc-after.TotalAlloc), int64(256<<10), "a second pass allocates next to nothing")
	t.Logf("states %d, allocated %d", x.Memory(), after.TotalAlloc-before.TotalAlloc)
}

// Build is used against its contract.
func TestBuildRefuses(t *testing.T) {
	want := system(24, 200000, 512)
	blob := encode(t, want, small)
	x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: int64(len(want))})
	require.NoError(t, err)
	require.ErrorIs(t, x.Scan(3+blocks.Spare, nil, 0, nil), delta.ErrLimit)
	require.ErrorIs(t, x.Scan(blocks.Running, nil, -1, nil), delta.ErrLimit)
	require.ErrorIs(t, x.Scan(blocks.Running, nil, blocks.MaxSize+1, nil), delta.ErrLimit)
	src := blocks.Sources{Blob: bytes.NewReader(blob)}
	dst := make([]byte, 64<<10)
	require.ErrorIs(t, x.Build(-1, src, dst), delta.ErrFormat)
	err = x.Build(x.Frames(), src, dst)
	require.ErrorIs(t, err, delta.ErrFormat)
	require.ErrorContains(t, err, "frame 4 of 4:")
	require.Equal(t, []int{0, 3, 4, 4}, []int{x.FrameAt(-1), x.FrameAt(199999), x.FrameAt(200000), x.FrameAt(1 << 50)}, "behind the end is no frame")
	require.ErrorIs(t, x.Build(0, src, dst[1:]), delta.ErrFormat)
	require.ErrorIs(t, x.Build(1, src, dst), delta.ErrBase, "what stands before the frame is not there")
	src.Done = bytes.NewReader(want)
	require.NoError(t, x.Build(1, src, dst))
	require.ErrorIs(t, x.Scan(blocks.Running, src.Done.(io.ReaderAt), 10, nil), delta.ErrLimit)
	src.Check = func(int64, []byte) bool { return false }
	require.ErrorIs(t, x.Build(1, src, dst), delta.ErrFormat, "an image that is not the manifest's")
	src = blocks.Sources{Blob: failing{bytes.NewReader(blob), 0}, Done: src.Done}
	err = x.Build(1, src, dst)
	require.ErrorIs(t, err, errMedium)
	require.False(t, known(err))
}

// Whatever stands in a blob, with sums that are right, it costs no panic, no more memory than
// agreed, and what an old slot lacks is not invented.
func FuzzIndex(f *testing.F) {
	want := system(25, 8000, 512)
	f.Add(encode(f, want, small))
	f.Add(encode(f, append(append(want[:3000:3000], make([]byte, blocks.Leaf)...), want[:3000]...), small))
	f.Add(container(bytes.Repeat([]byte{7}, 1024)))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) < blocks.HeaderSize {
			return
		}
		blob = reseal(blob, func([]byte) {})
		size := int64(binary.LittleEndian.Uint64(blob[16:]))
		x, err := blocks.Open(bytes.NewReader(blob), int64(len(blob)), blocks.Limits{Memory: plenty, Size: size})
		if err != nil {
			require.True(t, known(err), "%v", err)
			return
		}
		old := bytes.NewReader(want)
		require.NoError(t, x.Scan(blocks.Running, old, int64(len(want)), nil))
		for i := range min(x.Frames(), 4) {
			_, n := x.Frame(i)
			if err := x.Build(i, blocks.Sources{Blob: bytes.NewReader(blob), Running: old, Done: old}, make([]byte, n)); err != nil {
				require.True(t, known(err), "%v", err)
			}
		}
	})
}

// Whatever a unit holds, unpacking it costs no panic.
func FuzzUnit(f *testing.F) {
	f.Add([]byte{1 << 3, 7, 1, 0x54, 5, 10, 20, 0xff, 0xff, 0xff})
	f.Add(bytes.Repeat([]byte{7}, 1024))
	f.Fuzz(func(t *testing.T, unit []byte) {
		if len(unit) == 0 || len(unit) > 1024 {
			return
		}
		out, err := fetchAll(container(unit), 1024)
		if err != nil {
			require.ErrorIs(t, err, delta.ErrFormat)
			return
		}
		require.Len(t, out, 1024)
	})
}
