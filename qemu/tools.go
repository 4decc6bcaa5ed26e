package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
)

// tools are the programs and firmware files that a machine needs.
type tools struct {
	qemu, swtpm, swtpmSetup string
	code, vars              string // OVMF
}

// MissingError names everything that is not on this machine at once, so that
// nobody installs one package after the other.
type MissingError struct{ What map[string]string } // program or file -> Debian package

func (e *MissingError) Error() string {
	var what, packages []string
	seen := map[string]bool{}
	for w, p := range e.What {
		what = append(what, w)
		if !seen[p] {
			seen[p] = true
			packages = append(packages, p)
		}
	}
	sort.Strings(what)
	sort.Strings(packages)
	return fmt.Sprintf("not on this machine: %s; hint: apt-get install %s (or make setup)",
		strings.Join(what, ", "), strings.Join(packages, " "))
}

// firmware lists pairs of code and variables in order of preference, as Debian,
// Fedora and Arch ship them. Never the "ms" variants: their key database
// refuses a loader that nobody signed.
var firmware = [][2]string{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
}

func find(cfg Config) (tools, error) {
	var t tools
	missing := map[string]string{}
	look := func(name, deb string) string {
		path, err := exec.LookPath(name)
		if err != nil {
			missing[name] = deb
		}
		return path
	}
	t.qemu = look("qemu-system-x86_64", "qemu-system-x86")
	if cfg.TPM {
		t.swtpm = look("swtpm", "swtpm")
		t.swtpmSetup = look("swtpm_setup", "swtpm-tools")
	}
	if !cfg.BIOS {
		for _, f := range firmware {
			if readable(f[0]) && readable(f[1]) {
				t.code, t.vars = f[0], f[1]
				break
			}
		}
		if t.code == "" {
			missing[firmware[0][0]] = "ovmf"
		}
	}
	if len(missing) > 0 {
		return t, &MissingError{missing}
	}
	return t, nil
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// Check reports whether machines of this kind can run here: nil, or a
// *MissingError. Tests use it to skip with the reason.
func Check(cfg Config) error {
	_, err := find(cfg)
	return err
}
