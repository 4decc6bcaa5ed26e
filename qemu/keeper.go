package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A keeper is the process that owns a machine which people use from several
// terminals: QEMU ends with its keeper, so nothing is left running unnoticed.
//
// Its control socket (ctl.sock in the state directory, mode 0600) takes one
// request per connection, a Request as one line of JSON, and answers with a
// Reply as one line. After the reply to "console" the connection is the console.

// Request is what a terminal asks a keeper for.
type Request struct {
	Verb string   `json:"verb"` // power, cut, reset, hang, freeze, thaw, link, push, plug, unplug, run, boot, status, console, down
	Args []string `json:"args,omitempty"`
	// Stdin is for "run".
	Stdin []byte `json:"stdin,omitempty"`
	// Seconds limits "run" and "boot"; 0 is the default of each.
	Seconds int `json:"seconds,omitempty"`
}

// Reply is a keeper's answer.
type Reply struct {
	Error  string  `json:"error,omitempty"`
	State  *State  `json:"state,omitempty"`  // of "status"
	Result *Result `json:"result,omitempty"` // of "run"
	Hello  *Hello  `json:"hello,omitempty"`  // of "boot"
}

// Keep serves the control socket of d until ctx ends or a "down" comes, and
// then cuts the power. ready is called once the socket takes requests.
func Keep(ctx context.Context, d *Device, ready func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	l, err := listen(d.cfg.Dir)
	if err != nil {
		return fmt.Errorf("keep %s: %w", d.cfg.Name, err)
	}
	go func() {
		<-ctx.Done()
		l.Close()
	}()
	ready()
	for {
		conn, err := l.Accept()
		if err != nil {
			// Closed by us; every other cause is the end of the keeper as well,
			// because a machine that nobody can reach must not stay.
			if ctx.Err() != nil {
				err = nil
			}
			return errors.Join(err, d.Cut(), os.Remove(filepath.Join(d.cfg.Dir, "ctl.sock")))
		}
		go func() {
			defer conn.Close()
			if d.serve(ctx, conn) {
				stop()
			}
		}()
	}
}

// serve answers one connection and reports whether it was the last one.
func (d *Device) serve(ctx context.Context, conn net.Conn) (down bool) {
	in := bufio.NewReaderSize(conn, 64<<10)
	line, err := in.ReadBytes('\n')
	var q Request
	if err == nil {
		err = json.Unmarshal(line, &q)
	}
	if err != nil {
		json.NewEncoder(conn).Encode(Reply{Error: fmt.Sprintf("read request: %v", err)})
		return false
	}
	if q.Verb == "console" {
		json.NewEncoder(conn).Encode(Reply{})
		d.Attach(ctx, in, conn)
		return false
	}
	// A terminal that goes away takes its request with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, in)
		cancel()
	}()
	var r Reply
	if err := d.obey(ctx, q, &r); err != nil {
		r.Error = err.Error()
	}
	down = q.Verb == "down" && r.Error == ""
	json.NewEncoder(conn).Encode(r)
	return down
}

func (d *Device) obey(ctx context.Context, q Request, r *Reply) error {
	arg := func(i int) string {
		if i < len(q.Args) {
			return q.Args[i]
		}
		return ""
	}
	limit := time.Duration(q.Seconds) * time.Second
	switch q.Verb {
	case "power":
		// The machine outlives the terminal that turned it on.
		return d.Start(context.WithoutCancel(ctx))
	case "cut":
		return d.Cut()
	case "down":
		return d.Cut()
	case "reset":
		return d.Reset(ctx)
	case "hang":
		return d.Hang(ctx)
	case "freeze":
		return d.Freeze(ctx)
	case "thaw":
		return d.Thaw(ctx)
	case "link":
		return d.Link(ctx, arg(0) != "down")
	case "push":
		return d.Push(ctx, arg(0), arg(1))
	case "plug":
		return d.Plug(ctx, arg(0), arg(1), USB)
	case "unplug":
		return d.Unplug(ctx, arg(0))
	case "run":
		res, err := d.Run(ctx, Command{Argv: q.Args, Stdin: q.Stdin, Timeout: limit})
		r.Result = &res
		return err
	case "boot":
		if limit == 0 {
			limit = 5 * time.Minute
		}
		h, err := d.WaitBoot(ctx, limit)
		r.Hello = &h
		return err
	case "status":
		s := d.Status(ctx)
		r.State = &s
		return nil
	}
	return fmt.Errorf("no verb %q", q.Verb)
}

// Ask sends one request to the keeper of the device in dir. ErrNoKeeper means
// that the device has none.
func Ask(ctx context.Context, dir string, q Request) (Reply, error) {
	conn, r, _, err := call(ctx, dir, q)
	if err == nil {
		conn.Close()
	}
	return r, err
}

// AttachTo connects a terminal to the console of the device in dir, until ctx or in ends.
func AttachTo(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	conn, _, rest, err := call(ctx, dir, Request{Verb: "console"})
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	go func() {
		io.Copy(conn, in)
		conn.(*net.UnixConn).CloseWrite()
	}()
	if _, err = io.Copy(out, rest); ctx.Err() != nil {
		return nil
	}
	return err
}

// ErrNoKeeper means that no machine runs from this state directory.
var ErrNoKeeper = errors.New("no lab machine runs there")

func call(ctx context.Context, dir string, q Request) (net.Conn, Reply, io.Reader, error) {
	path, done, err := short(dir)
	if err != nil {
		return nil, Reply{}, nil, fmt.Errorf("%w: %s: %w", ErrNoKeeper, dir, err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	done()
	if err != nil {
		return nil, Reply{}, nil, fmt.Errorf("%w: %s: %w", ErrNoKeeper, dir, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReader(conn)
	var r Reply
	err = json.NewEncoder(conn).Encode(q)
	if err == nil {
		var line []byte
		if line, err = in.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &r)
		}
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, r, nil, err
	}
	return conn, r, in, nil
}

// listen makes the control socket. A socket that a killed keeper left behind is
// replaced; one that answers is not.
func listen(dir string) (net.Listener, error) {
	path, done, err := short(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, errors.New("another keeper runs")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// The name is only good while the descriptor is open; Keep removes the file.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, os.Chmod(path, 0o600)
}

// short is a name of dir's control socket that fits into a socket address (107
// bytes, unix(7)), however deep dir is.
func short(dir string) (path string, done func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/ctl.sock", f.Fd()), func() { f.Close() }, nil
}
