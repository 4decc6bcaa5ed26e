// Tandem is the desk program: it builds images, makes and signs releases, flashes
// disks, publishes to a fleet and rehearses in the lab.
//
//	tandem image     slots, whole-disk images, flashing
//	tandem keys      signing keys and TUF metadata
//	tandem release   create, sign, pack, inspect, verify and advise on releases
//	tandem broker    the embedded MQTT broker with its block server; enrols devices
//	tandem publish   tell devices which release they should run
//	tandem watch     a live table of devices
//	tandem lab       boards in QEMU: up, push, cut, hang, console, status, down
//	tandem version
//
// Each command explains itself with -h. Exit codes: 0 done, 1 could not be done, 2 wrong
// usage; commands that have more of them say so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is set by the Makefile (-X main.version).
var version = "development"

var commands = map[string]func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error{
	"image":   imageCmd,
	"keys":    keysCmd,
	"release": releaseCmd,
	"broker":  brokerCmd,
	"publish": publishCmd,
	"watch":   watchCmd,
	"lab":     labCmd,
	"version": versionCmd,
}

func main() {
	// Deltas are made with much memory in use for long, and little of it is garbage.
	debug.SetGCPercent(50)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "tandem:", err)
	os.Exit(exitCode(err))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errCommand
	}
	command, ok := commands[args[0]]
	if !ok {
		return fmt.Errorf("no command %q: %w", args[0], errCommand)
	}
	return command(ctx, args[1:], stdin, stdout, stderr)
}

var errCommand = errors.New("usage: tandem image|keys|release|broker|publish|watch|lab|version")

// exitCode is what an error says itself, or 2 for wrong usage, or 1.
func exitCode(err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case errors.As(err, &coded):
		return coded.ExitCode()
	case errors.Is(err, errCommand):
		return 2
	}
	return 1
}

func versionCmd(_ context.Context, _ []string, _ io.Reader, stdout, _ io.Writer) error {
	toolchain := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		toolchain = info.GoVersion
	}
	_, err := fmt.Fprintf(stdout, "tandem %s (%s)\n", version, toolchain)
	return err
}
