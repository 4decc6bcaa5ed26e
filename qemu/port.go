package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// portLine is the longest line of the command port, in bytes
// (qemu/tiny/PROTOCOL.md).
const portLine = 1 << 20

// Hello is what the guest says on its command port after each boot.
type Hello struct {
	Protocol int    `json:"hello"`
	Slot     string `json:"slot"`
	Version  string `json:"version"`
	BootID   string `json:"boot_id"`
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

// ErrRebooted means that the guest started over, or lost power, before the
// command's answer came. The command may or may not have been done.
var ErrRebooted = errors.New("the guest went away before it answered")

// port speaks the command port's protocol.
type port struct {
	conn io.ReadWriter
	gone chan struct{}

	mu      sync.Mutex
	ready   bool // nothing may be sent before the first hello: the firmware would read it as typed
	id      int
	waiting map[int]chan portReply
}

type portReply struct {
	ID    int    `json:"id"`
	RC    *int   `json:"rc"`
	Out   string `json:"out"`
	Err   string `json:"err"`
	PID   int    `json:"pid"`
	Error string `json:"error"`
	Hello
}

type portRequest struct {
	ID      int               `json:"id"`
	Argv    []string          `json:"argv"`
	Stdin   []byte            `json:"stdin64,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Timeout int               `json:"timeout_s"`
	Detach  bool              `json:"detach,omitempty"`
}

func newPort(conn io.ReadWriter) *port {
	return &port{conn: conn, gone: make(chan struct{}), waiting: map[int]chan portReply{}}
}

// read takes in lines until the connection ends.
func (p *port) read(hello func(Hello)) {
	defer close(p.gone)
	in := bufio.NewReaderSize(p.conn, portLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue // firmware noise; the rest of the line has no RS and is dropped too
		}
		if err != nil {
			return
		}
		at := bytes.LastIndexByte(line, 0x1e)
		if at < 0 {
			continue
		}
		var r portReply
		if json.Unmarshal(line[at+1:], &r) != nil {
			continue
		}
		p.mu.Lock()
		if r.Protocol != 0 {
			p.ready = true
			for id, w := range p.waiting {
				delete(p.waiting, id)
				close(w)
			}
			p.mu.Unlock()
			hello(r.Hello)
			continue
		}
		w := p.waiting[r.ID]
		delete(p.waiting, r.ID)
		p.mu.Unlock()
		if w != nil {
			w <- r
		}
	}
}

func (p *port) do(ctx context.Context, c Command) (portReply, error) {
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	w := make(chan portReply, 1)
	p.mu.Lock()
	if !p.ready {
		p.mu.Unlock()
		return portReply{}, errors.New("the guest has not said hello on its command port")
	}
	p.id++
	id := p.id
	line, err := json.Marshal(portRequest{id, c.Argv, c.Stdin, c.Env, int((c.Timeout + time.Second - 1) / time.Second), c.Detach})
	if err == nil && len(line) >= portLine {
		err = fmt.Errorf("request of %d bytes is longer than %d", len(line), portLine)
	}
	if err == nil {
		p.waiting[id] = w
		_, err = p.conn.Write(append(line, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		return portReply{}, err
	}
	select {
	case r, ok := <-w:
		if !ok {
			return r, ErrRebooted
		}
		if r.Error != "" {
			return r, fmt.Errorf("the guest refused the request: %s", r.Error)
		}
		if r.RC == nil {
			return r, errors.New("the guest answered without a code")
		}
		return r, nil
	case <-p.gone:
		return portReply{}, ErrRebooted
	case <-ctx.Done():
		return portReply{}, context.Cause(ctx)
	}
}

// Run runs a program in the guest. A program that fails is a Result with its
// code, not an error; an error means that its end is not known (ErrRebooted,
// ErrOff) or that it could not be asked for.
func (d *Device) Run(ctx context.Context, c Command) (Result, error) {
	r, err := d.running()
	if err != nil {
		return Result{}, fmt.Errorf("run %q in %s: %w", c.Argv, d.cfg.Name, err)
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	c.Timeout = time.Duration(float64(c.Timeout) * d.cfg.Patience)
	// The guest ends the command at its time-out; past it, the guest is stuck.
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout+time.Duration(float64(30*time.Second)*d.cfg.Patience),
		fmt.Errorf("%w in %s", ErrTimeout, c.Timeout))
	defer cancel()
	a, err := r.port.do(ctx, c)
	if err != nil {
		return Result{}, fmt.Errorf("run %q in %s: %w\n%s", c.Argv, d.cfg.Name, err, d.tail())
	}
	return Result{*a.RC, a.Out, a.Err, a.PID}, nil
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
