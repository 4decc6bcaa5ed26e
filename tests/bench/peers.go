package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// reference is the tool that others are measured by: what Mender ships.
const reference = "xdelta3"

// Ours.
const (
	ourDelta = "tandem delta"
	ourIndex = "tandem index"
	ourFull  = "tandem full"
)

// wholeZstd shows what decompressing costs on this machine.
const wholeZstd = "zstd -9"

// casyncTool counts as desync does: the same chunks, the same compression.
const casyncTool = "casync/desync 4:16:64"

// A job is one tool at work on one pair.
type job struct {
	b        *bench
	old, new string
	work     string // folder for what it writes
	leaves   string // file: hashes of the leaves of the new image
	row      row
}

func (j *job) at(name string) string { return filepath.Join(j.work, name) }

// A peer, or one of ours, makes what a device downloads, and an image of it.
type peer struct {
	name   string
	about  string
	slow   bool // takes hours for a pair of images; see bench.measureTool
	memory int64
	run    func(ctx context.Context, j *job) error
}

// allTools in the order in which they run; the slow ones run last.
var allTools = []peer{
	{name: reference, about: "xdelta3 -e -f -s OLD NEW: Mender's method, and x in the bars", run: func(ctx context.Context, j *job) error {
		return j.files(ctx, "x.delta", []string{"xdelta3", "-e", "-f", "-s", j.old, j.new, j.at("x.delta")}, []string{"xdelta3", "-d", "-f", "-s", j.old, j.at("x.delta"), j.at("out")})
	}},
	{name: ourDelta, about: "mkdelta", run: tandemDelta},
	{name: ourIndex, about: "mkblocks: any old image serves; what is downloaded is the index and the missing units. Its decoder checks every leaf", run: tandemIndex},
	{name: ourFull, about: "mkdelta without an old image", run: tandemFull},
	{name: wholeZstd, about: "the whole image", run: func(ctx context.Context, j *job) error {
		return j.files(ctx, "z.zst", []string{"zstd", "-q", "-f", "-9", j.new, "-o", j.at("z.zst")}, []string{"zstd", "-q", "-f", "-d", j.at("z.zst"), "-o", j.at("out")})
	}},
	{name: "rauc block-hash-index", about: "calculated: 32 bytes for each 4 KiB, and the blocks that the old image lacks, uncompressed", run: rauc},
	{name: casyncTool, about: "casync with desync's chunk sizes (4:16:64 KiB) and zstd for each chunk: index and missing chunks; casync extract with the old image as seed", run: casync},
	{name: "zchunk", about: "zck and zck_delta_size: SWUpdate's delta handler; decoding needs a server, so there is no figure", run: zchunk},
	{name: "rdiff", about: "librsync, as SWUpdate's rdiff handler; signature and delta count as encoding", run: func(ctx context.Context, j *job) error {
		if err := j.encode(ctx, "rdiff", "signature", j.old, j.at("r.sig")); err != nil {
			return err
		}
		return j.files(ctx, "r.delta", []string{"rdiff", "delta", j.at("r.sig"), j.new, j.at("r.delta")}, []string{"rdiff", "patch", j.old, j.at("r.delta"), j.at("out")})
	}},
	{name: "xdelta3 -9 lzma", about: "xdelta3 -e -9 -S lzma", slow: true, run: func(ctx context.Context, j *job) error {
		return j.files(ctx, "l.delta", []string{"xdelta3", "-e", "-9", "-S", "lzma", "-f", "-s", j.old, j.new, j.at("l.delta")}, []string{"xdelta3", "-d", "-f", "-s", j.old, j.at("l.delta"), j.at("out")})
	}},
	{name: "zstd --patch-from", about: "zstd -19 --long=31 --patch-from=OLD", slow: true, run: func(ctx context.Context, j *job) error {
		return j.files(ctx, "p.zst", []string{"zstd", "-q", "-f", "-19", "--long=31", "--patch-from=" + j.old, j.new, "-o", j.at("p.zst")}, []string{"zstd", "-q", "-f", "-d", "--long=31", "--patch-from=" + j.old, j.at("p.zst"), "-o", j.at("out")})
	}},
	// bsdiff(1): 17 times the size of the old file.
	{name: "bsdiff", about: "bsdiff, where 17 times the image fit into the free memory", slow: true, memory: 17, run: func(ctx context.Context, j *job) error {
		return j.files(ctx, "b.patch", []string{"bsdiff", j.old, j.new, j.at("b.patch")}, []string{"bspatch", j.old, j.at("out"), j.at("b.patch")})
	}},
}

// quick is the size of an image up to which the slow tools always run, in bytes.
const quick = 320 << 20

// measureTool runs a tool, or says in the row why it did not.
func (b *bench) measureTool(ctx context.Context, t peer, p pair, m made, work string) row {
	j := job{b: b, old: m.Old.Path, new: m.New.Path, work: filepath.Join(work, strings.NewReplacer(" ", "-", "/", "-", ":", "-").Replace(t.name)), leaves: filepath.Join(work, "leaves")}
	j.row.Tool = t.name
	if t.slow && !b.slow && !p.slow && m.New.Size > quick {
		j.row.Skipped = "slow at this size; SLOW=1 runs it"
		return j.row
	}
	if need, have := t.memory*max(m.Old.Size, m.New.Size), available(); need > have {
		j.row.Skipped = fmt.Sprintf("takes %.1f GiB of memory; %.1f are free", float64(need)/(1<<30), float64(have)/(1<<30))
		return j.row
	}
	begin := time.Now()
	err := os.MkdirAll(j.work, 0o755)
	if err == nil {
		err = t.run(ctx, &j)
	}
	if err == nil && j.row.Decode != nil {
		var good bool
		if good, err = same(j.at("out"), m.New.Path); err == nil && !good {
			err = errors.New("the rebuilt image differs from the new one")
		}
	}
	if err != nil {
		j.row.Failed = err.Error()
	}
	os.Remove(j.at("out"))
	if !b.keep {
		os.RemoveAll(j.work)
	}
	j.row.took = time.Since(begin)
	return j.row
}

func (j *job) encode(ctx context.Context, argv ...string) error {
	c, _, err := j.b.measure(ctx, argv...)
	j.row.Encode.add(c)
	return err
}

func (j *job) decode(ctx context.Context, argv ...string) error {
	c, _, err := j.b.measure(ctx, argv...)
	j.row.Decode = &c
	return err
}

// files is for tools that make one file of two, and then the image.
func (j *job) files(ctx context.Context, output string, encode, decode []string) error {
	if err := j.encode(ctx, encode...); err != nil {
		return err
	}
	info, err := os.Stat(j.at(output))
	if err != nil {
		return err
	}
	j.row.Bytes = info.Size()
	return j.decode(ctx, decode...)
}

// ours runs one of our decoders, twice where it does not check leaves by itself: alone, and with the check that the
// updater makes of every leaf before it writes.
func (j *job) ours(ctx context.Context, step, older, blob string, alone bool) error {
	if _, _, err := j.b.own(ctx, "leaves", j.new, j.leaves); err != nil {
		return err
	}
	checked, said, err := j.b.own(ctx, step, older, blob, j.leaves, j.at("out"))
	if err != nil {
		return err
	}
	j.row.Checked = &checked
	j.row.Decode = &checked
	if alone {
		os.Remove(j.at("out"))
		var c cost
		if c, said, err = j.b.own(ctx, step, older, blob, "", j.at("out")); err != nil {
			return err
		}
		j.row.Decode = &c
	}
	j.row.Ours = new(decoded)
	if err := json.Unmarshal(said, j.row.Ours); err != nil {
		return err
	}
	j.row.Bytes = j.row.Ours.Download
	return nil
}

func tandemDelta(ctx context.Context, j *job) error {
	if err := j.encode(ctx, j.b.self, "step", "delta", j.old, j.new, j.at("delta")); err != nil {
		return err
	}
	return j.ours(ctx, "apply", j.old, j.at("delta"), true)
}

func tandemFull(ctx context.Context, j *job) error {
	if err := j.encode(ctx, j.b.self, "step", "full", j.new, j.at("full")); err != nil {
		return err
	}
	return j.ours(ctx, "apply", "", j.at("full"), true)
}

func tandemIndex(ctx context.Context, j *job) error {
	if err := j.encode(ctx, j.b.self, "step", "index", j.new, j.at("index")); err != nil {
		return err
	}
	return j.ours(ctx, "build-index", j.old, j.at("index"), false)
}

func rauc(ctx context.Context, j *job) error {
	c, said, err := j.b.own(ctx, "rauc", j.old, j.new)
	if err != nil {
		return err
	}
	j.row.Encode = c
	var d decoded
	err = json.Unmarshal(said, &d)
	j.row.Bytes, j.row.Index = d.Download, d.Index
	return err
}

// casync puts the new image into a store that has the old one: what is added is what a device fetches.
func casync(ctx context.Context, j *job) error {
	chunks := func() (count int, size int64, err error) {
		err = filepath.WalkDir(j.at("castr"), func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			info, err := e.Info()
			if err == nil {
				count, size = count+1, size+info.Size()
			}
			return err
		})
		return count, size, err
	}
	command := func(index, image string) []string {
		return []string{"casync", "make", "--store=" + j.at("castr"), "--chunk-size=4096:16384:65536", "--compression=zstd", j.at(index), image}
	}
	if _, _, err := j.b.measure(ctx, command("old.caibx", j.old)...); err != nil {
		return err
	}
	count, before, err := chunks()
	if err != nil {
		return err
	}
	if count == 0 {
		return errors.New("casync left no chunks")
	}
	if err := j.encode(ctx, command("new.caibx", j.new)...); err != nil {
		return err
	}
	_, after, err := chunks()
	if err != nil {
		return err
	}
	info, err := os.Stat(j.at("new.caibx"))
	if err != nil {
		return err
	}
	j.row.Index, j.row.Bytes = info.Size(), info.Size()+after-before
	return j.decode(ctx, "casync", "extract", "--store="+j.at("castr"), "--seed="+j.old, "--seed-output=no", j.at("new.caibx"), j.at("out"))
}

func zchunk(ctx context.Context, j *job) error {
	if _, _, err := j.b.measure(ctx, "zck", "-o", j.at("old.zck"), j.old); err != nil {
		return err
	}
	if err := j.encode(ctx, "zck", "-o", j.at("new.zck"), j.new); err != nil {
		return err
	}
	_, said, err := j.b.measure(ctx, "zck_delta_size", j.at("old.zck"), j.at("new.zck"))
	if err != nil {
		return err
	}
	// "Would download 1234 of 5678 bytes"
	words := strings.Fields(string(bytes.TrimSpace(said)))
	for i, w := range words {
		if w == "download" && i+1 < len(words) {
			j.row.Bytes, err = strconv.ParseInt(words[i+1], 10, 64)
			return err
		}
	}
	return fmt.Errorf("zck_delta_size said %q", said)
}
