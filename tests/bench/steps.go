package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
)

// step is one thing in a process of its own, so that it can be measured. It prints what
// it knows of itself as JSON.
func step(ctx context.Context, args []string, stdout, log io.Writer) error {
	name, args := args[0], args[1:]
	steps := map[string]struct {
		count int
		do    func() (any, error)
	}{
		"images":      {2, func() (any, error) { return imagesStep(ctx, args[0], args[1], log) }},
		"sha256":      {1, func() (any, error) { return digest(args[0]) }},
		"write":       {2, func() (any, error) { return nil, writeStep(args[0], args[1]) }},
		"leaves":      {2, func() (any, error) { return nil, leavesStep(args[0], args[1]) }},
		"delta":       {3, func() (any, error) { return nil, encode(ctx, args[0], args[1], args[2]) }},
		"full":        {2, func() (any, error) { return nil, encode(ctx, "", args[0], args[1]) }},
		"apply":       {4, func() (any, error) { return apply(args[0], args[1], args[2], args[3]) }},
		"index":       {2, func() (any, error) { return indexStep(ctx, args[0], args[1]) }},
		"build-index": {4, func() (any, error) { return buildIndex(args[0], args[1], args[2], args[3]) }},
		"rauc":        {2, func() (any, error) { return raucIndex(args[0], args[1]) }},
	}
	s, ok := steps[name]
	if !ok || len(args) != s.count {
		return fmt.Errorf("no step %q with %d arguments", name, len(args))
	}
	v, err := s.do()
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(v)
}

func imagesStep(ctx context.Context, dir, name string, log io.Writer) (any, error) {
	chosen, err := choosePairs(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return chosen[0].make(ctx, dir, log)
}

// writeStep is the least that an installation does.
func writeStep(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(in, buf)
		if _, err := out.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return out.Sync()
		}
		if err != nil {
			return err
		}
	}
}

// leavesStep writes the hashes of an image's leaves, which a device has from the manifest.
func leavesStep(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	var sums []byte
	leaf := make([]byte, delta.Leaf)
	for {
		n, err := io.ReadFull(in, leaf)
		if n > 0 {
			sum := sha256.Sum256(leaf[:n])
			sums = append(sums, sum[:]...)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return os.WriteFile(to, sums, 0o644)
		}
		if err != nil {
			return err
		}
	}
}

func open(path string) (mkdelta.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return mkdelta.Image{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return mkdelta.Image{}, err
	}
	return mkdelta.Image{ReaderAt: f, Size: info.Size()}, nil
}

func encode(ctx context.Context, older, newer, out string) error {
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
		_, err = mkdelta.MakeFull(ctx, target, mkdelta.Options{}, f)
		return err
	}
	base, err := open(older)
	if err != nil {
		return err
	}
	_, err = mkdelta.Make(ctx, base, target, mkdelta.Options{}, f)
	return err
}

func indexStep(ctx context.Context, newer, out string) (any, error) {
	target, err := open(newer)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(out)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mkblocks.Make(ctx, mkblocks.Image(target), mkblocks.Options{}, f)
}

// decoded is what one of our decoders says of itself.
type decoded struct {
	Anonymous int64 // bytes of anonymous memory at its height, looked at after every frame, and often while an old image is scanned
	Memory    int64 // bytes that the payload states
	OldRead   int64 // bytes of the old image
	OldSeeks  int64 // reads of it that did not begin where the one before ended
	NewRead   int64 // bytes of the new image behind the frame
	NewSeeks  int64
	Download  int64 // bytes of the blob that were read
	Index     int64 // of them, those of an index
}

// source counts what is read of an image, and from how many places.
type source struct {
	io.ReaderAt
	bytes, seeks, end int64
}

func (s *source) ReadAt(b []byte, at int64) (int, error) {
	if at != s.end {
		s.seeks++
	}
	n, err := s.ReaderAt.ReadAt(b, at)
	s.bytes += int64(n)
	s.end = at + int64(n)
	return n, err
}

// likeDevice sets the collector as the updater's agent does.
func likeDevice() {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(24 << 20)
}

// anonymous is the resident memory of this process that no file stands behind. The second and
// third number of statm are resident and shared pages (proc(5)).
func anonymous() (int64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	words := strings.Fields(string(text))
	if len(words) < 3 {
		return 0, errors.New("the kernel does not tell its pages")
	}
	resident, err := strconv.ParseInt(words[1], 10, 64)
	shared, err2 := strconv.ParseInt(words[2], 10, 64)
	return (resident - shared) * int64(os.Getpagesize()), errors.Join(err, err2)
}

// checker compares leaves with their hashes in a file, as the updater does before it writes. It
// knows no leaves if the file has no name.
func checker(leaves string) (func(at int64, leaf []byte) bool, error) {
	if leaves == "" {
		return func(int64, []byte) bool { return true }, nil
	}
	f, err := os.Open(leaves)
	if err != nil {
		return nil, err
	}
	return func(at int64, leaf []byte) bool {
		var want [sha256.Size]byte
		if _, err := f.ReadAt(want[:], at/delta.Leaf*sha256.Size); err != nil {
			return false
		}
		sum := sha256.Sum256(leaf)
		return bytes.Equal(sum[:], want[:])
	}, nil
}

// apply decodes as the device does, frame by frame, and syncs what it wrote.
func apply(older, patch, leaves, out string) (d decoded, err error) {
	likeDevice()
	blob, err := open(patch)
	if err != nil {
		return d, err
	}
	old := &source{}
	var from delta.Sources
	if older != "" {
		if old.ReaderAt, err = os.Open(older); err != nil {
			return d, err
		}
		from.Old = old
	}
	check, err := checker(leaves)
	if err != nil {
		return d, err
	}
	// A device has the size from the signed manifest; here the header must do
	// (updater/delta/FORMAT.md, offset 16).
	var size [8]byte
	if _, err := blob.ReadAt(size[:], 16); err != nil {
		return d, err
	}
	p, err := delta.Open(blob, blob.Size, delta.Limits{Memory: 64 << 20, Size: int64(binary.LittleEndian.Uint64(size[:]))})
	if err != nil {
		return d, err
	}
	f, err := os.Create(out)
	if err != nil {
		return d, err
	}
	defer f.Close()
	done := &source{ReaderAt: f}
	from.New = done
	var packed, plain []byte
	for i := range p.Frames() {
		frame := p.Frame(i)
		packed, plain = room(packed, frame.BlobLength), room(plain, frame.Length)
		if _, err := blob.ReadAt(packed, frame.Blob); err != nil && err != io.EOF {
			return d, err
		}
		if err := p.Decode(i, packed, from, plain); err != nil {
			return d, err
		}
		if err := d.put(f, frame.Target, plain, check); err != nil {
			return d, err
		}
	}
	d.Memory, d.Download = p.Memory(), blob.Size
	d.OldRead, d.OldSeeks, d.NewRead, d.NewSeeks = old.bytes, old.seeks, done.bytes, done.seeks
	return d, f.Sync()
}

// buildIndex scans the old image and builds the new one from an index payload. It checks every leaf as it
// goes: hashes of 48 bits are hints.
func buildIndex(older, payload, leaves, out string) (d decoded, err error) {
	likeDevice()
	file, err := open(payload)
	if err != nil {
		return d, err
	}
	blob := &source{ReaderAt: file}
	var size [8]byte
	if _, err := file.ReadAt(size[:], 16); err != nil { // updater/delta/blocks/FORMAT.md
		return d, err
	}
	base, err := open(older)
	if err != nil {
		return d, err
	}
	old := &source{ReaderAt: base}
	check, err := checker(leaves)
	if err != nil {
		return d, err
	}
	x, err := blocks.Open(blob, file.Size, blocks.Limits{Memory: 64 << 20, Size: int64(binary.LittleEndian.Uint64(size[:]))})
	if err != nil {
		return d, err
	}
	var looked error
	if err := x.Scan(blocks.Running, old, base.Size, func(int64) { looked = d.look() }); err != nil || looked != nil {
		return d, errors.Join(err, looked)
	}
	promised := x.IndexSize() + x.Missing(0)
	f, err := os.Create(out)
	if err != nil {
		return d, err
	}
	defer f.Close()
	done := &source{ReaderAt: f}
	var plain []byte
	for i := range x.Frames() {
		target, length := x.Frame(i)
		plain = room(plain, length)
		if err := x.Build(i, blocks.Sources{Blob: blob, Running: old, Done: done, Check: check}, plain); err != nil {
			return d, err
		}
		if err := d.put(f, target, plain, nil); err != nil {
			return d, err
		}
	}
	if blob.bytes < promised {
		return d, fmt.Errorf("read %d bytes of the payload, expected %d", blob.bytes, promised)
	}
	d.Memory, d.Download, d.Index = x.Memory(), blob.bytes, x.IndexSize()
	d.OldRead, d.OldSeeks, d.NewRead, d.NewSeeks = old.bytes, old.seeks, done.bytes, done.seeks
	return d, f.Sync()
}

// put checks a frame and writes it.
func (d *decoded) put(f *os.File, at int64, plain []byte, check func(int64, []byte) bool) error {
	for i := 0; check != nil && i < len(plain); i += delta.Leaf {
		if !check(at+int64(i), plain[i:min(i+delta.Leaf, len(plain))]) {
			return fmt.Errorf("leaf at %d is not what it should be", at+int64(i))
		}
	}
	if _, err := f.WriteAt(plain, at); err != nil {
		return err
	}
	return d.look()
}

// look remembers the anonymous memory at its height.
func (d *decoded) look() error {
	n, err := anonymous()
	d.Anonymous = max(d.Anonymous, n)
	return err
}

func room(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// raucIndex calculates what a device with RAUC's block-hash-index would fetch: the index, which is a
// SHA-256 for every 4 KiB of the image, and each block that the old image has nowhere at a multiple of
// 4 KiB (RAUC manual, "Adaptive Updates"). Blocks are counted as they are: RAUC fetches them by ranges of
// a bundle whose compression does not know of them.
func raucIndex(older, newer string) (d decoded, err error) {
	have := make(map[[sha256.Size]byte]bool)
	scan := func(path string, each func(sum [sha256.Size]byte)) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for block := make([]byte, 4096); ; {
			n, err := io.ReadFull(f, block)
			if n > 0 {
				clear(block[n:])
				each(sha256.Sum256(block))
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	// A block of zeros is known to the one who writes.
	have[sha256.Sum256(make([]byte, 4096))] = true
	if err := scan(older, func(sum [sha256.Size]byte) { have[sum] = true }); err != nil {
		return d, err
	}
	err = scan(newer, func(sum [sha256.Size]byte) {
		d.Index += sha256.Size
		if !have[sum] {
			have[sum] = true // fetched once
			d.Download += 4096
		}
	})
	d.Download += d.Index
	return d, err
}
