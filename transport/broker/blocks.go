package broker

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"runtime"
	"sync"

	"github.com/tandem-ota/tandem/transport"
)

// maxWaiting bounds what one device can have waiting at a block server, in
// bytes of data asked for. What is beyond is dropped; the device asks again.
const maxWaiting = 4 << 20

// carrier takes a block to a device. It may wait until the device has taken
// earlier ones, and returns false when the device is gone.
type carrier func(ctx context.Context, device string, block []byte) bool

// blocks answers requests for ranges. Each device that waits for blocks has a
// goroutine of its own, so that a frozen one holds up nobody; reading files is
// shared by as many as the machine has processors.
type blocks struct {
	store *Store
	carry carrier
	log   *slog.Logger
	ctx   context.Context
	disk  chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex
	devices map[string]*line
}

// line is what waits for one device.
type line struct {
	gets    []transport.Get
	waiting int64
	cancel  context.CancelFunc
}

func newBlocks(ctx context.Context, s *Store, carry carrier, log *slog.Logger) *blocks {
	return &blocks{
		store: s, carry: carry, log: log, ctx: ctx,
		disk: make(chan struct{}, runtime.GOMAXPROCS(0)), devices: map[string]*line{},
	}
}

// request takes a message from the topic of a device's requests. It does not
// block.
func (b *blocks) request(topic string, payload []byte) {
	id, kind, err := transport.ParseTopic(topic)
	if err != nil || kind != transport.KindGet {
		return
	}
	g, err := transport.ParseGet(payload)
	if err != nil {
		b.log.Warn("bad request", "device", id, "error", err)
		return
	}
	size := sum(g)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return
	}
	l := b.devices[id]
	if l == nil {
		ctx, cancel := context.WithCancel(b.ctx)
		l = &line{cancel: cancel}
		b.devices[id] = l
		b.wg.Add(1)
		go b.serve(ctx, id, l)
	}
	if l.waiting+size > maxWaiting {
		return
	}
	for _, have := range l.gets {
		if same(have, g) {
			return // an impatient device gets its blocks once
		}
	}
	l.gets = append(l.gets, g)
	l.waiting += size
}

func sum(g transport.Get) (n int64) {
	for _, r := range g.Ranges {
		n += r[1]
	}
	return n
}

func same(a, b transport.Get) bool {
	if a.Transfer != b.Transfer || a.Block != b.Block || len(a.Ranges) != len(b.Ranges) {
		return false
	}
	for i := range a.Ranges {
		if a.Ranges[i] != b.Ranges[i] {
			return false
		}
	}
	return a.Blob == b.Blob && a.Meta == b.Meta && a.Manifest == b.Manifest
}

// forget drops what waits for a device that is gone.
func (b *blocks) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.devices[id]; l != nil {
		l.cancel()
		delete(b.devices, id)
	}
}

func (b *blocks) serve(ctx context.Context, id string, l *line) {
	defer b.wg.Done()
	defer l.cancel()
	for {
		b.mu.Lock()
		if len(l.gets) == 0 || ctx.Err() != nil {
			if b.devices[id] == l {
				delete(b.devices, id)
			}
			b.mu.Unlock()
			return
		}
		g := l.gets[0]
		b.mu.Unlock()
		if !b.answer(ctx, id, g) {
			l.cancel()
		}
		b.mu.Lock()
		l.gets = l.gets[1:]
		l.waiting -= sum(g)
		b.mu.Unlock()
	}
}

// answer sends the blocks of one request.
func (b *blocks) answer(ctx context.Context, id string, g transport.Get) bool {
	obj, err := g.Object()
	if err != nil {
		return true // ParseGet has seen it
	}
	h := transport.BlockHeader{Transfer: g.Transfer, Object: obj.Prefix(), Offset: g.Ranges[0][0]}
	refuse := func(flag uint8, retry uint16) bool {
		h.Flags, h.Retry = flag, retry
		buf := make([]byte, transport.HeaderSize)
		h.Seal(buf)
		return b.carry(ctx, id, buf)
	}
	f, size, err := b.store.open(g)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(transport.FlagAbsent, 0)
	}
	if err != nil {
		b.log.Error("cannot open what a device asks for", "device", id, "object", g.Blob+g.Manifest+g.Meta, "error", err)
		return refuse(transport.FlagBusy, 30)
	}
	defer f.Close()
	for _, r := range g.Ranges {
		off, end := r[0], r[0]+r[1]
		if off >= size {
			h.Offset, h.Flags = off, transport.FlagEnd
			buf := make([]byte, transport.HeaderSize)
			h.Seal(buf)
			if !b.carry(ctx, id, buf) {
				return false
			}
			continue
		}
		for ; off < min(end, size); off += int64(g.Block) {
			n := min(int64(g.Block), end-off, size-off)
			h.Offset, h.Flags = off, 0
			if off+n == size {
				h.Flags = transport.FlagEnd
			}
			buf := make([]byte, transport.HeaderSize+n)
			b.disk <- struct{}{}
			_, err := f.ReadAt(buf[transport.HeaderSize:], off)
			<-b.disk
			if err != nil {
				b.log.Error("cannot read what a device asks for", "device", id, "file", f.Name(), "offset", off, "error", err)
				return refuse(transport.FlagBusy, 30)
			}
			h.Seal(buf)
			if !b.carry(ctx, id, buf) {
				return false
			}
		}
	}
	return true
}
