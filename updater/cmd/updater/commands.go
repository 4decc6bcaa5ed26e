package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/control"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
)

// version is set by the Makefile (-X main.version).
var version = "development"

// agentStart is how long an agent may take from holding the boot record to listening.
const agentStart = 15 * time.Second

var errUsage = errors.New("usage: updater run|install|status|commit|rollback|cancel|verify|doctor|version; see updater -h")

// options are the flags of all commands; each command takes those that it needs.
type options struct {
	json, force, full, hold bool
	args                    []string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	verb := args[0]
	if verb == "-h" || verb == "--help" || verb == "help" {
		fmt.Fprintln(stdout, errUsage.Error()[len("usage: "):])
		return nil
	}
	var o options
	flags := flag.NewFlagSet("updater "+verb, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.json, "json", false, "JSON output")
	most := 0
	switch verb {
	case "install":
		flags.BoolVar(&o.force, "force", false, "also what is not newer, or failed here before")
		flags.BoolVar(&o.full, "full", false, "whole images where nothing smaller fits")
		flags.BoolVar(&o.hold, "hold", false, "do not reboot")
		most = 1
	case "commit":
		flags.BoolVar(&o.force, "force", false, "end an alarm: compare the running slot with its manifest and make it the good one, though it is not on trial")
	case "rollback":
		flags.BoolVar(&o.force, "force", false, "also to a system that cannot read the present data")
	case "verify":
		most = 1
	}
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if o.args = flags.Args(); len(o.args) > most || (verb == "install" && len(o.args) != 1) {
		return fmt.Errorf("%w: updater %s takes %d arguments, not %q", errUsage, verb, most, o.args)
	}
	switch verb {
	case "run":
		return agent(ctx, stderr)
	case "version":
		return printVersion(stdout, o)
	case "status":
		return status(ctx, stdout, o)
	case "doctor":
		return doctor(ctx, stdout, o)
	case "install", "commit", "rollback", "cancel", "verify":
		return change(ctx, verb, stdout, o)
	}
	return fmt.Errorf("%w: no command %q", errUsage, verb)
}

func printVersion(w io.Writer, o options) error {
	v := map[string]string{"version": version}
	if info, ok := debug.ReadBuildInfo(); ok {
		v["go"] = info.GoVersion
	}
	if o.json {
		return printJSON(w, v)
	}
	_, err := fmt.Fprintf(w, "updater %s (%s)\n", v["version"], v["go"])
	return err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// change does a verb that changes something (or takes long): by the agent if one runs,
// otherwise in this process.
func change(ctx context.Context, verb string, stdout io.Writer, o options) error {
	request := control.Request{Force: o.force, Hold: o.hold}
	if o.full {
		request.Full = transport.FullGo
	}
	if len(o.args) == 1 {
		path, err := filepath.Abs(o.args[0])
		if err != nil {
			return err
		}
		request.Release = path
	}
	rebooting := false
	show := func(p transport.Progress) {
		rebooting = strings.HasPrefix(p.Phase, updater.Rebooting)
		printProgress(stdout, p, o.json)
	}
	client, err := control.Dial(control.Socket)
	if errors.Is(err, control.ErrNoAgent) && verb != "cancel" {
		if err = alone(ctx, verb, request, show); errors.Is(err, partition.ErrBusy) {
			// Somebody holds the boot record: an agent that is just starting, which will
			// listen in a moment, or another command.
			if starting, late := awaitAgent(ctx); late == nil {
				client, err = starting, nil
			}
		}
	}
	if err == nil && client != nil {
		err = client.Do(ctx, verb, request, show)
		// The agent may be gone before its last line is out; what was asked for is done.
		if failure := (*control.Failure)(nil); rebooting && !errors.As(err, &failure) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(stdout).Encode(control.Line{Done: true})
	}
	_, err = fmt.Fprintln(stdout, verb+": done")
	return err
}

// awaitAgent waits for an agent to listen, for as long as one may take to start.
func awaitAgent(ctx context.Context) (*control.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, agentStart)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		client, err := control.Dial(control.Socket)
		if err == nil {
			return client, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// alone does the verb without an agent. The boot record is opened for this process
// alone, so that an agent that starts meanwhile cannot interfere.
func alone(ctx context.Context, verb string, r control.Request, show func(transport.Progress)) error {
	d, err := open(false, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer d.close()
	u, err := d.core(noLink{}, nil)
	if err != nil {
		return err
	}
	return (&service{device: d, core: u}).Do(ctx, verb, r, show)
}

// service does what commands ask for, in the agent or alone.
type service struct {
	device *device
	core   *updater.Updater
	link   func() linkStatus
}

// Do implements control.Handler.
func (s *service) Do(ctx context.Context, verb string, r control.Request, progress func(transport.Progress)) error {
	lines, done := s.core.Watch()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for p := range lines {
			progress(p)
		}
	}()
	err := s.do(ctx, verb, r)
	done()
	<-ended
	return err
}

func (s *service) do(ctx context.Context, verb string, r control.Request) error {
	switch verb {
	case "install":
		src, err := release.Open(r.Release)
		if err != nil {
			return fmt.Errorf("open release %s: %w", r.Release, err)
		}
		defer src.Close()
		o := updater.Options{Force: r.Force, Full: r.Full, Hold: r.Hold}
		return s.core.Install(ctx, src, o)
	case "commit":
		if r.Force {
			return s.core.EndAlarm(ctx)
		}
		return s.core.Commit(ctx)
	case "rollback":
		return s.core.Rollback(ctx, r.Force)
	case "cancel":
		return s.core.Cancel()
	case "verify":
		if r.Release == "" {
			return s.core.VerifySlots(ctx)
		}
		src, err := release.Open(r.Release)
		if err != nil {
			return fmt.Errorf("open release %s: %w", r.Release, err)
		}
		defer src.Close()
		_, err = s.core.CheckRelease(ctx, src, updater.Options{Force: r.Force, Full: transport.FullGo})
		return err
	}
	return fmt.Errorf("%w: no command %q", errUsage, verb)
}

// Code implements control.Handler.
func (s *service) Code(err error) int { return codeOf(err) }

// codeOf is the exit code that stands for an error; see the manual in main.go.
func codeOf(err error) int {
	var failure *control.Failure
	if errors.As(err, &failure) {
		return failure.Code
	}
	for _, class := range []struct {
		code int
		errs []error
	}{
		{2, []error{errUsage}},
		{4, []error{updater.ErrBusy, partition.ErrBusy}},
		{5, []error{errNoDevice, control.ErrNoAgent}},
		{6, []error{updater.ErrAlarm, bootctl.ErrNoRecord}},
		{7, []error{updater.ErrInstalled}},
		{3, []error{
			updater.ErrBoard, updater.ErrDowngrade, updater.ErrEpoch, updater.ErrFailedBefore, updater.ErrAttempts, updater.ErrNoDelta, updater.ErrBudget, updater.ErrBase, updater.ErrMemory,
			updater.ErrNewerData, updater.ErrNoFallback, updater.ErrOnTrial, updater.ErrNotOnTrial, updater.ErrNoAlarm, updater.ErrNotInstalling, updater.ErrCancelled,
			trust.ErrSignature, trust.ErrThreshold, trust.ErrExpired, trust.ErrRollback, trust.ErrNoTarget, trust.ErrMismatch, trust.ErrFormat,
			manifest.ErrFormat, manifest.ErrCritical, manifest.ErrUnsupported, manifest.ErrTooLarge,
			release.ErrFormat, release.ErrUnsafe, transport.ErrLeaf, updater.ErrMismatch,
		}},
	} {
		for _, e := range class.errs {
			if errors.Is(err, e) {
				return class.code
			}
		}
	}
	return 1
}

// hintFor says what a person can do.
func hintFor(err error) string {
	text := err.Error()
	for _, h := range []struct {
		err  error
		hint string
	}{
		{updater.ErrNoDelta, "-full allows to take the whole images"},
		{updater.ErrFailedBefore, "`updater status` says how it ended; -force tries it again"},
		{updater.ErrDowngrade, "-force goes back to an older release, down to the floor of epochs"},
		{updater.ErrBusy, "`updater status` shows it, `updater cancel` ends it"},
		{updater.ErrOnTrial, "`updater commit` keeps the running system, `updater rollback` gives it up"},
		{updater.ErrAlarm, "`updater status` shows it; once you know why, `updater commit -force` makes the running system the good one"},
		{updater.ErrNoAlarm, "`updater commit` ends a trial; after a boot record that could not be read, restart the agent"},
		{trust.ErrExpired, "publish again with newer metadata, or install from a stick"},
		{partition.ErrMounted, "is this board's fstab old? the spare slot must not be mounted"},
		{errNoDevice, "is this a system that Tandem started? /run/tandem/boot.json is written by its first program"},
		{fs.ErrPermission, "run it as root"},
		{context.Canceled, "it was told to stop before it was done; the same command goes on from there"},
	} {
		// The agent's errors come as text.
		if errors.Is(err, h.err) || strings.Contains(text, h.err.Error()) {
			return h.hint
		}
	}
	return ""
}

// printProgress prints one line of progress.
func printProgress(w io.Writer, p transport.Progress, asJSON bool) {
	if asJSON {
		_ = json.NewEncoder(w).Encode(control.Line{Progress: &p})
		return
	}
	if p.Total == 0 {
		fmt.Fprintln(w, p.Phase)
		return
	}
	fmt.Fprintf(w, "%s %3d%%  %.1f of %.1f MiB  %.1f MiB/s  %d s left\n", p.Phase, 100*p.Done/p.Total,
		float64(p.Done)/(1<<20), float64(p.Total)/(1<<20), float64(p.Rate)/(1<<20), p.Left)
}

// readStatus asks the agent, or looks for itself.
func readStatus(ctx context.Context) (json.RawMessage, error) {
	client, err := control.Dial(control.Socket)
	if err == nil {
		return client.Status(ctx)
	}
	if !errors.Is(err, control.ErrNoAgent) {
		return nil, err
	}
	d, err := open(true, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer d.close()
	u, err := d.core(noLink{}, nil)
	if err != nil {
		return nil, err
	}
	s, err := (&service{device: d, core: u}).Status(ctx)
	if err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

func status(ctx context.Context, w io.Writer, o options) error {
	raw, err := readStatus(ctx)
	if err != nil {
		return err
	}
	var s Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	if o.json {
		return printJSON(w, raw)
	}
	_, err = io.WriteString(w, s.Text())
	return err
}
