package recode_test

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
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
// more, and with less room do not pass.
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
		for less := max(0, n-40); less < n; less++ {
			_, err = call(new(recode.Coder), params, src, make([]byte, less))
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
		refused("a symbol that is none", join(plain[:22], []byte{20}, plain[22:])),
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

// put24 is a number of three bytes.
func put24(v int) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16)} }

// zstdRow is the header of a block of so many bytes, the last one, and what follows.
func zstdRow(kind, size int, rest ...byte) []byte { return append(put24(1|kind<<1|size<<3), rest...) }

// What Expand reads of zstd is what an old slot holds: any bytes.
func TestZstdExpandBounds(t *testing.T) {
	const raw, rle, compressed = 0, 1, 2
	const most = 128 << 10
	bad := recode.ErrFormat
	block := func(rest ...byte) []byte { return zstdRow(compressed, len(rest), rest...) }
	// A literal header of type, format, both sizes.
	huffman := func(kind, format, regen, packed int) []byte { return put24(kind | format<<2 | regen<<4 | packed<<14) }
	// One sequence by tables of one symbol each, behind literals as given.
	one := func(literals []byte, ll, of, ml byte, stream ...byte) []byte {
		return block(join(literals, []byte{1, 0x54, ll, of, ml}, stream)...)
	}
	none, a := []byte{0}, []byte{1 << 3, 'a'}
	many := func(n int) []byte { return join([]byte{255}, put24(n - 0x7f00)[:2]) }
	row := func(state string, want error, src []byte) bounded {
		return bounded{state: state, params: []byte{0}, src: src, want: want}
	}
	call := func(kind recode.Kind) func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return func(c *recode.Coder, params, src, dst []byte) (int, error) { return c.Expand(kind, params, src, dst) }
	}
	tree := []byte{128, 0x10} // two symbols of a bit each
	requireBounded(t, call(recode.Zstd),
		row("a raw block", nil, zstdRow(raw, 1, 'a')),
		bounded{state: "a flag that nobody knows", params: []byte{0x20}, src: zstdRow(raw, 1, 'a'), want: recode.ErrUnsupported},
		bounded{state: "a parameter too many", params: []byte{0, 0}, src: zstdRow(raw, 1, 'a'), want: bad},
		row("the longest block", nil, zstdRow(rle, most, 'a')),
		row("a block longer by one", bad, zstdRow(rle, most+1, 'a')),
		row("a type that is none", bad, zstdRow(3, 1, 'a')),
		row("a block of nothing", bad, block()),
		row("the most literals", nil, block(join(put24(1|3<<2|most<<4), []byte{'a', 0})...)),
		row("a literal more", bad, block(join(put24(1|3<<2|(most+1)<<4), []byte{'a', 0})...)),
		row("literals and no number of sequences", bad, block(1<<3, 'a')),
		row("a tree longer than what it is in", bad, block(join(huffman(2, 0, 1, 1), []byte{255, 0})...)),
		row("a number of sequences of three bytes, cut", bad, block(0, 255)),
		row("a number of sequences of two bytes, cut", bad, block(0, 128)),
		row("more sequences than there is room for", recode.ErrRoom, block(join(none, many(43690), []byte{0x54, 1, 2, 0, 1})...)).in(1000),
		row("more sequences than a block can hold", bad, block(join(none, many(43691), []byte{0x54, 1, 2, 0, 1})...)).in(1000),
		row("bytes behind no sequences", bad, block(0, 0, 0)),
		row("sequences without tables", bad, block(0, 1)),
		row("a table that is not there", bad, block(0, 1, 0x54, 1, 2)),
		row("a symbol that is none", bad, one(none, 36, 2, 0, 4)),
		row("four streams", nil, block(join(huffman(2, 1, 3, 12), tree, []byte{1, 0, 1, 0, 1, 0, 2, 2, 2, 1, 0})...)),
		row("four streams without their lengths", bad, block(join(huffman(2, 1, 3, 3), tree, []byte{1, 0})...)),
		row("four streams and nothing of them", bad, block(join(huffman(2, 1, 3, 2), tree, []byte{0})...)),
		row("four streams for two literals", bad, block(join(huffman(2, 1, 2, 12), tree, []byte{1, 0, 1, 0, 1, 0, 2, 2, 2, 1, 0})...)),
		row("one stream", nil, block(join(huffman(2, 0, 1, 3), tree, []byte{2, 0})...)),
		row("a stream that has a bit too many", bad, block(join(huffman(2, 0, 1, 3), tree, []byte{4, 0})...)),
		row("a tree from before, which is not there", bad, block(join(huffman(3, 0, 1, 1), []byte{1, 0})...)),
		row("a tree of too many bits", bad, block(join(huffman(2, 0, 1, 3), []byte{129, 0xbb, 2, 0})...)),
		row("a weight of too many bits", bad, block(join(huffman(2, 0, 1, 3), []byte{128, 0xc0, 2, 0})...)),
		row("a tree that no last symbol completes", bad, block(join(huffman(2, 0, 1, 3), []byte{129, 0x31, 2, 0})...)),
		row("a sequence", nil, one(a, 1, 2, 0, 4)),
		row("tables from before, which are not there", bad, block(join(none, []byte{1, 0xfc, 1})...)),
		row("a sequence with a bit too many", bad, one(a, 1, 2, 0, 8)),
		row("seven bits", nil, one(a, 1, 7, 0, 0x80)),
		row("bits that do not begin", bad, one(a, 1, 7, 0, 0, 0)),
		row("no bits", bad, one(a, 1, 2, 0)),
	)

	reps := func(n ...uint64) []byte { return append([]byte{0}, uv(n...)...) }
	matches := func(state string, want error, params, src []byte) bounded {
		return bounded{state: state, params: params, src: src, want: want}
	}
	requireBounded(t, call(recode.ZstdMatches),
		matches("a match", nil, reps(1, 4, 8), one(a, 1, 2, 0, 4)),
		matches("more literals than there are", bad, reps(1, 4, 8), one(none, 1, 2, 0, 4)),
		matches("two distances", bad, reps(1, 4), one(a, 1, 2, 0, 4)),
		matches("the largest distance", nil, reps(1, 4, 1<<30-1), one(a, 1, 2, 0, 4)),
		matches("a distance larger by one", bad, reps(1, 4, 1<<30), one(a, 1, 2, 0, 4)),
		matches("as much without a match as there may be", nil, reps(1, 4, 8), bytes.Repeat(zstdRow(rle, most, 'a'), 126)),
		matches("more without a match", recode.ErrUnsupported, reps(1, 4, 8), bytes.Repeat(zstdRow(rle, most, 'a'), 127)),
	)

	two := []byte{2 << 3, 'a', 'b'}
	requireBounded(t, call(recode.ZstdContent),
		row("a raw block", nil, zstdRow(raw, 1, 'a')),
		row("a block of one byte", nil, zstdRow(rle, 300, 'a')),
		row("literals", nil, block(2<<3, 'a', 'b', 0)),
		bounded{state: "a flag", params: []byte{1}, src: zstdRow(raw, 1, 'a'), want: bad},
		bounded{state: "a parameter", params: []byte{0, 0}, src: zstdRow(raw, 1, 'a'), want: bad},
		row("a match", nil, one(a, 1, 2, 0, 4)),
		row("literals behind a match", nil, one(two, 1, 2, 0, 4)),
		row("a match from before the beginning", bad, one(a, 1, 2, 0, 5)),
		row("a match with itself", bad, one(none, 0, 1, 0, 3)),
		row("a match of more literals than there are", bad, one(none, 1, 2, 0, 4)),
		row("a match as long as a block", nil, one(a, 1, 2, 52, 0xfc, 0xff, 4)),
		row("a match longer by one", bad, one(a, 1, 2, 52, 0xfd, 0xff, 4)),
		row("a literal behind a match as long as a block", bad, one(two, 1, 2, 52, 0xfc, 0xff, 4)),
		row("more sequences than fit beside the literals", bad, block(join(put24(1|3<<2|3<<4), []byte{'a'}, many(43690), []byte{0x54, 1, 2, 0, 1})...)),
	)
}

// in is the same call with little room.
func (b bounded) in(room int) bounded {
	b.room = room
	return b
}

// distribution describes a table of codes by how many states each has (RFC 8878, section 4.1.1).
func distribution(log int, counts ...int) []byte {
	pairs := []int{log - 5, 4}
	left := 1 << log
	for i := 0; i < len(counts); i++ {
		n := bits.Len(uint(left + 1))
		short := 1<<n - 1 - (left + 1)
		switch v := counts[i] + 1; {
		case v < short:
			pairs = append(pairs, v, n-1)
		case v < 1<<(n-1):
			pairs = append(pairs, v, n)
		default:
			pairs = append(pairs, v+short, n)
		}
		if left -= counts[i]; counts[i] == 0 {
			pairs = append(pairs, 0, 2) // and no more zeros
		}
	}
	return bitsOf(pairs...)
}

// What packs to zstd believes no column, and writes no block that a decoder would not read as it was meant.
func TestZstdPackBounds(t *testing.T) {
	const raw, rle, compressed = 0, 1, 2
	const most = 128 << 10
	const content = 1
	bad := recode.ErrFormat
	form := func(state string, want error, flags byte, literals, records, control, long []byte) bounded {
		params := append([]byte{flags}, uv(uint64(len(literals)), uint64(len(records)/6), uint64(len(control)))...)
		return bounded{state: state, params: params, src: join(literals, records, control, long), want: want}
	}
	control := func(kind, literals, format, size, sequences int, rest ...byte) []byte {
		return join([]byte{byte(kind | literals<<3 | format<<5)}, put24(size), put24(sequences), rest)
	}
	zeros := func(n int) []byte { return make([]byte, n) }
	plain := func(state string, want error, format, n int) bounded {
		return form(state, want, 0, zeros(n), nil, control(compressed, 0, format, n, 0), nil)
	}
	tree := []byte{128, 0x10}                               // two symbols of a bit each
	deep := []byte{138, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10} // eleven, the last two of 11 bits
	huffman := func(state string, want error, format int, literals, tree []byte) bounded {
		return form(state, want, 0, literals, nil, control(compressed, 2, format, len(literals), 0, tree...), nil)
	}
	described := func(b []byte) []byte { return append([]byte{byte(len(b))}, b...) }
	offsets := func(state string, want error, counts []int) bounded {
		tables := join([]byte{0x64, 1}, distribution(8, counts...), []byte{0})
		return form(state, want, 0, []byte{'a'}, []byte{1, 0, 4, 0, 0, 0}, control(compressed, 0, 0, 1, 1, tables...), nil)
	}
	one := control(compressed, 0, 0, 1, 1, 0x54, 1, 2, 0)
	sequence := func(state string, want error, l, m, o byte) bounded {
		return form(state, want, 0, []byte{'a'}, []byte{l, m, o, 0, 0, 0}, one, nil)
	}
	long := func(state string, want error, n int) bounded {
		return form(state, want, 0, []byte{'a'}, []byte{1, 255, 4, 0, 0, 0}, control(compressed, 0, 0, 1, 1, 0), put24(n))
	}
	byRaw := []byte{raw, 1, 0, 0}
	sound := form("a raw block", nil, 0, []byte{'a'}, nil, byRaw, nil)
	cut := sound
	cut.state, cut.want, cut.params = "a parameter too many", bad, append(bytes.Clone(sound.params), 0)
	short, around := cut, cut
	short.state, short.params = "no sizes", []byte{0}
	around.state, around.params = "records whose size overflows", append([]byte{0}, uv(1, 1<<63, 4)...)
	requireBounded(t, func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return c.Pack(recode.Zstd, params, src, dst)
	},
		sound, cut, short, around,
		form("records that no block takes", bad, 0, []byte{'a'}, zeros(6), byRaw, nil),
		form("long lengths that no block takes", bad, 0, []byte{'a'}, nil, byRaw, zeros(3)),
		form("literals that no block takes", bad, 0, []byte{'a', 'b'}, nil, byRaw, nil),
		form("a block cut off", bad, 0, []byte{'a'}, nil, byRaw[:3], nil),
		form("a type that is none", bad, 0, nil, nil, control(3, 0, 0, 0, 0), nil),
		form("the longest block", nil, 0, nil, nil, join([]byte{rle}, put24(most), []byte{'a'}), nil),
		form("a block longer by one", bad, 0, nil, nil, join([]byte{rle}, put24(most+1), []byte{'a'}), nil),
		plain("31 literals", nil, 0, 31),
		plain("32 literals in five bits", bad, 0, 32),
		plain("4095 literals", nil, 1, 4095),
		plain("4096 literals in twelve bits", bad, 1, 4096),
		plain("a form of literals that is none", bad, 2, 1),
		plain("literals that fill a block", nil, 3, most-4),
		plain("literals that fill more than a block", bad, 3, most-3),
		form("a tree from before, which is not there", bad, 0, nil, nil, control(compressed, 3, 0, 0, 0), nil),
		huffman("1023 coded literals", nil, 0, zeros(1023), tree),
		huffman("1024 coded literals in ten bits", bad, 0, zeros(1024), tree),
		huffman("1022 bytes of coded literals", nil, 0, bytes.Repeat([]byte{10}, 738), deep),
		huffman("1024 bytes of coded literals in ten bits", bad, 0, bytes.Repeat([]byte{10}, 739), deep),
		huffman("a literal without a code", bad, 0, []byte{2}, tree),
		huffman("four streams", nil, 1, zeros(3), tree),
		// The byte behind these literals has a code as well.
		huffman("four streams for two literals", bad, 1, []byte{50, 50}, join([]byte{127 + 51}, zeros(25), []byte{0x10})),
		huffman("a tree that no last symbol completes", bad, 0, zeros(1), []byte{129, 0x31}),
		huffman("weights that skip beyond the last", bad, 0, zeros(1), described(bitsOf(append([]int{1, 4, 1, 6}, slices.Repeat([]int{3, 2}, 30)...)...))),
		huffman("weights without their states", bad, 0, zeros(1), described(append(distribution(5, 0, 32), 1))),
		offsets("32 codes of distances", nil, slices.Repeat([]int{8}, 32)),
		offsets("33 codes of distances", bad, append(slices.Repeat([]int{8}, 31), 4, 4)),
		sequence("a sequence", nil, 1, 0, 4),
		sequence("a literal length without a code", bad, 2, 0, 4),
		sequence("a distance without a code", bad, 1, 0, 8),
		sequence("a length without a code", bad, 1, 1, 4),
		sequence("a distance of nothing", bad, 1, 0, 0),
		form("tables from before, which are not there", bad, 0, []byte{'a'}, []byte{0, 0, 1, 0, 0, 0}, control(compressed, 0, 0, 1, 1, 0xfc), nil),
		long("the smallest long length", nil, 255),
		long("a long length that is short", bad, 254),
		long("the largest long length", nil, most-1),
		long("a length longer than a block", bad, most),
		form("content", nil, content, []byte("aaaa"), []byte{1, 0, 4, 0, 0, 0}, one, nil),
		form("content of more literals than told", bad, content, []byte("aaaa"), []byte{1, 0, 4, 0, 0, 0}, control(compressed, 0, 0, 0, 1, 0x54, 1, 2, 0), nil),
		form("content shorter than its match", bad, content, []byte("aaa"), []byte{1, 0, 4, 0, 0, 0}, one, nil),
	)

	// Of ZstdMatches without any content: the map, and four bytes for the range decoder to begin with.
	breaks := func(state string, want error, pairs ...int64) bounded {
		var b []byte
		for i := 0; i < len(pairs); i += 2 {
			b = binary.AppendVarint(binary.AppendUvarint(b, uint64(pairs[i])), pairs[i+1])
		}
		return bounded{state: state, params: append([]byte{0}, uv(1, 4, 8, 0, 0, 0, 0, uint64(len(b)))...), src: join(b, zeros(4)), want: want}
	}
	with := func(state string, params []byte, src []byte) bounded {
		return bounded{state: state, params: params, src: src, want: bad}
	}
	requireBounded(t, func(c *recode.Coder, params, src, dst []byte) (int, error) {
		return c.Pack(recode.ZstdMatches, params, src, dst)
	},
		breaks("no map", nil),
		with("no corrections", []byte{0, 1, 4, 8, 0, 0, 0, 0, 0}, zeros(3)),
		with("a part without its size", []byte{0, 1, 4, 8, 0, 0, 0, 0}, zeros(4)),
		with("a parameter too many", []byte{0, 1, 4, 8, 0, 0, 0, 0, 0, 0}, zeros(4)),
		with("a map larger than all", []byte{0, 1, 4, 8, 0, 0, 0, 0, 9}, zeros(4)),
		with("a gap cut off", []byte{0, 1, 4, 8, 0, 0, 0, 0, 1}, []byte{0x80, 0, 0, 0, 0}),
		with("a gap of eleven bytes", []byte{0, 1, 4, 8, 0, 0, 0, 0, 12}, join(bytes.Repeat([]byte{0x80}, 10), zeros(6))),
		with("a shift cut off", []byte{0, 1, 4, 8, 0, 0, 0, 0, 1}, zeros(5)),
		breaks("as many breaks as there may be", nil, make([]int64, 2*1536)...),
		breaks("a break more", bad, make([]int64, 2*1537)...),
		breaks("the largest gap", nil, 1<<30-1, 0),
		breaks("a gap larger by one", bad, 1<<30, 0),
		breaks("the last position", nil, 0, 0, 1<<30-1, 0),
		breaks("a position behind the last", bad, 0, 0, 1<<30-1, 0, 1, 0),
		breaks("the largest shifts", nil, 0, 1<<30-1, 1, 2-1<<31),
		breaks("a shift larger by one", bad, 0, 1<<30),
		breaks("a shift smaller by one", bad, 0, -1<<30),
		with("more sequences than a block can hold", []byte{0, 1, 4, 8, 0, 0, 0, 7, 0}, join(control(compressed, 0, 0, 0, 43691), zeros(4))),
		with("a sequence in no content", []byte{0, 1, 4, 8, 0, 0, 0, 7, 0}, join(control(compressed, 0, 0, 0, 1), zeros(4))),
	)
}
