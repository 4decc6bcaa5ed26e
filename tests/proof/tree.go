package proof

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Tree is which tests there are.
type Tree struct {
	Tests   map[string]bool   // "package.TestName"
	Fuzz    []string          // "package.FuzzName", sorted
	Seeds   map[string]int    // files in the corpora, by fuzz target
	Stories map[string]string // by name, the claim that each begins with
	Mutants int               // patches, one for each seeded bug
}

// Look reads the tests of the tree at root, without running them.
func Look(root string) (Tree, error) {
	t := Tree{Tests: map[string]bool{}, Seeds: map[string]int{}, Stories: map[string]string{}}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil {
				continue
			}
			name := filepath.ToSlash(folder) + "." + f.Name.Name
			switch {
			case strings.HasPrefix(f.Name.Name, "Test"):
				t.Tests[name] = true
			case strings.HasPrefix(f.Name.Name, "Fuzz"):
				t.Fuzz = append(t.Fuzz, name)
				seeds, err := os.ReadDir(filepath.Join(filepath.Dir(path), "testdata", "fuzz", f.Name.Name))
				if err != nil && !os.IsNotExist(err) {
					return err
				}
				t.Seeds[name] = len(seeds)
			}
		}
		return nil
	})
	if err != nil {
		return t, fmt.Errorf("look for tests: %w", err)
	}
	slices.Sort(t.Fuzz)
	stories, err := filepath.Glob(filepath.Join(root, storyPackage, "stories", "*.txtar"))
	for _, path := range stories {
		text, err := os.ReadFile(path)
		if err != nil {
			return t, err
		}
		t.Stories[strings.TrimSuffix(filepath.Base(path), ".txtar")] = claim(string(text))
	}
	if err == nil {
		var patches []string
		patches, err = filepath.Glob(filepath.Join(root, "tests", "mutants", "*.patch"))
		t.Mutants = len(patches)
	}
	return t, err
}

// Has tells whether a test that a requirement names is in the tree. Subtests are made by
// programs as they run, so that only the test that makes them is looked for.
func (t Tree) Has(ref string) bool {
	if story, ok := strings.CutPrefix(ref, "story "); ok {
		_, ok := t.Stories[story]
		return ok
	}
	return t.Tests[topLevel(ref)]
}

// claim is the comment that a story begins with.
func claim(story string) string {
	var words []string
	for line := range strings.Lines(story) {
		line, comment := strings.CutPrefix(strings.TrimSpace(line), "#")
		if !comment {
			break
		}
		words = append(words, strings.Fields(line)...)
	}
	return strings.Join(words, " ")
}

// topLevel is a test without its subtests: the package has slashes, too.
func topLevel(ref string) string {
	dot := strings.LastIndex(ref, ".Test")
	if dot < 0 {
		return ref
	}
	name, _, _ := strings.Cut(ref[dot:], "/")
	return ref[:dot] + name
}

// id is what `go test` calls it.
func id(ref string) string {
	if story, ok := strings.CutPrefix(ref, "story "); ok {
		return storyPackage + ".TestStories/" + story
	}
	return ref
}

// storiesOf lists the stories that requirements name.
func storiesOf(rows []Requirement) []string {
	var all []string
	for _, r := range rows {
		for _, ref := range r.Tests {
			if story, ok := strings.CutPrefix(ref, "story "); ok && !slices.Contains(all, story) {
				all = append(all, story)
			}
		}
	}
	slices.Sort(all)
	return all
}
