package recode_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

func uv(n ...uint64) (b []byte) {
	for _, v := range n {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// bitsOf writes numbers of so many bits each, the lowest first.
func bitsOf(pairs ...int) (b []byte) {
	n := 0
	for ; len(pairs) > 0; pairs = pairs[2:] {
		for i := range pairs[1] {
			if n%8 == 0 {
				b = append(b, 0)
			}
			b[n/8] |= byte(pairs[0]>>i&1) << (n % 8)
			n++
		}
	}
	return b
}

// bounded is one call of a Coder, and what it has to say.
type bounded struct {
	state       string
	params, src []byte
	room        int // 0: enough
	want        error
}

// requireBounded makes the calls. Those that are well write as much as they say and not a byte
// more, and with a byte less of room do not pass.
func requireBounded(t *testing.T, call func(c *recode.Coder, params, src, dst []byte) (int, error), rows ...bounded) {
	for _, row := range rows {
		room := row.room
		if room == 0 {
			room = 2 << 20
		}
		// Neither an input nor an output has a byte behind it that could be taken for its own.
		src, params := row.src[:len(row.src):len(row.src)], row.params[:len(row.params):len(row.params)]
		n, err := call(new(recode.Coder), params, src, make([]byte, room))
		require.ErrorIs(t, err, row.want, row.state)
		if row.want != nil {
			continue
		}
		again, err := call(new(recode.Coder), params, src, make([]byte, n))
		require.NoError(t, err, row.state)
		require.Equal(t, n, again, row.state)
		if n > 0 {
			_, err = call(new(recode.Coder), params, src, make([]byte, n-1))
			require.ErrorIs(t, err, recode.ErrRoom, row.state)
		}
	}
}

// deflateForm is a plain form of kind Deflate, and its parameters.
func deflateForm(flags byte, body string, records, blocks, headers []byte) (params, plain []byte) {
	params = append([]byte{flags}, uv(uint64(len(body)), uint64(len(records)/4), uint64(len(blocks)/4), uint64(len(headers)))...)
	return params, join([]byte(body), records, blocks, headers)
}

// deflateHeader has codes of the given bits for a, b, 256 and the first distance, and as many symbols as
// its first bytes say.
func deflateHeader(lits, dists, a, b, end, dist byte) []byte {
	h := join([]byte{lits, dists, 15}, bytes.Repeat([]byte{5}, 19), []byte{128 + 86, a, b, 255, 128 + 8, end})
	return join(h, make([]byte, lits), []byte{dist}, make([]byte, dists))
}

// What packs to deflate believes no column: each thing that the others do not bear out is refused.
func TestDeflatePackBounds(t *testing.T) {
	const closed, content, final = 1 << 4, 1 << 3, 1
	const stored, fixed, header = 0 << 1, 1 << 1, 2 << 1
	row := func(state string, want error, flags byte, body string, records, blocks, headers []byte) bounded {
		params, plain := deflateForm(flags, body, records, blocks, headers)
		return bounded{state: state, params: params, src: plain, want: want}
	}
	changed := func(b bounded, state string, change func(b *bounded)) bounded {
		b.state, b.want = state, recode.ErrFormat
		change(&b)
		return b
	}
	block := func(kind byte, n int) []byte { return []byte{kind, byte(n), byte(n >> 8), byte(n >> 16)} }
	record := func(gap, length, dist int) []byte {
		return []byte{byte(gap), byte(length), byte(dist), byte(dist >> 8)}
	}
	bad := recode.ErrFormat
	sound := row("two literals in a fixed block", nil, closed, "ab", nil, block(fixed|final, 2), nil)
	long := string(make([]byte, 1<<16))
	aa := func(h []byte) bounded { return row("a header", nil, closed, "aa", nil, block(header|final, 2), h) }
	plain := deflateHeader(0, 0, 1, 0, 1, 0)
	with := func(i int, v byte) []byte {
		h := bytes.Clone(plain)
		h[i] = v
		return h
	}
	refused := func(state string, h []byte) bounded {
		b := aa(h)
		b.state, b.want = state, bad
		return b
	}
	requireBounded(t, func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return c.Pack(recode.Deflate, params, src, dst)
	},
		sound,
		row("a flag that nobody knows", recode.ErrUnsupported, closed|1<<6, "ab", nil, block(fixed|final, 2), nil),
		changed(sound, "no parameters", func(b *bounded) { b.params = nil }),
		changed(sound, "no byte for the bits before", func(b *bounded) { b.params = []byte{1} }),
		changed(sound, "no byte for the bits behind", func(b *bounded) { b.params = []byte{1 << 5} }),
		changed(sound, "a parameter too many", func(b *bounded) { b.params = append(b.params, 0) }),
		changed(sound, "a block that is not there", func(b *bounded) { b.params = append([]byte{closed}, uv(2, 0, 2, 0)...) }),
		changed(sound, "a body longer than all", func(b *bounded) { b.params = append([]byte{closed}, uv(7, 0, 0, 0)...) }),
		changed(sound, "more entries than there are", func(b *bounded) { b.params = append([]byte{closed}, uv(2, 2, 0, 0)...) }),
		changed(sound, "a byte in no column", func(b *bounded) { b.src = append(b.src, 0) }),
		row("more tokens than there are", bad, closed, "ab", nil, block(fixed|final, 3), nil),
		row("fewer tokens than there are", bad, closed, "ab", nil, block(fixed|final, 1), nil),
		row("a gap longer than the body", bad, closed, "ab", record(3, 0, 1), block(fixed|final, 4), nil),
		row("the largest distance", nil, closed, "a", record(1, 0, 1<<15), block(fixed|final, 2), nil),
		row("a distance larger by one", bad, closed, "a", record(1, 0, 1<<15+1), block(fixed|final, 2), nil),
		row("a gap and nothing else", nil, closed, "ab", record(1, 0, 0), block(fixed|final, 2), nil),
		row("an entry for something unknown", bad, closed, "ab", record(1, 2, 0), block(fixed|final, 2), nil),
		row("content of a match", nil, closed|content, "aaaa", record(1, 0, 1), block(fixed|final, 2), nil),
		row("a match longer than the content", bad, closed|content, "aaa", record(1, 0, 1), block(fixed|final, 2), nil),
		row("an entry that no token takes", bad, closed, "ab", join(record(2, 0, 0), record(0, 0, 0)), block(fixed|final, 2), nil),
		row("a match that no token takes", bad, closed, "ab", record(2, 0, 1), block(fixed|final, 2), nil),
		row("a mark for no match", bad, closed, "ab", record(2, 1, 0), block(fixed|final, 2), nil),
		row("a header that no block takes", bad, closed, "ab", nil, block(fixed|final, 2), plain),
		row("a block of an unknown type", bad, closed, "ab", nil, join(block(fixed, 1), block(8, 1)), nil),
		row("the longest stored block", nil, closed, long[1:], nil, block(stored|final, 1<<16-1), nil),
		row("a stored block longer by one", bad, closed, long, nil, block(stored|final, 1<<16), nil),
		row("a match in a stored block", bad, closed, "a", record(0, 0, 1), block(stored|final, 1), nil),
		aa(plain),
		aa(deflateHeader(31, 31, 1, 0, 1, 0)),
		refused("a header of two bytes", plain[:2]),
		refused("a header cut in its first lengths", plain[:21]),
		refused("a header cut in its lengths", plain[:len(plain)-1]),
		refused("289 literals", deflateHeader(32, 0, 1, 0, 1, 0)),
		refused("33 distances", deflateHeader(0, 32, 1, 0, 1, 0)),
		refused("20 lengths of lengths", join([]byte{0, 0, 16, 5}, plain[3:])),
		refused("a length of a length that has no bits", with(3, 8)),
		refused("a symbol that is none", with(len(plain)-1, 20)),
		refused("lengths beyond the last distance", with(len(plain)-1, 32)),
		refused("a repetition of nothing", join(plain[:22], []byte{16}, bytes.Repeat([]byte{0}, 94), plain[23:])),
		refused("a literal without a code", deflateHeader(0, 0, 0, 1, 1, 0)),
		refused("no code for the end", deflateHeader(0, 0, 1, 1, 0, 0)),
		row("a match without a code", bad, closed, "aa", record(2, 0, 1), block(header|final, 3), plain),
	)
}

// Old bytes that are said to be deflate are whatever is in the slot.
func TestDeflateExpandBounds(t *testing.T) {
	params := func(body, records, headers int) []byte {
		return append([]byte{1 << 4}, uv(uint64(body), uint64(records), 1, uint64(headers))...)
	}
	bad := recode.ErrFormat
	// Three codes of one bit.
	over, plain := deflateForm(1<<4, "", nil, []byte{2<<1 | 1, 0, 0, 0}, deflateHeader(0, 0, 1, 1, 1, 0))
	twice := make([]byte, 200)
	n, err := new(recode.Coder).Pack(recode.Deflate, over, plain, twice)
	require.NoError(t, err)
	// A dynamic block up to its lengths: 1 is 00, 18 is 01, and what begins with 1 is no code.
	dynamic := []int{5, 3, 0, 5, 0, 5, 15, 4, 0, 6, 2, 3}
	for i := 3; i < 19; i++ {
		dynamic = append(dynamic, map[bool]int{true: 2}[i == 17], 3)
	}
	lengths := append(dynamic, 2, 2, 86, 7, 0, 2, 2, 2, 127, 7, 2, 2, 9, 7, 0, 2) // a and 256 have a bit each
	requireBounded(t, func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return c.Expand(recode.Deflate, params, src, dst)
	},
		bounded{state: "an empty fixed block", params: params(0, 0, 0), src: bitsOf(3, 3, 0, 7)},
		bounded{state: "a stored byte", params: params(1, 0, 0), src: []byte{1, 1, 0, 0xfe, 0xff, 'a'}},
		bounded{state: "a stored length that its complement denies", params: params(1, 0, 0), src: []byte{1, 1, 0, 0xff, 0xff, 'a'}, want: bad},
		bounded{state: "a stored block cut off", params: params(1, 0, 0), src: []byte{1, 1, 0, 0xfe, 0xff}, want: bad},
		bounded{state: "a type that is none", params: params(0, 0, 0), src: bitsOf(7, 3, 0, 7), want: bad},
		bounded{state: "nothing", params: params(0, 0, 0), want: bad},
		bounded{state: "more codes than bits", params: params(0, 0, len(plain)-4), src: twice[:n], want: bad},
		bounded{state: "a header with a code for no length", params: params(0, 0, 28), src: bitsOf(append(lengths, 1, 1, 1, 7)...), want: bad},
		bounded{state: "the last length", params: params(0, 1, 0), src: bitsOf(3, 3, 0xa3, 8, 0, 5, 0, 7)},
		bounded{state: "a length behind the last", params: params(0, 1, 0), src: bitsOf(3, 3, 0x63, 8, 0, 6, 0, 5, 0, 7), want: bad},
		bounded{state: "the last distance", params: params(0, 1, 0), src: bitsOf(3, 3, 0x40, 7, 0x17, 5, 0, 13, 0, 7)},
		bounded{state: "a distance behind the last", params: params(0, 1, 0), src: bitsOf(3, 3, 0x40, 7, 0x0f, 5, 0, 14, 0, 7), want: bad},
	)
}

// LZ4 in both directions: lengths and distances are compared with what is there.
func TestLZ4Bounds(t *testing.T) {
	bad := recode.ErrFormat
	params := func(unit, size, body, records, blocks uint64) []byte { return uv(unit, size, body, records, blocks) }
	le := func(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }
	a := []byte("a")
	requireBounded(t, func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return c.Pack(recode.LZ4, params, src, dst)
	},
		bounded{state: "a literal", params: params(0, 1, 1, 0, 0), src: a},
		bounded{state: "a parameter too many", params: append(params(0, 1, 1, 0, 0), 0), src: a, want: bad},
		bounded{state: "the largest unit", params: params(1<<20, 0, 1, 0, 1), src: join(a, le(1))},
		bounded{state: "a unit larger by one", params: params(1<<20+1, 0, 1, 0, 1), src: join(a, le(1)), want: bad},
		bounded{state: "neither unit nor size", params: params(0, 0, 1, 0, 0), src: a, want: bad},
		bounded{state: "unit and size", params: params(16, 1, 1, 0, 1), src: join(a, le(1)), want: bad},
		bounded{state: "blocks without a unit", params: params(0, 1, 1, 0, 1), src: join(a, le(1)), want: bad},
		bounded{state: "a long match that never comes", params: params(0, 1, 1, 1, 0), src: join(a, []byte{1, 2, 0, 0}), want: bad},
		bounded{state: "an entry for something unknown", params: params(0, 1, 1, 1, 0), src: join(a, []byte{1, 3, 0, 0}), want: bad},
		bounded{state: "a byte in no column", params: params(0, 1, 1, 0, 0), src: join(a, a), want: bad},
		bounded{state: "a block longer than the body", params: params(16, 0, 1, 0, 1), src: join(a, le(2)), want: bad},
		bounded{state: "a block of 2^31 bytes", params: params(16, 0, 1, 0, 1), src: join(a, le(1<<31)), want: bad},
		bounded{state: "a byte in no block", params: params(16, 0, 2, 0, 1), src: join(a, a, le(1)), want: bad},
		bounded{state: "a match behind the last block", params: params(0, 1, 1, 1, 0), src: join(a, []byte{1, 0, 1, 0}), want: bad},
		bounded{state: "a match as long as the block", params: params(0, 5, 5, 1, 0), src: join([]byte("aaaaa"), []byte{1, 0, 1, 0})},
		bounded{state: "a match longer than the block", params: params(0, 4, 4, 1, 0), src: join([]byte("aaaa"), []byte{1, 0, 1, 0}), want: bad},
	)
	requireBounded(t, func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return c.Expand(recode.LZ4, params, src, dst)
	},
		bounded{state: "a literal", params: params(0, 1, 1, 0, 0), src: []byte{0x10, 'a'}},
		bounded{state: "a body larger than any room", params: params(0, 1, 1<<26, 0, 0), want: recode.ErrRoom},
		bounded{state: "a body larger than any number", params: params(0, 1, 1<<26+1, 0, 0), want: bad},
		bounded{state: "less content than told", params: params(2, 0, 2, 0, 1), src: []byte{0x10, 'a'}, want: bad},
		bounded{state: "fewer matches than told", params: params(0, 1, 1, 1, 0), src: []byte{0x10, 'a'}, want: bad},
		bounded{state: "a unit of zeros", params: params(4, 0, 0, 0, 1), src: make([]byte, 4), want: bad},
		bounded{state: "a unit that is not there", params: params(4, 0, 1, 0, 1), src: []byte{0, 0x10, 'a'}, want: bad},
		bounded{state: "no block", params: params(0, 1, 1, 0, 0), want: bad},
		bounded{state: "literals that are not there", params: params(0, 5, 5, 0, 0), src: []byte{0x50, 'a'}, want: bad},
		bounded{state: "a length without an end", params: params(0, 300, 300, 0, 0), src: []byte{0xf0, 255}, want: bad},
		bounded{state: "half a distance", params: params(0, 5, 5, 1, 0), src: []byte{0x10, 'a', 1}, want: bad},
		bounded{state: "a last token that nothing would remember", params: params(0, 1, 1, 0, 0), src: []byte{0x11, 'a'}, want: recode.ErrUnsupported},
		bounded{state: "a match", params: params(0, 5, 5, 1, 0), src: []byte{0x10, 'a', 1, 0, 0}},
		bounded{state: "a match with itself", params: params(0, 5, 5, 1, 0), src: []byte{0x10, 'a', 0, 0, 0}, want: bad},
		bounded{state: "a match from before the block", params: params(0, 5, 10, 1, 0), src: []byte{0x50, 'a', 'b', 'c', 'd', 'e', 0x00, 1, 0, 0x10, 'x'}, want: bad},
	)
}
