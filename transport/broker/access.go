package broker

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/storage"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/tandem-ota/tandem/transport"
)

// Roles, as the organizational unit of a client certificate.
const (
	roleDevice = "tandem-device"
	roleDesk   = "tandem-desk"
)

// deskPrefix begins the client ids of the desk, and of no device: who takes
// over a client id throws the other out.
const deskPrefix = "desk-"

// access is the one hook of the broker: who may connect, who may say and hear
// what. mochi lets pass what any of several hooks allows, so there must be no
// second.
type access struct {
	mochi.HookBase
	passwords func(id string) (sha256Hex string)
	open      bool // devices need no proof of who they are: the lab
	keep      *retained
	log       *slog.Logger

	mu     sync.Mutex
	roles  map[*mochi.Client]string
	credit map[string]*credit
	gone   func(id string)
}

func (a *access) ID() string { return "tandem" }

func (a *access) Provides(b byte) bool {
	switch b {
	case mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSubscribe, mochi.OnPacketSent,
		mochi.OnPublishDropped, mochi.OnDisconnect, mochi.OnRetainMessage, mochi.StoredRetainedMessages:
		return true
	}
	return false
}

// OnConnectAuthenticate decides who a client is, before mochi hands it the
// session of that name.
func (a *access) OnConnectAuthenticate(cl *mochi.Client, pk packets.Packet) bool {
	role, err := a.identify(cl, pk)
	if err == nil && pk.Connect.WillFlag {
		// mochi publishes wills without asking the access list.
		if !mayWrite(role, cl.ID, pk.Connect.WillTopic) || len(pk.Connect.WillPayload) > transport.MaxLive {
			err = fmt.Errorf("will on %.120q", pk.Connect.WillTopic)
		}
	}
	if err != nil {
		a.log.Warn("connection refused", "client", cl.ID, "remote", cl.Net.Remote, "reason", err)
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roles[cl] = role
	// What the connection before this one had in the broker went with it.
	delete(a.credit, cl.ID)
	return true
}

func (a *access) identify(cl *mochi.Client, pk packets.Packet) (string, error) {
	if err := transport.CheckID(cl.ID); err != nil {
		return "", err
	}
	if tc, ok := cl.Net.Conn.(*tls.Conn); ok {
		if certs := tc.ConnectionState().PeerCertificates; len(certs) > 0 {
			// The TLS listener has verified the chain.
			subject := certs[0].Subject
			role := strings.Join(subject.OrganizationalUnit, ",")
			switch {
			case role == roleDevice && subject.CommonName == cl.ID && !strings.HasPrefix(cl.ID, deskPrefix):
				return roleDevice, nil
			case role == roleDesk && strings.HasPrefix(cl.ID, deskPrefix):
				return roleDesk, nil
			}
			return "", fmt.Errorf("certificate is for %.80q (%.40q)", subject.CommonName, role)
		}
	}
	if strings.HasPrefix(cl.ID, deskPrefix) {
		return "", fmt.Errorf("a desk needs a certificate")
	}
	if user := string(pk.Connect.Username); user != "" || !a.open {
		sum := sha256.Sum256(pk.Connect.Password)
		want := ""
		if user == cl.ID && a.passwords != nil {
			want = a.passwords(cl.ID)
		}
		if want == "" || subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(want)) != 1 {
			return "", fmt.Errorf("neither certificate nor password of %.80q", cl.ID)
		}
	}
	return roleDevice, nil
}

// OnACLCheck says whether a client may publish to a topic, or subscribe to a
// filter and be given what matches it.
func (a *access) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	if cl.Net.Inline {
		return true
	}
	a.mu.Lock()
	role := a.roles[cl]
	a.mu.Unlock()
	if write {
		return mayWrite(role, cl.ID, topic)
	}
	return mayRead(role, cl.ID, topic)
}

func mayWrite(role, id, topic string) bool {
	device, kind, err := transport.ParseTopic(topic)
	switch role {
	case roleDevice:
		return err == nil && device == id && !kind.Down()
	case roleDesk:
		if err == nil {
			return kind.Down()
		}
		_, err := transport.MetaName(topic)
		return err == nil
	}
	return false
}

func mayRead(role, id, filter string) bool {
	switch role {
	case roleDevice:
		// An id holds no wildcard, and what follows it stays below it.
		return strings.HasPrefix(filter, transport.Topic(id, "dn/")) ||
			strings.HasPrefix(filter, strings.TrimSuffix(transport.AllMeta, "+"))
	case roleDesk:
		return strings.HasPrefix(filter, "ota/v1/") || filter == transport.SharedGets
	}
	return false
}

// OnSubscribe grants QoS 0 to all. See the package comment.
func (a *access) OnSubscribe(_ *mochi.Client, pk packets.Packet) packets.Packet {
	for i := range pk.Filters {
		pk.Filters[i].Qos = 0
	}
	return pk
}

// OnPacketSent gives back credit for a block that is on its way.
func (a *access) OnPacketSent(cl *mochi.Client, pk packets.Packet, _ []byte) { a.release(cl, pk) }

// OnPublishDropped gives back credit for a block that found no place.
func (a *access) OnPublishDropped(cl *mochi.Client, pk packets.Packet) { a.release(cl, pk) }

func (a *access) release(cl *mochi.Client, pk packets.Packet) {
	if pk.FixedHeader.Type != packets.Publish || !strings.HasSuffix(pk.TopicName, "/"+string(transport.KindBlock)) {
		return
	}
	a.mu.Lock()
	c := a.credit[cl.ID]
	a.mu.Unlock()
	if c != nil {
		c.release()
	}
}

// OnDisconnect forgets a client, and what waits for it unless it is already
// back under the same name.
func (a *access) OnDisconnect(cl *mochi.Client, _ error, _ bool) {
	a.mu.Lock()
	delete(a.roles, cl)
	back := false
	for other := range a.roles {
		back = back || other.ID == cl.ID
	}
	if !back {
		delete(a.credit, cl.ID)
	}
	a.mu.Unlock()
	if !back {
		a.gone(cl.ID)
	}
}

// OnRetainMessage keeps what the desk has said over a restart of the broker.
// Devices say theirs again by themselves.
func (a *access) OnRetainMessage(cl *mochi.Client, pk packets.Packet, _ int64) {
	_, kind, err := transport.ParseTopic(pk.TopicName)
	if err == nil && !kind.Down() {
		return
	}
	if err := a.keep.save(pk.TopicName, pk.Payload); err != nil {
		a.log.Error("cannot keep a retained message over a restart", "topic", pk.TopicName, "error", err)
	}
}

// StoredRetainedMessages returns what OnRetainMessage has kept.
func (a *access) StoredRetainedMessages() ([]storage.Message, error) {
	all, err := a.keep.load()
	var out []storage.Message
	for topic, payload := range all {
		out = append(out, storage.Message{
			T: storage.RetainedKey, ID: storage.RetainedKey + "_" + topic, TopicName: topic, Payload: bytes.Clone(payload),
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true, Qos: 1},
		})
	}
	return out, err
}
