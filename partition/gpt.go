package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sort"
	"unicode/utf16"
)

var (
	// ErrTable means that neither copy of the partition table can be believed. The
	// message says what is wrong with each. Nothing on the disk may be written.
	ErrTable = errors.New("invalid partition table")
	// ErrNoPartition means that no partition has the label: another board's disk,
	// or the board file is wrong.
	ErrNoPartition = errors.New("no partition with this label")
	// ErrDuplicateLabel means that several partitions have the label, by accident
	// (a second disk with the same image) or on purpose. None may be written.
	ErrDuplicateLabel = errors.New("several partitions with this label")
)

// Part is one partition of a table.
type Part struct {
	Number      int    // 1-based place in the table, the N of /dev/sdaN
	Label       string // at most 36 UTF-16 units
	UUID, Type  string // lower case, as in /dev/disk/by-partuuid
	Start, Size int64  // in bytes
}

// Bounds on what a table may ask us to read. The usual table is 128 entries of
// 128 bytes; `sgdisk` makes up to 1024 without complaint.
const (
	gptSignature = "EFI PART"
	gptRevision  = 0x00010000
	gptHeader    = 92 // bytes, UEFI 2.10, table 5.5
	gptEntry     = 128
	maxEntries   = 1024
)

// ReadTable reads the GUID partition table (UEFI 2.10, section 5.3) of a disk
// with sectors of 512 or 4096 bytes: the primary copy, or the backup in the last
// sector if the primary is damaged. Partitions come in the order of their
// numbers.
//
// The table is untrusted input. Before it is used: both checksums, sizes and
// counts within bounds (at most 128 KiB of entries are read), every partition
// inside the usable area, no two overlapping, no UUID twice. Anything else is
// ErrTable. Labels may repeat; Find refuses those.
//
// The protective MBR is not looked at; the kernel does not use a GPT without one.
func ReadTable(d Disk, sectorSize int) ([]Part, error) {
	g, err := newGPT(d, sectorSize)
	if err != nil {
		return nil, err
	}
	parts, primary := g.read(1)
	if primary == nil {
		return parts, nil
	}
	parts, backup := g.read(g.last)
	if backup == nil {
		return parts, nil
	}
	return nil, fmt.Errorf("%w: primary: %w; backup: %w", ErrTable, primary, backup)
}

// CheckTable reads both copies of the table. It is ErrTable if one of them is
// damaged or they disagree: the disk works, and the next damage may be the last.
func CheckTable(d Disk, sectorSize int) error {
	g, err := newGPT(d, sectorSize)
	if err != nil {
		return err
	}
	one, primary := g.read(1)
	two, backup := g.read(g.last)
	switch {
	case primary != nil && backup != nil:
		return fmt.Errorf("%w: primary: %w; backup: %w", ErrTable, primary, backup)
	case primary != nil:
		return fmt.Errorf("%w: primary: %w", ErrTable, primary)
	case backup != nil:
		return fmt.Errorf("%w: backup: %w", ErrTable, backup)
	case len(one) != len(two):
		return fmt.Errorf("%w: %d partitions in the primary, %d in the backup", ErrTable, len(one), len(two))
	}
	for i := range one {
		if one[i] != two[i] {
			return fmt.Errorf("%w: partition %d differs between primary and backup", ErrTable, one[i].Number)
		}
	}
	return nil
}

// Find returns the partition with the label.
func Find(parts []Part, label string) (Part, error) {
	var found []Part
	for _, p := range parts {
		if p.Label == label {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return Part{}, fmt.Errorf("%w: %q", ErrNoPartition, label)
	case 1:
		return found[0], nil
	}
	return Part{}, fmt.Errorf("%w: %q (numbers %d and %d)", ErrDuplicateLabel, label, found[0].Number, found[1].Number)
}

// gpt reads tables of one disk. Places are sector numbers (LBA).
type gpt struct {
	disk   Disk
	sector int64
	last   uint64 // the last sector of the disk
}

func newGPT(d Disk, sectorSize int) (gpt, error) {
	if sectorSize != 512 && sectorSize != 4096 {
		return gpt{}, fmt.Errorf("%w: sectors of %d bytes", ErrTable, sectorSize)
	}
	sectors := d.Size() / int64(sectorSize)
	if sectors < 3 { // protective MBR and two headers
		return gpt{}, fmt.Errorf("%w: disk of %d bytes", ErrTable, d.Size())
	}
	return gpt{disk: d, sector: int64(sectorSize), last: uint64(sectors - 1)}, nil
}

// header is what we keep of a header that has been checked against the disk.
type header struct {
	firstUsable, lastUsable uint64
	entries                 uint64
	count, size             uint32
	sum                     uint32
}

// read returns the partitions of the copy whose header is at the given sector.
func (g gpt) read(at uint64) ([]Part, error) {
	h, err := g.header(at)
	if err != nil {
		return nil, err
	}
	array := make([]byte, int64(h.count)*int64(h.size))
	if err := full(array, func(p []byte) (int, error) { return g.disk.ReadAt(p, int64(h.entries)*g.sector) }); err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	if crc32.ChecksumIEEE(array) != h.sum {
		return nil, errors.New("checksum of the entries does not match")
	}
	var parts []Part
	for i := range int(h.count) {
		e := array[i*int(h.size):][:gptEntry]
		if isZero(e[:16]) { // an unused entry has no type
			continue
		}
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if first > last || first < h.firstUsable || last > h.lastUsable {
			return nil, fmt.Errorf("partition %d: sectors %d to %d are not inside the usable %d to %d", i+1, first, last, h.firstUsable, h.lastUsable)
		}
		parts = append(parts, Part{
			Number: i + 1,
			Label:  gptLabel(e[56:128]),
			UUID:   guid(e[16:32]),
			Type:   guid(e[:16]),
			Start:  int64(first) * g.sector,
			Size:   int64(last-first+1) * g.sector,
		})
	}
	return parts, disjoint(parts)
}

// header reads and checks the header at a sector; errors say what is wrong with
// this copy.
func (g gpt) header(at uint64) (header, error) {
	b := make([]byte, g.sector)
	if err := full(b, func(p []byte) (int, error) { return g.disk.ReadAt(p, int64(at)*g.sector) }); err != nil {
		return header{}, fmt.Errorf("read header: %w", err)
	}
	if string(b[:8]) != gptSignature {
		return header{}, errors.New("no signature")
	}
	if r := binary.LittleEndian.Uint32(b[8:]); r != gptRevision {
		return header{}, fmt.Errorf("revision %#x", r)
	}
	length := binary.LittleEndian.Uint32(b[12:])
	if length < gptHeader || int64(length) > g.sector {
		return header{}, fmt.Errorf("header of %d bytes", length)
	}
	sum := binary.LittleEndian.Uint32(b[16:])
	clear(b[16:20]) // the checksum is taken with its own field zero
	if crc32.ChecksumIEEE(b[:length]) != sum {
		return header{}, errors.New("checksum of the header does not match")
	}
	if own := binary.LittleEndian.Uint64(b[24:]); own != at {
		return header{}, fmt.Errorf("header of sector %d in sector %d", own, at)
	}
	h := header{
		firstUsable: binary.LittleEndian.Uint64(b[40:]),
		lastUsable:  binary.LittleEndian.Uint64(b[48:]),
		entries:     binary.LittleEndian.Uint64(b[72:]),
		count:       binary.LittleEndian.Uint32(b[80:]),
		size:        binary.LittleEndian.Uint32(b[84:]),
		sum:         binary.LittleEndian.Uint32(b[88:]),
	}
	return h, g.checkHeader(h, at)
}

// checkHeader checks that what the header points at is on the disk, is of a
// reasonable size, and is not also given to partitions.
func (g gpt) checkHeader(h header, at uint64) error {
	switch {
	case h.size < gptEntry || h.size > 4096 || h.size&(h.size-1) != 0: // 128 × 2^n
		return fmt.Errorf("entries of %d bytes", h.size)
	case h.count == 0 || h.count > maxEntries || h.count*h.size > maxEntries*gptEntry:
		return fmt.Errorf("%d entries of %d bytes", h.count, h.size)
	case h.firstUsable < 2 || h.firstUsable > h.lastUsable || h.lastUsable >= g.last:
		return fmt.Errorf("usable sectors %d to %d on a disk that ends with sector %d", h.firstUsable, h.lastUsable, g.last)
	case at >= h.firstUsable && at <= h.lastUsable:
		return errors.New("header inside the usable sectors")
	}
	sectors := (uint64(h.count)*uint64(h.size) + uint64(g.sector) - 1) / uint64(g.sector)
	// Each copy must leave room for the other, which may not be readable.
	if h.firstUsable < 2+sectors || h.lastUsable+sectors >= g.last {
		return errors.New("usable sectors leave no room for both tables")
	}
	if h.entries < 2 || h.entries > g.last || sectors > g.last-h.entries+1 {
		return fmt.Errorf("entries at sector %d are not on the disk", h.entries)
	}
	end := h.entries + sectors // the first sector behind the entries
	if h.entries <= h.lastUsable && end > h.firstUsable {
		return errors.New("entries inside the usable sectors")
	}
	if at >= h.entries && at < end {
		return errors.New("entries on top of the header")
	}
	return nil
}

// disjoint checks that no two partitions share a sector or a UUID.
func disjoint(parts []Part) error {
	sorted := make([]Part, len(parts))
	copy(sorted, parts)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Start < sorted[j].Start })
	seen := make(map[string]int, len(sorted))
	for i, p := range sorted {
		if i > 0 && p.Start < sorted[i-1].Start+sorted[i-1].Size {
			return fmt.Errorf("partitions %d and %d overlap", sorted[i-1].Number, p.Number)
		}
		if other, ok := seen[p.UUID]; ok {
			return fmt.Errorf("partitions %d and %d have the same UUID", other, p.Number)
		}
		seen[p.UUID] = p.Number
	}
	return nil
}

// gptLabel decodes UTF-16 that ends at a zero unit or with the field.
func gptLabel(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// guid formats the mixed-endian bytes of a GUID (UEFI 2.10, appendix A).
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b),
		binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
