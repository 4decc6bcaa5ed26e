package mkrelease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// SlotImages are the images of a slot, from wherever they are.
type SlotImages struct {
	Names  []string // as "root"; of a single file its name
	Images []mkdelta.Image
	close  func() error
}

// Close closes them.
func (s *SlotImages) Close() error { return s.close() }

// OpenImages opens the slot images of a release (a folder or tar, from its full payloads), of a folder that tandem
// image slots made, or one image that is a file. tmp is where images are rebuilt.
func OpenImages(ctx context.Context, path, tmp string, progress Progress) (*SlotImages, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		if tar, err := isTar(path); err != nil || !tar {
			if err != nil {
				return nil, err
			}
			return openFiles([]string{filepath.Base(path)}, []string{path})
		}
	} else {
		data, err := os.ReadFile(filepath.Join(path, "slots.json"))
		if err == nil {
			return openSlots(path, data)
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	b, err := openBase(path)
	if err != nil {
		return nil, err
	}
	s := &SlotImages{close: func() error {
		var err error
		for _, f := range b.images {
			err = errors.Join(err, f.Close())
		}
		return errors.Join(err, b.Close())
	}}
	for _, im := range b.m.Images {
		if im.Type != manifest.TypeSlot {
			continue
		}
		f, err := b.rebuild(ctx, im, tmp, progress)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.Names, s.Images = append(s.Names, im.Name), append(s.Images, mkdelta.Image{ReaderAt: f, Size: im.Size})
	}
	return s, nil
}

// isTar tells a release from an image: the front of an ext4 image reads like the end of a tar.
func isTar(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	magic := make([]byte, 5)
	n, err := f.ReadAt(magic, 257) // of a tar header: POSIX.1-1988, ustar
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return string(magic[:n]) == "ustar", nil
}

func openSlots(dir string, data []byte) (*SlotImages, error) {
	var set slotSet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("slots.json: %w", err)
	}
	var names, paths []string
	for _, im := range set.Images {
		if im.File != filepath.Base(im.File) {
			return nil, fmt.Errorf("slots.json: file %q is not beside it", im.File)
		}
		names, paths = append(names, im.Name), append(paths, filepath.Join(dir, im.File))
	}
	return openFiles(names, paths)
}

func openFiles(names, paths []string) (*SlotImages, error) {
	var all []*os.File
	s := &SlotImages{Names: names, close: func() error {
		var err error
		for _, f := range all {
			err = errors.Join(err, f.Close())
		}
		return err
	}}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		all = append(all, f)
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.Images = append(s.Images, mkdelta.Image{ReaderAt: f, Size: info.Size()})
	}
	return s, nil
}
