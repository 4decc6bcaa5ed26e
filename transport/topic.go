package transport

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The levels of a topic hold only letters, digits, '_' and '-', none is empty
// and none is deeper than seven slashes: the least that mosquitto, EMQX, NATS
// and AWS IoT agree on (NATS refuses dots and spaces, AWS an eighth slash).
const (
	root       = "ota/v1"
	metaPrefix = root + "/meta/"
	devPrefix  = root + "/d/"
)

// Kind is the last part of a topic of one device, with its direction: "dn/…"
// goes down to the device, "up/…" comes from it.
type Kind string

// The topics of one device: ota/v1/d/{id}/{kind}.
const (
	KindWant     Kind = "dn/want" // retained, QoS 1: what the device should run
	KindBlock    Kind = "dn/blk"  // QoS 0: a block of data
	KindGet      Kind = "up/get"  // QoS 0: a request for ranges
	KindState    Kind = "up/is"   // retained, QoS 1: what the device is
	KindEvent    Kind = "up/evt"  // QoS 1: a phase began or ended
	KindProgress Kind = "up/prog" // QoS 0: how far the running phase is
	KindVerdict  Kind = "up/end"  // retained, QoS 1: how an update ended
	KindLive     Kind = "up/live" // retained, QoS 1, last will: is it there?
)

// Kinds lists every topic of a device, for access lists and watchers.
var Kinds = []Kind{KindWant, KindBlock, KindGet, KindState, KindEvent, KindProgress, KindVerdict, KindLive}

// Down reports whether messages of this kind go to the device.
func (k Kind) Down() bool { return strings.HasPrefix(string(k), "dn/") }

// Filters for subscribers that serve or watch every device.
const (
	AllGets  = devPrefix + "+/up/get"
	AllUp    = devPrefix + "+/up/+"
	AllWants = devPrefix + "+/dn/want"
	AllMeta  = metaPrefix + "+"
)

// SharedGets spreads the requests of the fleet over the block servers that
// subscribe to it, each request to one of them.
const SharedGets = "$share/blk/" + AllGets

// MaxID is the longest device id, in characters.
const MaxID = 64

// ErrID means that a name cannot be a device id: it would change the meaning of
// a topic or of a path, so callers must refuse it, not repair it.
var ErrID = errors.New("device id must be 1 to 64 of A-Z a-z 0-9 _ -")

// CheckID returns an error that wraps ErrID unless id may name a device. The
// MQTT client id, the user name and the common name of the certificate are all
// this same id.
func CheckID(id string) error {
	if len(id) == 0 || len(id) > MaxID || !plain(id) {
		return fmt.Errorf("%w: %.80q", ErrID, id)
	}
	return nil
}

// plain reports whether s holds only characters that mean nothing to a broker,
// a file system or a shell.
func plain(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// Topic returns the topic of one device. The caller has checked the id.
func Topic(id string, k Kind) string { return devPrefix + id + "/" + string(k) }

// ParseTopic splits the topic of a device into its id and kind.
func ParseTopic(topic string) (id string, k Kind, err error) {
	rest, ok := strings.CutPrefix(topic, devPrefix)
	if !ok {
		return "", "", fmt.Errorf("not the topic of a device: %.120q", topic)
	}
	id, kind, _ := strings.Cut(rest, "/")
	if err := CheckID(id); err != nil {
		return "", "", err
	}
	for _, k := range Kinds {
		if string(k) == kind {
			return id, k, nil
		}
	}
	return "", "", fmt.Errorf("unknown topic of device %s: %.80q", id, kind)
}

// MetaTopic returns the retained topic of a TUF metadata file: "2.root.json" is
// ota/v1/meta/root-2 and "timestamp.json" is ota/v1/meta/timestamp, because a
// dot must not stand in a topic.
func MetaTopic(name string) (string, error) {
	if err := CheckMetaName(name); err != nil {
		return "", err
	}
	base := strings.TrimSuffix(name, ".json")
	if n, role, ok := strings.Cut(base, "."); ok {
		return metaPrefix + role + "-" + n, nil
	}
	return metaPrefix + base, nil
}

// MetaName is the inverse of MetaTopic.
func MetaName(topic string) (string, error) {
	rest, ok := strings.CutPrefix(topic, metaPrefix)
	if !ok {
		return "", fmt.Errorf("not a metadata topic: %.120q", topic)
	}
	name := rest + ".json"
	if role, n, ok := strings.Cut(rest, "-"); ok {
		name = n + "." + role + ".json"
	}
	return name, CheckMetaName(name)
}

// CheckMetaName accepts the names of TUF metadata files: ROLE.json and
// N.ROLE.json, with a role of at most 32 letters, digits and '_', and a version
// without leading zero. It refuses everything that could be a path.
func CheckMetaName(name string) error {
	base, ok := strings.CutSuffix(name, ".json")
	role := base
	if n, r, versioned := strings.Cut(base, "."); versioned {
		v, err := strconv.ParseUint(n, 10, 32)
		if err != nil || v == 0 || strconv.FormatUint(v, 10) != n {
			ok = false
		}
		role = r
	}
	if !ok || role == "" || len(role) > 32 || !plain(role) || strings.Contains(role, "-") {
		return fmt.Errorf("not the name of a metadata file: %.80q", name)
	}
	return nil
}
