package delta_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"runtime"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// container wraps one frame of 16 image bytes, made against 32 bytes of base,
// in a flawless header: the signer was fooled, or is the attacker.
func container(frame []byte) []byte { return containerOf(frame, 0, 0) }

// containerOf names features and a workspace as well.
func containerOf(frame []byte, features uint32, workspace int64) []byte {
	return append(tableOf(features, workspace, [2]uint32{16, uint32(len(frame))}), frame...)
}

// tableOf is the header in front of frames of these lengths, of the image and of the blob.
func tableOf(features uint32, workspace int64, frames ...[2]uint32) []byte {
	le := binary.LittleEndian
	const body = 64
	b := make([]byte, delta.HeaderSize)
	size, most := uint32(0), [2]uint32{}
	for _, f := range frames {
		size += f[0]
		most = [2]uint32{max(most[0], f[0]), max(most[1], f[1])}
		b = le.AppendUint32(le.AppendUint32(b, f[0]), f[1])
	}
	copy(b, delta.Magic)
	le.PutUint16(b[8:], delta.Version)
	le.PutUint16(b[10:], delta.FlagBase)
	le.PutUint32(b[12:], features)
	le.PutUint64(b[16:], uint64(size))
	le.PutUint64(b[24:], 32)
	le.PutUint64(b[64:], uint64(delta.MemoryNeeded(len(frames), delta.Maxima{Frame: int64(most[0]), Blob: int64(most[1]), Body: body, Workspace: workspace}, features)))
	le.PutUint32(b[72:], uint32(len(frames)))
	le.PutUint32(b[76:], most[0])
	le.PutUint32(b[80:], most[1])
	le.PutUint32(b[84:], body)
	le.PutUint32(b[88:], uint32(workspace))
	s := sha256.New()
	s.Write(b[:96])
	s.Write(b[delta.HeaderSize:])
	s.Sum(b[96:96])
	return b
}

func uv(n ...uint64) (b []byte) {
	for _, v := range n {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func op(kind, length uint64, step ...uint64) []byte {
	return uv(append([]uint64{length<<3 | kind}, step...)...)
}

// padded is a number in more groups than it needs.
func padded(b []byte, groups int) []byte {
	b = append(bytes.Clone(b), make([]byte, groups-len(b))...)
	for i := range b[:groups-1] {
		b[i] |= 0x80
	}
	return b
}

func stored(b []byte) []byte {
	if len(b) == 0 {
		return uv(0)
	}
	return append(uv(uint64(len(b)), 0), b...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// A frame inside a flawless container that is signed by the wrong hand: each is refused
// before the old image is read, and none panics, writes elsewhere or allocates
// beyond the header's word.
func TestHostileFrame(t *testing.T) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	require.NoError(t, err)
	bomb := e.EncodeAll(make([]byte, 100<<20), nil)
	small := e.EncodeAll(make([]byte, 16), nil)
	short := e.EncodeAll(make([]byte, 15), nil)
	var wide bytes.Buffer
	w, err := zstd.NewWriter(&wide, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(2*delta.MaxWindow))
	require.NoError(t, err)
	w.Write(make([]byte, 8))
	require.NoError(t, w.Flush()) // or the size is known, and the window that small
	w.Write(make([]byte, 8))
	require.NoError(t, w.Close())
	text := []byte("sixteen bytes ..")
	frame := func(control, difference, literal []byte) []byte {
		return join([]byte{delta.CodingOps}, control, difference, literal)
	}
	ops := func(o ...[]byte) []byte { return frame(stored(join(o...)), stored(nil), stored(nil)) }
	huge := uint64(1)<<62 - 1

	for _, row := range []struct {
		state string
		frame []byte
		want  error // nil: all is well
	}{
		{"sound: literals", frame(stored(op(delta.OpLiteral, 16)), stored(nil), stored(text)), nil},
		{"sound: the end of the old image", ops(op(delta.OpCopyAt, 16, 32)), nil},
		{"a transform", []byte{2}, delta.ErrUnsupported},
		{"nothing", []byte{delta.CodingOps}, delta.ErrFormat},
		{"no operations", ops(), delta.ErrFormat},
		{"unknown operation", ops(op(6, 16)), delta.ErrFormat},
		{"operation of no length", ops(op(delta.OpZero, 0), op(delta.OpZero, 16)), delta.ErrFormat},
		{"too few bytes", ops(op(delta.OpZero, 15)), delta.ErrFormat},
		{"too many bytes", ops(op(delta.OpZero, 17)), delta.ErrFormat},
		{"far too many bytes", ops(op(delta.OpZero, 1<<59)), delta.ErrFormat},
		{"lengths that overflow", ops(op(delta.OpZero, 1), op(delta.OpZero, 1<<60-1)), delta.ErrFormat},
		{"lengths that overflow to the right sum", ops(append(bytes.Repeat(op(delta.OpZero, 1<<60-1), 16), op(delta.OpZero, 32)...)), delta.ErrFormat},
		{"before the old image", ops(op(delta.OpCopyAt, 16, 1)), delta.ErrFormat},
		{"past the old image", ops(op(delta.OpCopyAt, 16, 34)), delta.ErrFormat},
		{"a displacement that overflows", ops(op(delta.OpCopyAt, 16, huge)), delta.ErrFormat},
		{"displacements that add up to overflow", ops(op(delta.OpCopyAt, 1, 62), op(delta.OpCopyAt, 15, huge)), delta.ErrFormat},
		{"a number without end", frame(stored(bytes.Repeat([]byte{0x80}, 20)), stored(nil), stored(nil)), delta.ErrFormat},
		{"a number of ten groups", frame(stored(append(bytes.Repeat([]byte{0xff}, 9), 1)), stored(nil), stored(nil)), delta.ErrFormat},
		{"sound: a number padded to nine groups", frame(stored(padded(op(delta.OpZero, 16), 9)), stored(nil), stored(nil)), nil},
		{"a number padded to ten groups", frame(stored(padded(op(delta.OpZero, 16), 10)), stored(nil), stored(nil)), delta.ErrFormat},
		{"an operation behind the frame", ops(op(delta.OpZero, 16), op(delta.OpZero, 1)), delta.ErrFormat},
		{"step missing", ops(op(delta.OpCopyAt, 16)), delta.ErrFormat},
		{"literals missing", frame(stored(op(delta.OpLiteral, 16)), stored(nil), stored(text[1:])), delta.ErrFormat},
		{"literals left over", frame(stored(op(delta.OpLiteral, 16)), stored(nil), stored(append(text, 0))), delta.ErrFormat},
		{"differences missing", frame(stored(op(delta.OpDiff, 16)), stored(text[1:]), stored(nil)), delta.ErrFormat},
		{"differences left over", frame(stored(op(delta.OpCopy, 16)), stored(text), stored(nil)), delta.ErrFormat},
		{"bytes behind the streams", append(ops(op(delta.OpZero, 16)), 0), delta.ErrFormat},
		{"stream longer than the frame", join([]byte{delta.CodingOps}, uv(1000, 0)), delta.ErrFormat},
		{"stream of 2^62 bytes", join([]byte{delta.CodingOps}, uv(huge, 0)), delta.ErrFormat},
		{"packed stream of 2^62 bytes", join([]byte{delta.CodingOps}, uv(16, huge)), delta.ErrFormat},
		{"stream beyond the stated body", join([]byte{delta.CodingOps}, uv(65, uint64(len(small))), small), delta.ErrFormat},
		{"stream shorter than it says", frame(stored(op(delta.OpLiteral, 16)), stored(nil), join(uv(16, uint64(len(short))), short)), delta.ErrFormat},
		{"stream longer than it says", frame(stored(op(delta.OpLiteral, 16)), stored(nil), join(uv(15, uint64(len(small))), small)), delta.ErrFormat},
		{"a bomb", frame(stored(op(delta.OpLiteral, 16)), stored(nil), join(uv(16, uint64(len(bomb))), bomb)), delta.ErrFormat},
		{"a window above the limit", frame(stored(op(delta.OpLiteral, 16)), stored(nil), join(uv(16, uint64(wide.Len())), wide.Bytes())), delta.ErrFormat},
		{"no zstd", frame(stored(op(delta.OpLiteral, 16)), stored(nil), join(uv(16, 4), []byte("zstd"))), delta.ErrFormat},
	} {
		blob := container(row.frame)
		p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: 16})
		require.NoError(t, err, row.state)
		whole := bytes.Repeat([]byte{0xaa}, 64)
		base := &counting{ReaderAt: bytes.NewReader(make([]byte, 32))}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = p.Decode(0, row.frame, delta.Sources{Old: base}, whole[16:32])
		runtime.ReadMemStats(&after)
		require.Less(t, int64(after.TotalAlloc-before.TotalAlloc), p.Memory(), row.state)
		require.Equal(t, bytes.Repeat([]byte{0xaa}, 16), whole[:16], row.state)
		require.Equal(t, bytes.Repeat([]byte{0xaa}, 32), whole[32:], row.state)
		if row.want == nil {
			require.NoError(t, err, row.state)
			continue
		}
		require.ErrorIs(t, err, row.want, row.state)
		require.Zero(t, base.reads, row.state)
	}
}

// The same for frames that predict and recode: what they say about sizes, places and each
// other is believed in nothing.
func TestHostilePlain(t *testing.T) {
	const workspace = 64
	named := uint32(delta.FeaturePlain | 1<<recode.Deflate)
	// "sixteen bytes .." as one stored block of deflate: 5 bytes of header, 16 bytes.
	content := []byte("sixteen bytes ..")
	pieces, n, err := recode.SplitDeflate(join([]byte{1, 16, 0, 0xef, 0xff}, content), true, 1<<16, 1<<16)
	require.NoError(t, err)
	require.Equal(t, 21, n)
	require.Len(t, pieces, 1)
	plain, params := pieces[0].Plain, pieces[0].Params
	size := uint64(len(plain))
	frame := func(control, literal, prediction, recoding []byte) []byte {
		return join([]byte{delta.CodingPlain}, stored(control), stored(nil), stored(literal), stored(prediction), stored(recoding))
	}
	segment := func(kind, gap, length, packed, skip, take, address uint64, params []byte, expansions ...[]byte) []byte {
		return join(uv(kind, gap, length, packed, skip, take, address, uint64(len(params))), params, uv(uint64(len(expansions))), join(expansions...))
	}
	expansionAt := func(kind, offset, length, size, address uint64) []byte {
		return uv(kind, offset, length, size, address, 0)
	}
	expansion := func(kind, offset, length, size uint64) []byte { return expansionAt(kind, offset, length, size, 0) }
	zero := op(delta.OpZero, 16)
	literals := join(zero, op(delta.OpLiteral, size))
	recoded := func(s ...[]byte) []byte { return frame(literals, plain, nil, join(uv(uint64(len(s))), join(s...))) }
	sound := segment(uint64(recode.Deflate), 0, size, 21, 5, 16, 0, params)
	many := uint64(1) << 40
	// LZ4 makes nothing of nothing, as often as one likes.
	none := uv(0, 1, 0, 0, 0)
	small := uint32(delta.FeaturePlain | 1<<recode.LZ4)
	empty := func(expansions ...[]byte) []byte {
		return segment(uint64(recode.LZ4), 0, 0, 0, 0, 0, 0, none, expansions...)
	}
	nothing := func(size, address uint64) []byte {
		return join(uv(uint64(recode.LZ4), 0, 0, size, address, uint64(len(none))), none)
	}
	beside := func(s ...[]byte) []byte {
		return frame(op(delta.OpLiteral, 16), content, nil, join(uv(uint64(len(s))), join(s...)))
	}
	times := func(n int, b []byte) [][]byte { return slices.Repeat([][]byte{b}, n) }

	for _, row := range []struct {
		state    string
		frame    []byte
		features uint32
		want     error // nil: all is well
	}{
		{"sound: a frame that is the end of a compressed piece", recoded(sound), named, nil},
		{"a coding that the header does not name", recoded(sound), 1 << recode.Deflate, delta.ErrUnsupported},
		{"a kind that the header does not name", recoded(sound), delta.FeaturePlain, delta.ErrUnsupported},
		{"a kind of zero", recoded(segment(0, 0, size, 21, 5, 16, 0, params)), named, delta.ErrUnsupported},
		{"a kind that nobody knows", recoded(segment(31, 0, size, 21, 5, 16, 0, params)), named, delta.ErrUnsupported},
		{"a segment behind the frame", recoded(segment(2, 17, size, 21, 5, 16, 0, params)), named, delta.ErrFormat},
		{"a segment across the frame's end", recoded(segment(2, 1, size, 21, 5, 16, 0, params)), named, delta.ErrFormat},
		{"more taken than packed", recoded(segment(2, 0, size, 21, 6, 16, 0, params)), named, delta.ErrFormat},
		{"a segment beyond the workspace", recoded(segment(2, 0, workspace, 21, 5, 16, 0, params)), named, delta.ErrFormat},
		{"a segment that packs to less", recoded(segment(2, 0, size, 22, 5, 16, 0, params)), named, delta.ErrFormat},
		{"parameters that are none", recoded(segment(2, 0, size, 21, 5, 16, 0, []byte{0xff})), named, delta.ErrFormat},
		{"parameters longer than the stream", frame(literals, plain, nil, join(uv(1, 2, 0, size, 21, 5, 16, 0, 1000))), named, delta.ErrFormat},
		{"parameters as long as what is left with their own length", frame(literals, plain, nil, join(uv(1, 2, 0, size, 21, 5, 16, 0, 3), []byte{0, 0})), named, delta.ErrFormat},
		{"too many segments", frame(literals, plain, nil, uv(1<<20)), named, delta.ErrFormat},
		{"too many expansions", frame(literals, plain, nil, join(uv(1, 2, 0, size, 21, 5, 16, 0, 0), uv(1<<20))), named, delta.ErrFormat},
		{"an expansion before the old image", recoded(segment(2, 0, size, 21, 5, 16, 0, params, expansion(2, 1, 8, 8))), named, delta.ErrFormat},
		{"an expansion past the old image", recoded(segment(2, 0, size, 21, 5, 16, 0, params, expansion(2, 50, 8, 8))), named, delta.ErrFormat},
		{"an expansion 2^40 bytes away", recoded(segment(2, 0, size, 21, 5, 16, 0, params, expansion(2, many, 8, 8))), named, delta.ErrFormat},
		{"an expansion with an address below zero", recoded(segment(2, 0, size, 21, 5, 16, 0, params, expansionAt(2, 0, 8, 8, 1))), named, delta.ErrFormat},
		{"an expansion with an address beyond any image", recoded(segment(2, 0, size, 21, 5, 16, 0, params, expansionAt(2, 0, 8, 8, 2*many+2))), named, delta.ErrFormat},
		{"sound: an expansion at the last address", beside(empty(nothing(0, 2*many))), small, nil},
		{"an expansion behind the last address", beside(empty(nothing(0, 2*many), nothing(0, 2))), small, delta.ErrFormat},
		{"an expansion of fewer bytes than it says", beside(empty(nothing(1, 0))), small, delta.ErrBase},
		{"sound: as many segments as there may be", beside(times(4096, empty())...), small, nil},
		{"a segment more", beside(times(4097, empty())...), small, delta.ErrFormat},
		{"sound: as many expansions as there may be", beside(empty(times(4000, nothing(0, 0))...), empty(times(96, nothing(0, 0))...)), small, nil},
		{"an expansion more, of all segments", beside(empty(times(4000, nothing(0, 0))...), empty(times(97, nothing(0, 0))...)), small, delta.ErrFormat},
		{"a segment whose end overflows", recoded(segment(2, 0, size, 21, 1<<63-1, 16, 0, params)), named, delta.ErrFormat},
		{"sound: a window without a plan", frame(op(delta.OpLiteral, 16), content, uv(0), nil), named, nil},
		{"an expansion of what is not compressed", recoded(segment(2, 0, size, 21, 5, 16, 0, params, expansion(2, 0, 8, 8))), named, delta.ErrBase},
		{"a segment cut off", frame(literals, plain, nil, join(uv(1), sound[:len(sound)-1])), named, delta.ErrFormat},
		{"bytes behind the segments", frame(literals, plain, nil, join(uv(1), sound, []byte{0})), named, delta.ErrFormat},
		{"an operation from the frame into a segment", frame(op(delta.OpLiteral, 16+size), join(content, plain), nil, join(uv(1), sound)), named, delta.ErrFormat},
		{"operations missing for a segment", frame(zero, nil, nil, join(uv(1), sound)), named, delta.ErrFormat},
		{"operations for a segment that is not there", frame(literals, plain, nil, nil), named, delta.ErrFormat},
		{"a space that is none", frame(op(delta.OpCopyAt, 16, 3), nil, nil, nil), named, delta.ErrFormat},
		{"the new image before it is made", frame(op(delta.OpCopyAt, 16, 1), nil, nil, nil), named, delta.ErrFormat},
		{"an expansion where there is none", frame(op(delta.OpCopyAt, 16, 2), nil, nil, nil), named, delta.ErrFormat},
		{"a plan longer than its stream", frame(zero, nil, uv(9), nil), named, delta.ErrFormat},
		{"a plan that is none", frame(zero, nil, join(uv(3), []byte{0xff, 0xff, 0xff}), nil), named, delta.ErrFormat},
		{"plans for more windows than there are", frame(zero, nil, uv(0, 0), nil), named, delta.ErrFormat},
	} {
		blob := containerOf(row.frame, row.features, workspace)
		p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: 16})
		require.NoError(t, err, row.state)
		whole := bytes.Repeat([]byte{0xaa}, 64)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = p.Decode(0, row.frame, delta.Sources{Old: bytes.NewReader(make([]byte, 32))}, whole[16:32])
		runtime.ReadMemStats(&after)
		require.Less(t, int64(after.TotalAlloc-before.TotalAlloc), p.Memory(), row.state)
		require.Equal(t, bytes.Repeat([]byte{0xaa}, 16), whole[:16], row.state)
		require.Equal(t, bytes.Repeat([]byte{0xaa}, 32), whole[32:], row.state)
		if row.want == nil {
			require.NoError(t, err, row.state)
			require.Equal(t, content, whole[16:32], row.state)
			continue
		}
		require.ErrorIs(t, err, row.want, row.state)
	}
}

// The workspace that the header states is enough for its largest segment, with the whole
// piece beside it when the frame has only a part; a byte less is not.
func TestWorkspace(t *testing.T) {
	content := []byte("sixteen bytes ..")
	pieces, _, err := recode.SplitDeflate(join([]byte{1, 16, 0, 0xef, 0xff}, content), true, 1<<16, 1<<16)
	require.NoError(t, err)
	plain, params := pieces[0].Plain, pieces[0].Params
	size := uint64(len(plain))
	recoding := join(uv(1, uint64(recode.Deflate), 0, size, 21, 5, 16, 0, uint64(len(params))), params, uv(0))
	control := join(op(delta.OpZero, 16), op(delta.OpLiteral, size))
	frame := join([]byte{delta.CodingPlain}, stored(control), stored(nil), stored(plain), stored(nil), stored(recoding))
	decode := func(workspace int64) ([]byte, error) {
		blob := containerOf(frame, delta.FeaturePlain|1<<recode.Deflate, workspace)
		p, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: 16})
		require.NoError(t, err)
		out := make([]byte, 16)
		return out, p.Decode(0, frame, delta.Sources{Old: bytes.NewReader(make([]byte, 32))}, out)
	}
	out, err := decode(int64(size) + 21)
	require.NoError(t, err)
	require.Equal(t, content, out)
	_, err = decode(int64(size) + 20)
	require.ErrorIs(t, err, delta.ErrFormat)
}

// A table that agrees with its header still has frames that are something, and that end with
// a leaf, all but the last.
func TestFrameTable(t *testing.T) {
	for _, row := range []struct {
		state  string
		frames [][2]uint32
		want   error
	}{
		{"a leaf and a rest", [][2]uint32{{delta.Leaf, 1}, {16, 1}}, nil},
		{"a frame of no bytes", [][2]uint32{{delta.Leaf, 1}, {0, 1}, {16, 1}}, delta.ErrFormat},
		{"a frame of no blob", [][2]uint32{{delta.Leaf, 1}, {delta.Leaf, 0}, {16, 1}}, delta.ErrFormat},
		{"a frame that ends behind a leaf", [][2]uint32{{delta.Leaf + 1, 1}, {16, 1}}, delta.ErrFormat},
		{"a frame that ends before a leaf does", [][2]uint32{{delta.Leaf - 1, 1}, {16, 1}}, delta.ErrFormat},
	} {
		blob := tableOf(0, 0, row.frames...)
		size := int64(0)
		for _, f := range row.frames {
			blob = append(blob, make([]byte, f[1])...)
			size += int64(f[0])
		}
		_, err := delta.Open(bytes.NewReader(blob), int64(len(blob)), delta.Limits{Memory: plenty, Size: size})
		require.ErrorIs(t, err, row.want, row.state)
	}
}

// Blob storage that fails is told apart from a blob that is wrong.
func TestOpenReadError(t *testing.T) {
	_, err := delta.Open(failing{}, 1000, delta.Limits{})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.False(t, known(err))
}
