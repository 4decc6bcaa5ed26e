package grubenv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/bootctl"
)

// Layout of the environment partition, in bytes from its start. Each copy has a
// 64 KiB cluster to itself, so that no flash page or RAID stripe of usual size
// holds two of them.
const (
	Copy0Offset     = 64 << 10
	Copy1Offset     = 128 << 10
	ConfirmedOffset = 192 << 10
	// LedgerOffset and LedgerSize are room for the log that package tpm keeps
	// outside the data partition. This package only keeps it allocated.
	LedgerOffset = 256 << 10
	LedgerSize   = 64 << 10
	// Size is the least size of the partition; what is behind it stays unused.
	Size = 1 << 20
)

// The file system around the copies: FAT12, written once and never changed.
const (
	clusterSize = 64 << 10
	rootEntries = 16
	fatCopies   = 2
	// Reserved sectors, two FATs and the root directory of one sector each fill
	// the first 64 KiB, so that cluster n begins at (n-1) * 64 KiB.
	reservedSectors = clusterSize/SectorSize - fatCopies - rootEntries*32/SectorSize
)

// Disk is the environment partition; package partition has it.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64
}

type sector struct {
	at    int64
	bytes []byte
}

// metaSectors are the sectors of the file system that are not zero. They are
// constant: nothing that GRUB or Tandem does changes them.
var metaSectors = []sector{
	{0, bootSector()},
	{reservedSectors * SectorSize, fatSector()},
	{(reservedSectors + 1) * SectorSize, fatSector()},
	{(reservedSectors + fatCopies) * SectorSize, rootDirectory()},
}

func bootSector() []byte {
	b := make([]byte, SectorSize)
	copy(b, "\xeb\x3c\x90TANDEM  ")
	le := binary.LittleEndian
	le.PutUint16(b[11:], SectorSize)
	b[13] = clusterSize / SectorSize
	le.PutUint16(b[14:], reservedSectors)
	b[16] = fatCopies
	le.PutUint16(b[17:], rootEntries)
	le.PutUint16(b[19:], Size/SectorSize)
	b[21] = 0xf8             // fixed disk
	le.PutUint16(b[22:], 1)  // sectors per FAT
	le.PutUint16(b[24:], 32) // sectors per track and heads: unused, not zero
	le.PutUint16(b[26:], 2)
	b[36] = 0x80 // drive number
	b[38] = 0x29 // the three fields below are there
	le.PutUint32(b[39:], 0x7a4de301)
	copy(b[43:], "TANDEM ENV ")
	copy(b[54:], "FAT12   ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

// fatSector allocates clusters 2 to 5, each the one and last of its file.
func fatSector() []byte {
	b := make([]byte, SectorSize)
	put := func(n int, v uint16) { // 12-bit little-endian entries
		at := n * 3 / 2
		w := binary.LittleEndian.Uint16(b[at:])
		if n%2 == 0 {
			w = w&0xf000 | v
		} else {
			w = w&0x000f | v<<4
		}
		binary.LittleEndian.PutUint16(b[at:], w)
	}
	put(0, 0xff8)
	for n := 1; n <= 5; n++ {
		put(n, 0xfff)
	}
	return b
}

func rootDirectory() []byte {
	b := make([]byte, SectorSize)
	entry := func(i int, name string, attr byte, cluster uint16, size uint32) {
		e := b[i*32 : i*32+32]
		copy(e, name)
		e[11] = attr
		e[12] = 0x18          // show name and extension in lower case
		const date = 1<<5 | 1 // 1980-01-01
		for _, at := range []int{16, 18, 24} {
			binary.LittleEndian.PutUint16(e[at:], date)
		}
		binary.LittleEndian.PutUint16(e[26:], cluster)
		binary.LittleEndian.PutUint32(e[28:], size)
	}
	const archive, label = 0x20, 0x08
	entry(0, "TANDEM ENV ", label, 0, 0)
	b[12] = 0
	// The files end after the first sector of their block: GRUB writes back all
	// of a file, and so it writes one sector and never two.
	entry(1, "COPY0   ENV", archive, Copy0Offset/clusterSize+1, SectorSize)
	entry(2, "COPY1   ENV", archive, Copy1Offset/clusterSize+1, SectorSize)
	entry(3, "CONFIRM ENV", archive, ConfirmedOffset/clusterSize+1, SectorSize)
	entry(4, "LEDGER  BIN", archive, LedgerOffset/clusterSize+1, LedgerSize)
	return b
}

// Format writes the whole environment partition with record r in all copies, as
// in the factory: equal records give equal bytes.
//
// On nil the record is on the medium and was read back.
// After an error the partition holds anything or nothing.
// Calling it again is safe; calling it on a device in use loses its record.
func Format(d Disk, r bootctl.Record) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("format environment partition: %w", err)
	}
	if d.Size() < Size {
		return fmt.Errorf("format environment partition: %d bytes, want at least %d", d.Size(), Size)
	}
	image := Image(r)
	if _, err := d.WriteAt(image, 0); err != nil {
		return fmt.Errorf("format environment partition: %w", err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("format environment partition: %w", err)
	}
	back := make([]byte, len(image))
	if err := read(d, back, 0); err != nil {
		return fmt.Errorf("format environment partition: %w", err)
	}
	if !bytes.Equal(back, image) {
		return fmt.Errorf("format environment partition: %w", ErrReadBack)
	}
	return nil
}

// Image returns the Size bytes that Format writes. r must be sound.
func Image(r bootctl.Record) []byte {
	image := make([]byte, Size)
	for _, m := range metaSectors {
		copy(image[m.at:], m.bytes)
	}
	// Copy 0 is the newer one, as if it had been saved after copy 1.
	copy(image[Copy1Offset:], Copy{Record: r, Generation: generations - 1}.Block())
	copy(image[Copy0Offset:], Copy{Record: r}.Block())
	copy(image[ConfirmedOffset:], confirmed(r.Good).Block())
	return image
}

// confirmed is the copy that is written only at commit. Since what happens to
// the other slot later never reaches it, it says of that slot the only thing
// that stays safe: bad.
func confirmed(good bootctl.Slot) Copy {
	r, err := bootctl.Record{Good: good, A: bootctl.OK, B: bootctl.OK}.Invalidate(good.Other())
	if err != nil {
		panic(err) // the rules of bootctl allow it for each slot
	}
	return Copy{Record: r}
}
