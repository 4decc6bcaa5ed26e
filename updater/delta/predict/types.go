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

// types rewrites names and types in BTF. The first map is for types, the second
// for names. Numbers from a (types) and d (names) on are the file's own, others of
// the kernel it belongs to: own ones are looked up 2^32 higher, times the upper half of a, so that
// files in one frame can share what they have in common.
func (w *work) types() {
	for i := 0; i+12 <= len(w.b); {
		info := uint32(w.number(i+4, 4))
		kind := info >> 24 & 0x1f
		if int(kind) >= len(btf) {
			return
		}
		k := &btf[kind]
		w.words4("s", i)
		w.words4(k.sized, i+8)
		i = w.words4(k.once, i+12)
		if k.each != "" {
			for range info & 0xffff {
				if i >= len(w.b) {
					return
				}
				i = w.words4(k.each, i)
			}
		}
	}
}

// words4 rewrites the words at i by their letters and returns where they end.
func (w *work) words4(letters string, i int) int {
	for _, c := range []byte(letters) {
		if c != '.' && i+4 <= len(w.b) {
			v := w.number(i, 4)
			t := uint64(v)
			if c == 't' {
				if t >= w.g.a&0xffffffff {
					t += w.g.a &^ 0xffffffff
				}
				w.field(0, i, 4, v, t, 0)
			} else {
				if t >= uint64(w.g.d) {
					t += w.g.a &^ 0xffffffff
				}
				w.field(1, i, 4, v, t, 0)
			}
		}
		i += 4
	}
	return i
}
