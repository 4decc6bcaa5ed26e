package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is a root file system before it has the form of an image: every file with
// the owner that it shall have on the device, whoever builds the image. The
// content stays where it is on the desk until the image is written.
type Tree struct {
	nodes map[string]*node // by absolute path
	stage string           // folder for content that came out of an archive
	limit time.Time
}

type node struct {
	mode     uint32 // type and permissions as in stat(2)
	uid, gid int
	mtime    int64
	source   string // of a regular file: where its content is on the desk
	size     int64
	target   string // of a symbolic link
	link     string // path of the node that this is another name of
	major    uint32
	minor    uint32
	xattrs   map[string]string
}

// NewTree returns an empty tree. Content that is not in a file of its own is put
// into the folder stage, which must outlive the tree. No file's time is later
// than limit, so that what a build has just made does not carry the time of the
// build; Epoch as limit gives every file the same time.
func NewTree(stage string, limit time.Time) *Tree {
	t := &Tree{nodes: make(map[string]*node), stage: stage, limit: limit}
	t.nodes["/"] = t.node(unix.S_IFDIR|0o755, limit)
	return t
}

func (t *Tree) node(mode uint32, mtime time.Time) *node {
	if mtime.After(t.limit) {
		mtime = t.limit
	}
	return &node{mode: mode, mtime: max(mtime.Unix(), 0)}
}

// AddFile adds or replaces a file that belongs to root. Its folders are made.
func (t *Tree) AddFile(f File) error {
	name := path.Clean("/" + f.Path)
	t.parents(name)
	n := t.node(unix.S_IFREG|uint32(f.Mode.Perm()), t.limit)
	if err := t.content(n, strings.NewReader(string(f.Data))); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	t.nodes[name] = n
	return nil
}

func (t *Tree) parents(name string) {
	for d := path.Dir(name); d != "/"; d = path.Dir(d) {
		if t.nodes[d] == nil {
			t.nodes[d] = t.node(unix.S_IFDIR|0o755, t.limit)
		}
	}
}

// content puts r into a file of the stage.
func (t *Tree) content(n *node, r io.Reader) error {
	f, err := os.CreateTemp(t.stage, "file-")
	if err != nil {
		return err
	}
	defer f.Close()
	if n.size, err = io.Copy(f, r); err != nil {
		return err
	}
	n.source = f.Name()
	return f.Close()
}

// AddDir adds what is below the folder dir. Everything belongs to root, since a
// folder on the desk belongs to whoever made it: a system with other owners
// comes as an archive. Device nodes, sockets and extended attributes are not
// taken over for the same reason, and are refused or left out.
func (t *Tree) AddDir(dir string) error {
	links := make(map[[2]uint64]string)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := path.Clean("/" + filepath.ToSlash(rel))
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		n := t.node(st.Mode, time.Unix(st.Mtim.Unix()))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFREG:
			id := [2]uint64{uint64(st.Dev), st.Ino}
			if first, ok := links[id]; ok && st.Nlink > 1 {
				n.link = first
			}
			links[id] = name
			n.size = st.Size
			if n.source, err = filepath.Abs(p); err != nil {
				return err
			}
		case unix.S_IFLNK:
			if n.target, err = os.Readlink(p); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: a device, pipe or socket; use an archive", p)
		}
		t.nodes[name] = n
		return nil
	})
	if err != nil {
		return fmt.Errorf("read tree: %w", err)
	}
	return nil
}

// AddTar adds what is in an archive: owners by number, device nodes, hard links
// and extended attributes (file capabilities) included. The archive is trusted
// no further than its syntax: nothing is written outside of the stage.
func (t *Tree) AddTar(r io.Reader) error {
	a := tar.NewReader(r)
	for {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := t.addHeader(h, a); err != nil {
			return fmt.Errorf("read archive: %s: %w", h.Name, err)
		}
	}
}

func (t *Tree) addHeader(h *tar.Header, content io.Reader) error {
	name := path.Clean("/" + h.Name)
	n := t.node(uint32(h.Mode)&0o7777, h.ModTime)
	n.uid, n.gid = h.Uid, h.Gid
	n.major, n.minor = uint32(h.Devmajor), uint32(h.Devminor)
	switch h.Typeflag {
	case tar.TypeReg:
		n.mode |= unix.S_IFREG
		if err := t.content(n, content); err != nil {
			return err
		}
	case tar.TypeDir:
		n.mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		n.mode |= unix.S_IFLNK
		n.target = h.Linkname
	case tar.TypeLink:
		n.link = path.Clean("/" + h.Linkname)
		first := t.nodes[n.link]
		if first == nil {
			return fmt.Errorf("link to %s, which the archive does not hold before it", n.link)
		}
		if first.link != "" {
			n.link = first.link
		}
		n.mode |= unix.S_IFREG
	case tar.TypeChar:
		n.mode |= unix.S_IFCHR
	case tar.TypeBlock:
		n.mode |= unix.S_IFBLK
	case tar.TypeFifo:
		n.mode |= unix.S_IFIFO
	default:
		return fmt.Errorf("entry of type %q", h.Typeflag)
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if n.xattrs == nil {
				n.xattrs = make(map[string]string)
			}
			n.xattrs[x] = v
		}
	}
	t.parents(name)
	t.nodes[name] = n
	return nil
}

// paths returns all paths, each folder before what is in it.
func (t *Tree) paths() []string {
	paths := make([]string, 0, len(t.nodes))
	for p := range t.nodes {
		paths = append(paths, p)
	}
	// By folder and then by name, so that the files of a folder lie together.
	sort.Slice(paths, func(i, j int) bool {
		di, dj := path.Dir(paths[i]), path.Dir(paths[j])
		if di != dj {
			return di < dj
		}
		return paths[i] < paths[j]
	})
	return paths
}

// size estimates the file system that the tree needs: bytes of content in whole
// blocks, and the number of inodes.
func (t *Tree) size() (bytes int64, inodes int) {
	for _, n := range t.nodes {
		if n.link != "" {
			continue
		}
		inodes++
		switch n.mode & unix.S_IFMT {
		case unix.S_IFREG:
			bytes += align(n.size, int64(pageSize))
		case unix.S_IFDIR:
			bytes += pageSize
		}
		if len(n.target) >= 60 || len(n.xattrs) > 0 {
			bytes += pageSize // does not fit into the inode
		}
	}
	return bytes, inodes
}

// SourceDate returns the time that SOURCE_DATE_EPOCH names
// (https://reproducible-builds.org/specs/source-date-epoch), or Epoch.
func SourceDate(env string) (time.Time, error) {
	if env == "" {
		return Epoch, nil
	}
	n, err := strconv.ParseInt(env, 10, 64)
	if err != nil || n < 0 {
		return Epoch, fmt.Errorf("SOURCE_DATE_EPOCH=%q: want seconds since 1970", env)
	}
	return time.Unix(n, 0).UTC(), nil
}
