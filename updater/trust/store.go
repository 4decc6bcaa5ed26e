package trust

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tandem-ota/tandem/partition/datafile"
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

// Dir is a Store in a folder, which must exist on a file system such as package
// datafile asks for.
type Dir string

var _ Store = Dir("")

// Get implements Store.
func (d Dir) Get(name string) ([]byte, error) { return d.on(datafile.OS{}).Get(name) }

// Put implements Store. After an error either the old or the new file is there;
// repeating it is safe.
func (d Dir) Put(name string, data []byte) error { return d.on(datafile.OS{}).Put(name, data) }

// Delete implements Store. After an error the file may be there; repeating it is
// safe.
func (d Dir) Delete(name string) error { return d.on(datafile.OS{}).Delete(name) }

func (d Dir) on(fsys datafile.FS) folder { return folder{fsys, string(d)} }

// folder is a Dir on a file system.
type folder struct {
	fsys datafile.FS
	path string
}

func (f folder) place(name string) (string, error) {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\\\x00") {
		return "", fmt.Errorf("metadata name %.80q: %w", name, fs.ErrInvalid)
	}
	return filepath.Join(f.path, name), nil
}

// Get implements Store.
func (f folder) Get(name string) ([]byte, error) {
	path, err := f.place(name)
	if err != nil {
		return nil, err
	}
	file, err := f.fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// One byte more than allowed is enough for the reader to refuse it.
	return io.ReadAll(io.NewSectionReader(file, 0, MaxMetadata+1))
}

// Put implements Store.
func (f folder) Put(name string, data []byte) error {
	path, err := f.place(name)
	if err != nil {
		return err
	}
	if err := datafile.Replace(f.fsys, path, data, 0o600); err != nil {
		return fmt.Errorf("store metadata: %w", err)
	}
	return nil
}

// Delete implements Store.
func (f folder) Delete(name string) error {
	path, err := f.place(name)
	if err != nil {
		return err
	}
	if err := datafile.Delete(f.fsys, path); err != nil {
		return fmt.Errorf("store metadata: %w", err)
	}
	return nil
}
