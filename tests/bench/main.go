// Bench compares what an update costs with the peers that Debian has, side by side in
// one run, and prints a table. It measures what does not depend on how busy the machine
// is: bytes, CPU time, memory, and ratios within the run.
//
//	bench [-system debian|tiny]     or two images: bench -old FILE -new FILE
//
// It ends with "bars: N/M met" and a non-zero exit code if one is missed.
//
//	delta    our delta against xdelta3's default, which Mender ships
//	memory   anonymous memory of our decoder in a process of its own
//	cpu      our decoder against one SHA-256 pass over the image
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/tandem-ota/tandem/tests/factory"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
)

const (
	barDelta  = 1.0      // of xdelta3's default
	barMemory = 12 << 20 // bytes
	barCPU    = 2.5      // of one SHA-256 pass; the decoder copies, decompresses and adds
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, w io.Writer) error {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	system := f.String("system", "debian", "pair of root images to use: debian or tiny (too much alike to say anything about deltas)")
	older := f.String("old", "", "old image, instead of a system's")
	newer := f.String("new", "", "new image")
	step := f.String("step", "", "for the program itself: one measured step")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *step != "" {
		return child(*step, f.Args())
	}
	if (*older == "") != (*newer == "") {
		return errors.New("-old and -new go together")
	}
	if *older == "" {
		open := factory.Open
		if *system == "debian" {
			open = factory.OpenDebian
		}
		root, err := filepath.Abs(".")
		if err != nil {
			return err
		}
		made, err := open(ctx, root, os.Stderr)
		if err != nil {
			return err
		}
		*older, *newer = filepath.Join(made.Slots("one"), "root.img"), filepath.Join(made.Slots("two"), "root.img")
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return compare(*older, *newer, dir, w)
}

// cost is what a process took.
type cost struct {
	cpu  time.Duration
	peak int64 // bytes of resident memory
	anon int64 // bytes of anonymous memory, where the process said
	size int64 // bytes of its output
}

// measure runs a program to its end.
func measure(output string, stdin io.Reader, argv ...string) (cost, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &said, os.Stderr
	if err := cmd.Run(); err != nil {
		return cost{}, fmt.Errorf("%s: %w", argv[0], err)
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	c := cost{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), peak: usage.Maxrss << 10}
	c.anon, _ = strconv.ParseInt(strings.TrimSpace(said.String()), 10, 64)
	if output != "" {
		info, err := os.Stat(output)
		if err != nil {
			return cost{}, err
		}
		c.size = info.Size()
	}
	return c, nil
}

func compare(older, newer, dir string, w io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	type row struct {
		name           string
		encode, decode []string
		output, result string
	}
	rows := []row{
		{"tandem delta", []string{self, "-step", "delta", older, newer, at("t.delta")}, []string{self, "-step", "apply", older, at("t.delta"), at("t.out")}, at("t.delta"), at("t.out")},
		{"xdelta3 (default)", []string{"xdelta3", "-e", "-f", "-s", older, newer, at("x.delta")}, []string{"xdelta3", "-d", "-f", "-s", older, at("x.delta"), at("x.out")}, at("x.delta"), at("x.out")},
		{"zstd --patch-from -12", []string{"zstd", "-q", "-f", "-12", "--long=31", "--patch-from=" + older, newer, "-o", at("p.zst")}, []string{"zstd", "-q", "-f", "-d", "--long=31", "--patch-from=" + older, at("p.zst"), "-o", at("p.out")}, at("p.zst"), at("p.out")},
		{"tandem full", []string{self, "-step", "full", newer, at("f.full")}, []string{self, "-step", "apply", "", at("f.full"), at("f.out")}, at("f.full"), at("f.out")},
		{"zstd -9", []string{"zstd", "-q", "-f", "-9", newer, "-o", at("z.zst")}, []string{"zstd", "-q", "-f", "-d", at("z.zst"), "-o", at("z.out")}, at("z.zst"), at("z.out")},
	}
	info, err := os.Stat(newer)
	if err != nil {
		return err
	}
	want, err := digest(newer)
	if err != nil {
		return err
	}
	hash, err := measure("", nil, self, "-step", "sha256", newer)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "image of %d bytes; one SHA-256 pass takes %.2f s of CPU\n\n", info.Size(), hash.cpu.Seconds())
	fmt.Fprintln(t, "\tbytes\tof image\tencode CPU s\tencode MiB\tdecode CPU s\tdecode MiB\tanonymous MiB\t")
	got := map[string][2]cost{}
	for _, r := range rows {
		encode, err := measure(r.output, nil, r.encode...)
		if err != nil {
			return err
		}
		decode, err := measure("", nil, r.decode...)
		if err != nil {
			return err
		}
		if sum, err := digest(r.result); err != nil || sum != want {
			return fmt.Errorf("%s: rebuilt image differs (%v)", r.name, err)
		}
		os.Remove(r.result)
		got[r.name] = [2]cost{encode, decode}
		anon := "-"
		if decode.anon > 0 {
			anon = fmt.Sprintf("%.1f", mib(decode.anon))
		}
		fmt.Fprintf(t, "%s\t%d\t%.2f %%\t%.2f\t%.0f\t%.2f\t%.0f\t%s\t\n", r.name, encode.size, 100*float64(encode.size)/float64(info.Size()),
			encode.cpu.Seconds(), mib(encode.peak), decode.cpu.Seconds(), mib(decode.peak), anon)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	ours, peer := got["tandem delta"], got["xdelta3 (default)"]
	met, bars := 0, 0
	bar := func(name string, value, limit float64, unit string) {
		bars++
		verdict := "missed"
		if value <= limit {
			met++
			verdict = "met"
		}
		fmt.Fprintf(w, "%-46s %10.2f, at most %.2f %s: %s\n", name, value, limit, unit, verdict)
	}
	fmt.Fprintln(w)
	bar("delta, as a multiple of xdelta3's default", float64(ours[0].size)/float64(peer[0].size), barDelta, "x")
	bar("anonymous memory of the decoder", mib(ours[1].anon), barMemory>>20, "MiB")
	bar("CPU of the decoder, as a multiple of SHA-256", ours[1].cpu.Seconds()/hash.cpu.Seconds(), barCPU, "x")
	fmt.Fprintf(w, "bars: %d/%d met\n", met, bars)
	if met != bars {
		return fmt.Errorf("%d of %d bars missed", bars-met, bars)
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func digest(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [32]byte(h.Sum(nil)), err
}

// child does one step in a process of its own, so that it can be measured.
func child(step string, args []string) error {
	switch {
	case step == "sha256" && len(args) == 1:
		_, err := digest(args[0])
		return err
	case step == "full" && len(args) == 2:
		return encode("", args[0], args[1])
	case step == "delta" && len(args) == 3:
		return encode(args[0], args[1], args[2])
	case step == "apply" && len(args) == 3:
		return apply(args[0], args[1], args[2])
	}
	return fmt.Errorf("no step %q with %d arguments", step, len(args))
}

func encode(older, newer, out string) error {
	target, err := open(newer)
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	if older == "" {
		_, err = mkdelta.MakeFull(context.Background(), target, mkdelta.Options{}, f)
		return err
	}
	base, err := open(older)
	if err != nil {
		return err
	}
	_, err = mkdelta.Make(context.Background(), base, target, mkdelta.Options{}, f)
	return err
}

func open(path string) (mkdelta.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return mkdelta.Image{}, err
	}
	info, err := f.Stat()
	return mkdelta.Image{ReaderAt: f, Size: info.Size()}, err
}

// apply decodes as the device does, frame by frame, and prints its anonymous memory.
func apply(older, patch, out string) error {
	blob, err := open(patch)
	if err != nil {
		return err
	}
	var base io.ReaderAt
	if older != "" {
		image, err := open(older)
		if err != nil {
			return err
		}
		base = image
	}
	// A device has the size from the signed manifest; here the header must do
	// (updater/delta/FORMAT.md, offset 16).
	var field [8]byte
	if _, err := blob.ReadAt(field[:], 16); err != nil {
		return err
	}
	size := int64(binary.LittleEndian.Uint64(field[:]))
	p, err := delta.Open(blob, blob.Size, delta.Limits{Memory: 64 << 20, Size: size})
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	var packed, plain []byte
	for i := range p.Frames() {
		frame := p.Frame(i)
		packed, plain = room(packed, frame.BlobLength), room(plain, frame.Length)
		if _, err := blob.ReadAt(packed, frame.Blob); err != nil && err != io.EOF {
			return err
		}
		if err := p.Decode(i, packed, delta.Sources{Old: base, New: f}, plain); err != nil {
			return err
		}
		if _, err := f.Write(plain); err != nil {
			return err
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(status), "\nRssAnon:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return errors.New("the kernel does not tell RssAnon")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return err
	}
	_, err = fmt.Println(kib << 10)
	return err
}

func room(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}
