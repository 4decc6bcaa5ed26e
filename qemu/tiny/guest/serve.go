package guest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

// defaultTimeout is for requests that name none.
const defaultTimeout = 60 * time.Second

// servePort answers requests on a serial port ("port /dev/ttyS1"), or without
// argument on standard input and output.
func servePort(s streams, args []string) int {
	in, out := s.in, s.out
	if len(args) == 1 {
		// Not the controlling terminal: a ^C in the data is data.
		tty, err := os.OpenFile(args[0], os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			fmt.Fprintln(s.err, err)
			return 1
		}
		defer tty.Close()
		if err := makeRaw(int(tty.Fd())); err != nil {
			fmt.Fprintln(s.err, err)
			return 1
		}
		in, out = tty, tty
	}
	// Programs that are started here may name commands of ours.
	os.Setenv("PATH", strings.TrimPrefix(path[0], "PATH="))
	if err := serve(in, out); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(s.err, err)
		return 1
	}
	return 0
}

// makeRaw switches off everything that a terminal does to bytes, the limit of
// 4096 bytes to a line included.
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON | unix.IXOFF
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB | unix.CBAUD
	t.Cflag |= unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// serve answers requests until the port ends.
func serve(in io.Reader, out io.Writer) error {
	var writing sync.Mutex
	send := func(m port.Message) {
		writing.Lock()
		defer writing.Unlock()
		// A port that does not take an answer takes nothing else either, and the
		// reader notices. But a text can be too long once it is escaped.
		if err := port.Write(out, m); errors.Is(err, port.ErrLine) {
			_ = port.Write(out, port.Message{ID: m.ID, Error: "the answer is too long; ask for base64"})
		}
	}
	hello := identify()
	hello.PID = os.Getpid()
	send(hello)

	var mu sync.Mutex
	active := make(map[int]bool)
	var running sync.WaitGroup
	closing := false
	go func() {
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, unix.SIGTERM)
		<-asked
		mu.Lock()
		closing = true
		mu.Unlock()
		endGently(&running)
	}()
	lines := port.NewReader(in, false)
	for {
		var r port.Request
		err := lines.Next(&r)
		if errors.Is(err, port.ErrLine) {
			send(port.Message{ID: r.ID, Error: err.Error()})
			continue
		}
		if err != nil {
			return err
		}
		mu.Lock()
		used := active[r.ID]
		switch {
		case closing:
			send(port.Message{ID: r.ID, Error: "the system is going down"})
		case r.Hello:
			m := identify()
			m.ID, m.PID = r.ID, os.Getpid()
			send(m)
		case r.ID <= 0 || len(r.Argv) == 0 || r.Argv[0] == "":
			send(port.Message{ID: r.ID, Error: "a request has id and argv"})
		case used:
			send(port.Message{ID: r.ID, Error: "this id is in use"})
		default:
			active[r.ID] = true
			running.Add(1)
			go func() {
				defer running.Done()
				m := answer(r)
				mu.Lock()
				delete(active, r.ID)
				mu.Unlock()
				m.ID = r.ID
				send(m)
			}()
		}
		mu.Unlock()
	}
}

// endGently ends the process, but not before the answers that are about to come:
// the request that made init go down is one of them.
func endGently(running *sync.WaitGroup) {
	answered := make(chan struct{})
	go func() {
		running.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(2 * time.Second):
	}
	os.Exit(0)
}

// answer runs the command of a request.
func answer(r port.Request) port.Message {
	timeout := defaultTimeout
	if r.TimeoutS != nil {
		timeout = time.Duration(*r.TimeoutS * float64(time.Second))
	}
	ctx := context.Background()
	if timeout > 0 && !r.Detach {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{}, path...)
	for key, value := range r.Env {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	cmd.Stdin = io.MultiReader(strings.NewReader(r.Stdin), bytes.NewReader(r.Stdin64))
	// A group of its own, so that a time-out takes the command's children along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	if r.Detach {
		return detach(cmd)
	}
	var out, errout limited
	cmd.Stdout, cmd.Stderr = &out, &errout
	err := cmd.Run()
	rc := exitCode(cmd, err)
	if ctx.Err() != nil {
		rc = 124
	}
	if cmd.ProcessState == nil && err != nil {
		fmt.Fprintln(&errout, err)
	}
	return port.Message{
		RC:        &rc,
		Out:       out.text(r.Base64),
		Err:       errout.text(r.Base64),
		Truncated: out.dropped || errout.dropped,
	}
}

// detach starts a command and does not wait for it.
func detach(cmd *exec.Cmd) port.Message {
	rc := 0
	log, err := os.CreateTemp(logDir, ".log")
	if err == nil {
		defer log.Close()
		cmd.Stdout, cmd.Stderr, cmd.Stdin = log, log, nil
		err = cmd.Start()
	}
	if err != nil {
		rc = exitCode(cmd, err)
		return port.Message{RC: &rc, Err: err.Error() + "\n"}
	}
	// The name cannot be known before the process is.
	_ = os.Rename(log.Name(), filepath.Join(logDir, fmt.Sprintf("%d.log", cmd.Process.Pid)))
	go func() { _ = cmd.Wait() }()
	return port.Message{RC: &rc, PID: cmd.Process.Pid}
}

func exitCode(cmd *exec.Cmd, err error) int {
	if state := cmd.ProcessState; state != nil {
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return state.ExitCode()
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return 127
	}
	return 126
}

// limited keeps the first bytes of an output. The buffer is not embedded: its
// ReadFrom would let a copy past the limit.
type limited struct {
	kept    bytes.Buffer
	dropped bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := port.MaxOutput - l.kept.Len()
	if len(p) > room {
		l.dropped = true
		l.kept.Write(p[:room])
		return len(p), nil
	}
	return l.kept.Write(p)
}

func (l *limited) text(encode bool) string {
	if encode {
		return base64.StdEncoding.EncodeToString(l.kept.Bytes())
	}
	return l.kept.String()
}
