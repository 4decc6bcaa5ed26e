package trust

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Store keeps metadata that a device has accepted. Names are as in TUF
// ("timestamp.json", "3.root.json"), without separators.
//
// Get returns fs.ErrNotExist for what was never put. Put replaces the whole
// file or leaves the old one, and is durable when it returns; Delete of what is
// not there is no error. What is read back is verified again, so that a store
// may lose or corrupt files: the device then falls back to the root that it
// was built with, and forgets which versions it has seen.
type Store interface {
	Get(name string) ([]byte, error)
	Put(name string, data []byte) error
	Delete(name string) error
}

// Dir is a Store in a folder, which must exist on a file system that keeps
// renames in order with fsync.
type Dir string

var _ Store = Dir("")

func (d Dir) path(name string) (string, error) {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\\\x00") {
		return "", fmt.Errorf("metadata name %.80q: %w", name, fs.ErrInvalid)
	}
	return filepath.Join(string(d), name), nil
}

// Get implements Store.
func (d Dir) Get(name string) ([]byte, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One byte more than allowed is enough for the reader to refuse it.
	return io.ReadAll(io.LimitReader(f, MaxMetadata+1))
}

// Put implements Store: write beside, sync, rename over, sync the folder. A
// power cut before the rename leaves the old file and a spare one that the next
// Put overwrites; after it, the new file, which was durable by then.
func (d Dir) Put(name string, data []byte) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(string(d), "."+name+".new"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("store metadata: %w", err)
	}
	return d.sync()
}

// Delete implements Store.
func (d Dir) Delete(name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return d.sync()
}

func (d Dir) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("store metadata: %w", err)
	}
	return nil
}
