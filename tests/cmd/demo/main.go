// Program demo shows the whole of Tandem on one device in QEMU: it takes a good
// release over MQTT and keeps it, takes a bad one and comes back from it.
//
//	go run ./tests/cmd/demo [-system tiny|debian]
//
// `make demo` runs it after it has installed what it needs. What it leaves behind is in
// build/demo/<system>/: the console, QEMU's events, the device's disk. The exit code
// is 0 if everything that was shown was also so, 1 if not, 130 after Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tandem-ota/tandem/tests/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "\ndemo: FAILED: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout *os.File, stderr io.Writer) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	system := flags.String("system", "tiny", "what runs on the device: "+strings.Join(demo.Systems(), " or "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("what is %q?", flags.Arg(0))
	}
	return demo.Run(ctx, *system, stdout)
}
