package datafiletest

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
)

// most bounds the states of one cut that are gone through one by one; beyond it a
// seeded sample of as many is taken.
const most = 4096

// fate is what became of a change.
type fate struct {
	kind byte // old, kept, torn, zeros, noise
	torn int  // bytes that were written
}

const (
	old   = 'o'
	kept  = 'k'
	torn  = 't'
	zeros = 'z'
	noise = 'n'
)

// Crash is one state that a power cut may leave behind.
type Crash struct {
	// Cut is the number of operations that had returned; the one after it was in
	// flight.
	Cut int

	fsys  *FS
	log   []op  // up to the cut, the one in flight included
	open  []int // those of log that may be lost
	fates []fate
}

// String is the state on one line. Crashes of a file system that itself came from
// a crash are preceded by that one's line and a semicolon.
func (c *Crash) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%scut=%d", c.fsys.path, c.Cut)
	for i, f := range c.fates {
		fmt.Fprintf(&s, " %s:%c", c.log[c.open[i]].kind, f.kind)
		if f.kind == torn {
			fmt.Fprint(&s, f.torn)
		}
	}
	return s.String()
}

// FS returns the file system after the machine was switched on again. It is new,
// with an empty log: run the recovery on it, and go through its crashes in turn.
func (c *Crash) FS() *FS {
	all := c.nodes()
	return &FS{base: all, nodes: clone(all), path: c.String() + "; "}
}

// nodes plays the log again, each change as its fate was.
func (c *Crash) nodes() []node {
	all := clone(c.fsys.base)
	for _, o := range c.log {
		if o.kind == Create || o.kind == Mkdir {
			for len(all) <= o.made {
				all = append(all, node{})
			}
			if o.kind == Mkdir {
				all[o.made].names = map[string]int{}
			}
		}
	}
	for i, o := range c.log {
		if at, ok := slices.BinarySearch(c.open, i); ok {
			if c.fates[at].kind == old {
				continue
			}
			o.data = c.fates[at].content(o.data, i)
		}
		apply(all, o)
	}
	return all
}

// content returns what the medium has of written data. Noise depends on the
// operation only, so that a state can be replayed.
func (f fate) content(data []byte, index int) []byte {
	switch f.kind {
	case torn:
		return data[:f.torn]
	case zeros:
		return make([]byte, len(data))
	case noise:
		b := make([]byte, len(data))
		r := rand.New(rand.NewPCG(uint64(index), 0))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	return data
}

// Crashes goes through the states in which a power cut during the operations
// recorded so far could have left the file system, none twice at one cut.
func (f *FS) Crashes() iter.Seq[*Crash] {
	return func(yield func(*Crash) bool) {
		f.mu.Lock()
		log := slices.Clone(f.log)
		f.mu.Unlock()
		wanted := os.Getenv("DATAFILETEST")
		for cut := 0; cut <= len(log); cut++ {
			seen := map[string]bool{}
			part := log[:min(cut+1, len(log))]
			open := undecided(part, cut)
			for fates := range choices(part, open, uint64(cut)) {
				c := &Crash{Cut: cut, fsys: f, log: part, open: open, fates: fates}
				if line := c.String(); wanted != "" && wanted != line && !strings.HasPrefix(wanted, line+"; ") {
					continue
				}
				if key := show(c.nodes()); !seen[key] {
					seen[key] = true
					if !yield(c) {
						return
					}
				}
			}
		}
	}
}

// undecided returns the operations that may be lost: no Sync of what they are in
// came back after them, or one failed that was about a file's data.
func undecided(log []op, cut int) []int {
	var open []int
	for i, o := range log {
		if o.kind == Sync {
			continue
		}
		durable := false
		for _, later := range log[i+1 : max(i+1, min(cut, len(log)))] {
			if later.kind != Sync || later.in != o.in {
				continue
			}
			durable = !later.failed
			if durable || o.kind == Write {
				break
			}
		}
		if !durable {
			open = append(open, i)
		}
	}
	return open
}

// choices goes through the fates of the open operations.
func choices(log []op, open []int, cut uint64) iter.Seq[[]fate] {
	return func(yield func([]fate) bool) {
		all := make([][]fate, len(open))
		count := 1
		for i, index := range open {
			all[i] = fates(log[index], len(open) == 1)
			count = min(count*len(all[i]), most+1)
		}
		r := rand.New(rand.NewPCG(cut, 0))
		at := make([]int, len(open)) // as the digits of a number
		for n := 0; n < most; n++ {
			list := make([]fate, len(open))
			for i := range list {
				if count > most {
					at[i] = r.IntN(len(all[i]))
				}
				list[i] = all[i][at[i]]
			}
			if !yield(list) {
				return
			}
			if count > most {
				continue
			}
			i := 0
			for ; i < len(at); i++ {
				if at[i]++; at[i] < len(all[i]) {
					break
				}
				at[i] = 0
			}
			if i == len(at) {
				return
			}
		}
	}
}

// fates lists what can become of an operation: a write alone is torn at each byte.
func fates(o op, alone bool) []fate {
	list := []fate{{kind: kept}, {kind: old}}
	if o.kind != Write {
		return list
	}
	list = append(list, fate{kind: zeros}, fate{kind: noise})
	for n := 1; n < len(o.data); n++ {
		if alone && len(o.data) <= 512 || n == 1 || n == len(o.data)/2 || n == len(o.data)-1 || n%512 == 0 {
			list = append(list, fate{kind: torn, torn: n})
		}
	}
	return list
}

// show is what can be reached, as text.
func show(all []node) string {
	f := &FS{nodes: all}
	var s strings.Builder
	for _, name := range f.Names() {
		data, _ := f.ReadFile(name)
		fmt.Fprintf(&s, "%q %x\n", name, sha256.Sum256(data))
	}
	return s.String()
}
