package recode_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// smallDeflate is a stream with blocks of every type, the first five of which zlib could have made.
func smallDeflate(t testing.TB) []byte {
	content := prose(5, 1200)
	var out bytes.Buffer
	for i, level := range []int{6, 0, flate.HuffmanOnly, 9} {
		w, err := flate.NewWriter(&out, level)
		require.NoError(t, err)
		_, err = w.Write(content[i*300 : i*300+300])
		require.NoError(t, err)
		require.NoError(t, w.Flush())
	}
	w, err := kflate.NewWriter(&out, 5)
	require.NoError(t, err)
	_, err = w.Write([]byte("short, so that its code is the fixed one"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

// class fails the test unless err is nil or of a class that callers know.
func class(t testing.TB, err error) {
	if err != nil && !errors.Is(err, recode.ErrFormat) && !errors.Is(err, recode.ErrRoom) && !errors.Is(err, recode.ErrUnsupported) {
		t.Fatalf("error of no class: %v", err)
	}
}

// Whatever is cut or flipped, both directions end with an error of a known class or with other bytes, stay within
// the room that they were given, and never panic. What was expanded from damaged bytes packs to those bytes.
func TestDeflateDamage(t *testing.T) {
	whole := smallDeflate(t)
	for _, content := range []bool{false, true} {
		pieces, _, err := recode.SplitDeflate(whole, content, 1<<20, 1<<20)
		require.NoError(t, err)
		p := pieces[0]
		var c recode.Coder
		guarded := make([]byte, len(p.Plain)+1000)
		try := func(params, src []byte) {
			for i := range guarded {
				guarded[i] = 0xa5
			}
			n, err := c.Expand(recode.Deflate, params, src, guarded[:len(p.Plain)])
			class(t, err)
			for _, b := range guarded[len(p.Plain):] {
				require.EqualValues(t, 0xa5, b)
			}
			if err == nil && p.Params[0] == params[0] {
				packed := make([]byte, len(whole)+100)
				k, err := c.Pack(recode.Deflate, params, guarded[:n], packed)
				require.NoError(t, err)
				// Bits behind the last block are the parameters' and not the stream's.
				require.Equal(t, src[:k-1], packed[:k-1])
			}
		}
		pack := func(params, plain []byte) {
			room := make([]byte, len(whole)+10)
			n, err := c.Pack(recode.Deflate, params, plain, room[:len(whole)])
			class(t, err)
			require.LessOrEqual(t, n, len(whole))
			require.Equal(t, make([]byte, 10), room[len(whole):])
		}
		for i := range whole {
			for bit := range 8 {
				b := bytes.Clone(whole)
				b[i] ^= 1 << bit
				try(p.Params, b)
			}
			n, err := c.Expand(recode.Deflate, p.Params, whole[:i], guarded[:len(p.Plain)])
			require.Error(t, err, "cut to %d: %d", i, n)
			class(t, err)
			_, err = c.Pack(recode.Deflate, p.Params, p.Plain, make([]byte, i))
			require.ErrorIs(t, err, recode.ErrRoom, i)
		}
		for i := range p.Plain {
			for bit := range 8 {
				b := bytes.Clone(p.Plain)
				b[i] ^= 1 << bit
				pack(p.Params, b)
			}
			_, err := c.Pack(recode.Deflate, p.Params, p.Plain[:i], make([]byte, len(whole)))
			require.ErrorIs(t, err, recode.ErrFormat, i)
			_, err = c.Expand(recode.Deflate, p.Params, whole, make([]byte, i))
			require.ErrorIs(t, err, recode.ErrRoom, i)
		}
		for i := range p.Params {
			for v := range 256 {
				b := bytes.Clone(p.Params)
				b[i] = byte(v)
				try(b, whole)
				pack(b, p.Plain)
			}
			_, err := c.Pack(recode.Deflate, p.Params[:i], p.Plain, make([]byte, len(whole)))
			require.ErrorIs(t, err, recode.ErrFormat)
			_, err = c.Expand(recode.Deflate, p.Params[:i], whole, make([]byte, len(p.Plain)))
			require.ErrorIs(t, err, recode.ErrFormat)
		}
		_, err = c.Pack(recode.Deflate, append(bytes.Clone(p.Params), 0), p.Plain, make([]byte, len(whole)))
		require.ErrorIs(t, err, recode.ErrFormat)
	}
}

// A device recodes thousands of pieces: after the first one, nothing is allocated that stays, and little that does not.
func TestDeflateMemory(t *testing.T) {
	whole := smallDeflate(t)
	pieces, _, err := recode.SplitDeflate(whole, true, 1<<20, 1<<20)
	require.NoError(t, err)
	p := pieces[0]
	var c recode.Coder
	plain, packed := make([]byte, len(p.Plain)), make([]byte, len(whole))
	r := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range min(b.N, 100) {
			_, err := c.Expand(recode.Deflate, p.Params, whole, plain)
			require.NoError(b, err)
			_, err = c.Pack(recode.Deflate, p.Params, plain, packed)
			require.NoError(b, err)
		}
	})
	require.Less(t, r.AllocedBytesPerOp(), int64(40<<10))
}

// FuzzDeflate packs anything and expands anything; what expands must pack to the same.
func FuzzDeflate(f *testing.F) {
	whole := smallDeflate(f)
	for _, content := range []bool{false, true} {
		for _, limit := range []int{1 << 20, 1} {
			pieces, _, err := recode.SplitDeflate(whole, content, limit, 1<<20)
			require.NoError(f, err)
			for _, p := range pieces {
				f.Add(p.Params, p.Plain, true)
				f.Add(p.Params, whole[p.Offset:p.Offset+p.Source], false)
			}
		}
	}
	f.Fuzz(func(t *testing.T, params, data []byte, pack bool) {
		var c recode.Coder
		room := make([]byte, 64<<10)
		if pack {
			n, err := c.Pack(recode.Deflate, params, data, room)
			class(t, err)
			require.LessOrEqual(t, n, len(room))
			return
		}
		n, err := c.Expand(recode.Deflate, params, data, room)
		class(t, err)
		if err != nil {
			return
		}
		packed := make([]byte, len(data)+1)
		k, err := c.Pack(recode.Deflate, params, room[:n], packed)
		require.NoError(t, err)
		if k > 1 { // the first and the last byte have bits from the parameters
			require.Equal(t, data[1:k-1], packed[1:k-1])
		}
	})
}

// The desk finds the streams itself, so splitting must bear anything too.
func FuzzSplitDeflate(f *testing.F) {
	whole := smallDeflate(f)
	f.Add(whole, true)
	f.Add(whole, false)
	f.Fuzz(func(t *testing.T, data []byte, content bool) {
		pieces, n, err := recode.SplitDeflate(data, content, 5000, 1<<20)
		class(t, err)
		if err != nil {
			return
		}
		var c recode.Coder
		var out []byte
		for _, p := range pieces {
			b := make([]byte, p.Length)
			_, err := c.Pack(recode.Deflate, p.Params, p.Plain, b)
			require.NoError(t, err)
			out = append(out, b...)
		}
		require.Equal(t, data[:n], out)
	})
}
