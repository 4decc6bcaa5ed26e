package main

import (
	"strconv"
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
