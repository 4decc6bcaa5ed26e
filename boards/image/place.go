package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// ErrPlaces means that an older image cannot be followed in where things are: it is no ext4 file system as Root
// makes it, or there is no room left that hangs together. Without the older image it works.
var ErrPlaces = errors.New("cannot follow the older image")

// mostRuns is in how many pieces a file may lie: so many fit into its inode.
const mostRuns = 4

// extentBlocks is how many blocks an extent can have at most.
const extentBlocks = 32768

// run is a stretch of blocks.
type run struct{ start, n int64 }

// spot is where something is put.
type spot struct {
	inode     uint32
	runs      []run
	free      bool // anywhere: it goes in last, where debugfs likes
	blocks    int64
	stretches int // of blocks that are not zeros, of what an extent can hold each
}

// places decides where everything of a tree is put, so that what the older image has too stays where it is there: a
// block that is already right on the device's spare slot is not written again, and a directory whose files keep
// their inodes keeps its bytes.
type places struct {
	tree  *Tree
	old   map[string]*files.Node // by absolute path
	names map[string][]string    // of a file, further ones
	ours  []bool                 // blocks that nobody has yet
	taken map[uint32]bool        // inodes
	last  uint32                 // the highest inode that anybody has
	count uint32                 // of inodes
	spots map[string]*spot
	order []string // in which things are made
	low   int64    // no block in front of it is free
}

// plan reads the empty file system and the older one. Both have the same geometry, or the new one is larger.
func (t *Tree) plan(empty, like *files.Ext4Layout) (*places, error) {
	if like.Block != pageSize || empty.Block != pageSize {
		return nil, fmt.Errorf("%w: blocks of %d bytes", ErrPlaces, like.Block)
	}
	p := &places{
		tree: t, old: map[string]*files.Node{}, names: map[string][]string{}, ours: make([]bool, empty.Blocks),
		taken: map[uint32]bool{}, count: uint32(empty.Inodes), last: firstInode, spots: map[string]*spot{},
	}
	for _, e := range empty.Free {
		for b := e.Offset / pageSize; b < (e.Offset+e.Length)/pageSize; b++ {
			p.ours[b] = true
		}
	}
	for i := range like.Nodes {
		p.old["/"+like.Nodes[i].Path] = &like.Nodes[i]
	}
	for name, n := range t.nodes {
		if n.link != "" {
			p.names[n.link] = append(p.names[n.link], name)
		}
	}
	return p, p.choose()
}

// firstInode is the first that is not reserved; lost+found has it.
const firstInode = 11

// before returns what the older image has under one of the names of a thing, if it is of the same type.
func (p *places) before(name string) *files.Node {
	for _, s := range append([]string{name}, p.names[name]...) {
		if o := p.old[s]; o != nil && uint32(o.Mode)&unix.S_IFMT == p.tree.nodes[name].mode&unix.S_IFMT {
			return o
		}
	}
	return nil
}

func (p *places) choose() error {
	var all []string
	for _, name := range p.tree.paths() {
		if n := p.tree.nodes[name]; n.link == "" && name != "/lost+found" {
			all = append(all, name)
		}
	}
	for _, name := range all {
		slices.Sort(p.names[name])
		s := &spot{}
		p.spots[name] = s
		if o := p.before(name); o != nil && o.Inode > firstInode && o.Inode <= p.count && !p.taken[o.Inode] {
			s.inode = o.Inode
			p.taken[o.Inode] = true
			p.last = max(p.last, o.Inode)
		}
	}
	for _, name := range all {
		s := p.spots[name]
		if s.inode != 0 || name == "/" {
			continue
		}
		// Behind all others, so that inodes go on in the order in which things were made.
		if s.inode = p.last + 1; s.inode > p.count {
			for s.inode = firstInode + 1; p.taken[s.inode]; s.inode++ {
			}
			if s.inode > p.count {
				return fmt.Errorf("%w: more than %d files", ErrPlaces, p.count)
			}
		}
		p.taken[s.inode] = true
		p.last = max(p.last, s.inode)
	}
	p.arrange(all)
	if err := p.measure(); err != nil {
		return err
	}
	// First those that keep their blocks, so that nobody else takes them.
	for _, name := range p.order {
		p.keep(name)
	}
	for _, name := range p.order {
		if err := p.find(name); err != nil {
			return err
		}
	}
	return nil
}

// arrange orders things by inode, each behind the folder that it is in: the order of names in a folder is that in
// which they were made.
func (p *places) arrange(all []string) {
	slices.SortStableFunc(all, func(a, b string) int { return int(p.spots[a].inode) - int(p.spots[b].inode) })
	done := map[string]bool{}
	var add func(string)
	add = func(name string) {
		if done[name] {
			return
		}
		done[name] = true
		if name != "/" {
			add(path.Dir(name))
		}
		p.order = append(p.order, name)
	}
	for _, name := range all {
		add(name)
	}
}

// measure counts the blocks that everything needs.
func (p *places) measure() error {
	rooms := map[string][]int{"/": {pageSize - 44}} // with ".", ".." and lost+found
	enter := func(name string) {
		dir, need := path.Dir(name), (8+len(path.Base(name))+3)&^3
		for i, room := range rooms[dir] {
			if room >= need {
				rooms[dir][i] -= need
				return
			}
		}
		rooms[dir] = append(rooms[dir], pageSize-need)
	}
	var late []string
	for _, name := range p.order {
		n, s := p.tree.nodes[name], p.spots[name]
		switch n.mode & unix.S_IFMT {
		case unix.S_IFREG:
			var err error
			if s.stretches, s.blocks, err = stretches(n.source); err != nil {
				return err
			}
			s.stretches += int(s.blocks / extentBlocks)
			// A file full of holes may need a block for its map.
			s.free = s.stretches > mostRuns
		case unix.S_IFLNK:
			if len(n.target) >= 60 {
				s.blocks = 1
			}
		case unix.S_IFDIR:
			if name != "/" {
				rooms[name] = []int{pageSize - 24}
			}
		}
		if s.free {
			late = append(late, name)
		} else if name != "/" {
			enter(name)
		}
	}
	for _, name := range append(late, p.tree.links()...) {
		enter(name)
	}
	for name, room := range rooms {
		s := p.spots[name]
		if s == nil {
			return fmt.Errorf("%s is in something that is no folder", name)
		}
		s.blocks = int64(len(room))
		if name == "/" {
			s.blocks-- // the first is there
		}
	}
	return nil
}

// stretches counts the stretches of blocks of a file that are not zeros, and their blocks: debugfs leaves holes.
func stretches(name string) (count int, blocks int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	buf := make([]byte, copyChunk)
	hole := true
	for {
		n, err := io.ReadFull(f, buf)
		for b := range slices.Chunk(buf[:n], pageSize) {
			zero := bytes.Equal(b, zeroChunk[:len(b)])
			if !zero {
				blocks++
				if hole {
					count++
				}
			}
			hole = zero
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return count, blocks, nil
		} else if err != nil {
			return 0, 0, fmt.Errorf("read %s: %w", name, err)
		}
	}
}

func (p *places) take(s *spot, r run) {
	for b := r.start; b < r.start+r.n; b++ {
		p.ours[b] = false
	}
	if k := len(s.runs) - 1; k >= 0 && s.runs[k].start+s.runs[k].n == r.start {
		s.runs[k].n += r.n
	} else {
		s.runs = append(s.runs, r)
	}
}

func (s *spot) has() int64 {
	n := int64(0)
	for _, r := range s.runs {
		n += r.n
	}
	return n
}

// keep gives a thing the blocks that it has in the older image, as far as it needs them.
func (p *places) keep(name string) {
	s, o := p.spots[name], p.before(name)
	if o == nil || s.free {
		return
	}
	skip := int64(0)
	if name == "/" {
		skip = 1
	}
	for _, e := range o.Extents {
		if e.Codec != files.Stored {
			continue
		}
		first := e.Offset / pageSize
		for b := first; b < first+(e.Length+pageSize-1)/pageSize && s.has() < s.blocks; b++ {
			if skip > 0 {
				skip--
				continue
			}
			if b < int64(len(p.ours)) && p.ours[b] {
				p.take(s, run{b, 1})
			}
		}
	}
}

// find looks for the blocks that a thing still needs.
func (p *places) find(name string) error {
	s := p.spots[name]
	if s.free {
		return nil
	}
	if k := len(s.runs) - 1; k >= 0 {
		for next := s.runs[k].start + s.runs[k].n; s.has() < s.blocks && next < int64(len(p.ours)) && p.ours[next]; next++ {
			p.take(s, run{next, 1})
		}
	}
	if missing := s.blocks - s.has(); missing > 0 && len(s.runs) > 0 {
		if r, ok := p.first(missing); ok {
			p.take(s, r)
		}
	}
	if len(s.runs) <= s.most() && s.has() == s.blocks {
		return nil
	}
	// Too scattered: all of it in one piece elsewhere, or where it fits.
	for _, r := range s.runs {
		for b := r.start; b < r.start+r.n; b++ {
			p.ours[b] = true
		}
		p.low = min(p.low, r.start)
	}
	s.runs = nil
	if r, ok := p.first(s.blocks); ok || s.blocks == 0 {
		if ok {
			p.take(s, r)
		}
		return nil
	}
	for b := p.low; b < int64(len(p.ours)) && s.has() < s.blocks; b++ {
		if p.ours[b] {
			p.take(s, run{b, 1})
		}
	}
	if len(s.runs) > s.most() || s.has() < s.blocks {
		return fmt.Errorf("%w: no room of %d blocks for %s", ErrPlaces, s.blocks, name)
	}
	return nil
}

// most is in how many pieces a thing may lie. Each stretch of a file with holes is one already, and so is the first
// block of the root folder, which is not placed.
func (s *spot) most() int { return mostRuns + 1 - max(s.stretches, 2) }

// first returns the first free stretch of n blocks.
func (p *places) first(n int64) (run, bool) {
	for p.low < int64(len(p.ours)) && !p.ours[p.low] {
		p.low++
	}
	start := int64(-1)
	for b := p.low; b < int64(len(p.ours)); b++ {
		switch {
		case !p.ours[b]:
			start = -1
		case start < 0:
			start = b
		}
		if start >= 0 && b-start+1 == n {
			return run{start, n}, true
		}
	}
	return run{}, false
}
