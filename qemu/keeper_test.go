package qemu

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A kept machine is ruled from another terminal, however deep its directory,
// has only one keeper, and is gone when it is told to go.
func TestKeeper(t *testing.T) {
	cfg := Config{BIOS: true, Image: bootSector(t), Memory: 64}
	if err := Check(cfg); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ctx := t.Context()
	cfg.Dir = filepath.Join(t.TempDir(), strings.Repeat("deep", 30), "dev")
	d, err := New(ctx, cfg)
	require.NoError(t, err)
	_, err = Ask(ctx, cfg.Dir, Request{Verb: "status"})
	require.ErrorIs(t, err, ErrNoKeeper)

	up, end := make(chan bool), make(chan error)
	go func() { end <- Keep(ctx, d, func() { close(up) }) }()
	<-up
	require.ErrorContains(t, Keep(ctx, d, func() {}), "another keeper")

	ask := func(verb string, args ...string) Reply {
		r, err := Ask(ctx, cfg.Dir, Request{Verb: verb, Args: args})
		require.NoError(t, err)
		return r
	}
	ask("power")
	require.Equal(t, "a", ask("boot").Hello.Slot)
	require.True(t, ask("status").State.On)

	term, screen := io.Pipe()
	watch, leave := context.WithCancel(ctx)
	type2, keys := io.Pipe()
	attached := make(chan error)
	go func() { attached <- AttachTo(watch, cfg.Dir, type2, screen) }()
	io.WriteString(keys, "from afar")
	seen := ""
	for buf := make([]byte, 100); !strings.Contains(seen, "from afar"); {
		n, err := term.Read(buf)
		require.NoError(t, err)
		seen += string(buf[:n])
	}
	go io.Copy(io.Discard, term)
	leave()
	require.NoError(t, <-attached)

	_, err = Ask(ctx, cfg.Dir, Request{Verb: "cut"})
	require.NoError(t, err)
	require.False(t, ask("status").State.On)
	_, err = Ask(ctx, cfg.Dir, Request{Verb: "reset"})
	require.ErrorContains(t, err, ErrOff.Error())
	_, err = Ask(ctx, cfg.Dir, Request{Verb: "dance"})
	require.ErrorContains(t, err, `no verb "dance"`)
	ask("power")
	ask("down")
	require.NoError(t, <-end)
	require.NoError(t, d.AwaitOff(ctx, time.Second))
	require.NoFileExists(t, filepath.Join(cfg.Dir, "ctl.sock"))
}
