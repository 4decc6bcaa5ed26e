package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
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

// save writes the results for make proof.
func save(path string, results any) error {
	text, err := json.MarshalIndent(results, "", "  ")
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
