package proof

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Facts are where and of what a page was made.
type Facts struct {
	Commit  string // hash, date, and whether the tree is it
	Date    time.Time
	Changed bool        // the tree is not what was committed
	Sample  bool        // of what takes long, only what CI runs was run
	Kept    int         // packages that passed in an earlier run on this commit, and did not run again
	Lines   [][2]string // of the machine and its tools: what, which
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
	Package   string  `json:"package"`
	Places    int     `json:"places"`    // at which something could be changed
	Unreached int     `json:"unreached"` // that no test comes to
	Tried     int     `json:"tried"`     // of the others
	Killed    int     `json:"killed"`
	Percent   float64 `json:"percent"`
}

// Bugs are those put in on purpose, on the commit of the page.
type Bugs struct {
	Mutants  []Mutant
	Scores   []Score
	Packages int // that have a score where all are measured
	// Why there are none of a kind, or why those that there were do not count.
	NoMutants, NoScores string
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
	{"C9", "partitions of another size, or read-only"},
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

	atLeast("states after a cut or fault in which what boots was looked at, or shown equal", "cuts", 1_000_000)
	atLeast("runs to the end after a cut or fault", "cuts-resumed", 20_000)
	atMost("promises broken (1: one or more)", "cuts-violations", 0)
	atMost("seconds that all these cuts and faults took", "cuts-seconds", 480)
	cuts := Section{
		Title: "Power cuts and faults",
		Intro: fmt.Sprintf("A whole update, from order to commit or revert, runs in memory by the code that ships, on disks that record every write. "+
			"The power may fail at each operation, and what was not flushed by then may be lost, torn or reordered; where that makes more states than fit, a sample of them is taken. "+
			"A model of the loader says what boots in a state, and what the slots hold is compared with what was signed. "+
			"Different contents of what looking reads, of all stories: %s. Of the states, %s were looked at; in %s others all that looking reads is the same as in one of these, which is how they were shown equal. "+
			"After some of the cuts and faults the device program was started, too, and ran to the end of its work: these are the runs to the end. Recoveries were cut again, up to %s cuts deep. "+
			"At a cut, up to %s writes were not flushed. A state that fails prints one line that replays it.",
			group(figure("cuts-classes")), group(figure("cuts-evaluated")), group(figure("cuts-equal")), figure("cuts-depth"), figure("cuts-pending-writes")),
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
	section, bars := threatened(b, figure)
	p.Bars, p.Sections = append(p.Bars, bars...), append(p.Sections, section)

	section, bars = seeded(bugs, tree.Mutants)
	p.Bars, p.Sections = append(p.Bars, bars...), append(p.Sections, section)
	section, bar := scored(bugs)
	if p.Sections = append(p.Sections, section); !facts.Sample {
		p.Bars = append(p.Bars, bar)
	}

	section, bar = fuzzed(b, tree)
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)

	atMost("bytes written per byte of blocks that change", "wear-ratio-worst", 1.05)
	atMost("bytes written beside them per update, in units of 4 KiB", "wear-metadata-sectors-worst", 8)
	atLeast("days without work", "idle-days", 30)
	atMost("writes of the agent and the loader in them", "idle-writes", 0)
	atLeast("years in one go", "soak-years", 10)
	p.Sections = append(p.Sections, figures("Wear and years",
		"An update writes the blocks of 4 KiB in which the spare slot differs, and a little about itself. A write of 512 bytes programs a whole page of most flash, so pages are counted too. "+
			"What a file system writes about its files, and the ledger's log of a board with a TPM, are not in these numbers. A boot leaves two lines in the boot log, with or without work. "+
			"Years pass in virtual time, and the process holds as much at their end as after the first.",
		b, claimed, "wear-", "idle-", "soak-"))
	crosschecked := "QEMU's recorder, its disks and strace look at the same program; the real GRUB boots what the model says that it boots."
	if facts.Sample {
		crosschecked += " What follows is the sample that every run has; only a whole page has bars for it."
	} else {
		atLeast("machines killed while GRUB counts tries", "grub-kills", 1000)
		atLeast("machines killed in an update", "guest-kills", 20)
		atLeast("of these while it was installed", "guest-kills-installing", 1)
		atLeast("of these in the boot into the trial", "guest-kills-booting", 1)
		atLeast("of these in the trial", "guest-kills-trial", 1)
		atLeast("disks after a power cut that the real GRUB booted", "replayed-disks", 200)
	}
	p.Sections = append(p.Sections, figures("Cross-checks by tools that are not ours",
		crosschecked,
		b, claimed, "crosscheck-", "replayed-", "strace-", "blkdebug-", "process-", "grub-", "guest-", "kill-"))
	p.Sections = append(p.Sections, figures("Models",
		"These are ours: a model of the loader, which the real GRUB was held against in the cases of the section above and of bootctl/boottest, a model of a file system that loses power, and disks of which a power cut destroys 4 KiB at once.",
		b, claimed, "hostile-", "file-", "unit-"))

	section, bar = told(facts, b, tree)
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)

	section, bar = tested(requirements, b, tree)
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)

	section, bar = ran(b, all(facts.Sample))
	p.Bars, p.Sections = append(p.Bars, bar), append(p.Sections, section)
	if skipped := b.Skipped(); len(skipped) > 0 {
		p.Sections = append(p.Sections, Section{
			Title: "Skipped tests", Head: []string{"test", "why"}, Rows: skipped,
			Intro: "They show nothing in this run. A bar or a requirement that needs one of them is missed.",
		})
	}
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

// threatened is the table of what others have named. A list is covered where each of its
// threats has an attack, or a reason, which is shown, why a device can do nothing about it.
func threatened(b *Book, figure func(string) string) (Section, []Bar) {
	s := Section{
		Title: "Threats", Head: []string{"list", "covered by attacks"},
		Intro: "Named threats with at least one attack, of those that the lists have; for each of the others, the reason why a device can do nothing about it.",
	}
	var bars []Bar
	for _, list := range []struct {
		name, key, outside string
		want               int
	}{
		{"TUF", "threats-tuf", "threat-outside-tuf-", 9},
		{"Uptane", "threats-uptane", "threat-outside-uptane-", 10},
		{"SUIT", "threats-suit", "threat-outside-threat-", 18},
	} {
		got := figure(list.key)
		var covered, listed int
		_, err := fmt.Sscanf(got, "%d of %d", &covered, &listed)
		var reasons []Row
		for _, key := range slices.Sorted(maps.Keys(b.Figures)) {
			if strings.HasPrefix(key, list.outside) {
				reasons = append(reasons, Row{[]string{list.name, "no attack: " + figure(key)}, None})
			}
		}
		if len(reasons) > 0 {
			got += fmt.Sprintf(", and %d with a reason", len(reasons))
		}
		met := err == nil && listed >= list.want && covered+len(reasons) == listed && b.Tests["tests/attacks.TestThreats"] == Passed
		bars = append(bars, Bar{"threats of " + list.name, fmt.Sprintf("%d, or a reason", list.want), got, met})
		s.Rows = append(append(s.Rows, Row{[]string{list.name, got}, state(met)}), reasons...)
	}
	return s, bars
}

// seeded is the table of the mutants, of which there are so many patches in the tree.
func seeded(bugs Bugs, patches int) (Section, []Bar) {
	s := Section{
		Title: "Seeded bugs", Head: []string{"bug", "class", "killed by", "seconds"},
		Intro: "Each is put into the code on purpose; a test has to notice. A proof that cannot fail proves nothing.",
	}
	if bugs.NoMutants != "" {
		s.Rows = append(s.Rows, Row{[]string{bugs.NoMutants, "", "none", ""}, Bad})
	}
	killed := 0
	for _, m := range bugs.Mutants {
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
	want, all := max(24, patches), len(bugs.Mutants)
	return s, []Bar{
		{"seeded bugs", fmt.Sprint("at least ", want), fmt.Sprint(all), all >= want},
		{"of these noticed", fmt.Sprint(all), fmt.Sprint(killed), all > 0 && killed == all},
	}
}

// LeastScore is how many of the random bugs, in percent, have to be noticed.
const LeastScore = 80

// scored is the table of random bugs. Some of them change nothing that anybody could notice.
func scored(bugs Bugs) (Section, Bar) {
	s := Section{
		Title: "Random bugs", Head: []string{"package", "places", "not reached", "tried", "noticed", "percent"},
		Intro: fmt.Sprintf("Small changes at random places; at least %d of 100 have to be noticed. They are tried only at places that some test comes to: how many it comes to is in the table, and the percentage says nothing about the others.", LeastScore),
	}
	if bugs.NoScores != "" {
		s.Rows = append(s.Rows, Row{[]string{bugs.NoScores, "", "", "", "", "none"}, Bad})
	}
	bar := Bar{"random bugs noticed, worst package, percent", fmt.Sprintf("at least %d", LeastScore), "none", len(bugs.Scores) > 0 && len(bugs.Scores) >= bugs.Packages}
	worst := math.Inf(1)
	for _, c := range bugs.Scores {
		percent := fmt.Sprintf("%.1f", c.Percent)
		if c.Percent < worst {
			worst, bar.Got = c.Percent, percent+" in "+c.Package
		}
		bar.Met = bar.Met && c.Percent >= LeastScore
		s.Rows = append(s.Rows, Row{[]string{c.Package, fmt.Sprint(c.Places), fmt.Sprint(c.Unreached), fmt.Sprint(c.Tried), fmt.Sprint(c.Killed), percent}, state(c.Percent >= LeastScore)})
	}
	if missing := bugs.Packages - len(bugs.Scores); missing > 0 {
		bar.Got += fmt.Sprintf(", and %d packages without a score", missing)
	}
	return s, bar
}

// fuzzed is the table of the fuzz targets, of which a run of the tests replays the corpora.
func fuzzed(b *Book, tree Tree) (Section, Bar) {
	s := Section{Title: "Fuzz targets", Intro: "What was found once is kept and tried in every run, beside the seeds in the code.", Head: []string{"target", "files kept", "this run"}}
	good := 0
	for _, name := range tree.Fuzz {
		o := b.Tests[name]
		if o == Passed {
			good++
		}
		s.Rows = append(s.Rows, Row{[]string{name, fmt.Sprint(tree.Seeds[name]), o.String()}, state(o == Passed)})
	}
	return s, Bar{"fuzz targets replayed: all of the tree", fmt.Sprint(len(tree.Fuzz)), fmt.Sprint(good), good >= 10 && good == len(tree.Fuzz)}
}

// told is the table of the stories, each with the claim that it begins with.
func told(facts Facts, b *Book, tree Tree) (Section, Bar) {
	s := Section{Title: "Stories", Head: []string{"story", "this run", "claim"}, Intro: "Whole devices in QEMU, with firmware, loader, kernel, watchdog and, where a story needs it, TPM and broker."}
	want := slices.Sorted(maps.Keys(tree.Stories))
	if facts.Sample {
		s.Intro += " A sample has those that requirements name."
		want = storiesOf(requirements)
	}
	good := 0
	for _, name := range slices.Sorted(maps.Keys(tree.Stories)) {
		o := b.Outcome(id("story " + name))
		row := Row{[]string{name, o.String(), tree.Stories[name]}, state(o == Passed)}
		switch wanted := slices.Contains(want, name); {
		case wanted && o == Passed:
			good++
		case !wanted && o == NotRun:
			row.State = None
		}
		s.Rows = append(s.Rows, row)
	}
	return s, Bar{"stories that passed", fmt.Sprint(len(want)), fmt.Sprint(good), len(want) > 0 && good == len(want)}
}

// names says what figures are, where their keys do not. A figure that is not here is shown
// by its key.
var names = map[string]string{
	"wear-ratio-worst":            "bytes written per byte of blocks that change, worst case",
	"wear-metadata-sectors-worst": "bytes written beside them per update, in units of 4 KiB, worst case",
	"wear-metadata-pages-worst":   "pages of 4 KiB touched by writes beside them per update, worst case",
	"idle-days":                   "days without work",
	"idle-writes":                 "writes of the agent and the loader in them",
	"idle-boot-log-bytes":         "bytes in the boot log per boot, worst case",
	"soak-years":                  "years in one go",
	"soak-updates":                "updates in them",
	"soak-reverts":                "updates that were reverted in them",
	"soak-power-cuts":             "power cuts in them",
	"soak-outages":                "outages of the link in them",
	"crosscheck-ops":              "disk operations that QEMU's recorder and ours saw alike",
	"guest-sectors":               "sectors that a guest's kernel changed as our recorder says",
	"replayed-disks":              "disks after a power cut, made from QEMU's log, that the real GRUB booted",
	"strace-faults":               "system calls of the device program that strace made fail",
	"process-kills":               "device programs killed at a system call",
	"blkdebug-faults":             "disks of which QEMU made sectors fail",
	"grub-kills":                  "machines killed while GRUB counts tries",
	"guest-kills":                 "machines killed in an update",
	"guest-kills-installing":      "of these while it was installed",
	"guest-kills-booting":         "of these in the boot into the trial",
	"guest-kills-trial":           "of these in the trial",
	"hostile-environments":        "random and lying boot records that the model booted from",
	"hostile-environment-boots":   "boots of the model from them",
	"hostile-environment-trials":  "of these, boots of a system on trial",
	"file-crash-states":           "states of a file after a power cut",
	"file-faults":                 "faults while a file was replaced",
	"unit-cuts":                   "states of an update after a cut that destroyed 4 KiB, with what nobody wrote in them",
	"unit-cuts-resumed":           "of these, taken to the end",
	"mutants-seeded":              "patches that put a bug into the code",
	"mutants-syncs":               "bugs made of the syncs in the code",
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
		s.Rows = append(s.Rows, Row{Cells: []string{cmp.Or(names[key], strings.ReplaceAll(key, "-", " ")), group(b.Figures[key].Value), b.Figures[key].Test}})
	}
	return s
}

// tested is the table of requirements. A row stands if all its tests passed in this run.
func tested(rows []Requirement, b *Book, tree Tree) (Section, Bar) {
	s := Section{
		Title: "Requirements tested against", Head: []string{"standard", "row", "asked, in our words", "shown by"},
		Intro: "Each row was tested against by the tests that it names, in this run. Rows that are for others than an updater, or that no test shows, claim nothing.",
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
func ran(b *Book, list []Run) (Section, Bar) {
	n := b.Count()
	s := Section{
		Title: "What ran", Head: []string{"package", "shows", "outcome", "seconds"},
		Intro: fmt.Sprintf("Tests and subtests: %s passed, %d skipped, %d failed.", group(fmt.Sprint(n[Passed])), n[Skipped], n[Failed]),
	}
	good := 0
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
