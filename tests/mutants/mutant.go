package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// classes are the kinds of tests, by what they do to the product.
var classes = []string{
	"power cut",      // the power fails at every operation
	"program killed", // only the program goes, at every operation
	"fault",          // a disk, a TPM or a file system does not do what it was told
	"hostile input",  // somebody means it: bytes that lie
	"corruption",     // bits flip
	"conformance",    // what every bootloader's backend has to keep, and TUF's own cases
	"real loader",    // GRUB itself, in QEMU
	"whole update",   // announcement to verdict on a device in memory
	"unit",           // one function, by its contract
	"system call",    // what a program asks of the kernel, in its order
	"sync",           // whichever notices that something is not durable (syncs.go)
}

// A mutant is one bug that was put in on purpose.
type mutant struct {
	Name  string   `json:"name"`
	Bug   string   `json:"bug"`
	Peer  string   `json:"peer,omitempty"`
	Near  string   `json:"near,omitempty"`
	Class string   `json:"class"`
	Tests []string `json:"tests"`
	Files []string `json:"files"` // that the patch changes, from the root of the tree

	patch string
	text  string // of the one file, where there is no patch
}

var errPatch = errors.New("bad patch")

// read reads the patches of a folder whose names match only, by name.
func read(folder, only string) ([]mutant, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(folder, "*.patch"))
	if err != nil {
		return nil, err
	}
	var all []mutant
	for _, path := range paths {
		if !match.MatchString(strings.TrimSuffix(filepath.Base(path), ".patch")) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		m, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		m.Name = strings.TrimSuffix(filepath.Base(path), ".patch")
		all = append(all, m)
	}
	return all, nil
}

// parse reads header and file names of a patch.
func parse(patch string) (mutant, error) {
	m := mutant{patch: patch}
	header, _, ok := strings.Cut(patch, "\n--- a/")
	if !ok {
		return m, fmt.Errorf("%w: it changes no file", errPatch)
	}
	for field := range strings.SplitSeq(strings.ReplaceAll(strings.TrimSpace(header), "\n ", " "), "\n") {
		key, text, _ := strings.Cut(field, ":")
		text = strings.Join(strings.Fields(text), " ")
		switch key {
		case "Bug":
			m.Bug = text
		case "Peer":
			m.Peer = text
		case "Near":
			m.Near = text
		case "Class":
			m.Class = text
		case "Test":
			m.Tests = append(m.Tests, text)
		default:
			return m, fmt.Errorf("%w: header has a line %q", errPatch, field)
		}
	}
	switch {
	case m.Bug == "" || m.Class == "" || len(m.Tests) == 0:
		return m, fmt.Errorf("%w: header wants Bug, Class and Test", errPatch)
	case !slices.Contains(classes, m.Class):
		return m, fmt.Errorf("%w: class %q is none of %q", errPatch, m.Class, classes)
	}
	for line := range strings.Lines(patch) {
		if name, ok := strings.CutPrefix(line, "+++ b/"); ok {
			m.Files = append(m.Files, strings.TrimSpace(name))
		}
	}
	for _, name := range m.Files {
		if strings.HasSuffix(name, "_test.go") {
			return m, fmt.Errorf("%w: %s is a test, and no part of the product", errPatch, name)
		}
	}
	return m, nil
}
