package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// writeReport prints the results as Markdown that reads well as it is, and returns how many bars are missed.
func writeReport(w io.Writer, results []result, memory storyMemory) (missed int) {
	p := func(format string, args ...any) { fmt.Fprintf(w, format, args...) }
	p("# What an update costs\n\n")
	p("Made by `make bench-delta`; do not edit. Each image was rebuilt by each tool that can, and compared. x is the size of xdelta3's default delta of the same pair.\n\n")
	p("![Download as a share of the image](delta.svg)\n\n")
	p("## Bars\n\n```\n")
	missed = writeBars(bars(results, memory), p)
	p("```\n\n")
	for _, r := range results {
		writePair(p, r)
	}
	if len(results) > 0 {
		writeLegend(p, results[0])
	}
	return missed
}

func writePair(p func(string, ...any), r result) {
	p("## %s\n\n%s. %s → %s: %d bytes (%.0f MiB). ", r.Pair, strings.ToUpper(r.About[:1])+r.About[1:], r.Old.File, r.New.File, r.New.Size, mib(r.New.Size))
	if n := len(r.Packages); n > 0 {
		p("%d packages differ (in results/%s.json). ", n, r.Pair)
	}
	// One version for all pairs, unless -report has put runs together.
	p("%s, %s.\n\n", r.Date.Format(time.DateOnly), strings.Join(r.Versions[:min(1, len(r.Versions))], ""))
	writeSpeed(p, r)
	x, _ := r.row(reference)
	table := [][]string{{"tool", "bytes", "of image", "× x", "encode CPU s", "MiB", "decode CPU s", "peak MiB", "anon. MiB", "read MiB", "written MiB", "seeks old + new"}}
	for _, w := range r.Rows {
		switch {
		case w.Skipped != "":
			table = append(table, []string{w.Tool, "–", w.Skipped})
			continue
		case w.Failed != "":
			table = append(table, []string{w.Tool, "–", "failed: " + strings.ReplaceAll(w.Failed, "|", "/")})
			continue
		}
		line := []string{w.Tool, fmt.Sprint(w.Bytes), percent(w.Bytes, r.New.Size), "–", number(w.Encode.CPU), fmt.Sprintf("%.0f", mib(w.Encode.Peak))}
		if x.Bytes > 0 {
			line[3] = fmt.Sprintf("%.3f", float64(w.Bytes)/float64(x.Bytes))
		}
		if d := w.Decode; d != nil {
			line = append(line, number(d.CPU), fmt.Sprintf("%.1f", mib(d.Peak)))
			if o := w.Ours; o != nil {
				line = append(line, fmt.Sprintf("%.1f", mib(o.Anonymous)), fmt.Sprintf("%.0f", mib(d.Read)), fmt.Sprintf("%.0f", mib(d.Written)), fmt.Sprintf("%d + %d", o.OldSeeks, o.NewSeeks))
			} else {
				line = append(line, "", fmt.Sprintf("%.0f", mib(d.Read)), fmt.Sprintf("%.0f", mib(d.Written)))
			}
		}
		table = append(table, line)
	}
	writeTable(p, table)
	if w, ok := r.row(ourIndex); ok {
		p("\nThe index of tandem's index payload is %s of the image.\n", percent(w.Ours.Index, r.New.Size))
	}
	p("\n")
}

// writeSpeed sets our decoder against the limits of the machine. A process that ends within a few of the clock's
// ticks says nothing about them.
func writeSpeed(p func(string, ...any), r result) {
	l := r.Limits
	if l.SHA256.CPU < 0.1 {
		return
	}
	rate := func(c cost) string { return fmt.Sprintf("%.0f MiB/s", mib(r.New.Size)/c.Wall) }
	p("Limits of the machine in this run: one SHA-256 pass %s (%.2f s of CPU), write in order and sync %s.", rate(l.SHA256), l.SHA256.CPU, rate(l.Write))
	if w, ok := r.row(wholeZstd); ok {
		p(" zstd -d of the image as zstd -9 packs it: %s (%.2f s of CPU).", rate(*w.Decode), w.Decode.CPU)
	}
	if w, ok := r.row(ourDelta); ok {
		p(" Our delta decodes with %s, %.0f %% of the slower of write and SHA-256; CPU %.2f of a SHA-256 pass, %.2f with the check of every leaf.", rate(*w.Decode), r.speed(*w.Decode), w.Decode.CPU/l.SHA256.CPU, w.Checked.CPU/l.SHA256.CPU)
	}
	p("\n\n")
}

// writeTable aligns the columns, numbers to the right. A line of fewer cells has its last one as a remark.
func writeTable(p func(string, ...any), table [][]string) {
	head := table[0]
	width := make([]int, len(head))
	for _, line := range table {
		for i, cell := range line {
			if i < 2 || len(line) > 3 {
				width[i] = max(width[i], utf8.RuneCountInString(cell))
			}
		}
	}
	for n, line := range table {
		for i := range head {
			cell := ""
			if i < len(line) {
				cell = line[i]
			}
			gap := strings.Repeat(" ", max(0, width[i]-utf8.RuneCountInString(cell)))
			if i == 0 || len(line) == 3 && i == 2 {
				p("| %s%s ", cell, gap)
			} else {
				p("| %s%s ", gap, cell)
			}
		}
		p("|\n")
		if n == 0 {
			for i := range head {
				if i == 0 {
					p("|%s", strings.Repeat("-", width[i]+2))
				} else {
					p("|%s:", strings.Repeat("-", width[i]+1))
				}
			}
			p("|\n")
		}
	}
}

func writeLegend(p func(string, ...any), r result) {
	p("## How it was measured\n\n")
	p("%s. Versions: %s.\n\n", r.Machine, strings.Join(r.Versions, ", "))
	p("Encoding is one process on all cores that it takes; its memory and the peak of decoding are the kernel's VmHWM, which holds mapped files too, but not the page cache. "+
		"Anonymous memory is looked at after every frame. Read and written are what went through system calls while decoding; a tool that maps its files reads more than that. "+
		"Seeks are reads that did not begin where the one before ended: of the old image, and of the new one behind the frame. Our decoder writes and syncs, "+
		"the peers only write. Slow peers run on images up to %d MiB and on two large pairs; `SLOW=1` runs them on all.\n\n", quick>>20)
	for _, t := range allTools {
		p("- %s: %s\n", t.name, t.about)
	}
}

func percent(part, whole int64) string {
	v := 100 * float64(part) / float64(whole)
	if v < 1 {
		return fmt.Sprintf("%.3f %%", v)
	}
	return fmt.Sprintf("%.2f %%", v)
}

func number(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
