package recodescan

import (
	"bytes"
	"fmt"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// Followed is a frame of zstd in the form of recode.ZstdMatches, told from old frames: its plain form is the content,
// then Matches, then Extra.
type Followed struct {
	Pack    []byte
	Matches []byte
	Extra   []byte

	Expand [][]byte // for each old frame the parameters, which make
	Size   []int    // so many bytes
	Copies []Copy
}

// Copy says which bytes of Matches are what the old frames expand to, laid one behind the other.
type Copy struct{ To, From, Length int }

// Follow writes down how the matches of a frame differ from those of old frames, each by itself and as
// small as a block of squashfs. It tries what a device would do.
func Follow(target *Frame, old []*Frame) (*Followed, error) {
	out := &Followed{}
	var joined recode.OldMatches
	var content []byte
	var records, long []Copy
	from := 0
	for _, f := range old {
		expand, m, err := f.Blocks.Matches(0, f.Blocks.Len())
		if err != nil {
			return nil, fmt.Errorf("old matches: %w", err)
		}
		recordsAt, longAt := len(joined.Records), len(joined.Long)
		replaced, by := joined.Join(m, len(content)-joined.Covered())
		// The length in the first record differs, which a difference says.
		records = append(records, Copy{recordsAt, from, len(m.Records)})
		from += len(m.Records)
		long = append(long, Copy{longAt + by, from + replaced, len(m.Long) - replaced})
		from += len(m.Long)
		content = append(content, f.Content...)
		out.Expand = append(out.Expand, expand)
		out.Size = append(out.Size, len(m.Records)+len(m.Long))
	}
	out.Copies = records
	for _, c := range long {
		c.To += len(joined.Records)
		out.Copies = append(out.Copies, c)
	}
	out.Matches = append(bytes.Clone(joined.Records), joined.Long...)
	f, err := target.Blocks.ForeseeFrom(0, target.Blocks.Len(), target.Content, joined, align(content, target.Content))
	if err != nil {
		return nil, err
	}
	out.Pack, out.Extra = f.Pack, f.Extra
	plain := append(append(bytes.Clone(target.Content), out.Matches...), out.Extra...)
	packed := make([]byte, target.Length)
	n, err := new(recode.Coder).Pack(recode.ZstdMatches, out.Pack, plain, packed)
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if !bytes.Equal(packed[:n], target.data) {
		return nil, fmt.Errorf("other bits: %w", recode.ErrUnsupported)
	}
	return out, nil
}
