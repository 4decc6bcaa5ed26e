package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// CopySparse copies a file and keeps its holes. The copy appears under its name
// only when it is whole; if CopySparse fails, calling it again is safe.
func CopySparse(ctx context.Context, dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	defer in.Close()
	size, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	temp := dst + ".new"
	out, err := os.Create(temp)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	defer os.Remove(temp)
	defer out.Close()
	err = out.Truncate(size)
	for at := int64(0); err == nil && at < size; {
		if err = ctx.Err(); err != nil {
			break
		}
		var end int64
		at, end, err = nextData(in, at, size)
		if err != nil || at >= size {
			break
		}
		if _, err = in.Seek(at, io.SeekStart); err != nil {
			break
		}
		if _, err = out.Seek(at, io.SeekStart); err != nil {
			break
		}
		_, err = io.CopyN(out, in, end-at)
		at = end
	}
	if err == nil {
		err = out.Close()
	}
	if err == nil {
		err = os.Rename(temp, dst)
	}
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	return nil
}

// nextData finds the next range at or after at that is not a hole (lseek(2),
// SEEK_DATA). A file system that knows no holes has one range.
func nextData(f *os.File, at, size int64) (start, end int64, err error) {
	const seekData, seekHole = 3, 4
	start, err = f.Seek(at, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // only a hole is left
		return size, size, nil
	case errors.Is(err, syscall.EINVAL):
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = f.Seek(start, seekHole)
	return start, end, err
}

// Partition is where a partition is on a disk, in bytes, as sfdisk sees it: the
// lab asks an independent tool and not the code under test.
type Partition struct {
	Label, UUID, Type string
	Start, Size       int64
}

// Partitions lists the partitions of a disk image by label. It needs sfdisk.
func Partitions(ctx context.Context, image string) (map[string]Partition, error) {
	tool, err := exec.LookPath("sfdisk")
	if err != nil {
		return nil, &MissingError{map[string]string{"sfdisk": "fdisk"}}
	}
	out, err := exec.CommandContext(ctx, tool, "--json", image).Output()
	if err != nil {
		return nil, fmt.Errorf("read partition table of %s: %w", image, err)
	}
	var t struct {
		PartitionTable struct {
			SectorSize int64
			Partitions []struct {
				Start, Size      int64
				Type, UUID, Name string
			}
		}
	}
	if err := json.Unmarshal(out, &t); err != nil {
		return nil, fmt.Errorf("read partition table of %s: %w", image, err)
	}
	sector := t.PartitionTable.SectorSize
	if sector == 0 {
		sector = 512
	}
	parts := map[string]Partition{}
	for _, p := range t.PartitionTable.Partitions {
		parts[p.Name] = Partition{p.Name, p.UUID, p.Type, p.Start * sector, p.Size * sector}
	}
	return parts, nil
}

// Extract writes n bytes at off of the partition with this label to the file
// dst; n below 0 means up to the partition's end. The machine must be off or
// frozen for the bytes to belong together.
func (d *Device) Extract(ctx context.Context, label string, off, n int64, dst string) error {
	disk, p, err := d.open(ctx, label, os.O_RDONLY, off, n)
	if err != nil {
		return err
	}
	defer disk.Close()
	if n < 0 {
		n = p.Size - off
	}
	out, err := os.Create(dst)
	if err != nil {
		return fmt.Errorf("extract partition %s of %s: %w", label, d.cfg.Name, err)
	}
	_, err = io.Copy(out, io.NewSectionReader(disk, p.Start+off, n))
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("extract partition %s of %s: %w", label, d.cfg.Name, err)
	}
	return nil
}

// Allocated is how many bytes of a partition were ever written, at the
// granularity of the host's file system. The machine may run.
func (d *Device) Allocated(ctx context.Context, label string) (int64, error) {
	disk, p, err := d.open(ctx, label, os.O_RDONLY, 0, 0)
	if err != nil {
		return 0, err
	}
	defer disk.Close()
	var sum int64
	for at, end := p.Start, p.Start+p.Size; at < end; {
		start, stop, err := nextData(disk, at, end)
		if err != nil {
			return 0, fmt.Errorf("look at partition %s of %s: %w", label, d.cfg.Name, err)
		}
		sum += max(0, min(stop, end)-start)
		at = max(stop, start)
	}
	return sum, nil
}

// Overwrite puts bytes into a partition behind the guest's back, as a failing
// medium or a careless tool does. The machine must be off.
func (d *Device) Overwrite(ctx context.Context, label string, off int64, p []byte) error {
	if _, err := d.running(); err == nil {
		return fmt.Errorf("overwrite partition %s of %s: %w", label, d.cfg.Name, ErrOn)
	}
	disk, part, err := d.open(ctx, label, os.O_WRONLY, off, int64(len(p)))
	if err != nil {
		return err
	}
	_, err = disk.WriteAt(p, part.Start+off)
	if err = errors.Join(err, disk.Close()); err != nil {
		return fmt.Errorf("overwrite partition %s of %s: %w", label, d.cfg.Name, err)
	}
	return nil
}

func (d *Device) open(ctx context.Context, label string, mode int, off, n int64) (*os.File, Partition, error) {
	parts, err := Partitions(ctx, d.Disk())
	if err != nil {
		return nil, Partition{}, err
	}
	p, ok := parts[label]
	if !ok {
		return nil, p, fmt.Errorf("%s has no partition %q", d.cfg.Name, label)
	}
	if off < 0 || off > p.Size || off+max(n, 0) > p.Size {
		return nil, p, fmt.Errorf("%d bytes at %d are not inside partition %s of %d bytes", n, off, label, p.Size)
	}
	f, err := os.OpenFile(d.Disk(), mode, 0)
	if err != nil {
		return nil, p, fmt.Errorf("open disk of %s: %w", d.cfg.Name, err)
	}
	return f, p, nil
}
