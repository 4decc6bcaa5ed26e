package guest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func date(s streams, _ []string) error {
	_, err := fmt.Fprintln(s.out, time.Now().UTC().Format(time.RFC3339))
	return err
}

func environment(s streams, _ []string) error {
	_, err := fmt.Fprintln(s.out, strings.Join(os.Environ(), "\n"))
	return err
}

func hostname(s streams, _ []string) error {
	name, err := os.Hostname()
	fmt.Fprintln(s.out, name)
	return err
}

func uname(s streams, _ []string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	_, err := fmt.Fprintln(s.out, unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Nodename[:]),
		unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	return err
}

func df(s streams, _ []string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		var st unix.Statfs_t
		if len(fields) < 3 || unix.Statfs(fields[1], &st) != nil || st.Blocks == 0 {
			continue
		}
		unit := uint64(st.Bsize)
		fmt.Fprintf(s.out, "%-24s %-8s %10d KiB %10d free %s\n", fields[0], fields[2], st.Blocks*unit>>10, st.Bavail*unit>>10, fields[1])
	}
	return nil
}

// dmesg prints the kernel's ring buffer without waiting for more.
func dmesg(s streams, _ []string) error {
	const readAll, size = 3, 10
	n, err := unix.Klogctl(size, nil)
	if err != nil {
		return err
	}
	log := make([]byte, n)
	if n, err = unix.Klogctl(readAll, log); err != nil {
		return err
	}
	_, err = s.out.Write(log[:n])
	return err
}

// processes lists process, parent, state, resident memory in KiB and command.
func processes(s streams, _ []string) error {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		// The name is in parentheses and may hold anything, so count from its end.
		end := strings.LastIndexByte(string(stat), ')')
		fields := strings.Fields(string(stat[end+1:]))
		if end < 0 || len(fields) < 22 {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		name := strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		if name == "" {
			continue // a thread of the kernel
		}
		pages, _ := strconv.Atoi(fields[21])
		fmt.Fprintf(s.out, "%6s %6s %s %8d %s\n", filepath.Base(filepath.Dir(file)), fields[1], fields[0], pages*os.Getpagesize()>>10, name)
	}
	return nil
}

func kill(_ streams, args []string) error {
	signal := unix.SIGTERM
	if len(args) > 0 && strings.HasPrefix(args[0], "-") && len(args[0]) > 1 {
		name := strings.ToUpper(args[0][1:])
		if n, err := strconv.Atoi(name); err == nil {
			signal = syscall.Signal(n)
		} else if signal = unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG")); signal == 0 {
			return fmt.Errorf("kill: no signal %s", name)
		}
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("usage: kill [-SIGNAL] PID...")
	}
	for _, arg := range args {
		pid, err := strconv.Atoi(arg)
		if err != nil {
			return fmt.Errorf("kill: %q is no process", arg)
		}
		if err := unix.Kill(pid, signal); err != nil {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	return nil
}

func link(s streams, args []string) error {
	symbolic := false
	args, err := options(s, "ln", args, func(f *flag.FlagSet) { f.BoolVar(&symbolic, "s", false, "symbolic") })
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return errors.New("usage: ln [-s] TARGET NAME")
	}
	if symbolic {
		return os.Symlink(args[0], args[1])
	}
	return os.Link(args[0], args[1])
}

func sleep(_ streams, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: sleep SECONDS")
	}
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return fmt.Errorf("sleep: %w", err)
	}
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	return nil
}

func syncDisks(streams, []string) error {
	unix.Sync()
	return nil
}

// mountCommand lists the mounts, or mounts: mount [-r] [-t TYPE] [-o OPTIONS]
// WHAT WHERE. Options are ro, remount and bind; others go to the file system.
func mountCommand(s streams, args []string) error {
	if len(args) == 0 {
		f, err := os.Open("/proc/self/mounts")
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(s.out, f)
		return err
	}
	kind, list, readonly := "", "", false
	args, err := options(s, "mount", args, func(f *flag.FlagSet) {
		f.StringVar(&kind, "t", "", "type")
		f.StringVar(&list, "o", "", "options")
		f.BoolVar(&readonly, "r", false, "read only")
	})
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return errors.New("usage: mount [-r] [-t TYPE] [-o OPTIONS] WHAT WHERE")
	}
	var flags uintptr
	var data []string
	if readonly {
		flags |= unix.MS_RDONLY
	}
	for option := range strings.SplitSeq(list, ",") {
		switch option {
		case "", "rw":
		case "ro":
			flags |= unix.MS_RDONLY
		case "remount":
			flags |= unix.MS_REMOUNT
		case "bind":
			flags |= unix.MS_BIND
		default:
			data = append(data, option)
		}
	}
	kinds := []string{kind}
	if kind == "" && flags&(unix.MS_BIND|unix.MS_REMOUNT) == 0 {
		kinds = []string{"ext4", "vfat", "erofs", "squashfs"}
	}
	for _, kind := range kinds {
		if err = unix.Mount(args[0], args[1], kind, flags, strings.Join(data, ",")); err == nil {
			return nil
		}
	}
	return fmt.Errorf("mount %s: %w", args[0], err)
}

func umount(_ streams, args []string) error {
	for _, dir := range args {
		if err := unix.Unmount(dir, 0); err != nil {
			return fmt.Errorf("umount %s: %w", dir, err)
		}
	}
	return nil
}

// addresses prints the interfaces and their addresses.
func addresses(s streams, _ []string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		fmt.Fprintf(s.out, "%s %s", l.Attrs().Name, l.Attrs().OperState)
		for _, a := range list {
			fmt.Fprintf(s.out, " %s", a.IPNet)
		}
		fmt.Fprintln(s.out)
	}
	return nil
}

// reboot asks init to restart the machine in good order; with -f the kernel
// does it at once, without even a sync, as a reset button would.
func reboot(_ streams, args []string) error {
	if len(args) == 1 && args[0] == "-f" {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return unix.Kill(1, unix.SIGTERM)
}

func powerOff(_ streams, args []string) error {
	if len(args) == 1 && args[0] == "-f" {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	return unix.Kill(1, unix.SIGUSR2)
}
