package manifest

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
)

// known are the paths that `critical` may name. A test holds it against the
// struct tags, so that a new field cannot be forgotten.
var known = set(
	"format", "product", "boards", "version", "sequence", "epoch", "critical",
	"images", "images.name", "images.type", "images.target", "images.digest", "images.size", "images.tree",
	"images.verity", "images.verity.root_hash", "images.verity.salt", "images.verity.data_blocks",
	"images.payloads", "images.payloads.kind", "images.payloads.base", "images.payloads.memory",
	"images.payloads.blob", "images.payloads.blob.digest", "images.payloads.blob.size", "images.payloads.blob.tree",
	"images.payloads.leaves", "images.payloads.leaves.digest", "images.payloads.leaves.size", "images.payloads.leaves.tree",
	"trial", "trial.tries", "trial.deadline_seconds", "trial.window_seconds", "trial.network",
	"health", "health.name", "health.kind", "health.target", "health.args", "health.timeout_seconds",
	"data_schema", "data_schema.version", "data_schema.readable_from", "data_schema.migrate",
	"measurements",
	"provenance", "provenance.source", "provenance.revision", "provenance.builder", "provenance.built", "provenance.sbom",
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
}

// Validate checks everything that can be checked without the blobs.
func (m Manifest) Validate() error {
	switch {
	case m.Format != Format:
		return fmt.Errorf("manifest format %d: %w", m.Format, ErrUnsupported)
	case !isName(m.Product):
		return bad("product %q is not a name", clip(m.Product))
	case len(m.Boards) == 0 || len(m.Boards) > 64:
		return bad("%d boards; 1 to 64 are allowed", len(m.Boards))
	case !isSemVer(m.Version):
		return bad("version %q is not a semantic version", clip(m.Version))
	case m.Sequence == 0 || m.Sequence > MaxSequence:
		return bad("sequence %d is not in 1..%d", m.Sequence, MaxSequence)
	case m.Epoch > MaxEpoch:
		return bad("epoch %d is over %d", m.Epoch, MaxEpoch)
	case len(m.Images) == 0 || len(m.Images) > MaxImages:
		return bad("%d images; 1 to %d are allowed", len(m.Images), MaxImages)
	case len(m.Health) > MaxChecks:
		return bad("%d health checks; at most %d are allowed", len(m.Health), MaxChecks)
	}
	for _, name := range m.Critical {
		if !known[name] {
			return fmt.Errorf("%w %q", ErrCritical, clip(name))
		}
	}
	boards := map[string]bool{}
	for _, b := range m.Boards {
		if !isName(b) || boards[b] {
			return bad("board %q is not a name, or named twice", clip(b))
		}
		boards[b] = true
	}
	if err := m.validateImages(); err != nil {
		return err
	}
	if err := m.Trial.validate(); err != nil {
		return err
	}
	checks := map[string]bool{}
	for _, c := range m.Health {
		if err := c.validate(); err != nil {
			return err
		}
		if checks[c.Name] {
			return bad("two health checks are named %q", c.Name)
		}
		checks[c.Name] = true
	}
	if err := m.DataSchema.validate(); err != nil {
		return err
	}
	if len(m.Measurements) > 64 {
		return bad("%d measurements; at most 64 are allowed", len(m.Measurements))
	}
	for name, value := range m.Measurements {
		if !isName(name) || !isHex(value, 40, 128) {
			return bad("measurement %q is not a name with a hexadecimal value", clip(name))
		}
	}
	return m.Provenance.validate()
}

func (m Manifest) validateImages() error {
	names, targets := map[string]bool{}, map[string]bool{}
	// The same digest with two sizes would let one part of the device program
	// check against one and another part allocate by the other.
	sizes := map[Digest]int64{}
	for _, im := range m.Images {
		if err := im.validate(); err != nil {
			return err
		}
		target := im.Type + " " + im.Target
		if names[im.Name] {
			return bad("two images are named %q", im.Name)
		}
		if targets[target] {
			return bad("image %q: another image has the %s target %q", im.Name, im.Type, im.Target)
		}
		names[im.Name], targets[target] = true, true
		contents := []Content{im.Content}
		for _, p := range im.Payloads {
			contents = append(contents, p.Blob)
			if p.Leaves != (Content{}) {
				contents = append(contents, p.Leaves)
			}
		}
		for _, c := range contents {
			if old, ok := sizes[c.Digest]; ok && old != c.Size {
				return bad("image %q: %s has the sizes %d and %d", im.Name, c.Digest, old, c.Size)
			}
			sizes[c.Digest] = c.Size
		}
	}
	return nil
}

func (c Content) validate() error {
	switch {
	case !c.Digest.Valid():
		return bad("%q is not a SHA-256 digest", clip(string(c.Digest)))
	case c.Size <= 0 || c.Size > MaxContent:
		return bad("size %d is not in 1..%d", c.Size, MaxContent)
	case c.Size > LeafSize && !c.Tree.Valid():
		return bad("%d bytes need a hash tree", c.Size)
	case c.Size <= LeafSize && c.Tree != "":
		return bad("%d bytes need no hash tree", c.Size)
	}
	return nil
}

func (im Image) validate() error {
	if !isName(im.Name) {
		return bad("image %q: not a name", clip(im.Name))
	}
	if err := im.Content.validate(); err != nil {
		return fmt.Errorf("image %q: %w", im.Name, err)
	}
	// The target becomes part of a partition label or of a handler's path.
	if !isName(im.Target) {
		return bad("image %q: target %q is not a name", im.Name, clip(im.Target))
	}
	if im.Type != TypeSlot && im.Type != TypeExternal {
		return fmt.Errorf("image %q: type %q: %w", im.Name, clip(im.Type), ErrUnsupported)
	}
	if im.Verity != nil {
		if err := im.Verity.validate(im.Size); err != nil {
			return fmt.Errorf("image %q: %w", im.Name, err)
		}
	}
	if len(im.Payloads) == 0 || len(im.Payloads) > MaxPayloads {
		return bad("image %q: %d payloads; 1 to %d are allowed", im.Name, len(im.Payloads), MaxPayloads)
	}
	for i, p := range im.Payloads {
		if err := p.validate(); err != nil {
			return fmt.Errorf("image %q: payload %d: %w", im.Name, i, err)
		}
	}
	return nil
}

func (v Verity) validate(size int64) error {
	switch {
	case !isHex(v.RootHash, 64, 64):
		return bad("verity root hash is not a SHA-256")
	case !isHex(v.Salt, 0, 512):
		return bad("verity salt is not hexadecimal, or over 256 bytes")
	// Compared by division: DataBlocks*4096 could wrap.
	case v.DataBlocks <= 0 || v.DataBlocks >= size/4096:
		return bad("%d verity data blocks and a superblock do not fit into %d bytes", v.DataBlocks, size)
	}
	return nil
}

func (p Payload) validate() error {
	if !isName(p.Kind) {
		return bad("kind %q is not a name", clip(p.Kind))
	}
	if err := p.Blob.validate(); err != nil {
		return err
	}
	if p.Leaves != (Content{}) {
		if err := p.Leaves.validate(); err != nil {
			return fmt.Errorf("leaves: %w", err)
		}
	}
	switch {
	case p.Memory < 0 || p.Memory > math.MaxInt32:
		return bad("memory %d is not in 0..%d", p.Memory, math.MaxInt32)
	case p.Base != "" && !p.Base.Valid():
		return bad("base %q is not a SHA-256 digest", clip(string(p.Base)))
	case p.Kind == KindDelta && p.Base == "":
		return bad("a delta without a base")
	case p.Leaves != (Content{}) && p.Base == "":
		return bad("leaves without a base")
	case (p.Kind == KindFull || p.Kind == KindIndex) && p.Base != "":
		return bad("a payload of kind %s with a base", p.Kind)
	}
	return nil
}

func (t Trial) validate() error {
	switch {
	case t.Tries < 1 || t.Tries > MaxTries:
		return bad("%d tries are not in 1..%d", t.Tries, MaxTries)
	case t.DeadlineSeconds < 1 || t.DeadlineSeconds > 7*86400:
		return bad("trial deadline of %d s is not in 1..%d", t.DeadlineSeconds, 7*86400)
	case t.WindowSeconds < 0 || t.WindowSeconds >= t.DeadlineSeconds:
		return bad("health window of %d s does not fit before the deadline of %d s", t.WindowSeconds, t.DeadlineSeconds)
	case t.Network != NetworkIgnore && t.Network != NetworkRequire:
		return bad("trial network policy %q is neither %q nor %q", clip(t.Network), NetworkIgnore, NetworkRequire)
	}
	return nil
}

func (c Check) validate() error {
	if !isName(c.Name) {
		return bad("health check %q: not a name", clip(c.Name))
	}
	if c.TimeoutSeconds < 1 || c.TimeoutSeconds > 3600 {
		return bad("health check %q: a time-out of %d s is not in 1..3600", c.Name, c.TimeoutSeconds)
	}
	if len(c.Args) > 64 || len(c.Args) > 0 && c.Kind != CheckCommand {
		return bad("health check %q: arguments belong to commands, at most 64", c.Name)
	}
	for _, s := range append([]string{c.Target}, c.Args...) {
		if !isText(s, 4096) {
			return bad("health check %q: control characters, or over 4096 bytes", c.Name)
		}
	}
	ok := false
	switch c.Kind {
	case CheckUnit:
		ok = c.Target != "" && !strings.HasPrefix(c.Target, "-") && !strings.ContainsAny(c.Target, "/ ")
	case CheckCommand, CheckFile:
		ok = isPath(c.Target)
	case CheckHTTP:
		ok = strings.HasPrefix(c.Target, "http://") || strings.HasPrefix(c.Target, "https://")
	case CheckMQTT:
		ok = c.Target == ""
	default:
		// A check that cannot be made would have to count as passed or as
		// failed, and both are wrong.
		return fmt.Errorf("health check %q: kind %q: %w", c.Name, clip(c.Kind), ErrUnsupported)
	}
	if !ok {
		return bad("health check %q: target %q does not suit a check of kind %s", c.Name, clip(c.Target), c.Kind)
	}
	return nil
}

func (s Schema) validate() error {
	switch {
	case s.Version < 0 || s.Version > math.MaxInt32:
		return bad("data schema version %d is not in 0..%d", s.Version, math.MaxInt32)
	case s.ReadableFrom < 0 || s.ReadableFrom > s.Version:
		return bad("data schema: readable from %d is not in 0..%d", s.ReadableFrom, s.Version)
	case s.Migrate != "" && !isPath(s.Migrate):
		return bad("data schema: migrate %q is not an absolute path", clip(s.Migrate))
	}
	return nil
}

func (p Provenance) validate() error {
	for _, s := range []string{p.Source, p.Revision, p.Builder} {
		if !isText(s, 1024) {
			return bad("provenance: control characters, or over 1024 bytes")
		}
	}
	if p.Built != "" {
		if _, err := time.Parse(time.RFC3339, p.Built); err != nil {
			return bad("provenance: built %q is not a time of RFC 3339", clip(p.Built))
		}
	}
	if p.SBOM != "" && !p.SBOM.Valid() {
		return bad("provenance: SBOM %q is not a SHA-256 digest", clip(string(p.SBOM)))
	}
	return nil
}

// isName accepts what is safe as part of a path, a label and a topic alike:
// 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit.
func isName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

func isText(s string, most int) bool {
	return len(s) <= most && strings.IndexFunc(s, unicode.IsControl) < 0
}

func isPath(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.Contains(s+"/", "/../") && len(s) <= 4096
}

// isSemVer follows the grammar of Semantic Versioning 2.0.0.
func isSemVer(s string) bool {
	if len(s) > 128 {
		return false
	}
	s, build, hasBuild := strings.Cut(s, "+")
	core, pre, hasPre := strings.Cut(s, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return false
	}
	for _, p := range parts {
		if !isNumeric(p) || len(p) > 1 && p[0] == '0' {
			return false
		}
	}
	return (!hasPre || identifiers(pre, true)) && (!hasBuild || identifiers(build, false))
}

func identifiers(s string, strictNumbers bool) bool {
	for _, id := range strings.Split(s, ".") {
		if id == "" || strictNumbers && len(id) > 1 && id[0] == '0' && isNumeric(id) {
			return false
		}
		for _, c := range []byte(id) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

func isNumeric(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
