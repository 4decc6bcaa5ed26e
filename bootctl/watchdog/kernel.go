package watchdog

import (
	"errors"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is a file descriptor of the watchdog driver. The API's integers are C
// ints on every architecture; x/sys' IoctlGetInt reads a Go int, which is wrong
// where a long is longer and the byte order big-endian.
type kernel int

func (k kernel) info() (*unix.WatchdogInfo, error) {
	return retry(func() (*unix.WatchdogInfo, error) { return unix.IoctlGetWatchdogInfo(int(k)) })
}

func (k kernel) get(request uint) (int32, error) {
	var v int32
	err := k.ioctl(request, &v)
	return v, err
}

func (k kernel) set(request uint, value int32) error { return k.ioctl(request, &value) }

func (k kernel) ioctl(request uint, v *int32) error {
	_, err := retry(func() (struct{}, error) {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k), uintptr(request), uintptr(unsafe.Pointer(v)))
		if errno != 0 {
			return struct{}{}, errno
		}
		return struct{}{}, nil
	})
	return err
}

func (k kernel) write(p []byte) error {
	n, err := retry(func() (int, error) { return unix.Write(int(k), p) })
	if err == nil && n < len(p) {
		return io.ErrShortWrite
	}
	return err
}

func (k kernel) inherit() error {
	_, err := unix.FcntlInt(uintptr(k), unix.F_SETFD, 0)
	return err
}

func (k kernel) close() error { return unix.Close(int(k)) }

// retry repeats a system call that a signal interrupted; Go's runtime sends
// itself signals to switch goroutines.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
