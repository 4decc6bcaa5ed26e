package mqtt

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"
)

// feed is a connection from which the given bytes come, in pieces of step.
type feed struct {
	net.Conn
	data []byte
	step int
}

func (f *feed) Read(p []byte) (int, error) {
	if len(f.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.data[:min(f.step, len(f.data))])
	f.data = f.data[n:]
	return n, nil
}

func (f *feed) Close() error { return nil }

// Five bytes that announce 256 MiB cost five bytes, however they arrive.
func TestGuardRefusesHugePacket(t *testing.T) {
	header := []byte{0x30, 0xff, 0xff, 0xff, 0x7f}
	for step := 1; step <= len(header); step++ {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := packets.ReadPacket(newGuard(&feed{data: header, step: step}, 1<<20))
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, ErrPacketTooLarge)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<10), "in steps of %d", step)
	}
}

// The framing is followed over any cut of the stream, so that no packet is
// measured by the bytes of another.
func TestGuardFollowsFraming(t *testing.T) {
	var stream bytes.Buffer
	for _, n := range []int{0, 1, 125, 126, 127, 128, 16_380, 16_384, 70_000} {
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.TopicName, p.Payload = "t", bytes.Repeat([]byte{0xff}, n)
		require.NoError(t, p.Write(&stream))
		require.NoError(t, packets.NewControlPacket(packets.Pingresp).Write(&stream))
	}
	for _, step := range []int{1, 2, 3, 7, 1000, 1 << 20} {
		g := newGuard(&feed{data: stream.Bytes(), step: step}, 70_010)
		count := 0
		for {
			_, err := packets.ReadPacket(g)
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			count++
		}
		require.Equal(t, 18, count)
	}
	small := newGuard(&feed{data: stream.Bytes(), step: 64}, 69_999)
	_, err := io.Copy(io.Discard, small)
	require.ErrorIs(t, err, ErrPacketTooLarge)
}

// A length of five bytes is not MQTT.
func TestGuardRefusesOverlongLength(t *testing.T) {
	_, err := io.Copy(io.Discard, newGuard(&feed{data: []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}, step: 6}, 1<<30))
	require.ErrorIs(t, err, ErrPacketTooLarge)
}

// Whatever a broker sends, in whatever pieces: the guard passes on no packet that is
// larger than the limit, and what it passes on, paho's parser takes or refuses without
// asking for more memory than that.
func FuzzGuard(f *testing.F) {
	var stream bytes.Buffer
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = 1, 7, "tandem/d/dev-1/want", []byte("{}")
	require.NoError(f, p.Write(&stream))
	for _, kind := range []byte{packets.Connack, packets.Suback, packets.Puback, packets.Pingresp} {
		require.NoError(f, packets.NewControlPacket(kind).Write(&stream))
	}
	f.Add(stream.Bytes(), uint16(1))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, uint16(5))
	f.Add([]byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}, uint16(2))
	f.Fuzz(func(t *testing.T, data []byte, step uint16) {
		const most = 512
		g := newGuard(&feed{data: data, step: max(1, int(step))}, most)
		left := len(data)
		for {
			before := left
			packet, err := packets.ReadPacket(io.TeeReader(g, counter{&left}))
			if err != nil {
				return
			}
			// At most 5 bytes of header.
			require.LessOrEqual(t, before-left, most+5, "%s", packet)
		}
	})
}

// counter counts down.
type counter struct{ left *int }

func (c counter) Write(p []byte) (int, error) {
	*c.left -= len(p)
	return len(p), nil
}
