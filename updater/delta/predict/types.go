package predict

// What follows the 12 bytes of a BTF type, by kind, and where names (s) and
// types (t) lie in it, in units of 4 bytes (Linux Documentation/bpf/btf.rst, section 2).
var btf = [20]struct {
	sized string // the third word: t: a type
	once  string // once
	each  string // as often as the type says
}{
	2: {sized: "t"}, 8: {sized: "t"}, 9: {sized: "t"}, 10: {sized: "t"}, 11: {sized: "t"}, 12: {sized: "t"}, 18: {sized: "t"},
	1:  {once: "."},
	3:  {once: "tt."},
	4:  {each: "st."},
	5:  {each: "st."},
	6:  {each: "s."},
	13: {sized: "t", each: "st"},
	14: {sized: "t", once: "."},
	15: {each: "t.."},
	17: {sized: "t", once: "."},
	19: {each: "s.."},
}

// types rewrites names and types in BTF. Those of a module from a (types) and d (names)
// on are its own, lower ones those of the kernel: two maps for types and names of the
// kernel, which all modules have in common, and two for its own.
func (w *work) types() {
	for i := 0; i+12 <= len(w.b); {
		info := uint32(w.number(i+4, 4))
		kind := info >> 24 & 0x1f
		if int(kind) >= len(btf) {
			return
		}
		k := &btf[kind]
		w.references("s", i)
		w.references(k.sized, i+8)
		i = w.references(k.once, i+12)
		if k.each != "" {
			for range info & 0xffff {
				if i >= len(w.b) {
					return
				}
				i = w.references(k.each, i)
			}
		}
	}
}

// references rewrites the words at i by their letters and returns where they end.
func (w *work) references(letters string, i int) int {
	for _, c := range []byte(letters) {
		if c != '.' && i+4 <= len(w.b) {
			v := w.number(i, 4)
			slot, own := uint8(0), w.g.a
			if c == 's' {
				slot, own = 1, uint64(w.g.d)
			}
			if uint64(v) >= own {
				slot += 2
			}
			w.field(slot, i, 4, v, uint64(v), 0)
		}
		i += 4
	}
	return i
}
