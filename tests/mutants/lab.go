package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// testTime is how long the tests of one mutant may take. One that hangs is a mutant that was
// noticed: the tests that it names take seconds without it.
const testTime = "4m"

// lab runs tests against mutants.
type lab struct {
	root  string
	sound map[string]error // by test: what came of it without a mutant
}

var (
	// errBuild means that the mutant is no Go: nothing was tested.
	errBuild = errors.New("does not build")
	// errSick means that a test fails without the mutant, too, or does not run here.
	errSick = errors.New("test proves nothing")
)

// try finds out which of a mutant's tests kills it.
func (l *lab) try(ctx context.Context, m mutant) result {
	r := result{mutant: m}
	begin := time.Now()
	folder, err := os.MkdirTemp("", "mutant-")
	if err == nil {
		defer os.RemoveAll(folder)
		r.KilledBy, err = l.kill(ctx, m, folder)
	}
	r.Seconds = time.Since(begin).Seconds()
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// kill returns the name of the test that failed, none if all passed.
func (l *lab) kill(ctx context.Context, m mutant, folder string) (string, error) {
	overlay, err := m.overlay(ctx, l.root, folder)
	if err != nil {
		return "", err
	}
	for _, test := range m.Tests {
		if err := l.passes(ctx, test); err != nil {
			return "", err
		}
		killer, err := l.test(ctx, test, "-count=1", "-overlay="+overlay)
		if killer != "" || err != nil {
			return killer, err
		}
	}
	return "", nil
}

// passes tells whether a test passes without a mutant: only then its failing means something.
func (l *lab) passes(ctx context.Context, test string) error {
	if _, known := l.sound[test]; !known {
		killer, err := l.test(ctx, test) // go's cache may answer
		if err == nil && killer != "" {
			err = fmt.Errorf("%w: %s fails without the mutant", errSick, killer)
		}
		l.sound[test] = err
	}
	return l.sound[test]
}

// event is a line of go test -json.
type event struct {
	Action, Package, Test, Output string
}

// test runs one "./package -run NAME" and returns the first test that failed.
func (l *lab) test(ctx context.Context, test string, more ...string) (killer string, err error) {
	args := append([]string{"test", "-json", "-vet=off", "-failfast", "-timeout", testTime}, more...)
	cmd := exec.CommandContext(ctx, "go", append(args, strings.Fields(test)...)...)
	cmd.Dir = l.root
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, failed := cmd.Output()
	ran, hung, said := false, "", ""
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("go test %s: %w\n%s%s", test, err, out, &wrong)
		}
		switch {
		case e.Action == "build-fail":
			return "", fmt.Errorf("%w:\n%s", errBuild, said)
		case e.Action == "fail" && e.Test != "" && killer == "":
			killer = e.Test // of nested ones the innermost comes first
		case e.Action == "pass" && e.Test != "":
			ran = true
		case e.Action == "run":
			hung = e.Test
		}
		if e.Output != "" {
			said += e.Output
		}
	}
	switch {
	case killer != "":
		return killer, nil
	case failed != nil && hung != "" && (strings.Contains(said, "panic:") || strings.Contains(said, "fatal error:")):
		return hung, nil // it took the whole program down
	case failed != nil:
		return "", fmt.Errorf("%w: go test %s: %w\n%s%s", errSick, test, failed, said, &wrong)
	case !ran:
		return "", fmt.Errorf("%w: %s runs no test here", errSick, test)
	}
	return "", nil
}
