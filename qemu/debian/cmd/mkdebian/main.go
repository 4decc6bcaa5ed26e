// Mkdebian pins and builds the root file systems of the system `debian`.
//
//	mkdebian [-dir build/debian] lock       pin today's packages in qemu/debian/locks
//	mkdebian [-dir build/debian] build N    build release N, print where it is
//
// It runs in the module's root folder. See package qemu/debian.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/qemu/debian"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkdebian:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("mkdebian", flag.ContinueOnError)
	f.SetOutput(stderr)
	dir := f.String("dir", "build/debian", "where packages and results are kept")
	if err := f.Parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() == 1 && f.Arg(0) == "lock":
		return lock(ctx, *dir, stdout)
	case f.NArg() == 2 && f.Arg(0) == "build":
		n, err := strconv.Atoi(f.Arg(1))
		if err != nil {
			return err
		}
		s, err := debian.Build(ctx, *dir, n, stderr)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "root %s\nkernel %s\nmodules %s\n", s.Root, s.Kernel, s.Modules)
		return nil
	}
	return fmt.Errorf("usage: mkdebian [-dir DIR] lock | build N")
}

// lock pins every release, and says what changed.
func lock(ctx context.Context, dir string, stdout io.Writer) error {
	for _, n := range debian.Releases {
		now, err := debian.Resolve(ctx, dir, n)
		if err != nil {
			return err
		}
		now.Comment = append([]string{fmt.Sprintf("Debian release %d, pinned on %s by `mkdebian lock`: NAME VERSION SHA256", n, time.Now().UTC().Format(time.DateOnly))}, now.Comment...)
		if before, err := debian.Locked(n); err == nil {
			for _, line := range before.Differences(now) {
				fmt.Fprintf(stdout, "release %d: %s\n", n, line)
			}
		}
		file := filepath.Join("qemu/debian/locks", fmt.Sprintf("%d.txt", n))
		if err := os.WriteFile(file, []byte(now.String()), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %d packages\n", file, len(now.Packages))
	}
	return nil
}
