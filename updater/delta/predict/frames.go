package predict

// frames rewrites .eh_frame (Linux Standard Base 5, section 10.6.1): of entries for
// functions the distance back to their common entry, the place of the function
// and, where there is augmentation data of 4 bytes, the place of its table.
// All are 32 bits and relative to themselves; an encoder lets alone what is encoded otherwise.
func (w *work) frames() {
	for i := 0; i+8 <= len(w.b); {
		size := w.number(i, 4)
		if size < 4 {
			return
		}
		end := int64(i) + 4 + size
		if back := w.number(i+4, 4); back != 0 && size >= 12 && end <= int64(len(w.b)) {
			w.back(i+4, back)
			w.relative(i+8, 0)
			if size >= 17 && w.b[i+16] == 4 && w.number(i+17, 4) != 0 {
				w.relative(i+17, 0)
			}
		}
		if end > int64(len(w.b)) {
			return
		}
		i = int(end)
	}
}

// back rewrites the 32-bit number v at i, which counts from its target to itself.
func (w *work) back(i int, v int64) {
	t := w.addr + uint64(i) - uint64(v)
	if w.see != nil {
		w.saw(Sight{Pos: i, Width: 4, Low: -1, At: t, Value: v, Moved: w.self, Negate: true})
		return
	}
	if shift, ok := w.p.shift(w.g.maps[0], t); ok {
		w.put(i, 4, v-shift+w.self)
	}
}
