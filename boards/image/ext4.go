package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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
	content, inodes := t.size()
	inodes = align(inodes+inodes/4, 4096)
	size := align(content+content/32+int64(inodes)*256+8<<20, 16<<20)
	err := makeExt4(ctx, ext4{
		tree: t, uuid: uuid, label: "root", size: size, inodes: inodes,
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

type ext4 struct {
	tree     *Tree
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
	script, err := e.tree.script()
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
	links := make(map[string]int)
	for _, n := range t.nodes {
		if n.link != "" {
			links[n.link]++
		}
	}
	var b bytes.Buffer
	in := ""
	values := 0
	for _, p := range t.paths() {
		if strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("name %q has control characters", p)
		}
		n := t.nodes[p]
		dir, name := path.Dir(p), quote(path.Base(p))
		if dir != in && p != "/" {
			fmt.Fprintf(&b, "cd %s\n", quote(dir))
			in = dir
		}
		switch kind := n.mode & unix.S_IFMT; {
		case n.link != "":
			if t.nodes[n.link] == nil {
				return nil, fmt.Errorf("%s is a link to %s, which is not there", p, n.link)
			}
			continue // when all files are there
		case p == "/", p == "/lost+found":
		case kind == unix.S_IFDIR:
			fmt.Fprintf(&b, "mkdir %s\n", name)
		case kind == unix.S_IFREG:
			fmt.Fprintf(&b, "write %s %s\n", quote(n.source), name)
		case kind == unix.S_IFLNK:
			fmt.Fprintf(&b, "symlink %s %s\n", name, quote(n.target))
		case kind == unix.S_IFCHR:
			fmt.Fprintf(&b, "mknod %s c %d %d\n", name, n.major, n.minor)
		case kind == unix.S_IFBLK:
			fmt.Fprintf(&b, "mknod %s b %d %d\n", name, n.major, n.minor)
		case kind == unix.S_IFIFO:
			fmt.Fprintf(&b, "mknod %s p\n", name)
		default:
			return nil, fmt.Errorf("%s: mode %#o", p, n.mode)
		}
		set := func(field string, v any) { fmt.Fprintf(&b, "sif %s %s %v\n", quote(p), field, v) }
		set("mode", fmt.Sprintf("%#o", n.mode))
		if n.uid != 0 {
			set("uid", n.uid)
		}
		if n.gid != 0 {
			set("gid", n.gid)
		}
		set("mtime", fmt.Sprintf("@%d", n.mtime))
		names := make([]string, 0, len(n.xattrs))
		for x := range n.xattrs {
			names = append(names, x)
		}
		sort.Strings(names)
		for _, x := range names {
			file := filepath.Join(t.stage, fmt.Sprintf("xattr-%d", values))
			values++
			if err := os.WriteFile(file, []byte(n.xattrs[x]), 0o600); err != nil {
				return nil, err
			}
			fmt.Fprintf(&b, "ea_set -f %s %s %s\n", quote(file), quote(p), quote(x))
		}
	}
	fmt.Fprintf(&b, "cd /\n")
	for _, p := range t.paths() {
		if n := t.nodes[p]; n.link != "" {
			fmt.Fprintf(&b, "cd %s\nln %s %s\n", quote(path.Dir(p)), quote(n.link), quote(path.Base(p)))
		} else if extra := links[p]; extra > 0 {
			// debugfs leaves the count to whoever makes the link.
			fmt.Fprintf(&b, "sif %s links_count %d\n", quote(p), 1+extra)
		}
	}
	return b.Bytes(), nil
}

// quote makes one argument of s for debugfs's command line.
func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
