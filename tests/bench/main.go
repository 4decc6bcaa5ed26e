// Bench makes pairs of images from Debian packages and compares what an update from
// one to the other costs: ours beside the peers that Debian has, in one run.
//
//	make bench-delta                     all pairs
//	make bench-delta PAIRS=firmware      one, or several with commas between
//	make bench-delta SLOW=1              the slow peers on every pair
//
// It measures what does not depend on how busy the machine is (bytes, CPU time,
// memory, reads, seeks, and ratios of them), and, for the speed of the decoder, time
// on the clock beside the limits of the machine in the same run. Every rebuilt image is
// compared with the new one.
//
// Each pair leaves results/PAIR.json. A run of all pairs also leaves RESULTS.md and
// delta.svg; -report makes them of the results that are there. The end is "bars: N/M met",
// and a non-zero exit code if one is missed or a pair failed.
//
// Everything that is downloaded or built is kept in the folder of -build; making the
// trees takes mmdebstrap, root or user namespaces, and some 16 GB of disk.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A bench is one run.
type bench struct {
	build  string // folder of what is kept
	self   string // this program, for steps that are measured
	slow   bool
	keep   bool
	peers  []string // to run; empty means all
	limit  time.Duration
	log    io.Writer
	update func(result) error // told after every row
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "step" {
		return step(ctx, args[1:], stdout, stderr)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	var (
		names  = f.String("pairs", "", "pairs to run, with commas between; empty means all of: "+strings.Join(pairNames(), " "))
		tools  = f.String("tools", "", "tools to run beside xdelta3, with commas between; empty means all")
		slow   = f.Bool("slow", false, "run the slow peers on every pair")
		keep   = f.Bool("keep", false, "keep what the tools write, in BUILD/work")
		images = f.Bool("images", false, "only make the images")
		report = f.Bool("report", false, "run nothing, report on the results that are there")
		build  = f.String("build", "build/bench", "folder for trees and images, which are kept")
		out    = f.String("out", "tests/bench", "folder of results/, RESULTS.md and delta.svg")
		limit  = f.Duration("limit", 2*time.Hour, "how long one step of a tool may take")
	)
	if err := f.Parse(args); err != nil {
		return err
	}
	chosen, err := choosePairs(*names)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b := bench{self: self, slow: *slow, keep: *keep, limit: *limit, log: stderr}
	if *tools != "" {
		b.peers = strings.Split(*tools, ",")
	}
	if b.build, err = filepath.Abs(*build); err != nil {
		return err
	}
	folder := filepath.Join(*out, "results")
	b.update = func(r result) error { return r.save(folder) }

	var results []result
	var failures []error
	for _, p := range chosen {
		var r result
		var err error
		switch {
		case *report:
			if r, err = load(folder, p.name); errors.Is(err, fs.ErrNotExist) {
				continue // its bars are "not in this run"
			}
		case *images:
			_, err = b.makeImages(ctx, p)
		default:
			r, err = b.pair(ctx, p)
		}
		// One pair that fails does not lose the others.
		if err != nil {
			err = fmt.Errorf("pair %s: %w", p.name, err)
			fmt.Fprintln(stderr, "bench:", err)
			failures = append(failures, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if r.Pair != "" {
			results = append(results, r)
			failures = append(failures, r.failures()...)
		}
	}
	if *images {
		return errors.Join(failures...)
	}
	var page bytes.Buffer
	missed := writeReport(&page, results, memoryFile(filepath.Join(b.build, "..", "memory.txt")))
	if _, err := stdout.Write(page.Bytes()); err != nil {
		return err
	}
	if len(results) == len(pairs) || *report {
		failures = append(failures, os.WriteFile(filepath.Join(*out, "RESULTS.md"), page.Bytes(), 0o644),
			os.WriteFile(filepath.Join(*out, "delta.svg"), plot(results), 0o644))
	}
	if missed > 0 {
		failures = append(failures, fmt.Errorf("%d bars missed", missed))
	}
	return errors.Join(failures...)
}

func choosePairs(names string) ([]pair, error) {
	if names == "" {
		return pairs, nil
	}
	var chosen []pair
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(pairs, func(p pair) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no pair %q; there are: %s", name, strings.Join(pairNames(), " "))
		}
		chosen = append(chosen, pairs[i])
	}
	return chosen, nil
}

// makeImages makes the two images of a pair, in a process of its own: what this one
// once took of memory would be counted as the peak of every program that it starts.
func (b *bench) makeImages(ctx context.Context, p pair) (made, error) {
	var m made
	_, said, err := b.own(ctx, "images", b.build, p.name)
	if err != nil {
		return m, err
	}
	err = json.Unmarshal(said, &m)
	m.Old.Path, m.New.Path = filepath.Join(b.build, m.Old.File), filepath.Join(b.build, m.New.File)
	return m, err
}

// pair measures all tools on one pair.
func (b *bench) pair(ctx context.Context, p pair) (result, error) {
	fmt.Fprintf(b.log, "bench: %s: %s\n", p.name, p.about)
	m, err := b.makeImages(ctx, p)
	if err != nil {
		return result{}, err
	}
	r := result{Pair: p.name, About: p.about, Date: time.Now().UTC().Truncate(time.Second), Machine: machine(), Versions: versions(ctx), Old: m.Old, New: m.New, Packages: m.Packages}
	work := filepath.Join(b.build, "work", p.name)
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o755)); err != nil {
		return result{}, err
	}
	if !b.keep {
		defer os.RemoveAll(work)
	}
	if r.Limits, err = b.limits(ctx, m, work); err != nil {
		return result{}, err
	}
	// The slow ones at the end: a run that is cut short has the others.
	for _, slow := range []bool{false, true} {
		for _, t := range allTools {
			if t.slow != slow || len(b.peers) > 0 && !slices.Contains(b.peers, t.name) && t.name != reference {
				continue
			}
			row := b.measureTool(ctx, t, p, m, work)
			if ctx.Err() != nil {
				return result{}, ctx.Err()
			}
			fmt.Fprintf(b.log, "bench: %s: %s\n", p.name, row)
			r.Rows = append(r.Rows, row)
			if err := b.update(r); err != nil {
				return result{}, err
			}
		}
	}
	return r, nil
}
