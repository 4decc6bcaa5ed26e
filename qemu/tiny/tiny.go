// Package tiny builds the root file system of the tiny system: the smallest
// thing that Tandem can update in earnest, made in seconds for tests and for
// trying out the lab. Its user space is one program (package guest) beside the
// updater; its kernel is Debian's, whose modules are in the initramfs.
//
// The result is a tree of files. What makes an image of it, with verity and
// a slot record, is boards/image; PROTOCOL.md says how to talk to a guest that
// runs it, and package port does.
package tiny

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tandem-ota/tandem/qemu/tiny/guest"
)

// Program is the import path of the guest's program.
const Program = "github.com/tandem-ota/tandem/qemu/tiny/cmd/tiny"

// Faults are the ways in which a release can be bad; package guest describes them.
var Faults = []string{"hang", "panic", "unhealthy", "slow"}

// KernelHang, added to the command line of a kernel, makes a release whose kernel
// never gets to user space: without a program to start in the initramfs, it waits
// for a root device that does not exist. (Debian's kernel has no kgdbwait.)
const KernelHang = "rdinit=/none root=/dev/none rootwait"

// ErrOptions means that a tree cannot be built from these options.
var ErrOptions = errors.New("tiny system")

// Options say what goes into a tree beside the commands.
type Options struct {
	Version string // of the release, into /etc/os-release; required
	Fault   string // "" or one of Faults
	// Program is the compiled guest program. If empty, it is compiled, which
	// needs the go command and a working directory inside the module.
	Program string
	// Updater is the compiled device program, and goes to /usr/bin/updater.
	// Without one, init feeds the watchdog itself.
	Updater string
	// Files are added as they are, by their absolute path: the trust anchors and
	// device.json in /etc/tandem, for example.
	Files map[string][]byte
}

// dirs are the mount points and folders of the tree. /etc is covered by an overlay,
// /data, /run and the rest by mounts.
var dirs = []string{"bin", "data", "dev", "etc/tandem", "etc/tiny", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var"}

// Build makes the tree in dir, which must be empty or absent. The same options
// and program give the same content; owners and times are for whoever packs it.
func Build(ctx context.Context, dir string, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%w: %s is not empty", ErrOptions, dir)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	program := filepath.Join(dir, "sbin/init")
	if o.Program == "" {
		if err := Compile(ctx, program, Program); err != nil {
			return err
		}
	} else if err := copyFile(program, o.Program); err != nil {
		return err
	}
	if o.Updater != "" {
		if err := copyFile(filepath.Join(dir, "usr/bin/updater"), o.Updater); err != nil {
			return err
		}
	}
	for _, name := range guest.Names() {
		if err := os.Symlink("/sbin/init", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	files := map[string][]byte{
		"/etc/hostname":   []byte("tiny\n"),
		"/etc/hosts":      []byte("127.0.0.1 localhost\n10.0.2.2 host\n"),
		"/etc/os-release": osRelease(o.Version),
		"/etc/passwd":     []byte("root:x:0:0:root:/root:/bin/sh\n"),
		"/etc/group":      []byte("root:x:0:\n"),
	}
	if o.Fault != "" {
		files["/etc/tiny/fault"] = []byte(o.Fault + "\n")
	}
	for name, content := range o.Files {
		files[name] = content
	}
	for name, content := range files {
		path := filepath.Join(dir, filepath.Clean("/"+name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (o Options) check() error {
	if o.Version == "" || strings.ContainsAny(o.Version, "\n\"") {
		return fmt.Errorf("%w: version %q", ErrOptions, o.Version)
	}
	if o.Fault == "" {
		return nil
	}
	for _, fault := range Faults {
		if o.Fault == fault {
			return nil
		}
	}
	return fmt.Errorf("%w: no fault %q; there are %s", ErrOptions, o.Fault, strings.Join(Faults, ", "))
}

func osRelease(version string) []byte {
	quoted, _ := json.Marshal(version)
	return fmt.Appendf(nil, "ID=tiny\nNAME=\"Tandem tiny system\"\nVERSION_ID=%s\n", quoted)
}

// Compile builds a Go program of this module for a guest: static, stripped, and
// the same bytes wherever the module lies.
func Compile(ctx context.Context, out, program string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w\n%s", program, err, text)
	}
	return nil
}

func copyFile(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}
