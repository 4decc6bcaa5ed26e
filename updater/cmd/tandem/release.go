package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

const releaseUsage = `usage: tandem release COMMAND [options]

  create   pack the images of a slot into a release folder, not yet signed
  sign     sign it, and offer it in the TUF metadata (on any machine with keys)
  pack     make one tar file of it, for a stick
  advise   say what makes the deltas of an image large, and what each remedy is worth
  inspect  print what a release says of itself
  verify   check signatures, hashes and payloads

advise takes a release, a folder with slots.json, or the file of one image. With
--base (one of these too) it measures each remedy on this pair: the delta is made
twice, as things are and as if all advice was followed. Whatever it finds, its
exit code is 0.

A release folder is an OCI image layout: skopeo copy oci:DIR:release docker://…

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not to be trusted or damaged,
4 more signatures are needed.
`

// releaseCmd runs "tandem release".
func releaseCmd(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	err := subcommand(ctx, "release", releaseUsage, map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"create": releaseCreate, "sign": releaseSign, "pack": releasePack, "inspect": releaseInspect, "verify": releaseVerify,
		"advise": releaseAdvise,
	}, args, stdout, stderr)
	for _, distrust := range []error{
		trust.ErrSignature, trust.ErrThreshold, trust.ErrExpired, trust.ErrRollback, trust.ErrMismatch, trust.ErrNoTarget,
		trust.ErrFormat, trust.ErrUnknownRole, mkrelease.ErrDamaged, release.ErrFormat, release.ErrUnsafe,
	} {
		if errors.Is(err, distrust) && !errors.Is(err, mktrust.ErrIncomplete) {
			return coded{err, exitUntrusted}
		}
	}
	return err
}

// progress returns what shows how far a command is, and what ends the line.
func progress(stderr io.Writer, quiet bool) (mkrelease.Progress, func()) {
	if quiet {
		return nil, func() {}
	}
	line := &progressLine{out: stderr, now: time.Now, every: 200 * time.Millisecond}
	return line.show, line.end
}

func releaseCreate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem release create", flag.ContinueOnError)
	var o mkrelease.Options
	var boards, bases, external several
	f.StringVar(&o.Product, "product", "", "`name` of the product that takes the release")
	f.StringVar(&o.Version, "version", "", "semantic `version`, for people")
	f.Uint64Var(&o.Sequence, "sequence", 0, "`number` that grows with each release, for devices")
	f.Uint64Var(&o.Epoch, "epoch", 0, "security `number`: raise it only when older systems must never run again")
	f.StringVar(&o.Slots, "slots", "", "`folder` with slots.json, as made by tandem image slots")
	f.Var(&boards, "board", "`board` that the images fit, besides that of slots.json (repeatable)")
	f.Var(&bases, "base", "`release` that devices run now, to make deltas from (repeatable)")
	devices := f.String("devices", "", "devices per version, a `file or VERSION=COUNT,…`: a base gets a delta only if the devices there save more than it costs")
	saving := f.String("min-saving", "10%", "with --devices: `bytes or share` of the downloads that a delta has to save, as 50M or 10%")
	f.Int64Var(&o.Chain.PerSecond, "second", 0, "with --devices: `bytes` that a second of the encoder has to save the fleet")
	f.Var(&external, "external", "`NAME=HANDLER:FILE`: image for a handler program (repeatable)")
	policy := f.String("policy", "", "JSON `file` with trial, health, data_schema, critical, as in the manifest")
	f.StringVar(&o.Provenance.Source, "source", "", "`URL` of the sources")
	f.StringVar(&o.Provenance.Revision, "revision", "", "`revision` of the sources (default: git's, of the folder that this is run in)")
	f.StringVar(&o.Provenance.Builder, "builder", "", "`who` builds")
	f.StringVar(&o.SBOM, "sbom", "", "`file` with the bill of materials")
	f.BoolVar(&o.NoIndex, "no-index", false, "make no index payloads, from which devices that run none of the bases take what they lack")
	f.IntVar(&o.Level, "level", 0, "`level` of compression, 1 (fast) to 4 (small, the default)")
	memoryFlag(f, &o.Memory)
	asJSON := f.Bool("json", false, "print JSON, and no progress")
	rest, err := parseFlags(f, stderr, args, 1, "DIR")
	if err != nil {
		return err
	}
	o.Out, o.Boards, o.Bases, o.Policy = rest[0], boards, bases, mkrelease.DefaultPolicy()
	if o.Product == "" || o.Version == "" || o.Sequence == 0 {
		return usageError("--product, --version and --sequence must be given")
	}
	if *devices != "" {
		if o.Chain.Devices, err = mkrelease.ReadDevices(*devices); err != nil {
			return err
		}
	}
	if o.Chain.MinBytes, o.Chain.MinShare, err = mkrelease.ParseSaving(*saving); err != nil {
		return usageError("--min-saving: %v", err)
	}
	for _, s := range external {
		name, target, ok1 := strings.Cut(s, "=")
		handler, file, ok2 := strings.Cut(target, ":")
		if !ok1 || !ok2 {
			return usageError("external image %q is not NAME=HANDLER:FILE", s)
		}
		o.External = append(o.External, mkrelease.External{Name: name, Handler: handler, File: file})
	}
	if *policy != "" {
		if o.Policy, err = mkrelease.ReadPolicy(*policy); err != nil {
			return err
		}
	}
	if o.Provenance.Built, err = sourceDate(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	if o.Provenance.Revision == "" {
		o.Provenance.Revision = gitRevision(ctx)
	}
	show, end := progress(stderr, *asJSON)
	o.Progress = show
	res, err := mkrelease.Create(ctx, o)
	end()
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, res)
	}
	fmt.Fprintf(stdout, "%s: %s %s, sequence %d, epoch %d, for %s\n%s\n\n", o.Out, o.Product, o.Version, o.Sequence, o.Epoch, strings.Join(res.Manifest.Boards, ", "), res.Digest)
	printPayloads(stdout, res.Payloads)
	printWeighed(stdout, res)
	fmt.Fprintf(stdout, "\nnot signed yet: tandem release sign --trust DIR %s\n", o.Out)
	return nil
}

func printPayloads(w io.Writer, payloads []mkrelease.Payload) {
	fmt.Fprintf(w, "%-12s %-24s %14s %14s %6s %10s\n", "IMAGE", "PAYLOAD", "IMAGE BYTES", "DOWNLOAD", "", "MEMORY")
	for _, p := range payloads {
		kind := p.Kind
		if p.BaseVersion != "" {
			kind += " from " + p.BaseVersion
		} else if p.Base != "" {
			kind += " from " + p.Base.Hex()[:12]
		}
		fmt.Fprintf(w, "%-12s %-24s %14d %14d %5.1f%% %10d", p.Image, kind, p.ImageSize, p.Size, 100*float64(p.Size)/float64(p.ImageSize), p.Memory)
		if p.Dropped != "" {
			fmt.Fprintf(w, "  left out: %s", p.Dropped)
		}
		fmt.Fprintln(w)
	}
}

// sourceDate turns SOURCE_DATE_EPOCH into the build time of the manifest. The
// time of day has no place there: the same sources must give the same release.
func sourceDate(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return "", fmt.Errorf("SOURCE_DATE_EPOCH %q is not a number of seconds", s)
	}
	return time.Unix(n, 0).UTC().Format(time.RFC3339), nil
}

// gitRevision is the revision of the folder that the command runs in; empty
// where there is none to tell. Changes that nobody committed are not hidden.
func gitRevision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func releaseSign(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem release sign", flag.ContinueOnError)
	dir := f.String("trust", "", "trust `folder`, as made by tandem keys init")
	asJSON := f.Bool("json", false, "print JSON")
	rest, err := parseFlags(f, stderr, args, 1, "DIR")
	if err != nil {
		return err
	}
	if *dir == "" {
		return usageError("--trust must be given")
	}
	folder, err := mktrust.Open(*dir, time.Now())
	if err != nil {
		return err
	}
	s, err := mkrelease.Sign(ctx, rest[0], folder)
	if err != nil {
		return incomplete(err)
	}
	if *asJSON {
		return printJSON(stdout, s)
	}
	_, err = fmt.Fprintf(stdout, "%s: signed by %d keys, offered as %s\n%s\n", rest[0], len(s.Keys), s.Target, s.Digest)
	return err
}

func releasePack(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	rest, err := parseFlags(flag.NewFlagSet("tandem release pack", flag.ContinueOnError), stderr, args, 2, "DIR FILE.tar")
	if err != nil {
		return err
	}
	show, end := progress(stderr, false)
	err = mkrelease.Pack(ctx, rest[0], rest[1], show)
	end()
	if err == nil {
		_, err = fmt.Fprintf(stdout, "%s\n", rest[1])
	}
	return err
}

// inspection is what inspect prints as JSON.
type inspection struct {
	Digest   manifest.Digest   `json:"digest"`
	Manifest manifest.Manifest `json:"manifest"`
	Signed   []string          `json:"signed_by"` // key ids as the envelope names them, unchecked
	Metadata []string          `json:"metadata"`
	Blobs    []manifest.Digest `json:"blobs"`
}

func releaseInspect(_ context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem release inspect", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print JSON")
	rest, err := parseFlags(f, stderr, args, 1, "DIR|TAR")
	if err != nil {
		return err
	}
	r, err := release.Open(rest[0])
	if err != nil {
		return err
	}
	defer r.Close()
	m, digest, ids, err := mkrelease.Read(r)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, inspection{digest, m, ids, r.MetadataNames(), r.Blobs()})
	}
	fmt.Fprintf(stdout, "product   %s\nversion   %s\nsequence  %d\nepoch     %d\nboards    %s\ndigest    %s\n",
		m.Product, m.Version, m.Sequence, m.Epoch, strings.Join(m.Boards, ", "), digest)
	fmt.Fprintf(stdout, "trial     %d tries, %d s to be healthy for %d s, network: %s\n", m.Trial.Tries, m.Trial.DeadlineSeconds, m.Trial.WindowSeconds, m.Trial.Network)
	for _, c := range m.Health {
		fmt.Fprintf(stdout, "check     %s: %s %s %s\n", c.Name, c.Kind, c.Target, strings.Join(c.Args, " "))
	}
	fmt.Fprintf(stdout, "data      schema %d, reads from %d\n", m.DataSchema.Version, m.DataSchema.ReadableFrom)
	p := m.Provenance
	fmt.Fprintf(stdout, "source    %s %s, built %s by %s, SBOM %s\n", dash(p.Source), dash(p.Revision), dash(p.Built), dash(p.Builder), dash(string(p.SBOM)))
	fmt.Fprintf(stdout, "keys      %s (unchecked: tandem release verify)\n", dash(strings.Join(ids, " ")))
	fmt.Fprintf(stdout, "metadata  %s\n\n", dash(strings.Join(r.MetadataNames(), " ")))
	var payloads []mkrelease.Payload
	for _, im := range m.Images {
		for _, p := range im.Payloads {
			row := mkrelease.Payload{Image: im.Name, Kind: p.Kind, Base: p.Base, ImageSize: im.Size, Size: p.Blob.Size, Memory: p.Memory}
			if _, ok := r.Size(p.Blob.Digest); !ok {
				row.Dropped = "not in this copy"
			}
			payloads = append(payloads, row)
		}
	}
	printPayloads(stdout, payloads)
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func releaseVerify(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem release verify", flag.ContinueOnError)
	dir := f.String("trust", "", "trust `folder`; short for --keys DIR/release-keys.json --root DIR/root.json")
	keysFile := f.String("keys", "", "`file` of release keys, release-keys.json")
	rootFile := f.String("root", "", "`file` of the TUF root, root.json")
	var bases several
	f.Var(&bases, "base", "`release` to rebuild deltas from (repeatable)")
	quick := f.Bool("quick", false, "compare hashes, but do not rebuild images")
	asJSON := f.Bool("json", false, "print JSON, and no progress")
	rest, err := parseFlags(f, stderr, args, 1, "DIR|TAR")
	if err != nil {
		return err
	}
	if *dir != "" {
		*keysFile, *rootFile = *dir+"/release-keys.json", *dir+"/root.json"
	}
	if *keysFile == "" {
		return usageError("--trust or --keys must be given: a release that anybody could have made is not verified")
	}
	o := mkrelease.VerifyOptions{Now: time.Now(), Bases: bases, Quick: *quick}
	data, err := os.ReadFile(*keysFile)
	if err != nil {
		return err
	}
	keys, err := trust.ParseKeySet(data)
	if err != nil {
		return fmt.Errorf("%s: %w", *keysFile, err)
	}
	o.Keys = &keys
	if *rootFile != "" {
		if o.Root, err = os.ReadFile(*rootFile); err != nil {
			return err
		}
	}
	show, end := progress(stderr, *asJSON)
	o.Progress = show
	v, err := mkrelease.Verify(ctx, rest[0], o)
	end()
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, v)
	}
	fmt.Fprintf(stdout, "%s %s, sequence %d\n%s\n", v.Manifest.Product, v.Manifest.Version, v.Manifest.Sequence, v.Digest)
	offered := "not checked (no --root)"
	if v.Offered {
		offered = "good, the release is offered"
	}
	fmt.Fprintf(stdout, "signature  good\nmetadata   %s\nblobs      %d good\nrebuilt    %s\nabsent     %s\n",
		offered, v.Blobs, dash(strings.Join(v.Rebuilt, ", ")), dash(strings.Join(v.Absent, ", ")))
	return nil
}
