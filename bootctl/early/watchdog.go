package early

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
)

const (
	watchdogDevice = "/dev/watchdog0"
	watchdogClass  = "/sys/class/watchdog/watchdog0"
)

// loaderArmed tells whether the hardware ran before its driver came, so that it
// is asked before the first module is loaded: loading i6300esb stops the timer
// and with it the only trace of the loader's work.
//
// A driver that is built in says so itself. For the others the register is
// read from PCI configuration space; the list grows with the boards.
func loaderArmed(sys string) bool {
	if state, err := os.ReadFile(filepath.Join(sys, "class/watchdog/watchdog0/state")); err == nil {
		return strings.TrimSpace(string(state)) == "active"
	}
	configs, err := filepath.Glob(filepath.Join(sys, "bus/pci/devices/*/config"))
	if err != nil {
		return false
	}
	for _, path := range configs {
		config, err := os.ReadFile(path)
		if err == nil && esbArmed(config) {
			return true
		}
	}
	return false
}

// esbArmed reads the configuration space of a PCI function: is it the watchdog
// of an Intel 6300ESB, and is its timer on (WDT_ENABLE in the lock register;
// Intel 300641, section 16)?
func esbArmed(config []byte) bool {
	const (
		id     = 0x25ab8086 // device, vendor
		lock   = 0x68
		enable = 1 << 1
	)
	return len(config) > lock && binary.LittleEndian.Uint32(config) == id && config[lock]&enable != 0
}

// dog is the open device. Bootctl/watchdog has the rest of the interface, for
// those who feed by health; here a step that is done is the only food.
type dog struct{ fd int }

// feed restarts the timer. It cannot fail in a way that could be mended here,
// and a timer that runs out does what an error would do.
func (d *dog) feed() { _ = unix.IoctlWatchdogKeepalive(d.fd) }

// openWatchdog opens the device, if there is one by now, and leaves it open for
// every program after this one. armed is what loaderArmed said.
func (b *boot) openWatchdog(armed bool) {
	if b.dog != nil {
		return
	}
	if _, err := os.Stat(watchdogDevice); err != nil {
		return
	}
	// Without O_CLOEXEC: the descriptor survives the exec of /sbin/init, so
	// that there is no instant at which nobody holds the device.
	fd, err := unix.Open(watchdogDevice, unix.O_RDWR, 0)
	if err != nil {
		b.problem("open watchdog: %v", err)
		return
	}
	b.dog = &dog{fd}
	by := "init"
	if armed {
		by = "loader"
	}
	// Opening has started the timer with the driver's own time-out. Where it
	// cannot be set (window watchdogs) that one has to do: any is better than none.
	if err := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, int(b.timeout.Seconds())); err != nil {
		b.problem("set watchdog time-out: %v", err)
	}
	timeout, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
	if err != nil {
		b.problem("read watchdog time-out: %v", err)
	}
	b.dog.feed()
	identity, _ := os.ReadFile(watchdogClass + "/identity")
	status, _ := os.ReadFile(watchdogClass + "/bootstatus")
	flags, _ := strconv.Atoi(strings.TrimSpace(string(status)))
	b.report.Watchdog = &bootreport.Watchdog{
		Identity:   strings.TrimSpace(string(identity)),
		ArmedBy:    by,
		BootStatus: flags,
		TimeoutS:   timeout,
		FD:         fd,
	}
}
