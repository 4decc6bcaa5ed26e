package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/control"
	"github.com/tandem-ota/tandem/updater/manifest"
)

const (
	// aliveEvery and aliveTime: how often the core is asked whether it lives, and how long
	// it may be silent. A machine under full load schedules late.
	aliveEvery = 5 * time.Second
	aliveTime  = time.Minute
)

// agent is `updater run`: it owns the boot record and the watchdog, ends a trial one
// way or the other, and then follows the fleet.
func agent(ctx context.Context, stderr io.Writer) error {
	// Small and steady matters more than fast on a device: collect early. What the agent holds is a few
	// buffers without pointers in them, so a collection is short.
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(24 << 20)
	ring := &ring{w: stderr}
	log := slog.New(slog.NewTextHandler(ring, &slog.HandlerOptions{ReplaceAttr: noTime}))

	d, err := open(false, log)
	if err != nil {
		return err
	}
	defer d.close()
	d.tail = func() []string { return append(kernelLog(20), ring.last(20)...) }
	log.Info("agent starts", "version", version, "board", d.config.Board, "device", d.id, "slot", d.boot.Slot, "release", d.boot.Version, "data", d.boot.Data)
	for _, p := range d.boot.Problems {
		log.Warn("found while booting", "problem", p)
	}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	link, fleet, err := dial(ctx, log)
	if err != nil {
		return err
	}
	feeder, every := d.feeder(log)
	// Without a watchdog too there is a Keeper: it ends a trial at its deadline.
	d.keeper = watchdog.NewKeeper(&patient{f: feeder, log: log}, time.Now)
	core, err := d.core(link, d.keeper)
	if err != nil {
		return err
	}
	go beat(ctx, core, d.keeper.Register("core", aliveTime))
	go guard(ctx, d.keeper, every, core, log)
	s := &service{device: d, core: core, link: fleet.status}
	go func() {
		if err := control.Serve(ctx, control.Socket, s); ctx.Err() == nil {
			stop(err)
		}
	}()
	notify("READY=1")
	if err := core.Resume(ctx); err != nil && ctx.Err() == nil {
		// Said in every status; the device goes on serving, and a person can look.
		log.Error("resume", "err", err)
	}
	err = core.Run(ctx, fleet)
	if link, ok := link.(*mqtt.Link); ok {
		link.Close()
	}
	if errors.Is(err, context.Canceled) {
		return nil // asked to end
	}
	return err
}

// beat reports as long as the core's lock can be had.
func beat(ctx context.Context, core *updater.Updater, lives *watchdog.Check) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			core.Alive()
			lives.Report()
		}
	}
}

// guard feeds the watchdog while that is deserved. When it no longer is, the reason is
// written down and the machine restarts; if that hangs too, the watchdog does it.
func guard(ctx context.Context, keeper *watchdog.Keeper, every time.Duration, core *updater.Updater, log *slog.Logger) {
	err := keeper.Run(ctx, every)
	if ctx.Err() != nil || errors.Is(err, watchdog.ErrStopped) {
		return
	}
	log.Error("watchdog is no longer fed", "err", err)
	if err := core.Expired(err); err != nil {
		log.Error("restart", "err", err)
	}
}

// feeder is what the Keeper feeds and how often: the watchdog, handed over by the first
// program or opened here, or systemd where that owns it. A device that runs without
// its watchdog must be heard of, not bricked: then nothing is fed, and status says so.
func (d *device) feeder(log *slog.Logger) (watchdog.Feeder, time.Duration) {
	w := d.parts.Board.Watchdog
	if d.config.Watchdog == "systemd" {
		usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
		if err != nil || usec <= 0 {
			log.Error("device.json leaves the watchdog to systemd, but the unit has no WatchdogSec=")
			return nobody{}, aliveEvery
		}
		return systemd{}, time.Duration(usec) * time.Microsecond / 4
	}
	if w.Kind == "none" || w.Kind == "" {
		return nobody{}, aliveEvery
	}
	dog, err := openWatchdog(w.Device)
	if err != nil {
		log.Error("NO WATCHDOG guards this device", "err", err)
		return nobody{}, aliveEvery
	}
	timeout, err := dog.SetTimeout(time.Duration(w.TimeoutSeconds) * time.Second)
	if err != nil {
		log.Error("watchdog keeps the time-out it has", "err", err)
		if timeout, err = dog.Timeout(); err != nil || timeout <= 0 {
			timeout = 4 * aliveEvery
		}
	}
	log.Info("watchdog", "identity", dog.Identity(), "timeout", timeout)
	return dog, timeout / 4
}

// openWatchdog takes over the descriptor that the first program left open; if that is
// gone (systemd closes it, the timer runs on), it opens the device.
func openWatchdog(path string) (*watchdog.Device, error) {
	if fd, err := strconv.Atoi(os.Getenv("WATCHDOG_FD")); err == nil {
		if dog, err := watchdog.FromFD(fd); err == nil {
			return dog, nil
		}
	}
	return watchdog.Open(path)
}

// nobody is fed where there is no watchdog.
type nobody struct{}

func (nobody) Feed() error { return nil }

// patient survives a feeding that fails once or twice, as while systemd executes itself
// anew: it is fed four times per time-out, so the third failure is the last chance to
// say why.
type patient struct {
	f      watchdog.Feeder
	log    *slog.Logger
	failed int
}

func (p *patient) Feed() error {
	err := p.f.Feed()
	if err == nil {
		p.failed = 0
		return nil
	}
	if p.failed++; p.failed >= 3 {
		return err
	}
	p.log.Warn("watchdog not fed", "err", err)
	return nil
}

// systemd is fed by a message to the service manager (sd_notify(3)).
type systemd struct{}

func (systemd) Feed() error { return notify("WATCHDOG=1") }

// notify tells the service manager something; without one it does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

// fleet is the link as the core's Run wants it; without one nothing ever comes.
type fleet struct{ link *mqtt.Link }

func (f fleet) Wants() <-chan transport.Want {
	if f.link == nil {
		return nil
	}
	return f.link.Wants()
}

func (f fleet) Source(d manifest.Digest) updater.Source {
	if f.link == nil {
		return noSource{}
	}
	return f.link.Source(d)
}

// What the core asks of a source that can do it, the link can.
var (
	_ updater.Planner = (*mqtt.Source)(nil)
	_ updater.Metered = (*mqtt.Source)(nil)
)

// noSource is where a device gets releases from that has no link.
type noSource struct{}

func (noSource) Manifest(context.Context) ([]byte, error)         { return nil, mqtt.ErrDown }
func (noSource) Metadata(context.Context, string) ([]byte, error) { return nil, mqtt.ErrDown }
func (noSource) ReadRange(context.Context, manifest.Digest, int64, []byte) (int, error) {
	return 0, mqtt.ErrDown
}

// linkStatus is what status says about the link.
type linkStatus struct {
	Configured bool   `json:"configured"`
	Up         bool   `json:"up"`
	Error      string `json:"error,omitempty"`
}

func (f fleet) status() linkStatus {
	if f.link == nil {
		return linkStatus{}
	}
	s := linkStatus{Configured: true, Up: f.link.Up()}
	if err := f.link.Err(); err != nil && !s.Up {
		s.Error = err.Error()
	}
	return s
}

// dial starts the link, if the device was provisioned with one.
func dial(ctx context.Context, log *slog.Logger) (updater.Link, fleet, error) {
	cfg, err := mqtt.Load(filepath.Join(dataDir, "provision"))
	if errors.Is(err, fs.ErrNotExist) {
		log.Warn("not provisioned: no link to a fleet", "missing", err)
		return noLink{}, fleet{}, nil
	}
	if err != nil {
		// A broken link must not keep the device from committing or reverting.
		log.Error("no link to the fleet", "err", err)
		return noLink{}, fleet{}, nil
	}
	cfg.Log = log
	link, err := mqtt.Dial(ctx, cfg)
	if err != nil {
		log.Error("no link to the fleet", "err", err)
		return noLink{}, fleet{}, nil
	}
	return link, fleet{link}, nil
}

// noLink is the link of a device that has none.
type noLink struct{}

func (noLink) Report(transport.State) error      { return mqtt.ErrDown }
func (noLink) Event(transport.Event) error       { return mqtt.ErrDown }
func (noLink) Progress(transport.Progress) error { return mqtt.ErrDown }
func (noLink) Verdict(transport.Verdict) error   { return mqtt.ErrDown }
func (noLink) Up() bool                          { return false }

// kernelLog is the end of the kernel's log.
func kernelLog(n int) []string {
	const readAll = 3 // SYSLOG_ACTION_READ_ALL, syslog(2)
	buf := make([]byte, 16<<10)
	have, err := unix.Klogctl(readAll, buf)
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(buf[:have])), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		// "<6>[ 1.234567] text": the level is for syslogd.
		if _, text, ok := strings.Cut(line, ">"); ok && strings.HasPrefix(line, "<") {
			lines[i] = text
		}
	}
	return lines
}

// noTime leaves times to whoever keeps the log.
func noTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
