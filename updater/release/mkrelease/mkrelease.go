// Package mkrelease makes releases at the desk: it packs the images of a
// system into payloads, describes them in a manifest, and writes the folder
// that package release reads. It is never linked into the device program.
//
// Making and signing are two steps, so that the machine that builds needs no
// keys: Create leaves an envelope without signatures, Sign adds them, on
// another machine if need be. Sizes are in bytes.
package mkrelease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
)

var (
	// ErrNotEmpty means that the output folder has content. Nothing was changed.
	ErrNotEmpty = errors.New("output folder is not empty")

	// ErrChanged means that a file is not what the file that describes it says:
	// two builds were mixed up, or one is still running.
	ErrChanged = errors.New("file differs from its description")

	// ErrDamaged means that a blob of a release is missing or not what the
	// manifest says.
	ErrDamaged = errors.New("damaged release")

	// ErrSequence means that another release was already published under this
	// sequence. Devices that have it would never take this one: count up.
	ErrSequence = errors.New("sequence is already taken by another release")
)

// Progress is told what is being done, how far it is and how far it goes.
type Progress func(step string, done, total int64)

// External is an image for a handler program on the device.
type External struct {
	Name    string
	Handler string
	File    string
}

// Policy is what the maker of a product decides about a trial; a JSON file at
// the desk, with the field names of the manifest.
type Policy struct {
	Trial      manifest.Trial   `json:"trial"`
	Health     []manifest.Check `json:"health"`
	DataSchema manifest.Schema  `json:"data_schema"`
	Critical   []string         `json:"critical"`
}

// DefaultPolicy is for products that have not decided yet.
func DefaultPolicy() Policy {
	return Policy{Trial: manifest.Trial{Tries: 3, DeadlineSeconds: 600, WindowSeconds: 30, Network: manifest.NetworkIgnore}}
}

// ReadPolicy reads a policy file. What it leaves out of "trial" is as in
// DefaultPolicy; a field that is not known is an error, since it is a typing
// mistake here.
func ReadPolicy(path string) (Policy, error) {
	p := DefaultPolicy()
	f, err := os.Open(path)
	if err != nil {
		return p, err
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, fmt.Errorf("policy %s: %w", path, err)
	}
	return p, nil
}

// Options describe a release to be made.
type Options struct {
	Out        string   // new or empty folder
	Product    string   // who takes the release
	Boards     []string // besides the board that slots.json names
	Version    string
	Sequence   uint64
	Epoch      uint64
	Slots      string // folder with slots.json and its images; empty for a release of external images only
	External   []External
	Bases      []string // releases to make deltas from
	NoIndex    bool     // no payloads for devices that run something else than a base
	Memory     int64    // bytes that making a delta may take; 0 means as much as is of use
	Chain      Chain    // which of them deserve one
	Policy     Policy
	Provenance manifest.Provenance
	SBOM       string // file, kept as a blob
	Level      int    // of compression, 1 to 4; 0 for the smallest payloads
	Progress   Progress
}

// Payload says what became of one payload.
type Payload struct {
	Image       string          `json:"image"`
	Kind        string          `json:"kind"`
	Base        manifest.Digest `json:"base,omitempty"`
	BaseVersion string          `json:"base_version,omitempty"`
	ImageSize   int64           `json:"image_size"`
	Size        int64           `json:"size"`
	Memory      int64           `json:"memory"`
	// Index is, for a delta, what a device with its base would download of the index
	// payload instead; 0 where there is none.
	Index int64 `json:"index,omitempty"`
	// Dropped says why the payload is not in the release; empty if it is.
	Dropped string `json:"dropped,omitempty"`
}

// Result is what Create made.
type Result struct {
	Manifest manifest.Manifest `json:"manifest"`
	Digest   manifest.Digest   `json:"digest"`
	Payloads []Payload         `json:"payloads"`
	// Weighed says why each base got a delta or none.
	Weighed []Weighed `json:"weighed,omitempty"`
	// Elsewhere are devices of versions that no base is of: they download what there is without a delta.
	Elsewhere Devices `json:"devices_without_base,omitempty"`
}

// slotSet is slots.json, which boards/image writes beside the images.
type slotSet struct {
	Board  string `json:"board"`
	Images []struct {
		Name   string           `json:"name"`
		Target string           `json:"target"`
		File   string           `json:"file"`
		Size   int64            `json:"size"`
		SHA256 string           `json:"sha256"`
		Verity *manifest.Verity `json:"verity"`
	} `json:"images"`
	Measurements map[string]string `json:"kernel_measurements"`
}

// Create makes a release, unsigned. On error the output folder is as before.
func Create(ctx context.Context, o Options) (Result, error) {
	res, err := create(ctx, o)
	if err != nil {
		return Result{}, fmt.Errorf("make release %s of %s: %w", o.Version, o.Product, err)
	}
	return res, nil
}

func create(ctx context.Context, o Options) (_ Result, err error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	if entries, err := os.ReadDir(o.Out); err == nil && len(entries) > 0 {
		return Result{}, fmt.Errorf("%w: %s", ErrNotEmpty, o.Out)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Result{}, err
	}
	b, err := newBuild(o)
	if err != nil {
		return Result{}, err
	}
	defer func() {
		err = errors.Join(err, b.close())
		if err != nil {
			// Only what we made: the folder itself may be somebody's mount point.
			for _, name := range []string{"blobs", "index.json", "oci-layout"} {
				err = errors.Join(err, os.RemoveAll(filepath.Join(o.Out, name)))
			}
		}
	}()
	return b.run(ctx)
}

// build is one run of Create.
type build struct {
	o      Options
	out    *layout
	tmp    string // beside the output, on the same file system: payloads are renamed into it
	bases  []*base
	m      manifest.Manifest
	layers []descriptor
	result Result

	// pending are payloads to keep; they become blobs when all else has worked.
	pending []pending

	rate float64 // image bytes of deltas per second, once one was made
}

type pending struct {
	made
	title string
}

// base is a release that deltas start from.
type base struct {
	*release.Release
	m      manifest.Manifest
	images map[manifest.Digest]*os.File // rebuilt
}

func newBuild(o Options) (*build, error) {
	out, err := newLayout(o.Out)
	if err != nil {
		return nil, err
	}
	b := &build{o: o, out: out}
	if b.tmp, err = os.MkdirTemp(filepath.Join(o.Out, "blobs"), ".tmp-"); err != nil {
		return nil, err
	}
	b.m = manifest.Manifest{
		Format: manifest.Format, Product: o.Product, Boards: o.Boards, Version: o.Version, Sequence: o.Sequence, Epoch: o.Epoch,
		Critical: o.Policy.Critical, Trial: o.Policy.Trial, Health: o.Policy.Health, DataSchema: o.Policy.DataSchema, Provenance: o.Provenance,
	}
	return b, nil
}

func (b *build) close() error {
	err := os.RemoveAll(b.tmp)
	for _, base := range b.bases {
		for _, f := range base.images {
			err = errors.Join(err, f.Close())
		}
		err = errors.Join(err, base.Close())
	}
	return err
}

func (b *build) run(ctx context.Context) (Result, error) {
	for _, path := range b.o.Bases {
		base, err := openBase(path)
		if err != nil {
			return Result{}, err
		}
		b.bases = append(b.bases, base)
	}
	b.result.Elsewhere = b.elsewhere()
	if b.o.Slots != "" {
		if err := b.slots(ctx); err != nil {
			return Result{}, err
		}
	}
	for _, e := range b.o.External {
		im := manifest.Image{Name: e.Name, Type: manifest.TypeExternal, Target: e.Handler}
		if err := b.image(ctx, im, e.File, ""); err != nil {
			return Result{}, err
		}
	}
	if b.o.SBOM != "" {
		content, err := b.out.addCopy(ctx, b.tmp, b.o.SBOM)
		if err != nil {
			return Result{}, fmt.Errorf("SBOM: %w", err)
		}
		b.m.Provenance.SBOM = content.Digest
		b.layer(release.SBOMMedia, filepath.Base(b.o.SBOM), content)
	}
	data, err := b.m.Marshal()
	if err != nil {
		return Result{}, err
	}
	if err := b.finish(ctx, data); err != nil {
		return Result{}, err
	}
	b.result.Manifest, b.result.Digest = b.m, manifest.DigestOf(data)
	return b.result, nil
}

func openBase(path string) (*base, error) {
	r, err := release.Open(path)
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	m, _, _, err := Read(r)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("base %s: %w", path, err), r.Close())
	}
	return &base{Release: r, m: m, images: make(map[manifest.Digest]*os.File)}, nil
}

// Read returns the manifest of a release, its digest and the ids of the keys
// that are said to have signed, without checking signatures: for the desk,
// where people look at releases and build on their own.
func Read(r *release.Release) (manifest.Manifest, manifest.Digest, []string, error) {
	env, err := r.Manifest(context.Background())
	if err != nil {
		return manifest.Manifest{}, "", nil, err
	}
	kind, payload, ids, err := trust.Unverified(env)
	if err != nil {
		return manifest.Manifest{}, "", nil, err
	}
	if kind != manifest.PayloadType {
		return manifest.Manifest{}, "", nil, fmt.Errorf("%w: payload type %q", manifest.ErrFormat, kind)
	}
	m, err := manifest.Parse(payload)
	return m, manifest.DigestOf(payload), ids, err
}

func (b *build) slots(ctx context.Context) error {
	var set slotSet
	data, err := os.ReadFile(filepath.Join(b.o.Slots, "slots.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return fmt.Errorf("slots.json: %w", err)
	}
	if !b.m.SuitsBoard(set.Board) {
		b.m.Boards = append([]string{set.Board}, b.m.Boards...)
	}
	b.m.Measurements = set.Measurements
	for _, s := range set.Images {
		if s.File != filepath.Base(s.File) {
			return fmt.Errorf("slots.json: file %q is not beside it", s.File)
		}
		im := manifest.Image{Name: s.Name, Type: manifest.TypeSlot, Target: s.Target, Verity: s.Verity}
		if err := b.image(ctx, im, filepath.Join(b.o.Slots, s.File), manifest.Digest("sha256:"+s.SHA256)); err != nil {
			return err
		}
	}
	return nil
}

// rebuild decodes an image of the base from its full payload, once, and checks
// it: the desk keeps releases, not images.
func (base *base) rebuild(ctx context.Context, im manifest.Image, tmp string, progress Progress) (*os.File, error) {
	if f, ok := base.images[im.Digest]; ok {
		return f, nil
	}
	for _, p := range im.Payloads {
		if p.Kind != manifest.KindFull {
			continue
		}
		f, err := frames.Temporary(tmp, "image-")
		if err != nil {
			return nil, err
		}
		step := fmt.Sprintf("rebuild %s of %s", im.Name, base.m.Version)
		if err := Rebuild(ctx, base.Release, im, p, nil, f, func(done int64) { progress(step, done, im.Size) }); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", step, err), f.Close())
		}
		base.images[im.Digest] = f
		return f, nil
	}
	return nil, fmt.Errorf("base release %s carries no full payload of image %s", base.m.Version, im.Name)
}
