// Factory makes a disk image of the board qemu-x86_64 with the first release of a
// system, and the releases that are for it, for the lab and for looking at.
//
//	factory [-system tiny|debian] -o DIR
//
// DIR gets disk.img and the folders release, slots and trust, as links into
// build/factory, where everything is kept. Run it in the root of the module.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/tandem-ota/tandem/tests/factory"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "factory:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("factory", flag.ContinueOnError)
	f.SetOutput(stderr)
	system := f.String("system", "tiny", "tiny or debian")
	out := f.String("o", "", "`folder` for the links")
	if err := f.Parse(args); err != nil {
		return err
	}
	open, known := map[string]func(context.Context, string, io.Writer) (*factory.Factory, error){
		"tiny": factory.Open, "debian": factory.OpenDebian,
	}[*system]
	if !known || *out == "" {
		f.Usage()
		return fmt.Errorf("want -o, and -system tiny or debian")
	}
	root, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	made, err := open(ctx, root, stderr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"disk.img": made.Disk("one"), "trust": made.Trust(),
		"release": filepath.Dir(made.Release("one")), "slots": filepath.Dir(made.Slots("one")),
	} {
		link := filepath.Join(*out, name)
		if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(stdout, "%s\ntry it: build/bin/tandem lab up mine -tpm -image %s\n", made.Disk("one"), filepath.Join(*out, "disk.img"))
	return err
}
