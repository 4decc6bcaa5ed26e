// Package compressed knows the files of a system that are compressed as a whole, or from some place on: an
// initramfs, the payload of a kernel, modules, firmware, documentation. It unpacks them, and belongs to the desk.
//
// gzip, zstd, bzip2 and the lz4 of kernels are unpacked here; xz, lzma and other lz4 by the programs xz and lz4; lzo is
// known and not unpacked. Formats that are compressed in parts of their own (zip, png, pdf) are not meant.
package compressed

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// What a compressed file is for.
const (
	KindInitrd = "initrd"
	KindKernel = "kernel"
	KindModule = "module"
	KindFile   = "file"
)

// ErrNoTool means that a program is missing which unpacks a format; it is named.
var ErrNoTool = errors.New("not installed")

// Limit bounds what a file may unpack to, in bytes.
const Limit = 1 << 30

// magics are the beginnings of what is compressed as a whole.
var magics = []struct{ codec, magic string }{
	{"gzip", "\x1f\x8b\x08"},
	{"zstd", "\x28\xb5\x2f\xfd"},
	{"xz", "\xfd7zXZ\x00"},
	{"bzip2", "BZh"},
	{"lz4", "\x02\x21\x4c\x18"},
	{"lz4", "\x04\x22\x4d\x18"},
	{"lzma", "\x5d\x00\x00"},
	{"lzo", "\x89LZO\x00\r\n"},
}

// Look returns the stretch of a file that is compressed, with what and for what; codec is "" for all other files.
func Look(path string, b []byte) (from, to int, codec, kind string) {
	if from, to, codec = kernel(b); codec != "" {
		return from, to, codec, KindKernel
	}
	kind = KindFile
	name := strings.ToLower(path[strings.LastIndexByte(path, '/')+1:])
	switch {
	case strings.Contains(name, ".ko."):
		kind = KindModule
	case strings.HasPrefix(name, "initr") || strings.HasPrefix(name, ".initrd"):
		kind = KindInitrd
	case strings.HasPrefix(name, "vmlinu") || strings.HasPrefix(name, "image") && strings.HasSuffix(name, ".gz"):
		kind = KindKernel
	}
	if early := files.Archived(b); early > 0 && early < len(b) {
		from, kind = early, KindInitrd
	}
	for _, m := range magics {
		if bytes.HasPrefix(b[from:], []byte(m.magic)) && (m.codec != "lzma" || kind != KindFile || strings.HasSuffix(name, ".lzma")) {
			return from, len(b), m.codec, kind
		}
	}
	return 0, 0, "", ""
}

// kernel finds the payload of an x86 kernel (Documentation/arch/x86/boot.rst, payload_offset) and of an EFI
// kernel that unpacks itself (drivers/firmware/efi/libstub/zboot-header.S).
func kernel(b []byte) (from, to int, codec string) {
	le := binary.LittleEndian
	switch {
	case len(b) > 0x260 && string(b[0x202:0x206]) == "HdrS" && le.Uint16(b[0x206:]) >= 0x208:
		from = (max(int(b[0x1f1]), 1)+1)*512 + int(le.Uint32(b[0x248:]))
		to = from + int(le.Uint32(b[0x24c:]))
	case len(b) > 64 && string(b[:2]) == "MZ" && string(b[4:8]) == "zimg":
		from = int(le.Uint32(b[8:]))
		to = from + int(le.Uint32(b[12:]))
	}
	if from <= 0 || to <= from || to > len(b) {
		return 0, 0, ""
	}
	for _, m := range magics {
		if bytes.HasPrefix(b[from:to], []byte(m.magic)) {
			return from, to, m.codec
		}
	}
	return 0, 0, ""
}

// Unpack returns what a stretch of a file holds, at most Limit bytes. What follows the compressed data is left out: the
// kernel's build appends a length, and an initramfs may be padded.
func Unpack(ctx context.Context, codec string, b []byte) ([]byte, error) {
	out, err := unpack(ctx, codec, b)
	if err != nil && len(out) == 0 {
		return nil, err
	}
	return bound(out, nil)
}

// UnpackAll is Unpack where nothing may follow: what it returns is all that was there.
func UnpackAll(ctx context.Context, codec string, b []byte) ([]byte, error) {
	return bound(unpack(ctx, codec, b))
}

func bound(out []byte, err error) ([]byte, error) {
	if len(out) > Limit {
		return nil, fmt.Errorf("more than %d bytes: %w", Limit, files.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// unpack returns what could be unpacked until an error.
func unpack(ctx context.Context, codec string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch codec {
	case "gzip":
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			r = z
		}
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<30)); err == nil {
			defer z.Close()
			r = z
		}
	case "bzip2":
		r = bzip2.NewReader(bytes.NewReader(b))
	case "lz4":
		if bytes.HasPrefix(b, []byte("\x02\x21\x4c\x18")) {
			return unlz4(b[4:])
		}
		return program(ctx, b, "lz4", "-dcf")
	case "xz", "lzma":
		return program(ctx, b, "xz", "-dc", "--format="+codec)
	default:
		return nil, fmt.Errorf("codec %s: %w", codec, files.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, Limit+1))
}

// unlz4 unpacks the format that "lz4 -l" makes for kernels: lengths and blocks of 8 MiB.
func unlz4(b []byte) ([]byte, error) {
	var out []byte
	for len(b) >= 4 && len(out) <= Limit {
		n := int(binary.LittleEndian.Uint32(b))
		if n <= 0 || n > len(b)-4 {
			break // the length that the kernel's build appends
		}
		block, err := files.Unpack(files.LZ4, b[4:4+n], 8<<20)
		if err != nil {
			return out, err
		}
		out, b = append(out, block...), b[4+n:]
	}
	if len(b) > 0 {
		return out, fmt.Errorf("%d bytes behind the last block: %w", len(b), files.ErrFormat)
	}
	return out, nil
}

// program lets a tool of the desk unpack.
func program(ctx context.Context, b []byte, name string, args ...string) ([]byte, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, ErrNoTool)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, p, args...)
	cmd.Stdin = bytes.NewReader(b)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	out, err := io.ReadAll(io.LimitReader(pipe, Limit+1))
	if len(out) > Limit {
		stop()
	}
	if done := cmd.Wait(); err == nil && done != nil {
		err = fmt.Errorf("%s: %w", name, done)
	}
	return out, err
}
