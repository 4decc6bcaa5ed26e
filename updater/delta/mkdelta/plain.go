package mkdelta

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/predict"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// packed is compressed data in an image that package recode can take apart and put
// together again, bit by bit. It never crosses an extent of its file.
type packed struct {
	at, length int64 // in the image
	kind       recode.Kind
	expand     []byte // parameters of Expand
	pack       []byte // parameters of Pack
	size       int    // bytes of the plain form, which Pack wants
	content    int    // of which so many at the beginning are the content
	copied     int    // and so many behind it old matches, which are
	copies     []kept // these bytes of what the old pieces expand to
	expanded   int    // bytes that Expand makes
	plain      *spool
	plainAt    int64
	maskAt     int64  // of the content's mask
	address    int64  // of the plain form's first byte, for prediction
	mask       []byte // of an old piece's content, where it has one
	like       []int  // pieces of the old image that have similar content, best first
}

// kept says that bytes of old matches, from an offset on, are those of the expansions from another on.
type kept struct{ at, from, length int }

func (p *packed) end() int64 { return p.at + p.length }

// stretch is a window of the plain form: the frame's own bytes, or what a piece packs.
type stretch struct {
	start, end int    // in the plain form
	address    int64  // of its first byte, for prediction
	plan       []byte // the prediction, if one pays
	segments   []segment

	// For a piece only:
	piece      *packed
	at         int // in the frame
	skip, take int // of the piece's compressed bytes, what belongs to the frame
	from, to   int // of the worker's expanded bytes, those that it is told from
}

// compressed lays out a piece behind the plain form, if telling it from old content costs less
// than its bytes.
func (w *worker) compressed(p *packed, frame, end int64) error {
	if w.workspace(p) > workspaceMost {
		return nil
	}
	from, to := max(p.at, frame), min(p.end(), end)
	h := stretch{
		piece: p, at: int(from - frame), skip: int(from - p.at), take: int(to - from),
		start: len(w.plain), end: len(w.plain) + p.size, address: p.address, from: len(w.expanded),
	}
	otherwise, err := w.asItIs(&h, frame)
	if err != nil || otherwise < clearly {
		return err // it is an old piece, moved perhaps
	}
	w.extend(h.end)
	if n, err := p.plain.ReadAt(w.plain[h.start:], p.plainAt); n != p.size {
		return fmt.Errorf("read temporary file: %w", err)
	}
	if err := w.expand(p); err != nil {
		return err
	}
	h.to = len(w.expanded)
	w.mask = grow(w.mask, int64(p.content))
	if n, err := p.plain.ReadAt(w.mask, p.maskAt); n != len(w.mask) {
		return fmt.Errorf("read temporary file: %w", err)
	}
	w.take(&h, w.unpacked(&h, w.mask, 0, frame, w.oldMask), h.start)
	body := h.start + p.content
	for _, c := range p.copies {
		h.segments = append(h.segments, segment{
			start: body + c.at, end: body + c.at + c.length, space: delta.SpaceExpanded, at: int64(c.from - c.at - p.content),
		})
	}
	body += p.copied
	rest := w.expanded[h.from:h.to]
	if p.copied > 0 {
		rest = nil // tables and corrections are in no expansion
	}
	w.take(&h, w.unpacked(&h, w.plain[body:h.end], body-h.start, frame, rest), body)
	if err := w.predicted(&h, frame); err != nil {
		return err
	}
	if w.cost(&h) >= otherwise {
		w.plain, w.base, w.expanded = w.plain[:h.start], w.base[:h.start], w.expanded[:h.from]
		return nil
	}
	clear(w.plain[h.at : h.at+h.take])
	w.holes = append(w.holes, h)
	return nil
}

// workspaceMost is what a piece may take of a device's memory; with 10 MiB in all, it has this for one.
const workspaceMost = 4 << 20

// workspace is what a device holds at a time for a piece, at most.
func (w *worker) workspace(p *packed) int {
	n, scratch := p.size, int(p.length)
	for _, k := range p.like {
		n += w.survey.old[k].expanded
		scratch = max(scratch, int(w.survey.old[k].length))
	}
	return n + scratch
}

// expand makes what a piece is told from, and a mask of the content in it.
func (w *worker) expand(p *packed) error {
	w.oldMask = w.oldMask[:0]
	for _, k := range p.like {
		old := &w.survey.old[k]
		start := len(w.expanded)
		w.expanded = slices.Grow(w.expanded, old.expanded)[:start+old.expanded]
		n, err := w.coder.Expand(old.kind, old.expand, w.survey.base.bytes(old.at, old.length), w.expanded[start:])
		if err != nil || n != old.expanded {
			return fmt.Errorf("expand old bytes at %d: %d of %d: %w", old.at, n, old.expanded, err)
		}
		if old.kind == recode.ZstdMatches {
			continue // no content, and behind all that is
		}
		w.oldMask = append(w.oldMask, old.mask...)
		w.oldMask = append(w.oldMask, w.expanded[start+len(old.mask):]...)
	}
	return nil
}

// addressOf is what package delta takes for the place of a byte of a piece's expansions.
func (w *worker) addressOf(p *packed, at int64) int64 {
	for _, k := range p.like {
		old := &w.survey.old[k]
		if at < int64(old.expanded) {
			return old.address + at
		}
		at -= int64(old.expanded)
	}
	return at
}

// extend makes room in the plain form and what it is predicted to be.
func (w *worker) extend(end int) {
	w.plain = slices.Grow(w.plain, end-len(w.plain))[:end]
	w.base = slices.Grow(w.base, end-len(w.base))[:end]
}

// asItIs estimates what the bytes of a piece take in the patch if they stay packed: old ones may agree,
// since what packs begins anew at every block.
func (w *worker) asItIs(h *stretch, frame int64) (int, error) {
	at := frame + int64(h.at)
	own := stretch{start: h.at, end: h.at + h.take, address: at}
	w.mask = append(w.mask[:0], w.survey.fresh.mask[at:at+int64(h.take)]...)
	w.take(&own, w.matcher.match(w.mask, at), own.start)
	err := w.predicted(&own, frame)
	n := w.cost(&own)
	if h.piece.kind != recode.LZ4 {
		// What is new in all but LZ4 cannot be packed to half of it again.
		fresh := h.take
		for _, s := range own.segments {
			fresh -= s.end - s.start
		}
		n += fresh / 2
	}
	return n, err
}

// cost estimates what a stretch takes in the patch: half of what is new, and two bytes for each
// place that differs. Tried on a pair of Debian images with its initrds.
func (w *worker) cost(h *stretch) int {
	n, done := 0, h.start
	for _, s := range h.segments {
		n += (s.start-done)/2 + 3
		done = s.end
		if s.zero {
			continue
		}
		w.runs(w.plain[s.start:s.end], w.base[s.start:s.end], func(equal bool, from, to int) {
			if !equal {
				n += 2 + (to-from)/2
			}
		})
	}
	return n + (h.end-done)/2 + len(h.plan)/2
}

// own matches the frame's own bytes; where something is packed, they are zeros.
func (w *worker) own(h *stretch) {
	w.mask = append(w.mask[:0], w.survey.fresh.mask[h.address:h.address+int64(h.end)]...)
	for _, p := range w.holes {
		clear(w.mask[p.at : p.at+p.take])
	}
	w.take(h, w.matcher.match(w.mask, h.address), 0)
}

// take appends what was found in the plain form from start on.
func (w *worker) take(h *stretch, found []segment, start int) {
	for _, s := range found {
		s.start, s.end = s.start+start, s.end+start
		if s.start >= s.end || s.zero && zeros(w.plain[s.start:s.end]) < s.end-s.start {
			continue // zeros in the mask only
		}
		h.segments = append(h.segments, s)
	}
}

// predicted fills w.base with what the segments of a stretch copy, and moves its addresses
// by a plan, if there is one that pays.
func (w *worker) predicted(h *stretch, frame int64) error {
	w.copies = w.copies[:0]
	space, next := uint8(0), int64(0) // and offset there that would go on with the last run
	for _, s := range h.segments {
		if s.zero {
			continue
		}
		b := w.base[s.start:s.end]
		from := frame + int64(s.start) + s.at
		old := from
		switch s.space {
		case delta.SpaceExpanded:
			from = int64(s.start-h.start) + s.at
			copy(b, w.expanded[int64(h.from)+from:h.to])
			old = w.addressOf(h.piece, from)
		case delta.SpaceNew:
			w.survey.fresh.copy(b, from)
			continue
		default:
			w.survey.base.copy(b, from)
		}
		start, end := s.start-h.start, s.end-h.start
		if k := len(w.copies) - 1; k >= 0 && w.copies[k].End == start && space == s.space && next == from {
			w.copies[k].End = end
		} else {
			w.copies = append(w.copies, predict.Run{Start: start, End: end, Old: old})
		}
		space, next = s.space, from+int64(end-start)
	}
	if w.survey.moves == nil || len(w.copies) == 0 {
		return nil
	}
	base := w.base[h.start:h.end]
	h.plan = w.survey.moves.Frame(h.address, base, w.plain[h.start:h.end], w.copies)
	if len(h.plan) == 0 {
		return nil
	}
	if err := w.predict.Parse(h.plan, &w.maps); err != nil {
		return fmt.Errorf("own prediction: %w", err)
	}
	for _, r := range w.copies {
		w.predict.Apply(base, h.address, r)
	}
	return nil
}

// recoding writes the recoding stream; FORMAT.md of package delta has its bytes. It returns the
// workspace that the frame takes.
func (w *worker) recoding() (workspace int) {
	w.recode = w.recode[:0]
	if len(w.holes) == 0 {
		return 0
	}
	put := func(v ...int) {
		for _, n := range v {
			w.recode = binary.AppendUvarint(w.recode, uint64(n))
		}
	}
	params := func(b []byte) {
		put(len(b))
		w.recode = append(w.recode, b...)
	}
	put(len(w.holes))
	done, end, address := 0, int64(0), int64(0)
	for _, h := range w.holes {
		scratch := 0
		put(int(h.piece.kind), h.at-done, h.end-h.start, int(h.piece.length), h.skip, h.take, int(h.address))
		params(h.piece.pack)
		w.features |= 1 << h.piece.kind
		if h.take != int(h.piece.length) {
			scratch = int(h.piece.length)
		}
		done = h.at + h.take
		put(len(h.piece.like))
		for _, k := range h.piece.like {
			old := &w.survey.old[k]
			put(int(old.kind))
			w.recode = binary.AppendUvarint(w.recode, zigzag(old.at-end))
			put(int(old.length), old.expanded)
			w.recode = binary.AppendUvarint(w.recode, zigzag(old.address-address))
			address = old.address + int64(old.expanded)
			params(old.expand)
			w.features |= 1 << old.kind
			end = old.end()
			scratch = max(scratch, int(old.length))
		}
		workspace = max(workspace, h.end-h.start+h.to-h.from+scratch)
	}
	return workspace
}

// unpacked matches bytes that begin at start of a piece, with displacements as they stand in a patch.
func (w *worker) unpacked(h *stretch, b []byte, start int, frame int64, expansion []byte) []segment {
	if len(b) == 0 {
		return nil
	}
	here := frame + int64(h.start+start)
	parts := []part{{start: 0, end: len(b), file: -1}}
	if start == 0 {
		parts = w.survey.partsOf(h.address, len(b))
	}
	found := w.matcher.matchPlain(b, here, frame, parts, expansion)
	for i := range found {
		if s := &found[i]; !s.zero && s.space == delta.SpaceExpanded {
			// Those of the expansion count from the beginning of the piece.
			s.at += here - int64(start)
		}
	}
	return found
}

func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }
