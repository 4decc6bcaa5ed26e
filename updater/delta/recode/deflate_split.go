package recode

import "fmt"

// DeflatePiece is a run of whole blocks of a deflate stream, in columns.
type DeflatePiece struct {
	// Pack makes the Length bytes at Offset of the stream: those that end in this piece.
	Offset, Length int
	// Expand needs the Source bytes at Offset: the last one may belong to the next piece.
	Source int
	// Params are good for Pack and for Expand.
	Params []byte
	Plain  []byte
	// Body is how many bytes of Plain are literals or content, Headers how many are block headers
	// that could not be derived.
	Body, Headers int
	// Alone says that Expand works, because no match reaches back before the piece. It always works for tokens.
	Alone bool
}

// SplitDeflate takes a deflate stream apart into pieces that make at most limit bytes of plain form each, or have
// one block that makes more. With content the body of a piece is its content, otherwise only its literals.
// It returns how many bytes of stream belong to it; more may follow.
//
// This is for the desk: memory grows with the content up to most bytes, above which the error is ErrRoom.
func SplitDeflate(stream []byte, content bool, limit, most int) (pieces []DeflatePiece, n int, err error) {
	s := inflate{deflateCoder: new(deflateCoder), src: stream, end: len(stream) * 8, content: content}
	for _, c := range []*column{&s.body, &s.records, &s.blocks, &s.headers} {
		c.grow = true
	}
	start, from := 0, 0 // of the piece: bit, and length of the body
	alone := true
	for final := false; !final; {
		// The state before the block, to go back to if it does not fit any more.
		at, body := s.at, len(s.body.b)
		records, blocks, headers := len(s.records.b), len(s.blocks.b), len(s.headers.b)
		last := s.last
		if final, err = s.block(); err != nil {
			return nil, 0, err
		}
		if len(s.body.b) > most {
			return nil, 0, fmt.Errorf("content of more than %d bytes: %w", most, ErrRoom)
		}
		if len(s.body.b)-from+len(s.records.b)+len(s.blocks.b)+len(s.headers.b) > limit && blocks > 0 {
			s.at, s.last = at, last
			s.body.b, s.records.b = s.body.b[:body], s.records.b[:records]
			s.blocks.b, s.headers.b = s.blocks.b[:blocks], s.headers.b[:headers]
			pieces = append(pieces, s.piece(start, from, alone, false))
			// A gap counts from the start of its piece.
			start, from, s.last, alone, final = at, body, body, !content, false
			s.records.b, s.blocks.b, s.headers.b = s.records.b[:0], s.blocks.b[:0], s.headers.b[:0]
		}
	}
	pieces = append(pieces, s.piece(start, from, alone, true))
	return pieces, (s.at + 7) / 8, nil
}

// piece makes a piece of what is in the columns.
func (s *inflate) piece(start, from int, alone, closed bool) DeflatePiece {
	p := deflateParams{
		flags: byte(start & 7),
		body:  len(s.body.b) - from, records: len(s.records.b) / matchRecord,
		blocks: len(s.blocks.b) / blockRecord, headers: len(s.headers.b),
	}
	if p.flags != 0 {
		p.head = s.src[start>>3] & (1<<p.flags - 1)
	}
	if s.content {
		p.flags |= deflateContent
	}
	end := s.at >> 3
	if closed {
		p.flags |= deflateClosed
		if s.at&7 != 0 {
			if p.tail = s.src[end] >> (s.at & 7); p.tail != 0 {
				p.flags |= deflateTail
			}
			end++
		}
	}
	plain := make([]byte, 0, p.body+len(s.records.b)+len(s.blocks.b)+len(s.headers.b))
	plain = append(append(plain, s.body.b[from:]...), s.records.b...)
	plain = append(append(plain, s.blocks.b...), s.headers.b...)
	return DeflatePiece{
		Offset: start >> 3, Length: end - start>>3, Source: (s.at+7)>>3 - start>>3,
		Params: p.bytes(), Plain: plain, Body: p.body, Headers: p.headers, Alone: alone,
	}
}
