package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

const imageUsage = `usage: tandem image COMMAND [options]

  slots  make the images of a slot from kernel, init and root file system
  build  make the image of a whole disk from the images of a slot
  flash  write a disk image to a device and read it back
`

// errImageUsage means that the command line makes no sense; the manual was printed.
var errImageUsage = errors.New("see tandem image -h")

// imageCmd runs "tandem image".
func imageCmd(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"slots": imageSlots, "build": imageBuild, "flash": imageFlash,
	}
	if len(args) == 0 {
		fmt.Fprint(stderr, imageUsage)
		return errImageUsage
	}
	if run, ok := commands[args[0]]; ok {
		err := run(ctx, args[1:], stdout, stderr)
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help" {
		fmt.Fprint(stdout, imageUsage)
		return nil
	}
	fmt.Fprint(stderr, imageUsage)
	return fmt.Errorf("unknown command %q: %w", args[0], errImageUsage)
}

// imageFlags returns a flag set that prints usage and options.
func imageFlags(name, usage string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("tandem image "+name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "usage: tandem image %s %s\n\n", name, usage)
		f.PrintDefaults()
	}
	return f
}

// parse reads the options and checks that the required ones are there.
func parseImageFlags(f *flag.FlagSet, args []string, operands int, required ...string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, name := range required {
		if f.Lookup(name).Value.String() == "" {
			f.Usage()
			return fmt.Errorf("--%s is missing: %w", name, errImageUsage)
		}
	}
	if f.NArg() != operands {
		f.Usage()
		return fmt.Errorf("%d arguments, want %d: %w", f.NArg(), operands, errImageUsage)
	}
	return nil
}

func imageSlots(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := imageFlags("slots", "--board B --kernel FILE --modules DIR --init FILE --root TREE|TAR --keys FILE --out DIR [options]", stderr)
	var o image.SlotOptions
	board := f.String("board", "", "the `board` ("+strings.Join(boards.Names(), ", ")+")")
	keys := f.String("keys", "", "`file` with the keys that may sign what boots, "+image.KeysPath+" on the device")
	device := f.String("device", "", "`file` that becomes "+image.DevicePath)
	trust := f.String("trust-root", "", "`file` that becomes "+image.TrustRootPath+", the TUF root")
	f.StringVar(&o.Kernel, "kernel", "", "kernel `file` (vmlinuz)")
	f.StringVar(&o.Modules, "modules", "", "`folder` of its modules (lib/modules/VERSION)")
	f.StringVar(&o.Init, "init", "", "first program, a static binary `file`")
	f.StringVar(&o.Root, "root", "", "root file system: a `folder or archive` (.tar, .tar.zst; only an archive has owners)")
	f.StringVar(&o.Like, "like", "", "root `image` of the release before, or its folder: what did not change stays in its place, and devices write less")
	f.BoolVar(&o.Unpack, "unpack", false, "store initramfs archives in /boot of the root file system uncompressed: deltas see into them")
	f.StringVar(&o.Append, "append", "", "`words` added to the board's kernel command line, for trying")
	f.StringVar(&o.Out, "out", "", "`folder` for boot.img, root.img and slots.json")
	if err := parseImageFlags(f, args, 0, "board", "kernel", "modules", "init", "root", "keys", "out"); err != nil {
		return err
	}
	var err error
	if o.Board, err = boards.Get(*board); err != nil {
		return err
	}
	if o.Keys, err = os.ReadFile(*keys); err != nil {
		return err
	}
	if o.Date, err = image.SourceDate(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	for name, path := range map[string]string{*device: image.DevicePath, *trust: image.TrustRootPath} {
		if name == "" {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		o.RootFiles = append(o.RootFiles, image.File{Path: path, Mode: 0o644, Data: data})
	}
	set, err := image.Slots(ctx, o)
	if err != nil {
		return err
	}
	for _, i := range set.Images {
		fmt.Fprintf(stdout, "%-8s %12d bytes  sha256:%s\n", i.File, i.Size, i.SHA256)
	}
	return nil
}

func imageBuild(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := imageFlags("build", "--board B (--release DIR|TAR | --slots DIR --manifest FILE) -o IMAGE [--provision DIR]", stderr)
	var o image.DiskOptions
	board := f.String("board", "", "the `board` ("+strings.Join(boards.Names(), ", ")+")")
	from := f.String("release", "", "signed release, a `folder or tar`, that slot a holds")
	slots := f.String("slots", "", "`folder` with boot.img and root.img, as made by tandem image slots")
	envelope := f.String("manifest", "", "signed manifest of the images in --slots, a DSSE envelope `file`")
	out := f.String("o", "", "the disk image, a `file`")
	f.StringVar(&o.Provision, "provision", "", "`folder` that becomes the content of the data partition")
	if err := parseImageFlags(f, args, 0, "board", "o"); err != nil {
		return err
	}
	if (*from == "") == (*slots == "") || (*slots == "") != (*envelope == "") {
		f.Usage()
		return fmt.Errorf("want --release, or --slots with --manifest: %w", errImageUsage)
	}
	var err error
	if o.Board, err = boards.Get(*board); err != nil {
		return err
	}
	if *from != "" {
		if *slots, err = os.MkdirTemp(filepath.Dir(*out), ".release-"); err != nil {
			return err
		}
		defer os.RemoveAll(*slots)
		o.Envelope, err = unpackRelease(ctx, *from, *board, *slots)
	} else {
		o.Envelope, err = os.ReadFile(*envelope)
	}
	if err != nil {
		return err
	}
	o.BootImage = filepath.Join(*slots, "boot.img")
	o.RootImage = filepath.Join(*slots, "root.img")
	if err := image.Build(ctx, o, *out); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: %d bytes (sparse)\n", *out, o.Board.DiskSize())
	return nil
}

// unpackRelease writes the images of a release's slot into dir, as boot.img and
// root.img, and returns its envelope. Signatures are not checked here: the
// device does that at every boot, with the keys that it trusts.
func unpackRelease(ctx context.Context, path, board, dir string) ([]byte, error) {
	r, err := release.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	m, _, _, err := mkrelease.Read(r)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(m.Boards, board) {
		return nil, fmt.Errorf("release %s is for %s, not for board %s", m.Version, strings.Join(m.Boards, ", "), board)
	}
	for _, im := range m.Images {
		if im.Type != manifest.TypeSlot || im.Target != "boot" && im.Target != "root" {
			continue
		}
		i := slices.IndexFunc(im.Payloads, func(p manifest.Payload) bool { return p.Kind == manifest.KindFull })
		if i < 0 {
			return nil, fmt.Errorf("release %s has no full payload of image %s", m.Version, im.Name)
		}
		f, err := os.Create(filepath.Join(dir, im.Target+".img"))
		if err != nil {
			return nil, err
		}
		err = mkrelease.Rebuild(ctx, r, im, im.Payloads[i], nil, f, func(int64) {})
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	return r.Manifest(ctx)
}

func imageFlash(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := imageFlags("flash", "IMAGE DEVICE\n\nWrites a disk image to a device and reads it back. What the device held is lost.", stderr)
	if err := parseImageFlags(f, args, 2); err != nil {
		return err
	}
	p := progressLine{out: stderr, now: time.Now, every: 200 * time.Millisecond}
	err := image.Flash(ctx, f.Arg(0), f.Arg(1), func(s image.Progress) { p.show(s.Phase, s.Done, s.Total) })
	p.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: written and read back\n", f.Arg(1))
	return nil
}

// progressLine shows bytes, rate and time left on one line that it rewrites.
type progressLine struct {
	out   io.Writer
	now   func() time.Time
	every time.Duration // no oftener than this

	phase string
	start time.Time
	shown time.Time
	open  bool
}

func (p *progressLine) show(phase string, done, total int64) {
	now := p.now()
	if phase != p.phase {
		p.end()
		p.phase, p.start, p.shown = phase, now, time.Time{}
	}
	if now.Sub(p.shown) < p.every && done < total {
		return
	}
	p.shown, p.open = now, true
	fmt.Fprintf(p.out, "\r%s", progressText(phase, done, total, now.Sub(p.start)))
}

// end leaves the line.
func (p *progressLine) end() {
	if p.open {
		fmt.Fprintln(p.out)
	}
	p.open = false
}

// progressText is one line of 60 columns.
func progressText(phase string, done, total int64, elapsed time.Duration) string {
	const mib = 1 << 20
	rate, left := "", ""
	if s := elapsed.Seconds(); s > 0.1 && done > 0 {
		perSecond := float64(done) / s
		rate = fmt.Sprintf("%.1f MiB/s", perSecond/mib)
		left = fmt.Sprintf("%s left", (time.Duration(float64(total-done)/perSecond*float64(time.Second)) + time.Second - 1).Truncate(time.Second))
	}
	return fmt.Sprintf("%-5s %6d of %d MiB %3d%% %14s %14s", phase, done/mib, total/mib, done*100/max(total, 1), rate, left)
}
