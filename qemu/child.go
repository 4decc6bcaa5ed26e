package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// child is a process that must not outlive us.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was reaped
}

// spawn starts a program whose output goes to log and which has files as
// descriptors 3, 4, …. It is killed when ctx ends, when kill is called, and by
// the kernel when this process dies without doing either.
func spawn(ctx context.Context, log io.Writer, name string, args []string, files []*os.File) (*child, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	// Not our process group: Ctrl-C in a terminal is for the program that
	// started the lab, which then ends the machine in its own order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	fmt.Fprintf(log, "+ %s\n", strings.Join(cmd.Args, " "))
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the *thread* that started the
		// child ends, so that thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// kill ends the child with SIGKILL and waits until it is gone. It may be called
// on nil and more than once.
func (c *child) kill() {
	if c == nil {
		return
	}
	c.cmd.Process.Kill()
	<-c.done
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// lastOf is the end of a log file, for an error message.
func lastOf(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}
