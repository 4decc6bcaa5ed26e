// Package datafile writes the few small files that a device keeps on its data
// partition: journal, TUF metadata, boot attempts, the ledger's log.
//
// It is the one place of the device program that makes, replaces, extends and
// deletes files; .ci/lint.sh keeps others from it. Disks and partitions are
// package partition's.
//
// What it asks of the file system is what ext4 with its journal does: a rename is
// whole or did not happen, a sector is written whole or not at all, data is durable after
// Sync of its file, and a name (made, renamed or removed) after Sync of its folder. In
// the absence of a Sync anything may be lost, in any order: also the data of a file whose
// new name was kept. Package datafiletest is such a file system, losing power.
//
// A file is replaced through one beside it, ".NAME.new". A power cut can leave that
// behind; the next replacement writes over it, and nobody reads it.
//
// Nothing here locks: whoever writes a file from two places has to see to that.
package datafile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// FS is what this package needs of a file system; [OS] is the real one. Errors are
// as in package os, and can be told apart with errors.Is.
type FS interface {
	// OpenFile is os.OpenFile. A folder is opened to be synced only.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Mkdir(name string, perm fs.FileMode) error
	Rename(from, to string) error
	Remove(name string) error
}

// File is an open file, as *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.WriteCloser
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Sync() error
}

// OS is the file system of the machine.
type OS struct{}

var _ FS = OS{}

// ErrNoFile means that something else is where a file should be: a pipe, a link, a
// device. Somebody had the disk in hand; callers do as if the file were damaged.
var ErrNoFile = errors.New("not a regular file")

// OpenFile implements FS. It opens files and folders only: a pipe would hold up the
// boot for ever, and a link lead a write to any device.
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, perm)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) { // a link; a pipe nobody reads
		return nil, fmt.Errorf("%w: %w", ErrNoFile, err)
	}
	if err != nil {
		return nil, err // and not a File that holds a nil
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = fmt.Errorf("open %s: %w: %s", name, ErrNoFile, info.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Mkdir implements FS.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// Replace makes content the whole content of the file at path, which need not
// exist. Its folder must.
//
// When Replace returns nil, the new content is on the medium. If it fails, or the
// power does, the file has the old content or the new one, whole (if there was none, it
// may be missing). Repeating it is safe, and needed for the promise.
func Replace(fsys FS, path string, content []byte, perm fs.FileMode) error {
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	// Beside first, and durable: a cut leaves the old file and a spare one.
	err := write(fsys, next, content, perm)
	if err == nil {
		// Then over. The name may reach the medium at any time from here on, and
		// what it leads to must be there by then.
		err = fsys.Rename(next, path)
	}
	if err != nil {
		// A full disk must not get fuller by the attempt.
		_ = fsys.Remove(next)
		return err
	}
	// Until the folder is durable a cut brings the old file back.
	return syncFolder(fsys, path)
}

// write makes a file with content and syncs it.
func write(fsys FS, path string, content []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Append adds a line, which ends with a line feed, to the file at path. Without a
// file it makes one; its folder must exist.
//
// When Append returns nil, the line is on the medium. If it fails, or the power does,
// the lines from before are whole, and the new one is there, or not, or torn: a sum in the line
// has to tell. Repeating it is safe; the line may then be there twice.
func Append(fsys FS, path string, line []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// A new file appears with its first line or not at all.
		return Replace(fsys, path, line, perm)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(extend(f, line), f.Close()); err != nil {
		return err
	}
	// The file may be there and its name not be durable: Append failed, or its
	// program was killed, right after the file was made.
	return syncFolder(fsys, path)
}

func extend(f File, line []byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], size-1); err != nil {
			return err
		}
		// A power cut can leave half a line at the end. The line feed keeps it from
		// taking the new line along.
		if last[0] != '\n' {
			line = append([]byte{'\n'}, line...)
		}
	}
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		// The kernel may show what the medium lost, and a line that follows would be
		// torn by what is there instead. So the next one starts where this one did.
		_ = f.Truncate(size)
	}
	return err
}

// Create opens the file at path for reading and writing, and makes it if need be;
// if it is shorter than size, zeros are added. Its folder must exist.
//
// When Create returns nil, name and size are on the medium. If it fails, or the power
// does, what was in the file is still in it, and the file may be missing, or shorter
// than size. Repeating it is safe.
func Create(fsys FS, path string, size int64, perm fs.FileMode) (File, error) {
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE, perm)
	if err != nil {
		return nil, err
	}
	if err := atLeast(f, size); err != nil {
		f.Close()
		return nil, err
	}
	if err := syncFolder(fsys, path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func atLeast(f File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < size {
		if err := f.Truncate(size); err != nil {
			return err
		}
	}
	// Also if the size is right: a Create that failed may have left it so.
	return f.Sync()
}

// Delete removes the file at path. None there is no error.
//
// When Delete returns nil, the file is gone from the medium. If it fails, or the
// power does, it is whole or gone. Repeating it is safe.
func Delete(fsys FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Also if there was none: a Delete that failed may have left it so.
	return syncFolder(fsys, path)
}

// Mkdir makes the folder at path. One there is no error; the folder above must
// exist.
//
// When Mkdir returns nil, the folder is on the medium. If it fails, or the power
// does, it may be there or not. Repeating it is safe.
func Mkdir(fsys FS, path string, perm fs.FileMode) error {
	// That what is there is a folder shows when it is used.
	if err := fsys.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also if there was one: a Mkdir that failed may have left it so.
	return syncFolder(fsys, path)
}

// syncFolder makes the names in the folder of path durable.
func syncFolder(fsys FS, path string) error {
	f, err := fsys.OpenFile(filepath.Dir(path), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
