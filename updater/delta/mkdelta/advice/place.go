package advice

import (
	"bytes"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// used counts the bytes of blocks that nothing uses and that are not zeros.
func (v *view) used(free []files.Extent) int64 {
	n := int64(0)
	b, none := make([]byte, block), make([]byte, block)
	for _, e := range free {
		for at := e.Offset; at < e.Offset+e.Length; at += block {
			p := b[:min(block, e.Offset+e.Length-at)]
			if m, _ := v.ReadAt(p, at); m == len(p) && !bytes.Equal(p, none[:len(p)]) {
				n += int64(len(p))
			}
		}
	}
	return n
}

// older counts the files that are equal in both images but for their times.
func older(old, v *view) int {
	times := map[string]int64{}
	for _, n := range old.layout.Nodes {
		times[n.Path] = n.Modify
	}
	sums := map[string][32]byte{}
	for i, f := range old.files {
		sums[f.Path] = old.sums[i]
	}
	fresh := map[string]int64{}
	for _, n := range v.layout.Nodes {
		fresh[n.Path] = n.Modify
	}
	n := 0
	for i, f := range v.files {
		if sum, ok := sums[f.Path]; ok && sum == v.sums[i] && times[f.Path] != fresh[f.Path] {
			n++
		}
	}
	return n
}

// moved counts the files that lie elsewhere though they are equal, and the bytes of those of their blocks that a
// device with the old image in its spare slot has to write for that.
func moved(old, v *view) (count int, size int64) {
	where := map[string]int{}
	for i, f := range old.files {
		where[f.Path] = i
	}
	a, b := make([]byte, block), make([]byte, block)
	for i, f := range v.files {
		k, ok := where[f.Path]
		if !ok || old.sums[k] != v.sums[i] || same(old.files[k].Extents, f.Extents) {
			continue
		}
		n := int64(0)
		for _, e := range f.Extents {
			for at := e.Offset; at < e.Offset+e.Length; at += block {
				m := min(block, e.Offset+e.Length-at)
				x, _ := v.ReadAt(a[:m], at)
				y, _ := old.ReadAt(b[:m], at)
				if x != y || !bytes.Equal(a[:x], b[:y]) {
					n += m
				}
			}
		}
		if n > 0 {
			count++
			size += n
		}
	}
	return count, size
}

func same(a, b []files.Extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
