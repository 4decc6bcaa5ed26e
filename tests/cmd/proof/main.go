// Program proof runs what shows that a device cannot be bricked, and writes one page about
// it: build/proof.txt and build/proof.html.
//
//	go run ./tests/cmd/proof [-quick] [-again] [-packages REGEXP]
//
// `make proof` runs it after it has installed what it needs: the tests of all packages, all
// stories, and package mutants, twice, unless build/ has what it found on this commit. -quick
// runs a sample of what takes long, the stories that requirements name, and no random bugs;
// -again goes on after an interruption, or where a package
// failed, and does not run again what passed on this commit; -packages runs some, to look at
// the page before hours have passed. The exit code is 0 if all bars are met, 1 if not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/tandem-ota/tandem/tests/proof"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "proof:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("proof", flag.ContinueOnError)
	flags.SetOutput(stderr)
	o := proof.Options{Root: ".", Out: "build", Stdout: stdout}
	flags.BoolVar(&o.Quick, "quick", false, "CI's sample of what takes long")
	flags.BoolVar(&o.Again, "again", false, "go on: do not run again what passed on this commit before")
	flags.StringVar(&o.Only, "packages", "", "only packages that match this regular expression; the bars of the others are missed then")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("what is %q?", flags.Arg(0))
	}
	return proof.Prove(ctx, o)
}
