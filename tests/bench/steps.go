package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/tandem-ota/tandem/updater/delta"
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
	debug.SetGCPercent(50) // as the program tandem does
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
