// Package tpmtest starts a software TPM for tests.
//
// It runs the program swtpm (Debian: swtpm) on a unix socket, each on a state
// directory of its own, so that tests run side by side and an independent tool
// can look at the same TPM: tpm2-tools (Debian: tpm2-tools) with the TCTI that [TPM.TCTI]
// returns. It needs no cgo and no rights.
//
// A test that asks for a TPM where there is no swtpm is skipped with the
// reason, and fails when TANDEM_CI is set.
package tpmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TPM is a running swtpm. It is a transport.TPM of go-tpm. Each command has a
// connection of its own, because swtpm serves one at a time and tpm2-tools want
// theirs.
type TPM struct {
	tb      testing.TB
	dir     string
	process *exec.Cmd
}

// Start starts a blank TPM, which ends with the test.
func Start(tb testing.TB) *TPM {
	tb.Helper()
	Need(tb, "swtpm")
	// Not tb.TempDir: its path grows with the name of the test, and that of a
	// socket may have 107 bytes.
	dir, err := os.MkdirTemp("", "tpm")
	require.NoError(tb, err)
	t := &TPM{tb: tb, dir: dir}
	tb.Cleanup(func() {
		t.stop()
		os.RemoveAll(dir)
	})
	t.start()
	return t
}

// Need skips the test, or fails it in CI, if a program is not installed.
func Need(tb testing.TB, program string) {
	tb.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("TANDEM_CI") != "" {
		tb.Fatalf("%s is not installed", program)
	}
	tb.Skipf("%s is not installed", program)
}

// Reset cuts the TPM's power and gives it back: registers start anew, NV stays.
func (t *TPM) Reset() {
	t.tb.Helper()
	t.stop()
	t.start()
}

// TCTI tells tpm2-tools where the TPM is, as the value of TPM2TOOLS_TCTI.
func (t *TPM) TCTI() string { return "swtpm:path=" + t.socket() }

// Tool runs one of tpm2-tools on this TPM and returns what it prints.
func (t *TPM) Tool(name string, arguments ...string) []byte {
	t.tb.Helper()
	Need(t.tb, name)
	c := exec.Command(name, arguments...)
	c.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+t.TCTI())
	c.Dir = t.dir
	out, err := c.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		t.tb.Fatalf("%v: %v: %s", c.Args, err, failed.Stderr)
	}
	require.NoError(t.tb, err)
	return out
}

// Send carries one command to the TPM and its response back.
func (t *TPM) Send(command []byte) ([]byte, error) {
	c, err := net.Dial("unix", t.socket())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	// A response says its own length; one Read may bring less.
	header := make([]byte, 10)
	if _, err := io.ReadFull(c, header); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(header[2:])
	if n < 10 || n > 1<<16 {
		return nil, fmt.Errorf("response of %d bytes", n)
	}
	response := append(header, make([]byte, n-10)...)
	_, err = io.ReadFull(c, response[10:])
	return response, err
}

func (t *TPM) socket() string { return filepath.Join(t.dir, "socket") }

// start gives swtpm sockets that are already open: a command that comes before it is
// ready waits in the socket, so there is nothing to poll for.
func (t *TPM) start() {
	t.tb.Helper()
	t.process = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.dir,
		"--server", "type=unixio,fd=3", "--ctrl", "type=unixio,fd=4",
		"--flags", "not-need-init,startup-clear")
	for _, path := range []string{t.socket(), t.socket() + ".ctrl"} {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			require.NoError(t.tb, err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t.tb, err)
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		l.Close()
		require.NoError(t.tb, err)
		defer f.Close()
		t.process.ExtraFiles = append(t.process.ExtraFiles, f)
	}
	// A test binary that is killed takes its TPM along.
	t.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t.tb, t.process.Start())
}

func (t *TPM) stop() {
	t.process.Process.Kill()
	t.process.Wait()
}
