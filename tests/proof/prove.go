// Package proof makes the page that an OEM can hand to an assessor: what was tried on a
// device, on which commit, and what came of it.
//
// It runs the tests of the packages in runs.go, reads what they say (`go test -json`), of
// which the figures that they publish with testing.T.Attr are the most, joins the seeded and
// the random bugs of make mutants, if they were tried on this commit, and holds all that
// against bars and against the rows of standards in requirements.go. The page is build/proof.txt and build/proof.html, a file without
// scripts that a phone shows and a printer prints. Nothing on it is written by hand but the
// words: a figure that no test published is shown as none, and misses its bar.
package proof

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrMissed means that the page was written, and that a bar on it is missed.
var ErrMissed = errors.New("a bar is missed")

// Options are what a person may ask for.
type Options struct {
	Root   string // of the tree
	Out    string // folder of the page, and of what is kept for the next run
	Quick  bool   // CI's sample of what takes long
	Again  bool   // take over what passed in an earlier run of the same commit
	Only   string // a regular expression for packages; "" for all. The bars of the others are missed
	Stdout io.Writer
}

// Prove runs everything and writes the page. It is ErrMissed where the page shows less
// than was promised.
func Prove(ctx context.Context, o Options) error {
	b := NewBook()
	only, err := regexp.Compile(o.Only)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(all(o.Quick), func(r Run) bool { return !only.MatchString(r.Package) })
	tree, err := Look(o.Root)
	if err != nil {
		return err
	}
	facts, err := look(ctx, o.Root)
	if err != nil {
		return err
	}
	facts.Sample = o.Quick
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	if facts.Kept, err = o.each(ctx, list, b, facts); err != nil {
		return err
	}
	bugs, err := o.bugs(ctx, facts)
	if err != nil {
		return err
	}
	page := Make(facts, b, tree, bugs)
	if err := o.write(page); err != nil {
		return err
	}
	fmt.Fprintln(o.Stdout, page.Verdict())
	if page.Met() < len(page.Bars) {
		return fmt.Errorf("%w: see %s", ErrMissed, filepath.Join(o.Out, "proof.txt"))
	}
	return nil
}

// each runs the packages one by one: those that start machines want both cores. What a
// package took the last time tells how long the rest will take. It returns how many it did
// not run again.
func (o Options) each(ctx context.Context, list []Run, b *Book, facts Facts) (kept int, err error) {
	took := map[string]float64{}
	times := filepath.Join(o.Out, "proof-times.json")
	if text, err := os.ReadFile(times); err == nil {
		_ = json.Unmarshal(text, &took) // a guess that cannot be read is none
	}
	for i, r := range list {
		var left float64
		known := true
		for _, later := range list[i:] {
			t, ok := took[later.Package]
			left, known = left+t, known && ok
		}
		rest := ""
		if left > 0 {
			rest = fmt.Sprintf(", %s left", (time.Duration(left) * time.Second).Round(time.Second))
			if !known {
				rest = strings.Replace(rest, ", ", ", more than ", 1)
			}
		}
		fmt.Fprintf(o.Stdout, "%2d/%d %-28s %s%s\n", i+1, len(list), r.Package, r.What, rest)
		said := o.said(r, facts)
		if passed, err := o.before(said, r, b); err != nil {
			return kept, err
		} else if passed {
			kept++
			fmt.Fprintf(o.Stdout, "      passed before\n")
			continue
		}
		begin := time.Now()
		if err := o.test(ctx, r, b, said); err != nil {
			return kept, err
		}
		took[r.Package] = time.Since(begin).Seconds()
		if end := b.Packages[r.Package]; end != Passed {
			fmt.Fprintf(o.Stdout, "      %s\n", end)
			for _, name := range b.Failed(r.Package) {
				fmt.Fprintf(o.Stdout, "      %s\n        %s\n", name, strings.Join(b.Words[name], "\n        "))
			}
		}
		if text, err := json.MarshalIndent(took, "", "  "); err == nil {
			_ = os.WriteFile(times, text, 0o644) // only the guess is lost
		}
	}
	return kept, nil
}

// said is the file of what go test says of a package on a commit; "" where nothing says what
// the tree is.
func (o Options) said(r Run, facts Facts) string {
	if facts.Changed {
		return ""
	}
	name := strings.ReplaceAll(r.Package, "/", "-")
	if facts.Sample {
		name += "-sample"
	}
	return filepath.Join(o.Out, "proof", facts.hash(), name+".json")
}

// before takes over what a package said in an earlier run, if that was asked for and all its
// tests passed.
func (o Options) before(said string, r Run, b *Book) (bool, error) {
	if !o.Again || said == "" {
		return false, nil
	}
	f, err := os.Open(said)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	return true, b.Read(f)
}

// test runs the tests of one package, and keeps what they say if all pass. That some fail is
// for the page to tell.
func (o Options) test(ctx context.Context, r Run, b *Book, said string) error {
	if matches, _ := filepath.Glob(filepath.Join(o.Root, r.Package, "*_test.go")); len(matches) == 0 {
		return nil // it did not run
	}
	timeout := r.Timeout
	if timeout == 0 {
		timeout = 15 * time.Minute
	}
	args := []string{"test", "-json", "-count=1", "-timeout", timeout.String()}
	if r.Tests != "" {
		args = append(args, "-run", r.Tests)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+r.Package)...)
	cmd.Dir, cmd.Stderr = o.Root, os.Stderr
	// On a fit machine: a test that skips for want of a tool shows nothing.
	// And as far as the project promises, which a desk need not go each time.
	cmd.Env = append(os.Environ(), "TANDEM_CI=1", "TANDEM_EXPLORE=1")
	if r.Long && !o.Quick {
		cmd.Env = append(cmd.Env, "TANDEM_LONG=1")
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	var heard bytes.Buffer
	read := b.Read(io.TeeReader(stdout, &heard))
	if read != nil {
		_, _ = io.Copy(io.Discard, stdout) // or it would wait for a reader for ever
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit) && b.Packages[r.Package] == NotRun:
		b.Packages[r.Package] = Failed
	case err != nil && exit == nil:
		return fmt.Errorf("go test: %w", err)
	}
	if read != nil || said == "" || b.Packages[r.Package] != Passed {
		return read
	}
	if err := os.MkdirAll(filepath.Dir(said), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(said+".new", heard.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(said+".new", said)
}

// errEvidence means that what was found about bugs is not of this commit, or not all, and so
// does not count.
var errEvidence = errors.New("does not count")

// evidence is what package mutants leaves.
type evidence struct {
	Commit   string
	Only     string
	Most     int
	Packages int
	Results  json.RawMessage
}

// mostRandom is how many random bugs of each package a page asks for.
const mostRandom = 60

// bugs reads what make mutants found on this commit, and has it run where it has not yet. What
// it found on another one is shown nowhere. A tree with changes is like no other, not even
// like itself a minute ago: there it always runs. Random bugs take half an hour, and a sample
// has them only where they are there.
func (o Options) bugs(ctx context.Context, facts Facts) (Bugs, error) {
	var bugs Bugs
	mutants := func(e evidence) error { return json.Unmarshal(e.Results, &bugs.Mutants) }
	scores := func(e evidence) error {
		if e.Most < mostRandom {
			return fmt.Errorf("%w: it tried at most %d of each package, and not %d", errEvidence, e.Most, mostRandom)
		}
		bugs.Packages = e.Packages
		return json.Unmarshal(e.Results, &bugs.Scores)
	}
	var err error
	if bugs.NoMutants, err = o.found(ctx, facts, "mutants.json", o.Only == "", mutants); err != nil {
		return bugs, err
	}
	bugs.NoScores, err = o.found(ctx, facts, "mutation-score.json", o.Only == "" && !o.Quick, scores, "-random", strconv.Itoa(mostRandom))
	// Nor half of what cannot be read.
	if bugs.NoMutants != "" {
		bugs.Mutants = nil
	}
	if bugs.NoScores != "" {
		bugs.Scores = nil
	}
	return bugs, err
}

// found takes what make mutants has left in a file. Where that does not count, and it may, it
// deletes the file, so that nothing old is taken for new, and runs make mutants. It returns
// why there is nothing to show.
func (o Options) found(ctx context.Context, facts Facts, name string, may bool, take func(evidence) error, args ...string) (string, error) {
	path := filepath.Join(o.Out, name)
	err := fmt.Errorf("%s %w: the tree has changes", name, errEvidence)
	if !facts.Changed {
		err = taken(path, facts, take)
	}
	if err == nil {
		return "", nil
	}
	if !may {
		return err.Error(), nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	fmt.Fprintln(o.Stdout, "bugs: mutants", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, "go", append([]string{"run", "./tests/mutants", "-out", path}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = o.Root, o.Stdout, os.Stderr
	ran := cmd.Run()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if ran != nil {
		fmt.Fprintln(o.Stdout, "proof: mutants:", ran) // what it wrote says which
	}
	if err := taken(path, facts, take); err != nil {
		fmt.Fprintln(o.Stdout, "proof:", err)
		return err.Error(), nil
	}
	return "", nil
}

// taken reads a file of make mutants, if it is about all of this commit.
func taken(path string, facts Facts, take func(evidence) error) error {
	name := filepath.Base(path)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is none", name)
	} else if err != nil {
		return err
	}
	var e evidence
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("%s %w: %w", name, errEvidence, err)
	}
	switch {
	case e.Commit != facts.hash():
		return fmt.Errorf("%s %w: it is of commit %q, and this page of %q", name, errEvidence, e.Commit, facts.hash())
	case e.Only != "":
		return fmt.Errorf("%s %w: it is about %q, and not about all", name, errEvidence, e.Only)
	}
	if err := take(e); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// hash is the commit as make mutants writes it.
func (f Facts) hash() string {
	hash, _, _ := strings.Cut(f.Commit, " ")
	if f.Changed {
		hash += "+changes"
	}
	return hash
}

func (o Options) write(p Page) error {
	for name, render := range map[string]func(io.Writer) error{"proof.txt": p.Text, "proof.html": p.HTML} {
		f, err := os.Create(filepath.Join(o.Out, name))
		if err != nil {
			return err
		}
		if err := errors.Join(render(f), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// look says on what all this is run.
func look(ctx context.Context, root string) (Facts, error) {
	say := func(name string, args ...string) string {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = root
		out, err := cmd.Output()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if err != nil {
			return "none: " + err.Error()
		}
		return first
	}
	f := Facts{Commit: say("git", "log", "-1", "--format=%H %cs"), Date: time.Now()}
	if strings.HasPrefix(f.Commit, "none") {
		return f, fmt.Errorf("which commit is it? %s", f.Commit)
	}
	if f.Changed = say("git", "status", "--porcelain") != ""; f.Changed {
		f.Commit += ", and changes that are not committed"
	}
	machine := fmt.Sprintf("%s, %d cores", say("uname", "-srm"), runtime.NumCPU())
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				machine += " of " + strings.Trim(name, "\t :\n")
				break
			}
		}
	}
	f.Lines = [][2]string{
		{"machine", machine},
		{"go", say("go", "version")},
		{"qemu", say("qemu-system-x86_64", "--version")},
		{"grub", say("grub-mkimage", "--version")},
	}
	return f, nil
}
