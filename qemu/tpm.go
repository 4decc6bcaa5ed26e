package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"time"
)

// TPM runs a program of tpm2-tools on the device's TPM and returns what it
// prints. The machine must be off: a TPM has one owner. The registers are those
// of a TPM that was just switched on; what is non-volatile is the device's.
func (d *Device) TPM(ctx context.Context, name string, args ...string) ([]byte, error) {
	d.power.Lock()
	defer d.power.Unlock()
	if _, err := d.running(); err == nil {
		return nil, fmt.Errorf("read TPM of %s: %w", d.cfg.Name, ErrOn)
	}
	tool, err := exec.LookPath(name)
	if err != nil {
		return nil, &MissingError{map[string]string{name: "tpm2-tools"}}
	}
	port, err := twoPorts()
	if err != nil {
		return nil, fmt.Errorf("read TPM of %s: %w", d.cfg.Name, err)
	}
	// A TPM that does not answer is a result, not a reason to wait for ever.
	ctx, cancel := context.WithTimeout(ctx, d.Scaled(time.Minute))
	defer cancel()
	swtpm, err := spawn(ctx, io.Discard, d.tools.swtpm, []string{
		"socket", "--tpm2", "--tpmstate", "dir=" + d.tpmDir(), "--server", "type=tcp,port=" + strconv.Itoa(port),
		"--ctrl", "type=tcp,port=" + strconv.Itoa(port+1), "--flags", "not-need-init,startup-clear",
	}, nil)
	if err != nil {
		return nil, err
	}
	defer swtpm.kill()
	if err := listening(ctx, swtpm, port+1); err != nil {
		return nil, fmt.Errorf("read TPM of %s: %w", d.cfg.Name, err)
	}
	out, err := exec.CommandContext(ctx, tool, append([]string{"-T", "swtpm:host=127.0.0.1,port=" + strconv.Itoa(port)}, args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("%s on the TPM of %s: %w", name, d.cfg.Name, err)
	}
	return out, nil
}

// twoPorts finds two neighbouring free ports of the loopback: tpm2-tss expects
// swtpm's control port right after its command port (tss2-tcti-swtpm(7)).
func twoPorts() (int, error) {
	for range 100 {
		a, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := a.Addr().(*net.TCPAddr).Port
		b, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port+1))
		a.Close()
		if err == nil {
			b.Close()
			return port, nil
		}
	}
	return 0, errors.New("no two free ports side by side")
}

// listening waits until swtpm's control port takes a connection; the command
// port was opened before it.
func listening(ctx context.Context, swtpm *child, port int) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-swtpm.done:
			return fmt.Errorf("swtpm ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("swtpm does not listen: %w", err)
		}
	}
}
