package updater

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// A rebuilder makes an image frame by frame, front to back. A frame begins on a leaf.
type rebuilder interface {
	Frames() int
	// FrameAt is the frame with the byte at target in it, Frames() for what is past the end.
	FrameAt(target int64) int
	Frame(i int) (target, length int64)
	// Build makes frame i in dst, which is as long, and proves it. After an error dst is
	// undefined.
	Build(i int, dst []byte) error
}

// rebuild makes the image of a payload from the byte at from on and hands it out leaf by
// leaf, each proven against the manifest before anybody sees it. made is where the
// leaves went, nil if they cannot be read from there.
func (u *Updater) rebuild(ctx context.Context, src Source, p payload, from int64, made io.ReaderAt, leaves []byte, step *step, leaf func([]byte) error) error {
	if from >= p.image.Size {
		return nil
	}
	var old Disk
	if p.base != nil || p.survey != nil {
		var err error
		if old, err = u.p.Slots.Read(u.running.Slot, p.image.Target); err != nil {
			return err
		}
		defer old.Close()
	}
	proof := proof{p, from, leaves}
	var r rebuilder
	var err error
	if p.survey != nil {
		r = u.indexed(ctx, src, p, old, made, proof, step)
	} else {
		r, err = u.patched(ctx, src, p, old, made, proof, step)
	}
	if err != nil {
		return err
	}
	var frame []byte
	for i := r.FrameAt(from); i < r.Frames(); i++ {
		target, length := r.Frame(i)
		frame = grow(frame, length)
		if err := r.Build(i, frame); err != nil {
			return err
		}
		// The checkpoint may be inside this frame.
		for at := max(0, from-target); at < length; at += manifest.LeafSize {
			if err := leaf(frame[at:min(at+manifest.LeafSize, length)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// proof compares what is rebuilt from the byte at from on with the manifest.
type proof struct {
	p      payload
	from   int64
	leaves []byte
}

// good tells whether the image has data at offset. What is on the medium already is not
// asked for.
func (f proof) good(offset int64, data []byte) bool {
	n := offset / manifest.LeafSize
	return offset < f.from || sha256.Sum256(data) == [32]byte(f.leaves[32*n:32*n+32])
}

// patched makes frames from a delta or a whole image.
type patched struct {
	*delta.Patch
	blob    io.ReaderAt
	sources delta.Sources
	proof   proof
	packed  []byte
}

func (u *Updater) patched(ctx context.Context, src Source, p payload, old Disk, made io.ReaderAt, proof proof, step *step) (*patched, error) {
	blob, err := u.blob(ctx, src, p.Blob, step)
	if err != nil {
		return nil, err
	}
	patch, err := delta.Open(blob, p.Blob.Size, delta.Limits{Memory: u.p.Memory, Size: p.image.Size})
	if err != nil {
		return nil, err
	}
	r := &patched{Patch: patch, blob: blob, sources: delta.Sources{New: made}, proof: proof, packed: make([]byte, patch.Longest())}
	if sum, needed := patch.Base(); needed {
		if p.base == nil || sum != p.base.Digest.Sum() || patch.BaseSize() != p.base.Size {
			return nil, fmt.Errorf("%w: payload starts from another image than the manifest says", delta.ErrFormat)
		}
		r.sources.Old = io.NewSectionReader(old, 0, p.base.Size)
	}
	return r, nil
}

func (r *patched) Frame(i int) (target, length int64) {
	f := r.Patch.Frame(i)
	return f.Target, f.Length
}

// Build implements rebuilder. The error is ErrMismatch where the frame is another one than
// the manifest names: the base is damaged.
func (r *patched) Build(i int, dst []byte) error {
	f := r.Patch.Frame(i)
	packed := r.packed[:f.BlobLength]
	if _, err := r.blob.ReadAt(packed, f.Blob); err != nil && err != io.EOF {
		return err
	}
	if err := r.Decode(i, packed, r.sources, dst); err != nil {
		return err
	}
	for at := int64(0); at < f.Length; at += manifest.LeafSize {
		data := dst[at:min(at+manifest.LeafSize, f.Length)]
		if offset := f.Target + at; !r.proof.good(offset, data) {
			return fmt.Errorf("%w: bytes %d to %d of %s, made from a %s", ErrMismatch, offset, offset+int64(len(data)), r.proof.p.image.Name, r.proof.p.Kind)
		}
	}
	return nil
}

// grow returns a slice of n bytes, reusing b where it is large enough.
func grow(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// indexed makes frames from what the slots hold and the units of an index payload.
type indexed struct {
	*blocks.Index
	sources blocks.Sources
	plan    func(ranges []transport.Range) // tells the source what comes; nil if it does not want to know
}

func (u *Updater) indexed(ctx context.Context, src Source, p payload, old Disk, made io.ReaderAt, proof proof, step *step) *indexed {
	r := &indexed{Index: p.survey.index, sources: blocks.Sources{
		// Not checked in leaves: a unit of some kilobytes would cost 64. The index, which was
		// checked so, has a hash for each.
		Blob: &fetched{ctx, func(ctx context.Context, off int64, b []byte) (int, error) {
			return u.fetch(ctx, src, p.Blob.Digest, off, b)
		}, step},
		Running: old, Spare: made, Done: made, Check: proof.good,
	}}
	if planner, ok := src.(Planner); ok {
		r.plan = func(ranges []transport.Range) { planner.Plan(p.Blob.Digest, ranges) }
	}
	return r
}

// indexTries is how often units are asked for before their source counts as one that lies.
// More than once, because a broker that mixes two messages is no reason to fail an update.
const indexTries = 3

// How far units are planned ahead: in bytes, more than a fast link has under way; and in
// frames, where little is missing.
const (
	planBytes  = 2 << 20
	planFrames = 64
)

// Build implements rebuilder. The error is transport.ErrLeaf where the source keeps sending
// units that are not the signed ones.
func (r *indexed) Build(i int, dst []byte) error {
	var err error
	for range indexTries {
		r.announce(i)
		if err = r.Index.Build(i, r.sources, dst); !errors.Is(err, delta.ErrFormat) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", transport.ErrLeaf, err)
}

// announce plans the units of frame i and of those after it.
func (r *indexed) announce(i int) {
	if r.plan == nil {
		return
	}
	var ranges []transport.Range
	for sum, end := int64(0), min(i+planFrames, r.Frames()); i < end && sum < planBytes; i++ {
		for _, part := range r.Ranges(i) {
			ranges = append(ranges, transport.Range{part.Offset, part.Length})
			sum += part.Length
		}
	}
	r.plan(ranges)
}

// fetched reads a blob of a release.
type fetched struct {
	ctx  context.Context
	read func(ctx context.Context, off int64, p []byte) (int, error)
	step *step
}

// ReadAt waits for the link; that is nobody's fault and no reason for a watchdog.
func (b *fetched) ReadAt(p []byte, off int64) (int, error) {
	b.step.pause()
	defer b.step.resume()
	return b.read(b.ctx, off, p)
}

// blob opens a blob for checked reading.
func (u *Updater) blob(ctx context.Context, src Source, c manifest.Content, step *step) (*fetched, error) {
	leaves, err := u.tree(ctx, src, c)
	if err != nil {
		return nil, err
	}
	tree := c.Tree
	if tree == "" {
		tree, leaves = c.Digest, nil
	}
	read := func(ctx context.Context, off int64, p []byte) (int, error) {
		return u.fetch(ctx, src, c.Digest, off, p)
	}
	v, err := transport.NewVerified(read, c.Size, string(tree), leaves)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", c.Digest, err)
	}
	return &fetched{ctx, func(ctx context.Context, off int64, p []byte) (int, error) { return v.ReadAt(ctx, p, off) }, step}, nil
}

// fetch reads bytes that nobody has checked, and counts them.
func (u *Updater) fetch(ctx context.Context, src Source, blob manifest.Digest, off int64, p []byte) (int, error) {
	n, err := src.ReadRange(ctx, blob, off, p)
	u.downloaded(int64(n))
	return n, err
}

// tree fetches the list of leaf digests of a content; of a small one, its digest is
// the list. The list is checked as a whole against its own signed digest.
func (u *Updater) tree(ctx context.Context, src Source, c manifest.Content) ([]byte, error) {
	if c.Tree == "" {
		sum := c.Digest.Sum()
		return sum[:], nil
	}
	list := make([]byte, c.TreeSize()) // bounded by manifest.MaxContent
	for have := 0; have < len(list); {
		n, err := u.fetch(ctx, src, c.Tree, int64(have), list[have:])
		have += n
		if n == 0 && err == nil {
			err = io.ErrNoProgress // or such a source would be asked for ever
		}
		if err != nil && !(err == io.EOF && have == len(list)) {
			return nil, fmt.Errorf("tree %s: %w", c.Tree, err)
		}
	}
	if manifest.DigestOf(list) != c.Tree {
		return nil, fmt.Errorf("tree %s: %w", c.Tree, transport.ErrLeaf)
	}
	return list, nil
}

// downloaded counts what came from the source, whoever it is.
func (u *Updater) downloaded(n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	*u.account() += n // saved with the next checkpoint
}

// account is where downloads are booked, with u.mu held: on the update that they are for, or
// aside until there is one.
func (u *Updater) account() *int64 {
	if u.j.Update != nil && u.j.Update.Manifest == u.fetching {
		return &u.j.Update.Cost.Downloaded
	}
	return &u.unbooked
}

// fetches begins the account of what an installation downloads.
func (u *Updater) fetches(d manifest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fetching, u.unbooked = d, 0
}

// ahead returns what was downloaded to find out whether and how to begin.
func (u *Updater) ahead() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.unbooked
}
