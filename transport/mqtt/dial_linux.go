package mqtt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// userTimeout makes the kernel give up a connection whose data nobody has
// acknowledged for writeTimeout, instead of after a quarter of an hour.
func userTimeout(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(writeTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return serr
}
