package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	mirror   = "http://deb.debian.org/debian"
	security = "http://deb.debian.org/debian-security"
	keyring  = "/usr/share/keyrings/debian-archive-keyring.gpg"
	// metapackage depends on the kernel of the day, the one with drivers for
	// watchdogs (linux-image-cloud-amd64 has none).
	metapackage = "linux-image-amd64"
)

// suites are where the packages of a release come from.
var suites = map[int][][2]string{
	1: {{mirror, "bookworm"}},
	2: {{mirror, "bookworm"}, {mirror, "bookworm-updates"}, {security, "bookworm-security"}},
}

// errGone means that the mirror no longer has a locked package.
var errGone = errors.New("package is gone from the mirror")

// archive gets packages from Debian's mirrors, with an apt that knows nothing of the
// system it runs on. Packages stay in dir/packages.
type archive struct {
	dir string
	log io.Writer
}

// apt returns a command of apt for the suites of release n.
func (a archive) apt(ctx context.Context, n int, program string, args ...string) *exec.Cmd {
	at := a.aptDir(n)
	cmd := exec.CommandContext(ctx, program, append([]string{
		"-q", "-o", "Dir::State=" + at + "/state", "-o", "Dir::State::status=" + at + "/status", "-o", "Dir::Cache=" + at + "/cache",
		"-o", "Dir::Etc::sourcelist=" + at + "/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64", "-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root",
		// Otherwise apt takes itself for essential.
		"-o", "pkgCacheGen::ForceEssential=,",
	}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

func (a archive) aptDir(n int) string { return filepath.Join(a.dir, fmt.Sprintf("apt-%d", n)) }

// update fetches the lists of packages of release n.
func (a archive) update(ctx context.Context, n int) error {
	at := a.aptDir(n)
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(at, d), 0o755); err != nil {
			return err
		}
	}
	var sources strings.Builder
	for _, s := range suites[n] {
		fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s main\n", keyring, s[0], s[1])
	}
	err := errors.Join(os.WriteFile(filepath.Join(at, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(at, "sources.list"), []byte(sources.String()), 0o644))
	if err != nil {
		return err
	}
	_, err = output(a.apt(ctx, n, "apt-get", "update", "-o", "APT::Update::Error-Mode=any"))
	return err
}

// Resolve finds out what release n consists of today. Nothing is downloaded but the
// lists of packages, into dir.
func Resolve(ctx context.Context, dir string, n int) (Lock, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Lock{}, err
	}
	l, err := archive{dir: dir, log: io.Discard}.resolve(ctx, n)
	if err != nil {
		return Lock{}, fmt.Errorf("resolve Debian release %d: %w", n, err)
	}
	return l, nil
}

func (a archive) resolve(ctx context.Context, n int) (Lock, error) {
	var l Lock
	if err := a.update(ctx, n); err != nil {
		return l, err
	}
	names := []string{"?essential"}
	for line := range strings.Lines(wanted) {
		if line, _, _ = strings.Cut(line, "#"); strings.TrimSpace(line) != "" {
			names = append(names, strings.Fields(line)...)
		}
	}
	plan, err := output(a.apt(ctx, n, "apt-get", append([]string{"install", "--simulate", "--yes"}, names...)...))
	if err != nil {
		return l, err
	}
	var exact []string
	for line := range strings.Lines(plan) {
		// Inst NAME (VERSION ORIGIN [ARCH])
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Inst" {
			exact = append(exact, f[1]+"="+strings.TrimPrefix(f[2], "("))
		}
	}
	kernel, err := output(a.apt(ctx, n, "apt-cache", "show", "--no-all-versions", metapackage))
	if err != nil {
		return l, err
	}
	// "linux-image-6.1.0-56-amd64 (= 6.1.192-2)"
	depends := strings.Fields(strings.NewReplacer("(", "", ")", "", "=", "").Replace(field(kernel, "Depends")))
	if len(depends) < 2 {
		return l, fmt.Errorf("%s depends on %q, not on a kernel", metapackage, depends)
	}
	exact = append(exact, depends[0]+"="+depends[1])
	shown, err := output(a.apt(ctx, n, "apt-cache", append([]string{"show"}, exact...)...))
	if err != nil {
		return l, err
	}
	seen := make(map[string]bool)
	for _, stanza := range strings.Split(strings.TrimSpace(shown), "\n\n") {
		p := Package{field(stanza, "Package"), field(stanza, "Version"), field(stanza, "SHA256")}
		if !seen[p.Name] { // two suites may have the same version
			l.Packages = append(l.Packages, p)
		}
		seen[p.Name] = true
	}
	for _, s := range suites[n] {
		l.Comment = append(l.Comment, "from "+s[0]+" "+s[1]+" main")
	}
	if len(l.Packages) != len(exact) {
		return l, fmt.Errorf("apt knows %d of %d packages", len(l.Packages), len(exact))
	}
	return l, nil
}

// field is the value of a field of one line in a stanza (deb-control(5)).
func field(stanza, name string) string {
	for line := range strings.Lines(stanza) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// fetch downloads the packages of a lock that are not here yet. If the mirror has
// dropped one of them, the release is resolved anew, and the differences are said:
// single packages of another day would not fit to the others.
func (a archive) fetch(ctx context.Context, n int, want Lock) (Lock, error) {
	if err := os.MkdirAll(a.packages(), 0o755); err != nil {
		return Lock{}, err
	}
	// What was taken the last time instead; asking again gives the same as long as
	// the lock in the tree is the same.
	instead := filepath.Join(a.dir, fmt.Sprintf("instead-%d.txt", n))
	key := "in place of " + digest([]byte(want.String()))
	if text, err := os.ReadFile(instead); err == nil {
		if l, err := ParseLock(string(text)); err == nil && len(l.Comment) > 0 && l.Comment[0] == key && len(a.missing(l)) == 0 {
			return l, nil
		}
	}
	missing := a.missing(want)
	if len(missing) == 0 {
		return want, nil
	}
	fmt.Fprintf(a.log, "debian: release %d: fetching %d packages\n", n, len(missing))
	if err := a.update(ctx, n); err != nil {
		return Lock{}, err
	}
	err := a.download(ctx, n, missing)
	if err == nil {
		return want, nil
	}
	if !errors.Is(err, errGone) {
		return Lock{}, err
	}
	now, err := a.resolve(ctx, n)
	if err != nil {
		return Lock{}, err
	}
	fmt.Fprintf(a.log, "debian: the mirror no longer has all packages of lock %d; the nearest are taken, `mkdebian lock` pins them:\n", n)
	for _, line := range want.Differences(now) {
		fmt.Fprintf(a.log, "debian:   %s\n", line)
	}
	if err := a.download(ctx, n, a.missing(now)); err != nil {
		return Lock{}, err
	}
	now.Comment = append([]string{key}, now.Comment...)
	return now, os.WriteFile(instead, []byte(now.String()), 0o644)
}

func (a archive) packages() string { return filepath.Join(a.dir, "packages") }

// file is where a package is kept. The version may have colons, which make targets
// of Makefiles and lists of paths cannot bear.
func (a archive) file(p Package) string {
	return filepath.Join(a.packages(), p.Name+"_"+strings.ReplaceAll(p.Version, ":", "%3a")+".deb")
}

func (a archive) missing(l Lock) []Package {
	var missing []Package
	for _, p := range l.Packages {
		if data, err := os.ReadFile(a.file(p)); err != nil || digest(data) != p.SHA256 {
			missing = append(missing, p)
		}
	}
	return missing
}

// download gets packages by apt, which checks them against the signed lists, and
// compares them with the lock.
func (a archive) download(ctx context.Context, n int, packages []Package) error {
	if len(packages) == 0 {
		return nil
	}
	stage, err := os.MkdirTemp(a.dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	args := []string{"download"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	cmd := a.apt(ctx, n, "apt-get", args...)
	cmd.Dir = stage
	if _, err := output(cmd); err != nil {
		if strings.Contains(err.Error(), "was not found") || strings.Contains(err.Error(), "404") {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		return err
	}
	for _, p := range packages {
		found, err := filepath.Glob(filepath.Join(stage, p.Name+"_*.deb"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("apt-get download left %d files of %s", len(found), p.Name)
		}
		data, err := os.ReadFile(found[0])
		if err != nil {
			return err
		}
		if got := digest(data); got != p.SHA256 {
			return fmt.Errorf("%s %s has SHA-256 %s, its lock says %s", p.Name, p.Version, got, p.SHA256)
		}
		if err := os.Rename(found[0], a.file(p)); err != nil {
			return err
		}
	}
	return nil
}

// repository makes a folder that apt takes for an archive with the packages of the
// lock, and nothing else.
func (a archive) repository(ctx context.Context, l Lock) (string, error) {
	repo, err := os.MkdirTemp(a.dir, "repository-")
	if err != nil {
		return "", err
	}
	// In a user namespace apt is nobody in particular.
	err = os.Chmod(repo, 0o755)
	var index bytes.Buffer
	for _, p := range l.Packages {
		if p.isKernel() || err != nil {
			continue
		}
		var control string
		if control, err = output(exec.CommandContext(ctx, "dpkg-deb", "--field", a.file(p))); err != nil {
			break
		}
		var info os.FileInfo
		if info, err = os.Stat(a.file(p)); err != nil {
			break
		}
		name := filepath.Base(a.file(p))
		fmt.Fprintf(&index, "%s\nFilename: ./%s\nSize: %d\nSHA256: %s\n\n", strings.TrimSpace(control), strings.ReplaceAll(name, "%", "_"), info.Size(), p.SHA256)
		err = os.Link(a.file(p), filepath.Join(repo, strings.ReplaceAll(name, "%", "_")))
	}
	if err == nil {
		// mmdebstrap asks for the essential packages of a code name.
		release := fmt.Sprintf("Codename: bookworm\nArchitectures: amd64\nSHA256:\n %s %d Packages\n", digest(index.Bytes()), index.Len())
		err = errors.Join(os.WriteFile(filepath.Join(repo, "Packages"), index.Bytes(), 0o644),
			os.WriteFile(filepath.Join(repo, "Release"), []byte(release), 0o644))
	}
	if err != nil {
		os.RemoveAll(repo)
		return "", err
	}
	return repo, nil
}

// unpackKernel takes kernel and modules out of a package.
func (a archive) unpackKernel(ctx context.Context, p Package) (vmlinuz, modules string, err error) {
	at := filepath.Join(a.dir, "kernel-"+p.Version)
	version := strings.TrimPrefix(p.Name, "linux-image-")
	vmlinuz, modules = filepath.Join(at, "boot/vmlinuz-"+version), filepath.Join(at, "lib/modules", version)
	if _, err := os.Stat(at); err == nil {
		return vmlinuz, modules, nil
	}
	temp := at + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return "", "", err
	}
	if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "--extract", a.file(p), temp)); err != nil {
		return "", "", err
	}
	return vmlinuz, modules, os.Rename(temp, at)
}

// output runs a program and returns what it printed; its error is what it said.
func output(cmd *exec.Cmd) (string, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, bytes.TrimSpace(said.Bytes()))
	}
	return out.String(), nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
