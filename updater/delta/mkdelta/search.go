package mkdelta

import (
	"encoding/binary"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

const (
	spaceOld       = 0 // the old image
	spaceNew       = 1 // the new image in front of the frame
	spaceExpansion = 2 // what compressed bytes of the old image unpack to, for one frame
	spaceZero      = 3 // zeros; within the matcher only

	surely = 32 // bytes that agree at the displacement in use and need no rival

	// seen is how many of the last matches are remembered, so that none is extended twice.
	seen = 64
)

// source says where bytes are: a space and a displacement, source offset minus new offset.
type source struct {
	space uint8
	at    int64
}

// match is a stretch of a frame that agrees with a source to the last byte.
type match struct {
	start, end int
	source
}

// matcher finds out what one frame after the other is made of. Its memory is
// reused; one goroutine has it at a time.
type matcher struct {
	*plan
	frame  []byte
	offset int64
	limit  int64 // bytes of the new image that may be matched against

	found  []match
	recent [seen]match
	turn   int

	fine     fine
	scope    []piece // what fine is or would be built of
	built    bool
	parts    []part
	segments []segment
	chooser  chooser

	expansion []byte
	unpacked  fine // of expansion
}

// part is a stretch of a frame that comes from one file of the new image.
type part struct {
	start, end int   // in the frame
	file       int   // index into newFiles.Files, or -1: of no file
	logical    int64 // where in the file it begins
}

func (p *plan) matcher() *matcher { return &matcher{plan: p} }

// match divides a frame that begins at offset in the new image into segments,
// in order and without overlap. They are valid until the next call.
func (m *matcher) match(frame []byte, offset int64) []segment {
	end := offset + int64(len(frame))
	done := offset
	m.parts = m.parts[:0]
	for i := regionAt(m.newAt, offset); done < end; i++ {
		gap := end
		if i < len(m.newAt) {
			gap = min(gap, max(m.newAt[i].start, done))
		}
		if done < gap {
			m.parts = append(m.parts, part{int(done - offset), int(gap - offset), -1, 0})
			done = gap
		}
		if i < len(m.newAt) && done < end {
			r := m.newAt[i]
			to := min(r.end, end)
			m.parts = append(m.parts, part{int(done - offset), int(to - offset), r.file, r.logical + done - r.start})
			done = to
		}
	}
	return m.matchPlain(frame, offset, offset, m.parts, nil)
}

// matchPlain is match for bytes that are not those of the image: plain form,
// in which what is compressed in the image is unpacked. Parts say where they come from, in order
// and without gaps. The expansion holds old bytes that were unpacked for this
// frame; nil is none. A displacement counts from offset plus the index in plain. Of the
// new image, the bytes in front of limit may be used.
func (m *matcher) matchPlain(plain []byte, offset, limit int64, parts []part, expansion []byte) []segment {
	m.frame, m.offset, m.limit, m.found, m.expansion = plain, offset, limit, m.found[:0], expansion
	m.recent = [seen]match{}
	m.unpacked.build(expansion, wholePiece(expansion))
	for _, p := range parts {
		if p.file < 0 && len(expansion) > 0 {
			m.scope = m.scope[:0] // what it is told from is at hand
			m.scan(p.start, p.end, 0)
		} else if p.file < 0 {
			m.between(p.start, p.end)
		} else {
			m.inside(p)
		}
	}
	m.segments = m.choose(m.segments[:0])
	return m.segments
}

func wholePiece(b []byte) []piece {
	if len(b) == 0 {
		return nil
	}
	return []piece{{0, 0, int32(len(b))}}
}

// between looks for bytes of no file: around the same place.
func (m *matcher) between(lo, hi int) {
	from := max(m.offset+int64(lo)-besideGap, 0)
	to := min(m.offset+int64(hi)+besideGap, int64(len(m.old)), from+finePiece)
	m.scope, m.built = m.scope[:0], false
	if from < to {
		m.scope = append(m.scope, piece{from, 0, int32(to - from)})
	}
	m.scan(lo, hi, 0)
}

// inside looks for bytes of a file: in the old file that it is paired with.
func (m *matcher) inside(p part) {
	m.scope, m.built = m.scope[:0], false
	at := int64(0)
	if o := m.pairs[p.file].Old; o >= 0 && !dense(m.frame[p.start:p.end]) {
		old := m.oldFiles.Files[o]
		m.scope = append(m.scope, pieces(old, p.logical, int64(p.end-p.start), int64(len(m.old)))...)
		at = sameLogical(old, p.logical) - m.offset - int64(p.start)
	}
	m.scan(p.start, p.end, at)
}

// dense tells whether bytes look compressed or encrypted: all values about
// equally often. Eight of them agree by accident, or within more that the index finds.
func dense(b []byte) bool {
	const least, most = 8 << 10, 64 << 10
	if len(b) < least {
		return false
	}
	var count [256]int
	n := 0
	for step := len(b)/most + 1; n*step < len(b); n++ {
		count[b[n*step]]++
	}
	same := 0
	for _, c := range count {
		same += c * c
	}
	// Of random bytes, one in 256 pairs is equal.
	return same*100 < n*n/256*103+n*100
}

// sameLogical is the image offset of a byte of a file, or of its end.
func sameLogical(f files.File, logical int64) int64 {
	at := int64(0)
	for _, e := range f.Extents {
		if logical < e.Logical {
			break
		}
		at = e.Offset + min(logical-e.Logical, e.Size)
		if e.Codec != files.Stored {
			at = e.Offset
		}
	}
	return at
}

// scan collects the matches of frame[lo:hi], with at as the first displacement to expect.
func (m *matcher) scan(lo, hi int, at int64) {
	use := source{spaceOld, at}
	var h uint64
	rolled := -1
	for i := lo; i < hi; {
		if n := zeros(m.frame[i:hi]); n >= zeroRun {
			m.found = append(m.found, match{i, i + n, source{space: spaceZero}})
			if n >= 4*zeroRun || m.run(i, use) < n {
				i += n
				continue
			}
		}
		n := m.run(i, use)
		if n >= surely {
			m.add(i, lo, use)
			i += n
			continue
		}
		var best match
		try := func(s source, least int) {
			if c, ok := m.known(i, s); ok {
				if c.end-i > best.end-best.start {
					best = c
				}
				return
			}
			k := m.run(i, s)
			if k < least {
				return
			}
			c := m.add(i, lo, s)
			if c.end-c.start > best.end-best.start {
				best = c
			}
		}
		if n >= short {
			m.add(i, lo, use)
		}
		if i+short <= hi && len(m.scope) > 0 {
			if !m.built {
				m.fine.build(m.old, m.scope)
				m.built = true
			}
			m.nearest(&m.fine, spaceOld, m.old, i, use.at, try)
		}
		if i+short <= hi && len(m.expansion) > 0 {
			m.nearest(&m.unpacked, spaceExpansion, m.expansion, i, use.at, try)
		}
		if i+window <= len(m.frame) {
			if rolled < 0 || i-rolled > window {
				h = hash(m.frame[i : i+window])
			} else {
				for ; rolled < i; rolled++ {
					h = roll(h, m.frame[rolled], m.frame[rolled+window])
				}
			}
			rolled = i
			m.anywhere(i, h, best, try)
		}
		if k := best.end - i; k >= surely/2 && k >= n+jump {
			use = best.source
			i = max(best.end-short/2, i+1)
			continue
		}
		i += max(n-short/2, 1)
	}
}

// nearest tries the places in from where the bytes at i are, and takes in the
// longest agreement, the nearest of equals.
func (m *matcher) nearest(f *fine, space uint8, from []byte, i int, at int64, try func(source, int)) {
	here := m.offset + int64(i)
	long, found := 0, int64(0)
	f.near(binary.LittleEndian.Uint64(m.frame[i:]), here+at, func(place int64) {
		if n := common(m.frame[i:], from[place:]); n > long {
			long, found = n, place
		}
	})
	if long >= short {
		try(source{space, found - here}, short)
	}
}

// anywhere tries the blocks of both images that the window at i may be.
func (m *matcher) anywhere(i int, h uint64, best match, try func(source, int)) {
	here := m.offset + int64(i)
	if best.end-best.start >= enough {
		return
	}
	longest := func(ix *index, limit int64) {
		long, from := 0, int64(0)
		b := ix.head[h>>(64-ix.bits)]
		for tries := 0; b != none && tries < chainLimit; tries++ {
			place := int64(b) * int64(ix.step)
			if place+window > limit {
				return // those behind it are further on
			}
			n := min(common(m.frame[i:], ix.old[place:]), int(limit-place))
			if n > long {
				long, from = n, place
				if n >= enough {
					break
				}
			}
			b = ix.next[b]
		}
		if long >= window {
			space := uint8(spaceOld)
			if ix == m.again {
				space = spaceNew
			}
			try(source{space, from - here}, window)
		}
	}
	longest(m.ix, int64(len(m.old)))
	if m.again != nil && !m.noSpace1 {
		longest(m.again, m.limit)
	}
}

// space returns the bytes that a displacement may reach.
func (m *matcher) space(n uint8) []byte {
	switch n {
	case spaceNew:
		return m.fresh[:m.limit]
	case spaceExpansion:
		return m.expansion
	}
	return m.old
}

// bytesOf returns the bytes of a source for frame[i:], nothing where it has none.
func (m *matcher) bytesOf(s source, i int) []byte {
	b := m.space(s.space)
	from := m.offset + int64(i) + s.at
	if from < 0 || from >= int64(len(b)) {
		return nil
	}
	return b[from:]
}

// run counts the bytes from i on that agree with a source.
func (m *matcher) run(i int, s source) int { return common(m.frame[i:], m.bytesOf(s, i)) }

// known returns the match with a source that holds i, if it was found before.
func (m *matcher) known(i int, s source) (match, bool) {
	for _, c := range m.recent {
		if c.source == s && c.start <= i && i < c.end {
			return c, true
		}
	}
	return match{}, false
}

// add extends a match at i both ways, back at most to lo, and takes it in.
func (m *matcher) add(i, lo int, s source) match {
	if c, ok := m.known(i, s); ok {
		return c
	}
	c := match{i, i + m.run(i, s), s}
	b, shift := m.space(s.space), m.offset+s.at
	for c.start > lo && shift+int64(c.start) > 0 && b[shift+int64(c.start)-1] == m.frame[c.start-1] {
		c.start--
	}
	m.recent[m.turn%seen] = c
	m.turn++
	m.found = append(m.found, c)
	return c
}

// sorted returns what was found by start.
func (m *matcher) sorted() []match {
	slices.SortFunc(m.found, func(a, b match) int {
		switch {
		case a.start != b.start:
			return a.start - b.start
		case a.end != b.end:
			return b.end - a.end
		case a.space != b.space:
			return int(a.space) - int(b.space)
		}
		return int(min(max(a.at-b.at, -1), 1))
	})
	return m.found
}
