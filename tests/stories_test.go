// Package tests says what a device must do, end to end: each file in stories/
// is a script that a person could follow at the desk, with a real disk image in
// QEMU, the real device program in it, and the real desk program outside. What
// the device says about itself is compared with what an independent tool says:
// grub-editenv, sha256sum, veritysetup, tpm2_nvread, mosquitto_sub.
//
// README.md lists the commands that scripts have beside those of testscript
// (https://pkg.go.dev/github.com/rogpeppe/go-internal/testscript).
//
//	go test ./tests -run TestStories/update_commit -v
//
// Consoles and logs of every story are kept in build/stories/<name>/.
package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/qemu/debian"
	"github.com/tandem-ota/tandem/tests/factory"
)

// unavailable ends a test whose tools are not here: on a desk with a reason,
// in CI with a failure, because there a story that did not run proves nothing.
func unavailable(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// The claims are in the scripts.
func TestStories(t *testing.T) {
	if testing.Short() {
		t.Skip("stories take minutes; left out by -short")
	}
	for _, err := range []error{qemu.Check(qemu.Config{TPM: true}), oracles(), debian.Check()} {
		if err != nil {
			unavailable(t, err)
		}
	}
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	f, err := factory.Open(t.Context(), root, os.Stderr)
	require.NoError(t, err)
	testscript.Run(t, testscript.Params{
		Dir:                "stories",
		Setup:              func(env *testscript.Env) error { return setUp(env, f, root) },
		Cmds:               commands,
		RequireUniqueNames: true,
	})
}

// commands are what scripts have beside testscript's own; see README.md.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"device": deviceCmd, "guest": guestCmd, "release": releaseCmd, "broker": brokerCmd, "mqtt": mqttCmd,
	"bootenv": bootenvCmd, "part": partCmd, "tpm": tpmCmd, "await": awaitCmd, "memory": memoryCmd, "downloaded": downloadedCmd,
	"system": systemCmd, "installed": installedCmd, "moment": momentCmd, "stick": stickCmd,
}

// story is what one script works on.
type story struct {
	ctx     context.Context
	factory *factory.Factory
	logs    string // folder that stays
	device  *qemu.Device
	broker  *broker
	sticks  map[string]string // image -> SHA-256 when it was made
	jobs    jobs
}

type storyKey struct{}

// of is the story of a running script.
func of(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

// need is the story's device, which an earlier line has to have made.
func (s *story) need(ts *testscript.TestScript) *qemu.Device {
	if s.device == nil {
		ts.Fatalf("no device yet: the story begins with device new")
	}
	return s.device
}

func setUp(env *testscript.Env, f *factory.Factory, root string) error {
	// testscript names the work folder after the script.
	name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
	ctx, cancel := context.WithCancel(context.Background())
	s := &story{ctx: ctx, factory: f, logs: filepath.Join(root, "build", "stories", name)}
	if err := os.MkdirAll(filepath.Dir(s.logs), 0o755); err != nil {
		cancel()
		return err
	}
	// Two runs of a story in one tree would take each other's disk away.
	lock, err := os.OpenFile(s.logs+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		cancel()
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		cancel()
		return errors.Join(fmt.Errorf("another process plays the story %s in this tree: %w", name, err), lock.Close())
	}
	if err := errors.Join(os.RemoveAll(s.logs), os.MkdirAll(s.logs, 0o755)); err != nil {
		cancel()
		return errors.Join(err, lock.Close())
	}
	env.Values[storyKey{}] = s
	env.Defer(func() {
		defer lock.Close()
		s.broker.stop()
		if s.device != nil {
			s.device.Cut()
			// The disk is large and can be made again; what was said cannot.
			os.Remove(s.device.Disk())
		}
		cancel()
	})
	env.Setenv("PATH", f.Bin()+string(os.PathListSeparator)+env.Getenv("PATH"))
	env.Setenv("TRUST", filepath.Join(env.WorkDir, "trust"))
	if err := os.CopyFS(filepath.Join(env.WorkDir, "trust"), os.DirFS(f.Trust())); err != nil {
		return err
	}
	return nil
}

// release NAME prints the folder of a release and sets RELEASE to it.
//
// release pack NAME FILE.tar makes one file of it; release tamper does so too,
// and then changes one letter of what was signed.
func releaseCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: release NAME | release pack NAME FILE.tar")
	}
	if args[0] == "pack" || args[0] == "tamper" {
		if len(args) != 3 {
			ts.Fatalf("usage: release %s NAME FILE.tar", args[0])
		}
		ts.Check(ts.Exec("tandem", "release", "pack", s.factory.Release(args[1]), args[2]))
		if args[0] == "tamper" {
			ts.Check(tamper(ts.MkAbs(args[2])))
		}
		return
	}
	item, err := factory.Spec(args[0])
	ts.Check(err)
	ts.Setenv("RELEASE", s.factory.Release(item.Name))
	ts.Setenv("VERSION", item.Version)
	fmt.Fprintln(ts.Stdout(), s.factory.Release(item.Name))
}

// tamper changes one letter in the payload of the release's envelope.
func tamper(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	at := bytes.Index(text, []byte(`"payload":"`))
	if at < 0 {
		return fmt.Errorf("%s holds no envelope", file)
	}
	at += 100
	if text[at]++; text[at] > 'z' {
		text[at] = 'a'
	}
	return os.WriteFile(file, text, 0o644)
}

// jobs are commands in the guest that a script did not wait for.
type jobs struct {
	mu  sync.Mutex
	end map[string]chan jobEnd
}

type jobEnd struct {
	res qemu.Result
	err error
}

func (j *jobs) start(name string, run func() (qemu.Result, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.end == nil {
		j.end = map[string]chan jobEnd{}
	}
	if j.end[name] != nil {
		return fmt.Errorf("job %s runs already", name)
	}
	end := make(chan jobEnd, 1)
	j.end[name] = end
	go func() {
		res, err := run()
		end <- jobEnd{res, err}
	}()
	return nil
}

// failed says whether a job has ended with an exit code other than 0.
func (j *jobs) failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, end := range j.end {
		select {
		case e := <-end:
			end <- e
			if e.err == nil && e.res.Code != 0 {
				return true
			}
		default:
		}
	}
	return false
}

// ended says how the jobs ended that nobody waited for yet: what a story needs to
// tell when the machine does not do what a job should have made it do.
func (j *jobs) ended() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for name, end := range j.end {
		select {
		case e := <-end:
			fmt.Fprintf(&b, "job %s ended with exit code %d (%v)\n%s%s", name, e.res.Code, e.err, e.res.Stdout, e.res.Stderr)
			end <- e
		default:
			fmt.Fprintf(&b, "job %s still runs\n", name)
		}
	}
	return b.String()
}

func (j *jobs) wait(name string) (qemu.Result, error) {
	j.mu.Lock()
	end := j.end[name]
	delete(j.end, name)
	j.mu.Unlock()
	if end == nil {
		return qemu.Result{}, fmt.Errorf("no job %s", name)
	}
	e := <-end
	return e.res, e.err
}

// show hands a command's output to stdout and stderr, the script's assertions.
func show(ts *testscript.TestScript, r qemu.Result) {
	io.WriteString(ts.Stdout(), r.Stdout)
	io.WriteString(ts.Stderr(), r.Stderr)
}
