// Mutants shows that the tests of this tree can fail. Each NAME.patch in this folder puts one
// bug into the product that a peer had or that we were afraid of; the tests that its header
// names have to notice.
//
//	make mutants              every bug: which class of test kills it, and how fast; and
//	                          every sync of the device programs, left out and ignored
//	make mutants RUN=floor    those whose name matches the regular expression
//	make mutants SCORE=60     instead: at most 60 small random bugs per package, and a score
//
// No patch touches the tree: a mutant is built from copies of the files that its patch
// changes, which Go's -overlay puts in place of the real ones. A mutant is killed if a test
// failed that passes without the patch. One that does not build proves nothing, and counts as
// a fault of its patch.
//
// The results go to build/mutants.json (or build/mutation-score.json), with the commit that they
// were found on: make proof takes no others. The end is "bars: N/M met", and a non-zero exit code
// if a mutant survives, or its patch no longer fits.
//
// A patch begins with a header, one "Key: text" a line (text goes on in lines that begin with
// a space):
//
//	Bug: what is wrong with the product, in a sentence or two
//	Peer: who had it, if somebody did
//	Near: what it stands for, where our code cannot have the bug that is known by that name
//	Class: the kind of test that has to kill it (mutant.go)
//	Test: ./package -run NAME, with NAME=value in front for its environment; the cheapest that
//	 does. Several lines are tried in their order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// errBars means that a bar was missed, which the table above it has said.
var errBars = errors.New("not all bars are met")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("mutants", flag.ContinueOnError)
	f.SetOutput(stderr)
	folder := f.String("patches", "tests/mutants", "folder of the patches")
	only := f.String("run", "", "only the mutants (or packages) whose names match this regular expression")
	random := f.Int("random", 0, "instead: so many random mutants of each package")
	seed := f.Uint64("seed", 1, "which random mutants are tried, where there are more")
	out := f.String("out", "build/mutants.json", "where the results go")
	if err := f.Parse(args); err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	lab := lab{root: ".", folder: temp, plain: map[string]string{}, sound: map[string]error{}}
	begun, err := commit(ctx, lab.root)
	if err != nil {
		return err
	}
	if *random > 0 {
		found, err := lab.scoreBars(ctx, stdout, *only, *random, *seed)
		return errors.Join(err, save(ctx, lab.root, *out, evidence{Commit: begun, Only: *only, Most: *random, Packages: len(scores), Results: found}))
	}
	mutants, err := read(*folder, *only)
	if err != nil {
		return err
	}
	durable, err := syncs(".", *only)
	if err != nil {
		return err
	}
	if mutants = append(mutants, durable...); len(mutants) == 0 {
		return fmt.Errorf("%w: none has a name that matches %q", errPatch, *only)
	}
	var results []result
	for _, m := range mutants {
		r := lab.try(ctx, m)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		results = append(results, r)
		fmt.Fprintln(stdout, r.line())
	}
	if err := save(ctx, lab.root, *out, evidence{Commit: begun, Only: *only, Results: results}); err != nil {
		return err
	}
	return bars(stdout, results)
}
