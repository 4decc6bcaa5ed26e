package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/partition"
)

var (
	// ErrNoImage means that the file is no disk image: it has no partition table
	// that could be believed. Nothing was written.
	ErrNoImage = errors.New("not a disk image")
	// ErrTooSmall means that the image does not fit. Nothing was written.
	ErrTooSmall = errors.New("the disk is smaller than the image")
	// ErrReadBack means that the medium holds something else than was written.
	// Write it again, and replace the medium if it recurs.
	ErrReadBack = errors.New("the medium holds other bytes than were written")
)

// Progress tells how far Flash is. Bytes are those of the image, holes included,
// and count as done only when the medium has them.
type Progress struct {
	Phase       string // "write", then "check"
	Done, Total int64
}

// flashSync is how many bytes are written between syncs. Without them the page cache
// swallows an image in a moment, and progress says nothing for the minutes after.
const flashSync = 32 << 20

// Flash writes the disk image to the device and reads it back from the medium.
// The device may also be a regular file, for trying. It must be there, and not in
// use: neither it nor a partition of it mounted or held.
//
// Holes of the image become zeros on the device, without writing where the device
// can be told so (an old slot record or file system that showed through a hole
// could be taken for a new one). If the device is larger than the image, the
// backup of the partition table goes to its end, where the next tool looks for it.
//
// Nil means that the device holds the image, read past the page cache, under a
// sound partition table. The table is taken away first and written last, so that
// after an error or a power cut there is none, and nobody takes the device for a
// good one. Calling it again is safe.
func Flash(ctx context.Context, image, device string, progress func(Progress)) error {
	if err := flash(ctx, image, device, progress); err != nil {
		return fmt.Errorf("write %s to %s: %w", image, device, err)
	}
	return nil
}

type flasher struct {
	image    *os.File
	out      *partition.File
	raw      *os.File // the same device, for what partition.File does not offer
	parts    []partition.Part
	size     int64 // of the image
	front    int64 // where the first partition begins
	data     []extent
	progress func(Progress)
}

func flash(ctx context.Context, image, device string, progress func(Progress)) error {
	f, err := openFlash(image, device)
	if f != nil {
		defer f.close()
	}
	if err != nil {
		return err
	}
	f.progress = progress
	// From here on the device is nothing until its table is back.
	for _, r := range []extent{{0, f.front}, {align(f.out.Size()-(1<<20), pageSize), 1 << 20}} {
		if err := clearRange(f.raw, f.out, r.off, min(r.size, f.out.Size()-r.off)); err != nil {
			return err
		}
	}
	if err := f.out.Sync(); err != nil {
		return err
	}
	if err := f.write(ctx); err != nil {
		return err
	}
	if err := f.table(); err != nil {
		return err
	}
	if err := f.check(ctx); err != nil {
		return err
	}
	// Whoever holds the disk keeps the kernel from reading its table again.
	if err := f.out.Close(); err != nil {
		return err
	}
	f.out = nil
	// So that the kernel shows the new partitions. If it refuses (or this is a file),
	// it shows them when the device is plugged in again.
	_, _ = unix.IoctlRetInt(int(f.raw.Fd()), unix.BLKRRPART)
	return nil
}

// openFlash opens both ends and refuses what must not be written.
func openFlash(image, device string) (*flasher, error) {
	f := new(flasher)
	var err error
	if f.image, err = os.Open(image); err != nil {
		return nil, err
	}
	in, err := partition.OpenRead(image)
	if err != nil {
		return f, err
	}
	defer in.Close()
	f.size = in.Size()
	// Disks of both kinds of sectors; an image has only one kind of table.
	sector := 512
	if f.parts, err = partition.ReadTable(in, sector); err != nil {
		var err4k error
		sector = 4096
		if f.parts, err4k = partition.ReadTable(in, sector); err4k != nil {
			return f, fmt.Errorf("%w: %w", ErrNoImage, err)
		}
	}
	if len(f.parts) == 0 {
		return f, fmt.Errorf("%w: no partitions", ErrNoImage)
	}
	f.front = f.parts[0].Start
	for _, p := range f.parts {
		f.front = min(f.front, p.Start)
	}
	if f.data, err = extents(f.image, f.size); err != nil {
		return f, err
	}
	if f.out, err = partition.OpenFile(device); err != nil {
		return f, explainBusy(device, err)
	}
	if f.raw, err = os.OpenFile(device, os.O_RDWR, 0); err != nil {
		return f, err
	}
	a, errA := f.image.Stat()
	b, errB := f.raw.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return f, err
	}
	switch {
	case os.SameFile(a, b):
		return f, errors.New("image and device are the same file")
	case f.out.Size() < f.size:
		return f, fmt.Errorf("%w: %d bytes, the image has %d", ErrTooSmall, f.out.Size(), f.size)
	case b.Mode().Type() != 0 && f.out.SectorSize() != sector:
		return f, fmt.Errorf("the disk has sectors of %d bytes, the image is made for %d", f.out.SectorSize(), sector)
	}
	return f, nil
}

func (f *flasher) close() {
	f.image.Close()
	if f.out != nil {
		f.out.Close()
	}
	if f.raw != nil {
		f.raw.Close()
	}
}

// explainBusy says which partition is in use, and by what.
func explainBusy(device string, err error) error {
	if !errors.Is(err, partition.ErrBusy) {
		return err
	}
	if p, e := filepath.EvalSymlinks(device); e == nil {
		device = p
	}
	host := partition.ThisHost()
	nodes, nodesErr := host.Nodes()
	if nodesErr != nil {
		return err
	}
	for _, n := range nodes {
		if n.Disk != strings.TrimPrefix(device, host.Dev+"/") && n.Path != device {
			continue
		}
		if use := host.InUse(n); use != nil {
			return fmt.Errorf("%w: %w", err, use)
		}
	}
	return err
}

// each calls do for the pieces of the image in order, holes in one piece. The
// front of the disk, up to the first partition, is left out.
func (f *flasher) each(ctx context.Context, data func(off int64, chunk []byte) error, hole func(off, size int64) error) error {
	buf := make([]byte, copyChunk)
	at := f.front
	for _, e := range append(f.data, extent{f.size, 0}) {
		if e.off > at {
			if err := hole(at, e.off-at); err != nil {
				return err
			}
		}
		for at = max(at, e.off); at < e.off+e.size; {
			if err := ctx.Err(); err != nil {
				return err
			}
			chunk := buf[:min(copyChunk, e.off+e.size-at)]
			if _, err := f.image.ReadAt(chunk, at); err != nil {
				return err
			}
			if err := data(at, chunk); err != nil {
				return err
			}
			at += int64(len(chunk))
		}
	}
	return nil
}

func (f *flasher) report(phase string, done int64) {
	if f.progress != nil {
		f.progress(Progress{phase, done, f.size})
	}
}

func (f *flasher) write(ctx context.Context) error {
	dirty := 0
	err := f.each(ctx, func(off int64, chunk []byte) error {
		if _, err := f.out.WriteAt(chunk, off); err != nil {
			return err
		}
		if dirty += len(chunk); dirty < flashSync {
			return nil
		}
		dirty = 0
		if err := f.out.Sync(); err != nil {
			return err
		}
		f.report("write", off+int64(len(chunk)))
		return nil
	}, func(off, size int64) error {
		// In pieces, for the devices where zeros have to be written.
		for end := off + size; off < end; off += flashSync {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := clearRange(f.raw, f.out, off, min(flashSync, end-off)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := f.out.Sync(); err != nil {
		return err
	}
	f.report("write", f.size)
	return nil
}

// table writes the partition table: as it is if the device is as large as the
// image, else for the size of the device.
func (f *flasher) table() error {
	if f.out.Size() == f.size {
		front := make([]byte, f.front)
		if _, err := f.image.ReadAt(front, 0); err != nil {
			return err
		}
		if _, err := f.out.WriteAt(front, 0); err != nil {
			return err
		}
		return f.out.Sync()
	}
	sector := int64(f.out.SectorSize())
	// The image's own backup would lie in the midst of the disk, where recovery
	// tools find it.
	if err := clearRange(f.raw, f.out, f.tail(), f.size-f.tail()); err != nil {
		return err
	}
	t, err := gpt.Read(file.New(f.image, true), int(sector), int(sector))
	if err != nil {
		return fmt.Errorf("read the image's partition table: %w", err)
	}
	size := f.out.Size() / sector * sector
	t.Resize(uint64(size))
	out, err := file.New(f.raw, false).Writable()
	if err != nil {
		return err
	}
	if err := t.Write(out, size); err != nil {
		return fmt.Errorf("write the partition table: %w", err)
	}
	return f.out.Sync()
}

// tail is where the image's own backup table can begin at the earliest: behind
// its last partition.
func (f *flasher) tail() int64 {
	var end int64
	for _, p := range f.parts {
		end = max(end, p.Start+p.Size)
	}
	return end
}

// check reads everything back, past the page cache.
func (f *flasher) check(ctx context.Context) error {
	if err := f.out.DropCache(); err != nil {
		return err
	}
	back := make([]byte, copyChunk)
	end := f.size
	if f.out.Size() != f.size {
		end = f.tail()
	}
	compare := func(off int64, want []byte) error {
		if off >= end {
			return nil
		}
		want = want[:min(int64(len(want)), end-off)]
		got := back[:len(want)]
		if _, err := f.out.ReadMedium(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w: at byte %d", ErrReadBack, off)
		}
		f.report("check", off+int64(len(want)))
		return nil
	}
	err := f.each(ctx, compare, func(off, size int64) error {
		for stop := off + size; off < stop; off += copyChunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := compare(off, zeroChunk[:min(copyChunk, stop-off)]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	sector := 512
	if f.out.SectorSize() == 4096 {
		sector = 4096
	}
	if err := partition.CheckTable(f.out, sector); err != nil {
		return err
	}
	parts, err := partition.ReadTable(f.out, sector)
	if err != nil {
		return err
	}
	if fmt.Sprint(parts) != fmt.Sprint(f.parts) {
		return fmt.Errorf("%w: the partition table", ErrReadBack)
	}
	f.report("check", f.size)
	return nil
}
