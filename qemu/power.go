package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

// Start turns the power on and returns when QEMU runs; the guest has then only
// begun to boot. The machine is cut when ctx ends.
func (d *Device) Start(ctx context.Context) error {
	d.power.Lock()
	defer d.power.Unlock()
	if _, err := d.running(); err == nil {
		return fmt.Errorf("start %s: %w", d.cfg.Name, ErrOn)
	}
	if err := d.start(ctx); err != nil {
		return fmt.Errorf("start %s: %w", d.cfg.Name, err)
	}
	return nil
}

func (d *Device) start(ctx context.Context) (err error) {
	log, err := os.OpenFile(filepath.Join(d.cfg.Dir, "qemu.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	// The children have their own descriptors of the log once they run.
	defer log.Close()

	if err := d.writeBlank(); err != nil {
		return err
	}
	if err := d.emptyLog(); err != nil {
		return err
	}
	var w wires
	defer func() {
		// Whatever was handed to a child is closed here: its copy is what
		// counts, and ours would keep the socket open after its death.
		w.closeTheirs()
		if err != nil {
			w.closeOurs()
		}
	}()
	for _, end := range []*wire{&w.serial, &w.port, &w.monitor} {
		if *end, err = newWire(); err != nil {
			return err
		}
	}
	r := &run{began: time.Now(), serial: w.serial.ours, plugged: map[string]bool{}}
	qemuFiles := []*os.File{w.serial.theirs, w.port.theirs, w.monitor.theirs}
	if d.cfg.TPM {
		if w.tpm, err = newWire(); err != nil {
			return err
		}
		// Both ends belong to children: swtpm serves one, QEMU uses the other.
		r.tpm, err = spawn(ctx, log, d.tools.swtpm, d.swtpmArgs(), []*os.File{w.tpm.ours})
		w.tpm.ours.Close()
		w.tpm.ours = nil
		if err != nil {
			return err
		}
		qemuFiles = append(qemuFiles, w.tpm.theirs)
	}
	if r.qemu, err = spawn(ctx, log, d.tools.qemu, d.args(), qemuFiles); err != nil {
		r.tpm.kill()
		return err
	}
	w.closeTheirs()

	clog, err := os.OpenFile(filepath.Join(d.cfg.Dir, "console.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		r.qemu.kill()
		r.tpm.kill()
		return err
	}
	elog, err := os.OpenFile(filepath.Join(d.cfg.Dir, "events.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		clog.Close()
		r.qemu.kill()
		r.tpm.kill()
		return err
	}
	r.monitor = newMonitor(w.monitor.ours)
	r.port = port.NewClient(w.port.ours)
	d.mu.Lock()
	d.run = r
	d.console.powerOn(clog, r.began)
	d.notify()
	d.mu.Unlock()

	r.readers.Add(3)
	go func() {
		defer r.readers.Done()
		d.readConsole(r.serial)
	}()
	go func() {
		defer r.readers.Done()
		d.greetings(r.port)
	}()
	go func() {
		defer r.readers.Done()
		r.monitor.read(func(e Event, raw []byte) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e)
			if e.Name == "RESET" {
				// The firmware has the port now; the next hello opens it again.
				d.run.ready = false
			}
			elog.Write(append(raw, '\n'))
			d.notify()
		})
	}()
	go func() {
		// The wires end with QEMU, however it ends, and the readers with them.
		<-r.qemu.done
		r.readers.Wait()
		r.tpm.kill()
		w.closeOurs()
		d.mu.Lock()
		d.run = nil
		d.console.powerOff()
		clog.Close()
		elog.Close()
		d.notify()
		d.mu.Unlock()
	}()

	if err := r.monitor.greet(ctx); err != nil {
		r.qemu.kill()
		<-r.qemu.done
		return fmt.Errorf("%w; %s", err, lastOf(log.Name()))
	}
	return nil
}

// Cut takes the power away: QEMU is killed, whatever it was doing. It returns
// when the machine is off, and is no error when it was off before.
func (d *Device) Cut() error {
	d.power.Lock()
	defer d.power.Unlock()
	r, err := d.running()
	if err != nil {
		return nil
	}
	r.qemu.kill()
	return d.awaitOff(context.Background())
}

// awaitOff waits for the end of a QEMU that has been told or made to end.
func (d *Device) awaitOff(ctx context.Context) error {
	return d.until(ctx, "the end", time.Minute, func() (bool, error) { return d.run == nil, nil })
}

// AwaitOff waits until the machine is off by its own doing (poweroff).
func (d *Device) AwaitOff(ctx context.Context, within time.Duration) error {
	return d.until(ctx, "power-off", within, func() (bool, error) { return d.run == nil, nil })
}

// Remove cuts the power and deletes the state directory.
func (d *Device) Remove() error {
	if err := d.Cut(); err != nil {
		return err
	}
	return os.RemoveAll(d.cfg.Dir)
}

// Reset presses the reset button: the power stays, with what is plugged in; the
// CPU starts over, and the memory is empty.
func (d *Device) Reset(ctx context.Context) error { return d.command(ctx, "system_reset", nil) }

// Freeze stops the virtual CPU and every clock of the machine, the watchdog's
// too: nothing happens until Thaw. It is for looking at a disk at rest; a
// system that hangs while its watchdog runs on is Hang.
func (d *Device) Freeze(ctx context.Context) error { return d.command(ctx, "stop", nil) }

// Thaw lets a frozen machine go on.
func (d *Device) Thaw(ctx context.Context) error { return d.command(ctx, "cont", nil) }

// Link plugs the network cable in or pulls it.
func (d *Device) Link(ctx context.Context, up bool) error {
	return d.command(ctx, "set_link", map[string]any{"name": "net0", "up": up})
}

// Hang stops every process of the guest except the first, as a system does
// whose disk or kernel no longer answers: the clocks run on, nobody feeds the
// watchdog, and it has to reset the machine. It needs a guest with the command
// port.
func (d *Device) Hang(ctx context.Context) error {
	// The port's own process stops too: the answer has to be out before.
	_, err := d.Run(ctx, Command{Argv: []string{"sh", "-c", "sleep 1; kill -STOP -1"}, Detach: true})
	return err
}

// command sends one QMP command whose answer carries nothing.
func (d *Device) command(ctx context.Context, name string, args any) error {
	r, err := d.running()
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, d.cfg.Name, err)
	}
	return r.monitor.do(ctx, name, args, nil)
}

// wire is a pair of connected sockets: one end for us, one for a child. Passing
// them as open descriptors, instead of names in the file system, leaves no
// moment in which a child is not yet listening, and no limit on path lengths.
type wire struct{ ours, theirs *os.File }

type wires struct{ serial, port, monitor, tpm wire }

func newWire() (wire, error) {
	fd, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return wire{}, fmt.Errorf("make socket pair: %w", err)
	}
	// Ours is read and written by goroutines that must not hold a thread each,
	// and must end when it is closed.
	if err := syscall.SetNonblock(fd[0], true); err != nil {
		return wire{}, errors.Join(err, syscall.Close(fd[0]), syscall.Close(fd[1]))
	}
	return wire{ours: os.NewFile(uintptr(fd[0]), "wire"), theirs: os.NewFile(uintptr(fd[1]), "wire")}, nil
}

func (w *wires) each(f func(*wire)) {
	for _, e := range []*wire{&w.serial, &w.port, &w.monitor, &w.tpm} {
		f(e)
	}
}

func (w *wires) closeTheirs() {
	w.each(func(e *wire) {
		if e.theirs != nil {
			e.theirs.Close()
			e.theirs = nil
		}
	})
}

func (w *wires) closeOurs() {
	w.each(func(e *wire) {
		if e.ours != nil {
			e.ours.Close()
		}
	})
}
