package image

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// gaps returns what is free of the blocks in ours.
func gaps(ours []bool) []run {
	var out []run
	for b, ok := range ours {
		if !ok {
			continue
		}
		if k := len(out) - 1; k >= 0 && out[k].start+out[k].n == int64(b) {
			out[k].n++
		} else {
			out = append(out, run{int64(b), 1})
		}
	}
	return out
}

// links are the further names of files.
func (t *Tree) links() []string {
	var all []string
	for _, p := range t.paths() {
		if t.nodes[p].link != "" {
			all = append(all, p)
		}
	}
	return all
}

// placed returns the debugfs commands that make the tree in an empty file system, each thing in its place. debugfs
// takes the first block and the first inode that is free; so all are taken, and those that a thing shall have are
// freed just before it is made. What is free is in the end again.
func (t *Tree) placed(empty *files.Ext4Layout, p *places) ([]byte, error) {
	var b strings.Builder
	for _, e := range empty.Free {
		r := run{e.Offset / pageSize, e.Length / pageSize}
		fmt.Fprintf(&b, "setb %d %d\n", r.start, r.n)
	}
	for i := uint32(firstInode + 1); i <= p.count; i++ {
		fmt.Fprintf(&b, "seti <%d>\n", i)
	}
	w := &writer{t: t, b: &b}
	var late []string
	for _, name := range p.order {
		s := p.spots[name]
		if s.free {
			late = append(late, name)
			continue
		}
		if name != "/" {
			fmt.Fprintf(&b, "freei <%d>\n", s.inode)
		}
		dir := t.nodes[name].mode&unix.S_IFMT == unix.S_IFDIR
		first := dir && name != "/" // its first block comes with it
		grow := []run{}
		for _, r := range s.runs {
			if !dir {
				fmt.Fprintf(&b, "freeb %d %d\n", r.start, r.n)
				continue
			}
			if first {
				fmt.Fprintf(&b, "freeb %d 1\n", r.start)
				first, r = false, run{r.start + 1, r.n - 1}
			}
			grow = append(grow, r)
		}
		if err := w.make(name); err != nil {
			return nil, err
		}
		for _, r := range grow {
			for k := r.start; k < r.start+r.n; k++ {
				fmt.Fprintf(&b, "freeb %d 1\nexpand_dir %s\n", k, quote(name))
			}
		}
		w.attributes(name)
	}
	for _, r := range gaps(p.ours) {
		fmt.Fprintf(&b, "freeb %d %d\n", r.start, r.n)
	}
	for _, name := range late {
		fmt.Fprintf(&b, "freei <%d>\n", p.spots[name].inode)
		if err := w.make(name); err != nil {
			return nil, err
		}
		w.attributes(name)
	}
	for i := uint32(firstInode + 1); i <= p.count; i++ {
		if !p.taken[i] {
			fmt.Fprintf(&b, "freei <%d>\n", i)
		}
	}
	if t.nodes["/lost+found"] != nil {
		w.attributes("/lost+found") // mke2fs has made it
	}
	for _, name := range p.order {
		if err := w.xattrs(name); err != nil {
			return nil, err
		}
	}
	w.links()
	return []byte(b.String()), nil
}
