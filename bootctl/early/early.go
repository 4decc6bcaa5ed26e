package early

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/updater/manifest"
)

const (
	modulesFile = "/etc/tandem/modules"
	keysFile    = "/etc/tandem/release-keys.json"
	bootIDFile  = "/proc/sys/kernel/random/boot_id"

	// diskWait is how long a disk may take to appear. It is half the watchdog's
	// time-out: an explained failure is worth more than a reset.
	diskWait = 30 * time.Second
	// defaultTimeout is the watchdog's time-out from here on, until the agent
	// sets its own.
	defaultTimeout = 60 * time.Second
)

// Config joins the first program to the parts of its board.
type Config struct {
	// Measure extends a PCR in every active bank of the TPM; nil where a board
	// has none.
	Measure func(pcr int, digest [32]byte) error
	// OnTrial tells from the environment partition whether slot is on trial.
	OnTrial func(env partition.Disk, slot bootctl.Slot) (bool, error)
}

// boot is the state of one boot, as far as it got.
type boot struct {
	Config
	line    Cmdline
	timeout time.Duration // of the watchdog
	host    partition.Host
	dog     *watchdog.Device
	console *os.File

	slot   bootctl.Slot
	node   partition.Node // the boot partition, which names the disk
	data   bool           // the data partition is mounted, so that attempts can be noted
	root   string         // where the coming root is seen from here: "" before /data moves there
	report bootreport.Boot
}

// Run is the whole boot. It returns only when the boot cannot go on; the machine
// has been asked to restart then, and the error is why.
func Run(c Config) error {
	b := &boot{Config: c, host: partition.ThisHost(), timeout: defaultTimeout, console: os.Stdout}
	err := b.run()
	b.giveUp(err)
	return err
}

// run takes the steps in the order of the package documentation.
func (b *boot) run() error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"mount kernel file systems", mountKernel},
		{"read command line", b.readCmdline},
		{"load modules", b.loadModules},
		{"find slot", b.findSlot},
		{"mount data", b.mountData},
		{"note attempt", b.noteStart},
		{"open root", b.openRoot},
		{"measure", b.measure},
		{"prepare root", b.prepareRoot},
		{"write report", b.writeReport},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		// The only food: a step that is done. None of them loops without a
		// bound, so that a boot which hangs is reset after one time-out.
		b.feed()
	}
	return b.handOver()
}

func (b *boot) readCmdline() error {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	b.line = ParseCmdline(string(text))
	if id, err := os.ReadFile(bootIDFile); err == nil {
		b.report.BootID = strings.TrimSpace(string(id))
	}
	b.timeout, err = b.line.watchdogTimeout()
	return err
}

// loadModules loads the board's list. The watchdog device is opened at the
// instant it appears: loading its driver may have stopped a timer that the
// loader started, and until it is opened again nothing guards the boot.
func (b *boot) loadModules() error {
	list, err := os.Open(modulesFile)
	if err != nil {
		return err
	}
	defer list.Close()
	modules, err := ParseModules(list)
	if err != nil {
		return err
	}
	armed := loaderArmed("/sys")
	b.openWatchdog(armed)
	for _, m := range modules {
		if err := load(m); err != nil {
			b.problem("load %s: %v", m.Path, err)
		}
		b.openWatchdog(armed)
	}
	if b.dog == nil {
		b.problem("no watchdog: a boot that hangs stays hung")
	}
	return nil
}

func (b *boot) findSlot() error {
	if err := mountEFI(); err != nil {
		return err
	}
	slot, node, err := findSlot(b.host, b.line, diskWait)
	if err != nil {
		return err
	}
	b.slot, b.node, b.report.Slot = slot, node, string(slot)
	b.say("slot %s on %s", slot, node.Disk)
	return nil
}

// noteStart leaves the first trace of this boot, together with what the boot
// before could not write itself. The panic's records are removed only when they
// are safe on the data partition or at least in this boot's report: a board
// without data partition would otherwise fill its firmware's store.
func (b *boot) noteStart() error {
	text, files := readPstore("/sys/fs/pstore")
	b.report.Pstore = text
	status := 0
	if b.report.Watchdog != nil {
		status = b.report.Watchdog.BootStatus
	}
	b.note(bootreport.Attempt{Stage: bootreport.StageStarted, BootStatus: status, Pstore: text})
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			b.problem("clear kernel log of a panic: %v", err)
		}
	}
	return nil
}

// note adds an event to the attempts on the data partition, if there is one. It
// never stops a boot: the file is a hint.
func (b *boot) note(a bootreport.Attempt) {
	if !b.data {
		return
	}
	a.BootID, a.Slot = b.report.BootID, string(b.slot)
	a.Manifest, a.Version = b.report.Manifest, b.report.Version
	if err := bootreport.Append(b.root+bootreport.AttemptsPath, a); err != nil {
		b.problem("%v", err)
	}
}

func (b *boot) measure() error {
	if b.Measure == nil {
		b.problem("measure: this board has no TPM")
		return nil
	}
	digest := manifest.Digest(b.report.Manifest).Sum()
	if err := b.Measure(measuredPCR, digest); err != nil {
		b.problem("measure: %v", err)
		return nil
	}
	b.report.Measured = &bootreport.Measured{PCR: measuredPCR, Digest: fmt.Sprintf("%x", digest)}
	return nil
}

func (b *boot) writeReport() error {
	if err := bootreport.WriteBoot(bootreport.BootPath, b.report); err != nil {
		return err
	}
	b.note(bootreport.Attempt{Stage: bootreport.StageSwitched})
	return nil
}

// problem keeps what is wrong without being a reason to stop.
func (b *boot) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.report.Problems = append(b.report.Problems, text)
	b.say("%s", text)
}

// say puts a line into the kernel log, and so on the console in its order among
// the kernel's own.
func (b *boot) say(format string, args ...any) {
	line := "tandem-init: " + fmt.Sprintf(format, args...)
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(b.console, line)
		return
	}
	// A record without its newline waits for the next one before the console shows it.
	fmt.Fprintf(kmsg, "<5>%s\n", line)
	kmsg.Close()
}

// giveUp says why, keeps why, and restarts the machine, so that the loader
// counts a try. The watchdog stays armed: a restart that hangs ends in a reset.
func (b *boot) giveUp(cause error) {
	if cause == nil {
		cause = errors.New("returned")
	}
	fmt.Fprintf(b.console, "tandem-init: %v\n", cause)
	b.note(bootreport.Attempt{Stage: bootreport.StageFailed, Cause: cause.Error()})
	unix.Sync()
	// The line is in the port's buffer; a restart would cut it off.
	_ = unix.IoctlSetInt(int(b.console.Fd()), unix.TCSBRK, 1)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
