// Mktiny builds the root file system tree of the tiny system.
//
//	mktiny -version 1.0.0 [-fault hang|panic|unhealthy|slow] [-updater FILE]
//	       [-program FILE] [-file /PATH=FILE]... DIR
//
// DIR must be empty or absent. -program is the compiled guest program
// (qemu/tiny/cmd/tiny); without it mktiny compiles it. -file copies FILE to /PATH
// of the tree, for example -file /etc/tandem/root.json=keys/root.json.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/tandem-ota/tandem/qemu/tiny"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mktiny:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o := tiny.Options{Files: make(map[string][]byte)}
	f := flag.NewFlagSet("mktiny", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.Version, "version", "", "version of the release")
	f.StringVar(&o.Fault, "fault", "", "make a bad release: "+strings.Join(tiny.Faults, ", "))
	f.StringVar(&o.Updater, "updater", "", "the device program")
	f.StringVar(&o.Program, "program", "", "the guest program, compiled")
	f.Func("file", "/PATH=FILE: copy FILE into the tree (repeatable)", func(arg string) error {
		path, file, found := strings.Cut(arg, "=")
		if !found || !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%q is not /PATH=FILE", arg)
		}
		content, err := os.ReadFile(file)
		o.Files[path] = content
		return err
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return fmt.Errorf("one directory is needed")
	}
	return tiny.Build(ctx, f.Arg(0), o)
}
