// Package watchdog drives a hardware watchdog through Linux's watchdog API
// (Documentation/watchdog/watchdog-api.rst) and decides when it is fed.
//
// A Device is the timer: opening it arms it, and from then on the machine is
// reset unless Feed is called within Timeout, whatever else hangs. Close leaves
// it running on purpose. A Keeper is the policy: it feeds only as long as every
// check that was registered with it has reported within its own deadline, and
// never beyond the deadline of a trial.
//
// Times are time.Durations; the API itself counts whole seconds, and some
// hardware has steps of its own, so SetTimeout returns what is really in force.
//
// # Who owns the device
//
// The kernel lets one process open a watchdog. Two arrangements with systemd are
// supported:
//
//   - The updater owns it (RuntimeWatchdogSec=off, the default). The first program
//     opens the device, and passes it on with Inherit and the environment variable
//     WATCHDOG_FD; the updater takes it with FromFD and runs a Keeper. Nothing but
//     proven health feeds the timer.
//   - systemd owns it (RuntimeWatchdogSec=60). It feeds the timer whether or not
//     the updater is healthy, so the updater has to be what systemd watches: its
//     unit sets WatchdogSec=, FailureAction=reboot-force and
//     StartLimitAction=reboot-force, and the Keeper's Feeder is the sd_notify
//     message WATCHDOG=1.
//
// # Before the device is opened
//
// A timer that the bootloader armed is stopped or fed by the kernel once its
// driver loads, for ever by default. The kernel command line needs
// watchdog.handle_boot_enabled=0, and since some drivers (i6300esb, iTCO_wdt)
// stop the timer when they load, the first program has to open the device right
// after loading the module.
//
// This package does not know what healthy means, and does not reboot.
package watchdog

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDevice means that there is no watchdog at the path: the board has
	// none or its driver is not loaded. The caller goes on without and says so.
	ErrNoDevice = errors.New("no watchdog device")

	// ErrBusy means that another process has the device open, systemd as a rule.
	// The caller goes on without and says who owns it.
	ErrBusy = errors.New("watchdog is owned by another process")

	// ErrRunning means that the driver does not let anybody stop the timer
	// (nowayout, or hardware that cannot). It will reset the machine unless
	// somebody feeds it; the device is still open.
	ErrRunning = errors.New("watchdog cannot be stopped")
)

// Status is the set of reasons that a driver gives for the last reset.
type Status uint32

// Reasons, as in linux/watchdog.h.
const (
	Overheat    Status = unix.WDIOF_OVERHEAT
	FanFault    Status = unix.WDIOF_FANFAULT
	PowerUnder  Status = unix.WDIOF_POWERUNDER
	CardReset   Status = unix.WDIOF_CARDRESET // the watchdog itself reset the machine
	PowerOver   Status = unix.WDIOF_POWEROVER
	magicClose         = unix.WDIOF_MAGICCLOSE
	canBeSet           = unix.WDIOF_SETTIMEOUT
	disableCard        = unix.WDIOS_DISABLECARD
)

// String lists the reasons, as in "watchdog reset", or "none".
func (s Status) String() string {
	var all []string
	for _, r := range []struct {
		s    Status
		name string
	}{{Overheat, "overheat"}, {FanFault, "fan fault"}, {PowerUnder, "power under voltage"}, {CardReset, "watchdog reset"}, {PowerOver, "power over voltage"}} {
		if s&r.s != 0 {
			all = append(all, r.name)
		}
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// driver is the kernel's side of an open device, each method one system call.
type driver interface {
	info() (*unix.WatchdogInfo, error)
	get(request uint) (int32, error)
	set(request uint, value int32) error
	write(p []byte) error
	inherit() error
	close() error
}

// Device is an open, running watchdog.
type Device struct {
	driver   driver
	fd       int
	identity string
	options  uint32
}

// Open opens the watchdog at path, as a rule /dev/watchdog0, which arms it with
// the timeout its driver has. ErrNoDevice and ErrBusy say why it could not.
func Open(path string) (*Device, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) })
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("open %s: %w", path, ErrBusy)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("open %s: %w", path, ErrNoDevice)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	d, err := FromFD(fd)
	if err != nil {
		_ = unix.Close(fd) // it is no watchdog; the error says so already
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

// FromFD takes over a watchdog that another program opened and left open over
// exec; it sets the descriptor to close at the next exec. ErrNoDevice means that
// the descriptor is something else.
func FromFD(fd int) (*Device, error) {
	k := kernel(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("watchdog descriptor %d: %w", fd, err)
	}
	return fromDriver(k, fd)
}

func fromDriver(k driver, fd int) (*Device, error) {
	info, err := k.info()
	if errors.Is(err, unix.ENOTTY) {
		return nil, fmt.Errorf("watchdog descriptor %d: %w", fd, ErrNoDevice)
	}
	if err != nil {
		return nil, fmt.Errorf("watchdog descriptor %d: %w", fd, err)
	}
	identity := unix.ByteSliceToString(info.Identity[:])
	return &Device{driver: k, fd: fd, identity: identity, options: info.Options}, nil
}

// Identity is the driver's name for the hardware, as in "i6300ESB timer".
func (d *Device) Identity() string { return d.identity }

// FD is the device's file descriptor, for the program that Inherit hands it to.
func (d *Device) FD() int { return d.fd }

// Inherit leaves the device open over the next exec, so that the timer never
// runs without somebody who can feed it.
func (d *Device) Inherit() error {
	if err := d.driver.inherit(); err != nil {
		return fmt.Errorf("pass watchdog on: %w", err)
	}
	return nil
}

// BootStatus tells why the machine was last reset, as far as the driver knows:
// many report nothing at all, so its absence proves nothing.
func (d *Device) BootStatus() (Status, error) {
	v, err := d.driver.get(unix.WDIOC_GETBOOTSTATUS)
	if err != nil {
		return 0, fmt.Errorf("watchdog boot status: %w", err)
	}
	return Status(v), nil
}

// Timeout returns how long the machine runs without Feed.
func (d *Device) Timeout() (time.Duration, error) {
	v, err := d.driver.get(unix.WDIOC_GETTIMEOUT)
	if err != nil {
		return 0, fmt.Errorf("watchdog timeout: %w", err)
	}
	return time.Duration(v) * time.Second, nil
}

// SetTimeout asks for a timeout of t, rounded up to whole seconds, and returns
// the one that is in force, read back from the driver. They may differ: hardware
// rounds, and some timers (window watchdogs among them) cannot be set at all,
// which is no error. The caller checks whether it can live with the result.
func (d *Device) SetTimeout(t time.Duration) (time.Duration, error) {
	if t <= 0 || t > math.MaxInt32*time.Second {
		return 0, fmt.Errorf("set watchdog timeout: %v is out of range", t)
	}
	if d.options&canBeSet != 0 {
		seconds := int32((t + time.Second - 1) / time.Second)
		err := d.driver.set(unix.WDIOC_SETTIMEOUT, seconds)
		// A driver may announce it and its hardware refuse: what counts is what
		// is read back below.
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return 0, fmt.Errorf("set watchdog timeout to %v: %w", t, err)
		}
	}
	return d.Timeout()
}

// Feed starts the timeout anew.
func (d *Device) Feed() error {
	if err := d.driver.set(unix.WDIOC_KEEPALIVE, 0); err != nil {
		return fmt.Errorf("feed watchdog: %w", err)
	}
	return nil
}

// Close gives the device up and leaves the timer running: unless the next
// program opens and feeds it, the machine is reset. The kernel logs that the
// watchdog did not stop.
func (d *Device) Close() error {
	if err := d.driver.close(); err != nil {
		return fmt.Errorf("close watchdog: %w", err)
	}
	return nil
}

// Disarm stops the timer and gives the device up. ErrRunning means that it runs
// on and that the device is still open, so that it can be fed.
func (d *Device) Disarm() error {
	if d.options&magicClose == 0 {
		return ErrRunning
	}
	// Some drivers stop at once when told to, all that announce it stop when they
	// are closed after a V. Stopping at once tells nowayout apart.
	if err := d.driver.set(unix.WDIOC_SETOPTIONS, disableCard); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return ErrRunning
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) {
			return fmt.Errorf("disarm watchdog: %w", err)
		}
	}
	if err := d.driver.write([]byte("V")); err != nil {
		return fmt.Errorf("disarm watchdog: %w", err)
	}
	if err := d.driver.close(); err != nil {
		return fmt.Errorf("disarm watchdog: %w", err)
	}
	return nil
}
