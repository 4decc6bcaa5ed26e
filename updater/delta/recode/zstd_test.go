package recode_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// zstdBlocks returns the blocks of a frame whose content is n lines of text,
// with blocks of each kind among them.
func zstdBlocks(t testing.TB, n int) []byte {
	t.Helper()
	var text bytes.Buffer
	for i := range n {
		fmt.Fprintf(&text, "%d: slot %c holds %d sectors at %#x\n", i, 'A'+rune(i&1), i*i%977, i*4096)
	}
	text.Write(make([]byte, n*100)) // long matches
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(1))
	require.NoError(t, err)
	frame := e.EncodeAll(text.Bytes(), nil)
	var h zstd.Header
	require.NoError(t, h.Decode(frame))
	return frame[h.HeaderSize:]
}

// zstdForm is both ways of one run of blocks.
type zstdForm struct{ blocks, expand, pack, plain []byte }

func expandZstd(t testing.TB, blocks []byte) zstdForm {
	t.Helper()
	s, err := recode.ScanZstd(blocks)
	require.NoError(t, err)
	f := zstdForm{blocks: blocks}
	f.expand, f.pack = s.Params(0, s.Len(), false)
	f.plain = make([]byte, s.Room(0, s.Len()))
	var c recode.Coder
	n, err := c.Expand(recode.Zstd, f.expand, blocks, f.plain)
	require.NoError(t, err)
	f.plain = f.plain[:n]
	return f
}

func requireClass(t testing.TB, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, recode.ErrFormat) && !errors.Is(err, recode.ErrRoom) && !errors.Is(err, recode.ErrUnsupported) {
		require.NoError(t, err, "not one of the classes")
	}
}

// A table that an earlier block brought serves blocks that are taken apart
// later and alone: it comes with the parameters.
func TestZstdAnyRunOfBlocks(t *testing.T) {
	blocks := zstdBlocks(t, 12000)
	s, err := recode.ScanZstd(blocks)
	require.NoError(t, err)
	require.Greater(t, s.Len(), 6)
	var c recode.Coder
	for from := range s.Len() {
		for to := from + 1; to <= s.Len(); to++ {
			a, _ := s.At(from)
			b, _ := s.At(to)
			expand, pack := s.Params(from, to, false)
			plain := make([]byte, s.Room(from, to))
			n, err := c.Expand(recode.Zstd, expand, blocks[a:b], plain)
			require.NoError(t, err)
			out := make([]byte, b-a)
			m, err := c.Pack(recode.Zstd, pack, plain[:n], out)
			require.NoError(t, err)
			require.True(t, bytes.Equal(blocks[a:b], out[:m]), "blocks %d to %d", from, to)
		}
	}
}

// With one byte less than it takes, both directions report so, and never write
// behind the room that they were given.
func TestZstdRoom(t *testing.T) {
	f := expandZstd(t, zstdBlocks(t, 300))
	var c recode.Coder
	for room := range len(f.plain) {
		buf := make([]byte, len(f.plain)+16)
		_, err := c.Expand(recode.Zstd, f.expand, f.blocks, buf[:room])
		require.ErrorIs(t, err, recode.ErrRoom)
		require.Equal(t, make([]byte, len(buf)-room), buf[room:])
	}
	for room := range len(f.blocks) {
		buf := make([]byte, len(f.blocks)+16)
		_, err := c.Pack(recode.Zstd, f.pack, f.plain, buf[:room])
		require.ErrorIs(t, err, recode.ErrRoom)
		require.Equal(t, make([]byte, len(buf)-room), buf[room:])
	}
}

// Damage anywhere is an error of a known class or other output; it is never a
// panic, and it leaves the Coder usable.
func TestZstdDamage(t *testing.T) {
	f := expandZstd(t, zstdBlocks(t, 60))
	var c recode.Coder
	room := make([]byte, 1<<20)
	try := func(what string, expand, blocks, pack, plain []byte) {
		if blocks != nil {
			_, err := c.Expand(recode.Zstd, expand, blocks, room)
			requireClass(t, err)
			_, err = c.Expand(recode.ZstdContent, expand, blocks, room)
			requireClass(t, err)
			return
		}
		_, err := c.Pack(recode.Zstd, pack, plain, room)
		requireClass(t, err)
	}
	each := func(b []byte, f func(damaged []byte)) {
		for n := range b {
			f(b[:n:n])
			for bit := range 8 {
				d := bytes.Clone(b)
				d[n] ^= 1 << bit
				f(d)
			}
		}
	}
	each(f.blocks, func(d []byte) { try("blocks", f.expand, d, nil, nil) })
	each(f.expand, func(d []byte) { try("parameters", d, f.blocks, nil, nil) })
	each(f.plain, func(d []byte) { try("plain", nil, nil, f.pack, d) })
	each(f.pack, func(d []byte) { try("parameters", nil, nil, d, f.plain) })

	n, err := c.Expand(recode.Zstd, f.expand, f.blocks, room)
	require.NoError(t, err)
	require.Equal(t, f.plain, room[:n])
}

// Once it has its tables, a Coder allocates nothing, whatever it is given.
func TestZstdMemory(t *testing.T) {
	f := expandZstd(t, zstdBlocks(t, 4000))
	var c recode.Coder
	room := make([]byte, len(f.plain))
	run := func() {
		n, err := c.Expand(recode.Zstd, f.expand, f.blocks, room)
		require.NoError(t, err)
		require.Equal(t, len(f.plain), n)
		_, err = c.Pack(recode.Zstd, f.pack, f.plain, room)
		require.NoError(t, err)
	}
	run()
	require.LessOrEqual(t, testing.AllocsPerRun(5, run), 20.0, "besides what testify takes")
}

func FuzzZstdExpand(f *testing.F) {
	form := expandZstd(f, zstdBlocks(f, 60))
	f.Add(form.expand, form.blocks)
	f.Fuzz(func(t *testing.T, params, src []byte) {
		var c recode.Coder
		room := make([]byte, 1<<20)
		for _, kind := range []recode.Kind{recode.Zstd, recode.ZstdMatches, recode.ZstdContent} {
			_, err := c.Expand(kind, params, src, room)
			requireClass(t, err)
		}
		if _, err := recode.ScanZstd(src); err != nil {
			require.ErrorIs(t, err, recode.ErrFormat)
		}
	})
}

func FuzzZstdPack(f *testing.F) {
	form := expandZstd(f, zstdBlocks(f, 60))
	f.Add(form.pack, form.plain)
	f.Fuzz(func(t *testing.T, params, plain []byte) {
		var c recode.Coder
		_, err := c.Pack(recode.Zstd, params, plain, make([]byte, 1<<20))
		requireClass(t, err)
	})
}

// foreseen is a new run of blocks by the matches of an old one.
type foreseen struct {
	*recode.Foreseen
	old, blocks, plain []byte
}

func foresee(t testing.TB, lines int) foreseen {
	t.Helper()
	content := func(b []byte) (text []byte) {
		d, err := zstd.NewReader(nil)
		require.NoError(t, err)
		defer d.Close()
		text, err = d.DecodeAll(append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x70}, b...), nil)
		require.NoError(t, err)
		return text
	}
	f := foreseen{old: zstdBlocks(t, lines), blocks: zstdBlocks(t, lines+lines/7)}
	text := content(f.blocks)
	old, err := recode.ScanZstd(f.old)
	require.NoError(t, err)
	s, err := recode.ScanZstd(f.blocks)
	require.NoError(t, err)
	f.Foreseen, err = s.Foresee(0, s.Len(), text, old, 0, old.Len(), []recode.Moved{{Old: 0, New: 0}, {Old: 4000, New: 4010}})
	require.NoError(t, err)
	room := make([]byte, f.Old)
	var c recode.Coder
	n, err := c.Expand(recode.ZstdMatches, f.Expand, f.old, room)
	require.NoError(t, err)
	require.Equal(t, f.Old, n)
	f.plain = append(append(text, room...), f.Extra...)
	return f
}

// Blocks come back from content, old matches and corrections; whatever of
// these is damaged, the error has a known class, or the output is another.
func TestZstdMatches(t *testing.T) {
	f := foresee(t, 20)
	var c recode.Coder
	room := make([]byte, 1<<16)
	n, err := c.Pack(recode.ZstdMatches, f.Pack, f.plain, room)
	require.NoError(t, err)
	require.Equal(t, f.blocks, room[:n])
	for short := range n {
		_, err := c.Pack(recode.ZstdMatches, f.Pack, f.plain, make([]byte, short))
		require.ErrorIs(t, err, recode.ErrRoom)
	}
	damage := func(b []byte, try func(d []byte) error) {
		for n := range b {
			requireClass(t, try(b[:n:n]))
			for bit := range 8 {
				d := bytes.Clone(b)
				d[n] ^= 1 << bit
				requireClass(t, try(d))
			}
		}
	}
	damage(f.plain, func(d []byte) error {
		_, err := c.Pack(recode.ZstdMatches, f.Pack, d, room)
		return err
	})
	damage(f.Pack, func(d []byte) error {
		_, err := c.Pack(recode.ZstdMatches, d, f.plain, room)
		return err
	})
	damage(f.old, func(d []byte) error {
		_, err := c.Expand(recode.ZstdMatches, f.Expand, d, room)
		return err
	})
	damage(f.Expand, func(d []byte) error {
		_, err := c.Expand(recode.ZstdMatches, d, f.old, room)
		return err
	})
	n, err = c.Pack(recode.ZstdMatches, f.Pack, f.plain, room)
	require.NoError(t, err)
	require.Equal(t, f.blocks, room[:n], "after all that")
}

func FuzzZstdMatches(f *testing.F) {
	form := foresee(f, 40)
	f.Add(form.Pack, form.plain)
	f.Fuzz(func(t *testing.T, params, plain []byte) {
		var c recode.Coder
		_, err := c.Pack(recode.ZstdMatches, params, plain, make([]byte, 1<<20))
		requireClass(t, err)
	})
}
