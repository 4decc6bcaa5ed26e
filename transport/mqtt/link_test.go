package mqtt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/transport/mqtttest"
	"github.com/tandem-ota/tandem/updater/manifest"
)

func isBlock(topic string) bool { return strings.HasSuffix(topic, "/dn/blk") }

// world runs f with a device's link to a hostile broker, in fake time.
func world(t *testing.T, seed uint64, faults mqtttest.Faults, f func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.New(seed, faults)
		l, err := mqtt.Dial(context.Background(), mqtt.Config{ID: "pump-7", Brokers: []string{"tcp://127.0.0.1"}, Dial: b.Dial})
		require.NoError(t, err)
		f(t, b, l)
		l.Close()
		b.Close()
		// paho leaves goroutines behind that end with their timers.
		time.Sleep(time.Hour)
	})
}

func random(seed uint64, n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(data)
	return data
}

func download(ctx context.Context, l *mqtt.Link, digest string) ([]byte, error) {
	s := l.Source(manifest.Digest(digest))
	var out []byte
	p := make([]byte, transport.LeafSize)
	for {
		n, err := s.ReadRange(ctx, manifest.Digest(digest), int64(len(out)), p)
		out = append(out, p[:n]...)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
	}
}

// Through a broker that drops, doubles, delays, swaps and damages, a blob
// arrives as it is.
func TestDownloadThroughHostileBroker(t *testing.T) {
	for seed := range uint64(12) {
		faults := mqtttest.Faults{Drop: 10, Double: 10, Delay: 10, Swap: 10, Damage: 5, Hit: isBlock}
		world(t, seed, faults, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
			want := random(seed, 1<<20+int(seed)*7777)
			got, err := download(t.Context(), l, mqtttest.Serve(b).Blob(want))
			require.NoError(t, err, "seed %d", seed)
			require.True(t, bytes.Equal(want, got), "seed %d", seed)
		})
	}
}

// The connection may break at any packet, from the first on: the blob arrives
// all the same, and the broker ends up knowing state and verdict.
func TestCutAtEveryPacket(t *testing.T) {
	want := random(1, 20*transport.LeafSize+1)
	for cut := 1; ; cut++ {
		packets := 0
		world(t, 1, mqtttest.Faults{CutAfter: cut}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
			digest := mqtttest.Serve(b).Blob(want)
			require.NoError(t, l.Report(transport.State{Board: "b", Slot: "a", Phase: "writing"}))
			got, err := download(t.Context(), l, digest)
			require.NoError(t, err, "cut at packet %d", cut)
			require.True(t, bytes.Equal(want, got), "cut at packet %d", cut)
			require.NoError(t, l.Report(transport.State{Board: "b", Slot: "a", Phase: "idle"}))
			require.NoError(t, l.Verdict(transport.Verdict{ID: "1", Result: transport.Committed}))
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			require.NoError(t, l.WaitUp(t.Context())) // the cut may have come just now
			time.Sleep(10 * time.Second)
			s, err := transport.ParseState(b.Retained(transport.Topic("pump-7", transport.KindState)))
			require.NoError(t, err, "cut at packet %d", cut)
			require.Equal(t, "idle", s.Phase, "cut at packet %d: an older state came last", cut)
			v, err := transport.ParseVerdict(b.Retained(transport.Topic("pump-7", transport.KindVerdict)))
			require.NoError(t, err, "cut at packet %d", cut)
			require.Equal(t, transport.Committed, v.Result)
			require.JSONEq(t, `{"v":1,"online":true}`, string(b.Retained(transport.Topic("pump-7", transport.KindLive))))
			packets = b.Packets()
		})
		if packets < cut {
			require.Greater(t, cut, 25)
			return
		}
	}
}

// A broker that falls silent in the middle of a download is left for a new
// connection in twelve seconds.
func TestBrokerFallsSilent(t *testing.T) {
	world(t, 1, mqtttest.Faults{Rate: 100_000}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		want := random(1, 1<<20)
		digest := mqtttest.Serve(b).Blob(want)
		require.NoError(t, l.WaitUp(t.Context()))
		start := time.Now()
		time.AfterFunc(4*time.Second, b.Silence)
		got, err := download(t.Context(), l, digest)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		require.Equal(t, 2, b.Connects())
		require.Less(t, time.Since(start), 11*time.Second+14*time.Second, "the download itself takes 11 s")
	})
}

// What a device should run comes once, the newest wins, and a clearing or a
// forgery is no order.
func TestWants(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		topic := transport.Topic("pump-7", transport.KindWant)
		want := func(n int) []byte {
			data, err := transport.Want{Statement: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n))}.Encode()
			require.NoError(t, err)
			return data
		}
		require.NoError(t, l.WaitUp(t.Context()))
		for n := range 5 {
			b.Publish(topic, want(n), true)
		}
		b.Publish(topic, nil, false)
		b.Publish(topic, []byte("{}"), false)
		synctest.Wait()
		require.JSONEq(t, `{"n":4}`, string((<-l.Wants()).Statement))
		b.Cut()
		time.Sleep(time.Minute)
		require.True(t, l.Up())
		require.Empty(t, l.Wants(), "the same order came twice")
	})
}

// Retained metadata is preferred, the block server asked else, and only its no
// is a no.
func TestMetadata(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		s := l.Source("")
		b.Publish("ota/v1/meta/timestamp", []byte("retained"), true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		got, err := s.Metadata(ctx, "timestamp.json")
		require.NoError(t, err, "no block server is needed for what is retained")
		require.Equal(t, "retained", string(got))
		blocks := mqtttest.Serve(b)
		blocks.Meta("3.targets.json", []byte("stored"))
		got, err = s.Metadata(ctx, "3.targets.json")
		require.NoError(t, err)
		require.Equal(t, "stored", string(got))
		blocks.Meta("3.targets.json", []byte("stored anew"))
		got, err = s.Metadata(ctx, "3.targets.json")
		require.NoError(t, err)
		require.Equal(t, "stored anew", string(got))
		_, err = s.Metadata(ctx, "2.root.json")
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
}

// Metadata has a largest size, from the broker as from the block server. What is retained
// beyond it is none at all, and the server's word counts.
func TestMetadataEdges(t *testing.T) {
	large := func(n int) []byte { return bytes.Repeat([]byte("m"), n) }
	for name, x := range map[string]struct {
		retained, stored []byte
		want             int // bytes, -1: an error
	}{
		"retained, the largest":               {large(transport.MaxMeta), nil, transport.MaxMeta},
		"retained, a byte more":               {large(transport.MaxMeta + 1), large(7), 7},
		"retained, a byte more, and no other": {large(transport.MaxMeta + 1), nil, -1},
		"stored, the largest":                 {nil, large(transport.MaxMeta), transport.MaxMeta},
		"stored, a byte more":                 {nil, large(transport.MaxMeta + 1), -1},
		"stored, of many blocks":              {nil, large(1 << 20), -1},
		"stored, empty":                       {nil, []byte{}, 0},
	} {
		world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
			blocks := mqtttest.Serve(b)
			if x.retained != nil {
				b.Publish("ota/v1/meta/timestamp", x.retained, true)
			}
			if x.stored != nil {
				blocks.Meta("timestamp.json", x.stored)
			}
			require.NoError(t, l.WaitUp(t.Context()))
			got, err := l.Source("").Metadata(t.Context(), "timestamp.json")
			if x.want < 0 {
				require.Error(t, err, name)
				require.Empty(t, got, name)
				require.Equal(t, x.stored == nil, errors.Is(err, fs.ErrNotExist), name)
				require.Less(t, l.Counters().Downloaded, int64(transport.MaxMeta+mqtt.DefaultWindow), name)
				return
			}
			require.NoError(t, err, name)
			require.Len(t, got, x.want, name)
		})
	}
}

// Metadata that is taken off the broker while somebody waits for it is not there: what
// comes after it is waited for.
func TestMetadataCleared(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		require.NoError(t, l.WaitUp(t.Context()))
		time.AfterFunc(time.Second, func() { b.Publish("ota/v1/meta/timestamp", nil, true) })
		time.AfterFunc(2*time.Second, func() { b.Publish("ota/v1/meta/timestamp", []byte("new"), true) })
		got, err := l.Source("").Metadata(t.Context(), "timestamp.json")
		require.NoError(t, err)
		require.Equal(t, "new", string(got))
	})
}

// The manifest that comes is the one that was asked for, in an envelope of the largest size
// or below.
func TestManifestEdges(t *testing.T) {
	payload := []byte(`{"product":"pump"}`)
	digest := manifest.DigestOf(payload)
	envelope := func(payload []byte, size int) []byte {
		data, err := json.Marshal(map[string][]byte{"payload": payload})
		require.NoError(t, err)
		return append(data, bytes.Repeat([]byte(" "), max(0, size-len(data)))...)
	}
	for name, x := range map[string]struct {
		envelope []byte // nil: none
		want     error
		says     string
	}{
		"as asked for":         {envelope(payload, 0), nil, ""},
		"the largest":          {envelope(payload, transport.MaxManifest), nil, ""},
		"a byte more":          {envelope(payload, transport.MaxManifest+1), nil, "more than 2097152 bytes"},
		"of another payload":   {envelope([]byte(`{"product":"pumq"}`), 0), transport.ErrLeaf, ""},
		"of no payload":        {[]byte("{}"), transport.ErrLeaf, ""},
		"no envelope":          {payload[1:], nil, "invalid character"},
		"nothing":              {[]byte{}, nil, "unexpected end of JSON input"},
		"nobody has it":        {nil, fs.ErrNotExist, ""},
		"two, one after other": {append(envelope(payload, 0), envelope(payload, 0)...), nil, "after top-level value"},
	} {
		world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
			blocks := mqtttest.Serve(b)
			if x.envelope != nil {
				blocks.Manifest(string(digest), x.envelope)
			}
			got, err := l.Source(digest).Manifest(t.Context())
			if x.want == nil && x.says == "" {
				require.NoError(t, err, name)
				require.Equal(t, x.envelope, got, name)
				return
			}
			require.Empty(t, got, name)
			require.ErrorContains(t, err, x.says, name)
			if x.want != nil {
				require.ErrorIs(t, err, x.want, name)
			}
		})
	}
}

// Two manifests that are read at the same time, block by block in turn, are not mixed up.
func TestManifestsInTurn(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		blocks := mqtttest.Serve(b)
		fetched := make(chan error, 2)
		for i := range 2 {
			payload := []byte(fmt.Sprintf("%-300000d", i))
			data, err := json.Marshal(map[string][]byte{"payload": payload})
			require.NoError(t, err)
			digest := manifest.DigestOf(payload)
			blocks.Manifest(string(digest), data)
			go func() {
				_, err := l.Source(digest).Manifest(t.Context())
				fetched <- err
			}()
		}
		require.NoError(t, <-fetched)
		require.NoError(t, <-fetched)
	})
}

// A subscription that is refused is not a link, and its end is noticed.
func TestRefusedSubscription(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		b.Refuse(func(filter string) bool { return strings.HasSuffix(filter, "want") })
		b.Cut()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		time.Sleep(time.Minute)
		err := l.WaitUp(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, mqtt.ErrRefused)
		require.Less(t, b.Connects(), 40, "it hammers the broker")
		b.Refuse(nil)
		require.NoError(t, l.WaitUp(t.Context()))
	})
}

// A packet that announces 256 MiB costs a connection, not the memory.
func TestHugePacket(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		require.NoError(t, l.WaitUp(t.Context()))
		b.Raw([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
		time.Sleep(time.Minute)
		require.True(t, l.Up())
		require.Equal(t, 2, b.Connects())
	})
}

// A closed link ends what waits on it.
func TestClose(t *testing.T) {
	world(t, 1, mqtttest.Faults{}, func(t *testing.T, b *mqtttest.Broker, l *mqtt.Link) {
		require.NoError(t, l.WaitUp(t.Context()))
		time.AfterFunc(time.Second, func() { l.Close() })
		_, err := download(t.Context(), l, "sha256:"+strings.Repeat("0", 64)) // nobody serves
		require.ErrorIs(t, err, mqtt.ErrClosed)
		l.Close() // waits for the farewell
		require.JSONEq(t, `{"v":1,"online":false}`, string(b.Retained(transport.Topic("pump-7", transport.KindLive))))
	})
}

// Scattered ranges of a blob come to the byte where they were planned, though the metadata
// is read in between; and what the budget still allows is known.
func TestDownloadPlanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const budget = 4 << 20
		b := mqtttest.New(1, mqtttest.Faults{})
		l, err := mqtt.Dial(context.Background(), mqtt.Config{ID: "pump-7", Brokers: []string{"tcp://127.0.0.1"}, Dial: b.Dial, Budget: budget})
		require.NoError(t, err)
		content, other := random(1, 8<<20), random(2, 100)
		server := mqtttest.Serve(b)
		blob, aside := manifest.Digest(server.Blob(content)), manifest.Digest(server.Blob(other))
		s := l.Source(blob)
		left, limited := s.Left()
		require.True(t, limited)
		require.EqualValues(t, budget, left)
		var ranges []transport.Range
		var sum int64
		for at := int64(100); at < int64(len(content))-9000; at += 40_000 {
			ranges = append(ranges, transport.Range{at, 3000 + at%5000})
			sum += 3000 + at%5000
		}
		s.Plan(blob, ranges)
		for i, r := range ranges {
			if i == 50 {
				p := make([]byte, 100)
				_, err := l.Source(aside).ReadRange(t.Context(), aside, 0, p)
				require.True(t, err == nil || err == io.EOF, err)
				require.Equal(t, other, p)
			}
			p := make([]byte, r[1])
			n, err := s.ReadRange(t.Context(), blob, r[0], p)
			require.NoError(t, err)
			require.Equal(t, content[r[0]:r[0]+int64(n)], p)
		}
		left, _ = s.Left()
		require.GreaterOrEqual(t, budget-left, sum)
		require.LessOrEqual(t, budget-left, sum+mqtt.DefaultWindow, "what was read ahead is lost with the other read")
		l.Close()
		b.Close()
		time.Sleep(time.Hour)
	})
}
