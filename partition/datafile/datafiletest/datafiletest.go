// Package datafiletest is a file system that loses power.
//
// Its [FS] satisfies datafile.FS. It keeps what is written, made, renamed and
// removed in a volatile cache and records it. After the code under test has run once,
// [FS.Crashes] goes through the states in which a power cut at any moment of that run could
// have left it:
//
//	fsys := datafiletest.New()
//	save(fsys)                                   // the code under test
//	for crash := range fsys.Crashes() {
//		fsys := crash.FS()                   // a machine that was switched on again
//		require.True(t, oldOrNew(load(fsys)), "%s", crash)
//	}
//
// A state prints as one line, such as `cut=3 create:o write:t5`; with DATAFILETEST set to
// that line, only this state is visited.
//
// # What can happen
//
// Each change that was not followed by a completed Sync has one of several fates,
// independent of the order of the changes: names made, renamed and removed (durable after Sync of
// their folder) and sizes are old or kept; written bytes (durable after Sync of their
// file) are old, kept, torn after so many bytes, or replaced by zeros or noise of their length. So
// a new name may lead to a file whose data was lost.
//
// With [FS.Inject] an operation fails, once or for good. A write that fails
// has taken its first half. A Sync of a file that fails behaves as on Linux: the cache goes on
// showing what was written, later Syncs succeed, and it may be lost all the same. A Sync of a
// folder that fails leaves the changes of names to the next one, since a journal
// either still has them or refuses everything that follows.
//
// # What it does not do
//
// Renames between folders, links, permissions, times. What is durable never
// changes by itself. Reads are not recorded.
package datafiletest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/partition/datafile"
)

// Kind is what an operation does.
type Kind string

// The kinds of operation. Open is counted for faults, and recorded as Create or
// Truncate if it does that too.
const (
	Open     Kind = "open"
	Read     Kind = "read"
	Write    Kind = "write"
	Truncate Kind = "truncate"
	Sync     Kind = "sync"
	Create   Kind = "create"
	Mkdir    Kind = "mkdir"
	Rename   Kind = "rename"
	Remove   Kind = "remove"
)

// node is a file or folder; its number is its place in the list of all.
type node struct {
	names map[string]int // of a folder, else nil
	data  []byte
}

const root = 0

func clone(all []node) []node {
	all = slices.Clone(all)
	for i := range all {
		all[i] = node{names: maps.Clone(all[i].names), data: bytes.Clone(all[i].data)}
	}
	return all
}

// op is one recorded operation.
type op struct {
	kind     Kind
	in       int // the node that has to be synced to make it durable
	name, to string
	made     int // node of a Create or Mkdir, or that a Rename moves
	off      int64
	data     []byte
	failed   bool // a Sync that was none
}

// FS is a file system with a volatile cache. Its methods and those of its files
// may be called from several goroutines.
type FS struct {
	mu     sync.Mutex
	base   []node // when the log was empty
	nodes  []node // what the cache shows
	log    []op
	path   string // the crash that led here
	faults []*Fault
}

var _ datafile.FS = (*FS)(nil)

// New returns a file system with an empty root folder.
func New() *FS {
	all := []node{{names: map[string]int{}}}
	return &FS{base: all, nodes: clone(all)}
}

// Settle makes everything durable and forgets how it came about, as an hour of
// rest does.
func (f *FS) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base, f.log = clone(f.nodes), nil
}

// Ops returns the number of recorded operations. A promise that was made when Ops
// returned n must hold in every Crash whose Cut is at least n.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.log)
}

// ErrKilled, in a sticky fault, is the end of the program while the kernel goes on: a
// Sync that fails with it did not begin, and loses nothing.
var ErrKilled = errors.New("datafiletest: program was killed")

// Fault is something that goes wrong other than the power.
type Fault struct {
	Op     Kind  // what fails; "" is any
	At     int   // which one, 1-based, counted from Inject
	Sticky bool  // and all later ones too
	Err    error // as syscall.EIO or syscall.ENOSPC, or ErrKilled

	seen  int
	fired bool
}

// Inject lets a fault happen. A loop over At is done when Fired says no.
func (f *FS) Inject(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fault.seen, fault.fired = 0, false
	f.faults = append(f.faults, &fault)
}

// Fired says whether any injected fault has happened.
func (f *FS) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.faults, func(fault *Fault) bool { return fault.fired })
}

// Heal takes all faults away; what they did stays.
func (f *FS) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

func (f *FS) fault(kind Kind) error {
	var err error
	for _, fault := range f.faults {
		if fault.Op != "" && fault.Op != kind {
			continue
		}
		fault.seen++
		if fault.seen == fault.At || fault.Sticky && fault.seen > fault.At {
			fault.fired = true
			err = fault.Err
		}
	}
	return err
}

// find returns the folder that name is in, and the node, -1 if there is none.
func (f *FS) find(name string) (folder int, base string, n int, err error) {
	name = filepath.Clean(name)
	if !filepath.IsAbs(name) {
		return 0, "", -1, fs.ErrInvalid
	}
	if name == "/" {
		return root, ".", root, nil
	}
	parts := strings.Split(name[1:], "/")
	for _, part := range parts[:len(parts)-1] {
		next, ok := f.nodes[folder].names[part]
		if !ok {
			return 0, "", -1, fs.ErrNotExist
		}
		if f.nodes[next].names == nil {
			return 0, "", -1, syscall.ENOTDIR
		}
		folder = next
	}
	base = parts[len(parts)-1]
	if n, ok := f.nodes[folder].names[base]; ok {
		return folder, base, n, nil
	}
	return folder, base, -1, nil
}

// do carries out and records an operation.
func (f *FS) do(o op) {
	f.log = append(f.log, o)
	apply(f.nodes, o)
}

func (f *FS) add(n node) int {
	f.nodes = append(f.nodes, n)
	return len(f.nodes) - 1
}

func refused(kind Kind, name string, err error) error {
	return &fs.PathError{Op: string(kind), Path: name, Err: err}
}

// OpenFile implements datafile.FS.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (datafile.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, base, n, err := f.find(name)
	if err == nil {
		err = f.fault(Open)
	}
	if err == nil && n < 0 && flag&os.O_CREATE == 0 {
		err = fs.ErrNotExist
	}
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	if err == nil && n >= 0 && f.nodes[n].names != nil && writable {
		err = syscall.EISDIR
	}
	if err != nil {
		return nil, refused(Open, name, err)
	}
	if n < 0 {
		n = f.add(node{})
		f.do(op{kind: Create, in: folder, name: base, made: n})
	} else if flag&os.O_TRUNC != 0 && len(f.nodes[n].data) > 0 {
		f.do(op{kind: Truncate, in: n})
	}
	return &file{fs: f, node: n, name: name, writable: writable, atEnd: flag&os.O_APPEND != 0}, nil
}

// Mkdir implements datafile.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, base, n, err := f.find(name)
	if err == nil {
		err = f.fault(Mkdir)
	}
	if err == nil && n >= 0 {
		err = fs.ErrExist
	}
	if err != nil {
		return refused(Mkdir, name, err)
	}
	f.do(op{kind: Mkdir, in: folder, name: base, made: f.add(node{names: map[string]int{}})})
	return nil
}

// Rename implements datafile.FS.
func (f *FS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, base, n, err := f.find(from)
	if err == nil {
		err = f.fault(Rename)
	}
	if err == nil && n < 0 {
		err = fs.ErrNotExist
	}
	if err == nil && filepath.Dir(from) != filepath.Dir(to) {
		err = errors.ErrUnsupported
	}
	if err != nil {
		return refused(Rename, from, err)
	}
	f.do(op{kind: Rename, in: folder, name: base, to: filepath.Base(to), made: n})
	return nil
}

// Remove implements datafile.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, base, n, err := f.find(name)
	if err == nil {
		err = f.fault(Remove)
	}
	switch {
	case err != nil:
	case n < 0:
		err = fs.ErrNotExist
	case len(f.nodes[n].names) > 0:
		err = syscall.ENOTEMPTY
	}
	if err != nil {
		return refused(Remove, name, err)
	}
	f.do(op{kind: Remove, in: folder, name: base})
	return nil
}

// ReadFile returns what the cache shows of a file, past all faults.
func (f *FS) ReadFile(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _, n, err := f.find(name)
	if err == nil && n < 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, refused(Read, name, err)
	}
	return bytes.Clone(f.nodes[n].data), nil
}

// Names returns everything that is there, as sorted paths; those of folders end
// with a slash.
func (f *FS) Names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return paths(f.nodes, root, "/")
}

func paths(all []node, folder int, prefix string) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(all[folder].names)) {
		n := all[folder].names[name]
		if all[n].names == nil {
			list = append(list, prefix+name)
			continue
		}
		list = append(list, prefix+name+"/")
		list = append(list, paths(all, n, prefix+name+"/")...)
	}
	return list
}

// file is an open file or folder.
type file struct {
	fs       *FS
	node     int
	name     string
	writable bool
	atEnd    bool
	at       int64 // of the next Write
}

func (f *file) Close() error { return nil }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.fault(Read); err != nil {
		return 0, refused(Read, f.name, err)
	}
	data := f.fs.nodes[f.node].data
	if off >= int64(len(data)) {
		return 0, io.EOF
	}
	n := copy(p, data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Write(p []byte) (int, error) {
	if f.atEnd {
		info, _ := f.Stat()
		f.at = info.Size()
	}
	n, err := f.WriteAt(p, f.at)
	f.at += int64(n)
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if !f.writable {
		return 0, refused(Write, f.name, syscall.EBADF)
	}
	failed := f.fs.fault(Write)
	if failed != nil {
		p = p[:len(p)/2]
		failed = refused(Write, f.name, failed)
	}
	if len(p) > 0 {
		f.fs.do(op{kind: Write, in: f.node, off: off, data: bytes.Clone(p)})
	}
	return len(p), failed
}

func (f *file) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.fault(Truncate)
	if err == nil && !f.writable {
		err = syscall.EINVAL
	}
	if err != nil {
		return refused(Truncate, f.name, err)
	}
	f.fs.do(op{kind: Truncate, in: f.node, off: size})
	return nil
}

func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.fault(Sync)
	if err == nil || !errors.Is(err, ErrKilled) {
		f.fs.do(op{kind: Sync, in: f.node, failed: err != nil})
	}
	if err != nil {
		return refused(Sync, f.name, err)
	}
	return nil
}

func (f *file) Stat() (fs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.fs.nodes[f.node]
	return info{name: filepath.Base(f.name), size: int64(len(n.data)), dir: n.names != nil}, nil
}

type info struct {
	name string
	size int64
	dir  bool
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// apply carries out an operation on all nodes.
func apply(all []node, o op) {
	n := &all[o.in]
	switch o.kind {
	case Create, Mkdir:
		n.names[o.name] = o.made
	case Rename:
		// The name before may be gone: its making was lost.
		delete(n.names, o.name)
		n.names[o.to] = o.made
	case Remove:
		delete(n.names, o.name)
	case Truncate:
		n.data = resize(n.data, int(o.off))
	case Write:
		end := int(o.off) + len(o.data)
		n.data = resize(n.data, max(len(n.data), end))
		copy(n.data[o.off:], o.data)
	}
}

func resize(data []byte, size int) []byte {
	if size <= len(data) {
		return data[:size]
	}
	return append(data, make([]byte, size-len(data))...)
}
