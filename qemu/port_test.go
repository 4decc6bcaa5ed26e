package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// guest is the far end of a command port.
type guest struct {
	conn net.Conn
	in   *bufio.Scanner
}

func (g *guest) say(format string, args ...any) { fmt.Fprintf(g.conn, format, args...) }

func (g *guest) hear(t *testing.T) (r portRequest) {
	require.True(t, g.in.Scan())
	require.NoError(t, json.Unmarshal(g.in.Bytes(), &r))
	return r
}

func newGuest(t *testing.T) (*port, *guest, chan Hello) {
	near, far := net.Pipe()
	p, hellos := newPort(near), make(chan Hello, 8)
	go p.read(func(h Hello) { hellos <- h })
	t.Cleanup(func() { near.Close(); far.Close() })
	return p, &guest{far, bufio.NewScanner(far)}, hellos
}

const hello = "\x1e" + `{"hello":1,"slot":"b","version":"2.0.0","boot_id":"z","pid":1}` + "\n"

// Whatever firmware and loader print on the port, and however long their lines
// are, nothing is sent before the hello, and the hello is heard.
func TestPortNoise(t *testing.T) {
	p, g, hellos := newGuest(t)
	_, err := p.do(t.Context(), Command{Argv: []string{"true"}})
	require.ErrorContains(t, err, "not said hello")
	g.say("BdsDxe: loading Boot0001\r\n%s\nGRUB\x1e{}\x1enot json\n%s", strings.Repeat("x", 3*portLine), "half a line"+hello)
	require.Equal(t, Hello{1, "b", "2.0.0", "z"}, <-hellos)
}

// Answers find their requests in whatever order they come.
func TestPortOrder(t *testing.T) {
	p, g, hellos := newGuest(t)
	g.say(hello)
	<-hellos
	answers := make(chan portReply, 2)
	for _, word := range []string{"one", "two"} {
		go func() {
			r, err := p.do(t.Context(), Command{Argv: []string{word}})
			if err != nil {
				r.Error = err.Error()
			}
			r.Err = word
			answers <- r
		}()
	}
	a, b := g.hear(t), g.hear(t)
	for _, r := range []portRequest{b, a} {
		g.say("\x1e"+`{"id":%d,"rc":3,"out":%q,"err":""}`+"\n", r.ID, r.Argv[0])
		got := <-answers
		require.Empty(t, got.Error)
		require.Equal(t, 3, *got.RC)
		require.Equal(t, got.Err, got.Out)
	}
}

// A guest that starts over ends the requests it had, and one that refuses a
// request does so with its reason.
func TestPortEnds(t *testing.T) {
	p, g, hellos := newGuest(t)
	g.say(hello)
	<-hellos
	end := make(chan error)
	ask := func() {
		go func() { _, err := p.do(t.Context(), Command{Argv: []string{"x"}}); end <- err }()
	}
	ask()
	g.hear(t)
	g.say(hello)
	require.ErrorIs(t, <-end, ErrRebooted)

	ask()
	g.say("\x1e"+`{"id":%d,"error":"no argv"}`+"\n", g.hear(t).ID)
	require.ErrorContains(t, <-end, "no argv")

	ask()
	g.hear(t)
	g.conn.Close()
	require.ErrorIs(t, <-end, ErrRebooted)
	_, err := p.do(t.Context(), Command{Argv: []string{"x"}})
	require.ErrorIs(t, err, io.ErrClosedPipe)
}
