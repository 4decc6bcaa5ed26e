package transport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const someDigest = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" // printf foo | sha256sum

// An id is a name and nothing else, for brokers, paths and shells.
func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "pump-7", "A_b-9", strings.Repeat("x", 64)} {
		require.NoError(t, CheckID(id))
	}
	for _, id := range []string{"", "a/b", "+", "#", "a b", "..", "a.b", "ä", "a\x00", "$SYS", strings.Repeat("x", 65)} {
		require.ErrorIs(t, CheckID(id), ErrID, "%q", id)
	}
}

// Topics and names are two spellings of the same things.
func TestTopics(t *testing.T) {
	for _, k := range Kinds {
		id, kind, err := ParseTopic(Topic("pump-7", k))
		require.NoError(t, err)
		require.Equal(t, "pump-7", id)
		require.Equal(t, k, kind)
		require.LessOrEqual(t, strings.Count(Topic("pump-7", k), "/"), 7)
	}
	for _, topic := range []string{"", "ota/v1/d/", "ota/v1/d/a", "ota/v1/d/a/up/", "ota/v1/d/+/up/is", "ota/v1/d/a/up/is/x", "ota/v2/d/a/up/is"} {
		_, _, err := ParseTopic(topic)
		require.Error(t, err, topic)
	}
	for name, topic := range map[string]string{
		"timestamp.json": "ota/v1/meta/timestamp", "2.root.json": "ota/v1/meta/root-2", "10.targets.json": "ota/v1/meta/targets-10",
	} {
		got, err := MetaTopic(name)
		require.NoError(t, err)
		require.Equal(t, topic, got)
		back, err := MetaName(topic)
		require.NoError(t, err)
		require.Equal(t, name, back)
	}
	for _, name := range []string{"", ".json", "root", "0.root.json", "01.root.json", "-1.root.json", "1.1.root.json", "../x.json", "a/b.json", "ro-ot.json", "1..json"} {
		_, err := MetaTopic(name)
		require.Error(t, err, name)
	}
}

type message interface{ Encode() ([]byte, error) }

var messages = []struct {
	name  string
	m     message
	parse func([]byte) (any, error)
}{
	{"want", Want{V: 1, Statement: json.RawMessage(`{"payload":"eA=="}`), Sources: []string{"mqtt", "https://mirror.example/r"}}, anyOf(ParseWant)},
	{"get", Get{V: 1, Transfer: 1<<32 - 1, Blob: someDigest, Block: 65536, Ranges: []Range{{0, 262144}, {524288, 65536}}}, anyOf(ParseGet)},
	{"get meta", Get{V: 1, Meta: "2.root.json", Block: 4096, Ranges: []Range{{0, 1}}}, anyOf(ParseGet)},
	{"state", State{V: 1, Device: "pump-7", Slot: "a", Slots: []Slot{{Name: "a", Mark: "ok", Manifest: someDigest}}, Want: someDigest, Tries: 3, TPM: &TPM{Present: true}}, anyOf(ParseState)},
	{"event", Event{V: 1, Sequence: 9, Phase: "writing", Target: someDigest}, anyOf(ParseEvent)},
	{"progress", Progress{V: 1, Phase: "writing", Done: 1, Total: 2}, anyOf(ParseProgress)},
	{"verdict", Verdict{V: 1, ID: "x", Device: "pump-7", Release: someDigest, Result: Reverted, Reason: ReasonHealth, Log: []string{"a"}}, anyOf(ParseVerdict)},
	{"live", Live{V: 1, Online: true}, anyOf(ParseLive)},
}

func anyOf[T any](parse func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) { return parse(b) }
}

// What is said is what is heard, and bytes that are no message are refused.
func TestMessages(t *testing.T) {
	for _, c := range messages {
		data, err := c.m.Encode()
		require.NoError(t, err, c.name)
		back, err := c.parse(data)
		require.NoError(t, err, c.name)
		require.Equal(t, c.m, back, c.name)
		require.NotContains(t, string(data), `"error":""`)

		_, err = c.parse(append([]byte(`{"new_field":[{}],`), data[1:]...))
		require.NoError(t, err, "%s: a new field", c.name)
		for bad, msg := range map[string][]byte{
			"twice the same key":         append([]byte(`{"v":1,`), data[1:]...),
			"a key that differs in case": append([]byte(`{"V":1,`), data[1:]...),
			"another version":            bytes.Replace(data, []byte(`"v":1`), []byte(`"v":2`), 1),
			"bytes after the end":        append(bytes.Clone(data), "{}"...),
			"no object":                  []byte("[" + string(data) + "]"),
			"nested deeply":              append([]byte(`{"x":`+strings.Repeat("[", 50)+strings.Repeat("]", 50)+`,`), data[1:]...),
			"larger than any message":    append([]byte(`{"x":"`+strings.Repeat("x", 16<<10)+`",`), data[1:]...),
			"not UTF-8":                  append([]byte("{\"x\":\"\xff\","), data[1:]...),
			"nothing":                    nil,
		} {
			_, err := c.parse(msg)
			require.ErrorIs(t, err, ErrMessage, "%s: %s", c.name, bad)
		}
		for i := range data {
			_, err := c.parse(data[:i])
			require.ErrorIs(t, err, ErrMessage, "%s cut at %d", c.name, i)
		}
	}
}

// Requests that would overflow, or make a server work without end, are refused.
func TestGetBounds(t *testing.T) {
	good := Get{Blob: someDigest, Block: 65536, Ranges: []Range{{0, 65536}}}
	for name, change := range map[string]func(*Get){
		"no object":                       func(g *Get) { g.Blob = "" },
		"two objects":                     func(g *Get) { g.Meta = "timestamp.json" },
		"a path":                          func(g *Get) { g.Blob = "sha256:../../../etc/passwd" },
		"upper case":                      func(g *Get) { g.Blob = strings.ToUpper(g.Blob) },
		"a path as name":                  func(g *Get) { g.Blob, g.Meta = "", "../timestamp.json" },
		"a tiny block":                    func(g *Get) { g.Block = 1 },
		"a huge block":                    func(g *Get) { g.Block = MaxBlock + 1 },
		"no range":                        func(g *Get) { g.Ranges = nil },
		"too many ranges":                 func(g *Get) { g.Ranges = make([]Range, MaxRanges+1) },
		"a negative offset":               func(g *Get) { g.Ranges[0][0] = -1 },
		"an empty range":                  func(g *Get) { g.Ranges[0][1] = 0 },
		"an endless range":                func(g *Get) { g.Ranges[0][1] = 1<<63 - 1 },
		"an offset at the end of numbers": func(g *Get) { g.Ranges[0][0] = 1<<63 - 1 },
		"too much altogether":             func(g *Get) { g.Ranges = []Range{{0, MaxRequest}, {0, MaxRequest}} },
	} {
		g := good
		g.Ranges = append([]Range(nil), good.Ranges...)
		change(&g)
		_, err := g.Encode()
		require.Error(t, err, name)
		g.V = 1
		data, err := json.Marshal(g)
		require.NoError(t, err)
		_, err = ParseGet(data)
		require.Error(t, err, name)
	}
}

// A verdict is never too large to be sent.
func TestVerdictFits(t *testing.T) {
	v := Verdict{ID: "1", Device: "pump-7", Result: Failed, Detail: strings.Repeat("ä", 5000)}
	for range 500 {
		v.Log = append(v.Log, strings.Repeat("\x01", 1000)+"\xff")
	}
	data, err := v.Encode()
	require.NoError(t, err)
	require.LessOrEqual(t, len(data), MaxVerdict)
	_, err = ParseVerdict(data)
	require.NoError(t, err)
}

// The block of FORMAT.md, whose checksum is not computed by this package.
func TestBlockGolden(t *testing.T) {
	head, err := hex.DecodeString("0101000000000001" + "2c26b46b68ffc68ff99b453c1d304134" + "0000000000000000" + "00000003")
	require.NoError(t, err)
	crc := crc32.Checksum(append(bytes.Clone(head), "foo"...), crc32.MakeTable(0x82f63b78))
	obj, err := ParseDigest(someDigest)
	require.NoError(t, err)
	h := BlockHeader{Flags: FlagEnd, Transfer: 1, Object: obj.Prefix()}
	buf := append(make([]byte, HeaderSize), "foo"...)
	h.Seal(buf)
	require.Equal(t, fmt.Sprintf("%x%08x%x", head, crc, "foo"), hex.EncodeToString(buf))
	require.Equal(t, "309c7021", fmt.Sprintf("%08x", crc))
	got, data, err := ParseBlock(buf)
	require.NoError(t, err)
	require.Equal(t, "foo", string(data))
	h.Length = 3
	require.Equal(t, h, got)
}

// No bit of a block can flip unseen, and no cut block is one.
func TestBlockCorruption(t *testing.T) {
	buf := append(make([]byte, HeaderSize), "some data"...)
	BlockHeader{Transfer: 7, Offset: 1 << 40}.Seal(buf)
	for bit := range len(buf) * 8 {
		bad := bytes.Clone(buf)
		bad[bit/8] ^= 1 << (bit % 8)
		_, _, err := ParseBlock(bad)
		require.ErrorIs(t, err, ErrBlock, "bit %d", bit)
	}
	for n := range buf {
		_, _, err := ParseBlock(buf[:n])
		require.ErrorIs(t, err, ErrBlock, "cut at %d", n)
	}
	for name, h := range map[string]BlockHeader{
		"unknown flag":       {Flags: 8},
		"absent with data":   {Flags: FlagAbsent},
		"busy and absent":    {Flags: FlagBusy | FlagAbsent},
		"retry without busy": {Retry: 1},
		"a huge offset":      {Offset: MaxBlob + 1},
	} {
		b := bytes.Clone(buf)
		h.Seal(b)
		_, _, err := ParseBlock(b)
		require.ErrorIs(t, err, ErrBlock, name)
	}
}

// A source may send what it likes: what comes out of Verified is the content,
// or an error.
func TestVerified(t *testing.T) {
	content := make([]byte, 3*LeafSize+100)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	var leaves []byte
	for off := 0; off < len(content); off += LeafSize {
		sum := sha256.Sum256(content[off:min(off+LeafSize, len(content))])
		leaves = append(leaves, sum[:]...)
	}
	digest := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	lies := 0
	src := func(_ context.Context, off int64, p []byte) (int, error) {
		n, err := bytes.NewReader(content).ReadAt(p, off)
		if lies > 0 {
			lies--
			p[n/2] ^= 1
		}
		return n, err
	}
	v, err := NewVerified(src, int64(len(content)), digest(leaves), leaves)
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(at{v}, 0, v.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))

	lies = 2
	p := make([]byte, 10)
	_, err = v.ReadAt(t.Context(), p, 0)
	require.NoError(t, err, "two lies are forgiven")
	require.Equal(t, content[:10], p)
	require.Equal(t, 2, v.BadLeaves())
	lies = 1000
	for i := range p {
		p[i] = 0xee
	}
	_, err = v.ReadAt(t.Context(), p, LeafSize)
	require.ErrorIs(t, err, ErrLeaf)
	require.Equal(t, bytes.Repeat([]byte{0xee}, 10), p, "bytes were handed out before they were checked")
	lies = 0

	_, err = NewVerified(src, int64(len(content)), digest(content), leaves)
	require.ErrorIs(t, err, ErrLeaf)
	_, err = NewVerified(src, int64(len(content))+LeafSize, digest(leaves), leaves)
	require.Error(t, err)
	short, err := NewVerified(func(context.Context, int64, []byte) (int, error) { return 0, io.EOF }, int64(len(content)), digest(leaves), leaves)
	require.NoError(t, err)
	_, err = short.ReadAt(t.Context(), p, 0)
	require.ErrorIs(t, err, ErrLeaf)

	small := content[:77]
	v, err = NewVerified(src, 77, digest(small), nil)
	require.NoError(t, err)
	n, err := v.ReadAt(t.Context(), make([]byte, 100), 0)
	require.Error(t, err) // src goes on after byte 77: not the end of this content
	require.True(t, n == 77 || n == 0)
}

type at struct{ v *Verified }

func (a at) ReadAt(p []byte, off int64) (int, error) { return a.v.ReadAt(context.Background(), p, off) }

// Whatever parses says the same again, and nothing brings a parser down.
func FuzzMessages(f *testing.F) {
	for i, c := range messages {
		data, err := c.m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(i, data)
	}
	f.Fuzz(func(t *testing.T, i int, data []byte) {
		c := messages[uint(i)%uint(len(messages))]
		m, err := c.parse(data)
		if err != nil {
			return
		}
		again, err := m.(message).Encode()
		if err != nil {
			return // text that is longer when it is escaped
		}
		back, err := c.parse(again)
		require.NoError(t, err)
		if w, ok := m.(Want); ok {
			require.JSONEq(t, string(w.Statement), string(back.(Want).Statement))
			return
		}
		if !reflect.DeepEqual(m, back) {
			require.JSONEq(t, string(must(m)), string(must(back)))
		}
	})
}

func must(m any) []byte {
	data, err := m.(message).Encode()
	if err != nil {
		panic(err)
	}
	return data
}

func FuzzParseBlock(f *testing.F) {
	buf := append(make([]byte, HeaderSize), "data"...)
	BlockHeader{Flags: FlagEnd, Offset: 5}.Seal(buf)
	f.Add(buf)
	f.Fuzz(func(t *testing.T, msg []byte) {
		h, data, err := ParseBlock(msg)
		if err != nil {
			return
		}
		again := append(make([]byte, HeaderSize), data...)
		h.Seal(again)
		require.Equal(t, msg, again)
	})
}

func FuzzParseDesired(f *testing.F) {
	f.Add([]byte(`{"manifest":"` + someDigest + `","full":"wait"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if d, err := ParseDesired(body); err == nil {
			_, err := ParseDigest(d.Manifest)
			require.NoError(t, err)
		}
	})
}
