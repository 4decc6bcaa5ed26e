package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/updater/tail"
)

const (
	// rebootGrace is how long an orderly shutdown may take before the kernel is asked
	// directly. The watchdog, no longer fed by then, is behind that.
	rebootGrace = 40 * time.Second
	syncGrace   = 5 * time.Second
)

// runHook runs a program of the running system to its end, or until ctx ends. Its output
// goes to our log.
func runHook(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var said tail.Writer
	cmd.Stdout, cmd.Stderr = os.Stderr, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with what it started
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w: %s", program, err, said.Text())
	}
	return nil
}
