package advice

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"debug/pe"
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

// errNoTool means that a program is missing which unpacks a format; it is named.
var errNoTool = errors.New("not installed")

// plainLimit bounds what a file may unpack to.
const plainLimit = 1 << 30

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

// look returns the stretch of a file that is compressed, with what and for what; codec is "" for all other
// files. Formats that are compressed in parts of their own (zip, png, pdf) are not meant.
func look(path string, b []byte) (from, to int, codec, kind string) {
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
	if early := archived(b); early > 0 && early < len(b) {
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

// archived is where an initramfs goes on behind the plain archive with the microcode, 0 for other files.
func archived(b []byte) int {
	if !bytes.HasPrefix(b, []byte("07070")) {
		return 0
	}
	end := bytes.Index(b, []byte("TRAILER!!!"))
	if end < 0 {
		return 0
	}
	for end += len("TRAILER!!!"); end < len(b) && b[end] == 0; end++ {
	}
	return end
}

// unpack returns what a stretch of a file holds. What follows the compressed data is left out: the kernel's build
// appends a length, and an initramfs may be padded.
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
		return program(ctx, b, "xz", "-dc", "--single-stream", "--format="+codec)
	case "lzo":
		return program(ctx, b, "lzop", "-dcf")
	default:
		return nil, fmt.Errorf("codec %s: %w", codec, files.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, plainLimit+1))
	return unpacked(out, err)
}

func unpacked(out []byte, err error) ([]byte, error) {
	switch {
	case len(out) > plainLimit:
		return nil, fmt.Errorf("more than %d bytes: %w", plainLimit, files.ErrUnsupported)
	case err != nil && len(out) == 0:
		return nil, err
	}
	return out, nil
}

// unlz4 unpacks the format that "lz4 -l" makes for kernels: lengths and blocks of 8 MiB.
func unlz4(b []byte) ([]byte, error) {
	var out []byte
	for len(b) >= 4 && len(out) <= plainLimit {
		n := int(binary.LittleEndian.Uint32(b))
		if n <= 0 || n > len(b)-4 {
			break // the length that the kernel's build appends
		}
		block, err := files.Unpack(files.LZ4, b[4:4+n], 8<<20)
		if err != nil {
			return unpacked(out, err)
		}
		out, b = append(out, block...), b[4+n:]
	}
	return unpacked(out, nil)
}

// program lets a tool of the desk unpack.
func program(ctx context.Context, b []byte, name string, args ...string) ([]byte, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, errNoTool)
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
	out, err := io.ReadAll(io.LimitReader(pipe, plainLimit+1))
	if len(out) > plainLimit {
		stop()
	}
	// What follows the data makes the tool complain when all is unpacked.
	if done := cmd.Wait(); err == nil {
		err = done
	}
	return unpacked(out, err)
}

// programs finds the kernel and the initramfs of unified kernel images in an image that nobody can list, as a FAT
// file system, where they lie in one piece: sections of a portable executable.
func programs(im io.ReaderAt, size int64) []files.File {
	var out []files.File
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(buf)) {
		n, err := im.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if n == 0 && err != nil {
			return out
		}
		for i := 0; i+512 <= n; i += 512 {
			if buf[i] != 'M' || buf[i+1] != 'Z' {
				continue
			}
			p, err := pe.NewFile(io.NewSectionReader(im, at+int64(i), size-at-int64(i)))
			if err != nil {
				continue
			}
			for _, s := range p.Sections {
				from, length := at+int64(i)+int64(s.Offset), int64(min(s.VirtualSize, s.Size))
				if (s.Name == ".linux" || s.Name == ".initrd") && length > 0 && from+length <= size {
					f := files.File{Path: fmt.Sprintf("uki%d/%s", len(out)/2+1, s.Name), Size: length}
					f.Extents = []files.Extent{{Size: length, Offset: from, Length: length, Plain: length}}
					out = append(out, f)
				}
			}
		}
	}
	return out
}

// signatureMark ends a signed kernel module (scripts/sign-file.c); in front of it is a struct module_signature of 12
// bytes, whose last four are the length of the signature in front of that.
const signatureMark = "~Module signature appended~\n"

// signature returns how many bytes at the end of a kernel module are its signature; 0 if it has none.
func signature(b []byte) int {
	if !bytes.HasSuffix(b, []byte(signatureMark)) || len(b) < len(signatureMark)+12 {
		return 0
	}
	end := len(b) - len(signatureMark)
	n := int(binary.BigEndian.Uint32(b[end-4:])) + 12 + len(signatureMark)
	if n > len(b) || n < 0 {
		return 0
	}
	return n
}
