// Package debian builds the system `debian`: a Debian 12 with systemd, in two
// releases, as an OEM would build a product from packages. The first is Debian's point
// release; the second adds the security updates of a day, the kernel's among them.
//
// What goes in is pinned: locks/1.txt and locks/2.txt hold name, version and SHA-256
// of every package (type [Lock]). mmdebstrap installs exactly those, from a
// repository that holds nothing else, into an archive; what makes it a product is in
// files beside this one, and goes in when the image is made:
//
//	packages.txt        what the system is asked to hold; a lock adds what these need
//	finish.sh           run on the installed system before it is packed: read-only root
//	product/            the updater's unit, network, writable places
//	watchdog-systemd/   drop-ins for the other owner of the watchdog
//	lab/                a prompt without password and the command port: never in a product
//
// README.md says how it is put together and why.
package debian

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/boards/image"
)

//go:embed locks/*.txt
var locks embed.FS

//go:embed packages.txt
var wanted string

//go:embed finish.sh
var finish []byte

//go:embed product lab watchdog-systemd
var trees embed.FS

// Releases are the numbers of the releases that there are.
var Releases = []int{1, 2}

// System is a built system, as package image takes it.
type System struct {
	Root    string // archive (.tar) of the root file system, without our own files
	Kernel  string // file: vmlinuz
	Modules string // folder: lib/modules/<version>
	Lock    Lock   // what it was really made of
}

// ErrTools means that a program is missing; the error names its package.
var ErrTools = errors.New("program not found")

// Check reports the programs that building takes and that are not here.
func Check() error {
	var missing []string
	for _, tool := range [][2]string{{"mmdebstrap", "mmdebstrap"}, {"apt-get", "apt"}, {"dpkg-deb", "dpkg"}} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			missing = append(missing, tool[1])
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w; install %s", ErrTools, strings.Join(missing, " "))
	}
	return nil
}

// Build makes release n in the folder dir, where packages and results stay: what was
// made of the same packages and by the same finish.sh is not made again. What it does
// goes to log. It needs a Debian mirror for packages that are not in dir yet, and
// root rights or user namespaces.
//
// Only one process may build in dir at a time.
func Build(ctx context.Context, dir string, n int, log io.Writer) (System, error) {
	s, err := build(ctx, dir, n, log)
	if err != nil {
		return System{}, fmt.Errorf("build Debian release %d: %w", n, err)
	}
	return s, nil
}

func build(ctx context.Context, dir string, n int, log io.Writer) (System, error) {
	var s System
	if err := Check(); err != nil {
		return s, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return s, err
	}
	lock, err := Locked(n)
	if err != nil {
		return s, err
	}
	a := archive{dir: dir, log: log}
	if s.Lock, err = a.fetch(ctx, n, lock); err != nil {
		return s, err
	}
	kernel, err := s.Lock.kernel()
	if err != nil {
		return s, err
	}
	if s.Kernel, s.Modules, err = a.unpackKernel(ctx, kernel); err != nil {
		return s, err
	}
	sum := sha256.Sum256([]byte(s.Lock.String() + "\x00" + string(finish) + "\x00" + strings.Join(trimmed, "\x00")))
	s.Root = filepath.Join(dir, "root-"+hex.EncodeToString(sum[:8])+".tar")
	if _, err := os.Stat(s.Root); err == nil {
		return s, nil
	}
	return s, a.bootstrap(ctx, s.Lock, s.Root)
}

// trimmed are dpkg's options for what a device has no use for. Licences stay.
var trimmed = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/lintian/*", "path-exclude=/usr/share/bug/*", "path-exclude=/usr/share/bash-completion/*",
	"path-exclude=/usr/share/zsh/*", "path-exclude=*/__pycache__/*",
	// A build that is cut short is begun anew; nothing has to be durable before its end.
	"force-unsafe-io",
}

// bootstrap installs the packages of a lock, and nothing else, into the archive out.
func (a archive) bootstrap(ctx context.Context, l Lock, out string) error {
	repo, err := a.repository(ctx, l)
	if err != nil {
		return err
	}
	defer os.RemoveAll(repo)
	hook := filepath.Join(repo, "finish.sh")
	if err := os.WriteFile(hook, finish, 0o755); err != nil {
		return err
	}
	var names []string
	for _, p := range l.Packages {
		if !p.isKernel() {
			names = append(names, p.Name)
		}
	}
	args := []string{
		"--quiet", "--variant=essential", "--architectures=amd64", "--format=tar", "--include=" + strings.Join(names, ","),
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--customize-hook=" + hook,
		// finish.sh has removed what mmdebstrap would clean, and the kernel fills /dev.
		"--skip=cleanup,output/dev",
		"--aptopt=APT::Install-Recommends \"false\"",
	}
	for _, t := range trimmed {
		args = append(args, "--dpkgopt="+t)
	}
	// No signature: every package was just compared with its hash in the lock.
	args = append(args, "bookworm", out+".new", "deb [trusted=yes] copy://"+repo+" ./")
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	// Killed outright it would leave its mounts.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH="+strconv.FormatInt(image.Epoch.Unix(), 10))
	said, err := os.Create(out + ".log")
	if err != nil {
		return err
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	fmt.Fprintf(a.log, "debian: installing %d packages\n", len(names))
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w; see %s", err, said.Name())
	}
	return os.Rename(out+".new", out)
}

// Watchdog says who owns the watchdog's device; see README.md.
type Watchdog string

const (
	// Agent: the updater itself. It feeds only while its checks pass.
	Agent Watchdog = "agent"
	// Systemd: the service manager, which feeds as long as it lives itself; the
	// updater is watched by WatchdogSec= of its unit, and its silence restarts the
	// machine. device.json has to say the same.
	Systemd Watchdog = "systemd"
)

// Files are our own files, for image.SlotOptions.RootFiles. updater is the compiled
// device program. With port, the compiled program of the tiny system, the image is
// one for the lab: whoever has its serial ports is root.
func Files(w Watchdog, updater, port string) ([]image.File, error) {
	from := []string{"product"}
	if w == Systemd {
		from = append(from, "watchdog-systemd")
	}
	programs := map[string]string{"/usr/bin/updater": updater}
	if port != "" {
		from = append(from, "lab")
		programs["/usr/lib/tandem/tiny"] = port
	}
	var files []image.File
	for to, name := range programs {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		files = append(files, image.File{Path: to, Mode: 0o755, Data: data})
	}
	for _, tree := range from {
		err := fs.WalkDir(trees, tree, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := trees.ReadFile(p)
			files = append(files, image.File{Path: strings.TrimPrefix(p, tree), Mode: 0o644, Data: data})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}
