//go:build !linux

package mqtt

import "syscall"

// userTimeout has no equivalent here; the write deadline of guard is left.
func userTimeout(_, _ string, _ syscall.RawConn) error { return nil }
