package release

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// dir is a layout in a folder.
type dir struct {
	root   *os.Root // no name leads out of it, whatever links it contains
	opened []*os.File
}

func openDir(name string) (*dir, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	return &dir{root: root}, nil
}

func (d *dir) open(name string) (section, error) {
	// Each part of the name is looked at without following it: a link inside
	// the folder could still make one blob answer for another, or point at a
	// file that changes.
	for at := range name + "/" {
		if at < len(name) && name[at] != '/' {
			continue
		}
		info, err := d.root.Lstat(name[:at])
		if err != nil {
			return section{}, err
		}
		if at < len(name) && !info.IsDir() || at == len(name) && !info.Mode().IsRegular() {
			return section{}, fmt.Errorf("%w: %s is %s", ErrUnsafe, name[:at], info.Mode().Type())
		}
	}
	// Between the look and the opening the file may have been replaced: without
	// O_NONBLOCK a pipe in its place would block us for ever, and only what the
	// descriptor says counts.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return section{}, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is %s", ErrUnsafe, name, info.Mode().Type())
	}
	if err != nil {
		return section{}, errors.Join(err, f.Close())
	}
	d.opened = append(d.opened, f)
	// The size is fixed here: what is appended later is not part of the release.
	return section{io.NewSectionReader(f, 0, info.Size()), info.Size()}, nil
}

func (d *dir) Close() error {
	err := d.root.Close()
	for _, f := range d.opened {
		err = errors.Join(err, f.Close())
	}
	return err
}

// tarFile is a layout in an uncompressed tar: members are ranges of one file.
type tarFile struct {
	*os.File
	members map[string]section
}

func openTar(name string) (*tarFile, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	t := &tarFile{File: f, members: make(map[string]section)}
	if err := t.index(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

// index notes where each member is. It reads headers only.
func (t *tarFile) index() error {
	info, err := t.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s", ErrUnsafe, info.Mode().Type())
	}
	r := tar.NewReader(t.File)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: tar: %w", ErrFormat, err)
		}
		if n == maxEntries {
			return fmt.Errorf("%w: tar with over %d members", ErrFormat, maxEntries)
		}
		if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || sparse(h) {
			return fmt.Errorf("%w: tar member %.80q, type %q", ErrUnsafe, h.Name, h.Typeflag)
		}
		// Two members of one name: which one counts would depend on the reader.
		if _, ok := t.members[name]; ok {
			return fmt.Errorf("%w: tar member %.80q is there twice", ErrUnsafe, h.Name)
		}
		// archive/tar has read exactly the headers, so that the member's bytes
		// are next in the file; it reports a member that is cut off when it
		// looks for the one after it.
		at, err := t.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		t.members[name] = section{io.NewSectionReader(t.File, at, h.Size), h.Size}
	}
}

// sparse members are not stored as they are read.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (t *tarFile) open(name string) (section, error) {
	s, ok := t.members[name]
	if !ok {
		return section{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return s, nil
}
