package external

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
)

const handler = `#!/bin/sh
echo "$1 $TANDEM_IMAGE $TANDEM_VERSION $TANDEM_BOARD" >>"$TANDEM_STATE/calls"
case "$1" in
prepare) [ "$TANDEM_SIZE" = 5 ] || exit 2 ;;
write) cat >"$TANDEM_STATE/image" ;;
commit) echo "bus is busy" >&2; exit 75 ;;
revert) echo "no answer from the controller" >&2; exit 1 ;;
esac
`

// A handler is called with the verb, knows what it is for, gets the bytes on its
// standard input, and its exit code means what the format says.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	programs := filepath.Join(dir, "handlers")
	require.NoError(t, os.Mkdir(programs, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(programs, "plc"), []byte(handler), 0o700))
	h := Handlers{Folder: programs, State: filepath.Join(dir, "state"), Board: "board", Log: io.Discard}
	m := manifest.Manifest{Version: "2.0.0", Product: "product"}
	img := manifest.Image{Name: "firmware", Target: "plc", Content: manifest.Content{Digest: manifest.DigestOf([]byte("hello")), Size: 5}}
	ctx := context.Background()

	done, err := h.Run(ctx, m, img, "prepare", nil)
	require.NoError(t, err)
	require.False(t, done)
	_, err = h.Run(ctx, m, img, "write", strings.NewReader("hello"))
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(dir, "state/plc/image"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(content))
	_, err = h.Run(ctx, m, img, "commit", nil)
	require.ErrorIs(t, err, ErrNotNow)
	require.ErrorContains(t, err, "bus is busy")
	_, err = h.Run(ctx, m, img, "revert", nil)
	require.ErrorIs(t, err, ErrHandler)
	require.ErrorContains(t, err, "no answer from the controller")
	calls, err := os.ReadFile(filepath.Join(dir, "state/plc/calls"))
	require.NoError(t, err)
	require.Equal(t, "prepare firmware 2.0.0 board\nwrite firmware 2.0.0 board\ncommit firmware 2.0.0 board\nrevert firmware 2.0.0 board\n", string(calls))

	img.Size = 6
	done, err = h.Run(ctx, m, img, "prepare", nil)
	require.NoError(t, err)
	require.True(t, done, "the controller has it already")

	// Also where such a program is there.
	require.NoError(t, os.Mkdir(filepath.Join(programs, "a"), 0o700))
	for _, name := range []string{"../plc", ".plc", "a/b"} {
		require.NoError(t, os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"), 0o700))
	}
	for _, target := range []string{"absent", "", "../plc", ".plc", "a/b", "..", "plc\x00"} {
		img.Target = target
		_, err = h.Run(ctx, m, img, "prepare", nil)
		require.ErrorIs(t, err, ErrNoHandler, target)
	}
}
