package predict

// Operands by opcode, one letter each, in 64-bit mode (Intel SDM volume 2,
// appendix A; AMD64 manual volume 3, appendix A):
//
//	.  none              m  ModRM                 p  prefix
//	b  imm8              i  ModRM, imm8           x  REX
//	w  imm16             z  ModRM, imm32          f  0F
//	d  imm32             t  ModRM, imm8 if /0 /1  V  VEX, 2 bytes
//	v  imm32 or imm64    T  ModRM, imm32 if /0 /1 W  VEX, 3 bytes
//	a  64-bit address    r  rel32                 E  EVEX
//	e  imm16, imm8       3  0F38, 0F3A            ?  not an instruction
const (
	oneByte = "mmmmbd??mmmmbd?f" + "mmmmbd??mmmmbd??" + "mmmmbdp?mmmmbdp?" + "mmmmbdp?mmmmbdp?" +
		"xxxxxxxxxxxxxxxx" + "................" + "??Emppppdzbi...." + "bbbbbbbbbbbbbbbb" +
		"iz?immmmmmmmmmmm" + "..........?....." + "aaaa....bd......" + "bbbbbbbbvvvvvvvv" +
		"iiw.WVize.w..b?." + "mmmm???.mmmmmmmm" + "bbbbbbbbrr?b...." + "p.pp..tT......mm"
	twoByte = "mmmm?.....?.?m.i" + "mmmmmmmmmmmmmmmm" + "mmmm????mmmmmmmm" + "......?.3?3?????" +
		"mmmmmmmmmmmmmmmm" + "mmmmmmmmmmmmmmmm" + "mmmmmmmmmmmmmmmm" + "iiiimmm.mm??mmmm" +
		"rrrrrrrrrrrrrrrr" + "mmmmmmmmmmmmmmmm" + "...mim??...mimmm" + "mmmmmmmmmmimmmmm" +
		"mmimiiim........" + "mmmmmmmmmmmmmmmm" + "mmmmmmmmmmmmmmmm" + "mmmmmmmmmmmmmmmm"
)

// What x86 needs to know of most instructions, from the tables above: bytes of
// immediate operands, and the flags below.
var oneBrief, twoBrief = brief(oneByte), brief(twoByte)

const (
	briefModRM = 0x10
	briefRel   = 0x20
	briefSlow  = 0x80 // see instruction
)

func brief(table string) (b [256]byte) {
	for c := range b {
		switch table[c] {
		case '.':
		case 'b':
			b[c] = 1
		case 'd':
			b[c] = 4
		case 'm':
			b[c] = briefModRM
		case 'i':
			b[c] = briefModRM | 1
		case 'z':
			b[c] = briefModRM | 4
		case 'r':
			b[c] = briefRel | 4
		default:
			b[c] = briefSlow
		}
	}
	return b
}

// longest is more bytes than the instructions take that x86 looks at by itself: REX, 0F,
// opcode, ModRM, SIB, displacement, immediate.
const longest = 16

// x86 walks over instructions and rewrites what is relative to the next one: the targets of
// jumps and calls with 32 bits, and addresses of data (ModRM with mod 0 and rm 5). In a program that runs at
// fixed addresses below 2^31 or, as a kernel, above -2^31, other displacements and immediates of 32 bits may be
// addresses too; those that are none the map does not know.
// Should b begin amid an instruction, the walk is soon in step; so it is again after
// bytes that are none.
func (w *work) x86() {
	b := w.b
	i := 0
	fixed := w.g.kind == KindX86Fixed
	for i+longest <= len(b) {
		p := b[i : i+longest : i+longest]
		n := 0
		if p[0]>>4 == 4 {
			n = 1
		}
		info := oneBrief[p[n]]
		if p[n] == 0x0f {
			n++
			info = twoBrief[p[n]]
		}
		n++
		if info < briefModRM {
			if fixed && info == 4 {
				w.absolute(i + n)
			}
			i += n + int(info)
			continue
		}
		if info&(briefSlow|briefRel) == 0 {
			m := p[n]
			n++
			switch m >> 6 {
			case 0:
				if m&7 == 5 {
					imm := int(info & 7)
					w.relative(i+n, 4+imm)
					n += 4
				} else if m&7 == 4 {
					n++
					if p[n-1]&7 == 5 {
						if fixed {
							w.absolute(i + n)
						}
						n += 4
					}
				}
			case 1:
				n++
				if m&7 == 4 {
					n++
				}
			case 2:
				if m&7 == 4 {
					n++
				}
				if fixed {
					w.absolute(i + n)
				}
				n += 4
			}
			if fixed && info&7 == 4 {
				w.absolute(i + n)
			}
			i += n + int(info&7)
			continue
		}
		if info&briefRel != 0 {
			w.relative(i+n, 4)
			i += n + 4
			continue
		}
		n, rel, after := instruction(b[i:])
		if rel > 0 && i+n <= len(b) {
			w.relative(i+rel, 4+after)
		}
		i += n
	}
	for i < len(b) {
		n, rel, after := instruction(b[i:])
		if rel > 0 && i+n <= len(b) {
			w.relative(i+rel, 4+after)
		}
		i += n
	}
}

// instruction returns the length of the instruction that b begins with, at least 1 and possibly more than
// there is of b, where in it a relative 32-bit number lies, or 0, and how many bytes follow that.
func instruction(b []byte) (n, rel, after int) {
	i := 0
	imm32 := 4
	wide := false
	op := byte('p')
	var c byte
	for ; op == 'p'; i++ {
		if i == len(b) || i == 14 {
			return 1, 0, 0
		}
		c = b[i]
		op = oneByte[c]
		if c == 0x66 {
			imm32 = 2
		}
	}
	if op == 'x' {
		wide = c&8 != 0
		if i == len(b) {
			return i, 0, 0
		}
		c = b[i]
		op = oneByte[c]
		i++
		if op == 'p' || op == 'x' {
			return 1, 0, 0
		}
	}
	if wide {
		imm32 = 4
	}
	switch op {
	case 'f':
		if i == len(b) {
			return i, 0, 0
		}
		c = b[i]
		op = twoByte[c]
		i++
		if op == '3' {
			i++
			op = 'm'
			if c == 0x3a {
				op = 'i'
			}
		}
	case 'V':
		if i+1 >= len(b) {
			return i + 1, 0, 0
		}
		op = twoByte[b[i+1]]
		i += 2
	case 'W', 'E':
		skip := 2
		if op == 'E' {
			skip = 3
		}
		if i+skip >= len(b) {
			return i + skip, 0, 0
		}
		switch b[i] & 7 {
		case 1:
			op = twoByte[b[i+skip]]
		case 3:
			op = 'i'
		default:
			op = 'm'
		}
		i += skip + 1
	}
	imm := 0
	switch op {
	case '.', 'm':
	case 'b', 'i':
		imm = 1
	case 'w':
		imm = 2
	case 'd', 'z':
		imm = imm32
	case 'v':
		imm = imm32
		if wide {
			imm = 8
		}
	case 'a':
		imm = 8
	case 'e':
		imm = 3
	case 'r':
		return i + 4, i, 0
	case 't', 'T':
		if i < len(b) && b[i]&0x30 == 0 {
			imm = 1
			if op == 'T' {
				imm = imm32
			}
		}
	default:
		return 1, 0, 0
	}
	switch op {
	case 'm', 'i', 'z', 't', 'T':
	default:
		return i + imm, 0, 0
	}
	if i >= len(b) {
		return i + 1, 0, 0
	}
	m := b[i]
	i++
	switch mod := m >> 6; {
	case mod == 3:
		return i + imm, 0, 0
	case m&7 == 4:
		if mod == 0 && i < len(b) && b[i]&7 == 5 {
			i += 4
		}
		i++
		fallthrough
	default:
		switch mod {
		case 0:
			if m&7 == 5 {
				return i + 4 + imm, i, imm
			}
		case 1:
			i++
		case 2:
			i += 4
		}
	}
	return i + imm, 0, 0
}
