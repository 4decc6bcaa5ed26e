package partition

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrBusy means that somebody else holds the device or file: a mount, a
// device-mapper table (the running slot), another installation. Waiting may
// help; overriding never does.
var ErrBusy = errors.New("in use")

// directAlign satisfies the alignment that O_DIRECT asks of any disk (at most
// the logical sector, 4096 bytes on today's disks).
const directAlign = 4096

// File is a Disk on a block device or a regular file. Its methods may be called
// from several goroutines.
type File struct {
	file   *os.File
	block  bool
	sector int
	size   int64

	mu     sync.Mutex // guards what follows
	direct *os.File   // for reading past the page cache; nil until used, and where it cannot be
	tried  bool
	bounce []byte // aligned, LeafSize and one block at either end
}

// OpenFile opens a block device or regular file for reading and writing, for
// this holder alone. It is ErrBusy if the device or one that overlaps it (a
// partition of it, the disk it is on) is mounted or held, or the file is locked
// by another OpenFile.
//
// The exclusion is the kernel's and so holds across processes and ends with
// the process: O_EXCL on block devices, flock on files.
func OpenFile(path string) (*File, error) { return open(path, unix.O_RDWR) }

// OpenRead opens a block device or regular file for reading only, whoever else
// uses it. WriteAt fails.
func OpenRead(path string) (*File, error) { return open(path, unix.O_RDONLY) }

func open(path string, mode int) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	block := info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
	if !block && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: neither a block device nor a regular file", path)
	}
	flags := mode | unix.O_CLOEXEC
	if block && mode == unix.O_RDWR {
		flags |= unix.O_EXCL
	}
	file, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("open %s: %w", path, ErrBusy)
	} else if err != nil {
		return nil, err
	}
	f := &File{file: file, block: block, sector: 512, size: info.Size()}
	if err := f.prepare(mode == unix.O_RDWR); err != nil {
		file.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

// prepare finds size and sector of a device, and locks a file.
func (f *File) prepare(exclusive bool) error {
	// The name may have become another thing between Stat and Open.
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	if isBlock := info.Mode()&os.ModeDevice != 0; isBlock != f.block {
		return errors.New("changed its kind while being opened")
	}
	if !f.block {
		f.size = info.Size()
		if !exclusive {
			return nil
		}
		err := f.control(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrBusy
		}
		return err
	}
	return f.control(func(fd int) error {
		var size uint64 // the ioctl stores 8 bytes on 32-bit machines too
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
			return fmt.Errorf("size of the device: %w", errno)
		}
		f.size = int64(size)
		sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("sector size of the device: %w", err)
		}
		f.sector = sector
		return nil
	})
}

// control runs do with the descriptor, which stays open meanwhile.
func (f *File) control(do func(fd int) error) error {
	raw, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// Size returns the size in bytes at the time of opening.
func (f *File) Size() int64 { return f.size }

// SectorSize returns the logical sector of the device in bytes, 512 for a file.
func (f *File) SectorSize() int { return f.sector }

// Name returns the path that was opened.
func (f *File) Name() string { return f.file.Name() }

// ReadAt reads through the page cache.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

// WriteAt writes through the page cache; it never makes a file longer.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > f.size-off {
		return 0, fmt.Errorf("write %s: %d bytes at %d of %d: %w", f.Name(), len(p), off, f.size, ErrOutside)
	}
	return f.file.WriteAt(p, off)
}

// Sync makes everything written so far durable, the disk's own cache included.
//
// If it fails, what was written since the last good Sync may be lost, and the
// kernel forgets that it was: a second Sync would report success. So the cache
// is dropped here, later reads show what the medium holds, and the caller has to
// write again.
func (f *File) Sync() error {
	err := f.file.Sync()
	if err != nil {
		return errors.Join(err, f.DropCache())
	}
	return nil
}

// DropCache drops clean pages of the page cache, so that the next reads come
// from the medium. Dirty pages are written first. On a file it is a request
// that the kernel may ignore (tmpfs does); ReadMedium is certain.
func (f *File) DropCache() error {
	return f.control(func(fd int) error {
		if f.block {
			if err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0); err != nil {
				return fmt.Errorf("drop cache of %s: %w", f.Name(), err)
			}
			return nil
		}
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("drop cache of %s: %w", f.Name(), err)
		}
		return nil
	})
}

// ReadMedium reads past the page cache: with O_DIRECT where the file system and
// the driver can, otherwise after DropCache.
func (f *File) ReadMedium(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.tried {
		f.tried = true
		// A second descriptor of the same inode; by path it might be another one by
		// now. Not every file system can, and then there is nothing to report.
		f.direct, _ = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.file.Fd()), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	}
	if f.direct != nil {
		n, err := f.readDirect(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		f.direct.Close()
		f.direct = nil
	}
	if err := f.DropCache(); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, off)
}

// readDirect reads through an aligned buffer, a leaf at a time.
func (f *File) readDirect(p []byte, off int64) (done int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", f.Name(), off, ErrOutside)
	}
	if f.bounce == nil {
		f.bounce = aligned(LeafSize + 2*directAlign)
	}
	for done < len(p) {
		at := off + int64(done)
		if at >= f.size {
			return done, io.EOF
		}
		skip := int(at % directAlign)
		want := min(len(p)-done, LeafSize)
		whole := (skip + want + directAlign - 1) / directAlign * directAlign
		n, err := f.direct.ReadAt(f.bounce[:whole], at-int64(skip))
		// The rounded-up end may lie behind the end of the device: then the kernel
		// returns less, and os.File reports io.EOF.
		if n > skip {
			done += copy(p[done:done+want], f.bounce[skip:n])
		}
		if n < skip+want {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return done, err
		}
	}
	return done, nil
}

// aligned returns n bytes that start at a multiple of directAlign. The garbage
// collector does not move them.
func aligned(n int) []byte {
	b := make([]byte, n+directAlign)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (directAlign - 1)
	return b[skip : skip+n : skip+n]
}

// Close releases the device. It does not sync.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried = true
	if f.direct != nil {
		f.direct.Close()
		f.direct = nil
	}
	return f.file.Close()
}
