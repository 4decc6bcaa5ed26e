package proof

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const root = "../.."

func theTree(t *testing.T) Tree {
	tree, err := Look(root)
	require.NoError(t, err)
	return tree
}

// Every test and story that a requirement names is in the tree, in a package that the page
// runs; every row has tests, or says why it has none.
func TestRequirements(t *testing.T) {
	tree := theTree(t)
	attacks := attackNames(t)
	run := map[string]bool{}
	for _, r := range runs {
		require.False(t, run[r.Package], "%s is in the table twice", r.Package)
		run[r.Package] = true
	}
	for name := range run {
		require.True(t, slices.ContainsFunc(slices.Collect(maps.Keys(tree.Tests)), func(test string) bool { return strings.HasPrefix(test, name+".") }), "%s has no tests", name)
	}
	rows := map[string]bool{}
	for _, r := range requirements {
		name := r.Standard + " " + r.ID + ": " + r.Text
		require.False(t, rows[name], "%s is in the table twice", name)
		rows[name] = true
		require.NotEqual(t, len(r.Tests) > 0, r.Outside != "", name)
		for _, word := range []string{"meets", "complies", "compliant"} {
			require.NotContains(t, r.Text, word, name)
		}
		for _, ref := range r.Tests {
			require.True(t, tree.Has(ref), "%s: %s is not in the tree", name, ref)
			if attack, ok := strings.CutPrefix(ref, "tests/attacks.TestAttacks/"); ok {
				area, one, _ := strings.Cut(attack, "/")
				require.True(t, attacks[attack] || attacks[area+"/"] && (one == "" || attacks[one]), "%s: no attack is called %s", name, attack)
			}
			if !strings.HasPrefix(ref, "story ") {
				folder, _, _ := strings.Cut(topLevel(ref), ".Test")
				require.True(t, run[folder], "%s: nobody runs %s", name, ref)
			}
		}
	}
	require.GreaterOrEqual(t, len(tree.Fuzz), 10)
	for _, target := range tree.Fuzz {
		folder, _, _ := strings.Cut(target, ".Fuzz")
		require.True(t, run[folder], "nobody runs %s", target)
		require.NotZero(t, tree.Seeds[target], "%s keeps nothing that was found", target)
	}
}

// attackNames are the texts in package attacks that are a name of an attack, a part of one,
// or an area: names are made as the program runs.
func attackNames(t *testing.T) map[string]bool {
	paths, err := filepath.Glob(root + "/tests/attacks/*.go")
	require.NoError(t, err)
	names := map[string]bool{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`"([a-z0-9]+/)?([a-z0-9-]*)"`).FindAllStringSubmatch(string(text), -1) {
			names[m[1]], names[m[1]+m[2]] = true, true
		}
	}
	return names
}

// A whole page runs every package of the tree that has tests, and every story; a sample runs
// no other.
func TestWholePageRunsAll(t *testing.T) {
	whole := map[string]bool{}
	for _, r := range all(false) {
		whole[r.Package] = true
		if r.Package == storyPackage {
			require.Equal(t, "^TestStories$", r.Tests)
		} else {
			require.Empty(t, r.Tests, r.Package)
		}
	}
	tree := theTree(t)
	for test := range tree.Tests {
		folder, _, _ := strings.Cut(test, ".Test")
		require.True(t, whole[folder], "nobody runs %s", test)
	}
	for _, r := range all(true) {
		require.True(t, whole[r.Package], r.Package)
	}
	for name, claim := range tree.Stories {
		require.NotEmpty(t, claim, "%s begins without a claim", name)
	}
}

// What is looked for and not there is not found.
func TestTreeHas(t *testing.T) {
	tree := theTree(t)
	require.True(t, tree.Has("tests/proof.TestTreeHas"))
	require.True(t, tree.Has("tests/proof.TestTreeHas/any part of it"))
	require.True(t, tree.Has("story update_commit"))
	for _, ref := range []string{"tests/proof.TestTreeHad", "tests.TestTreeHas", "story update_commits", "TestTreeHas", ""} {
		require.False(t, tree.Has(ref), ref)
	}
}

// Versions of what is linked that are known to have holes (reference/reliability.md, F8 and
// 1.4) do not come back.
func TestNoKnownHoles(t *testing.T) {
	text, err := os.ReadFile(root + "/go.mod")
	require.NoError(t, err)
	for module, least := range map[string]string{
		"github.com/klauspost/compress":        "v1.20.3", // CVE-2026-116591
		"github.com/eclipse/paho.mqtt.golang":  "v1.5.1",  // CVE-2025-10543
		"github.com/theupdateframework/go-tuf": "v2.3.1",  // CVE-2026-23992
	} {
		found := false
		for line := range strings.Lines(string(text)) {
			name, version, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "require ")), " ")
			if name != module && name != module+"/v2" {
				continue
			}
			found = true
			version, _, _ = strings.Cut(version, " ")
			require.False(t, older(version, least), "%s is %s", name, version)
		}
		require.True(t, found, "%s is not in go.mod", module)
	}
	require.True(t, older("v1.5.0", "v1.5.1"))
	require.True(t, older("v1.9.9", "v1.20.3"))
	require.False(t, older("v1.20.3", "v1.20.3"))
}

// older compares versions as numbers.
func older(version, least string) bool {
	return slices.Compare(numbers(version), numbers(least)) < 0
}

func numbers(version string) []int {
	var out []int
	for part := range strings.SplitSeq(strings.TrimPrefix(version, "v"), ".") {
		digits, _, _ := strings.Cut(part, "-")
		n, err := strconv.Atoi(digits)
		if err != nil {
			return nil
		}
		out = append(out, n)
	}
	return out
}

// said is a canned run: what go test prints about a test of each kind, and about a package
// that is not built.
const said = `{"Action":"start","Package":"github.com/tandem-ota/tandem/updater"}
{"Action":"run","Package":"github.com/tandem-ota/tandem/updater","Test":"TestExplorer"}
{"Action":"attr","Package":"github.com/tandem-ota/tandem/updater","Test":"TestExplorer","Key":"cuts","Value":"1234567"}
{"Action":"attr","Package":"github.com/tandem-ota/tandem/updater","Test":"TestExplorer","Key":"cuts-c1","Value":"77"}
{"Action":"attr","Package":"github.com/tandem-ota/tandem/updater","Test":"TestExplorer","Key":"odd","Value":"<b>&\"odd\""}
{"Action":"pass","Package":"github.com/tandem-ota/tandem/updater","Test":"TestExplorer","Elapsed":1.5}
{"Action":"output","Package":"github.com/tandem-ota/tandem/updater","Test":"TestHold","Output":"    hold_test.go:7: <script>alert(1)</script>\n"}
{"Action":"fail","Package":"github.com/tandem-ota/tandem/updater","Test":"TestHold","Elapsed":0}
{"Action":"output","Package":"github.com/tandem-ota/tandem/updater","Test":"TestState","Output":"    run_test.go:9: it is not Sunday\n"}
{"Action":"output","Package":"github.com/tandem-ota/tandem/updater","Test":"TestState","Output":"--- SKIP: TestState (0.00s)\n"}
{"Action":"skip","Package":"github.com/tandem-ota/tandem/updater","Test":"TestState","Elapsed":0}
{"Action":"fail","Package":"github.com/tandem-ota/tandem/updater","Elapsed":2}
{"Action":"pass","Package":"github.com/tandem-ota/tandem/tests/attacks","Test":"TestAttacks/manifest/every-bit-flipped"}
{"Action":"pass","Package":"github.com/tandem-ota/tandem/tests/attacks","Test":"TestAttacks/manifest/every-bit-flipped/part"}
{"Action":"fail","Package":"github.com/tandem-ota/tandem/tests/attacks","Test":"TestAttacks/manifest/older"}
FAIL	github.com/tandem-ota/tandem/tpm [build failed]
`

func canned(t *testing.T) Page {
	b := NewBook()
	require.NoError(t, b.Read(strings.NewReader(said)))
	require.Equal(t, Passed, b.Tests["updater.TestExplorer"])
	require.Equal(t, Failed, b.Packages["updater"])
	require.Equal(t, []string{"updater.TestHold"}, b.Failed("updater"))
	require.Equal(t, Figure{"77", "updater.TestExplorer"}, b.Figures["cuts-c1"])
	facts := Facts{Commit: "abc <changes>", Date: time.Date(2026, 11, 22, 2, 30, 0, 0, time.UTC), Lines: [][2]string{{"go", "go1 & more"}}}
	return Make(facts, b, theTree(t), Bugs{
		Mutants: []Mutant{{Name: "no-sync", Class: "C4", KilledBy: "updater.TestExplorer"}, {Name: "blind", Class: "C10"}},
		Scores:  []Score{{"partition", 261, 160, 60, 51, 85.5}},
	})
}

// What was published is on the page, in text and in HTML, and what it says is text there.
// What was not shown, failed, was skipped or survived is said to, and its bars are missed.
func TestPage(t *testing.T) {
	p := canned(t)
	var text, html strings.Builder
	require.NoError(t, p.Text(&text))
	require.NoError(t, p.HTML(&html))
	for _, want := range []string{"1,234,567", "77", "SURVIVED", "updater.TestHold FAILED", "updater.TestState skipped", "did not run", "85.5", "160", "it is not Sunday", "What this does not prove", "tested against", p.Verdict()} {
		require.Contains(t, text.String(), want)
		require.Contains(t, html.String(), want)
	}
	for _, want := range []string{`<b>&"odd"`, "<script>alert(1)</script>", "abc <changes>", "go1 & more"} {
		require.Contains(t, text.String(), want)
		require.NotContains(t, html.String(), want)
	}
	require.Contains(t, html.String(), "&lt;b&gt;&amp;&#34;odd&#34;")
	require.Contains(t, html.String(), "&lt;script&gt;")
	for _, never := range []string{"<script", "http://", "https://", "src=", "ZgotmplZ"} {
		require.NotContains(t, html.String(), never, "self-contained")
	}
	require.Less(t, p.Met(), len(p.Bars))
	met := map[string]bool{}
	for _, b := range p.Bars {
		met[b.What] = b.Met
	}
	require.True(t, met["states after a cut or fault in which what boots was looked at, or shown equal"])
	for _, what := range []string{"attacks", "classes of faults", "of these noticed", "requirements whose tests all passed", "packages whose tests passed", "days without work", "seconds that all these cuts and faults took", "fuzz targets replayed: all of the tree", "stories that passed"} {
		require.Contains(t, met, what)
		require.False(t, met[what], what)
	}
	for _, s := range p.Sections {
		if s.Title == "Hostile input" {
			require.Equal(t, []Row{{[]string{"manifest", "2", "1"}, Bad}}, s.Rows)
		}
	}
}

// A row of a standard stands if all its tests ran and passed.
func TestRequirementStands(t *testing.T) {
	tree := theTree(t)
	row := Requirement{Standard: "s", ID: "1", Text: "text", Tests: []string{"tests/proof.TestPage", "story update_commit"}}
	for name, c := range map[string]struct {
		page, story Outcome
		gone        bool
		want        State
	}{
		"both passed":        {Passed, Passed, false, Good},
		"one failed":         {Passed, Failed, false, Bad},
		"one was skipped":    {Skipped, Passed, false, Bad},
		"one did not run":    {Passed, NotRun, false, Bad},
		"one is not there":   {Passed, Passed, true, Bad},
		"nothing ran at all": {NotRun, NotRun, false, Bad},
	} {
		t.Run(name, func(t *testing.T) {
			b, tree := NewBook(), tree
			b.Tests["tests/proof.TestPage"], b.Tests["tests.TestStories/update_commit"] = c.page, c.story
			if c.gone {
				tree.Tests = nil
			}
			s, bar := tested([]Requirement{row, {Text: "other", Outside: "hardware"}}, b, tree)
			require.Equal(t, c.want, s.Rows[0].State)
			require.Equal(t, c.want == Good, bar.Met)
			require.Equal(t, "1", bar.Want, "what is not claimed does not count")
			require.Equal(t, None, s.Rows[1].State)
		})
	}
}

// A list of threats is covered where each has an attack, or a reason on the page why there is
// none; not where there are fewer than the list has, nor where TestThreats did not pass.
func TestThreatBars(t *testing.T) {
	const reason = "uptane/eavesdrop, eavesdrop: it is no secret"
	for name, c := range map[string]struct {
		value   string
		reasons int
		test    Outcome
		want    bool
	}{
		"all":                     {"10 of 10", 0, Passed, true},
		"one has a reason":        {"9 of 10", 1, Passed, true},
		"nobody says the reason":  {"9 of 10", 0, Passed, false},
		"a reason for one of two": {"8 of 10", 1, Passed, false},
		"the test failed":         {"10 of 10", 0, Failed, false},
		"a shorter list":          {"8 of 8", 0, Passed, false},
		"none":                    {"", 0, Passed, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBook()
			b.Figures["threats-uptane"], b.Tests["tests/attacks.TestThreats"] = Figure{Value: c.value}, c.test
			b.Figures["threat-outside-tuf-other"] = Figure{Value: "of another list"}
			if c.reasons > 0 {
				b.Figures["threat-outside-uptane-eavesdrop"] = Figure{Value: reason}
			}
			p := Make(Facts{}, b, Tree{}, Bugs{})
			for _, bar := range p.Bars {
				if bar.What == "threats of Uptane" {
					require.Equal(t, c.want, bar.Met, "%+v", bar)
				}
			}
			var text strings.Builder
			require.NoError(t, p.Text(&text))
			require.Equal(t, c.reasons, strings.Count(text.String(), reason), "once, and with its list")
		})
	}
}

// The bar of the random bugs is met where every package has enough of them noticed. Where
// nobody tried any it is missed; a sample shows the table, and has no such bar.
func TestScoreBar(t *testing.T) {
	const what = "random bugs noticed, worst package, percent"
	for name, c := range map[string]struct {
		bugs Bugs
		want bool
		got  string
	}{
		"all good":               {Bugs{Packages: 2, Scores: []Score{{Package: "a", Percent: 90}, {Package: "b", Percent: 80}}}, true, "80.0 in b"},
		"one is not":             {Bugs{Packages: 2, Scores: []Score{{Package: "a", Percent: 79.9}, {Package: "b", Percent: 99}}}, false, "79.9 in a"},
		"one is missing":         {Bugs{Packages: 2, Scores: []Score{{Package: "a", Percent: 90}}}, false, "90.0 in a, and 1 packages without a score"},
		"none":                   {Bugs{}, false, "none"},
		"those of another state": {Bugs{NoScores: "they are of another commit"}, false, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, sample := range []bool{false, true} {
				p := Make(Facts{Sample: sample}, NewBook(), Tree{}, c.bugs)
				bars := slices.DeleteFunc(slices.Clone(p.Bars), func(b Bar) bool { return b.What != what })
				if sample {
					require.Empty(t, bars)
				} else {
					require.Equal(t, []Bar{{what, "at least 80", c.got, c.want}}, bars)
				}
				var text strings.Builder
				require.NoError(t, p.Text(&text))
				require.Contains(t, text.String(), c.bugs.NoScores)
			}
		})
	}
}

// What was found about bugs counts if it is of the commit of the page, of no other and of no
// tree with changes, and if it is about all of them. What does not count is not on the page,
// and the page says why.
func TestEvidenceOfThisCommit(t *testing.T) {
	const (
		mutants = `"results": [{"name": "blind", "killed_by": "TestX"}]}`
		scores  = `"packages": 8, "results": [{"package": "partition", "places": 9, "unreached": 3, "tried": 6, "killed": 6, "percent": 100}]}`
	)
	facts := Facts{Commit: "abc 2026-11-22"}
	dirty := Facts{Commit: "abc 2026-11-22, and changes that are not committed", Changed: true}
	for name, c := range map[string]struct {
		facts           Facts
		mutants, scores string // the files
		noMutants       string // what is said of them
		noScores        string
	}{
		"both of this commit":      {facts, `{"commit": "abc", ` + mutants, `{"commit": "abc", "most": 60, ` + scores, "", ""},
		"there are none":           {facts, "", "", "there is none", "there is none"},
		"of another commit":        {facts, `{"commit": "def", ` + mutants, `{"commit": "def", "most": 60, ` + scores, `of commit "def"`, `of commit "def"`},
		"of a tree with changes":   {facts, `{"commit": "abc+changes", ` + mutants, `{"commit": "abc+changes", "most": 60, ` + scores, `"abc+changes"`, `"abc+changes"`},
		"the page has changes":     {dirty, `{"commit": "abc+changes", ` + mutants, `{"commit": "abc", "most": 60, ` + scores, "the tree has changes", "the tree has changes"},
		"of nobody knows what":     {facts, `[{"name": "blind", "killed_by": "TestX"}]`, `[{"package": "partition", "percent": 100}]`, "does not count", "does not count"},
		"of some, and of few":      {facts, `{"commit": "abc", "only": "blind", ` + mutants, `{"commit": "abc", "most": 5, ` + scores, "not about all", "at most 5"},
		"cut off, and of another":  {facts, `{"commit": "abc", ` + mutants[:20], `{"commit": "def", "most": 60, ` + scores, "does not count", `of commit "def"`},
		"results that are no list": {facts, `{"commit": "abc", "results": {}}`, `{"commit": "abc", "most": 60, "results": 7}`, "cannot unmarshal", "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			// A run of some packages reads what is there, and tries nothing.
			o := Options{Out: t.TempDir(), Only: "x", Stdout: io.Discard}
			for file, text := range map[string]string{"mutants.json": c.mutants, "mutation-score.json": c.scores} {
				if text != "" {
					require.NoError(t, os.WriteFile(filepath.Join(o.Out, file), []byte(text), 0o644))
				}
			}
			bugs, err := o.bugs(t.Context(), c.facts)
			require.NoError(t, err)
			for _, kind := range []struct {
				found      int
				said, want string
			}{{len(bugs.Mutants), bugs.NoMutants, c.noMutants}, {len(bugs.Scores), bugs.NoScores, c.noScores}} {
				if kind.want == "" {
					require.Equal(t, 1, kind.found)
					require.Empty(t, kind.said)
				} else {
					require.Zero(t, kind.found)
					require.Contains(t, kind.said, kind.want)
				}
			}
			var text strings.Builder
			require.NoError(t, Make(c.facts, NewBook(), Tree{}, bugs).Text(&text))
			require.True(t, strings.Contains(text.String(), bugs.NoMutants), bugs.NoMutants)
			require.True(t, strings.Contains(text.String(), bugs.NoScores), bugs.NoScores)
		})
	}
}

// aModule is a folder with a module of our name, and what writes a file into it.
func aModule(t *testing.T) (dir string, write func(name, text string)) {
	dir = t.TempDir()
	write = func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	write("go.mod", "module "+strings.TrimSuffix(Module, "/")+"\n\ngo 1.26\n")
	return dir, write
}

// A whole run has the bugs tried that were not tried on this commit. If that comes to nothing
// what was there before is not taken for its result: it is gone.
func TestBugsAreTried(t *testing.T) {
	dir, write := aModule(t)
	// It stands in for the real one: says that it ran, and leaves what it is told to.
	write("tests/mutants/main.go", `package main

import (
	"os"
	"strings"
)

func main() {
	kind := "mutants"
	if strings.Contains(strings.Join(os.Args, " "), "-random 60") {
		kind = "scores"
	}
	ran, _ := os.ReadFile("ran")
	os.WriteFile("ran", append(ran, kind...), 0o644)
	text, err := os.ReadFile(kind)
	if err != nil {
		os.Exit(1)
	}
	os.WriteFile(os.Args[2], text, 0o644)
}
`)
	o := Options{Root: dir, Out: filepath.Join(dir, "build"), Stdout: io.Discard}
	facts := Facts{Commit: "abc 2026"}
	for _, c := range []struct {
		state         string
		leaves        string // the commit that it writes; "" if it dies
		quick         bool
		facts         Facts
		ran           string
		mutants, have bool // there are some; there is a file of scores
	}{
		{"it runs", "abc+changes", false, Facts{Commit: "abc 2026", Changed: true}, "mutantsscores", true, true},
		{"it did before, on what the same changes may be", "abc+changes", true, Facts{Commit: "abc 2026", Changed: true}, "mutants", true, true},
		{"on the commit, and it dies", "", false, facts, "mutantsscores", false, false},
		{"a sample", "abc", true, facts, "mutants", true, false},
		{"a sample, again", "abc", true, facts, "", true, false},
	} {
		write("ran", "")
		os.Remove(filepath.Join(dir, "mutants"))
		os.Remove(filepath.Join(dir, "scores"))
		if c.leaves != "" {
			write("mutants", `{"commit": "`+c.leaves+`", "results": [{"name": "blind"}]}`)
			write("scores", `{"commit": "`+c.leaves+`", "most": 60, "packages": 1, "results": [{"package": "p"}]}`)
		}
		require.NoError(t, os.MkdirAll(o.Out, 0o755))
		o.Quick = c.quick
		bugs, err := o.bugs(t.Context(), c.facts)
		require.NoError(t, err, c.state)
		ran, err := os.ReadFile(filepath.Join(dir, "ran"))
		require.NoError(t, err, c.state)
		require.Equal(t, c.ran, string(ran), c.state)
		require.Equal(t, c.mutants, len(bugs.Mutants) > 0, c.state)
		require.Equal(t, c.mutants, bugs.NoMutants == "", c.state)
		_, err = os.Stat(filepath.Join(o.Out, "mutation-score.json"))
		require.Equal(t, c.have, err == nil, c.state)
		require.Equal(t, c.have && !c.quick, len(bugs.Scores) > 0, c.state)
	}
}

// A sample wants the stories that requirements name, a whole page all there are.
func TestStoryBar(t *testing.T) {
	tree := Tree{Stories: map[string]string{"update_commit": "a good release", "new": "a new one"}}
	for _, name := range storiesOf(requirements) {
		tree.Stories[name] = "it works"
	}
	b := NewBook()
	for _, name := range storiesOf(requirements) {
		b.Tests["tests.TestStories/"+name] = Passed
	}
	bar := func(sample bool) bool { _, bar := told(Facts{Sample: sample}, b, tree); return bar.Met }
	require.True(t, bar(true))
	require.False(t, bar(false), "one did not run")
	b.Tests["tests.TestStories/new"] = Passed
	require.True(t, bar(false))
	b.Tests["tests.TestStories/update_commit"] = Skipped
	require.False(t, bar(true))
	require.False(t, bar(false))
}

// A page of a sample says that it is one, and has no bars for what only a whole run reaches.
func TestSample(t *testing.T) {
	const long = "machines killed in an update"
	for _, sample := range []bool{true, false} {
		p := Make(Facts{Sample: sample}, NewBook(), Tree{}, Bugs{})
		has := slices.ContainsFunc(p.Bars, func(b Bar) bool { return b.What == long })
		require.Equal(t, !sample, has)
		var text, html strings.Builder
		require.NoError(t, p.Text(&text))
		require.NoError(t, p.HTML(&html))
		require.Equal(t, sample, strings.Contains(text.String(), "run     a sample"))
		require.Equal(t, sample, strings.Contains(html.String(), "<td>a sample"))
	}
}

// A run that goes on takes over what passed on the same commit, figures too, and runs the
// rest again; of a tree that is no commit it keeps nothing.
func TestAgain(t *testing.T) {
	dir, write := aModule(t)
	// Each says how often it has run.
	const source = `package p

import (
	"fmt"
	"os"
	"testing"
)

func Test(t *testing.T) {
	ran, _ := os.ReadFile("ran")
	ran = append(ran, '.')
	os.WriteFile("ran", ran, 0o644)
	t.Attr("ran-%s", fmt.Sprint(len(ran)))
	%s
}
`
	write("good/p_test.go", fmt.Sprintf(source, "good", ""))
	write("bad/p_test.go", fmt.Sprintf(source, "bad", "t.Fail()"))
	list := []Run{{Package: "good"}, {Package: "bad"}}
	for _, run := range []struct {
		state     string
		again     bool
		facts     Facts
		kept      int
		good, bad string // how often they have run then
	}{
		{"the first run", false, Facts{Commit: "abc 2026"}, 0, "1", "1"},
		{"on the same commit, and not asked for", false, Facts{Commit: "abc 2026"}, 0, "2", "2"},
		{"on the same commit", true, Facts{Commit: "abc 2026"}, 1, "2", "3"},
		{"a sample", true, Facts{Commit: "abc 2026", Sample: true}, 0, "3", "4"},
		{"on another commit", true, Facts{Commit: "def 2026"}, 0, "4", "5"},
		{"with changes", true, Facts{Commit: "def 2026, and changes", Changed: true}, 0, "5", "6"},
		{"with further changes", true, Facts{Commit: "def 2026, and changes", Changed: true}, 0, "6", "7"},
	} {
		b := NewBook()
		o := Options{Root: dir, Out: filepath.Join(dir, "build"), Again: run.again, Quick: run.facts.Sample, Stdout: io.Discard}
		require.NoError(t, os.MkdirAll(o.Out, 0o755))
		kept, err := o.each(t.Context(), list, b, run.facts)
		require.NoError(t, err, run.state)
		require.Equal(t, run.kept, kept, run.state)
		require.Equal(t, Passed, b.Packages["good"], run.state)
		require.Equal(t, Failed, b.Packages["bad"], run.state)
		require.Equal(t, run.good, b.Figures["ran-good"].Value, run.state)
		require.Equal(t, run.bad, b.Figures["ran-bad"].Value, run.state)
		run.facts.Kept = kept
		require.Equal(t, kept > 0, strings.Contains(run.facts.extent(), "passed in an earlier run"), run.state)
	}
}

// A group of subtests did as well as the worst of them.
func TestOutcomeOfGroup(t *testing.T) {
	b := NewBook()
	b.Tests["p.TestA/x/one"], b.Tests["p.TestA/x/two"], b.Tests["p.TestA/xy/three"], b.Tests["p.TestA/z"] = Passed, Passed, Failed, Skipped
	require.Equal(t, Passed, b.Outcome("p.TestA/x"))
	require.Equal(t, Failed, b.Outcome("p.TestA/xy"))
	require.Equal(t, Skipped, b.Outcome("p.TestA/z"))
	require.Equal(t, NotRun, b.Outcome("p.TestA/y"))
	require.Equal(t, Failed, b.Outcome("p.TestA"))
}

// Figures that somebody publishes tomorrow are shown, too.
func TestOtherFigures(t *testing.T) {
	p := canned(t)
	for _, s := range p.Sections {
		if s.Title == "Other figures" {
			require.Len(t, s.Rows, 1)
			require.Equal(t, "odd", s.Rows[0].Cells[0])
			return
		}
	}
	require.Fail(t, "no other figures")
}
