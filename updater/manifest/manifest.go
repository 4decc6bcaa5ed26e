// Package manifest reads and writes the signed description of a release.
//
// A manifest is JSON (FORMAT.md beside this file lists every field) and
// travels inside a DSSE envelope; package trust checks the envelope, this
// package only what is inside. Sizes are in bytes, times in seconds, digests
// are "sha256:" and 64 lower-case hexadecimal digits.
//
// The digest of a manifest is the SHA-256 of its JSON bytes as signed, not of
// the envelope: signing again with another key does not change what a release
// is. It is what the TPM measures and what reports name.
//
// Parse is meant for bytes whose signature was already checked, and is strict
// all the same: a stolen key should buy as little as possible. Nothing here
// decides whether a device wants a release; see package updater.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/tandem-ota/tandem/updater/trust/strictjson"
)

// Format is the manifest format that this package reads and writes.
const Format = 1

// PayloadType is the DSSE payload type of a manifest.
const PayloadType = "application/vnd.tandem.manifest.v1+json"

// LeafSize is the unit of hash trees: 64 KiB. The last leaf of a content may
// be shorter.
const LeafSize = 64 << 10

// Bounds of a manifest. MaxSize keeps a device from parsing for minutes,
// MaxContent keeps a hash tree (32 bytes a leaf) at 32 MiB.
const (
	MaxSize     = 1 << 20
	MaxContent  = int64(64) << 30
	MaxSequence = uint64(1)<<53 - 1 // the largest whole number that every JSON reader keeps exact
	MaxEpoch    = 1<<16 - 1         // floor counters step by one, so that an epoch must stay reachable
	MaxImages   = 16
	MaxPayloads = 64
	MaxChecks   = 64
	MaxTries    = 9
)

// ErrFormat means that the bytes are not a manifest, or one that contradicts
// itself. The release must be made again.
var ErrFormat = errors.New("malformed manifest")

// ErrTooLarge means that the manifest is over MaxSize or nested too deeply.
var ErrTooLarge = errors.New("manifest over its limits")

// ErrCritical means that the manifest marks a field as critical that this
// program does not know. The device program must be updated first, by a
// release that does without the field.
var ErrCritical = errors.New("unknown critical field")

// ErrUnsupported means that the manifest is sound but of a format or kind
// that this program is too old for.
var ErrUnsupported = errors.New("not supported by this version of tandem")

// Manifest describes one release. The zero value is not valid.
type Manifest struct {
	Format       int               `json:"format"`
	Product      string            `json:"product"`
	Boards       []string          `json:"boards"`
	Version      string            `json:"version"`  // SemVer 2.0.0, for people
	Sequence     uint64            `json:"sequence"` // for devices: only grows
	Epoch        uint64            `json:"epoch"`
	Critical     []string          `json:"critical,omitempty"` // field paths, as "images.verity", that a reader must know
	Images       []Image           `json:"images"`
	Trial        Trial             `json:"trial"`
	Health       []Check           `json:"health,omitempty"`
	DataSchema   Schema            `json:"data_schema"`
	Measurements map[string]string `json:"measurements,omitempty"` // PCR name to hexadecimal value at the next boot
	Provenance   Provenance        `json:"provenance"`
}

// Content is some bytes by name.
type Content struct {
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"`
	// Tree names the blob with the SHA-256 of each leaf, one after the other;
	// empty where Size is at most LeafSize, since Digest says it all then.
	Tree Digest `json:"tree,omitempty"`
}

// Leaves is the number of leaves of the content.
func (c Content) Leaves() int64 { return (c.Size + LeafSize - 1) / LeafSize }

// TreeSize is the size of the blob that Tree names; 0 where there is none.
func (c Content) TreeSize() int64 {
	if c.Tree == "" {
		return 0
	}
	return c.Leaves() * 32
}

// Types of images.
const (
	TypeSlot     = "slot"     // written to a partition of the spare slot
	TypeExternal = "external" // handed to a handler program
)

// Image is one thing that a release installs. Content is the image itself:
// what is on the medium afterwards, not what is downloaded.
type Image struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Target string `json:"target"` // slot role ("boot", "root"), or the name of the handler
	Content
	Verity   *Verity   `json:"verity,omitempty"`
	Payloads []Payload `json:"payloads"`
}

// Verity says how to open an image with dm-verity: SHA-256, 4096-byte data
// and hash blocks, superblock at DataBlocks*4096, the tree after it.
type Verity struct {
	RootHash   string `json:"root_hash"` // hexadecimal
	Salt       string `json:"salt"`      // hexadecimal
	DataBlocks int64  `json:"data_blocks"`
}

// Kinds of payloads. A reader skips kinds that it does not know.
const (
	KindFull  = "full"
	KindDelta = "delta"
	KindIndex = "index"
)

// Payload is one way to come by an image.
type Payload struct {
	Kind   string  `json:"kind"`
	Base   Digest  `json:"base,omitempty"` // the image that a delta starts from
	Blob   Content `json:"blob"`           // what is downloaded
	Memory int64   `json:"memory"`         // bytes that applying it needs
	// Leaves tells the image's leaf digests from the base (package leaves), for less than
	// the tree takes; zero if there is no such blob.
	Leaves Content `json:"leaves,omitzero"`
}

// What a trial does about a lost network.
const (
	NetworkIgnore  = "ignore"  // a site without network does not revert an update
	NetworkRequire = "require" // a system that cannot reach its fleet is a bad one
)

// Trial bounds the time between the first boot of a new system and its commit.
type Trial struct {
	Tries           int    `json:"tries"`            // boots, 1 to 9
	DeadlineSeconds int    `json:"deadline_seconds"` // from boot to the end of the window
	WindowSeconds   int    `json:"window_seconds"`   // all checks must stay good for this long
	Network         string `json:"network"`
}

// Kinds of health checks.
const (
	CheckUnit    = "unit"    // Target: systemd unit that must be active
	CheckCommand = "command" // Target: absolute path of a program that must exit with 0, with Args
	CheckHTTP    = "http"    // Target: URL that must answer with 2xx
	CheckMQTT    = "mqtt"    // the link to the fleet must be up; Target is empty
	CheckFile    = "file"    // Target: absolute path that must exist
)

// Check is one condition of health.
type Check struct {
	Name           string   `json:"name"`
	Kind           string   `json:"kind"`
	Target         string   `json:"target,omitempty"`
	Args           []string `json:"args,omitempty"`
	TimeoutSeconds int      `json:"timeout_seconds"`
}

// Schema numbers the layout of the data that a system keeps across releases.
type Schema struct {
	Version      int    `json:"version"`           // what this release writes
	ReadableFrom int    `json:"readable_from"`     // the oldest that it can still read
	Migrate      string `json:"migrate,omitempty"` // absolute path in the new system of the program that migrates
}

// Provenance says where a release comes from. It is for people and audits;
// the device decides nothing by it.
type Provenance struct {
	Source   string `json:"source,omitempty"`
	Revision string `json:"revision,omitempty"`
	Builder  string `json:"builder,omitempty"`
	Built    string `json:"built,omitempty"` // RFC 3339
	SBOM     Digest `json:"sbom,omitempty"`
}

// rules refuse what encoding/json would read leniently; see strictjson.
var rules = strictjson.Rules{Size: MaxSize, Depth: 12, PlainKeys: true}

// Parse reads and validates a manifest. Fields that it does not know are
// skipped unless the manifest names them as critical. Errors wrap ErrFormat,
// ErrTooLarge, ErrCritical or ErrUnsupported.
func Parse(data []byte) (Manifest, error) {
	// First only what tells whether the rest can be understood: a later format
	// may give fields other types, and should then be called unsupported
	// rather than malformed.
	var head struct {
		Format   int      `json:"format"`
		Critical []string `json:"critical"`
	}
	if err := decode(data, &head); err != nil {
		return Manifest{}, err
	}
	if head.Format < 1 {
		return Manifest{}, fmt.Errorf("%w: no format number", ErrFormat)
	}
	if head.Format != Format {
		return Manifest{}, fmt.Errorf("manifest format %d: %w", head.Format, ErrUnsupported)
	}
	for _, name := range head.Critical {
		if !known[name] {
			return Manifest{}, fmt.Errorf("%w %q", ErrCritical, name)
		}
	}
	var m Manifest
	if err := decode(data, &m); err != nil {
		return Manifest{}, err
	}
	if err := m.Validate(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

func decode(data []byte, v any) error {
	err := strictjson.Decode(data, rules, v)
	if errors.Is(err, strictjson.ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// Marshal validates m and returns its JSON: no white space, fields in the
// order of FORMAT.md, map keys sorted, so that equal manifests have equal
// bytes and equal digests.
func (m Manifest) Marshal() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, err
	}
	data := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	// What we write we must be able to read: the bounds of strictjson are not
	// all expressible as field checks.
	if _, err := Parse(data); err != nil {
		return nil, err
	}
	return data, nil
}

// Image returns the image of that name.
func (m Manifest) Image(name string) (Image, bool) {
	for _, im := range m.Images {
		if im.Name == name {
			return im, true
		}
	}
	return Image{}, false
}

// SuitsBoard reports whether the release is made for the board.
func (m Manifest) SuitsBoard(board string) bool {
	for _, b := range m.Boards {
		if b == board {
			return true
		}
	}
	return false
}

// TargetName is the name under which TUF lists the envelope of a release.
func TargetName(product string, sequence uint64) string {
	return product + "/" + strconv.FormatUint(sequence, 10) + ".json"
}

// TargetName is the TUF target name of this release.
func (m Manifest) TargetName() string { return TargetName(m.Product, m.Sequence) }
