package manifest_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
)

func hexDigest(c string) manifest.Digest { return manifest.Digest("sha256:" + strings.Repeat(c, 64)) }

func good() manifest.Manifest {
	return manifest.Manifest{
		Format: 1, Product: "gateway", Boards: []string{"qemu-x86_64"}, Version: "1.2.0-rc.1+b5", Sequence: 7, Epoch: 1,
		Critical: []string{"images.verity"},
		Images: []manifest.Image{{
			Name: "root", Type: "slot", Target: "root",
			Content: manifest.Content{Digest: hexDigest("1"), Size: 1 << 20, Tree: hexDigest("2")},
			Verity:  &manifest.Verity{RootHash: strings.Repeat("ab", 32), Salt: "00ff", DataBlocks: 200},
			Payloads: []manifest.Payload{
				{Kind: "full", Blob: manifest.Content{Digest: hexDigest("3"), Size: 70000, Tree: hexDigest("4")}, Memory: 1 << 20},
				{Kind: "delta", Base: hexDigest("5"), Blob: manifest.Content{Digest: hexDigest("6"), Size: 700}, Memory: 1 << 20},
			},
		}},
		Trial:        manifest.Trial{Tries: 3, DeadlineSeconds: 300, WindowSeconds: 30, Network: "ignore"},
		Health:       []manifest.Check{{Name: "app", Kind: "unit", Target: "app.service", TimeoutSeconds: 10}},
		DataSchema:   manifest.Schema{Version: 2, ReadableFrom: 1, Migrate: "/usr/lib/app/migrate"},
		Measurements: map[string]string{"pcr4": strings.Repeat("0a", 32)},
		Provenance:   manifest.Provenance{Source: "https://example.com/a?b&c", Revision: "abc", Built: "2026-11-21T00:00:00Z", SBOM: hexDigest("7")},
	}
}

func marshal(t testing.TB, m manifest.Manifest) []byte {
	data, err := m.Marshal()
	require.NoError(t, err)
	return data
}

// What is written is read back as the same value, and written again as the
// same bytes: the digest of a manifest does not depend on who wrote it.
func TestManifestRoundTrip(t *testing.T) {
	data := marshal(t, good())
	m, err := manifest.Parse(data)
	require.NoError(t, err)
	require.Equal(t, good(), m)
	require.Equal(t, data, marshal(t, m))
	require.NotContains(t, string(data), `\u0026`)
}

// jq and Python read the same values out of our bytes: no private dialect.
func TestManifestReadByOthers(t *testing.T) {
	jq, err := exec.LookPath("jq")
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("jq is not installed")
		}
		t.Skip("jq is not installed")
	}
	cmd := exec.Command(jq, "-c", "-j", ".")
	data := marshal(t, good())
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, string(data), string(out))
}

// edit returns the JSON of a good manifest with the value at path replaced;
// nil deletes it.
func edit(t testing.TB, value any, path ...any) []byte {
	var doc any
	require.NoError(t, json.Unmarshal(marshal(t, good()), &doc))
	at := doc
	for _, p := range path[:len(path)-1] {
		if i, ok := p.(int); ok {
			at = at.([]any)[i]
		} else {
			at = at.(map[string]any)[p.(string)]
		}
	}
	switch last := path[len(path)-1].(type) {
	case int:
		at.([]any)[last] = value
	case string:
		if value == nil {
			delete(at.(map[string]any), last)
		} else {
			at.(map[string]any)[last] = value
		}
	}
	data, err := json.Marshal(doc)
	require.NoError(t, err)
	return data
}

// A manifest that contradicts itself, or that asks for what no device can
// give, is refused as malformed and not half understood.
func TestManifestRefused(t *testing.T) {
	image := func(path ...any) []any { return append([]any{"images", 0}, path...) }
	for name, data := range map[string][]byte{
		"empty":                             {},
		"only a string":                     []byte(`"x"`),
		"something follows":                 append(marshal(t, good()), '{'),
		"no format":                         edit(t, nil, "format"),
		"product with a slash":              edit(t, "a/b", "product"),
		"product like a parent folder":      edit(t, "..", "product"),
		"no board":                          edit(t, []string{}, "boards"),
		"board twice":                       edit(t, []string{"a", "a"}, "boards"),
		"version of two parts":              edit(t, "1.2", "version"),
		"version with a leading zero":       edit(t, "1.02.3", "version"),
		"version with an empty pre-release": edit(t, "1.2.3-", "version"),
		"no sequence":                       edit(t, nil, "sequence"),
		"sequence that JavaScript rounds":   edit(t, json.Number("9007199254740993"), "sequence"),
		"sequence that wraps":               edit(t, json.Number("18446744073709551617"), "sequence"),
		"sequence below zero":               edit(t, -1, "sequence"),
		"sequence as a float":               edit(t, json.Number("7.5"), "sequence"),
		"epoch out of reach":                edit(t, 65536, "epoch"),
		"no image":                          edit(t, []string{}, "images"),
		"image target like a path":          edit(t, "../boot", image("target")...),
		"image digest in capitals":          edit(t, "sha256:"+strings.Repeat("A", 64), image("digest")...),
		"image digest too short":            edit(t, "sha256:ab", image("digest")...),
		"image digest of another kind":      edit(t, "sha512:"+strings.Repeat("a", 64), image("digest")...),
		"image without a digest":            edit(t, nil, image("digest")...),
		"image of size 0":                   edit(t, 0, image("size")...),
		"image size that wraps":             edit(t, json.Number("18446744073709551616"), image("size")...),
		"image size below zero":             edit(t, -4096, image("size")...),
		"image size over the limit":         edit(t, json.Number("68719476737"), image("size")...),
		"large image without a tree":        edit(t, nil, image("tree")...),
		"small image with a tree":           edit(t, 65536, image("size")...),
		"no payload":                        edit(t, []string{}, image("payloads")...),
		"payload without a digest":          edit(t, nil, image("payloads", 0, "blob", "digest")...),
		"delta without a base":              edit(t, nil, image("payloads", 1, "base")...),
		"full with a base":                  edit(t, hexDigest("5"), image("payloads", 0, "base")...),
		"payload of negative memory":        edit(t, -1, image("payloads", 0, "memory")...),
		"one digest with two sizes":         edit(t, hexDigest("3"), image("payloads", 1, "blob", "digest")...),
		"verity blocks beyond the image":    edit(t, 256, image("verity", "data_blocks")...),
		"verity blocks that wrap":           edit(t, json.Number("4503599627370497"), image("verity", "data_blocks")...),
		"verity root hash cut short":        edit(t, "abcd", image("verity", "root_hash")...),
		"no tries":                          edit(t, nil, "trial", "tries"),
		"ten tries":                         edit(t, 10, "trial", "tries"),
		"window longer than the deadline":   edit(t, 300, "trial", "window_seconds"),
		"unknown network policy":            edit(t, "maybe", "trial", "network"),
		"no trial":                          edit(t, nil, "trial"),
		"command as a relative path":        edit(t, map[string]any{"name": "x", "kind": "command", "target": "sh", "timeout_seconds": 1}, "health", 0),
		"command through a parent folder":   edit(t, map[string]any{"name": "x", "kind": "command", "target": "/usr/../tmp/x", "timeout_seconds": 1}, "health", 0),
		"unit that looks like an option":    edit(t, "--force", "health", 0, "target"),
		"check without a time-out":          edit(t, nil, "health", 0, "timeout_seconds"),
		"control character in an argument":  edit(t, map[string]any{"name": "x", "kind": "command", "target": "/x", "args": []string{"a\u0085b"}, "timeout_seconds": 1}, "health", 0),
		"readable from the future":          edit(t, 3, "data_schema", "readable_from"),
		"measurement that is not hex":       edit(t, "zz", "measurements", "pcr4"),
		"built at no time":                  edit(t, "yesterday", "provenance", "built"),
		"SBOM that is no digest":            edit(t, "x", "provenance", "sbom"),
		"null for a field":                  []byte(strings.Replace(string(marshal(t, good())), `"epoch":1`, `"epoch":null`, 1)),
		"key twice":                         []byte(strings.Replace(string(marshal(t, good())), `"epoch":1`, `"epoch":1,"epoch":2`, 1)),
		"key twice, once escaped":           []byte(strings.Replace(string(marshal(t, good())), `"epoch":1`, `"epoch":1,"\u0065poch":2`, 1)),
		"key in capitals":                   []byte(strings.Replace(string(marshal(t, good())), `"epoch":1`, `"Epoch":1`, 1)),
		"raw control character":             []byte(strings.Replace(string(marshal(t, good())), `"gateway"`, "\"gate\nway\"", 1)),
		"number with an exponent":           []byte(strings.Replace(string(marshal(t, good())), `"sequence":7`, `"sequence":7e0`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Parse(data)
			require.ErrorIs(t, err, manifest.ErrFormat)
		})
	}
}

// Every number, length and count in a manifest has its edges: what is on them is accepted, one
// step outside is refused. Only then does a device know how much room it has to find.
func TestManifestEdges(t *testing.T) {
	text := func(n int64) string { return strings.Repeat("a", int(n)) }
	hex := func(n int64) string { return strings.Repeat("0a", int(n)) }
	names := func(n int64) (out []string) {
		for i := range n {
			out = append(out, "n"+strconv.FormatInt(i, 10))
		}
		return out
	}
	blob := func(m *manifest.Manifest) *manifest.Content { return &m.Images[0].Payloads[1].Blob }
	const none = math.MinInt64 // there is nothing below the smallest
	for name, edge := range map[string]struct {
		low, high int64
		set       func(m *manifest.Manifest, n int64)
	}{
		"letters of the product": {1, 64, func(m *manifest.Manifest, n int64) { m.Product = text(n) }},
		"boards":                 {1, 64, func(m *manifest.Manifest, n int64) { m.Boards = names(n) }},
		"letters of the version": {none, 128, func(m *manifest.Manifest, n int64) { m.Version = "1.2.3-" + text(n-6) }},
		"sequence":               {1, int64(manifest.MaxSequence), func(m *manifest.Manifest, n int64) { m.Sequence = uint64(n) }},
		"epoch":                  {0, manifest.MaxEpoch, func(m *manifest.Manifest, n int64) { m.Epoch = uint64(n) }},
		"images": {1, manifest.MaxImages, func(m *manifest.Manifest, n int64) {
			one := m.Images[0]
			m.Images = nil
			for _, name := range names(n) {
				one.Name, one.Target = name, name
				m.Images = append(m.Images, one)
			}
		}},
		"letters of an image's name":    {1, 64, func(m *manifest.Manifest, n int64) { m.Images[0].Name = text(n) }},
		"size of a large image":         {manifest.LeafSize + 1, manifest.MaxContent, func(m *manifest.Manifest, n int64) { m.Images[0].Verity, m.Images[0].Size = nil, n }},
		"size of a blob without a tree": {1, manifest.LeafSize, func(m *manifest.Manifest, n int64) { blob(m).Size = n }},
		"size of a blob with a tree":    {manifest.LeafSize + 1, manifest.MaxContent, func(m *manifest.Manifest, n int64) { blob(m).Size, blob(m).Tree = n, hexDigest("8") }},
		"bytes of the root hash":        {32, 32, func(m *manifest.Manifest, n int64) { m.Images[0].Verity.RootHash = hex(n) }},
		"bytes of the salt":             {none, 256, func(m *manifest.Manifest, n int64) { m.Images[0].Verity.Salt = hex(n) }},
		"verity data blocks":            {1, 255, func(m *manifest.Manifest, n int64) { m.Images[0].Verity.DataBlocks = n }},
		"payloads": {1, manifest.MaxPayloads, func(m *manifest.Manifest, n int64) {
			m.Images[0].Payloads = slices.Repeat(m.Images[0].Payloads[:1], int(n))
		}},
		"memory of a payload":         {0, math.MaxInt32, func(m *manifest.Manifest, n int64) { m.Images[0].Payloads[0].Memory = n }},
		"letters of a payload's kind": {1, 64, func(m *manifest.Manifest, n int64) { m.Images[0].Payloads[0].Kind = text(n) }},
		"tries":                       {1, manifest.MaxTries, func(m *manifest.Manifest, n int64) { m.Trial.Tries = int(n) }},
		"seconds to the deadline":     {1, 7 * 86400, func(m *manifest.Manifest, n int64) { m.Trial.WindowSeconds, m.Trial.DeadlineSeconds = 0, int(n) }},
		"seconds of the window":       {0, 299, func(m *manifest.Manifest, n int64) { m.Trial.WindowSeconds = int(n) }},
		"letters of a check's name":   {1, 64, func(m *manifest.Manifest, n int64) { m.Health[0].Name = text(n) }},
		"letters of a check's target": {1, 4096, func(m *manifest.Manifest, n int64) { m.Health[0].Target = text(n) }},
		"time-out of a check":         {1, 3600, func(m *manifest.Manifest, n int64) { m.Health[0].TimeoutSeconds = int(n) }},
		"arguments of a command": {none, 64, func(m *manifest.Manifest, n int64) {
			m.Health[0].Kind, m.Health[0].Target, m.Health[0].Args = "command", "/x", names(n)
		}},
		"letters of an argument": {none, 4096, func(m *manifest.Manifest, n int64) {
			m.Health[0].Kind, m.Health[0].Target, m.Health[0].Args = "command", "/x", []string{text(n)}
		}},
		"arguments of a unit":            {none, 0, func(m *manifest.Manifest, n int64) { m.Health[0].Args = names(n) }},
		"version of the data":            {0, math.MaxInt32, func(m *manifest.Manifest, n int64) { m.DataSchema.Version, m.DataSchema.ReadableFrom = int(n), 0 }},
		"version that can be read":       {0, 2, func(m *manifest.Manifest, n int64) { m.DataSchema.ReadableFrom = int(n) }},
		"letters of the migration":       {none, 4096, func(m *manifest.Manifest, n int64) { m.DataSchema.Migrate = "/" + text(n-1) }},
		"bytes of a measurement":         {20, 64, func(m *manifest.Manifest, n int64) { m.Measurements = map[string]string{"pcr4": hex(n)} }},
		"letters of the source revision": {none, 1024, func(m *manifest.Manifest, n int64) { m.Provenance.Revision = text(n) }},
		"health checks": {none, manifest.MaxChecks, func(m *manifest.Manifest, n int64) {
			one := m.Health[0]
			m.Health = nil
			for _, name := range names(n) {
				one.Name = name
				m.Health = append(m.Health, one)
			}
		}},
		"measurements": {none, 64, func(m *manifest.Manifest, n int64) {
			m.Measurements = map[string]string{}
			for _, name := range names(n) {
				m.Measurements[name] = hex(32)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			judge := func(n int64) error {
				m := good()
				edge.set(&m, n)
				return m.Validate()
			}
			require.NoError(t, judge(edge.high))
			require.ErrorIs(t, judge(edge.high+1), manifest.ErrFormat)
			if edge.low != none {
				require.NoError(t, judge(edge.low))
				require.ErrorIs(t, judge(edge.low-1), manifest.ErrFormat)
			}
		})
	}
}

// Names, versions and digests end in paths, topics and partition labels: what is not a letter
// of theirs is refused, also where it is the next one in the code table.
func TestManifestLetters(t *testing.T) {
	judge := func(set func(m *manifest.Manifest)) error {
		m := good()
		set(&m)
		return m.Validate()
	}
	for _, s := range []string{"a", "z", "A", "Z", "0", "9", "a.b", "a_b", "a-b"} {
		require.NoError(t, judge(func(m *manifest.Manifest) { m.Product = s }), s)
	}
	for _, s := range []string{"", "-", ".", "_", "a b", "ä", "/", ":", "@", "[", "`", "{", "a/", "a:", "a@", "a[", "a`", "a{", "a\\"} {
		for where, set := range map[string]func(m *manifest.Manifest){
			"product":      func(m *manifest.Manifest) { m.Product = s },
			"board":        func(m *manifest.Manifest) { m.Boards[0] = s },
			"image":        func(m *manifest.Manifest) { m.Images[0].Name = s },
			"target":       func(m *manifest.Manifest) { m.Images[0].Target = s },
			"payload kind": func(m *manifest.Manifest) { m.Images[0].Payloads[0].Kind = s },
			"health check": func(m *manifest.Manifest) { m.Health[0].Name = s },
			"measurement":  func(m *manifest.Manifest) { m.Measurements = map[string]string{s: strings.Repeat("0a", 32)} },
		} {
			require.ErrorIs(t, judge(set), manifest.ErrFormat, "%s %q", where, s)
		}
	}
	for _, s := range []string{"0.0.0", "1.2.3-0", "1.2.3-a.z.A.Z.9.-", "1.2.3-01a", "1.2.3+01", "1.2.3-x+a.z.A.Z.0.9.-"} {
		require.NoError(t, judge(func(m *manifest.Manifest) { m.Version = s }), s)
	}
	for _, s := range []string{"1..3", "1.x.3", "1./.3", "1.:.3", "1.2.3.4", "1.2.3-01", "1.2.3-a..b", "1.2.3+", "1.2.3+a..b", "1.2.3-a,", "1.2.3-a/",
		"1.2.3-a:", "1.2.3-a@", "1.2.3-a[", "1.2.3-a_", "1.2.3-a`", "1.2.3-a{", "1.2.3+a_", "1.2.3+a+b"} {
		require.ErrorIs(t, judge(func(m *manifest.Manifest) { m.Version = s }), manifest.ErrFormat, s)
	}
	for _, c := range []string{"/", ":", "`", "g", "A", "F"} {
		_, err := manifest.ParseDigest("sha256:" + strings.Repeat("a", 63) + c)
		require.ErrorIs(t, err, manifest.ErrFormat, c)
	}
}

// What a manifest says about a payload and a check has to fit together, whoever made it: also
// one that was never JSON.
func TestManifestContradictions(t *testing.T) {
	leaves := manifest.Content{Digest: hexDigest("8"), Size: 100}
	for name, set := range map[string]func(m *manifest.Manifest){
		"base that is no digest": func(m *manifest.Manifest) { m.Images[0].Payloads[1].Base = "sha256:55" },
		"index with a base":      func(m *manifest.Manifest) { p := &m.Images[0].Payloads[1]; p.Kind = "index" },
		"leaves without a base":  func(m *manifest.Manifest) { m.Images[0].Payloads[0].Leaves = leaves },
		"leaves of no bytes":     func(m *manifest.Manifest) { m.Images[0].Payloads[1].Leaves = manifest.Content{Digest: hexDigest("8")} },
		"leaves of the blob's digest": func(m *manifest.Manifest) {
			m.Images[0].Payloads[1].Leaves = manifest.Content{Digest: hexDigest("6"), Size: 100}
		},
		"blob without a tree":              func(m *manifest.Manifest) { m.Images[0].Payloads[0].Blob.Tree = "" },
		"two images of one name":           func(m *manifest.Manifest) { m.Images = append(m.Images, m.Images[0]); m.Images[1].Target = "boot" },
		"two images for one target":        func(m *manifest.Manifest) { m.Images = append(m.Images, m.Images[0]); m.Images[1].Name = "boot" },
		"two checks of one name":           func(m *manifest.Manifest) { m.Health = append(m.Health, m.Health[0]) },
		"unit in a folder":                 func(m *manifest.Manifest) { m.Health[0].Target = "a/b" },
		"page that is no URL":              func(m *manifest.Manifest) { m.Health[0].Kind, m.Health[0].Target = "http", "ftp://x" },
		"file by a relative path":          func(m *manifest.Manifest) { m.Health[0].Kind, m.Health[0].Target = "file", "x" },
		"link with a target":               func(m *manifest.Manifest) { m.Health[0].Kind = "mqtt" },
		"migration by a relative path":     func(m *manifest.Manifest) { m.DataSchema.Migrate = "x" },
		"migration that climbs":            func(m *manifest.Manifest) { m.DataSchema.Migrate = "/a/.." },
		"half a byte of a measurement":     func(m *manifest.Manifest) { m.Measurements["pcr4"] += "0" },
		"salt that is not hexadecimal":     func(m *manifest.Manifest) { m.Images[0].Verity.Salt = "xy" },
		"control character in the builder": func(m *manifest.Manifest) { m.Provenance.Builder = "a\nb" },
	} {
		m := good()
		set(&m)
		require.ErrorIs(t, m.Validate(), manifest.ErrFormat, name)
	}
	with := good()
	with.Images[0].Payloads[1].Leaves = leaves
	require.NoError(t, with.Validate())

	later := good()
	later.Format++
	require.ErrorIs(t, later.Validate(), manifest.ErrUnsupported)
	critical := good()
	critical.Critical = []string{"raid"}
	require.ErrorIs(t, critical.Validate(), manifest.ErrCritical)

	// The text of an error goes into logs, so that the manifest does not choose its length.
	long := good()
	long.Product = strings.Repeat("a", 1<<16)
	require.Less(t, len(long.Validate().Error()), 200)
}

// An older program says what it lacks, by name, instead of guessing; and takes
// a newer release in which nothing that it lacks is critical.
func TestManifestFromTheFuture(t *testing.T) {
	_, err := manifest.Parse(edit(t, []string{"images.verity", "images.raid"}, "critical"))
	require.ErrorIs(t, err, manifest.ErrCritical)
	require.ErrorContains(t, err, `"images.raid"`)

	// The name comes before complaints about what is in the field.
	_, err = manifest.Parse([]byte(`{"format":1,"critical":["raid"],"images":{"raid":1}}`))
	require.ErrorIs(t, err, manifest.ErrCritical)

	m, err := manifest.Parse(edit(t, map[string]any{"level": []any{1, true}}, "raid"))
	require.NoError(t, err)
	require.Equal(t, good(), m)

	for name, data := range map[string][]byte{
		"format":                            edit(t, 2, "format"),
		"format with fields of other types": []byte(`{"format":2,"images":{"root":1}}`),
		"image type":                        edit(t, "raid", "images", 0, "type"),
		"check kind":                        edit(t, "ping", "health", 0, "kind"),
	} {
		_, err := manifest.Parse(data)
		require.ErrorIs(t, err, manifest.ErrUnsupported, name)
	}

	// A way to come by an image that we do not know leaves the other ways.
	m, err = manifest.Parse(edit(t, "casync", "images", 0, "payloads", 1, "kind"))
	require.NoError(t, err)
	require.Equal(t, "casync", m.Images[0].Payloads[1].Kind)
}

// Size is judged before anything is parsed, depth before anything is built.
func TestManifestLimits(t *testing.T) {
	data := append(marshal(t, good()), bytes.Repeat([]byte(" "), manifest.MaxSize)...)
	_, err := manifest.Parse(data)
	require.ErrorIs(t, err, manifest.ErrTooLarge)

	_, err = manifest.Parse(bytes.Repeat([]byte(`{"a":`), 100000))
	require.ErrorIs(t, err, manifest.ErrTooLarge)
}

// No truncation of a manifest is a manifest.
func TestManifestTruncated(t *testing.T) {
	data := marshal(t, good())
	for n := range data {
		_, err := manifest.Parse(data[:n])
		require.ErrorIs(t, err, manifest.ErrFormat, "%d of %d bytes", n, len(data))
	}
}

// Every field of the structs may be named as critical, and nothing else.
func TestKnownFieldsAreTheStruct(t *testing.T) {
	var walk func(prefix string, typ reflect.Type)
	fields := 0
	walk = func(prefix string, typ reflect.Type) {
		for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Anonymous {
				walk(prefix, f.Type)
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			require.NotEmpty(t, name, "%s.%s has no tag", typ, f.Name)
			m := good()
			m.Critical = []string{prefix + name}
			_, err := m.Marshal()
			require.NoError(t, err)
			fields++
			walk(prefix+name+".", f.Type)
		}
	}
	walk("", reflect.TypeFor[manifest.Manifest]())
	require.Greater(t, fields, 40)
}

// A digest has one spelling, so that equal digests are equal strings.
func TestDigest(t *testing.T) {
	d := manifest.DigestOf([]byte("abc"))
	require.Equal(t, manifest.Digest("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), d)
	back, err := manifest.ParseDigest(string(d))
	require.NoError(t, err)
	require.Equal(t, d, manifest.DigestFromSum(back.Sum()))
	for _, s := range []string{"", d.Hex(), "sha256:" + strings.ToUpper(d.Hex()), string(d) + "0", string(d)[:70], "sha256:../../" + d.Hex()[6:]} {
		_, err := manifest.ParseDigest(s)
		require.ErrorIs(t, err, manifest.ErrFormat, s)
	}
}

// Whatever the bytes, Parse returns; and what it accepts, it writes back to
// something that it accepts as the same value.
func FuzzParse(f *testing.F) {
	data, err := good().Marshal()
	require.NoError(f, err)
	f.Add(data)
	f.Add([]byte(`{"format":1,"critical":["x"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Parse(data)
		if err != nil {
			return
		}
		again, err := m.Marshal()
		require.NoError(t, err)
		m2, err := manifest.Parse(again)
		require.NoError(t, err)
		third, err := m2.Marshal()
		require.NoError(t, err)
		require.Equal(t, again, third)
	})
}
