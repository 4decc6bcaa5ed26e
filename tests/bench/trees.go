package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	mirror   = "http://deb.debian.org/debian"
	security = "http://deb.debian.org/debian-security"
)

// A tree is a system that mmdebstrap installs into an archive. Debian's mirrors keep
// one version per suite, so what is built depends on the day: results name the
// versions, and the archive is kept.
type tree struct {
	base    string // tree that is taken and changed; empty to begin with nothing
	variant string // of mmdebstrap
	suite   string
	sources []string
	include []string // packages
}

// system is a gateway's software: service manager, network, modem, broker, web server,
// Python, and the tools that a technician wants.
var system = []string{"linux-image-amd64", "initramfs-tools", "zstd", "systemd", "systemd-sysv", "udev", "dbus", "openssl", "curl", "wget", "python3", "perl",
	"openssh-server", "ca-certificates", "iproute2", "iputils-ping", "nftables", "rsync", "less", "nano", "sudo", "tcpdump", "nginx-light", "libnss3", "gnupg",
	"e2fsprogs", "dmsetup", "cryptsetup-bin", "network-manager", "modemmanager", "chrony", "jq", "htop", "strace", "bind9-dnsutils", "u-boot-tools", "mosquitto",
	"sqlite3", "python3-cryptography"}

var (
	release = []string{"deb " + mirror + " bookworm main"}
	updates = []string{"deb " + mirror + " bookworm main", "deb " + mirror + " bookworm-updates main", "deb " + security + " bookworm-security main"}
)

// trees by name. What is compared as a whole is installed from scratch, as an OEM's build
// does it; where little is to differ, one is made of the other.
var trees = map[string]tree{
	"release":  {variant: "important", suite: "bookworm", sources: release, include: system},
	"updated":  {variant: "important", suite: "bookworm", sources: updates, include: system},
	"openssl":  {base: "release", variant: "custom", suite: "bookworm", sources: updates, include: []string{"openssl", "libssl3"}},
	"kernel":   {base: "release", variant: "custom", suite: "bookworm", sources: updates, include: []string{"linux-image-amd64"}},
	"added":    {base: "release", variant: "custom", suite: "bookworm", sources: release, include: []string{"redis-server", "tmux", "ethtool", "lua5.4", "socat", "picocom", "iperf3", "can-utils", "i2c-tools", "python3-serial", "python3-yaml"}},
	"uboot-12": {variant: "extract", suite: "bookworm", sources: release, include: []string{"u-boot-qemu"}},
	"uboot-13": {variant: "extract", suite: "trixie", sources: []string{"deb " + mirror + " trixie main"}, include: []string{"u-boot-qemu"}},
}

func (t tree) arguments() []string {
	args := []string{"--variant=" + t.variant, "--architectures=amd64", "--format=tar",
		// The kernel fills /dev.
		"--skip=output/dev"}
	if t.base == "" {
		args = append(args, "--include="+strings.Join(t.include, ","))
	} else {
		// How apt is set up is mmdebstrap's, which was there before.
		args = append(args, "--skip=check/empty",
			`--setup-hook=tar -C "$1" -xf "$BENCH_BASE" --exclude=./etc/apt/sources.list --exclude=./etc/resolv.conf --exclude=./dev`,
			`--customize-hook=chroot "$1" apt-get -q -y --no-install-recommends install `+strings.Join(t.include, " "),
			// Only the newest kernel stays.
			`--customize-hook=for old in $(chroot "$1" dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 'linux-image-[0-9]*' | sed -n 's/^ii *//p' | sort -V | head -n -1); do chroot "$1" apt-get -q -y purge $old; done`)
	}
	if t.variant == "important" {
		args = append(args, "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
	}
	for _, p := range []string{"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*",
		// A build that is cut short is begun anew; nothing has to be durable before its end.
		"force-unsafe-io"} {
		args = append(args, "--dpkgopt="+p)
	}
	return args
}

// file is where a tree is kept in the folder dir: under another name if it is made
// otherwise.
func (t tree) file(dir, name string) string {
	made := append(append(t.arguments(), t.suite), t.sources...)
	if t.base != "" {
		made = append(made, filepath.Base(trees[t.base].file(dir, t.base)))
	}
	sum := sha256.Sum256([]byte(strings.Join(made, "\x00")))
	return filepath.Join(dir, "tree-"+name+"-"+hex.EncodeToString(sum[:4])+".tar")
}

// makeTree installs a tree, unless it is there, and returns its archive.
func makeTree(ctx context.Context, dir, name string, log io.Writer) (string, error) {
	t, ok := trees[name]
	if !ok {
		return "", fmt.Errorf("no tree %q", name)
	}
	out := t.file(dir, name)
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	base := ""
	if t.base != "" {
		var err error
		if base, err = makeTree(ctx, dir, t.base, log); err != nil {
			return "", err
		}
	}
	said, err := os.Create(out + ".log")
	if err != nil {
		return "", err
	}
	defer said.Close()
	fmt.Fprintf(log, "bench: installing the tree %s by mmdebstrap: some minutes; its words are in %s\n", name, said.Name())
	ctx, stop := context.WithTimeout(ctx, time.Hour) // a mirror that hangs
	defer stop()
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(append(t.arguments(), t.suite, out+".new"), t.sources...)...)
	// Killed outright it would leave its mounts.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "BENCH_BASE="+base, "SOURCE_DATE_EPOCH="+epoch)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("install tree %s: mmdebstrap: %w; see %s", name, err, said.Name())
	}
	return out, os.Rename(out+".new", out)
}

// member returns the content of a file of an archive.
func member(archive, name string) ([]byte, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s holds no %s", archive, name)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", archive, err)
		}
		if path.Clean("/"+h.Name) == name {
			return io.ReadAll(r)
		}
	}
}

// packages lists what is installed in a tree: versions by name.
func packages(archive string) (map[string]string, error) {
	status, err := member(archive, "/var/lib/dpkg/status")
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	name := ""
	for lines := bufio.NewScanner(strings.NewReader(string(status))); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "Package: "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(lines.Text(), "Version: "); ok {
			all[name] = v
		}
	}
	return all, nil
}
