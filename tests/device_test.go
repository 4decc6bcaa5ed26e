package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

const (
	// bootLimit is how long a boot may take, from power-on to the command port.
	// What comes before the boot, a download say, needs a limit of its own.
	// A machine with a TPM takes a minute when two run on two cores.
	bootLimit = 5 * time.Minute
	// eventLimit covers a watchdog of 60 s that is armed after a slow boot.
	eventLimit = 5 * time.Minute
)

// device is the machine of the story. See README.md.
func deviceCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: device VERB ARGUMENTS; see tests/README.md")
	}
	s := of(ts)
	verb, args := args[0], args[1:]
	if verb == "new" {
		ts.Check(s.newDevice(ts, args))
		return
	}
	d := s.need(ts)
	arg := func(i int) string {
		if i >= len(args) {
			ts.Fatalf("device %s: argument %d is missing", verb, i+1)
		}
		return args[i]
	}
	var err error
	switch verb {
	case "on":
		d.SkipBoots()
		err = d.Start(s.ctx)
	case "cut":
		err = d.Cut()
	case "reset":
		d.SkipBoots()
		d.SkipEvents()
		err = d.Reset(s.ctx)
	case "hang":
		err = d.Hang(s.ctx)
	case "freeze":
		err = d.Freeze(s.ctx)
	case "thaw":
		err = d.Thaw(s.ctx)
	case "link":
		err = d.Link(s.ctx, arg(0) != "down")
	case "boots":
		var limit time.Duration
		limit, args = limited(ts, args, bootLimit)
		err = boots(ts, d, limit, arg(0), arg(1))
	case "event":
		var e qemu.Event
		if e, err = d.WaitEvent(s.ctx, arg(0), eventLimit); err == nil {
			fmt.Fprintln(ts.Stdout(), e)
		}
	case "no-event":
		// Looks back over the whole story; it waits for nothing.
		if slices.ContainsFunc(d.Events(), func(e qemu.Event) bool { return e.Name == arg(0) }) {
			err = fmt.Errorf("there was an event %s", arg(0))
		}
	case "agent":
		err = s.agent(d)
	case "console":
		var re *regexp.Regexp
		if re, err = regexp.Compile("(?m)" + arg(0)); err == nil {
			var found []string
			if found, err = d.Expect(s.ctx, re, eventLimit); err == nil {
				fmt.Fprintln(ts.Stdout(), found[0])
			}
		}
	case "wrote":
		var mib int64
		if mib, err = strconv.ParseInt(arg(1), 10, 64); err == nil {
			err = s.wrote(d, arg(0), mib<<20)
		}
	case "type":
		err = d.Send(arg(0))
	case "off":
		err = d.AwaitOff(s.ctx, bootLimit)
	case "push":
		err = d.Push(s.ctx, ts.MkAbs(arg(0)), arg(1))
	case "plug":
		err = s.plug(ts, d, arg(0), args[1:])
	case "unplug":
		err = d.Unplug(s.ctx, arg(0))
	default:
		ts.Fatalf("device: no verb %q; see tests/README.md", verb)
	}
	ts.Check(err)
}

// newDevice makes the device of a story: device new [RELEASE] [tpm] [provision FOLDER].
func (s *story) newDevice(ts *testscript.TestScript, args []string) error {
	cfg := qemu.Config{Dir: filepath.Join(s.logs, "device"), Name: filepath.Base(s.logs), Image: s.factory.Disk("one")}
	provision := ""
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "tpm":
			cfg.TPM = true
		case "provision":
			if i++; i == len(args) {
				return errors.New("device new provision: which folder?")
			}
			provision = ts.MkAbs(args[i])
		case "one", "two":
			cfg.Image = s.factory.Disk(args[i])
		default:
			return fmt.Errorf("device new: what is %q?", args[i])
		}
	}
	d, err := qemu.New(s.ctx, cfg)
	if err != nil {
		return err
	}
	s.device = d
	if provision == "" {
		return nil
	}
	// What is on the data partition of a device that was provisioned.
	stage := filepath.Join(s.logs, "data")
	if err := os.CopyFS(filepath.Join(stage, "tandem", "provision"), os.DirFS(provision)); err != nil {
		return err
	}
	return image.ProvisionData(s.ctx, d.Disk(), s.factory.Board(), stage)
}

// limited takes the option -limit SECONDS off a command, which otherwise has a limit of its own.
func limited(ts *testscript.TestScript, args []string, limit time.Duration) (time.Duration, []string) {
	if len(args) < 2 || args[0] != "-limit" {
		return limit, args
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	return time.Duration(n) * time.Second, args[2:]
}

// boots waits for the next boot and compares it: device boots [-limit SECONDS] SLOT
// VERSION. A job that fails meanwhile ends the wait: it was to make the device boot.
func boots(ts *testscript.TestScript, d *qemu.Device, limit time.Duration, slot, version string) error {
	s := of(ts)
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	go func() {
		for {
			select {
			case <-watch.C:
				if s.jobs.failed() {
					cancel(errors.New("a job failed"))
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	h, err := d.WaitBoot(ctx, limit)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.jobs.ended())
	}
	if h.Slot != slot || h.Version != version {
		return fmt.Errorf("slot %s booted with version %s, want slot %s with %s", h.Slot, h.Version, slot, version)
	}
	return nil
}

// wrote waits until the device has put so many bytes into a partition that was
// empty, as seen from outside: device wrote LABEL MiB.
func (s *story) wrote(d *qemu.Device, label string, want int64) error {
	end := time.Now().Add(d.Scaled(bootLimit))
	for {
		have, err := d.Allocated(s.ctx, label)
		if err != nil || have >= want {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("partition %s has %d bytes after %s, want %d", label, have, bootLimit, want)
		}
		// A look at a file of the host; the guest does not notice.
		time.Sleep(50 * time.Millisecond)
	}
}

// agent waits until the device program of this boot takes commands.
func (s *story) agent(d *qemu.Device) error {
	// A loop in the guest, so that a slow one is not kept busy by questions.
	res, err := d.Run(s.ctx, qemu.Command{
		Argv: []string{"sh", "-c", "until [ -S /run/tandem/updater.sock ]; do sleep 0.2; done"}, Timeout: bootLimit,
	})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("the device program does not take commands: exit code %d %s", res.Code, res.Stderr)
	}
	return err
}

// guest runs a command in the device:
//
//	[!] guest COMMAND…         and waits for its end
//	guest -job NAME COMMAND…   and goes on; guest -wait NAME waits for its end
//	guest -lost NAME           waits for the end of a job whose machine goes away
//	guest -limit SECONDS …     the first option: other than 60 s
func guestCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	d := s.need(ts)
	limit, args := limited(ts, args, time.Minute)
	c := qemu.Command{Timeout: limit}
	if len(args) < 1 {
		ts.Fatalf("usage: guest [-limit SECONDS] [-job NAME] COMMAND…")
	}
	var res qemu.Result
	var err error
	switch args[0] {
	case "-job":
		if len(args) < 3 {
			ts.Fatalf("usage: guest -job NAME COMMAND…")
		}
		c.Argv = args[2:]
		ts.Check(s.jobs.start(args[1], func() (qemu.Result, error) { return d.Run(s.ctx, c) }))
		return
	case "-wait", "-lost":
		if len(args) != 2 {
			ts.Fatalf("usage: guest %s NAME", args[0])
		}
		res, err = s.jobs.wait(args[1])
		if args[0] == "-lost" {
			if err == nil {
				ts.Fatalf("job %s ended with exit code %d before its machine went away:\n%s%s", args[1], res.Code, res.Stdout, res.Stderr)
			}
			return
		}
	default:
		c.Argv = args
		res, err = d.Run(s.ctx, c)
	}
	ts.Check(err)
	show(ts, res)
	switch {
	case neg && res.Code == 0:
		ts.Fatalf("unexpected success of %q", c.Argv)
	case !neg && res.Code != 0:
		ts.Fatalf("%q in the guest: exit code %d", c.Argv, res.Code)
	}
}

// await runs a command in the device again and again until its output matches:
// await [-limit SECONDS] REGEXP COMMAND…. It is for what the device does by itself and
// announces nowhere. A machine that restarts meanwhile is asked again.
func awaitCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	d := s.need(ts)
	limit, args := limited(ts, args, 3*time.Minute)
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await [-limit SECONDS] REGEXP COMMAND…")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	end := time.Now().Add(d.Scaled(limit))
	for {
		res, err := d.Run(s.ctx, qemu.Command{Argv: args[1:]})
		if err == nil && re.MatchString(res.Stdout) {
			show(ts, res)
			return
		}
		if err != nil && !errors.Is(err, port.ErrReset) && !errors.Is(err, qemu.ErrNotReady) {
			ts.Check(err)
		}
		if time.Now().After(end) {
			ts.Fatalf("%q did not say %q in %s; last:\n%s%s", args[1:], args[0], limit, res.Stdout, res.Stderr)
		}
		// The pause spares the guest; nothing is concluded from it.
		time.Sleep(500 * time.Millisecond)
	}
}
