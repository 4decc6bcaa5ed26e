// Package advice says what makes the deltas of an image large, and what each remedy is worth. It runs on a desk.
//
// With an image alone it lists what is found. With the image of the release before it measures: it makes the delta
// between the two, makes it again between two images in which all advice is followed, and books the bytes of both on
// files. The second pair are images in the eyes of the encoder only: what is compressed is unpacked behind the end of
// the file system, and times, checksums, signatures, the journal and what deleted files left behind are zeros. Their
// metadata is that of the images as they are, so that a file system that is really made that way differs from the
// figure by its own inodes and maps. Of an image whose file system compresses, the content is compared without one.
//
// Sizes are in bytes. The sum of all rows is the size of the delta. Shares of one frame among its files are estimated,
// see mkdelta.Options.Spent.
package advice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/compressed"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// Options may be left at their zero values.
type Options struct {
	Level   int   // of compression, as in mkdelta.Options
	Memory  int64 // as in mkdelta.Options
	TempDir string

	// Date is what SOURCE_DATE_EPOCH says: files that are younger carry the time of the build. Zero: not checked.
	Date time.Time

	// Progress is told what is being done, how far it is and how far it goes, in bytes.
	Progress func(step string, done, total int64)
}

// Report is what Check and Compare found.
type Report struct {
	Image       string  `json:"image"`
	FileSystem  string  `json:"file_system"` // "none" if it is not known
	Compression string  `json:"compression"` // of the file system
	Size        int64   `json:"size"`
	Files       int     `json:"files"`
	Holds       []Share `json:"compressed"`

	// With a base only.
	Measured bool   `json:"measured"`
	Delta    int64  `json:"delta"`    // bytes today
	Followed int64  `json:"followed"` // bytes if all of the advice is followed
	Grows    int64  `json:"grows"`    // bytes that the image then has more
	Largest  []File `json:"largest"`  // what the delta goes into

	Advice []Advice `json:"advice"`
}

// Share is what part of an image is in compressed files of a kind.
type Share struct {
	Kind  string `json:"kind"`
	Codec string `json:"codec"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

// File is what a file takes of the delta.
type File struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`
	Delta int64  `json:"delta"`
}

// Advice is one thing to do.
type Advice struct {
	Topic string `json:"topic"`
	Do    string `json:"do"`
	Files int    `json:"files"` // that it is about
	Bytes int64  `json:"bytes"` // of the image

	// With a base only: bytes of the delta.
	Now    int64 `json:"now"`
	Then   int64 `json:"then"`
	Saving int64 `json:"saving"` // negative: do not follow it

	// Writes are bytes that the device writes and would not have to.
	Writes int64 `json:"writes,omitempty"`

	Examples []string `json:"examples,omitempty"`
	Note     string   `json:"note,omitempty"`
}

// largest is how many files are named.
const largest = 12

// Check looks at an image alone. What it advises has no price.
func Check(ctx context.Context, name string, im mkdelta.Image, o Options) (Report, error) {
	return report(ctx, name, nil, im, o)
}

// Compare looks at an image and at the one before it, and measures.
func Compare(ctx context.Context, name string, base, im mkdelta.Image, o Options) (Report, error) {
	return report(ctx, name, &base, im, o)
}

func report(ctx context.Context, name string, base *mkdelta.Image, im mkdelta.Image, o Options) (Report, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	r, err := compare(ctx, name, base, im, o)
	if err != nil {
		return Report{}, fmt.Errorf("look at image %s: %w", name, err)
	}
	return r, nil
}

func (o Options) step(name string) func(done, total int64) {
	return func(done, total int64) { o.Progress(name, done, total) }
}

func compare(ctx context.Context, name string, base *mkdelta.Image, im mkdelta.Image, o Options) (Report, error) {
	v, err := read(ctx, im, o.step("read "+name))
	if err != nil {
		return Report{}, err
	}
	r := Report{Image: name, FileSystem: string(v.system.Kind), Compression: v.compression(), Size: im.Size, Files: len(v.files), Holds: v.holds()}
	if base == nil {
		r.Advice = v.advise(o, nil, nil)
		return r, nil
	}
	old, err := read(ctx, *base, o.step("read old "+name))
	if err != nil {
		return r, err
	}
	d, err := measure(ctx, name, old, v, o)
	if err != nil {
		return r, err
	}
	r.Measured, r.Delta, r.Followed, r.Grows = true, d.nowSize, d.thenSize, d.grown
	r.Advice = v.advise(o, old, d)
	for i, f := range v.files {
		if n := int64(math.Round(d.now.bytes[ownFiles+i])); n > 0 {
			r.Largest = append(r.Largest, File{f.Path, f.Size, n})
		}
	}
	slices.SortStableFunc(r.Largest, func(a, b File) int { return cmp.Compare(b.Delta, a.Delta) })
	r.Largest = r.Largest[:min(len(r.Largest), largest)]
	return r, nil
}

// holds sums up what is compressed.
func (v *view) holds() []Share {
	var all []Share
	for _, it := range v.items {
		k := slices.IndexFunc(all, func(s Share) bool { return s.Kind == it.kind && s.Codec == it.codec })
		if k < 0 {
			k = len(all)
			all = append(all, Share{Kind: it.kind, Codec: it.codec})
		}
		all[k].Files++
		all[k].Bytes += int64(it.to - it.from)
	}
	slices.SortStableFunc(all, func(a, b Share) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return all
}

// measured is what two deltas took.
type measured struct {
	nowSize, thenSize int64
	now, then         *ledger
	grown             int64
	failed            map[int]error
	fresh             map[int]bool // files of the new image whose content the old one does not have
}

// measure makes the delta as it is, and as it would be.
func measure(ctx context.Context, name string, old, v *view, o Options) (*measured, error) {
	d := &measured{now: v.ledger(), fresh: map[int]bool{}}
	known, wanted := map[[32]byte]bool{}, map[[32]byte]bool{}
	for _, s := range old.sums {
		known[s] = true
	}
	for i, s := range v.sums {
		wanted[s] = true
		d.fresh[i] = !known[s]
	}
	options := func(step string, l *ledger) mkdelta.Options {
		return mkdelta.Options{
			Level: o.Level, Memory: o.Memory, TempDir: o.TempDir, Spent: l.spend,
			Progress: o.step(step),
		}
	}
	stats, err := mkdelta.Make(ctx, old.Image, v.Image, options("delta of "+name, d.now), io.Discard)
	if err != nil {
		return nil, err
	}
	d.nowSize = stats.Size
	// A file that both images have costs nothing, packed or not.
	from, err := old.follow(ctx, o.TempDir, func(it item) bool { return !wanted[old.sums[it.file]] }, o.step("unpack old "+name))
	if err != nil {
		return nil, err
	}
	defer from.file.Close()
	to, err := v.follow(ctx, o.TempDir, func(it item) bool { return d.fresh[it.file] }, o.step("unpack "+name))
	if err != nil {
		return nil, err
	}
	defer to.file.Close()
	d.then, d.grown, d.failed = to.ledger(v), to.grown, to.failed
	then := options("delta of "+name+" as advised", d.then)
	then.OldFiles, then.NewFiles = from.system, to.system
	if stats, err = mkdelta.Make(ctx, from.Image, to.Image, then, io.Discard); err != nil {
		return nil, err
	}
	d.thenSize = stats.Size
	// The table in front of the frames.
	for l, size := range map[*ledger]int64{d.now: d.nowSize, d.then: d.thenSize} {
		sum := 0.0
		for _, n := range l.bytes {
			sum += n
		}
		l.bytes[ownMetadata] += float64(size) - sum
	}
	return d, nil
}

// advise lists what there is to do. d is nil if nothing was measured.
func (v *view) advise(o Options, old *view, d *measured) []Advice {
	var all []Advice
	booked := map[int]bool{} // owners that a row is about
	add := func(a Advice, owners ...int) {
		a.Do = remedies[a.Topic]
		if d != nil {
			now, then := 0.0, 0.0
			for _, k := range owners {
				booked[k] = true
				now += d.now.bytes[k]
				then += d.then.bytes[k]
			}
			a.Now, a.Then = int64(math.Round(now)), int64(math.Round(then))
			a.Saving = a.Now - a.Then
		}
		all = append(all, a)
	}
	packed := Advice{Topic: TopicSystem}
	var packedOwners []int
	switch {
	case v.unread != nil:
		// No price: not even the encoder sees into it.
		packed.Note = v.unread.Error()
		add(packed)
	case v.packs():
		own := map[int]bool{}
		for _, it := range v.items {
			own[it.file] = true
		}
		for i, f := range v.files {
			if !own[i] {
				packed.Files++
				packed.Bytes += f.Size
				packedOwners = append(packedOwners, ownFiles+i)
			}
		}
		add(packed, append(packedOwners, ownMetadata)...)
	}
	for _, kind := range []string{compressed.KindInitrd, compressed.KindKernel, compressed.KindModule, compressed.KindFile} {
		v.compressed(kind, d, add)
	}
	if v.signs > 0 {
		a := Advice{Topic: TopicSignatures, Files: v.signs}
		for _, p := range v.signed {
			a.Bytes += p.size
		}
		add(a, ownSigned)
	}
	v.metadata(o, old, d, add)
	if d != nil {
		rest := Advice{Topic: TopicRest}
		var owners []int
		for k := range d.now.bytes {
			if booked[k] {
				continue
			}
			owners = append(owners, k)
			if k >= ownFiles && d.fresh[k-ownFiles] {
				rest.Files++
				rest.Bytes += v.files[k-ownFiles].Size
			}
		}
		add(rest, owners...)
	}
	return all
}

// compressed advises on the compressed files of a kind.
func (v *view) compressed(kind string, d *measured, add func(Advice, ...int)) {
	a := Advice{Topic: topics[kind]}
	var items []item
	var owners []int
	for _, it := range v.items {
		if it.kind == kind {
			items = append(items, it)
			owners = append(owners, ownFiles+it.file)
			a.Files++
			a.Bytes += int64(it.to - it.from)
		}
	}
	if a.Files == 0 {
		return
	}
	slices.SortStableFunc(items, func(x, y item) int {
		if d != nil {
			return cmp.Compare(d.now.bytes[ownFiles+y.file], d.now.bytes[ownFiles+x.file])
		}
		return cmp.Compare(y.to-y.from, x.to-x.from)
	})
	for _, it := range items[:min(3, len(items))] {
		a.Examples = append(a.Examples, v.files[it.file].Path)
	}
	if d != nil {
		for _, it := range items {
			if err := d.failed[it.file]; errors.Is(err, compressed.ErrNoTool) {
				a.Note = fmt.Sprintf("not measured: %v", err)
			} else if err != nil && a.Note == "" {
				a.Note = fmt.Sprintf("%s could not be unpacked: %v", v.files[it.file].Path, err)
			}
		}
	}
	add(a, owners...)
}

// metadata advises on what is not in files. old is nil if there is no base.
func (v *view) metadata(o Options, old *view, d *measured, add func(Advice, ...int)) {
	l := v.layout
	if l == nil {
		return
	}
	a := Advice{Topic: TopicMetadata}
	for _, n := range l.Nodes {
		if !o.Date.IsZero() && n.Modify > o.Date.Unix() {
			a.Files++
		}
	}
	if a.Files > 0 {
		a.Note = fmt.Sprintf("%d files are younger than SOURCE_DATE_EPOCH", a.Files)
	}
	if old != nil && old.layout != nil {
		if n := older(old, v); n > 0 {
			a.Files = n
			a.Note = fmt.Sprintf("%d files are equal but for their times", n)
		}
	}
	if d != nil || a.Files > 0 || l.ReadOnly&files.ExtChecksums != 0 {
		if l.ReadOnly&files.ExtChecksums != 0 {
			a.Note = join(a.Note, "the file system has checksums")
		}
		add(a, ownMetadata)
	}
	if len(l.Journal) > 0 {
		add(Advice{Topic: TopicJournal, Bytes: total(l.Journal)}, ownJournal)
	}
	if n := v.used(l.Free); n > 0 {
		add(Advice{Topic: TopicFree, Bytes: n}, ownFree)
	}
	if old == nil || old.layout == nil {
		return
	}
	if l.UUID != old.layout.UUID || l.Seed != old.layout.Seed {
		add(Advice{Topic: TopicIdentifiers})
	}
	if n, bytes := moved(old, v); n > 0 {
		add(Advice{Topic: TopicMoved, Files: n, Bytes: bytes, Writes: bytes})
	}
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func total(all []files.Extent) int64 {
	n := int64(0)
	for _, e := range all {
		n += e.Length
	}
	return n
}
