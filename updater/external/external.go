// Package external runs the handler programs that install images which are not for a
// slot: the firmware of a micro-controller, an FPGA, a modem. What a handler has to
// do is in updater/release/FORMAT.md.
//
// Handlers are part of the running, verified system. They get bytes that were
// verified before; that they do with them what they should is theirs to know.
package external

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/partition/datafile"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/tail"
)

const (
	// Folder is where handlers are.
	Folder = "/usr/lib/tandem/handlers"
	// grace is what a handler has from SIGTERM to SIGKILL.
	grace = 10 * time.Second

	exitNothingToDo = 2
	exitNotNow      = 75 // EX_TEMPFAIL of sysexits.h
)

var (
	// ErrNoHandler means that the system has no program for the target: the release
	// is for another product, or comes too early.
	ErrNoHandler = errors.New("no handler")
	// ErrNotNow means that the handler asks to be called again later.
	ErrNotNow = errors.New("not now")
	// ErrHandler means that the handler could not do it; the message has its words.
	ErrHandler = errors.New("handler failed")
)

// Handlers is the handlers of one device.
type Handlers struct {
	Folder string // of the programs
	State  string // a folder; each handler gets one of its own in it
	Board  string
	Log    io.Writer // standard output of the handlers
}

// Run runs one verb, and ends it when ctx does. done is true if "prepare" found that
// there is nothing to do.
func (h Handlers) Run(ctx context.Context, m manifest.Manifest, img manifest.Image, verb string, stdin io.Reader) (done bool, err error) {
	// The manifest's parser allows no separators in names; a handler is named by
	// signed data all the same, so look twice.
	if img.Target == "" || strings.ContainsAny(img.Target, "/\x00") || strings.HasPrefix(img.Target, ".") {
		return false, fmt.Errorf("%w: %q", ErrNoHandler, img.Target)
	}
	program := filepath.Join(h.Folder, img.Target)
	if _, err := os.Stat(program); err != nil {
		return false, fmt.Errorf("%w for %s: %w", ErrNoHandler, img.Target, err)
	}
	state := filepath.Join(h.State, img.Target)
	for _, folder := range []string{h.State, state} {
		if err := datafile.Mkdir(datafile.OS{}, folder, 0o700); err != nil {
			return false, err
		}
	}
	cmd := exec.CommandContext(ctx, program, verb)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"TANDEM_IMAGE=" + img.Name, "TANDEM_DIGEST=" + string(img.Digest), "TANDEM_SIZE=" + strconv.FormatInt(img.Size, 10),
		"TANDEM_VERSION=" + m.Version, "TANDEM_SEQUENCE=" + strconv.FormatUint(m.Sequence, 10),
		"TANDEM_PRODUCT=" + m.Product, "TANDEM_BOARD=" + h.Board, "TANDEM_STATE=" + state,
	}
	var said tail.Writer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, h.Log, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false, nil
	case ctx.Err() != nil:
		return false, fmt.Errorf("handler %s %s: %w", img.Target, verb, context.Cause(ctx))
	case errors.As(err, &exit) && exit.ExitCode() == exitNothingToDo && verb == "prepare":
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == exitNotNow:
		return false, fmt.Errorf("handler %s %s: %w: %s", img.Target, verb, ErrNotNow, said.Text())
	}
	return false, fmt.Errorf("handler %s %s: %w: %w: %s", img.Target, verb, ErrHandler, err, said.Text())
}
