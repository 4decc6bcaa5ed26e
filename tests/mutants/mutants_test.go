package main

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every patch still fits the tree, so that the register does not rot between two runs of
// make mutants. Whether its bug is noticed is for those to find out: here no mutant is built.
func TestPatchesFit(t *testing.T) {
	mutants, err := read(".", "")
	require.NoError(t, err)
	for _, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			_, err := m.overlay(t.Context(), "../..", t.TempDir())
			require.NoError(t, err)
		})
	}
	t.Attr("mutants-seeded", strconv.Itoa(len(mutants)))
}

// Every sync in the device programs has two mutants, and tests that are to notice them: no
// package of theirs has one that is not on the list.
func TestSyncs(t *testing.T) {
	all, err := syncs("../..", "")
	require.NoError(t, err)
	have := map[string]bool{}
	for _, m := range all {
		have[filepath.Dir(m.Files[0])] = true
		_, err := parser.ParseFile(token.NewFileSet(), m.Files[0], m.text, 0)
		require.NoError(t, err, m.Name)
	}
	require.GreaterOrEqual(t, len(all), 2*10)
	const module = "github.com/tandem-ota/tandem/"
	list := exec.Command("go", "list", "-deps", module+"updater/cmd/updater", module+"bootctl/cmd/init")
	list.Env = append(os.Environ(), "GOOS=linux")
	out, err := list.Output()
	require.NoError(t, err)
	looked := 0
	for pkg := range strings.FieldsSeq(string(out)) {
		folder, ours := strings.CutPrefix(pkg, module)
		if !ours {
			continue
		}
		looked++
		found, err := syncsOf("../..", folder)
		require.NoError(t, err)
		require.Equal(t, have[folder], len(found) > 0, "%s: %v", folder, found)
	}
	require.Greater(t, looked, 20)
	t.Attr("mutants-syncs", strconv.Itoa(len(all)))
}

// A header that is wrong is said before anything is run.
func TestParseRefuses(t *testing.T) {
	const diff = "\n--- a/x.go\n+++ b/x.go\n@@ -1 +1 @@\n-a\n+b\n"
	good := "Bug: something\n that goes on\nClass: unit\nTest: ./x -run TestX\n"
	m, err := parse(good + diff)
	require.NoError(t, err)
	require.Equal(t, "something that goes on", m.Bug)
	require.Equal(t, []string{"x.go"}, m.Files)
	for state, patch := range map[string]string{
		"no change":        good,
		"no test":          "Bug: something\nClass: unit\n" + diff,
		"unknown class":    "Bug: something\nClass: luck\nTest: ./x\n" + diff,
		"unknown key":      good + "Author: somebody\n" + diff,
		"changes a test":   good + "\n--- a/x_test.go\n+++ b/x_test.go\n",
		"nothing but diff": diff,
	} {
		_, err := parse(patch)
		require.ErrorIs(t, err, errPatch, state)
	}
}

// Each variant is behind a number of its own, and lines stay where they are, so that what the
// compiler complains about is found again.
func TestVariants(t *testing.T) {
	const text = `package x

const size = 1 + 2

func f(a, b int, ok bool) int {
	for a < b {
		a++
	}
	if a >= b && (ok ||
		a != 7) {
		b = a - b
	}
	if !ok {
		g()
		panic(b)
	}
	return a
}
`
	const want = `package x

const size = 1 + 2

func f(a, b int, ok bool) int {
	for mutantLess(1, a , b) {
		if !mutantOn(2) { a++ }
	}
	if mutantAnd(3, mutantNot(4, !mutantLess(5, a , b)) , func() bool { return ( (mutantOr(6, ok , func() bool { return (
		mutantNot(7, a != 7)) }))) }) {
		if !mutantOn(8) { b = mutantDifference(9, a , b) }
	}
	if mutantNot(10, !ok) {
		if !mutantOn(11) { g() }
		panic(b)
	}
	return a
}
`
	var v variants
	got, name, err := v.add("x/x.go", []byte(text))
	require.NoError(t, err)
	require.Equal(t, "x", name)
	require.Equal(t, want, string(got))
	require.Len(t, v.changes, 11)
	require.Equal(t, change{"x/x.go", 9, "&& became ||"}, v.changes[2])

	// What does not build is left out, with all of its line.
	v = variants{spoiled: map[string]bool{"x/x.go:9": true}}
	got, _, err = v.add("x/x.go", []byte(text))
	require.NoError(t, err)
	require.Len(t, v.changes, 7)
	require.Contains(t, string(got), "\n\tif a >= b && (ok ||\n")
}

// What was found says of which commit; a tree that is not what was committed, when the search
// began or when it ended, is said to be none.
func TestEvidenceNamesCommit(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=e"}, args...)...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	write := func(text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte(text), 0o644))
	}
	git("init", "-q")
	_, err := commit(t.Context(), dir)
	require.ErrorContains(t, err, "which commit")
	write("one")
	git("add", "file")
	git("commit", "-q", "-m", "one")
	one := git("rev-parse", "HEAD")

	path := filepath.Join(t.TempDir(), "build", "found.json")
	for _, c := range []struct {
		state     string
		meanwhile func()
		want      string
	}{
		{"nothing changes", func() {}, one},
		{"somebody edits meanwhile", func() { write("two") }, one + withChanges},
		{"it was edited before", func() {}, one + withChanges},
		{"it was edited before, and then it was not", func() { write("one") }, one + withChanges},
		{"another commit meanwhile", func() { git("commit", "-q", "--allow-empty", "-m", "two") }, one + withChanges},
	} {
		begun, err := commit(t.Context(), dir)
		require.NoError(t, err, c.state)
		c.meanwhile()
		require.NoError(t, save(t.Context(), dir, path, evidence{Commit: begun, Results: []result{{KilledBy: "TestX"}}}), c.state)
		text, err := os.ReadFile(path)
		require.NoError(t, err, c.state)
		var got evidence
		require.NoError(t, json.Unmarshal(text, &got), c.state)
		require.Equal(t, c.want, got.Commit, c.state)
		require.Len(t, got.Results, 1)
	}
}
