package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/tests/proof"
)

// scored is a package whose tests are measured, and the tests: in their order, since the first
// that fails decides, and the quick ones are first.
type scored struct {
	Package string
	tests   []string
}

// slowUpdates takes three quarters of the time of the updater's tests, and so comes after the rest.
const slowUpdates = "^Test(RecordOfKilledProgram|FailureIsReported|IdleDeviceWritesNothing|WearOfUpdate|RollbackLasts|LeavesFromRottenBase|InterruptedAnywhere|IndexLyingSource)$"

// The tests that are left out need QEMU or minutes: a mutant that only they kill counts as one
// that lives.
var scores = []scored{
	{"bootctl", []string{"./bootctl", "./bootctl/boottest -run=^TestGrubenvConforms$"}},
	{"bootctl/bootreport", []string{"./bootctl/bootreport"}},
	{"bootctl/early", []string{"./bootctl/early -skip=^TestSlot$|^TestESBArmed$"}},
	{"bootctl/grubenv", []string{"./bootctl/grubenv -skip=^TestParseTorn$", "./bootctl/boottest -run=^TestGrubenv|^TestEveryBit$"}},
	{"bootctl/watchdog", []string{"./bootctl/watchdog"}},
	{"partition", []string{"./partition -skip=^TestInstall(PowerCut|Killed)$", "./partition -run=^TestInstall(PowerCut|Killed)$"}},
	{"partition/verity", []string{"./partition/verity"}},
	{"updater", []string{
		"./updater -skip=" + slowUpdates + "|^TestExplorer$|^TestTenYears$|^TestDiskFails$|^TestProgramKilled$",
		"./updater -run=" + slowUpdates,
		"./updater -run=^(TestProgramKilled|TestExplorer)$/^cut$/^(by_deltas,_into|checks_fail$)",
	}},
}

// score is what became of the random mutants of a package.
type score struct {
	proof.Score          // what goes onto the page
	Seconds     float64  `json:"seconds"`
	Lived       []change `json:"lived"`
}

func (s score) line() string {
	return fmt.Sprintf("%-20s %4d places, %4d unreached, %4d tried, %4d killed: %5.1f %%  (%.0f s)", s.Package, s.Places, s.Unreached, s.Tried, s.Killed, s.Percent, s.Seconds)
}

// measure tries at most so many random mutants of a package.
func (l *lab) measure(ctx context.Context, p scored, most int, seed uint64) (score, error) {
	begin := time.Now()
	s := score{Score: proof.Score{Package: p.Package}}
	folder, err := os.MkdirTemp(l.folder, "random-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(folder)
	v, programs, err := l.build(ctx, p, folder)
	if err != nil {
		return s, err
	}
	var reached []int
	for _, program := range programs {
		more, err := program.reach(ctx, filepath.Join(folder, "seen"))
		if err != nil {
			return s, err
		}
		reached = append(reached, more...)
	}
	slices.Sort(reached)
	reached = slices.Compact(reached)
	s.Places, s.Unreached = len(v.changes), len(v.changes)-len(reached)
	h := fnv.New64a()
	io.WriteString(h, p.Package) // never fails
	rand.New(rand.NewPCG(seed, h.Sum64())).Shuffle(len(reached), func(i, j int) { reached[i], reached[j] = reached[j], reached[i] })
	for _, n := range reached[:min(most, len(reached))] {
		killed := false
		for _, program := range programs {
			if killed = program.fails(ctx, n); killed {
				break
			}
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx) // what was found so far is worth telling
			break
		}
		s.Tried++
		if killed {
			s.Killed++
		} else {
			s.Lived = append(s.Lived, v.changes[n-1])
		}
	}
	slices.SortFunc(s.Lived, func(a, b change) int {
		if a.File != b.File {
			return strings.Compare(a.File, b.File)
		}
		return a.Line - b.Line
	})
	s.Percent = 100 * float64(s.Killed) / float64(max(s.Tried, 1))
	s.Seconds = time.Since(begin).Seconds()
	return s, err
}

// program is a test binary with all variants of a package in it.
type program struct {
	path, dir string
	args      []string
	limit     time.Duration
}

// wrong finds where the compiler did not take a variant: the types did not fit.
var wrong = regexp.MustCompile(`(?m)^\S*?([\w./-]+\.go):(\d+):\d+: `)

// build builds the tests of a package with all variants that the compiler takes.
func (l *lab) build(ctx context.Context, p scored, folder string) (variants, []*program, error) {
	spoiled := map[string]bool{}
	for {
		v := variants{spoiled: spoiled}
		overlay, err := v.overlay(l.root, p.Package, folder)
		if err != nil {
			return v, nil, err
		}
		out, err := exec.CommandContext(ctx, "go", "build", "-gcflags=-e", "-overlay="+overlay, "./"+p.Package).CombinedOutput()
		if err == nil {
			programs, err := l.link(ctx, p, overlay, folder)
			return v, programs, err
		}
		before := len(spoiled)
		for _, m := range wrong.FindAllSubmatch(out, -1) {
			spoiled[filepath.Join(p.Package, filepath.Base(string(m[1])))+":"+string(m[2])] = true
		}
		if len(spoiled) == before {
			return v, nil, fmt.Errorf("%w: %s:\n%s", errBuild, p.Package, out)
		}
	}
}

// overlay writes the files of a package with its variants.
func (v *variants) overlay(root, pkg, folder string) (string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	paths, err := filepath.Glob(filepath.Join(root, pkg, "*.go"))
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	name := ""
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "_other.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err == nil {
			text, name, err = v.add(filepath.Join(pkg, filepath.Base(path)), text)
		}
		to := filepath.Join(folder, filepath.Base(path))
		if err == nil {
			err = os.WriteFile(to, text, 0o644)
		}
		if err != nil {
			return "", err
		}
		replace[path] = to
	}
	to := filepath.Join(folder, "switches.go")
	replace[filepath.Join(root, pkg, "mutants_switches.go")] = to
	if err := os.WriteFile(to, fmt.Appendf(nil, switches, name, len(v.changes)+1), 0o644); err != nil {
		return "", err
	}
	return writeOverlay(folder, replace)
}

// link makes the test binaries.
func (l *lab) link(ctx context.Context, p scored, overlay, folder string) ([]*program, error) {
	var programs []*program
	built := map[string]string{}
	for _, test := range p.tests {
		path, err := l.binary(ctx, built, test, folder, "-overlay="+overlay)
		if err != nil {
			return nil, err
		}
		_, pkg, flags := command(test)
		programs = append(programs, &program{path: path, dir: filepath.Join(l.root, pkg), args: flags})
	}
	return programs, nil
}

func (p *program) command(ctx context.Context, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, append([]string{"-test.failfast", "-test.short"}, p.args...)...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second // for what a killed test has started
	return cmd
}

// reach runs the tests without a mutant: they pass, and tell which numbers they come to.
func (p *program) reach(ctx context.Context, seen string) ([]int, error) {
	begin := time.Now()
	if out, err := p.command(ctx, "MUTANT=-1", "MUTANTS_SEEN="+seen).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s %v: %w\n%s", errSick, p.dir, p.args, err, out)
	}
	// Far from what a busy machine makes of it, near enough to what never ends.
	p.limit = 4*time.Since(begin) + 10*time.Second
	text, err := os.ReadFile(seen)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []int
	for line := range bytes.Lines(text) {
		n, err := strconv.Atoi(string(bytes.TrimSpace(line)))
		if err != nil {
			return nil, fmt.Errorf("%w: it wrote %q", errSick, line)
		}
		all = append(all, n)
	}
	return all, nil
}

// fails tells whether the tests notice mutant n; not coming to an end is noticing.
func (p *program) fails(ctx context.Context, n int) bool {
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	return p.command(ctx, "MUTANT="+strconv.Itoa(n)).Run() != nil
}

// scoreBars measures packages and says whether each is good enough.
func (l *lab) scoreBars(ctx context.Context, w io.Writer, only string, most int, seed uint64) ([]score, error) {
	var all []score
	met := 0
	fmt.Fprintf(w, "at most %d mutants of each package, seed %d\n", most, seed)
	for _, p := range scores {
		if ok, err := regexp.MatchString(only, p.Package); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		s, err := l.measure(ctx, p, most, seed)
		fmt.Fprintln(w, s.line())
		for _, c := range s.Lived {
			fmt.Fprintf(w, "    lives: %s:%d: %s\n", c.File, c.Line, c.What)
		}
		if err != nil {
			return all, fmt.Errorf("%s: %w", p.Package, err)
		}
		if s.Percent >= proof.LeastScore {
			met++
		}
		all = append(all, s)
	}
	fmt.Fprintf(w, "\nat least %d %% of each\nbars: %d/%d met\n", proof.LeastScore, met, len(all))
	if met < len(all) {
		return all, errBars
	}
	return all, nil
}
