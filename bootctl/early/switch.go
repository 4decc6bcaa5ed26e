package early

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// handOver makes the new root the root and becomes its /sbin/init. It returns
// only if that was not possible.
func (b *boot) handOver() error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := unix.Mount(dir, sysroot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	old, err := os.Open("/")
	if err != nil {
		return err
	}
	defer old.Close()
	// An initramfs cannot be unmounted (it is the kernel's first mount); the
	// new root is moved over it, and what it holds is removed for its memory.
	if err := os.Chdir(sysroot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	b.root = ""
	if err := os.Chdir("/"); err != nil {
		return err
	}
	removeAll(old)

	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux"}
	if b.dog != nil {
		env = append(env, "WATCHDOG_FD="+strconv.Itoa(b.dog.FD()))
	}
	const program = "/sbin/init"
	return fmt.Errorf("start %s: %w", program, unix.Exec(program, []string{program}, env))
}

// removeAll empties the directory without leaving its file system: the mounts
// below it moved to the new root. What cannot be removed costs memory, nothing else.
func removeAll(dir *os.File) {
	var here unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &here) != nil {
		return
	}
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		var at unix.Stat_t
		if unix.Fstatat(int(dir.Fd()), name, &at, unix.AT_SYMLINK_NOFOLLOW) != nil || at.Dev != here.Dev {
			continue
		}
		if at.Mode&unix.S_IFMT != unix.S_IFDIR {
			_ = unix.Unlinkat(int(dir.Fd()), name, 0)
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		sub := os.NewFile(uintptr(fd), name)
		removeAll(sub)
		sub.Close()
		_ = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}
}
