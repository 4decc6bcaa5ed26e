package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/transport"
)

// Client speaks to the agent.
type Client struct{ path string }

// Dial returns a client for the agent at path; ErrNoAgent if none listens.
func Dial(path string) (*Client, error) {
	probe, err := net.Dial("unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNoAgent
	}
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	probe.Close()
	return &Client{path}, nil
}

// ask sends a request on a connection of its own. By hand: net/http's client brings a lot
// along that no unix socket needs (see updater/health).
func (c *Client) ask(ctx context.Context, method, path string, body []byte) (*answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, err
	}
	a := &answer{conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })}
	_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: updater\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	if err == nil {
		a.Response, err = http.ReadResponse(bufio.NewReader(conn), nil)
	}
	if err != nil {
		a.close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return a, nil
}

// answer is what the agent says, on a connection that ends with it.
type answer struct {
	*http.Response
	conn net.Conn
	stop func() bool
}

func (a *answer) close() {
	a.stop()
	a.conn.Close()
}

// Status returns the agent's status as JSON.
func (c *Client) Status(ctx context.Context) ([]byte, error) {
	response, err := c.ask(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return nil, err
	}
	defer response.close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = &Failure{Text: string(bytes.TrimSpace(body)), Code: 1}
	}
	return body, err
}

// Do asks for a verb and returns when it is done. An error that the agent names is a
// *Failure. A connection that ends without an outcome is an error too: the machine
// may be rebooting.
func (c *Client) Do(ctx context.Context, verb string, r Request, progress func(transport.Progress)) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	response, err := c.ask(ctx, http.MethodPost, "/v1/"+url.PathEscape(verb), body)
	if err != nil {
		return err
	}
	defer response.close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxRequest))
		return &Failure{Text: string(bytes.TrimSpace(text)), Code: 1}
	}
	lines := json.NewDecoder(response.Body)
	for {
		var l Line
		if err := lines.Decode(&l); err != nil {
			return fmt.Errorf("the agent ended before it was done: %w", err)
		}
		switch {
		case l.Error != "":
			return &Failure{Text: l.Error, Code: l.Code}
		case l.Done:
			return nil
		case l.Progress != nil && progress != nil:
			progress(*l.Progress)
		}
	}
}
