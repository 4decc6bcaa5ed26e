// Package guest is the user space of the tiny system: one program that is
// /sbin/init, a shell and the commands that stories need, chosen by the name that
// it is called by, as busybox does. The commands with options are u-root's, the
// shell is mvdan.cc/sh.
//
// # What it does as /sbin/init
//
//	mount /tmp, /dev/pts; name the host; bring up the first Ethernet interface
//	as 10.0.2.15/24 by 10.0.2.2 (QEMU's user network)
//	show the fault that the image asks for (/etc/tiny/fault), if it does
//	keep alive: a prompt on ttyS0, the command port on ttyS1 (../PROTOCOL.md),
//	/usr/bin/updater run with the watchdog's descriptor in WATCHDOG_FD
//	create /run/tiny/healthy, which a release's health check can ask for
//	take in orphans
//	SIGTERM: restart; SIGUSR2: power off
//
// It does not feed the watchdog: that is the updater's task, and a system whose
// updater is dead must be reset. Only where the image has no updater at all does
// init feed, so that such an image can be looked at.
//
// # Faults
//
// /etc/tiny/fault makes a bad release; one word:
//
//	hang       init stops before it starts anything; nobody feeds the watchdog
//	panic      init panics the kernel
//	unhealthy  /run/tiny/healthy never appears
//	slow       updater and /run/tiny/healthy come 30 seconds late
//
// This is a test system: whoever has the serial ports is root.
package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/core"
	"github.com/u-root/u-root/pkg/core/base64"
	"github.com/u-root/u-root/pkg/core/cat"
	"github.com/u-root/u-root/pkg/core/chmod"
	"github.com/u-root/u-root/pkg/core/cp"
	"github.com/u-root/u-root/pkg/core/find"
	"github.com/u-root/u-root/pkg/core/gzip"
	"github.com/u-root/u-root/pkg/core/ls"
	"github.com/u-root/u-root/pkg/core/mkdir"
	"github.com/u-root/u-root/pkg/core/mktemp"
	"github.com/u-root/u-root/pkg/core/mv"
	"github.com/u-root/u-root/pkg/core/rm"
	"github.com/u-root/u-root/pkg/core/tar"
	"github.com/u-root/u-root/pkg/core/touch"
	"github.com/u-root/u-root/pkg/core/xargs"
)

// streams are a command's standard input and outputs.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// command is one entry of the program: it returns the exit code.
type command func(s streams, args []string) int

// commands are the names that the program answers to.
var commands = map[string]command{
	"base64": uroot(base64.New), "cat": uroot(cat.New), "chmod": uroot(chmod.New), "cp": uroot(cp.New),
	"find": uroot(find.New), "ls": uroot(ls.New), "mkdir": uroot(mkdir.New), "mktemp": uroot(mktemp.New),
	"mv": uroot(mv.New), "rm": uroot(rm.New), "tar": uroot(tar.New), "touch": uroot(touch.New), "xargs": uroot(xargs.New),
	"gzip":   uroot(func() core.Command { return gzip.New("gzip") }),
	"gunzip": uroot(func() core.Command { return gzip.New("gunzip") }),

	"date": report(date), "df": report(df), "dmesg": report(dmesg), "env": report(environment), "hexdump": report(hexdump),
	"hostname": report(hostname), "ip": report(addresses), "ps": report(processes), "uname": report(uname),
	"dd": report(dd), "grep": grep, "head": report(head), "kill": report(kill), "ln": report(link), "mount": report(mountCommand),
	"poweroff": report(powerOff), "reboot": report(reboot), "sha256sum": report(sha256sum), "sleep": report(sleep),
	"sync": report(syncDisks), "tail": report(tail), "umount": report(umount), "wc": report(wc),
}

// Names are the names under which the program is to be linked in /bin, beside
// /sbin/init.
func Names() []string {
	names := []string{"sh"}
	for name := range commands {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Main runs the command that args[0] names, or args[1] if that is "tiny".
func Main(args []string, in io.Reader, out, errout io.Writer) int {
	name := filepath.Base(args[0])
	if name == "tiny" && len(args) > 1 {
		args = args[1:]
		name = args[0]
	}
	s := streams{in, out, errout}
	switch name {
	case "init":
		return runInit(s)
	case "sh":
		return shell(s, args[1:])
	case "port":
		return servePort(s, args[1:])
	}
	run, ok := commands[name]
	if !ok {
		fmt.Fprintf(errout, "tiny: no command %q; there are: %s\n", name, strings.Join(Names(), " "))
		return 127
	}
	return run(s, args[1:])
}

// uroot makes a command of one of u-root's.
func uroot(build func() core.Command) command {
	return func(s streams, args []string) int {
		c := build()
		c.SetIO(s.in, s.out, s.err)
		c.SetLookupEnv(os.LookupEnv)
		if err := c.Run(args...); err != nil {
			fmt.Fprintln(s.err, err)
			return 1
		}
		return 0
	}
}

// report makes a command of a function that returns an error.
func report(run func(s streams, args []string) error) command {
	return func(s streams, args []string) int {
		if err := run(s, args); err != nil {
			fmt.Fprintln(s.err, err)
			return 1
		}
		return 0
	}
}
