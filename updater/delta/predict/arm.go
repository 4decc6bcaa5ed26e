package predict

import "encoding/binary"

// Both walks take an instruction at every multiple of 4 of the old address and
// rely on the Arm Architecture Reference Manual (DDI 0487, chapter C6, for A64;
// DDI 0406, chapter A8, for A32).

// adrp is the page that a register was last set to.
type adrp struct {
	at   int    // where in the bytes, plus 1; 0: the register holds something else
	page uint64 // as the old file says
	next uint64 // as the new one will, once a second instruction completed the address
	done bool
}

// arm64 rewrites B and BL, and ADRP together with the ADD or the load or store that
// completes the address.
func (w *work) arm64() {
	var regs [32]adrp
	for i := int(-w.addr & 3); i+4 <= len(w.b); i += 4 {
		c := binary.LittleEndian.Uint32(w.b[i:])
		rd, rn := c&31, c>>5&31
		switch {
		case c&0x7c000000 == 0x14000000: // B, BL
			w.branch(i, c, 26, 0)
			if c>>31 == 1 { // a call may change x0 to x18
				clear(regs[:19])
			} else {
				clear(regs[:])
			}
		case c&0x9f000000 == 0x90000000: // ADRP
			imm := int64(int32(c<<8)>>13)<<2 | int64(c>>29&3)
			regs[rd] = adrp{at: i + 1, page: (w.addr+uint64(i))&^0xfff + uint64(imm)<<12}
		case c&0xffc00000 == 0x91000000: // ADD, 64 bits, immediate not shifted
			w.low(i, c, &regs[rn], 0)
			regs[rd].at = 0
		case c&0x3b000000 == 0x39000000: // load or store, unsigned offset
			scale := c >> 30
			if c&0x04800000 == 0x04800000 && scale == 0 {
				scale = 4
			}
			w.low(i, c, &regs[rn], scale)
			if c&0x04c00000 != 0 && c>>26&1 == 0 {
				regs[rd].at = 0
			}
		case c == 0xd65f03c0: // RET
			clear(regs[:])
		case c>>25&15 == 8 || c>>25&15 == 9 || c>>25&7 == 5: // data processing sets rd
			regs[rd].at = 0
		case c>>25&5 == 4 && c>>26&1 == 0 && c>>22&1 == 1: // other loads
			regs[rd].at = 0
		}
	}
}

// branch rewrites the bits of an instruction that count words from it, or from ahead bytes behind it.
func (w *work) branch(i int, c uint32, bits uint, ahead uint64) {
	v := int64(int32(c<<(32-bits))) >> (32 - bits)
	t := w.addr + uint64(i) + ahead + uint64(v)<<2
	if w.see != nil {
		w.saw(Sight{Pos: i, Low: -1, At: t, Value: v << 2, Moved: w.self})
		return
	}
	if shift, ok := w.p.shift(w.g.maps[0], t); ok {
		mask := uint32(1)<<bits - 1
		v += (shift - w.self) >> 2
		binary.LittleEndian.PutUint32(w.b[i:], c&^mask|uint32(v)&mask)
	}
}

// low completes the address that an ADRP began.
func (w *work) low(i int, c uint32, r *adrp, scale uint32) {
	if r.at == 0 {
		return
	}
	t := r.page + uint64(c>>10&0xfff)<<scale
	if w.see != nil {
		w.saw(Sight{Pos: r.at - 1, Low: i, At: t, Value: int64(scale), Moved: w.self})
		return
	}
	shift, ok := w.p.shift(w.g.maps[0], t)
	if !ok {
		return
	}
	t += uint64(shift)
	if r.done && r.next != t&^0xfff || t&(1<<scale-1) != 0 {
		return
	}
	if !r.done {
		r.done, r.next = true, t&^0xfff
		at := r.at - 1
		a := binary.LittleEndian.Uint32(w.b[at:])
		imm := uint32((r.next - (w.addr+uint64(at)+uint64(w.self))&^0xfff) >> 12)
		binary.LittleEndian.PutUint32(w.b[at:], a&^0x60ffffe0|imm&3<<29|imm>>2&0x7ffff<<5)
	}
	binary.LittleEndian.PutUint32(w.b[i:], c&^(0xfff<<10)|uint32(t&0xfff)>>scale<<10)
}

// arm rewrites B, BL and BLX with 24 bits, and literals that are loaded and then
// added to the program counter.
func (w *work) arm() {
	var regs [16]int
	for i := int(-w.addr & 3); i+4 <= len(w.b); i += 4 {
		c := binary.LittleEndian.Uint32(w.b[i:])
		switch {
		case c&0x0e000000 == 0x0a000000:
			w.branch(i, c, 24, 8)
		case c&0x0f7f0000 == 0x051f0000: // LDR rt, [pc, +-imm12]
			from := i + 8 + int(c&0xfff)
			if c>>23&1 == 0 {
				from = i + 8 - int(c&0xfff)
			}
			regs[c>>12&15] = w.literal(from)
		case c&0x0fff0ff0 == 0x008f0000: // ADD rd, pc, rm
			w.added(&regs[c&15], i+8)
		}
	}
}

// thumb rewrites B and BL with 24 bits, BLX, and literals as arm does.
func (w *work) thumb() {
	var regs [16]int
	for i := int(-w.addr & 1); i+2 <= len(w.b); i += 2 {
		c := uint32(binary.LittleEndian.Uint16(w.b[i:]))
		switch {
		case c&0xf800 == 0x4800: // LDR rt, [pc, imm8]
			from := i + 4 + int(c&0xff)*4
			regs[c>>8&7] = w.literal(from - int((w.addr+uint64(i))&2))
		case c&0xff78 == 0x4478: // ADD rd, pc
			w.added(&regs[c>>4&8|c&7], i+4)
		case c>>11 >= 0x1d: // 32 bits
			if i+4 > len(w.b) {
				return
			}
			low := uint32(binary.LittleEndian.Uint16(w.b[i+2:]))
			switch {
			case c>>11 == 0x1e && (low&0xd000 == 0xd000 || low&0xd000 == 0x9000 || low&0xd001 == 0xc000):
				w.far(i, c, low)
			case c&0xff7f == 0xf85f: // LDR rt, [pc, +-imm12]
				from := i + 4 + int(low&0xfff)
				if c>>7&1 == 0 {
					from = i + 4 - int(low&0xfff)
				}
				regs[low>>12] = w.literal(from - int((w.addr+uint64(i))&2))
			}
			i += 2
		}
	}
}

// far rewrites a branch of two halfwords: encodings T4 of B, T1 of BL, T2 of BLX, whose
// program counter is rounded down to a multiple of 4.
func (w *work) far(i int, c, low uint32) {
	sign := c >> 10 & 1
	v := int64(int32(sign<<31|(^(low>>13^sign)&1)<<30|(^(low>>11^sign)&1)<<29|c&0x3ff<<19|low&0x7ff<<8)) >> 7
	from, moved := w.addr+uint64(i)+4, w.self
	if low&0x1000 == 0 {
		next := (from + uint64(moved)) &^ 3
		from &^= 3
		moved = int64(next - from)
	}
	t := from + uint64(v)
	if w.see != nil {
		w.saw(Sight{Pos: i, Low: -1, At: t, Value: v, Moved: moved})
		return
	}
	shift, ok := w.p.shift(w.g.maps[0], t)
	if !ok || shift == moved {
		return
	}
	u := uint32((v + shift - moved) >> 1)
	sign = u >> 23 & 1
	low = low&0xd000 | (^(u>>22^sign)&1)<<13 | (^(u>>21^sign)&1)<<11 | u&0x7ff
	binary.LittleEndian.PutUint16(w.b[i:], uint16(0xf000|sign<<10|u>>11&0x3ff))
	binary.LittleEndian.PutUint16(w.b[i+2:], uint16(low))
}

// literal returns what a register holds that was loaded from there: the place
// plus 1, or 0 if it is outside.
func (w *work) literal(from int) int {
	if from < 0 || from+4 > len(w.b) {
		return 0
	}
	return from + 1
}

// added rewrites a literal that is added to the program counter, which is base behind
// the beginning.
func (w *work) added(r *int, base int) {
	if *r != 0 {
		i := *r - 1
		w.relative(i, base-i)
	}
	*r = 0
}
