package crosscheck

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/tests/workbench"
)

// While an installation stands still in the middle, whatever else is asked of other
// processes of the program is refused as busy, and changes nothing; status is answered. Then
// the installation goes on, and ends as if nobody had been there.
func TestOtherProcesses(t *testing.T) {
	v := newVictim(t, theGoods(t))
	half := v.halfway(t)
	before := v.Disk()
	t.Run("meanwhile", func(t *testing.T) {
		for name, c := range map[string]struct {
			args []string
			code int
		}{
			"another installation": {install, 4},
			"a rollback":           {[]string{"rollback"}, 4},
			"a look":               {[]string{"status"}, 0},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				res := v.Run(c.args...)
				require.Equal(t, c.code, res.Code, res.Output)
			})
		}
	})
	require.Equal(t, before, v.Disk(), "one of them changed something")
	res := half.ends(t)
	require.Zero(t, res.Code, res.Output)
	v.unhurt(t, res, "alone again")
	v.recovers(t, "alone again")
}

// Somebody puts another release in the place of the one that is being installed, or takes it
// away: what is installed in the end is what was asked for, whole and signed, or nothing.
func TestReleaseReplaced(t *testing.T) {
	v := newVictim(t, theGoods(t))
	folder := filepath.Join(v.Dir, "media", target)
	aside := folder + ".aside"
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"gone", func() error { return nil }},
		{"another release", func() error { return os.CopyFS(folder, os.DirFS(filepath.Join(v.Dir, "media/2.0.0"))) }},
		{"files with other bytes", func() error {
			if err := os.CopyFS(folder, os.DirFS(aside)); err != nil {
				return err
			}
			return filepath.WalkDir(folder, func(path string, e os.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				text, err := os.ReadFile(path)
				for i := range text {
					text[i] ^= 0xff
				}
				return errors.Join(err, os.WriteFile(path, text, 0o644))
			})
		}},
		{"pipes that nobody fills", func() error {
			return filepath.WalkDir(aside, func(path string, e os.DirEntry, err error) error {
				to := folder + strings.TrimPrefix(path, aside)
				if err != nil || e.IsDir() {
					return errors.Join(err, os.MkdirAll(to, 0o755))
				}
				return syscall.Mkfifo(to, 0o644)
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.reset()
			half := v.halfway(t)
			require.NoError(t, os.Rename(folder, aside))
			require.NoError(t, c.do())
			res := half.ends(t)
			require.NoError(t, os.RemoveAll(folder))
			require.NoError(t, os.Rename(aside, folder))
			t.Logf("exit code %d: %s", res.Code, res.Output[max(0, len(res.Output)-300):])
			require.Contains(t, []int{0, 1, 3}, res.Code, res.Output)
			v.unhurt(t, res, c.name)
			v.recovers(t, c.name)
		})
	}
}

// Somebody asks the program to stop in the middle of an installation: it does, says so, and
// the next one goes on.
func TestTerminated(t *testing.T) {
	v := newVictim(t, theGoods(t))
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			v.reset()
			half := v.halfway(t)
			require.NoError(t, half.cmd.Process.Signal(signal))
			res := half.ends(t)
			require.Equal(t, 1, res.Code, res.Output)
			require.Contains(t, res.Output, "told to stop")
			v.unhurt(t, res, signal.String())
			v.recovers(t, signal.String())
		})
	}
}

// The program may open only so many files: six is what Go itself needs. It does what it was
// asked for, or says that it cannot, and nothing is hurt.
func TestDescriptors(t *testing.T) {
	need(t, "prlimit", "util-linux")
	v := newVictim(t, theGoods(t))
	codes := map[int]bool{}
	for most := 6; !codes[0]; most++ {
		v.reset()
		res := v.Under([]string{"prlimit", fmt.Sprint("--nofile=", most)}, install...)
		what := fmt.Sprintf("with %d descriptors", most)
		require.Less(t, most, 32, "%s: %s", what, res.Output)
		t.Logf("%s: exit code %d: %s", what, res.Code, res.Output[max(0, len(res.Output)-200):])
		require.Contains(t, []int{0, 1, 5}, res.Code, "%s: %s", what, res.Output)
		codes[res.Code] = true
		v.unhurt(t, res, what)
		v.recovers(t, what)
	}
	require.True(t, codes[1], "the limit was never felt")
}

// half is an installation that stands still in the middle.
type half struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// halfway begins an installation, and stops the process as it begins to change the spare
// slot.
func (v *victim) halfway(t *testing.T) *half {
	t.Helper()
	h := &half{cmd: v.Updater(nil, install...)}
	h.cmd.Stdout, h.cmd.Stderr = &h.out, &h.out
	require.NoError(t, h.cmd.Start())
	t.Cleanup(func() { _ = h.cmd.Process.Kill() })
	record := func() []byte {
		for _, p := range workbench.Parts {
			if p.Label == "root_b" {
				f, err := os.Open(v.Node(p))
				require.NoError(t, err)
				defer f.Close()
				b := make([]byte, partition.RecordSize)
				_, err = f.ReadAt(b, lab.RootSize-partition.RecordSize)
				require.NoError(t, err)
				return b
			}
		}
		return nil
	}
	before := record()
	for end := time.Now().Add(time.Minute); bytes.Equal(before, record()); time.Sleep(100 * time.Microsecond) {
		require.True(t, time.Now().Before(end), "it does not begin: %s", h.out.String())
	}
	require.NoError(t, h.cmd.Process.Signal(syscall.SIGSTOP))
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
		require.NoError(t, err)
		if bytes.Contains(status, []byte("\nState:\tT")) {
			return h
		}
		require.True(t, time.Now().Before(end), "it does not stop: %s", status)
	}
}

// ends lets the installation go on to its end.
func (h *half) ends(t *testing.T) workbench.Result {
	t.Helper()
	require.NoError(t, h.cmd.Process.Signal(syscall.SIGCONT))
	late := time.AfterFunc(3*time.Minute, func() { _ = h.cmd.Process.Kill() })
	_ = h.cmd.Wait() // the code says it
	require.True(t, late.Stop(), "it does not end: %s", h.out.String())
	return workbench.Result{Code: h.cmd.ProcessState.ExitCode(), Output: h.out.String()}
}
