package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// testTime is how long the tests of one mutant may take. One that hangs is a mutant that was
// noticed: the tests that it names take seconds without it.
const testTime = 4 * time.Minute

// lab runs tests against mutants.
type lab struct {
	root   string
	folder string            // of the tests without a mutant
	plain  map[string]string // by package: their binary
	sound  map[string]error  // by test: what came of it
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
	folder, err := os.MkdirTemp(l.folder, "mutant-")
	if err == nil {
		r.KilledBy, err = l.kill(ctx, m, folder)
		err = errors.Join(err, os.RemoveAll(folder))
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
	built := map[string]string{}
	for _, test := range m.Tests {
		if err := l.passes(ctx, test); err != nil {
			return "", err
		}
		binary, err := l.binary(ctx, built, test, folder, "-overlay="+overlay)
		if err != nil {
			return "", err
		}
		killer, err := l.test(ctx, binary, test)
		if killer != "" || err != nil {
			return killer, err
		}
	}
	return "", nil
}

// passes tells whether a test passes without a mutant: only then its failing means something.
func (l *lab) passes(ctx context.Context, test string) error {
	if _, known := l.sound[test]; !known {
		killer := ""
		binary, err := l.binary(ctx, l.plain, test, l.folder)
		if err == nil {
			killer, err = l.test(ctx, binary, test)
		}
		if err == nil && killer != "" {
			err = fmt.Errorf("%w: %s fails without the mutant", errSick, killer)
		}
		l.sound[test] = err
	}
	return l.sound[test]
}

// binary returns the tests of a test's package as a program in folder, built once.
func (l *lab) binary(ctx context.Context, built map[string]string, test, folder string, flags ...string) (string, error) {
	_, pkg, _ := command(test)
	if path, ok := built[pkg]; ok {
		return path, nil
	}
	path := filepath.Join(folder, strconv.Itoa(len(built))+".test")
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"test", "-c", "-vet=off", "-o", path}, flags...), pkg)...)
	cmd.Dir = l.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s: %w\n%s", errBuild, pkg, err, out)
	}
	built[pkg] = path
	return path, nil
}

// command takes "NAME=value ./package -run NAME" apart; the flags are a test binary's.
func command(test string) (env []string, pkg string, flags []string) {
	for field := range strings.FieldsSeq(test) {
		switch {
		case pkg != "":
			flags = append(flags, ours.ReplaceAllString(field, "-test.$1"))
		case strings.Contains(field, "="):
			env = append(env, field)
		default:
			pkg = field
		}
	}
	return env, pkg, flags
}

var (
	// ours are the flags of go test that a test binary knows by another name.
	ours = regexp.MustCompile(`^-(run|skip)\b`)

	// What a test binary says.
	failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	passed = regexp.MustCompile(`(?m)^\s*--- PASS: (\S+)`)
	began  = regexp.MustCompile(`(?m)^=== RUN +(\S+)`)
)

// test runs one "./package -run NAME" and returns the first test that failed.
func (l *lab) test(ctx context.Context, binary, test string) (killer string, err error) {
	env, pkg, flags := command(test)
	args := []string{"-test.v", "-test.failfast", "-test.timeout=" + testTime.String()}
	cmd := exec.CommandContext(ctx, binary, append(args, flags...)...)
	cmd.Dir = filepath.Join(l.root, pkg)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second // for what a test has started that died
	out, wrong := cmd.CombinedOutput()
	// Of nested tests the innermost says most.
	for _, m := range failed.FindAllSubmatch(out, -1) {
		if name := string(m[1]); strings.HasPrefix(name, killer) {
			killer = name
		}
	}
	if killer != "" {
		return killer, nil
	}
	if all := began.FindAllSubmatch(out, -1); wrong != nil && len(all) > 0 && ctx.Err() == nil {
		return string(all[len(all)-1][1]), nil // it took the whole program down
	}
	switch {
	case wrong != nil:
		return "", fmt.Errorf("%w: %s: %w\n%s", errSick, test, wrong, out)
	case !passed.Match(out):
		return "", fmt.Errorf("%w: %s runs no test here\n%s", errSick, test, out)
	}
	return "", nil
}
