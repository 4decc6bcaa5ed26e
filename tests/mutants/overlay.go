package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// overlay makes a mutant's files in folder and returns the path of what go's -overlay wants
// to know about them. The tree below root stays as it is.
func (m mutant) overlay(ctx context.Context, root, folder string) (string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for _, name := range m.Files {
		from, to := filepath.Join(root, name), filepath.Join(folder, name)
		replace[from] = to
		data, err := []byte(m.text), error(nil)
		if m.patch != "" {
			data, err = os.ReadFile(from)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: %s is gone", errPatch, name)
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, data, 0o644)
		}
		if err != nil {
			return "", err
		}
	}
	if m.patch == "" {
		return writeOverlay(folder, replace)
	}
	// Two lines of context have to be as they were: code beside the bug may change.
	apply := exec.CommandContext(ctx, "git", "apply", "-C2", "-")
	apply.Dir = folder
	// A folder in a work tree would make git look there, and skip what is not in it.
	apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(folder))
	apply.Stdin = strings.NewReader(m.patch)
	if said, err := apply.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: it does not fit the tree: %w\n%s", errPatch, err, said)
	}
	return writeOverlay(folder, replace)
}

// writeOverlay writes what go's -overlay wants to know, and returns where.
func writeOverlay(folder string, replace map[string]string) (string, error) {
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, "overlay.json")
	return path, os.WriteFile(path, text, 0o644)
}
