package mqtttest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/tandem-ota/tandem/transport"
)

// Blocks answers requests for ranges on a Broker, straight from memory.
type Blocks struct {
	b       *Broker
	mu      sync.Mutex
	objects map[transport.Object][]byte
	gets    int
}

// Serve starts a block server on b.
func Serve(b *Broker) *Blocks {
	s := &Blocks{b: b, objects: map[transport.Object][]byte{}}
	b.Subscribe(transport.AllGets, s.answer)
	return s
}

// Blob adds a blob and returns its digest.
func (s *Blocks) Blob(data []byte) string {
	sum := sha256.Sum256(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[sum] = data
	return fmt.Sprintf("sha256:%x", sum)
}

// Meta adds a metadata file.
func (s *Blocks) Meta(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[sha256.Sum256([]byte("meta/"+name))] = data
}

// Manifest adds what is served as the envelope of the manifest with this digest.
func (s *Blocks) Manifest(digest string, envelope []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[sha256.Sum256([]byte("manifest/"+digest))] = envelope
}

// Gets returns how many requests came.
func (s *Blocks) Gets() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets
}

func (s *Blocks) answer(topic string, payload []byte) {
	id, _, err := transport.ParseTopic(topic)
	if err != nil {
		return
	}
	g, err := transport.ParseGet(payload)
	if err != nil {
		return
	}
	obj, err := g.Object()
	if err != nil {
		return
	}
	s.mu.Lock()
	s.gets++
	data, ok := s.objects[obj]
	s.mu.Unlock()
	send := func(h transport.BlockHeader, data []byte) {
		h.Transfer, h.Object = g.Transfer, obj.Prefix()
		buf := append(make([]byte, transport.HeaderSize), data...)
		h.Seal(buf)
		s.b.publish(message{topic: transport.Topic(id, transport.KindBlock), payload: buf})
	}
	if !ok {
		send(transport.BlockHeader{Flags: transport.FlagAbsent, Offset: g.Ranges[0][0]}, nil)
		return
	}
	size := int64(len(data))
	for _, r := range g.Ranges {
		if r[0] >= size {
			send(transport.BlockHeader{Flags: transport.FlagEnd, Offset: r[0]}, nil)
		}
		for off := r[0]; off < min(r[0]+r[1], size); off += int64(g.Block) {
			end := min(off+int64(g.Block), r[0]+r[1], size)
			h := transport.BlockHeader{Offset: off}
			if end == size {
				h.Flags = transport.FlagEnd
			}
			send(h, bytes.Clone(data[off:end]))
		}
	}
}
