package debian

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strings"
)

// Lock is the exact content of a release, one line a package, sorted by name:
//
//	# comment
//	NAME VERSION SHA256
//
// with the fields as in the Packages file of a Debian archive (deb-control(5)); the
// hash is that of the .deb file. The package linux-image-* is not installed: kernel
// and modules are taken out of it for the boot part.
type Lock struct {
	Comment  []string // first lines, without "# "
	Packages []Package
}

// Package is one line of a lock.
type Package struct {
	Name, Version, SHA256 string
}

// ErrLock means that a lock is not in its format.
var ErrLock = errors.New("package lock")

func (p Package) isKernel() bool { return strings.HasPrefix(p.Name, "linux-image-") }

// Locked returns the lock of release n that is in the tree.
func Locked(n int) (Lock, error) {
	text, err := locks.ReadFile(fmt.Sprintf("locks/%d.txt", n))
	if err != nil {
		return Lock{}, fmt.Errorf("%w: there is no release %d", ErrLock, n)
	}
	return ParseLock(string(text))
}

// ParseLock reads a lock.
func ParseLock(text string) (Lock, error) {
	var l Lock
	seen := make(map[string]bool)
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if comment, ok := strings.CutPrefix(line, "# "); ok {
			l.Comment = append(l.Comment, comment)
			continue
		}
		f := strings.Fields(line)
		if len(f) != 3 {
			return Lock{}, fmt.Errorf("%w: line %q is not NAME VERSION SHA256", ErrLock, line)
		}
		// Names become names of files, and arguments of programs.
		if strings.ContainsAny(f[0], "/:") || strings.HasPrefix(f[0], "-") || strings.Contains(f[1], "/") {
			return Lock{}, fmt.Errorf("%w: %q is no name and version of a package", ErrLock, line)
		}
		if sum, err := hex.DecodeString(f[2]); err != nil || len(sum) != 32 {
			return Lock{}, fmt.Errorf("%w: %s: %q is no SHA-256", ErrLock, f[0], f[2])
		}
		if seen[f[0]] {
			return Lock{}, fmt.Errorf("%w: %s occurs twice", ErrLock, f[0])
		}
		seen[f[0]] = true
		l.Packages = append(l.Packages, Package{f[0], f[1], f[2]})
	}
	return l, nil
}

// String is the lock as it is in its file.
func (l Lock) String() string {
	var b strings.Builder
	for _, c := range l.Comment {
		fmt.Fprintf(&b, "# %s\n", c)
	}
	for _, p := range l.sorted() {
		fmt.Fprintf(&b, "%s %s %s\n", p.Name, p.Version, p.SHA256)
	}
	return b.String()
}

func (l Lock) sorted() []Package {
	packages := append([]Package(nil), l.Packages...)
	sort.Slice(packages, func(i, j int) bool { return packages[i].Name < packages[j].Name })
	return packages
}

// Differences says in what to differs from l, a line for each package.
func (l Lock) Differences(to Lock) []string {
	have := make(map[string]string)
	for _, p := range l.Packages {
		have[p.Name] = p.Version
	}
	var lines []string
	for _, p := range to.sorted() {
		switch old, ok := have[p.Name]; {
		case !ok:
			lines = append(lines, fmt.Sprintf("%s %s is new", p.Name, p.Version))
		case old != p.Version:
			lines = append(lines, fmt.Sprintf("%s %s -> %s", p.Name, old, p.Version))
		}
		delete(have, p.Name)
	}
	for _, p := range l.sorted() {
		if _, gone := have[p.Name]; gone {
			lines = append(lines, fmt.Sprintf("%s %s is gone", p.Name, p.Version))
		}
	}
	return lines
}

func (l Lock) kernel() (Package, error) {
	for _, p := range l.Packages {
		if p.isKernel() {
			return p, nil
		}
	}
	return Package{}, fmt.Errorf("%w: no linux-image-*", ErrLock)
}
