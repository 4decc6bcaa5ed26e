package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

type fake struct {
	verb string
	got  Request
	err  error
}

func (f *fake) Status(context.Context) (any, error) { return map[string]string{"slot": "a"}, nil }

func (f *fake) Do(_ context.Context, verb string, r Request, progress func(transport.Progress)) error {
	f.verb, f.got = verb, r
	progress(transport.Progress{Phase: "writing", Done: 1, Total: 2})
	return f.err
}

func (f *fake) Code(error) int { return 3 }

// What a command asks for reaches the agent, and progress and outcome come back.
func TestClientAndServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	_, err := Dial(path)
	require.ErrorIs(t, err, ErrNoAgent)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	h := &fake{}
	go func() { ended <- Serve(ctx, path, h) }()
	var c *Client
	require.Eventually(t, func() bool { c, err = Dial(path); return err == nil }, 1e10, 1e6)

	status, err := c.Status(ctx)
	require.NoError(t, err)
	require.JSONEq(t, `{"slot":"a"}`, string(status))

	var seen []transport.Progress
	request := Request{Release: "/media/stick", Force: true}
	require.NoError(t, c.Do(ctx, "install", request, func(p transport.Progress) { seen = append(seen, p) }))
	require.Equal(t, "install", h.verb)
	require.Equal(t, request, h.got)
	require.Len(t, seen, 1)

	h.err = errors.New("not made for this board")
	var failure *Failure
	require.ErrorAs(t, c.Do(ctx, "install", request, nil), &failure)
	require.Equal(t, Failure{Text: "not made for this board", Code: 3}, *failure)

	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	_, err = Dial(path)
	require.ErrorIs(t, err, ErrNoAgent)
}

// Whoever only holds a connection open, before a request or after it, loses it after ten
// seconds, and a header that has no end is refused.
func TestConnectionsBounded(t *testing.T) {
	const whole = "GET /v1/status HTTP/1.1\r\nHost: updater\r\n"
	for name, x := range map[string]struct {
		sent string
		says string // first of the answer
		ends time.Duration
	}{
		"nothing":               {"", "", 10 * time.Second},
		"half a request":        {whole, "", 10 * time.Second},
		"a request":             {whole + "\r\n", "HTTP/1.1 200", 10 * time.Second},
		"a large header":        {whole + "X: " + strings.Repeat("x", 15<<10) + "\r\n\r\n", "HTTP/1.1 200", 10 * time.Second},
		"a header too large":    {whole + "X: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", "HTTP/1.1 431", time.Second},
		"a request that closes": {whole + "Connection: close\r\n\r\n", "HTTP/1.1 200", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			server := newServer(t.Context(), &fake{})
			server.ConnContext = nil // a pipe has nobody at its other end
			client, conn := net.Pipe()
			line := pipe{make(chan net.Conn, 1), make(chan struct{})}
			line.conns <- conn
			ended := make(chan error, 1)
			go func() { ended <- server.Serve(line) }()
			start := time.Now()
			go client.Write([]byte(x.sent))
			answer, err := io.ReadAll(client)
			require.NoError(t, err, name)
			require.True(t, strings.HasPrefix(string(answer), x.says), "%s: %.100s", name, answer)
			require.LessOrEqual(t, time.Since(start), x.ends, name)
			client.Close()
			require.NoError(t, server.Close())
			require.ErrorIs(t, <-ended, http.ErrServerClosed)
		})
	}
}

// pipe is a listener that has one connection.
type pipe struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipe) Close() error   { close(p.closed); return nil }
func (p pipe) Addr() net.Addr { return &net.UnixAddr{} }

// The agent's answer takes no more memory than an answer has, whatever comes: a command
// that a technician runs must not take the device down.
func TestAnswerBounded(t *testing.T) {
	const status = 1 << 20 // bytes
	for name, x := range map[string]struct {
		ask   func(c *Client) (int, error) // bytes that came
		code  int
		sent  int
		taken int
	}{
		"a status":                  {askStatus, http.StatusOK, 100, 100},
		"the largest status":        {askStatus, http.StatusOK, status, status},
		"a status of a byte more":   {askStatus, http.StatusOK, status + 1, status},
		"a status that has no end":  {askStatus, http.StatusOK, 8 << 20, status},
		"a refusal":                 {askVerb, http.StatusForbidden, 100, 100},
		"the largest refusal":       {askVerb, http.StatusForbidden, maxRequest, maxRequest},
		"a refusal of a byte more":  {askVerb, http.StatusForbidden, maxRequest + 1, maxRequest},
		"a refusal that has no end": {askVerb, http.StatusForbidden, 8 << 20, maxRequest},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sock")
			listener, err := net.Listen("unix", path)
			require.NoError(t, err)
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(x.code)
				_, _ = w.Write(bytes.Repeat([]byte("x"), x.sent)) // ends when the client has enough
			})}
			ended := make(chan error, 1)
			go func() { ended <- server.Serve(listener) }()
			n, err := x.ask(&Client{path})
			require.Equal(t, x.taken, n)
			var failure *Failure
			require.Equal(t, x.code != http.StatusOK, errors.As(err, &failure), "%v", err)
			require.NoError(t, server.Close())
			require.ErrorIs(t, <-ended, http.ErrServerClosed)
		})
	}
}

func askStatus(c *Client) (int, error) {
	body, err := c.Status(context.Background())
	return len(body), err
}

func askVerb(c *Client) (int, error) {
	err := c.Do(context.Background(), "install", Request{}, nil)
	var failure *Failure
	if errors.As(err, &failure) {
		return len(failure.Text), err
	}
	return 0, err
}

// Nobody but root changes anything, nothing comes from a body that is too large or
// says what nobody knows, and reading is free.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		uid          any
		method, body string
		want         int
	}{
		"somebody else":      {12345, http.MethodPost, "{}", http.StatusForbidden},
		"kernel did not say": {-1, http.MethodPost, "{}", http.StatusForbidden},
		"no credentials":     {nil, http.MethodPost, "{}", http.StatusForbidden},
		"unknown field":      {0, http.MethodPost, `{"Release":"x","evil":1}`, http.StatusBadRequest},
		"too large":          {0, http.MethodPost, `{"release":"` + strings.Repeat("x", maxRequest) + `"}`, http.StatusBadRequest},
		"no object":          {0, http.MethodPost, "", http.StatusBadRequest},
		"root":               {0, http.MethodPost, "{}", http.StatusOK},
		"reading":            {12345, http.MethodGet, "", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			h := &fake{}
			path := "/v1/install"
			if c.method == http.MethodGet {
				path = "/v1/status"
			}
			r := httptest.NewRequest(c.method, path, strings.NewReader(c.body))
			r = r.WithContext(context.WithValue(r.Context(), peer{}, c.uid))
			w := httptest.NewRecorder()
			routes(context.Background(), h).ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code)
			require.Equal(t, c.want == http.StatusOK && c.method == http.MethodPost, h.verb != "")
		})
	}
}
