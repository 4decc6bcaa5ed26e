package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/qemu"
)

const labUsage = `usage: tandem lab VERB DEVICE [ARGUMENTS]

A device is a name; its disk, firmware variables, TPM and logs are in
build/lab/NAME (or -dir). It runs until "down", whichever terminal started it.

  up DEVICE [-image FILE] [-tpm] [-memory MiB] [-forward HOST:GUEST]
                      turn the power on; the first time, with a copy of FILE as its disk
  cut DEVICE          cut the power, whatever it does
  reset DEVICE        press the reset button
  hang DEVICE         stop every process of the system; its watchdog has to help
  freeze|thaw DEVICE  stop the clocks, the watchdog's too, and let them go on
  link DEVICE up|down plug the network cable in, or pull it
  push DEVICE FILE PATH          copy a file into the system
  plug DEVICE NAME IMAGE         plug a USB memory stick in (an image, or files to put on one: FAT32)
  unplug DEVICE NAME             pull it out
  run DEVICE [-timeout S] COMMAND…  run a command in the system; its exit code is ours
  wait DEVICE [-timeout S]       wait for the next boot that nobody waited for yet
  console DEVICE      be at its console; leave with Ctrl-]
  status [DEVICE] [--json]       what it does; without a device: all of them
  down DEVICE [-remove]          turn it off for good; -remove deletes its state
`

// labCmd is `tandem lab`. Its exit code is 0, or that of the command in the
// guest (run), or 1.
func labCmd(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		_, err := io.WriteString(stdout, labUsage)
		return err
	}
	verb, args := args[0], args[1:]
	l := labCall{stdin: stdin, stdout: stdout, stderr: stderr}
	l.flags = flag.NewFlagSet("tandem lab "+verb, flag.ContinueOnError)
	l.flags.SetOutput(stderr)
	l.flags.Usage = func() { io.WriteString(stderr, labUsage) }
	l.flags.StringVar(&l.root, "dir", filepath.Join("build", "lab"), "folder of the lab's devices")
	l.flags.IntVar(&l.seconds, "timeout", 0, "limit in seconds (run, wait)")
	l.flags.BoolVar(&l.json, "json", false, "print JSON (status)")
	l.flags.BoolVar(&l.remove, "remove", false, "delete the device's state (down)")
	l.flags.StringVar(&l.cfg.Image, "image", "", "disk image of a new device (up)")
	l.flags.BoolVar(&l.cfg.TPM, "tpm", false, "with a TPM 2.0 (up)")
	l.flags.IntVar(&l.cfg.Memory, "memory", 0, "MiB (up; default 512)")
	l.flags.StringVar(&l.cfg.Accel, "accel", "", "QEMU's -accel (up; default "+qemu.DefaultAccel+")")
	l.flags.BoolVar(&l.cfg.BIOS, "bios", false, "legacy firmware (up)")
	l.flags.Func("forward", "`HOST:GUEST` TCP ports (up)", l.forward)

	// The device stands before its options, as a subject before a verb's details.
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		l.name, args = args[0], args[1:]
	}
	if err := l.flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	l.args = l.flags.Args()
	if l.name == "" && len(l.args) > 0 {
		l.name, l.args = l.args[0], l.args[1:]
	}
	if verb == "status" && l.name == "" {
		return l.all(ctx)
	}
	if l.name == "" || strings.ContainsAny(l.name, "/ ") || strings.HasPrefix(l.name, ".") {
		return fmt.Errorf("lab %s: %q names no device; see tandem lab help", verb, l.name)
	}
	l.cfg.Dir = filepath.Join(l.root, l.name)
	return l.do(ctx, verb)
}

// labCall is one call of `tandem lab`.
type labCall struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	flags          *flag.FlagSet
	cfg            qemu.Config
	root, name     string
	args           []string
	seconds        int
	json, remove   bool
}

func (l *labCall) forward(s string) error {
	host, guest, _ := strings.Cut(s, ":")
	h, err := strconv.Atoi(host)
	g, err2 := strconv.Atoi(guest)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("want HOST:GUEST, two port numbers")
	}
	l.cfg.Forward = append(l.cfg.Forward, qemu.Forward{Host: h, Guest: g})
	return nil
}

func (l *labCall) do(ctx context.Context, verb string) error {
	want := map[string]int{"link": 1, "push": 2, "unplug": 1}[verb]
	if len(l.args) < want {
		return fmt.Errorf("lab %s %s: wants %d more arguments; see tandem lab help", verb, l.name, want)
	}
	q := qemu.Request{Verb: verb, Args: l.args, Seconds: l.seconds}
	switch verb {
	case "up":
		return l.up(ctx)
	case "keep":
		return l.keep(ctx)
	case "console":
		return l.console(ctx)
	case "status":
		return l.status(ctx, l.name)
	case "run":
		return l.run(ctx, q)
	case "down":
		return l.down(ctx, q)
	case "wait":
		q.Verb = "boot"
		r, err := qemu.Ask(ctx, l.cfg.Dir, q)
		if err == nil {
			fmt.Fprintf(l.stdout, "%s runs slot %s, version %s\n", l.name, r.Hello.Slot, r.Hello.Version)
		}
		return err
	case "push":
		path, err := filepath.Abs(l.args[0])
		if err != nil {
			return err
		}
		q.Args = []string{path, l.args[1]}
	case "plug":
		if len(l.args) < 2 {
			return fmt.Errorf("lab plug %s: wants a name and an image or files", l.name)
		}
		stick, err := l.stick(ctx)
		if err != nil {
			return err
		}
		q.Args = []string{l.args[0], stick}
	case "cut", "reset", "hang", "freeze", "thaw", "link", "unplug":
	default:
		return fmt.Errorf("lab: no verb %q; see tandem lab help", verb)
	}
	_, err := qemu.Ask(ctx, l.cfg.Dir, q)
	return err
}

// stick returns the image to plug in: the one given, or a new one with the files.
func (l *labCall) stick(ctx context.Context) (string, error) {
	files := l.args[1:]
	if len(files) == 1 && strings.HasSuffix(files[0], ".img") {
		return filepath.Abs(files[0])
	}
	image, err := filepath.Abs(filepath.Join(l.cfg.Dir, "stick-"+l.args[0]+".img"))
	if err != nil {
		return "", err
	}
	return image, qemu.MakeStick(ctx, image, files...)
}

// up turns a device on: through its keeper if it has one, else it starts one
// that stays when we and the terminal are gone.
func (l *labCall) up(ctx context.Context) error {
	_, err := qemu.Ask(ctx, l.cfg.Dir, qemu.Request{Verb: "power"})
	if err == nil || !errors.Is(err, qemu.ErrNoKeeper) {
		return err
	}
	if err := qemu.Check(l.cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(l.cfg.Dir, 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(l.cfg.Dir, "keeper.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	word, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer word.Close()
	// What our own flags were, the keeper's are.
	args := []string{"lab", "keep", l.name}
	l.flags.Visit(func(f *flag.Flag) {
		if f.Name != "forward" {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	for _, f := range l.cfg.Forward {
		args = append(args, fmt.Sprintf("-forward=%d:%d", f.Host, f.Guest))
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ready.Close()
		return fmt.Errorf("start keeper of %s: %w", l.name, err)
	}
	ready.Close()
	// The keeper says "ok" or why not, and closes the pipe.
	text, err := io.ReadAll(word)
	if err != nil {
		return err
	}
	if string(text) != "ok" {
		return fmt.Errorf("start %s: %s (see %s)", l.name, strings.TrimSpace(string(text)), log.Name())
	}
	fmt.Fprintf(l.stdout, "%s is on; its console: tandem lab console %s\n", l.name, l.name)
	return cmd.Process.Release()
}

// keep is the process that owns the machine; only up starts it.
func (l *labCall) keep(ctx context.Context) error {
	word := os.NewFile(3, "ready")
	if _, err := word.Stat(); err != nil {
		return errors.New("lab keep is started by lab up")
	}
	defer word.Close()
	d, err := qemu.New(ctx, l.cfg)
	if err == nil {
		err = d.Start(ctx)
	}
	if err == nil {
		err = qemu.Keep(ctx, d, func() {
			io.WriteString(word, "ok")
			word.Close()
		})
	}
	if err != nil {
		io.WriteString(word, err.Error())
	}
	return err
}

func (l *labCall) run(ctx context.Context, q qemu.Request) error {
	if len(q.Args) > 0 && q.Args[0] == "--" {
		q.Args = q.Args[1:]
	}
	if len(q.Args) == 0 {
		return fmt.Errorf("lab run %s: no command", l.name)
	}
	r, err := qemu.Ask(ctx, l.cfg.Dir, q)
	if err != nil {
		return err
	}
	io.WriteString(l.stdout, r.Result.Stdout)
	io.WriteString(l.stderr, r.Result.Stderr)
	if r.Result.Code != 0 {
		return guestExit(r.Result.Code)
	}
	return nil
}

// guestExit is the exit code of a command in the guest, for main to exit with.
type guestExit int

func (e guestExit) Error() string { return fmt.Sprintf("the command ended with exit code %d", int(e)) }
func (e guestExit) ExitCode() int { return int(e) }

func (l *labCall) down(ctx context.Context, q qemu.Request) error {
	_, err := qemu.Ask(ctx, l.cfg.Dir, q)
	if errors.Is(err, qemu.ErrNoKeeper) {
		err = nil // down is where it should be
	}
	if err != nil || !l.remove {
		return err
	}
	return os.RemoveAll(l.cfg.Dir)
}

func (l *labCall) status(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := qemu.Ask(ctx, filepath.Join(l.root, name), qemu.Request{Verb: "status"})
	s := r.State
	if errors.Is(err, qemu.ErrNoKeeper) {
		s, err = &qemu.State{Name: name}, nil
	}
	if err != nil {
		return err
	}
	if l.json {
		return json.NewEncoder(l.stdout).Encode(s)
	}
	what, detail := "off", ""
	switch {
	case s.Frozen:
		what = "frozen"
	case s.On:
		what = "on"
	}
	if s.On {
		detail = fmt.Sprintf("%5.0f s  pid %-7d", s.Seconds, s.PID)
		if s.Last != nil {
			detail += fmt.Sprintf("  slot %s  version %s", s.Last.Slot, s.Last.Version)
		}
		detail += "  | " + s.Console
	}
	_, err = fmt.Fprintf(l.stdout, "%-12s %-7s %s\n", s.Name, what, detail)
	for _, e := range s.Events {
		fmt.Fprintf(l.stdout, "%12s %s\n", "", e)
	}
	return err
}

// all is the status of every device that the lab has.
func (l *labCall) all(ctx context.Context) error {
	entries, err := os.ReadDir(l.root)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, l.status(ctx, e.Name()))
		}
	}
	return err
}

// console puts a terminal into raw mode, so that every key but Ctrl-] goes to
// the machine; what is not a terminal is passed through as it is.
func (l *labCall) console(ctx context.Context) error {
	in := l.stdin
	if f, ok := in.(*os.File); ok {
		restore, err := rawTerminal(f)
		if err == nil {
			defer restore()
			fmt.Fprintf(l.stderr, "console of %s, leave with Ctrl-]\r\n", l.name)
			in = &untilEscape{in: f}
		}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	return qemu.AttachTo(ctx, l.cfg.Dir, in, l.stdout)
}

// untilEscape ends at the key Ctrl-] (0x1d), as telnet's does.
type untilEscape struct{ in io.Reader }

func (u *untilEscape) Read(p []byte) (int, error) {
	n, err := u.in.Read(p)
	for i, b := range p[:n] {
		if b == 0x1d {
			return i, io.EOF
		}
	}
	return n, err
}
