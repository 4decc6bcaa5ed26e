package elfplan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/predict"
)

// program is the source of a program of many functions; the new version has a
// few lines more, here and there.
func program(version int) string {
	var s strings.Builder
	s.WriteString("package main\n\nvar sink [64]int\nvar hooks = []func(int) int{")
	for i := range 200 {
		fmt.Fprintf(&s, "f%d, ", i)
	}
	s.WriteString("}\n\nfunc main() { for i, h := range hooks { println(names[i%len(names)], h(i)) } }\n\nvar names = []string{")
	for i := range 100 {
		fmt.Fprintf(&s, "%q, ", strings.Repeat("a name ", i%7)+fmt.Sprint(i))
	}
	if version == 2 {
		s.WriteString(`"a name that is new"`)
	}
	s.WriteString("}\n")
	for i := range 200 {
		fmt.Fprintf(&s, "\n//go:noinline\nfunc f%d(x int) int {\n", i)
		if version == 2 && i%50 == 25 {
			s.WriteString("\tif x == 77 { println(\"seventy-seven\"); return f1(x+1) }\n")
		}
		if i > 2 {
			fmt.Fprintf(&s, "\tif x > %d { return f%d(x-%d) + sink[x%%64] }\n", i*3, i/2, i)
		}
		fmt.Fprintf(&s, "\tsink[(x+%d)%%64] = x * %d\n\treturn x ^ %d\n}\n", i, i*i+3, i*7)
	}
	return s.String()
}

// built compiles both versions for an architecture.
func built(t *testing.T, arch string) (old, new []byte) {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("no go tool")
		}
		t.Skip("no go tool to build programs with")
	}
	var out [2][]byte
	for i := range out {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(program(i+1)), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module program\n\ngo 1.26\n"), 0o600))
		cmd := exec.Command(tool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", "program", ".")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=", "GOWORK=off")
		said, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", said)
		out[i], err = os.ReadFile(filepath.Join(dir, "program"))
		require.NoError(t, err)
	}
	return out[0], out[1]
}

// runsOf is a small matcher: windows of masks that are the same are extended
// as long as more than half of the bytes agree.
func runsOf(old, new []byte) (runs []predict.Run) {
	const window = 24
	x, y := Mask(old), Mask(new)
	seen := make(map[string]int)
	for i := len(x) - window; i >= 0; i -= 4 {
		seen[string(x[i:i+window])] = i
	}
	for i := 0; i+window <= len(y); {
		from, ok := seen[string(y[i:i+window])]
		if n := len(runs); n > 0 && runs[n-1].End == i { // rather go on at the same displacement
			if at := int(runs[n-1].Old) + i - runs[n-1].Start; at+window <= len(x) && bytes.Equal(x[at:at+window], y[i:i+window]) {
				from, ok = at, true
			}
		}
		if !ok {
			i++
			continue
		}
		n, score, best := 0, 0, 0
		for ; i+n < len(y) && from+n < len(x) && score > best-32; n++ {
			if x[from+n] == y[i+n] {
				score++
			} else {
				score -= 2
			}
			best = max(best, score)
		}
		if k := len(runs) - 1; k >= 0 && runs[k].End == i && int(runs[k].Old)+i-runs[k].Start == from {
			runs[k].End = i + n
		} else {
			runs = append(runs, predict.Run{Start: i, End: i + n, Old: int64(from)})
		}
		i += n
	}
	return runs
}

// wrong counts bytes that runs bring and that are not the target's, without
// and with a plan.
func wrong(t *testing.T, stream, old, target []byte, at int64, runs []predict.Run) (before, after int) {
	t.Helper()
	plain := fill(old, target, runs)
	count := func() (n int) {
		for _, r := range runs {
			for i := r.Start; i < r.End; i++ {
				if plain[i] != target[i] {
					n++
				}
			}
		}
		return n
	}
	before = count()
	var plan predict.Plan
	require.NoError(t, plan.Parse(stream, nil))
	for _, r := range runs {
		plan.Apply(plain, at, r)
	}
	return before, count()
}

func fill(old, target []byte, runs []predict.Run) []byte {
	plain := make([]byte, len(target))
	for _, r := range runs {
		copy(plain[r.Start:r.End], old[r.Old:])
	}
	return plain
}

// A program that was built again with a few lines more: most addresses that
// changed are predicted, on every architecture, and the plan is small.
func TestRebuiltProgram(t *testing.T) {
	for arch, share := range map[string]int{"amd64": 40, "arm64": 40} {
		t.Run(arch, func(t *testing.T) {
			old, new := built(t, arch)
			runs := runsOf(old, new)
			p := New([]Pair{{
				Old: File{old, []Extent{{0, 0, int64(len(old))}}},
				New: File{new, []Extent{{0, 0, int64(len(new))}}},
			}})
			stream := p.Frame(0, fill(old, new, runs), new, runs)
			require.NotNil(t, stream)
			before, after := wrong(t, stream, old, new, 0, runs)
			t.Logf("%d bytes differ, %d after prediction, by a plan of %d bytes, %d runs", before, after, len(stream), len(runs))
			require.Less(t, after*100, before*share)
			require.Less(t, len(stream), (before-after)/4)
			require.Equal(t, stream, p.Frame(0, fill(old, new, runs), new, runs), "a plan depends on nothing else")
		})
	}
}

// A file may lie in pieces anywhere in both images, and a frame may begin anywhere.
func TestScattered(t *testing.T) {
	old, new := built(t, "amd64")
	const page, base = 64 << 10, 10 << 20
	scatter := func(data []byte, order func(i, n int64) int64) (image []byte, where []Extent) {
		n := (int64(len(data)) + page - 1) / page
		for i := range n {
			at := base + order(i, n)*page*2 // with gaps
			e := Extent{i * page, at, min(page, int64(len(data))-i*page)}
			where = append(where, e)
			if end := at + e.Length; end > int64(len(image)) {
				image = append(image, make([]byte, end-int64(len(image)))...)
			}
			copy(image[at:], data[e.File:e.File+e.Length])
		}
		return image, where
	}
	oldImage, oldWhere := scatter(old, func(i, n int64) int64 { return n - i })
	newImage, newWhere := scatter(new, func(i, n int64) int64 { return i ^ 1 })
	p := New([]Pair{{File{old, oldWhere}, File{new, newWhere}}})
	whole := runsOf(old, new)
	var before, after int
	for at := int64(base); at < int64(len(newImage)); at += 1 << 20 {
		target := newImage[at:min(at+1<<20, int64(len(newImage)))]
		var runs []predict.Run
		for _, e := range newWhere {
			for _, r := range whole {
				for f := max(e.File, int64(r.Start)); f < min(e.File+e.Length, int64(r.End)); {
					from := r.Old + f - int64(r.Start)
					o := oldWhere[from/page]
					n := min(min(e.File+e.Length, int64(r.End))-f, o.File+o.Length-from)
					lo := f - e.File + e.Image - at
					if lo >= 0 && lo+n <= int64(len(target)) {
						runs = append(runs, predict.Run{Start: int(lo), End: int(lo + n), Old: from - o.File + o.Image})
					}
					f += n
				}
			}
		}
		sortRuns(runs)
		if stream := p.Frame(at, fill(oldImage, target, runs), target, runs); stream != nil {
			b, a := wrong(t, stream, oldImage, target, at, runs)
			before, after = before+b, after+a
		}
	}
	t.Logf("%d bytes differ, %d after prediction", before, after)
	require.NotZero(t, before)
	require.Less(t, after*100, before*50)
}

func sortRuns(runs []predict.Run) {
	for i := range runs {
		for k := i; k > 0 && runs[k].Start < runs[k-1].Start; k-- {
			runs[k], runs[k-1] = runs[k-1], runs[k]
		}
	}
}

// What the fit predicts is never worse than no steps or one, and a step is only made where it pays.
func TestFit(t *testing.T) {
	var votes []ballot
	for i := range uint64(100) {
		s := int64(0)
		if i >= 40 {
			s = 16
		}
		if i == 20 || i == 70 { // not worth a step
			s = 99
		}
		votes = append(votes, ballot{i * 10, s, 1})
	}
	require.Equal(t, []step{{0, 0}, {400, 16}}, fit(votes, stepCost))
	require.Empty(t, fit(nil, stepCost))
	require.Equal(t, []step{{7, 1}}, fit([]ballot{{7, 1, 4}, {7, 2, 2}}, stepCost), "an address moves one way")
}

// The mask of a file has its length, and files that are none of ours are not touched.
func TestMask(t *testing.T) {
	require.Equal(t, []byte("#!/bin/sh"), Mask([]byte("#!/bin/sh")))
	old, _ := built(t, "amd64")
	m := Mask(old)
	require.Len(t, m, len(old))
	require.NotEqual(t, old, m)
	for _, n := range []int{4, 16, 52, 64, 100, len(old) / 2, len(old) - 1} {
		require.Len(t, Mask(old[:n]), n)
	}
	// Every header field damaged.
	for i := range 64 {
		bad := bytes.Clone(old)
		bad[i] ^= 0xff
		require.Len(t, Mask(bad), len(bad))
	}
	off := binary.LittleEndian.Uint64(old[40:])
	for i := off; i < off+64*8; i += 11 {
		bad := bytes.Clone(old)
		bad[i] ^= 0xff
		require.Len(t, Mask(bad), len(bad))
	}
}
