package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

const brokerUsage = `usage: tandem broker [options]
       tandem broker enroll [options] ID

Runs an MQTT broker with a block server for the devices of a desk, a plant or the
lab. With --connect it runs the block server alone, on a broker that somebody else
runs (transport/mosquitto.conf).

enroll makes the folder to put on a device at /data/tandem/provision: its id, the
address of the broker, and what proves to each who the other is.

`

// several is a flag that may be given several times.
type several []string

func (l *several) String() string     { return strings.Join(*l, ",") }
func (l *several) Set(s string) error { *l = append(*l, s); return nil }

// brokerCmd runs "tandem broker".
func brokerCmd(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "enroll" {
		return quietHelp(brokerEnroll(args[1:], stdout, stderr))
	}
	return quietHelp(brokerRun(ctx, args, stdout, stderr))
}

func quietHelp(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

func linkFlags(name, usage string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("tandem "+name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	return f
}

// operands parses options, which may stand before and after the operands, and
// returns these.
func operands(f *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, coded{err, exitUsage}
		}
		if args = f.Args(); len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	return rest, nil
}

func brokerRun(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := linkFlags("broker", brokerUsage, stderr)
	home := f.String("home", "broker", "folder of the broker: certificates, devices, retained messages")
	listen := f.String("listen", "127.0.0.1:8883", "address to listen on")
	store := f.String("store", "", "folder with the releases to serve (default HOME/store)")
	initialize := f.Bool("init", false, "make authority and certificates if there are none")
	lab := f.Bool("lab", false, "let devices in without proof of their id")
	connect := f.String("connect", "", "serve blocks on the broker at this URL instead of running one")
	desk := f.String("desk", "", "with --connect: provisioning folder to connect with (default HOME/desk)")
	verbose := f.Bool("v", false, "say more")
	var hosts several
	f.Var(&hosts, "host", "with --init: one more name or address for the broker's certificate")
	rest, err := operands(f, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		f.Usage()
		return usageError("unknown argument %q", rest[0])
	}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	h := broker.Home(*home)
	if *store == "" {
		*store = filepath.Join(*home, "store")
	}
	s, err := broker.OpenStore(*store)
	if err != nil {
		return err
	}
	defer s.Close()

	if *connect != "" {
		if *desk == "" {
			*desk = h.Desk()
		}
		cfg, err := deskConfig(*desk, "blocks", []string{*connect})
		if err != nil {
			return err
		}
		cfg.Log = log
		fmt.Fprintf(stdout, "serving %s on %s\n", *store, *connect)
		return broker.Serve(ctx, cfg, s)
	}

	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen for devices: %w", err)
	}
	if _, err := os.Stat(filepath.Join(*home, "ca.pem")); *initialize && errors.Is(err, os.ErrNotExist) {
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err == nil {
			err = h.Init(append(hosts, "localhost", "127.0.0.1", "::1"), []string{"tls://127.0.0.1:" + port}, time.Now())
		}
		if err != nil {
			l.Close()
			return err
		}
		fmt.Fprintf(stdout, "made certificates in %s\n", *home)
	}
	tls, err := h.ServerTLS()
	if err != nil {
		l.Close()
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w\nhint: tandem broker --init makes it", err)
		}
		return err
	}
	b, err := broker.Start(broker.Config{
		Listener: l, TLS: tls, Store: s, State: h.Retained(), Passwords: h.Password, Open: *lab, Log: log,
	})
	if err != nil {
		l.Close()
		return err
	}
	fmt.Fprintf(stdout, "listening on tls://%s, serving %s\n", b.Addr(), *store)
	<-ctx.Done()
	return b.Close()
}

func brokerEnroll(args []string, stdout, stderr io.Writer) error {
	f := linkFlags("broker enroll", brokerUsage, stderr)
	home := f.String("home", "broker", "folder of the broker")
	password := f.Bool("password", false, "make a password instead of a certificate")
	again := f.Bool("again", false, "replace what was made for this id before")
	desk := f.Bool("desk", false, "for a tool of the desk, with an id that begins with desk-")
	rate := f.Int64("rate", 0, "bytes a second that the device may download, 0: no limit")
	budget := f.Int64("budget", 0, "bytes that the device may download between two starts of its program, 0: no limit")
	var urls several
	f.Var(&urls, "url", "broker as the device reaches it, tls://host:port; several for several brokers (default: the desk's)")
	ids, err := operands(f, args)
	if err != nil {
		return err
	}
	if len(ids) != 1 {
		f.Usage()
		return usageError("%d ids, want one", len(ids))
	}
	h := broker.Home(*home)
	if len(urls) == 0 {
		cfg, err := mqtt.Load(h.Desk())
		if err != nil {
			return fmt.Errorf("%w\nhint: tandem broker --init makes the desk's folder", err)
		}
		urls = cfg.Brokers
	}
	p := mqtt.Provision{Brokers: urls, Rate: *rate, Budget: *budget}
	var dir string
	if *desk {
		dir, err = h.EnrollDesk(ids[0], p, *again)
	} else {
		dir, err = h.Enroll(ids[0], p, *password, *again)
	}
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w\nhint: --again makes a new certificate; the old one stays valid", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, dir)
	return nil
}

// deskConfig reads a provisioning folder of the desk. Two tools with the same
// client id would throw each other out, so that those that share the folder
// "desk" get a name of their own.
func deskConfig(dir, tool string, brokers []string) (mqtt.Config, error) {
	cfg, err := mqtt.Load(dir)
	if err != nil {
		return cfg, err
	}
	if cfg.ID == "desk" {
		var n [6]byte
		if _, err := rand.Read(n[:]); err != nil {
			return cfg, err
		}
		cfg.ID = "desk-" + tool + "-" + hex.EncodeToString(n[:])
	}
	if len(brokers) > 0 {
		cfg.Brokers = brokers
	}
	return cfg, nil
}
