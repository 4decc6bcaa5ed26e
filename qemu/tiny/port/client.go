package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// ErrReset means that the guest started anew while a command was running. The
// command may have had any effect or none.
var ErrReset = errors.New("the guest restarted")

// ErrRefused means that the guest did not understand the request.
var ErrRefused = errors.New("the guest refused the request")

// Client is the host's end of a port. Its methods may be called from several
// goroutines.
type Client struct {
	conn io.ReadWriteCloser

	// writing is apart from mu: a guest that does not read for a while must not
	// keep its answers from being taken, or neither side would go on.
	writing sync.Mutex

	mu      sync.Mutex // guards what follows
	id      int
	waiting map[int]chan Message
	hello   Message
	boots   chan struct{} // closed and replaced at each hello
	err     error         // why the port ended
	ended   chan struct{}
}

// Dial connects to the unix socket of a port. The guest need not be up.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's command port: %w", err)
	}
	return NewClient(conn), nil
}

// NewClient takes conn over.
func NewClient(conn io.ReadWriteCloser) *Client {
	c := &Client{
		conn:    conn,
		waiting: make(map[int]chan Message),
		boots:   make(chan struct{}),
		ended:   make(chan struct{}),
	}
	go c.read()
	return c
}

// Close ends the connection and every Run.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) read() {
	lines := NewReader(c.conn, true)
	for {
		var m Message
		err := lines.Next(&m)
		if errors.Is(err, ErrLine) {
			continue // what the firmware wrote may look like anything
		}
		c.mu.Lock()
		if err != nil {
			c.err = err
			close(c.ended)
			c.mu.Unlock()
			return
		}
		if m.Hello > 0 {
			c.greet(m)
		} else if answer, ok := c.waiting[m.ID]; ok {
			delete(c.waiting, m.ID)
			answer <- m
		}
		c.mu.Unlock()
	}
}

// greet notes who the guest is. Commands of a boot that is over have no answer.
func (c *Client) greet(m Message) {
	if m.BootID != c.hello.BootID {
		for id, answer := range c.waiting {
			delete(c.waiting, id)
			close(answer)
		}
	}
	c.hello = m
	close(c.boots)
	c.boots = make(chan struct{})
}

// Boot waits until the guest takes commands in a boot other than bootID; with ""
// any boot will do. It returns the guest's hello.
func (c *Client) Boot(ctx context.Context, bootID string) (Message, error) {
	for {
		c.mu.Lock()
		hello, next := c.hello, c.boots
		c.mu.Unlock()
		if hello.Hello > 0 && hello.BootID != bootID {
			return hello, nil
		}
		select {
		case <-next:
		case <-c.ended:
			return Message{}, fmt.Errorf("wait for the guest: %w", c.err)
		case <-ctx.Done():
			return Message{}, fmt.Errorf("wait for the guest: %w", ctx.Err())
		}
	}
}

// Wake asks a guest that is already up for its hello. Never use it on a machine
// that may be in its firmware.
func (c *Client) Wake() error {
	c.mu.Lock()
	c.id++
	r := Request{ID: c.id, Hello: true}
	c.mu.Unlock()
	return c.send(r)
}

func (c *Client) send(r Request) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return Write(c.conn, r)
}

// Run runs a command in the guest and waits for its answer; the ID of r is set
// by Run. A command that ran and failed is an answer, not an error. The guest must
// be known to be up: see Boot.
func (c *Client) Run(ctx context.Context, r Request) (Message, error) {
	answer := make(chan Message, 1)
	c.mu.Lock()
	c.id++
	r.ID = c.id
	c.waiting[r.ID] = answer
	c.mu.Unlock()
	if err := c.send(r); err != nil {
		c.forget(r.ID)
		return Message{}, fmt.Errorf("run %q in the guest: %w", r.Argv, err)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return Message{}, fmt.Errorf("run %q in the guest: %w", r.Argv, ErrReset)
		}
		if m.RC == nil {
			return Message{}, fmt.Errorf("run %q: %w: %s", r.Argv, ErrRefused, m.Error)
		}
		return m, nil
	case <-c.ended:
		return Message{}, fmt.Errorf("run %q in the guest: %w", r.Argv, c.err)
	case <-ctx.Done():
		c.forget(r.ID)
		return Message{}, fmt.Errorf("run %q in the guest: %w", r.Argv, ctx.Err())
	}
}

func (c *Client) forget(id int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}
