package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

// device is the id of the one device of the fleet.
const device = "pump-1"

// desk is what stands on the operator's side: the broker with its block server, and
// a connection that listens to what the device says.
type desk struct {
	home   broker.Home
	store  string
	log    *os.File
	broker *broker.Broker
	blocks *broker.Store
	ears   *mqtt.Client
}

// openDesk starts the broker, with TLS and certificates made for the occasion.
func openDesk(dir string) (d *desk, err error) {
	d = &desk{home: broker.Home(filepath.Join(dir, "broker")), store: filepath.Join(dir, "broker", "store")}
	defer func() {
		if err != nil {
			d.close()
			d, err = nil, fmt.Errorf("open desk: %w", err)
		}
	}()
	if err := os.MkdirAll(string(d.home), 0o700); err != nil {
		return d, err
	}
	if d.log, err = os.Create(filepath.Join(dir, "broker.log")); err != nil {
		return d, err
	}
	if d.blocks, err = broker.OpenStore(d.store); err != nil {
		return d, err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	// 10.0.2.2 is how a guest of QEMU's user network reaches this machine.
	if err := d.home.Init([]string{"localhost", "127.0.0.1", "10.0.2.2"}, []string{"tls://" + l.Addr().String()}, time.Now()); err != nil {
		return d, err
	}
	tls, err := d.home.ServerTLS()
	if err != nil {
		return d, err
	}
	d.broker, err = broker.Start(broker.Config{
		Listener: l, TLS: tls, Store: d.blocks, State: d.home.Retained(), Passwords: d.home.Password,
		Log: slog.New(slog.NewTextHandler(d.log, nil)),
	})
	return d, err
}

// enroll makes the identity of the device, and returns the folder to put on it.
func (d *desk) enroll() (string, error) {
	_, port, err := net.SplitHostPort(d.broker.Addr().String())
	if err != nil {
		return "", err
	}
	return d.home.Enroll(device, mqtt.Provision{Brokers: []string{"tls://10.0.2.2:" + port}}, false, false)
}

// listen calls hear with every message of the device, until the desk is closed.
func (d *desk) listen(ctx context.Context, hear func(transport.Kind, []byte)) error {
	cfg, err := mqtt.Load(d.home.Desk())
	if err != nil {
		return err
	}
	cfg.ID = "desk-demo"
	if d.ears, err = mqtt.Connect(ctx, cfg); err != nil {
		return err
	}
	err = d.ears.Handle(ctx, transport.AllUp, 1, func(topic string, payload []byte, _ bool) {
		if id, kind, err := transport.ParseTopic(topic); err == nil && id == device {
			hear(kind, payload)
		}
	})
	if err != nil {
		return err
	}
	up, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return d.ears.WaitUp(up)
}

// publish runs `tandem publish`, as an operator would, and returns the command line.
func (d *desk) publish(ctx context.Context, g goods, trust string, p parcel) (string, error) {
	args := []string{"publish", "-store", d.store, "-desk", d.home.Desk(), "-trust", trust, "-device", device}
	if p.full != transport.FullFail {
		args = append(args, "-full", p.full)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(g.bin, "tandem"), append(args, p.dir)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tandem publish: %w\n%s", err, out)
	}
	line := "tandem"
	here, _ := os.Getwd()
	for _, a := range cmd.Args[1:] {
		if rel, err := filepath.Rel(here, a); err == nil && filepath.IsAbs(a) {
			a = rel
		}
		line += " " + a
	}
	return line, nil
}

func (d *desk) close() error {
	if d == nil {
		return nil
	}
	var errs []error
	if d.ears != nil {
		errs = append(errs, d.ears.Close())
	}
	if d.broker != nil {
		errs = append(errs, d.broker.Close())
	}
	if d.blocks != nil {
		errs = append(errs, d.blocks.Close())
	}
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	return errors.Join(errs...)
}
