package proof

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Facts are where and of what a page was made.
type Facts struct {
	Commit    string // and whether the tree is it
	Committed time.Time
	Date      time.Time
	Changed   bool        // the tree is not what was committed
	Sample    bool        // of what takes long, only what CI runs was run
	Kept      int         // packages that passed in an earlier run on this commit, and did not run again
	Lines     [][2]string // of the machine and its tools: what, which
}

// Mutant is a seeded bug and what became of it (build/mutants.json, make mutants).
type Mutant struct {
	Name     string  `json:"name"`
	Bug      string  `json:"bug"`
	Class    string  `json:"class"`
	KilledBy string  `json:"killed_by"`
	Seconds  float64 `json:"seconds"`
	Error    string  `json:"error"`
}

// Score is what became of random bugs in a package (build/mutation-score.json, make mutants
// SCORE=60).
type Score struct {
	Package string  `json:"package"`
	Tried   int     `json:"tried"`
	Killed  int     `json:"killed"`
	Percent float64 `json:"percent"`
}

// Bugs are those put in on purpose.
type Bugs struct {
	Mutants []Mutant
	Scores  []Score
}

// Page is all that is shown.
type Page struct {
	Facts    Facts
	Bars     []Bar
	Sections []Section
}

// Section is a table with a heading.
type Section struct {
	Title string
	Intro string
	Head  []string
	Rows  []Row
}

// Row is a line of a section.
type Row struct {
	Cells []string
	State State
}

// State is how a row is shown.
type State string

// The states of a row.
const (
	Plain State = ""
	Good  State = "good"
	Bad   State = "bad"
	None  State = "none" // nothing is claimed
)

// Bar is a promise about one figure.
type Bar struct {
	What string
	Want string
	Got  string
	Met  bool
}

// Met says how many bars are met.
func (p Page) Met() int {
	n := 0
	for _, b := range p.Bars {
		if b.Met {
			n++
		}
	}
	return n
}

// Verdict is the last line of the page.
func (p Page) Verdict() string { return fmt.Sprintf("bars: %d/%d met", p.Met(), len(p.Bars)) }

// classes are the classes of faults, in the words of reference/reliability.md.
var classes = [][2]string{
	{"C1", "power cut at each operation"},
	{"C2", "write torn in order, at each sector"},
	{"C3", "write torn out of order"},
	{"C4", "unflushed writes lost or reordered"},
	{"C5", "the sector under the write destroyed"},
	{"C6", "a flush that lies"},
	{"C7", "an operation fails: EIO, ENOSPC, a short write"},
	{"C8", "reads that flip a bit or come from elsewhere"},
	{"C9", "a medium of the wrong size or kind"},
	{"C10", "operations that take minutes"},
	{"C11", "a second fault during recovery, and a third"},
}

// Make fills the page with what a run has shown.
func Make(facts Facts, b *Book, tree Tree, bugs Bugs) Page {
	p := Page{Facts: facts}
	claimed := map[string]bool{} // figures that are shown somewhere
	figure := func(key string) string {
		claimed[key] = true
		return cmp.Or(b.Figures[key].Value, "none")
	}
	atLeast := func(what, key string, want float64) {
		got := figure(key)
		n, err := strconv.ParseFloat(got, 64)
		p.Bars = append(p.Bars, Bar{what, "at least " + whole(want), group(got), err == nil && n >= want})
	}
	atMost := func(what, key string, want float64) {
		got := figure(key)
		n, err := strconv.ParseFloat(got, 64)
		p.Bars = append(p.Bars, Bar{what, "at most " + whole(want), group(got), err == nil && n <= want})
	}

	atLeast("power cuts and other faults, each followed by a boot", "cuts", 1_000_000)
	atLeast("of these taken to the end", "cuts-resumed", 20_000)
	atMost("promises broken", "cuts-violations", 0)
	cuts := Section{
		Title: "Power cuts and faults",
		Intro: fmt.Sprintf("A whole update, from order to commit or revert, runs in memory by the code that ships, on a disk that records every write. Each state that a cut at any moment may leave is booted: "+
			"%s were looked at, %s shown equal to one of these by all that was read. Classes of states: %s; depth of cuts in recoveries from cuts: %s. A state that fails prints one line that replays it.",
			group(figure("cuts-evaluated")), group(figure("cuts-equal")), group(figure("cuts-classes")), figure("cuts-depth")),
		Head: []string{"class", "what happens", "states"},
	}
	visited := 0
	for _, c := range classes {
		n := figure("cuts-" + strings.ToLower(c[0]))
		row := Row{[]string{c[0], c[1], group(n)}, Good}
		if count, err := strconv.Atoi(n); err != nil || count == 0 {
			row.State = Bad
		} else {
			visited++
		}
		cuts.Rows = append(cuts.Rows, row)
	}
	p.Bars = append(p.Bars, Bar{"classes of faults", fmt.Sprint(len(classes)), fmt.Sprint(visited), visited == len(classes)})
	p.Sections = append(p.Sections, cuts)

	atLeast("attacks", "attacks", 130)
	atMost("MiB of memory in any attack", "attack-peak-mib", 64)
	p.Sections = append(p.Sections, attacks(b, figure("attack-variants")))
	threats := Section{Title: "Threats", Intro: "Named threats with at least one attack, of those that the lists have; what a device can do nothing about has its reason in tests/attacks/threats.go.", Head: []string{"list", "covered"}}
	for _, list := range []struct {
		name, key string
		want      int
	}{{"TUF", "threats-tuf", 9}, {"Uptane", "threats-uptane", 10}, {"SUIT", "threats-suit", 18}} {
		got := figure(list.key)
		var covered, listed int
		_, err := fmt.Sscanf(got, "%d of %d", &covered, &listed)
		all := err == nil && covered == listed
		if err == nil && !all && b.Tests["tests/attacks.TestThreats"] == Passed {
			// The test sees to it that each of the others has one.
			got, all = got+", and reasons for the others", true
		}
		bar := Bar{"threats of " + list.name, fmt.Sprint(list.want), got, all && listed >= list.want}
		p.Bars = append(p.Bars, bar)
		threats.Rows = append(threats.Rows, Row{[]string{list.name, got}, state(bar.Met)})
	}
	p.Sections = append(p.Sections, threats)

	section, bars := seeded(bugs.Mutants, tree.Mutants)
	p.Bars, p.Sections = append(p.Bars, bars...), append(p.Sections, section)
	if len(bugs.Scores) > 0 {
		p.Sections = append(p.Sections, scored(bugs.Scores))
	}

	section, bar := fuzzed(b, tree)
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)

	atMost("bytes written per byte of blocks that change", "wear-ratio-worst", 1.05)
	atMost("sectors of flash written beside, per update", "wear-metadata-sectors-worst", 8)
	atLeast("days without work", "idle-days", 30)
	atMost("writes in them", "idle-writes", 0)
	atLeast("years in one go", "soak-years", 10)
	p.Sections = append(p.Sections, figures("Wear and years",
		"An update writes the blocks of 4 KiB in which the spare slot differs, and a few sectors (of 4 KiB, too) about itself, over all disks and whoever writes. Years pass in virtual time, and the process holds as much at their end as after the first.",
		b, claimed, "wear-", "idle-", "soak-"))
	crosschecked := "QEMU's recorder, its disks and strace look at the same program; the real GRUB boots what the model says that it boots."
	if facts.Sample {
		crosschecked += " What follows is the sample that every run has; only a whole page has bars for it."
	} else {
		atLeast("machines killed while GRUB counts tries", "grub-kills", 1000)
		atLeast("machines killed in an update", "guest-kills", 20)
		atLeast("disks after a power cut that the real GRUB booted", "replayed-disks", 200)
	}
	p.Sections = append(p.Sections, figures("Cross-checks by tools that are not ours",
		crosschecked,
		b, claimed, "crosscheck-", "replayed-", "strace-", "blkdebug-", "process-", "grub-", "guest-", "kill-", "hostile-", "file-"))

	section, bar = tested(requirements, b, tree)
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)

	section, bar = ran(b)
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)
	if rest := figures("Other figures", "", b, claimed, ""); len(rest.Rows) > 0 {
		p.Sections = append(p.Sections, rest)
	}
	none := Section{Title: "What this does not prove"}
	for _, l := range limits {
		none.Rows = append(none.Rows, Row{Cells: []string{l}})
	}
	p.Sections = append(p.Sections, none)
	return p
}

func state(ok bool) State {
	if ok {
		return Good
	}
	return Bad
}

// attacks counts the cases of each area, which is the first part of their name.
func attacks(b *Book, variants string) Section {
	s := Section{
		Title: "Hostile input", Head: []string{"area", "cases", "refused as they should be"},
		Intro: "Each case has a name, the error that it must meet, and what must be as it was, shown by hashes. Variants, such as the same at every byte: " + group(variants) + ".",
	}
	all, good := map[string]int{}, map[string]int{}
	const prefix = "tests/attacks.TestAttacks/"
	for name, o := range b.Tests {
		rest, ok := strings.CutPrefix(name, prefix)
		area, _, named := strings.Cut(rest, "/")
		if !ok || !named || strings.Count(rest, "/") > 1 {
			continue // of another test, or a part of a case
		}
		all[area]++
		if o == Passed {
			good[area]++
		}
	}
	for _, area := range slices.Sorted(maps.Keys(all)) {
		s.Rows = append(s.Rows, Row{[]string{area, fmt.Sprint(all[area]), fmt.Sprint(good[area])}, state(all[area] == good[area])})
	}
	return s
}

// seeded is the table of the mutants, of which there are so many patches in the tree.
func seeded(mutants []Mutant, patches int) (Section, []Bar) {
	s := Section{
		Title: "Seeded bugs", Head: []string{"bug", "class", "killed by", "seconds"},
		Intro: "Each is put into the code on purpose; a test has to notice. A proof that cannot fail proves nothing.",
	}
	killed := 0
	for _, m := range mutants {
		by := cmp.Or(m.KilledBy, "SURVIVED")
		if m.Error != "" {
			by = "ERROR: " + m.Error
		}
		dead := m.Error == "" && m.KilledBy != ""
		if dead {
			killed++
		}
		s.Rows = append(s.Rows, Row{[]string{strings.TrimSpace(m.Name + ": " + m.Bug), m.Class, by, fmt.Sprintf("%.1f", m.Seconds)}, state(dead)})
	}
	want := max(24, patches)
	return s, []Bar{
		{"seeded bugs", fmt.Sprint("at least ", want), fmt.Sprint(len(mutants)), len(mutants) >= want},
		{"of these noticed", fmt.Sprint(len(mutants)), fmt.Sprint(killed), len(mutants) > 0 && killed == len(mutants)},
	}
}

// scored is the table of random bugs. Some of them change nothing that anybody could notice.
func scored(scores []Score) Section {
	s := Section{Title: "Random bugs", Intro: "Small changes at random places that some test comes to; at least 80 of 100 have to be noticed.", Head: []string{"package", "tried", "noticed", "percent"}}
	for _, c := range scores {
		s.Rows = append(s.Rows, Row{[]string{c.Package, fmt.Sprint(c.Tried), fmt.Sprint(c.Killed), fmt.Sprintf("%.1f", c.Percent)}, state(c.Percent >= 80)})
	}
	return s
}

// fuzzed is the table of the fuzz targets, of which a run of the tests replays the corpora.
func fuzzed(b *Book, tree Tree) (Section, Bar) {
	s := Section{Title: "Fuzz targets", Intro: "What was found once is kept and tried in every run, beside the seeds in the code.", Head: []string{"target", "files kept", "this run"}}
	good := 0
	for _, name := range tree.Fuzz {
		o := b.Tests[name]
		row := Row{[]string{name, fmt.Sprint(tree.Seeds[name]), o.String()}, None}
		switch o {
		case Passed:
			row.State = Good
			good++
		case Failed:
			row.State = Bad
		}
		s.Rows = append(s.Rows, row)
	}
	return s, Bar{"fuzz targets replayed", "at least 10", fmt.Sprint(good), good >= 10}
}

// figures is a table of all figures with one of the prefixes that are not shown yet.
func figures(title, intro string, b *Book, claimed map[string]bool, prefixes ...string) Section {
	s := Section{Title: title, Intro: intro, Head: []string{"figure", "value", "shown by"}}
	for _, key := range slices.Sorted(maps.Keys(b.Figures)) {
		ours := slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
		if !ours || claimed[key] && slices.Contains(prefixes, "") {
			continue
		}
		claimed[key] = true
		s.Rows = append(s.Rows, Row{Cells: []string{strings.ReplaceAll(key, "-", " "), group(b.Figures[key].Value), b.Figures[key].Test}})
	}
	return s
}

// tested is the table of requirements. A row stands if all its tests passed in this run.
func tested(rows []Requirement, b *Book, tree Tree) (Section, Bar) {
	s := Section{
		Title: "Requirements tested against", Head: []string{"standard", "row", "asked, in our words", "shown by"},
		Intro: "Each row was tested against by the tests that it names, in this run. Rows that are for others than an updater claim nothing.",
	}
	claimed, passed := 0, 0
	for _, r := range rows {
		if r.Outside != "" {
			s.Rows = append(s.Rows, Row{[]string{r.Standard, r.ID, r.Text, "not claimed: " + r.Outside}, None})
			continue
		}
		claimed++
		good := len(r.Tests) > 0
		var shown []string
		for _, ref := range r.Tests {
			o := b.Outcome(id(ref))
			how := o.String()
			if !tree.Has(ref) {
				how = "is not in the tree"
			}
			if o != Passed || !tree.Has(ref) {
				good = false
				ref += " " + how
			}
			shown = append(shown, ref)
		}
		if good {
			passed++
		}
		s.Rows = append(s.Rows, Row{[]string{r.Standard, r.ID, r.Text, strings.Join(shown, ", ")}, state(good)})
	}
	return s, Bar{"requirements whose tests all passed", fmt.Sprint(claimed), fmt.Sprint(passed), passed == claimed}
}

// ran is the table of packages.
func ran(b *Book) (Section, Bar) {
	n := b.Count()
	s := Section{
		Title: "What ran", Head: []string{"package", "shows", "outcome", "seconds"},
		Intro: fmt.Sprintf("Tests and subtests: %s passed, %d skipped, %d failed.", group(fmt.Sprint(n[Passed])), n[Skipped], n[Failed]),
	}
	good := 0
	list := all()
	for _, r := range list {
		o := b.Packages[r.Package]
		if o == Passed {
			good++
		}
		s.Rows = append(s.Rows, Row{[]string{r.Package, r.What, o.String(), fmt.Sprintf("%.0f", b.Seconds[r.Package])}, state(o == Passed)})
	}
	for _, name := range slices.Sorted(maps.Keys(b.Words)) {
		if b.Tests[name] == Failed || b.Packages[name] == Failed {
			s.Rows = append(s.Rows, Row{[]string{name, strings.Join(b.Words[name], "\n"), Failed.String(), ""}, Bad})
		}
	}
	return s, Bar{"packages whose tests passed", fmt.Sprint(len(list)), fmt.Sprint(good), good == len(list) && n[Failed] == 0}
}

// whole writes a number of a bar.
func whole(n float64) string { return group(strconv.FormatFloat(n, 'f', -1, 64)) }

// group puts commas into a whole number; anything else stays as it is.
func group(s string) string {
	if _, err := strconv.ParseUint(s, 10, 64); err != nil {
		return s
	}
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}
