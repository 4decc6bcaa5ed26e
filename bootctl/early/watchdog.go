package early

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/watchdog"
)

const watchdogDevice = "/dev/watchdog0"

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
		config, err := os.Open(path)
		if err != nil {
			continue
		}
		armed := esbArmed(config)
		config.Close()
		if armed {
			return true
		}
	}
	return false
}

// esbArmed reads the configuration space of a PCI function: is it the watchdog
// of an Intel 6300ESB, and is its timer on (WDT_ENABLE in the lock register;
// Intel 300641, section 16)? The register is one byte, and only a read of one
// byte reaches it.
func esbArmed(config io.ReaderAt) bool {
	const (
		id     = 0x25ab8086 // device, vendor
		lock   = 0x68
		enable = 1 << 1
	)
	var word [4]byte
	if _, err := config.ReadAt(word[:], 0); err != nil || binary.LittleEndian.Uint32(word[:]) != id {
		return false
	}
	_, err := config.ReadAt(word[:1], lock)
	return err == nil && word[0]&enable != 0
}

// openWatchdog opens the device, if there is one by now, and leaves it open for
// every program after this one. armed is what loaderArmed said.
func (b *boot) openWatchdog(armed bool) {
	if b.dog != nil {
		return
	}
	dog, err := watchdog.Open(watchdogDevice)
	if errors.Is(err, watchdog.ErrNoDevice) {
		return
	}
	if err != nil {
		b.problem("%v", err)
		return
	}
	b.dog = dog
	// Opening has started the timer with the driver's own time-out. Where it
	// cannot be set (window watchdogs) that one has to do: any is better than none.
	timeout, err := dog.SetTimeout(b.timeout)
	if err != nil {
		b.problem("%v", err)
		timeout, _ = dog.Timeout()
	}
	b.feed()
	// There must be no instant at which nobody holds the device.
	if err := dog.Inherit(); err != nil {
		b.problem("%v", err)
	}
	status, err := dog.BootStatus()
	if err != nil {
		b.problem("%v", err)
	}
	by := "init"
	if armed {
		by = "loader"
	}
	b.report.Watchdog = &bootreport.Watchdog{
		Identity:   dog.Identity(),
		ArmedBy:    by,
		BootStatus: int(status),
		TimeoutS:   int(timeout / time.Second),
		FD:         dog.FD(),
	}
}

// feed restarts the timer. An error is for whoever reads the console: a timer
// that is not fed does what has to be done.
func (b *boot) feed() {
	if b.dog == nil {
		return
	}
	if err := b.dog.Feed(); err != nil {
		b.say("%v", err)
	}
}
