package image

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
)

// UKI is a unified kernel image: one EFI program that firmware can measure and
// verify as a whole (https://uapi-group.org/specifications/specs/unified_kernel_image).
type UKI struct {
	Stub      []byte // linuxx64.efi.stub of package systemd-boot-efi
	OSRelease []byte // as /etc/os-release
	Cmdline   string
	Initrd    []byte
	Kernel    []byte // a bzImage with an EFI entry
}

// ErrStub means that the stub is not an EFI program that sections can be added to.
var ErrStub = errors.New("unusable EFI stub")

// Offsets in the headers (PE format specification, "Optional Header").
const (
	coffSize       = 24 // with the signature
	sectionHeader  = 40
	optInitialized = 8
	optSectionAlig = 32
	optFileAlig    = 36
	optImageSize   = 56
	optHeadersSize = 60
	optChecksum    = 64
	readOnlyData   = pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ
	pageSize       = 4096
)

// Build returns the program.
//
// Content begins at a multiple of 4096 in the file, so that what two releases
// have in common lies on equal blocks of the medium. The kernel comes last: it
// unpacks itself in place and may use the memory behind its section.
func (u UKI) Build() ([]byte, error) {
	f, err := pe.NewFile(bytes.NewReader(u.Stub))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStub, err)
	}
	le := binary.LittleEndian
	if len(u.Stub) < 0x40 {
		return nil, fmt.Errorf("%w: too short", ErrStub)
	}
	peAt := int(le.Uint32(u.Stub[0x3c:]))
	opt := peAt + coffSize
	table := opt + int(f.SizeOfOptionalHeader)
	if f.SizeOfOptionalHeader < optChecksum+4 || table+len(f.Sections)*sectionHeader > len(u.Stub) {
		return nil, fmt.Errorf("%w: headers are cut short", ErrStub)
	}
	sections := []struct {
		name string
		data []byte
	}{{".osrel", u.OSRelease}, {".cmdline", []byte(u.Cmdline)}, {".initrd", u.Initrd}, {".linux", u.Kernel}}

	headers := int(le.Uint32(u.Stub[opt+optHeadersSize:]))
	if need := table + (len(f.Sections)+len(sections))*sectionHeader; need > headers {
		return nil, fmt.Errorf("%w: %d bytes of headers, %d needed for more sections", ErrStub, headers, need)
	}
	for _, at := range []int{optSectionAlig, optFileAlig} {
		if a := le.Uint32(u.Stub[opt+at:]); a == 0 || pageSize%a != 0 {
			return nil, fmt.Errorf("%w: alignment %d, want a divisor of %d", ErrStub, a, pageSize)
		}
	}
	memory := uint32(pageSize)
	for _, s := range f.Sections {
		memory = max(memory, s.VirtualAddress+s.VirtualSize)
	}
	out := bytes.Clone(u.Stub)
	count := len(f.Sections)
	added := uint32(0)
	for _, s := range sections {
		if len(s.data) == 0 {
			return nil, fmt.Errorf("build unified kernel image: section %s is empty", s.name)
		}
		out = pad(out, pageSize)
		memory = align(memory, pageSize)
		if uint64(memory)+uint64(len(s.data)) > 1<<31 || len(out)+len(s.data) > 1<<31 {
			return nil, fmt.Errorf("build unified kernel image: section %s: %d bytes are too many", s.name, len(s.data))
		}
		size := uint32(len(s.data))
		h := out[table+count*sectionHeader:][:sectionHeader]
		if !bytes.Equal(h, make([]byte, sectionHeader)) {
			return nil, fmt.Errorf("%w: something lies behind the section table", ErrStub)
		}
		copy(h[:8], s.name)
		le.PutUint32(h[8:], size)
		le.PutUint32(h[12:], memory)
		le.PutUint32(h[16:], align(size, pageSize))
		le.PutUint32(h[20:], uint32(len(out)))
		le.PutUint32(h[36:], readOnlyData)
		out = pad(append(out, s.data...), pageSize)
		memory += size
		added += align(size, pageSize)
		count++
	}
	le.PutUint16(out[peAt+6:], uint16(count))
	le.PutUint32(out[opt+optInitialized:], le.Uint32(out[opt+optInitialized:])+added)
	le.PutUint32(out[opt+optImageSize:], align(memory, pageSize))
	le.PutUint32(out[opt+optChecksum:], peChecksum(out, opt+optChecksum))
	return out, nil
}

// peChecksum is the sum that firmware may check (IMAGHELP's CheckSumMappedFile):
// 16-bit words added with the carry folded back, its own field taken as zero,
// plus the length. data is a whole number of pages.
func peChecksum(data []byte, field int) uint32 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		if i == field || i == field+2 {
			continue
		}
		sum += uint32(binary.LittleEndian.Uint16(data[i:]))
		sum = sum&0xffff + sum>>16
	}
	return sum + uint32(len(data))
}

func align[T int | int64 | uint32](n, to T) T { return (n + to - 1) / to * to }

// pad appends zeros up to a multiple of to.
func pad(b []byte, to int) []byte {
	return append(b, make([]byte, align(len(b), to)-len(b))...)
}
