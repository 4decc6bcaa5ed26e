package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// result is what became of a mutant.
type result struct {
	mutant
	KilledBy string  `json:"killed_by,omitempty"` // the first test that failed; "" if it survived
	Seconds  float64 `json:"seconds"`
	Error    string  `json:"error,omitempty"` // why nobody knows
}

func (r result) line() string {
	by := r.KilledBy
	switch {
	case r.Error != "":
		first, rest, _ := strings.Cut(r.Error, "\n")
		by = "ERROR " + first
		if rest != "" {
			by += "\n    " + strings.ReplaceAll(strings.TrimSpace(rest), "\n", "\n    ")
		}
	case by == "":
		by = "SURVIVED " + strings.Join(r.Tests, ", ")
	}
	return fmt.Sprintf("%-46s %-14s %6.1f s  %s", r.Name, r.Class, r.Seconds, by)
}

// evidence is what goes into a file for make proof.
type evidence struct {
	// Commit is what the tree was while all this was found: a hash, with withChanges behind it
	// if it was not what was committed, or did not stay so.
	Commit   string `json:"commit"`
	Only     string `json:"only,omitempty"`     // some of the mutants: the expression of -run
	Most     int    `json:"most,omitempty"`     // random mutants of a package that were asked for
	Packages int    `json:"packages,omitempty"` // that have a score where all are measured
	Results  any    `json:"results"`
}

// withChanges marks a tree that no commit describes.
const withChanges = "+changes"

// commit says of what the tree is.
func commit(ctx context.Context, root string) (string, error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("which commit is it? git %s: %w", args[0], err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	hash, err := git("rev-parse", "HEAD")
	if err != nil {
		return "", err
	}
	changes, err := git("status", "--porcelain")
	if changes != "" {
		hash += withChanges
	}
	return hash, err
}

// save writes the results for make proof. A tree that is another one now than when the search
// began was none of the two all the time.
func save(ctx context.Context, root, path string, e evidence) error {
	now, err := commit(context.WithoutCancel(ctx), root)
	if err != nil {
		return err
	}
	if now != e.Commit {
		e.Commit = strings.TrimSuffix(e.Commit, withChanges) + withChanges
	}
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// bars says how many mutants each class killed, and the end.
func bars(w io.Writer, results []result) error {
	killed, seconds := 0, 0.0
	by := map[string]int{}
	for _, r := range results {
		seconds += r.Seconds
		if r.Error == "" && r.KilledBy != "" {
			killed++
			by[r.Class]++
		}
	}
	var parts []string
	for _, class := range classes {
		if by[class] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", class, by[class]))
		}
	}
	slices.Sort(parts)
	fmt.Fprintf(w, "\n%d mutants in %.0f s; killed by class: %s\nbars: %d/%d met\n", len(results), seconds, strings.Join(parts, ", "), killed, len(results))
	if killed < len(results) {
		return errBars
	}
	return nil
}
