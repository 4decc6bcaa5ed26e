package image

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/partition"
)

// clearRange makes [off, off+size) of d read as zeros. f is the same file or block
// device.
//
// A hole is punched where the file system or the disk can do that: the kernel
// reports success only if the range reads as zeros from then on, and it takes no
// time and no write cycles. Where it cannot, what is not zero already is written.
func clearRange(f *os.File, d partition.Disk, off, size int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, size)
	if err == nil {
		return nil
	}
	buf := make([]byte, copyChunk)
	for end := off + size; off < end; {
		chunk := buf[:min(copyChunk, end-off)]
		if _, err := d.ReadAt(chunk, off); err != nil && err != io.EOF {
			return fmt.Errorf("clear %d bytes at %d: %w", size, off, err)
		}
		for start := 0; start < len(chunk); start += pageSize {
			page := chunk[start:min(start+pageSize, len(chunk))]
			if isZero(page) {
				continue
			}
			if _, err := d.WriteAt(zeroChunk[:len(page)], off+int64(start)); err != nil {
				return fmt.Errorf("clear %d bytes at %d: %w", size, off, err)
			}
		}
		off += int64(len(chunk))
	}
	return nil
}
