// Package health finds out whether a system does its work, by the checks that its
// own release declares: a systemd unit is active, a program succeeds, a URL answers,
// the link is up, a file exists.
//
// Checks are data from a signed manifest; the programs they name are part of the
// system that is checked. A check either holds or it does not, with one line that
// says why; what follows from it is the core's to decide.
package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/tail"
)

// Result is the outcome of one check.
type Result struct {
	OK     bool
	Detail string // one line for people: why not
}

// Prober runs checks on this machine.
type Prober struct {
	// LinkUp says whether the link to the fleet stands.
	LinkUp func() bool
	// Systemctl is the program that knows about units; "systemctl" if empty.
	Systemctl string
}

// Run runs one check, for at most its time-out.
func (p Prober) Run(ctx context.Context, c manifest.Check) Result {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.TimeoutSeconds)*time.Second)
	defer cancel()
	if err := p.probe(ctx, c); err != nil {
		return Result{Detail: strings.TrimSpace(err.Error())}
	}
	return Result{OK: true}
}

func (p Prober) probe(ctx context.Context, c manifest.Check) error {
	switch c.Kind {
	case manifest.CheckUnit:
		systemctl := p.Systemctl
		if systemctl == "" {
			systemctl = "systemctl"
		}
		if err := command(ctx, systemctl, "is-active", "--quiet", "--", c.Target); err != nil {
			return fmt.Errorf("unit %s is not active: %w", c.Target, err)
		}
		return nil
	case manifest.CheckCommand:
		return command(ctx, c.Target, c.Args...)
	case manifest.CheckHTTP:
		return get(ctx, c.Target)
	case manifest.CheckMQTT:
		if p.LinkUp == nil || !p.LinkUp() {
			return errors.New("no link to the fleet")
		}
		return nil
	case manifest.CheckFile:
		_, err := os.Stat(c.Target)
		return err
	}
	return fmt.Errorf("unknown kind of check %q", c.Kind)
}

// command runs a program to its end. Whatever it started goes with it: a check that
// leaves processes behind would, repeated, fill the machine.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out tail.Writer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("took too long: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out.Line())
	}
	return nil
}
