package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A hook that takes too long ends with everything that it started; one that fails is
// quoted with its last words.
func TestRunHook(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "alive")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runHook(ctx, "sh", "-c", `exec 3>"$0"; sleep 1000 & wait`, fifo) }()
	alive, err := os.Open(fifo) // when the hook has begun
	require.NoError(t, err)
	defer alive.Close()
	cancel()
	_, err = io.ReadAll(alive) // until the last of them is gone
	require.NoError(t, err)
	require.ErrorIs(t, <-ended, context.Canceled)

	err = runHook(t.Context(), "sh", "-c", `i=0; while [ $i -lt 500 ]; do echo "copied file $i" >&2; i=$((i+1)); done; echo "no room" >&2; exit 1`)
	require.True(t, strings.HasSuffix(err.Error(), "no room"), err)
}
