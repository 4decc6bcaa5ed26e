package mkdelta

const (
	// Differing bytes between two stretches at the same displacement are carried
	// as differences up to this length, though they agree nowhere: that is what a
	// shifted address looks like, and the device reads all of it in one piece.
	bridge = 32
)

// match divides a frame that begins at offset in the new image into segments,
// in order and without overlap.
func (ix *index) match(frame []byte, offset int64) []segment {
	var found []segment
	end := 0       // of the last segment
	var at int64   // displacement in use
	var rolled int // h covers frame[rolled:rolled+window]
	var h uint64
	fresh := false
	for i := 0; i+zeroRun/2 <= len(frame); {
		if n := zeros(frame[i:]); n >= zeroRun {
			found = append(found, segment{start: i, end: i + n, zero: true})
			i += n
			end = i
			continue
		}
		best := segment{start: i, end: i + ix.forward(frame, i, offset, at), at: at}
		if best.end-best.start < enough && i+window <= len(frame) {
			if !fresh || rolled > i || i-rolled > window {
				h = hash(frame[i : i+window])
			} else {
				for ; rolled < i; rolled++ {
					h = roll(h, frame[rolled], frame[rolled+window])
				}
			}
			rolled, fresh = i, true
			if c, ok := ix.find(frame, i, end, offset, h); ok {
				same := ix.equal(frame, c.start, c.end, offset, at)
				if c.end-c.start >= same+jump {
					best = c
				}
			}
		}
		if best.end-best.start < window*3/4 {
			i++
			continue
		}
		found = append(found, best)
		at, i, end = best.at, best.end, best.end
	}
	return ix.extend(frame, offset, found)
}

// find returns the longest match of frame[i:] that begins with the window at
// i, extended back at most to floor.
func (ix *index) find(frame []byte, i, floor int, offset int64, h uint64) (segment, bool) {
	var best segment
	b := ix.head[h>>(64-ix.bits)]
	for tries := 0; b != none && tries < chainLimit; tries++ {
		at := int64(b)*int64(ix.step) - offset - int64(i)
		if n := ix.forward(frame, i, offset, at); n >= window {
			back := ix.backward(frame, i, floor, offset, at)
			if n+back > best.end-best.start {
				best = segment{start: i - back, end: i + n, at: at}
			}
			if n >= enough {
				break
			}
		}
		b = ix.next[b]
	}
	return best, best.end > best.start
}

// forward counts the bytes from i on that agree at a displacement.
func (ix *index) forward(frame []byte, i int, offset, at int64) int {
	from := offset + int64(i) + at
	if from < 0 || from >= int64(len(ix.old)) {
		return 0
	}
	return common(frame[i:], ix.old[from:])
}

// backward counts the bytes before i, down to floor, that agree.
func (ix *index) backward(frame []byte, i, floor int, offset, at int64) int {
	from := offset + int64(i) + at
	n := 0
	for i-n > floor && from-int64(n) > 0 && frame[i-n-1] == ix.old[from-int64(n)-1] {
		n++
	}
	return n
}

// equal counts the bytes in [start, end) that agree at a displacement, with gaps.
func (ix *index) equal(frame []byte, start, end int, offset, at int64) int {
	start, end = ix.clip(start, end, offset, at)
	if start >= end {
		return 0
	}
	old := ix.old[offset+int64(start)+at:]
	n := 0
	for k, c := range frame[start:end] {
		if old[k] == c {
			n++
		}
	}
	return n
}

// clip narrows [start, end) to what has a counterpart in the old image.
func (ix *index) clip(start, end int, offset, at int64) (int, int) {
	start = int(max(int64(start), -at-offset))
	end = int(min(int64(end), int64(len(ix.old))-at-offset))
	return start, max(start, end)
}

// extend grows segments into the gaps between them, over bytes that differ.
func (ix *index) extend(frame []byte, offset int64, found []segment) []segment {
	for k := 0; k <= len(found); k++ {
		var left, right *segment
		lo, hi := 0, len(frame)
		if k > 0 {
			left = &found[k-1]
			lo = left.end
		}
		if k < len(found) {
			right = &found[k]
			hi = right.start
		}
		if lo >= hi {
			continue
		}
		l, r := lo, hi // left will end at l, right begin at r
		if left != nil && !left.zero {
			l += ix.approxForward(frame, lo, hi, offset, left.at)
		}
		if right != nil && !right.zero {
			r -= ix.approxBackward(frame, lo, hi, offset, right.at)
		}
		if l > r { // both want [r, l): each gets the side where it agrees more
			l = ix.split(frame, r, l, offset, left.at, right.at)
			r = l
		}
		if left != nil && right != nil && !left.zero && !right.zero && left.at == right.at && r-l <= bridge {
			l = r
		}
		if left != nil {
			left.end = l
		}
		if right != nil {
			right.start = r
		}
	}
	return found
}

// approxForward returns how far from lo the displacement is worth keeping: the
// longest stretch with the most agreements beyond half.
func (ix *index) approxForward(frame []byte, lo, hi int, offset, at int64) int {
	start, end := ix.clip(lo, hi, offset, at)
	if start != lo {
		return 0
	}
	old := ix.old[offset+int64(lo)+at:]
	score, best, length := 0, 0, 0
	for i := 0; lo+i < end; i++ {
		if frame[lo+i] == old[i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i+1
		}
	}
	return length
}

func (ix *index) approxBackward(frame []byte, lo, hi int, offset, at int64) int {
	start, end := ix.clip(lo, hi, offset, at)
	if end != hi {
		return 0
	}
	score, best, length := 0, 0, 0
	for i := hi - 1; i >= start; i-- {
		if frame[i] == ix.old[offset+int64(i)+at] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, hi-i
		}
	}
	return length
}

// split returns where in [lo, hi) to change from displacement a to b.
func (ix *index) split(frame []byte, lo, hi int, offset, a, b int64) int {
	score, best, at := 0, 0, lo
	for i := lo; i < hi; i++ {
		c, t := frame[i], offset+int64(i)
		if ix.old[t+a] == c {
			score++
		}
		if ix.old[t+b] == c {
			score--
		}
		if score > best {
			best, at = score, i+1
		}
	}
	return at
}
