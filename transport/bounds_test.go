package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every length, count and number in a message has its edge: what is on it is accepted, one
// more is refused. Broker and desk keep these messages for each device of a fleet, and a
// device keeps what the broker tells it.
func TestMessageEdges(t *testing.T) {
	type checked interface{ check() error }
	text := func(n int64) string { return strings.Repeat("a", int(n)) }
	live := func(set func(*State)) checked {
		s := State{V: 1, Device: "pump-7", Slots: []Slot{{Name: "a"}}, TPM: &TPM{}}
		set(&s)
		return s
	}
	event := func(set func(*Event)) checked {
		e := Event{V: 1, Phase: "writing"}
		set(&e)
		return e
	}
	progress := func(set func(*Progress)) checked {
		p := Progress{V: 1}
		set(&p)
		return p
	}
	verdict := func(set func(*Verdict)) checked {
		v := Verdict{V: 1, ID: "1", Device: "pump-7", Result: Failed}
		set(&v)
		return v
	}
	want := func(set func(*Want)) checked {
		w := Want{V: 1, Statement: json.RawMessage(`{}`)}
		set(&w)
		return w
	}
	get := func(set func(*Get)) checked {
		g := Get{V: 1, Blob: someDigest, Block: MinBlock, Ranges: []Range{{0, 1}}}
		set(&g)
		return g
	}
	for name, edge := range map[string]struct {
		low, high int64
		of        func(n int64) checked
	}{
		"board of a state":        {0, 64, func(n int64) checked { return live(func(s *State) { s.Board = text(n) }) }},
		"agent of a state":        {0, 128, func(n int64) checked { return live(func(s *State) { s.Agent = text(n) }) }},
		"boot of a state":         {0, 64, func(n int64) checked { return live(func(s *State) { s.Boot = text(n) }) }},
		"slot of a state":         {0, 64, func(n int64) checked { return live(func(s *State) { s.Slot = text(n) }) }},
		"good slot of a state":    {0, 64, func(n int64) checked { return live(func(s *State) { s.Good = text(n) }) }},
		"phase of a state":        {0, 64, func(n int64) checked { return live(func(s *State) { s.Phase = text(n) }) }},
		"version of a state":      {0, 128, func(n int64) checked { return live(func(s *State) { s.Version = text(n) }) }},
		"error of a state":        {0, 1024, func(n int64) checked { return live(func(s *State) { s.Error = text(n) }) }},
		"tries of a state":        {0, 9, func(n int64) checked { return live(func(s *State) { s.Tries = int(n) }) }},
		"slots of a state":        {0, 4, func(n int64) checked { return live(func(s *State) { s.Slots = make([]Slot, n) }) }},
		"name of a slot":          {0, 64, func(n int64) checked { return live(func(s *State) { s.Slots[0].Name = text(n) }) }},
		"version of a slot":       {0, 128, func(n int64) checked { return live(func(s *State) { s.Slots[0].Version = text(n) }) }},
		"ledger of the TPM":       {0, 128, func(n int64) checked { return live(func(s *State) { s.TPM.Ledger = text(n) }) }},
		"register of the TPM":     {0, 128, func(n int64) checked { return live(func(s *State) { s.TPM.PCR = text(n) }) }},
		"phase of an event":       {1, 64, func(n int64) checked { return event(func(e *Event) { e.Phase = text(n) }) }},
		"boot of an event":        {0, 64, func(n int64) checked { return event(func(e *Event) { e.Boot = text(n) }) }},
		"text of an event":        {0, 1024, func(n int64) checked { return event(func(e *Event) { e.Text = text(n) }) }},
		"phase of a progress":     {0, 64, func(n int64) checked { return progress(func(p *Progress) { p.Phase = text(n) }) }},
		"bytes done":              {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Done = n }) }},
		"bytes in all":            {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Total = n }) }},
		"bytes that came":         {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Downloaded = n }) }},
		"bytes written":           {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Written = n }) }},
		"bytes left out":          {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Skipped = n }) }},
		"bytes a second":          {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Rate = n }) }},
		"seconds that are left":   {0, MaxBlob, func(n int64) checked { return progress(func(p *Progress) { p.Left = n }) }},
		"id of a verdict":         {1, 128, func(n int64) checked { return verdict(func(v *Verdict) { v.ID = text(n) }) }},
		"version of a verdict":    {0, 128, func(n int64) checked { return verdict(func(v *Verdict) { v.Version = text(n) }) }},
		"reason of a verdict":     {0, 64, func(n int64) checked { return verdict(func(v *Verdict) { v.Reason = text(n) }) }},
		"check of a verdict":      {0, 128, func(n int64) checked { return verdict(func(v *Verdict) { v.Check = text(n) }) }},
		"detail of a verdict":     {0, 1024, func(n int64) checked { return verdict(func(v *Verdict) { v.Detail = text(n) }) }},
		"slot of a verdict":       {0, 64, func(n int64) checked { return verdict(func(v *Verdict) { v.Slot = text(n) }) }},
		"tries of a verdict":      {0, 9, func(n int64) checked { return verdict(func(v *Verdict) { v.Tries = int(n) }) }},
		"bytes of an update":      {0, MaxBlob, func(n int64) checked { return verdict(func(v *Verdict) { v.Bytes = n }) }},
		"bytes an update wrote":   {0, MaxBlob, func(n int64) checked { return verdict(func(v *Verdict) { v.Written = n }) }},
		"bytes an update skipped": {0, MaxBlob, func(n int64) checked { return verdict(func(v *Verdict) { v.Skipped = n }) }},
		"seconds of an update":    {0, MaxBlob, func(n int64) checked { return verdict(func(v *Verdict) { v.Duration = n }) }},
		"lines of a log":          {0, MaxLog, func(n int64) checked { return verdict(func(v *Verdict) { v.Log = make([]string, n) }) }},
		"line of a log":           {0, MaxLogLine, func(n int64) checked { return verdict(func(v *Verdict) { v.Log = []string{text(n)} }) }},
		"sources of a want": {0, MaxSources, func(n int64) checked {
			return want(func(w *Want) { w.Sources = slices.Repeat([]string{"mqtt"}, int(n)) })
		}},
		"source of a want": {10, 512, func(n int64) checked {
			return want(func(w *Want) { w.Sources = []string{"https://" + text(max(n, 9)-9) + "/"} })
		}},
		"block of a get":    {MinBlock, MaxBlock, func(n int64) checked { return get(func(g *Get) { g.Block = int(n) }) }},
		"ranges of a get":   {1, MaxRanges, func(n int64) checked { return get(func(g *Get) { g.Ranges = slices.Repeat([]Range{{0, 1}}, int(n)) }) }},
		"offset of a range": {0, MaxBlob, func(n int64) checked { return get(func(g *Get) { g.Ranges[0][0] = n }) }},
		"length of a range": {1, MaxRequest, func(n int64) checked { return get(func(g *Get) { g.Ranges[0][1] = n }) }},
		"bytes of a get":    {2, MaxRequest, func(n int64) checked { return get(func(g *Get) { g.Ranges = []Range{{0, 1}, {0, n - 1}} }) }},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, edge.of(edge.low).check())
			require.NoError(t, edge.of(edge.high).check())
			require.ErrorIs(t, edge.of(edge.high+1).check(), ErrMessage)
			if edge.low > 0 || strings.HasPrefix(name, "bytes") || strings.HasPrefix(name, "seconds") || strings.HasPrefix(name, "tries") || strings.HasPrefix(name, "offset") {
				require.ErrorIs(t, edge.of(edge.low-1).check(), ErrMessage)
			}
		})
	}
	for name, m := range map[string]checked{
		"state with a target that is no digest":   live(func(s *State) { s.Target = "x" }),
		"state that wants what is no digest":      live(func(s *State) { s.Want = "x" }),
		"state with an unknown mark":              live(func(s *State) { s.Slots[0].Mark = "fine" }),
		"slot with a manifest that is no digest":  live(func(s *State) { s.Slots[0].Manifest = "x" }),
		"state of no device":                      live(func(s *State) { s.Device = "" }),
		"event of no digest":                      event(func(e *Event) { e.Target = "x" }),
		"progress of no digest":                   progress(func(p *Progress) { p.Target = "x" }),
		"verdict on no digest":                    verdict(func(v *Verdict) { v.Release = "x" }),
		"verdict of no device":                    verdict(func(v *Verdict) { v.Device = "a/b" }),
		"verdict with an unknown result":          verdict(func(v *Verdict) { v.Result = "fine" }),
		"want without a statement":                want(func(w *Want) { w.Statement = nil }),
		"want whose statement is no object":       want(func(w *Want) { w.Statement = json.RawMessage(`"x"`) }),
		"want from a source without a lock":       want(func(w *Want) { w.Sources = []string{"http://a/b"} }),
		"want from a source without a host":       want(func(w *Want) { w.Sources = []string{"https:///b"} }),
		"want from a source that is no address":   want(func(w *Want) { w.Sources = []string{"x"} }),
		"get of a manifest that is no digest":     get(func(g *Get) { g.Blob, g.Manifest = "", "x" }),
		"get of a digest without its kind":        get(func(g *Get) { g.Blob = strings.TrimPrefix(g.Blob, "sha256:") }),
		"get of a digest with a byte more":        get(func(g *Get) { g.Blob += "00" }),
		"get of a digest with a byte less":        get(func(g *Get) { g.Blob = g.Blob[:len(g.Blob)-2] }),
		"get of a digest with one capital letter": get(func(g *Get) { g.Blob = strings.Replace(g.Blob, "a", "A", 1) }),
	} {
		require.ErrorIs(t, m.check(), ErrMessage, name)
	}
	for field, bad := range map[string]string{
		"manifest": "x", "target": text(1025), "version": text(129), "full": "maybe",
	} {
		body, err := json.Marshal(map[string]string{"manifest": someDigest, field: bad})
		require.NoError(t, err)
		_, err = ParseDesired(body)
		require.ErrorIs(t, err, ErrMessage, field)
	}
	body, err := json.Marshal(Desired{Manifest: someDigest, Target: text(1024), Version: text(128), Full: FullWait})
	require.NoError(t, err)
	_, err = ParseDesired(body)
	require.NoError(t, err)
}

// A message is read up to its own limit, and nothing that is not one object passes for one.
func TestDecodeEdges(t *testing.T) {
	var v any
	padded := func(n int) []byte { return append([]byte(`{}`), bytes.Repeat([]byte(" "), n-2)...) }
	nested := func(n int) []byte {
		return []byte(`{"x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`)
	}
	require.NoError(t, decode("test", padded(100), 100, &v))
	require.ErrorIs(t, decode("test", padded(101), 100, &v), ErrMessage)
	require.NoError(t, decode("test", nested(maxDepth+1), 1000, &v))
	require.ErrorIs(t, decode("test", nested(maxDepth+2), 1000, &v), ErrMessage)
	for _, text := range []string{`1`, `null`, `"x"`, `[]`, `[{}]`, `{} {}`, `{}x`, `{"a":1,"A":1}`, `{"a":{"b":1,"b":1}}`} {
		require.ErrorIs(t, decode("test", []byte(text), 100, &v), ErrMessage, text)
	}
	_, err := encode("test", strings.Repeat("a", 98), 100)
	require.NoError(t, err)
	_, err = encode("test", strings.Repeat("a", 99), 100)
	require.ErrorIs(t, err, ErrMessage)
}

// A header says what comes with it, all of it; whoever sealed it.
func TestBlockEdges(t *testing.T) {
	sealed := func(h BlockHeader, data int, spoil func(b []byte)) []byte {
		b := make([]byte, HeaderSize+data)
		h.Seal(b)
		if spoil != nil {
			spoil(b)
			h := sum(b) // as somebody who means it would
			b[36], b[37], b[38], b[39] = byte(h>>24), byte(h>>16), byte(h>>8), byte(h)
		}
		return b
	}
	for name, msg := range map[string][]byte{
		"the largest block":        sealed(BlockHeader{}, MaxBlock, nil),
		"the last offset":          sealed(BlockHeader{Offset: MaxBlob}, 1, nil),
		"the end without data":     sealed(BlockHeader{Flags: FlagEnd}, 0, nil),
		"a server that is busy":    sealed(BlockHeader{Flags: FlagBusy, Retry: 9}, 0, nil),
		"a server that lacks this": sealed(BlockHeader{Flags: FlagAbsent}, 0, nil),
	} {
		_, _, err := ParseBlock(msg)
		require.NoError(t, err, name)
	}
	for name, msg := range map[string][]byte{
		"a block too large":          sealed(BlockHeader{}, MaxBlock+1, nil),
		"an offset too far":          sealed(BlockHeader{Offset: MaxBlob + 1}, 1, nil),
		"another version":            sealed(BlockHeader{}, 1, func(b []byte) { b[0] = 2 }),
		"a length of more":           sealed(BlockHeader{}, 1, func(b []byte) { b[35] = 2 }),
		"a length of less":           sealed(BlockHeader{}, 1, func(b []byte) { b[35] = 0 }),
		"no data and no reason":      sealed(BlockHeader{}, 0, nil),
		"busy with data":             sealed(BlockHeader{Flags: FlagBusy}, 1, nil),
		"busy at the end":            sealed(BlockHeader{Flags: FlagBusy | FlagEnd}, 0, nil),
		"absent at the end":          sealed(BlockHeader{Flags: FlagAbsent | FlagEnd}, 0, nil),
		"busy and absent":            sealed(BlockHeader{Flags: FlagAbsent | FlagBusy}, 0, nil),
		"a flag that nobody knows":   sealed(BlockHeader{Flags: 8}, 1, nil),
		"a retry with data":          sealed(BlockHeader{Retry: 1}, 1, nil),
		"a retry where it is absent": sealed(BlockHeader{Flags: FlagAbsent, Retry: 1}, 0, nil),
	} {
		_, _, err := ParseBlock(msg)
		require.ErrorIs(t, err, ErrBlock, name)
	}
}

// Names of metadata end in paths and topics.
func TestMetaNameEdges(t *testing.T) {
	for _, name := range []string{strings.Repeat("a", 32) + ".json", "4294967295.root.json", "1.a_b.json"} {
		require.NoError(t, CheckMetaName(name), name)
	}
	for _, name := range []string{strings.Repeat("a", 33) + ".json", "4294967296.root.json", "+1.root.json", "1.ro/ot.json", "root.txt", "a-b.json"} {
		require.Error(t, CheckMetaName(name), name)
	}
	for _, topic := range []string{"", "timestamp", "ota/v1/d/timestamp", "ota/v1/meta", "ota/v1/meta/", "ota/v1/meta/a-b-c", "ota/v1/meta/root-0"} {
		_, err := MetaName(topic)
		require.Error(t, err, topic)
	}
	for _, topic := range []string{"pump-7/up/is", "x/ota/v1/d/pump-7/up/is"} {
		_, _, err := ParseTopic(topic)
		require.Error(t, err, topic)
	}
}

// Nothing is read outside a content, and no list is believed that is not its own.
func TestVerifiedEdges(t *testing.T) {
	for _, size := range []int64{-1, -1 << 40, MaxBlob + 1} {
		_, err := NewVerified(nil, size, someDigest, nil)
		require.ErrorContains(t, err, "content of", "%d bytes", size)
	}
	foo := func(_ context.Context, off int64, p []byte) (int, error) {
		return strings.NewReader("foo").ReadAt(p, off)
	}
	v, err := NewVerified(foo, 3, someDigest, nil)
	require.NoError(t, err)
	_, err = v.ReadAt(t.Context(), make([]byte, 1), -1)
	require.ErrorContains(t, err, "offset -1")
	n, err := v.ReadAt(t.Context(), make([]byte, 4), 0)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 3, n)

	// A source that ends early has not given the leaf, whatever was in memory before.
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF} {
		calls := 0
		v, fault := NewVerified(func(ctx context.Context, off int64, p []byte) (int, error) {
			if calls++; calls == 1 {
				n, _ := foo(ctx, off, p)
				p[0] ^= 1
				return n, nil
			}
			_, _ = foo(ctx, off, p)
			return 2, err
		}, 3, someDigest, nil)
		require.NoError(t, fault)
		n, fault := v.ReadAt(t.Context(), make([]byte, 3), 0)
		require.Error(t, fault)
		require.Zero(t, n)
	}
}

// Text for people is cut between letters, and what is no text is marked.
func TestClip(t *testing.T) {
	for in, want := range map[string]string{"abcd": "abcd", "abcde": "abcd", "abcä": "abc", "aäää": "aä", "\x80\x80\x80\x80\x80": "?", "ääää": "ää"} {
		require.Equal(t, want, clip(in, 4), in)
	}
	require.Equal(t, "", clip("ä", 1))
}
