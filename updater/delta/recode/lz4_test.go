package recode_test

import (
	"bytes"
	"encoding/binary"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// lz4Blocks are the blocks of an LZ4 frame as the lz4 program makes it, each with its content; blocks that it stored are left out.
func lz4Blocks(t *testing.T, content []byte, level string) (blocks, contents [][]byte) {
	path, err := exec.LookPath("lz4")
	if err != nil {
		absent(t, "lz4")
		t.Skip("needs lz4")
	}
	c := exec.Command(path, level, "-B4", "-BI", "--no-frame-crc", "-c")
	c.Stdin = bytes.NewReader(content)
	frame, err := c.Output()
	require.NoError(t, err)
	require.EqualValues(t, 0x60, frame[4]&0x7c, "independent blocks, no checksums, no content size")
	for at := 7; ; {
		n := int(binary.LittleEndian.Uint32(frame[at:]))
		at += 4
		if n == 0 {
			return blocks, contents
		}
		part := content[:min(64<<10, len(content))]
		content = content[len(part):]
		size := n &^ (1 << 31)
		if n == size {
			blocks, contents = append(blocks, frame[at:at+size]), append(contents, part)
		}
		at += size
	}
}

// Blocks of any level come back bit for bit, one behind the other as in squashfs or padded as in EROFS.
func TestLZ4RoundTrip(t *testing.T) {
	for name, content := range contents() {
		for _, level := range []string{"-1", "-3", "-9", "-12"} {
			blocks, parts := lz4Blocks(t, content, level)
			var row, units, all []byte
			unit := 4096
			for _, b := range blocks {
				for unit < len(b) {
					unit *= 2
				}
			}
			same := true
			for i, b := range blocks {
				row, all = append(row, b...), append(all, parts[i]...)
				units = append(append(units, make([]byte, unit-len(b))...), b...)
				same = same && (len(parts[i]) == 64<<10 || i == len(blocks)-1)
			}
			checkLZ4(t, name+level, units, all, unit, 0)
			if same {
				checkLZ4(t, name+level, row, all, 0, 64<<10)
			}
		}
	}
}

func checkLZ4(t *testing.T, name string, packed, content []byte, unit, size int) {
	t.Helper()
	p, err := recode.SplitLZ4(packed, unit, size, 1<<20)
	require.NoError(t, err, name)
	require.True(t, bytes.Equal(content, p.Plain[:p.Body]), name)
	var c recode.Coder
	plain, again := make([]byte, len(p.Plain)), make([]byte, len(packed))
	n, err := c.Expand(recode.LZ4, p.Params, packed, plain)
	require.NoError(t, err, name)
	require.Equal(t, len(plain), n, name)
	require.True(t, bytes.Equal(p.Plain, plain), name)
	n, err = c.Pack(recode.LZ4, p.Params, plain, again)
	require.NoError(t, err, name)
	require.Equal(t, len(packed), n, name)
	require.True(t, bytes.Equal(packed, again), name)
}

// smallLZ4 is a row and units of two blocks, written by hand from the format's description: literals and matches
// with lengths on both sides of what a nibble and a byte hold.
func smallLZ4() (block, content []byte) {
	run := func(n int) (b []byte) {
		for i := range n {
			b = append(b, byte(i*7+n))
		}
		return b
	}
	add := func(literals, length, dist int) {
		token, tail := 0, []byte(nil)
		if length > 0 {
			token, tail = min(length-4, 15), []byte{byte(dist), byte(dist >> 8)}
			if length-4 >= 15 {
				tail = append(append(tail, bytes.Repeat([]byte{255}, (length-19)/255)...), byte((length-19)%255))
			}
		}
		block = append(block, byte(min(literals, 15)<<4|token))
		if literals >= 15 {
			block = append(append(block, bytes.Repeat([]byte{255}, (literals-15)/255)...), byte((literals-15)%255))
		}
		text := run(literals)
		block, content = append(append(block, text...), tail...), append(content, text...)
		for range length {
			content = append(content, content[len(content)-dist])
		}
	}
	for _, n := range []int{1, 14, 15, 16, 254, 255, 256, 269, 270, 271} {
		add(n, n+4, 1)
		add(0, n+4, len(content))
	}
	add(600, 1000, 77)
	add(5, 0, 0)
	return block, content
}

func TestLZ4Lengths(t *testing.T) {
	block, content := smallLZ4()
	checkLZ4(t, "alone", block, content, 0, len(content))
	checkLZ4(t, "shorter than the size", block, content, 0, len(content)+1)
	checkLZ4(t, "two", append(bytes.Clone(block), block...), append(bytes.Clone(content), content...), 0, len(content))
	unit := append(make([]byte, 8192-len(block)), block...)
	checkLZ4(t, "two units", append(bytes.Clone(unit), unit...), append(bytes.Clone(content), content...), 8192, 0)
	checkLZ4(t, "no padding", block, content, len(block), 0)
}

// The same as for deflate: an error of a known class, no byte outside of the room, no panic.
func TestLZ4Damage(t *testing.T) {
	block, content := smallLZ4()
	unit := append(make([]byte, 10), block...)
	for _, s := range []struct {
		packed     []byte
		unit, size int
	}{{append(bytes.Clone(block), block...), 0, len(content)}, {append(bytes.Clone(unit), unit...), len(unit), 0}} {
		p, err := recode.SplitLZ4(s.packed, s.unit, s.size, 1<<20)
		require.NoError(t, err)
		var c recode.Coder
		room := make([]byte, len(p.Plain)+100)
		guard := func(n int) {
			for i, b := range room[n:] {
				if b != 0 {
					t.Fatalf("byte %d behind the room", i)
				}
			}
		}
		expand := func(params, src []byte) {
			n, err := c.Expand(recode.LZ4, params, src, room[:len(p.Plain)])
			class(t, err)
			guard(len(p.Plain))
			if err == nil && bytes.Equal(params, p.Params) {
				again := make([]byte, len(s.packed))
				_, err = c.Pack(recode.LZ4, params, room[:n], again)
				require.NoError(t, err)
				require.True(t, bytes.Equal(src, again))
			}
			clear(room[:len(p.Plain)])
		}
		pack := func(params, plain []byte) {
			_, err := c.Pack(recode.LZ4, params, plain, room[:len(s.packed)])
			class(t, err)
			guard(len(s.packed))
			clear(room[:len(s.packed)])
		}
		for i := range s.packed {
			for bit := range 8 {
				b := bytes.Clone(s.packed)
				b[i] ^= 1 << bit
				// A flipped bit may make a block that ends earlier, or zeros of padding; then it packs to what it was.
				expand(p.Params, b)
			}
			_, err := c.Expand(recode.LZ4, p.Params, s.packed[:i], room[:len(p.Plain)])
			require.ErrorIs(t, err, recode.ErrFormat)
			_, err = c.Pack(recode.LZ4, p.Params, p.Plain, room[:i])
			require.ErrorIs(t, err, recode.ErrRoom)
			clear(room)
		}
		for i := range p.Plain {
			for bit := range 8 {
				b := bytes.Clone(p.Plain)
				b[i] ^= 1 << bit
				pack(p.Params, b)
			}
			_, err := c.Pack(recode.LZ4, p.Params, p.Plain[:i], room)
			require.ErrorIs(t, err, recode.ErrFormat)
			clear(room)
		}
		for i := range p.Params {
			for v := range 256 {
				b := bytes.Clone(p.Params)
				b[i] = byte(v)
				expand(b, s.packed)
				pack(b, p.Plain)
			}
		}
	}
}

func FuzzLZ4(f *testing.F) {
	block, content := smallLZ4()
	for _, unit := range []int{0, len(block)} {
		size := len(content)
		if unit > 0 {
			size = 0
		}
		p, err := recode.SplitLZ4(block, unit, size, 1<<20)
		require.NoError(f, err)
		f.Add(p.Params, p.Plain, true)
		f.Add(p.Params, block, false)
	}
	f.Fuzz(func(t *testing.T, params, data []byte, pack bool) {
		var c recode.Coder
		room := make([]byte, 64<<10)
		if pack {
			_, err := c.Pack(recode.LZ4, params, data, room)
			class(t, err)
			return
		}
		n, err := c.Expand(recode.LZ4, params, data, room)
		class(t, err)
		if err == nil {
			again := make([]byte, len(data))
			k, err := c.Pack(recode.LZ4, params, room[:n], again)
			require.NoError(t, err)
			require.Equal(t, data[:k], again[:k])
		}
	})
}
