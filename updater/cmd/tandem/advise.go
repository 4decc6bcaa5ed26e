package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/advice"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// printWeighed says which bases deserved a delta, and why.
func printWeighed(w io.Writer, res mkrelease.Result) {
	if len(res.Weighed) > 0 {
		fmt.Fprintf(w, "\n%-12s %-16s %10s %14s %14s %16s  %s\n", "IMAGE", "BASE", "DEVICES", "DELTA", "WITHOUT", "FLEET SAVES", "")
	}
	for _, x := range res.Weighed {
		verdict := "no delta: "
		if x.Kept {
			verdict = "delta: "
		}
		fmt.Fprintf(w, "%-12s %-16s %10d %14d %14d %16d  %s%s\n", x.Image, x.BaseVersion, x.Devices, x.Delta, x.Without, x.Saved, verdict, x.Reason)
	}
	for _, version := range slices.Sorted(maps.Keys(res.Elsewhere)) {
		fmt.Fprintf(w, "%d devices run %s, which no --base is of: they download what there is without a delta\n", res.Elsewhere[version], version)
	}
}

// memoryFlag is the bound of the encoder.
func memoryFlag(f *flag.FlagSet, memory *int64) {
	f.Func("memory", "`bytes` that the encoder may take, as 4G (default: as much as is of use)", func(s string) error {
		n, err := mkrelease.ParseBytes(s)
		if err != nil || n == 0 {
			return errors.New("not a number of bytes, as 4G")
		}
		*memory = n
		return nil
	})
}

func releaseAdvise(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem release advise", flag.ContinueOnError)
	var o advice.Options
	base := f.String("base", "", "what devices run now, a `release, slots folder or image`")
	memoryFlag(f, &o.Memory)
	f.IntVar(&o.Level, "level", 0, "`level` of compression, 1 (fast) to 4 (small, the default)")
	f.StringVar(&o.TempDir, "tmp", "", "`folder` for temporary files, of twice the size of both images")
	asJSON := f.Bool("json", false, "print JSON, and no progress")
	rest, err := parseFlags(f, stderr, args, 1, "NEW")
	if err != nil {
		return err
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		if o.Date, err = image.SourceDate(s); err != nil {
			return err
		}
	}
	show, end := progress(stderr, *asJSON)
	o.Progress = show
	reports, err := advise(ctx, *base, rest[0], o)
	end()
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, reports)
	}
	for _, r := range reports {
		printReport(stdout, r)
	}
	return nil
}

func advise(ctx context.Context, base, path string, o advice.Options) (_ []advice.Report, err error) {
	images, err := mkrelease.OpenImages(ctx, path, o.TempDir, o.Progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	old := &mkrelease.SlotImages{}
	if base != "" {
		if old, err = mkrelease.OpenImages(ctx, base, o.TempDir, o.Progress); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, old.Close()) }()
	}
	var all []advice.Report
	for i, name := range images.Names {
		k := slices.Index(old.Names, name)
		if len(old.Names) == 1 && len(images.Names) == 1 {
			k = 0 // two files may be called as they like
		}
		var r advice.Report
		if k >= 0 {
			r, err = advice.Compare(ctx, name, old.Images[k], images.Images[i], o)
		} else {
			r, err = advice.Check(ctx, name, images.Images[i], o)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func printReport(w io.Writer, r advice.Report) {
	fmt.Fprintf(w, "%s: %s, %d files, %d bytes, compression of the file system: %s\n", r.Image, r.FileSystem, r.Files, r.Size, r.Compression)
	for _, h := range r.Holds {
		fmt.Fprintf(w, "  %-8s %-6s %6d files %12d bytes %5.1f%%\n", h.Kind, h.Codec, h.Files, h.Bytes, 100*float64(h.Bytes)/float64(r.Size))
	}
	if len(r.Advice) == 0 {
		fmt.Fprintf(w, "nothing to advise\n\n")
		return
	}
	fmt.Fprintln(w)
	if r.Measured {
		fmt.Fprintf(w, "%-17s %6s %13s %13s %13s %13s\n", "ADVICE", "FILES", "IMAGE BYTES", "DELTA NOW", "IF FOLLOWED", "SAVES")
	} else {
		fmt.Fprintf(w, "%-17s %6s %13s\n", "ADVICE", "FILES", "IMAGE BYTES")
	}
	for _, a := range r.Advice {
		fmt.Fprintf(w, "%-17s %6d %13d", a.Topic, a.Files, a.Bytes)
		if r.Measured {
			fmt.Fprintf(w, " %13d %13d %13d", a.Now, a.Then, a.Saving)
		}
		fmt.Fprintln(w)
	}
	if r.Measured {
		fmt.Fprintf(w, "%-17s %6s %13s %13d %13d %13d  %.2f%% -> %.2f%% of the image\n", "total", "", "", r.Delta, r.Followed, r.Delta-r.Followed,
			100*float64(r.Delta)/float64(r.Size), 100*float64(r.Followed)/float64(r.Size))
	}
	fmt.Fprintln(w)
	for _, a := range r.Advice {
		if a.Do == "" {
			continue
		}
		do := a.Do
		if r.Measured && a.Saving < 0 {
			do = "leave it as it is; not worth it: " + do
		}
		fmt.Fprintf(w, "%s: %s\n", a.Topic, do)
		if a.Note != "" {
			fmt.Fprintf(w, "  %s\n", a.Note)
		}
		if a.Writes > 0 {
			fmt.Fprintf(w, "  a device writes %d bytes less\n", a.Writes)
		}
		for _, e := range a.Examples {
			fmt.Fprintf(w, "  /%s\n", e)
		}
	}
	if r.Grows != 0 {
		fmt.Fprintf(w, "\nthe image needs %d bytes more\n", r.Grows)
	}
	if len(r.Largest) > 0 {
		fmt.Fprintf(w, "\n%-13s %13s  %s\n", "OF THE DELTA", "FILE BYTES", "")
	}
	for _, f := range r.Largest {
		fmt.Fprintf(w, "%13d %13d  /%s\n", f.Delta, f.Size, f.Path)
	}
	fmt.Fprintln(w)
}
