package mkrelease

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tandem-ota/tandem/updater/release"
)

// Pack writes the release in a folder as one tar file, for a stick. The same
// folder gives the same bytes. The file appears under its name only when it is
// whole.
func Pack(ctx context.Context, dir, file string, progress Progress) error {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	r, err := release.Open(dir)
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(file), ".pack-")
	if err != nil {
		return err
	}
	err = errors.Join(pack(ctx, dir, out, progress), out.Chmod(0o644), out.Sync(), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("pack release %s: %w", dir, err), os.Remove(out.Name()))
	}
	return nil
}

func pack(ctx context.Context, dir string, out io.Writer, progress Progress) error {
	// The index comes first, so that a reader of a stream knows what follows.
	names := []string{"oci-layout", "index.json"}
	var total, before int64
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		total += info.Size()
		name, err := filepath.Rel(dir, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for _, name := range names {
		n, err := packFile(ctx, w, dir, name, func(done int64) { progress("pack", before+done, total) })
		if err != nil {
			return err
		}
		before += n
	}
	return w.Close()
}

func packFile(ctx context.Context, w *tar.Writer, dir, name string, progress func(int64)) (int64, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: %s is %s", release.ErrUnsafe, name, info.Mode().Type())
	}
	// No times, owners and modes: they would make equal releases differ.
	h := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size(), Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		return 0, err
	}
	return info.Size(), copyAll(ctx, w, io.LimitReader(f, info.Size()), progress)
}
