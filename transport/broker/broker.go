package broker

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

const (
	// maxCredit is how many blocks of one device may be inside the broker. With
	// the largest blocks it pins 512 KiB, whatever the device does.
	maxCredit = 4
	// creditTime is how long a device may take nothing before what waits for it
	// is dropped. It will ask again if it lives.
	creditTime = time.Minute
	// maxPending is how many messages wait for one client. Blocks are counted by
	// credit, so these are small ones, and a watcher must be able to take the
	// retained state of a whole fleet in one go.
	maxPending = 8192
)

// Config of a Broker.
type Config struct {
	Listener  net.Listener // plain TCP; the broker speaks TLS on it
	TLS       *tls.Config  // server certificate, ClientCAs
	Store     *Store
	State     string                        // folder where retained messages survive a restart; "": they do not
	Passwords func(id string) (hash string) // hex SHA-256 of a device's password, "" for none
	Open      bool                          // lab: a device needs no proof of its id
	Log       *slog.Logger
}

// Broker is a running broker.
type Broker struct {
	server *mochi.Server
	access *access
	blocks *blocks
	cancel context.CancelFunc
	addr   net.Addr
}

// credit counts the blocks of one device inside the broker.
type credit struct {
	mu    sync.Mutex
	taken int
	freed chan struct{}
}

func (c *credit) release() {
	c.mu.Lock()
	c.taken = max(0, c.taken-1)
	c.mu.Unlock()
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

func (c *credit) take(ctx context.Context) bool {
	t := time.NewTimer(creditTime)
	defer t.Stop()
	for {
		c.mu.Lock()
		ok := c.taken < maxCredit
		if ok {
			c.taken++
		}
		c.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-c.freed:
		case <-t.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// Start starts a broker and its block server. Close stops both.
func Start(cfg Config) (*Broker, error) {
	if cfg.TLS == nil || len(cfg.TLS.Certificates) == 0 {
		return nil, errors.New("start broker: no server certificate")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Broker{cancel: cancel, addr: cfg.Listener.Addr()}
	b.access = &access{
		passwords: cfg.Passwords, open: cfg.Open, log: cfg.Log, keep: &retained{dir: cfg.State},
		roles: map[*mochi.Client]string{}, credit: map[string]*credit{},
		gone: func(id string) { b.blocks.forget(id) },
	}
	caps := mochi.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = transport.MaxPacket
	caps.MaximumClientWritesPending = maxPending
	caps.MinimumProtocolVersion = 4
	caps.MaximumSessionExpiryInterval = 60
	caps.MaximumQos = 1
	b.server = mochi.New(&mochi.Options{Capabilities: caps, InlineClient: true, Logger: cfg.Log})
	b.blocks = newBlocks(ctx, cfg.Store, b.carry, cfg.Log)
	if err := b.server.AddHook(b.access, nil); err != nil {
		cancel()
		return nil, fmt.Errorf("start broker: %w", err)
	}
	t := cfg.TLS.Clone()
	t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
	t.ClientAuth = tls.VerifyClientCertIfGiven
	if err := b.server.AddListener(listeners.NewNet("tls", tls.NewListener(cfg.Listener, t))); err != nil {
		cancel()
		return nil, fmt.Errorf("start broker: %w", err)
	}
	err := b.server.Subscribe(transport.AllGets, 1, func(_ *mochi.Client, _ packets.Subscription, pk packets.Packet) {
		b.blocks.request(pk.TopicName, pk.Payload)
	})
	if err == nil {
		err = b.server.Serve()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start broker: %w", err)
	}
	return b, nil
}

// Addr returns the address that the broker listens on.
func (b *Broker) Addr() net.Addr { return b.addr }

// Close disconnects all clients and stops.
func (b *Broker) Close() error {
	b.cancel()
	err := b.server.Close()
	b.blocks.wg.Wait()
	return err
}

// carry publishes a block inside the broker as far as the device's credit goes.
func (b *Broker) carry(ctx context.Context, device string, block []byte) bool {
	topic := transport.Topic(device, transport.KindBlock)
	cl, ok := b.server.Clients.Get(device)
	if !ok || cl.Closed() {
		return false
	}
	if _, ok := cl.State.Subscriptions.Get(topic); !ok {
		// Nothing would count the credit down again. Devices subscribe by name.
		return false
	}
	b.access.mu.Lock()
	c := b.access.credit[device]
	if c == nil {
		c = &credit{freed: make(chan struct{}, 1)}
		b.access.credit[device] = c
	}
	b.access.mu.Unlock()
	if !c.take(ctx) {
		return false
	}
	return b.server.Publish(topic, block, false, 0) == nil
}

// Serve answers the requests of devices on a broker that somebody else runs. It
// shares the work with the other block servers there, and returns when ctx ends
// or the configuration cannot work.
func Serve(ctx context.Context, cfg mqtt.Config, store *Store) error {
	c, err := mqtt.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := newBlocks(ctx, store, func(ctx context.Context, device string, block []byte) bool {
		// Written before the next is read: the connection's pace is the server's.
		return c.Publish(ctx, transport.Topic(device, transport.KindBlock), 0, false, block) == nil
	}, log)
	defer b.wg.Wait()
	err = c.Handle(ctx, transport.SharedGets, 0, func(topic string, payload []byte, _ bool) { b.request(topic, payload) })
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// retained keeps retained messages in a folder, one file for each topic.
type retained struct{ dir string }

type retainedFile struct {
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"`
}

func (r *retained) file(topic string) string {
	sum := sha256.Sum256([]byte(topic))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:16])+".json")
}

func (r *retained) save(topic string, payload []byte) error {
	if r.dir == "" {
		return nil
	}
	if len(payload) == 0 {
		err := os.Remove(r.file(topic))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(retainedFile{topic, payload})
	if err != nil {
		return err
	}
	return replace(r.file(topic), data, 0o644)
}

func (r *retained) load() (map[string][]byte, error) {
	all := map[string][]byte{}
	if r.dir == "" {
		return all, nil
	}
	names, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var f retainedFile
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[f.Topic] = f.Payload
	}
	return all, nil
}

// replace writes a file so that a power cut leaves the old or the new one.
func replace(name string, data []byte, mode os.FileMode) error {
	tmp := name + ".part"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, name)
}
