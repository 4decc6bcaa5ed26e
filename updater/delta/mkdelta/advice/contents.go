package advice

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

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
