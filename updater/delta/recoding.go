package delta

import (
	"fmt"

	"github.com/tandem-ota/tandem/updater/delta/predict"
	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// maxPieces bounds the segments of a frame, and their expansions: the lists are small.
const maxPieces = 4096

// segment says what of a frame is compressed inside the image. What it packs
// stands behind the frame's own bytes in the plain form, so that these are where they are in
// the image.
type segment struct {
	kind       recode.Kind
	at         int   // in the frame
	length     int   // bytes of the plain form that are packed
	packed     int   // bytes that these pack to
	skip, take int   // of which the frame has [skip, skip+take)
	address    int64 // of the first byte, for prediction
	params     []byte
	expansions []expansion
}

// expansion is a compressed range of the old image that a segment is told from.
type expansion struct {
	kind    recode.Kind
	at      int64 // in the old image
	length  int   // there
	size    int   // expanded
	address int64 // of the first byte, for prediction
	params  []byte
}

func (s *segment) expanded() (n int) {
	for _, e := range s.expansions {
		n += e.size
	}
	return n
}

// scratch is the room for one compressed piece.
func (s *segment) scratch() (n int) {
	if s.take != s.packed {
		n = s.packed
	}
	for _, e := range s.expansions {
		n = max(n, e.length)
	}
	return n
}

// numbers reads the fields of a recoding stream; the first that is wrong stays.
type numbers struct {
	b   []byte
	err error
}

func (r *numbers) next(most uint64) uint64 {
	v, err := uvarint(&r.b)
	if err == nil && v > most {
		err = fmt.Errorf("recoding: %d where at most %d can be: %w", v, most, ErrFormat)
	}
	if err != nil && r.err == nil {
		r.err = err
	}
	if r.err != nil {
		return 0
	}
	return v
}

func (r *numbers) params() []byte {
	n := r.next(MaxSize)
	if n > uint64(len(r.b)) { // which the number itself has made shorter
		r.err = fmt.Errorf("recoding: parameters of %d bytes: %w", n, ErrFormat)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// parseRecoding reads the recoding stream of a frame of so many bytes and checks it
// against the header. The lists belong to p until the next call.
func (p *Patch) parseRecoding(b []byte, frame int) ([]segment, error) {
	p.segments, p.expansions = p.segments[:0], p.expansions[:0]
	if len(b) == 0 {
		return nil, nil
	}
	r := &numbers{b: b}
	size := func() int { return int(r.next(uint64(p.space))) }
	kind := func() recode.Kind {
		k := r.next(31)
		if r.err == nil && (k == 0 || p.features>>k&1 == 0) {
			r.err = fmt.Errorf("recoding %d: %w", k, ErrUnsupported)
		}
		return recode.Kind(k)
	}
	done, end, address := 0, int64(0), int64(0) // in the frame, and of the expansion before
	for n := r.next(maxPieces); n > 0 && r.err == nil; n-- {
		s := segment{kind: kind(), at: done + int(r.next(uint64(frame-done))), length: size(), packed: size(), skip: size(), take: size(), address: int64(r.next(predict.MaxOffset)), params: r.params()}
		first := len(p.expansions)
		for n := r.next(uint64(maxPieces - first)); n > 0 && r.err == nil; n-- {
			e := expansion{kind: kind(), at: end + signed(r.next(2*MaxSize)), length: size(), size: size(), address: address + signed(r.next(2*predict.MaxOffset)), params: r.params()}
			if r.err == nil && (e.at < 0 || e.at > p.baseSize-int64(e.length) || e.address < 0 || e.address > predict.MaxOffset) {
				r.err = fmt.Errorf("expansion of old bytes at %d: %w", e.at, ErrFormat)
			}
			end, address = e.at+int64(e.length), e.address+int64(e.size)
			p.expansions = append(p.expansions, e)
		}
		// The list may have moved when it grew; entries before it are not touched any more.
		s.expansions = p.expansions[first:len(p.expansions):len(p.expansions)]
		if r.err != nil {
			break
		}
		if done = s.at + s.take; s.take > frame-s.at || s.skip+s.take > s.packed {
			return nil, fmt.Errorf("segment of %d bytes at %d: %w", s.take, s.at, ErrFormat)
		}
		if need := s.length + s.expanded() + s.scratch(); int64(need) > p.space {
			return nil, fmt.Errorf("segment at %d takes %d bytes: %w", s.at, need, ErrFormat)
		}
		p.segments = append(p.segments, s)
	}
	if r.err != nil {
		return nil, r.err
	}
	if len(r.b) != 0 {
		return nil, fmt.Errorf("recoding: %d bytes left over: %w", len(r.b), ErrFormat)
	}
	return p.segments, nil
}

// divide lists the windows of the plain form: the frame, and each segment behind it.
func (p *Patch) divide(f Frame, segments []segment) []window {
	p.windows = append(p.windows[:0], window{end: int(f.Length), address: f.Target})
	for i := range segments {
		end := p.windows[i].end
		p.windows = append(p.windows, window{start: end, end: end + segments[i].length, expanded: segments[i].expanded(), address: segments[i].address, old: segments[i].expansions})
	}
	return p.windows
}

// pack makes one segment of a frame.
func (p *Patch) pack(m *maker, s *segment, in window, dst []byte) error {
	if p.workspace == nil {
		p.workspace = make([]byte, p.space)
	}
	plain, rest := p.workspace[:s.length], p.workspace[s.length:]
	expanded, scratch := rest[:in.expanded:in.expanded], rest[in.expanded:]
	room := expanded
	for _, e := range s.expansions {
		if m.from.Old == nil {
			return fmt.Errorf("no old image given: %w", ErrBase)
		}
		src := scratch[:e.length]
		if err := read(m.from.Old, src, e.at); err != nil {
			return err
		}
		n, err := p.coder.Expand(e.kind, e.params, src, room[:e.size:e.size])
		if err != nil || n != e.size {
			return fmt.Errorf("%d bytes at %d expand to %d, not %d (%v): %w", e.length, e.at, n, e.size, err, ErrBase)
		}
		room = room[n:]
	}
	if err := m.fill(in, expanded, plain); err != nil {
		return err
	}
	out := dst[s.at : s.at+s.take : s.at+s.take]
	if s.take != s.packed {
		out = scratch[:s.packed:s.packed]
	}
	n, err := p.coder.Pack(s.kind, s.params, plain, out)
	if err != nil || n != s.packed {
		return fmt.Errorf("segment packs to %d bytes, not %d (%v): %w", n, s.packed, err, ErrFormat)
	}
	if s.take != s.packed {
		copy(dst[s.at:s.at+s.take], out[s.skip:])
	}
	return nil
}
