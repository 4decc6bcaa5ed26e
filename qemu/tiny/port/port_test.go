package port

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever firmware, GRUB and a kernel write to the port, the host finds the
// guest's lines and nothing else.
func TestReaderPassesOverNoise(t *testing.T) {
	var in bytes.Buffer
	in.WriteString("\x1b[2JBdsDxe: loading Boot0001\r\n{\"hello\":1,\"slot\":\"x\"}\n\n")
	in.WriteString("GNU GRUB  ")
	require.NoError(t, Write(&in, Message{Hello: 1, Slot: "a"}))
	in.WriteString("\x1e{\"hel")
	require.NoError(t, Write(&in, Message{Hello: 1, Slot: "b"}))
	in.WriteString("\x1enot JSON\n")
	in.WriteString("\x1e" + strings.Repeat("x", MaxLine) + "\n")
	require.NoError(t, Write(&in, Message{Hello: 1, Slot: "c"}))

	r := NewReader(&in, true)
	next := func() (string, error) {
		var m Message
		err := r.Next(&m)
		return m.Slot, err
	}
	for _, want := range []string{"a", "b"} {
		slot, err := next()
		require.NoError(t, err)
		require.Equal(t, want, slot)
	}
	for _, what := range []string{"not JSON", "too long"} {
		_, err := next()
		require.ErrorIs(t, err, ErrLine, what)
	}
	slot, err := next()
	require.NoError(t, err)
	require.Equal(t, "c", slot)
	_, err = next()
	require.ErrorIs(t, err, io.EOF)
}

// A person may type a request without the separator.
func TestReaderOfTheGuest(t *testing.T) {
	r := NewReader(strings.NewReader("\r\n{\"id\":1,\"argv\":[\"ls\"]}\r\n"), false)
	var q Request
	require.NoError(t, r.Next(&q))
	require.Equal(t, []string{"ls"}, q.Argv)
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("noise\n\x1e{\"hello\":1}\n"), true)
	f.Fuzz(func(t *testing.T, in []byte, strict bool) {
		r := NewReader(bytes.NewReader(in), strict)
		for {
			var m Message
			if err := r.Next(&m); err != nil && !errors.Is(err, ErrLine) {
				require.ErrorIs(t, err, io.EOF)
				return
			}
		}
	})
}

// guest is the other end of a client, under the test's control.
type guest struct {
	net.Conn
	lines *Reader
}

func pair(t *testing.T) (*Client, *guest) {
	ours, theirs := net.Pipe()
	c := NewClient(ours)
	t.Cleanup(func() { c.Close() })
	return c, &guest{theirs, NewReader(theirs, false)}
}

// Answers find their requests in whatever order they come, and an answer to
// nothing is dropped.
func TestClientMatchesAnswers(t *testing.T) {
	c, g := pair(t)
	type result struct {
		m   Message
		err error
	}
	results := make(map[string]chan result)
	var requests []Request
	for _, name := range []string{"one", "two"} {
		results[name] = make(chan result, 1)
		go func() {
			m, err := c.Run(context.Background(), Request{Argv: []string{name}})
			results[name] <- result{m, err}
		}()
		var r Request
		require.NoError(t, g.lines.Next(&r))
		requests = append(requests, r)
	}
	rc := 0
	require.NoError(t, Write(g, Message{ID: 99, RC: &rc}))
	for _, r := range []Request{requests[1], requests[0]} {
		require.NoError(t, Write(g, Message{ID: r.ID, RC: &rc, Out: r.Argv[0]}))
	}
	for name, ch := range results {
		r := <-ch
		require.NoError(t, r.err)
		require.Equal(t, name, r.m.Out)
	}
}

// A restart of the guest ends what was running there; a mere hello does not.
func TestClientNoticesReset(t *testing.T) {
	c, g := pair(t)
	require.NoError(t, Write(g, Message{Hello: 1, BootID: "first"}))
	hello, err := c.Boot(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, "first", hello.BootID)

	end := make(chan error, 1)
	go func() {
		_, err := c.Run(context.Background(), Request{Argv: []string{"sleep", "1000"}})
		end <- err
	}()
	var r Request
	require.NoError(t, g.lines.Next(&r))
	require.NoError(t, Write(g, Message{Hello: 1, BootID: "first"}))
	select {
	case err := <-end:
		t.Fatalf("ended by the hello of the same boot: %v", err)
	default:
	}
	require.NoError(t, Write(g, Message{Hello: 1, BootID: "second"}))
	require.ErrorIs(t, <-end, ErrReset)
	hello, err = c.Boot(t.Context(), "first")
	require.NoError(t, err)
	require.Equal(t, "second", hello.BootID)
}

// What the guest refuses, and a port that ends, are errors and not silence.
func TestClientErrors(t *testing.T) {
	c, g := pair(t)
	end := make(chan error, 1)
	ask := func() Request {
		go func() {
			_, err := c.Run(context.Background(), Request{Argv: []string{"x"}})
			end <- err
		}()
		var r Request
		require.NoError(t, g.lines.Next(&r))
		return r
	}
	require.NoError(t, Write(g, Message{ID: ask().ID, Error: "no"}))
	require.ErrorIs(t, <-end, ErrRefused)

	ask()
	require.NoError(t, g.Close())
	require.ErrorIs(t, <-end, io.EOF)
	_, err := c.Boot(t.Context(), "")
	require.ErrorIs(t, err, io.EOF)
}
