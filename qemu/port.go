package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

// Hello is what the guest says on its command port after each boot.
type Hello struct {
	Slot    string `json:"slot"`
	Version string `json:"version"`
	BootID  string `json:"boot_id"`
}

// Command is a program to run in the guest.
type Command struct {
	Argv    []string
	Stdin   []byte
	Env     map[string]string
	Timeout time.Duration // default 60 s; also the guest's own limit
	Detach  bool          // do not wait for its end
}

// Result is how a command ended.
type Result struct {
	Code   int // 124 after a time-out, 126 or 127 when it did not start, 128+n after signal n
	Stdout string
	Stderr string
	PID    int // of a detached command
}

// ErrNotReady means that the guest has not said hello on its command port since
// the power is on: wait for it with WaitBoot.
var ErrNotReady = errors.New("the guest does not take commands yet")

// greetings takes in the hellos of one power-on until the port ends.
func (d *Device) greetings(c *port.Client) {
	for id := ""; ; {
		m, err := c.Boot(context.Background(), id)
		if err != nil {
			return
		}
		id = m.BootID
		d.mu.Lock()
		d.hellos = append(d.hellos, Hello{m.Slot, m.Version, m.BootID})
		d.run.ready = true
		d.notify()
		d.mu.Unlock()
	}
}

// Run runs a program in the guest, which must have said hello (WaitBoot). A
// program that fails is a Result with its code, not an error; an error means
// that its end is not known, because the guest restarted (port.ErrReset) or lost
// power (ErrOff), or that it could not be asked for.
func (d *Device) Run(ctx context.Context, c Command) (Result, error) {
	res, err := d.ask(ctx, c)
	if err != nil {
		return res, fmt.Errorf("%s: %w", d.cfg.Name, err)
	}
	return res, nil
}

func (d *Device) ask(ctx context.Context, c Command) (Result, error) {
	r, ready := d.ready()
	if r == nil {
		return Result{}, fmt.Errorf("run %q: %w", c.Argv, ErrOff)
	}
	// What is sent earlier is typed at the firmware, or at GRUB.
	if !ready {
		return Result{}, fmt.Errorf("run %q: %w", c.Argv, ErrNotReady)
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	limit := d.Scaled(c.Timeout)
	// The guest ends the command at its time-out; if no answer comes even
	// then, the guest itself is stuck.
	slack := d.Scaled(30 * time.Second)
	ctx, cancel := context.WithTimeoutCause(ctx, limit+slack, fmt.Errorf("an answer %w in %s", ErrTimeout, limit+slack))
	defer cancel()
	seconds := limit.Seconds()
	m, err := r.port.Run(ctx, port.Request{Argv: c.Argv, Stdin64: c.Stdin, Env: c.Env, TimeoutS: &seconds, Detach: c.Detach})
	if err != nil {
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("run %q: %w\n%s", c.Argv, context.Cause(ctx), d.tail())
		}
		if _, off := d.running(); off != nil {
			return Result{}, fmt.Errorf("%w: %w", err, off)
		}
		return Result{}, err
	}
	return Result{*m.RC, m.Out, m.Err, m.PID}, nil
}

// WaitBoot waits for the guest's next hello: the first one that WaitBoot has
// not returned yet. The machine may go off and on meanwhile.
func (d *Device) WaitBoot(ctx context.Context, within time.Duration) (Hello, error) {
	var h Hello
	err := d.until(ctx, "the next boot", within, func() (bool, error) {
		if d.greeted < len(d.hellos) {
			h = d.hellos[d.greeted]
			d.greeted++
			return true, nil
		}
		return false, nil
	})
	return h, err
}

// SkipBoots makes the next WaitBoot wait for a boot that has not happened yet.
func (d *Device) SkipBoots() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.greeted = len(d.hellos)
}
