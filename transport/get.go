package transport

import "strings"

// MaxRanges is the number of ranges in one Get.
const MaxRanges = 16

// MaxRequest is the sum of the lengths of the ranges of one Get.
const MaxRequest = 4 << 20

// Range is a run of bytes of an object, [offset, length] in JSON.
type Range [2]int64

// Get asks a block server for ranges of one object: a blob by its digest, the
// envelope of a manifest by the digest of the manifest in it (an envelope may
// gain signatures), or a metadata file by its name. One of the three is set. The server cuts each range into blocks of at most
// Block bytes and sends those that lie within the object; the one that reaches
// the end carries FlagEnd.
type Get struct {
	V        int     `json:"v"`
	Transfer uint32  `json:"transfer"` // comes back in every block; a device ignores the blocks of others
	Blob     string  `json:"blob,omitempty"`
	Manifest string  `json:"manifest,omitempty"`
	Meta     string  `json:"meta,omitempty"`
	Block    int     `json:"block"` // bytes, MinBlock to MaxBlock
	Ranges   []Range `json:"ranges"`
}

// Object returns what the blocks of the answer name.
func (g Get) Object() (Object, error) {
	switch {
	case g.Meta != "":
		return named("meta/" + g.Meta), CheckMetaName(g.Meta)
	case g.Manifest != "":
		_, err := ParseDigest(g.Manifest)
		return named("manifest/" + g.Manifest), err
	}
	return ParseDigest(g.Blob)
}

// Encode returns the bytes to publish.
func (g Get) Encode() ([]byte, error) {
	g.V = Version
	if err := g.check(); err != nil {
		return nil, err
	}
	return encode("get", g, MaxGet)
}

func (g Get) check() error {
	c := checks{kind: "get"}
	c.version(g.V)
	set := 0
	for _, s := range []string{g.Blob, g.Manifest, g.Meta} {
		if s != "" {
			set++
		}
	}
	c.that(set == 1, "needs one of blob, manifest and meta")
	_, err := g.Object()
	c.that(err == nil, "%v", err)
	c.that(g.Block >= MinBlock && g.Block <= MaxBlock, "block of %d bytes", g.Block)
	c.that(len(g.Ranges) >= 1 && len(g.Ranges) <= MaxRanges, "%d ranges", len(g.Ranges))
	var sum int64
	for _, r := range g.Ranges {
		off, n := r[0], r[1]
		c.that(off >= 0 && off <= MaxBlob && n >= 1 && n <= MaxRequest, "range %d+%d", off, n)
		sum += n
		if c.err != nil {
			return c.err
		}
	}
	c.that(sum <= MaxRequest, "%d bytes, at most %d", sum, MaxRequest)
	return c.err
}

// ParseGet checks the message on KindGet.
func ParseGet(data []byte) (Get, error) {
	var g Get
	if err := decode("get", data, MaxGet, &g); err != nil {
		return Get{}, err
	}
	return g, g.check()
}

// clip cuts text for people to n bytes and replaces what is not UTF-8.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
