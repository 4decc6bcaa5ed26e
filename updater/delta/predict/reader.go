package predict

import (
	"encoding/binary"
	"fmt"
)

// reader takes a stream apart. After an error it returns zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrPlan, what)
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("cut short")
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

// uvarint reads up to 64 bits; the tenth byte may only be 1.
func (r *reader) uvarint() uint64 {
	var v uint64
	for i, c := range r.b {
		if i == 9 && c > 1 {
			break
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			r.b = r.b[i+1:]
			return v
		}
		if i == 9 {
			break
		}
	}
	r.fail("cut short")
	return 0
}

// word reads a signed number of 4 bytes.
func (r *reader) word() int64 {
	if len(r.b) < 4 {
		r.fail("cut short")
		return 0
	}
	v := int64(int32(binary.LittleEndian.Uint32(r.b)))
	r.b = r.b[4:]
	return v
}

func (r *reader) end() {
	if len(r.b) != 0 {
		r.fail("bytes left over")
	}
}

func (r *reader) signed() int64 {
	v := r.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (r *reader) count(most int) int {
	v := r.uvarint()
	if v > uint64(most) {
		r.fail("number too large")
		return 0
	}
	return int(v)
}

func (r *reader) offset() int64 { return int64(r.count(MaxOffset)) }

// after returns the address that is a number behind at, which must not be 0 if strict.
func (r *reader) after(at uint64, strict bool) uint64 {
	d := r.uvarint()
	if at+d < at || strict && d == 0 {
		r.fail("addresses not ascending")
	}
	return at + d
}
