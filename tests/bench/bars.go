package main

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// A bar is one measure that a release of this program has to meet. Ratios are within one run; x is the size of
// xdelta3's default delta on the same pair, or, for the advised images, on the unmodified one.
type bar struct {
	name  string
	value float64
	limit float64
	least bool // the limit is a least value
	unit  string
	note  string
	gone  string // why there is no value
}

func (b bar) met() bool {
	if b.least {
		return b.value >= b.limit
	}
	return b.value <= b.limit
}

// bars takes all measures from the results of a run. memory is what the stories left of the whole program.
func bars(results []result, memory storyMemory) []bar {
	of := func(pair string) result {
		for _, r := range results {
			if r.Pair == pair {
				return r
			}
		}
		return result{}
	}
	size := func(pair, tool string) float64 {
		if w, ok := of(pair).row(tool); ok {
			return float64(w.Bytes)
		}
		return math.NaN()
	}
	ratio := func(name, pair, base string, limit float64, note string) bar {
		return bar{name: name, value: size(pair, ourDelta) / size(base, reference), limit: limit, unit: "x", note: note}
	}
	all := []bar{
		ratio("delta, ext4-whole", "ext4-whole", "ext4-whole", 0.45, "0.56 without recoding of the initrd; HDiffPatch 0.63, bsdiff 0.68 in earlier trials"),
		ratio("delta, ext4-one-package", "ext4-one-package", "ext4-one-package", 0.45, "HDiffPatch 0.53"),
		ratio("delta, ext4-kernel", "ext4-kernel", "ext4-kernel", 0.30, "HDiffPatch 0.50"),
		ratio("delta, advised, x of ext4-whole", "advised", "ext4-whole", 0.20, "kernel as Debian ships it"),
		ratio("delta, advised-plain-kernel, x of ext4-whole", "advised-plain-kernel", "ext4-whole", 0.12, "kernel stored uncompressed"),
	}
	// One of the two compressed file systems has to be good to update, so that there is one to advise.
	compressed := bar{name: "delta, squashfs-zstd or erofs-lz4", value: math.NaN(), limit: 0.5, unit: "of the best peer"}
	var each []string
	for _, pair := range []string{"squashfs-zstd", "erofs-lz4"} {
		best, by := math.NaN(), ""
		for _, w := range of(pair).Rows {
			if _, ok := of(pair).row(w.Tool); ok && isPeer(w.Tool) && !(float64(w.Bytes) >= best) {
				best, by = float64(w.Bytes), w.Tool
			}
		}
		value := size(pair, ourDelta) / best
		if math.IsNaN(value) {
			continue
		}
		each = append(each, fmt.Sprintf("%s %.3f (%s)", pair, value, by))
		if !(value >= compressed.value) {
			compressed.value = value
		}
	}
	compressed.note = strings.Join(each, ", ")
	all = append(all, compressed)
	worst := func(name string, limit float64, unit string, value func(result) float64) bar {
		b := bar{name: name, value: math.NaN(), limit: limit, unit: unit}
		for _, r := range results {
			if v := value(r); v > b.value || math.IsNaN(b.value) && !math.IsNaN(v) {
				b.value, b.note = v, "worst of all pairs: "+r.Pair
			}
		}
		return b
	}
	all = append(all, worst("anonymous memory of the decoder", 10, "MiB", func(r result) float64 {
		value := math.NaN()
		for _, tool := range []string{ourDelta, ourIndex, ourFull} {
			if w, ok := r.row(tool); ok {
				value = math.Max(mib(w.Ours.Anonymous), or(value, 0))
			}
		}
		return value
	}))
	peak := bar{name: "peak of the whole updater while it installs", value: math.NaN(), limit: 24, unit: "MiB VmHWM", gone: "the stories measure it: make stories leaves build/memory.txt"}
	if memory.peak > 0 {
		peak.value, peak.note = memory.peak, memory.story+", from build/memory.txt"
	}
	all = append(all, peak)

	cpu := bar{name: "CPU of the decoder, ext4-one-package", value: math.NaN(), limit: 1.3, unit: "of a SHA-256 pass"}
	speed := bar{name: "speed of the decoder, ext4-one-package", value: math.NaN(), limit: 60, least: true, unit: "% of the slower of write and SHA-256"}
	if r := of("ext4-one-package"); r.Pair != "" {
		if w, ok := r.row(ourDelta); ok {
			cpu.value = w.Decode.CPU / r.Limits.SHA256.CPU
			cpu.note = fmt.Sprintf("%.2f with the check of every leaf", w.Checked.CPU/r.Limits.SHA256.CPU)
			speed.value = r.speed(*w.Decode)
			speed.note = fmt.Sprintf("%.0f with the check of every leaf", r.speed(*w.Checked))
		}
	}
	return append(all, cpu, speed, worst("index payload", 0.9, "of desync's download", func(r result) float64 {
		return size(r.Pair, ourIndex) / size(r.Pair, casyncTool)
	}))
}

// speed is how fast a decoder was, written and synced, in percent of what the slower of writing and
// hashing alone took.
func (r result) speed(c cost) float64 {
	return 100 * math.Max(r.Limits.Write.Wall, r.Limits.SHA256.Wall) / c.Wall
}

func or(v, instead float64) float64 {
	if math.IsNaN(v) {
		return instead
	}
	return v
}

func isPeer(tool string) bool { return !strings.HasPrefix(tool, "tandem ") }

// writeBars prints the bars and returns how many are missed.
func writeBars(all []bar, print func(format string, args ...any)) (missed int) {
	count, met := 0, 0
	for _, b := range all {
		word := "at most"
		if b.least {
			word = "at least"
		}
		verdict := "met"
		switch {
		case math.IsNaN(b.value):
			verdict = "not in this run"
			if b.gone != "" {
				verdict = b.gone
			}
			print("%-46s %8s, %s %g %s: %s\n", b.name, "-", word, b.limit, b.unit, verdict)
			continue
		case b.met():
			met++
		default:
			verdict = "missed"
			missed++
		}
		count++
		if b.note != "" {
			verdict += " (" + b.note + ")"
		}
		print("%-46s %8.3f, %s %g %s: %s\n", b.name, b.value, word, b.limit, b.unit, verdict)
	}
	print("bars: %d/%d met\n", met, count)
	return missed
}

// storyMemory is the highest memory that an installing updater had in a story.
type storyMemory struct {
	peak  float64 // MiB
	story string
}

// memoryFile reads what the stories wrote (tests/debian_test.go): a line for each install with
// "install, STORY VERSION: … peak RSS 18.3 MiB (…)".
func memoryFile(path string) (m storyMemory) {
	text, err := os.ReadFile(path)
	if err != nil {
		return m
	}
	for _, found := range regexp.MustCompile(`(?m)^install, ([^:]+):.*peak RSS ([0-9.]+) MiB`).FindAllStringSubmatch(string(text), -1) {
		if v, err := strconv.ParseFloat(found[2], 64); err == nil && v > m.peak {
			m = storyMemory{v, found[1]}
		}
	}
	return m
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
