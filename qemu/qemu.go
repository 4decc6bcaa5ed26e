// Package qemu is the lab: it runs a board in QEMU with firmware, watchdog and
// TPM, and does to it what happens to boards in the field: the power fails, a
// reset button is pressed, the system freezes, a stick is plugged in, the
// network cable is pulled.
//
// A Device is one machine and its state directory. What survives a power cut
// on a desk survives it here, because it is a file in that directory:
//
//	disk.img      the disk, raw and sparse, copied from Config.Image once
//	vars.fd       the firmware's variables (EFI boot entries)
//	blank.elf     what a reset leaves in memory: nothing
//	tpm/          the TPM's non-volatile state (swtpm)
//	console.log   serial port 0, each line with the seconds since power-on
//	events.log    QEMU's events (WATCHDOG, RESET, SHUTDOWN, …), one JSON object a line
//	qemu.log      the command line and what QEMU and swtpm had to say
//	writes.log    writes and flushes that reached the disk (Config.LogWrites)
//	ctl.sock      control socket, only while a keeper runs (see Serve)
//
// Cut kills QEMU with SIGKILL. The guest loses its memory, and every disk
// request is either done or not; but what the guest wrote without a flush is
// kept by the host's page cache. So Cut shows what a process does that is
// stopped between any two requests, and never what a volatile disk cache does:
// for that see package partition/disktest.
//
// Memory does not survive a reset either, whoever asks for it: guest, watchdog or
// button. On a desk it may, so nothing here can try what relies on it (ramoops,
// kdump), and a guest that suspends to RAM does not come back.
//
// All waiting is for a line on the console, an event of QEMU, or a word from
// the guest's command port (qemu/tiny/PROTOCOL.md). Guest timers run in real
// time, so a loaded host makes the guest slow but not its watchdog; every limit
// is therefore generous and is multiplied by Config.Patience.
//
// Acceleration is TCG unless the caller names another. /dev/kvm that opens
// proves nothing: on hosts that are virtual machines themselves it is often
// there and boots no firmware.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

// ErrOff means that the machine has no power: it was never started, was cut,
// or QEMU ended. Start turns it on again.
var ErrOff = errors.New("machine is off")

// ErrOn means that the operation needs the machine to be off; Cut it first.
var ErrOn = errors.New("machine is on")

// DefaultAccel bounds the code that QEMU keeps translated: with its own 1 GiB of it a
// reset may take a minute (see blank).
const DefaultAccel = "tcg,thread=multi,tb-size=64"

// Config says what machine to build. The zero value of each field is the
// board qemu-x86_64 as it is shipped, except for Dir, which has no default.
type Config struct {
	Dir   string // state directory of this device; made if missing
	Image string // disk image that a new device starts with; needed unless Dir has a disk already
	Name  string // for QEMU's process list; default: the last element of Dir

	Memory int // MiB, default 512
	CPUs   int // default 1: a second virtual CPU gains nothing under TCG

	Accel string // QEMU's -accel value, default DefaultAccel

	// BIOS starts the legacy firmware instead of OVMF: no EFI variables, a
	// second instead of five to the first instruction of the disk.
	BIOS bool

	// LogWrites has QEMU log each write and flush of the disk since power-on in
	// Dir/writes.log, as Linux's dm-log-writes does (blklogwrites); 2 GiB at most.
	LogWrites bool

	TPM        bool      // a TPM 2.0 (swtpm), state in Dir/tpm
	NoWatchdog bool      // leave out the i6300esb
	Forward    []Forward // TCP ports of this host that lead into the guest

	// Patience multiplies every time limit. 0 takes TANDEM_PATIENCE from the
	// environment, or 1.
	Patience float64
}

// Forward makes a TCP port of the host's loopback lead to a port of the guest.
// The other way needs none: the guest reaches the host's loopback as 10.0.2.2.
type Forward struct{ Host, Guest int }

// Device is one machine. Its methods may be called from several goroutines.
type Device struct {
	cfg   Config
	tools tools

	// power serialises Start, Cut and Down. It is never taken with mu held.
	power sync.Mutex

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something below changes
	run     *run          // nil while the power is off
	console console
	events  []Event
	seen    int // events that WaitEvent has passed
	hellos  []Hello
	greeted int // hellos that WaitBoot has passed
}

// run is what exists only while the power is on.
type run struct {
	qemu    *child
	tpm     *child
	monitor *monitor
	port    *port.Client
	ready   bool // the guest has said hello; guarded by Device.mu
	serial  *os.File
	began   time.Time
	readers sync.WaitGroup
	plugged map[string]bool
}

// New prepares a device: it finds the tools, and on first use copies the image,
// the firmware variables and manufactures the TPM. It starts nothing.
//
// A missing tool is a *MissingError, which names the Debian package. New on a
// directory that was prepared before keeps everything in it; if New fails,
// calling it again goes on.
func New(ctx context.Context, cfg Config) (*Device, error) {
	if cfg.Dir == "" {
		return nil, errors.New("a lab device needs a state directory")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find state directory: %w", err)
	}
	cfg.Dir = dir
	if cfg.Name == "" {
		cfg.Name = filepath.Base(dir)
	}
	if cfg.Memory == 0 {
		cfg.Memory = 512
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	if cfg.Accel == "" {
		cfg.Accel = DefaultAccel
	}
	if cfg.Patience == 0 {
		cfg.Patience = patience(os.Getenv("TANDEM_PATIENCE"))
	}
	d := &Device{cfg: cfg, changed: make(chan struct{})}
	if d.tools, err = find(cfg); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := d.manufacture(ctx); err != nil {
		return nil, fmt.Errorf("prepare lab device %s: %w", cfg.Name, err)
	}
	return d, nil
}

// patience reads the multiplier of time limits; anything that is no number of
// at least 1 means 1, because a shorter limit than the tested one helps nobody.
func patience(s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 1 {
		return 1
	}
	return f
}

// Dir is the state directory.
func (d *Device) Dir() string { return d.cfg.Dir }

// Disk is the path of the raw disk. It may be read at any time, and is at rest
// only while the machine is off or frozen.
func (d *Device) Disk() string { return filepath.Join(d.cfg.Dir, "disk.img") }

// Writes is the path of the log of writes, of Config.LogWrites.
func (d *Device) Writes() string { return filepath.Join(d.cfg.Dir, "writes.log") }

// Name is what the lab calls this machine.
func (d *Device) Name() string { return d.cfg.Name }

// State is what the machine is doing, for people and for `tandem lab status`.
type State struct {
	Name    string  `json:"name"`
	On      bool    `json:"on"`
	Frozen  bool    `json:"frozen"`
	Seconds float64 `json:"seconds"` // since power-on
	PID     int     `json:"pid,omitempty"`
	Boots   int     `json:"boots"` // hellos of the guest since the keeper started
	Last    *Hello  `json:"last,omitempty"`
	Events  []Event `json:"events,omitempty"` // the last few
	Disk    string  `json:"disk"`
	Console string  `json:"console"` // the last line
}

// Status looks at the machine without disturbing it.
func (d *Device) Status(ctx context.Context) State {
	d.mu.Lock()
	s := State{Name: d.cfg.Name, Boots: len(d.hellos), Disk: d.Disk(), Console: d.console.lastLine()}
	if n := len(d.hellos); n > 0 {
		h := d.hellos[n-1]
		s.Last = &h
	}
	s.Events = append(s.Events, d.events[max(0, len(d.events)-5):]...)
	r := d.run
	if r != nil {
		s.On, s.PID, s.Seconds = true, r.qemu.pid(), time.Since(r.began).Seconds()
	}
	d.mu.Unlock()
	if r != nil {
		var q struct{ Status string }
		if r.monitor.do(ctx, "query-status", nil, &q) == nil {
			s.Frozen = q.Status == "paused"
		}
	}
	return s
}

// running returns what exists while the power is on.
func (d *Device) running() (*run, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run == nil {
		return nil, ErrOff
	}
	return d.run, nil
}

// ready returns what exists while the power is on, and whether the guest takes
// commands.
func (d *Device) ready() (*run, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.run, d.run != nil && d.run.ready
}

// notify wakes everyone in until. The caller holds mu.
func (d *Device) notify() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// until waits for something about the machine to become so: ok is called with
// mu held, at once and after each change. An error of ok ends the wait.
func (d *Device) until(ctx context.Context, what string, within time.Duration, ok func() (bool, error)) error {
	within = d.Scaled(within)
	limit := time.NewTimer(within)
	defer limit.Stop()
	for {
		d.mu.Lock()
		done, err := ok()
		changed := d.changed
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("wait for %s of %s: %w\n%s", what, d.cfg.Name, err, d.tail())
		}
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s of %s: %w\n%s", what, d.cfg.Name, context.Cause(ctx), d.tail())
		case <-limit.C:
			return fmt.Errorf("wait for %s of %s: %w in %s\n%s", what, d.cfg.Name, ErrTimeout, within, d.tail())
		}
	}
}

// Scaled is a time limit as this host needs it.
func (d *Device) Scaled(limit time.Duration) time.Duration {
	return time.Duration(float64(limit) * d.cfg.Patience)
}

// ErrTimeout means that what was waited for did not come. On a slow host raise
// TANDEM_PATIENCE; otherwise the console's last lines, which the error carries,
// tell where the machine stands.
var ErrTimeout = errors.New("did not happen")
