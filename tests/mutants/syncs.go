package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// syncTests are the folders of the device programs in which something is made durable, and
// the tests that notice where that is left out, or its failure is. The method Sync of a disk
// or file counts; unix.Sync before a reset does not, which is a courtesy to others.
var syncTests = map[string][]string{
	"bootctl/grubenv":    {"./bootctl/boottest -run ^TestGrubenv"},
	"partition":          {"./partition"},
	"partition/datafile": {"./partition/datafile"},
	"tpm":                {"./tpm"},
}

var errSyncs = errors.New("syncs.go names a folder without a sync")

// syncs makes two mutants of each sync whose name matches only: one leaves it out, one goes
// on where it fails.
func syncs(root, only string) ([]mutant, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	var all []mutant
	for _, folder := range slices.Sorted(maps.Keys(syncTests)) {
		found, err := syncsOf(root, folder)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%w: %s", errSyncs, folder)
		}
		all = append(all, found...)
	}
	return slices.DeleteFunc(all, func(m mutant) bool { return !match.MatchString(m.Name) }), nil
}

// syncsOf makes the mutants of the files in one folder.
func syncsOf(root, folder string) (all []mutant, err error) {
	paths, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) > 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || method.Sel.Name != "Sync" || isNamed(method.X, "unix") {
				return true
			}
			at, end := set.Position(call.Pos()), set.Position(call.End()).Offset
			name := filepath.Join(folder, filepath.Base(path))
			did := string(text[at.Offset:end])
			for _, bug := range []struct{ name, what, instead string }{
				{"left out", "is left out", "error(nil)"},
				{"ignored", "fails, and nobody looks", "func() error { _ = " + did + "; return nil }()"},
			} {
				all = append(all, mutant{
					Name: fmt.Sprintf("%s:%d %s", name, at.Line, bug.name), Bug: did + " " + bug.what, Class: "sync", Tests: syncTests[folder], Files: []string{name},
					text: string(text[:at.Offset]) + bug.instead + string(text[end:]),
				})
			}
			return true
		})
	}
	return all, nil
}
