package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// Root writes the tree as an ext4 file system to a new file, and returns its
// size, a multiple of 16 MiB: a release that is a little larger than the one before
// keeps the same geometry, and so the same bytes.
//
// The file system has neither journal nor checksums: it is never written, and the
// verity tree covers every byte of it. It is filled by debugfs, in sorted order
// and with times and owners from the tree, and not by mke2fs -d: that takes
// change times and the order of folders from the desk's file system (e2fsprogs
// 1.47.0), so that no two builds are equal, and owners that only root can give.
func Root(ctx context.Context, t *Tree, uuid [16]byte, out string) (int64, error) {
	return root(ctx, t, uuid, nil, out)
}

// RootLike is Root, but leaves what an older root image has too where it is there: folders and files keep their
// inodes, and files and folders their blocks, as far as they need them. The image depends on the older one as it does
// on the tree. It may follow any ext4 image of 4 KiB blocks, best one that Root or RootLike made; ErrPlaces means
// that it cannot.
func RootLike(ctx context.Context, t *Tree, uuid [16]byte, like, out string) (int64, error) {
	l, err := layout(like)
	if err != nil {
		return 0, fmt.Errorf("make root file system: %w", err)
	}
	return root(ctx, t, uuid, l, out)
}

func root(ctx context.Context, t *Tree, uuid [16]byte, like *files.Ext4Layout, out string) (int64, error) {
	content, inodes := t.size()
	inodes = align(inodes+inodes/4, 4096)
	size := align(content+content/32+int64(inodes)*256+8<<20, 16<<20)
	if like != nil {
		// Another geometry would move the tables of inodes, and so all that lies behind them.
		size, inodes = max(size, like.Blocks*pageSize), max(inodes, int(like.Inodes))
	}
	err := makeExt4(ctx, ext4{
		tree: t, like: like, uuid: uuid, label: "root", size: size, inodes: inodes,
		features: "extent,filetype,sparse_super,large_file,huge_file,flex_bg,dir_nlink,extra_isize,ext_attr",
	}, out)
	if err != nil {
		return 0, fmt.Errorf("make root file system: %w", err)
	}
	return size, nil
}

// Data writes the tree as the ext4 file system of a data partition of size bytes to a
// new file: with journal and checksums, since it lives on the device.
func Data(ctx context.Context, t *Tree, uuid [16]byte, size int64, out string) error {
	err := makeExt4(ctx, ext4{
		tree: t, uuid: uuid, label: "data", size: size, inodes: int(size / (16 << 10)),
		features: "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
	}, out)
	if err != nil {
		return fmt.Errorf("make data file system: %w", err)
	}
	return nil
}

// placed returns the commands that put everything where the older file system has it.
func (e ext4) placed(name string) ([]byte, error) {
	empty, err := layout(name)
	if err != nil {
		return nil, err
	}
	p, err := e.tree.plan(empty, e.like)
	if err != nil {
		return nil, err
	}
	return e.tree.placed(empty, p)
}

// layout reads where an image has its things.
func layout(name string) (*files.Ext4Layout, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l, err := files.Layout(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPlaces, name, err)
	}
	return l, nil
}

type ext4 struct {
	tree     *Tree
	like     *files.Ext4Layout // nil: nothing to follow
	uuid     [16]byte
	label    string
	size     int64
	inodes   int
	features string
}

func makeExt4(ctx context.Context, e ext4, out string) error {
	f, err := os.OpenFile(out, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(e.size), f.Close())
	if err != nil {
		return err
	}
	id := uuidString(e.uuid)
	// Everything that /etc/mke2fs.conf of the desk could decide is said here.
	if _, err := tool(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-N", strconv.Itoa(e.inodes),
		"-O", "none,"+e.features, "-U", id, "-L", e.label,
		"-E", "hash_seed="+id+",lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0", out); err != nil {
		return err
	}
	if err := e.tree.check(); err != nil {
		return err
	}
	var script []byte
	if e.like == nil {
		script, err = e.tree.script()
	} else {
		script, err = e.placed(out)
	}
	if err != nil {
		return err
	}
	commands := filepath.Join(e.tree.stage, "debugfs-"+e.label)
	if err := os.WriteFile(commands, script, 0o600); err != nil {
		return err
	}
	stderr, err := tool(ctx, "debugfs", "-w", "-f", commands, out)
	if err != nil {
		return err
	}
	// debugfs succeeds whatever happens; what went wrong it only says.
	for line := range strings.Lines(stderr) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "debugfs 1.") {
			return fmt.Errorf("debugfs: %s", line)
		}
	}
	return nil
}

// tool runs a program of e2fsprogs with its clock stopped, and returns what it
// said on its standard error.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		// Not in the path of ordinary users on Debian.
		if p, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			return "", fmt.Errorf("%s not found; install the package e2fsprogs", name)
		}
	}
	cmd := exec.CommandContext(ctx, p, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MKE2FS_CONFIG=/dev/null", "DEBUGFS_PAGER=cat",
		fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", Epoch.Unix()))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stderr.String(), nil
}

// script returns the debugfs commands that make the tree in an empty file system.
func (t *Tree) script() ([]byte, error) {
	var b strings.Builder
	w := &writer{t: t, b: &b}
	for _, p := range t.paths() {
		if t.nodes[p].link != "" {
			continue // when all files are there
		}
		if err := w.make(p); err != nil {
			return nil, err
		}
		w.attributes(p)
		if err := w.xattrs(p); err != nil {
			return nil, err
		}
	}
	w.links()
	return []byte(b.String()), nil
}

// writer writes debugfs commands.
type writer struct {
	t      *Tree
	b      *strings.Builder
	in     string // the folder that debugfs is in
	values int    // of extended attributes, so far
}

// make makes a thing that has no other name yet, without what is known of it besides its content.
func (w *writer) make(p string) error {
	if err := plainName(p); err != nil {
		return err
	}
	n := w.t.nodes[p]
	dir, name := path.Dir(p), quote(path.Base(p))
	if dir != w.in && p != "/" {
		fmt.Fprintf(w.b, "cd %s\n", quote(dir))
		w.in = dir
	}
	switch kind := n.mode & unix.S_IFMT; {
	case p == "/", p == "/lost+found":
	case kind == unix.S_IFDIR:
		fmt.Fprintf(w.b, "mkdir %s\n", name)
	case kind == unix.S_IFREG:
		fmt.Fprintf(w.b, "write %s %s\n", quote(n.source), name)
	case kind == unix.S_IFLNK:
		fmt.Fprintf(w.b, "symlink %s %s\n", name, quote(n.target))
	case kind == unix.S_IFCHR:
		fmt.Fprintf(w.b, "mknod %s c %d %d\n", name, n.major, n.minor)
	case kind == unix.S_IFBLK:
		fmt.Fprintf(w.b, "mknod %s b %d %d\n", name, n.major, n.minor)
	case kind == unix.S_IFIFO:
		fmt.Fprintf(w.b, "mknod %s p\n", name)
	default:
		return fmt.Errorf("%s: mode %#o", p, n.mode)
	}
	return nil
}

// plainName refuses what would end a line of debugfs commands.
func plainName(p string) error {
	if strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("name %q has control characters", p)
	}
	return nil
}

func (w *writer) attributes(p string) {
	n := w.t.nodes[p]
	set := func(field string, v any) { fmt.Fprintf(w.b, "sif %s %s %v\n", quote(p), field, v) }
	set("mode", fmt.Sprintf("%#o", n.mode))
	if n.uid != 0 {
		set("uid", n.uid)
	}
	if n.gid != 0 {
		set("gid", n.gid)
	}
	set("mtime", fmt.Sprintf("@%d", n.mtime))
}

func (w *writer) xattrs(p string) error {
	n := w.t.nodes[p]
	for _, x := range slices.Sorted(maps.Keys(n.xattrs)) {
		file := filepath.Join(w.t.stage, fmt.Sprintf("xattr-%d", w.values))
		w.values++
		if err := os.WriteFile(file, []byte(n.xattrs[x]), 0o600); err != nil {
			return err
		}
		fmt.Fprintf(w.b, "ea_set -f %s %s %s\n", quote(file), quote(p), quote(x))
	}
	return nil
}

// links gives files their further names.
func (w *writer) links() {
	links := make(map[string]int)
	for _, n := range w.t.nodes {
		if n.link != "" {
			links[n.link]++
		}
	}
	fmt.Fprintf(w.b, "cd /\n")
	for _, p := range w.t.paths() {
		if n := w.t.nodes[p]; n.link != "" {
			fmt.Fprintf(w.b, "cd %s\nln %s %s\n", quote(path.Dir(p)), quote(n.link), quote(path.Base(p)))
		} else if extra := links[p]; extra > 0 {
			// debugfs leaves the count to whoever makes the link.
			fmt.Fprintf(w.b, "sif %s links_count %d\n", quote(p), 1+extra)
		}
	}
}

// check refuses a tree that debugfs cannot be told of.
func (t *Tree) check() error {
	for _, p := range t.paths() {
		if err := plainName(p); err != nil {
			return err
		}
		if n := t.nodes[p]; n.link != "" && t.nodes[n.link] == nil {
			return fmt.Errorf("%s is a link to %s, which is not there", p, n.link)
		}
	}
	return nil
}

// quote makes one argument of s for debugfs's command line.
func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
