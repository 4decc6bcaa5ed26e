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
	Size   []int    // so many bytes; none if its matches are of no use
	Copies []Copy
}

// Copy says which bytes of Matches are what the old frames expand to, laid one behind the other.
type Copy struct{ To, From, Length int }

// Follow writes down how the matches of a frame differ from those of old frames, each by itself and as
// small as a block of squashfs. It tries what a device would do.
func Follow(target *Frame, old []*Frame) (*Followed, error) {
	out := &Followed{}
	var content []byte
	for _, f := range old {
		content = append(content, f.Content...)
	}
	moved := align(content, target.Content)
	var joined recode.OldMatches
	var records, long []Copy
	from, start := 0, 0
	for _, f := range old {
		expand, m, err := f.Blocks.Matches(0, f.Blocks.Len())
		if err != nil {
			return nil, fmt.Errorf("old matches: %w", err)
		}
		// What has no place in the new content would be taken to be where other old content is.
		lo, hi := hull(moved, start, start+len(f.Content), len(content), len(target.Content))
		cut, headRecords, headLong, head := m.Cut(lo-start, hi-start)
		if len(cut.Records) == 0 {
			start += len(f.Content)
			out.Expand, out.Size = append(out.Expand, nil), append(out.Size, 0)
			continue
		}
		recordsAt, longAt := len(joined.Records), len(joined.Long)
		replaced, by := joined.Join(cut, start+head-joined.Covered())
		// The length in the first record differs, which a difference says.
		records = append(records, Copy{recordsAt, from + headRecords, len(cut.Records)})
		if n := len(cut.Long) - replaced; n > 0 {
			long = append(long, Copy{longAt + by, from + len(m.Records) + headLong + replaced, n})
		}
		from += len(m.Records) + len(m.Long)
		start += len(f.Content)
		out.Expand = append(out.Expand, expand)
		out.Size = append(out.Size, len(m.Records)+len(m.Long))
	}
	out.Copies = records
	for _, c := range long {
		c.To += len(joined.Records)
		out.Copies = append(out.Copies, c)
	}
	out.Matches = append(bytes.Clone(joined.Records), joined.Long...)
	f, err := target.Blocks.ForeseeFrom(0, target.Blocks.Len(), target.Content, joined, moved)
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

// hull returns the first and the last position in [start, end) of the old content that has a place in the new one;
// the two contents have so many bytes. Nothing is an empty range.
func hull(moved []recode.Moved, start, end, old, fresh int) (lo, hi int) {
	lo, hi = end, start
	for i, m := range moved {
		next := recode.Moved{Old: old, New: fresh}
		if i+1 < len(moved) {
			next = moved[i+1]
		}
		a, b := m.Old, m.Old+min(next.Old-m.Old, next.New-m.New)
		if i == 0 {
			a -= min(m.Old, m.New)
		}
		if a, b = max(a, start), min(b, end); a < b {
			lo, hi = min(lo, a), max(hi, b)
		}
	}
	return lo, max(lo, hi)
}
