package proof

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Module is the path that package names in the book leave out.
const Module = "github.com/tandem-ota/tandem/"

// Outcome is how a test ended.
type Outcome string

// The outcomes that `go test -json` knows, and none for a test that did not run.
const (
	Passed  Outcome = "pass"
	Failed  Outcome = "fail"
	Skipped Outcome = "skip"
	NotRun  Outcome = ""
)

// String is the word on the page.
func (o Outcome) String() string {
	switch o {
	case Passed:
		return "passed"
	case Failed:
		return "FAILED"
	case Skipped:
		return "skipped"
	}
	return "did not run"
}

// Figure is a number or a short text that a test published with testing.T.Attr.
type Figure struct {
	Value string
	Test  string // "package.Test" that published it
}

// Book is what the tests of this run said.
type Book struct {
	Tests    map[string]Outcome // by "package.Test" and "package.Test/subtest"
	Packages map[string]Outcome
	Figures  map[string]Figure // by key
	Seconds  map[string]float64
	// Words are the last lines of tests that failed or were skipped.
	Words map[string][]string
}

// NewBook returns an empty one.
func NewBook() *Book {
	return &Book{Tests: map[string]Outcome{}, Packages: map[string]Outcome{}, Figures: map[string]Figure{}, Seconds: map[string]float64{}, Words: map[string][]string{}}
}

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Key, Value                    string // of "attr"
	Elapsed                       float64
}

// mostWords bounds what is kept of a test that fails.
const mostWords = 12

// Read takes over the lines of `go test -json` until r ends. Lines that are no JSON come
// from a package that was not even built, and are kept as words of the page.
func (b *Book) Read(r io.Reader) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			b.say("build", s.Text())
			continue
		}
		name := strings.TrimPrefix(e.Package, Module)
		if e.Test != "" {
			name += "." + e.Test
		}
		switch e.Action {
		case "output", "build-output":
			b.say(name, strings.TrimRight(e.Output, "\n"))
		case "attr":
			b.Figures[e.Key] = Figure{e.Value, name}
		case "pass", "fail", "skip":
			if e.Test == "" {
				b.Packages[name] = Outcome(e.Action)
			} else {
				b.Tests[name] = Outcome(e.Action)
			}
			b.Seconds[name] = e.Elapsed
			if e.Action == "pass" {
				delete(b.Words, name)
			}
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read what go test says: %w", err)
	}
	return nil
}

func (b *Book) say(name, line string) {
	if strings.HasPrefix(strings.TrimSpace(line), "=== ") {
		return
	}
	words := append(b.Words[name], line)
	b.Words[name] = words[max(0, len(words)-mostWords):]
}

// Outcome is how a test ended; of a name that only a group of subtests has, how they did: the
// worst counts.
func (b *Book) Outcome(name string) Outcome {
	if o, ok := b.Tests[name]; ok {
		return o
	}
	worst := NotRun
	rank := map[Outcome]int{NotRun: 0, Passed: 1, Skipped: 2, Failed: 3}
	for test, o := range b.Tests {
		if strings.HasPrefix(test, name+"/") && rank[o] > rank[worst] {
			worst = o
		}
	}
	return worst
}

// Failed are the tests of a package that failed, with subtests, by name.
func (b *Book) Failed(pkg string) (names []string) {
	for name, o := range b.Tests {
		if o == Failed && strings.HasPrefix(name, pkg+".") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Skipped are the tests that were skipped, and why, by name.
func (b *Book) Skipped() (rows []Row) {
	for _, name := range slices.Sorted(maps.Keys(b.Tests)) {
		if b.Tests[name] != Skipped {
			continue
		}
		var why []string
		for _, line := range b.Words[name] {
			// "    file_test.go:12: the reason", "--- SKIP: TestName (0.00s)"
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--- ") {
				why = append(why, line)
			}
		}
		rows = append(rows, Row{[]string{name, cmp.Or(strings.Join(why, "\n"), "no reason given")}, None})
	}
	return rows
}

// Count says how many tests, subtests included, ended in each way.
func (b *Book) Count() map[Outcome]int {
	n := map[Outcome]int{}
	for _, o := range b.Tests {
		n[o]++
	}
	return n
}
