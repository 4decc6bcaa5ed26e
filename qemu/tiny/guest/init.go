package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

const (
	faultFile   = "/etc/tiny/fault"
	healthyFile = "/run/tiny/healthy"
	logDir      = "/run/tiny"
	updater     = "/usr/bin/updater"

	// slowness is what the fault "slow" adds.
	slowness = 30 * time.Second
	// stopGrace is how long updater and command port may take to end after SIGTERM.
	stopGrace = 10 * time.Second
)

var path = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux"}

// identify says who this system is, from the first program's report.
func identify() port.Message {
	m := port.Message{Hello: port.Version, Slot: "?", Version: "?"}
	if boot, err := bootreport.ReadBoot(bootreport.BootPath); err == nil {
		m.Slot, m.Version = boot.Slot, boot.Version
	}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		m.BootID = strings.TrimSpace(string(id))
	}
	return m
}

// runInit is /sbin/init. It does not return: the end of process 1 is a panic.
func runInit(s streams) int {
	if os.Getpid() != 1 {
		fmt.Fprintln(s.err, "init: not process 1")
		return 1
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR2, unix.SIGINT)
	signal.Notify(signals, unix.SIGCHLD)

	complain := func(what string, err error) {
		if err != nil {
			fmt.Fprintf(s.out, "tiny: %s: %v\n", what, err)
		}
	}
	complain("mount", mountRest())
	complain("set host name", unix.Sethostname([]byte("tiny")))
	fault := readFault()
	switch fault {
	case "hang":
		// Everything that was open stays open, the watchdog too; nothing runs.
		fmt.Fprintln(s.out, "tiny: fault: hang")
		select {}
	case "panic":
		fmt.Fprintln(s.out, "tiny: fault: panic")
		complain("panic", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
	}
	complain("network", bringUp())

	procs := newProcesses()
	procs.add(service{name: "console", argv: []string{"/bin/sh", "-i"}, terminal: "/dev/ttyS0"})
	if _, err := os.Stat("/dev/ttyS1"); err == nil {
		procs.add(service{name: "port", argv: []string{"/sbin/init", "port", "/dev/ttyS1"}, name0: "port"})
	}
	feed := (<-chan time.Time)(nil)
	late := time.After(0)
	if fault == "slow" {
		late = time.After(slowness)
	}
	dog := watchdogFD()
	if _, err := os.Stat(updater); err != nil && dog >= 0 {
		fmt.Fprintln(s.out, "tiny: no updater in this image: init feeds the watchdog")
		feed = time.Tick(5 * time.Second)
	}
	procs.startAll(s.out)
	for {
		select {
		case <-late:
			if _, err := os.Stat(updater); err == nil {
				procs.add(updaterService(dog))
			}
			if fault != "unhealthy" {
				complain("say healthy", os.WriteFile(healthyFile, nil, 0o644))
			}
		case <-feed:
			_ = unix.IoctlWatchdogKeepalive(dog)
		case <-procs.due:
		case sig := <-signals:
			switch sig {
			case unix.SIGCHLD:
				procs.reap()
			case unix.SIGUSR2:
				goDown(s, procs, unix.LINUX_REBOOT_CMD_POWER_OFF)
			default:
				goDown(s, procs, unix.LINUX_REBOOT_CMD_RESTART)
			}
		}
		procs.startAll(s.out)
	}
}

func updaterService(dog int) service {
	u := service{
		name: "updater",
		argv: []string{updater, "run"},
		log:  filepath.Join(logDir, "updater.log"),
		// Five ends in a minute are a broken updater. Then it stays down, nobody
		// feeds the watchdog, and the loader counts the reset.
		burst: 5, window: time.Minute,
	}
	if dog >= 0 {
		u.watchdog = dog
		u.hasWatchdog = true
	}
	return u
}

// watchdogFD is the descriptor that the first program left open, or -1. Init
// keeps its own copy, so that the device stays open while the updater restarts.
func watchdogFD() int {
	fd, err := strconv.Atoi(os.Getenv("WATCHDOG_FD"))
	if err != nil || fd < 3 {
		return -1
	}
	unix.CloseOnExec(fd)
	return fd
}

func readFault() string {
	text, err := os.ReadFile(faultFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// mountRest mounts what the first program does not; alone in an initramfs it
// mounts the rest too.
func mountRest() error {
	var errs []error
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", "mode=755"},
		{"tmpfs", "/run", "mode=755"},
		{"devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/tmp", "mode=1777"},
	} {
		if mounted(m.dir) {
			continue
		}
		if m.dir == "/dev/pts" {
			_ = os.Mkdir(m.dir, 0o755)
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, unix.MS_NOSUID, m.options); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.dir, err))
		}
	}
	errs = append(errs, os.MkdirAll(logDir, 0o755))
	return errors.Join(errs...)
}

func mounted(dir string) bool {
	var here, parent unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &parent) == nil && here.Dev != parent.Dev
}

// bringUp configures loopback and the first Ethernet interface for QEMU's user
// network. Static, because the addresses there are always the same and a DHCP
// client costs start time.
func bringUp() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	done := false
	for _, l := range links {
		loopback := l.Attrs().Flags&net.FlagLoopback != 0
		if !loopback && (done || l.Type() != "device") {
			continue
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("%s: %w", l.Attrs().Name, err)
		}
		if loopback {
			continue
		}
		done = true
		address, err := netlink.ParseAddr("10.0.2.15/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, address); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("%s: %w", l.Attrs().Name, err)
		}
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 0, 2, 2)}
		if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("route: %w", err)
		}
	}
	if !done {
		return errors.New("no Ethernet interface")
	}
	return nil
}

// goDown takes the system down in order: the updater first, since it may be in
// the middle of a write, then the rest, then the disks. The watchdog stays armed
// throughout: a shutdown that hangs is reset.
func goDown(s streams, procs *processTable, how int) {
	fmt.Fprintln(s.out, "tiny: going down")
	procs.stop("updater", stopGrace)
	procs.stop("port", stopGrace)
	_ = unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	// /etc has its upper layer in /data.
	_ = unix.Unmount("/etc/tandem", 0)
	_ = unix.Unmount("/etc", 0)
	if err := unix.Unmount("/data", 0); err != nil {
		_ = unix.Mount("", "/data", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	unix.Sync()
	fmt.Fprintf(s.out, "tiny: shutdown: %v\n", unix.Reboot(how))
	select {}
}
