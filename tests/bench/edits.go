package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// An entry of an archive on its way into an image.
type entry struct {
	*tar.Header
	name string // absolute, clean
	data []byte // of a regular file
	drop bool
}

// An edit changes an entry, or drops it.
type edit func(*entry) error

// edited is the archive with all its entries edited. Whoever stops reading early closes it.
func edited(archive string, edits ...edit) (io.ReadCloser, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		defer f.Close()
		if err := rewrite(tar.NewReader(f), tar.NewWriter(w), edits); err != nil {
			w.CloseWithError(fmt.Errorf("edit %s: %w", archive, err))
			return
		}
		w.Close()
	}()
	return r, nil
}

func rewrite(r *tar.Reader, w *tar.Writer, edits []edit) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return err
		}
		e := entry{Header: h, name: path.Clean("/" + h.Name)}
		if e.data, err = io.ReadAll(r); err != nil {
			return err
		}
		for _, change := range edits {
			if err := change(&e); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
		if e.drop {
			continue
		}
		h.Name, h.Size = "."+e.name, int64(len(e.data))
		// What does not fit into the old header gets a new one.
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(e.data); err != nil {
			return err
		}
	}
}

// neutral drops what depends on the machine that built, on chance, or on apt's settings,
// and not on the packages.
func neutral(e *entry) error {
	e.drop = e.drop || strings.HasPrefix(e.name, "/etc/ssh/ssh_host_")
	for _, p := range []string{"/etc/hostname", "/etc/resolv.conf", "/etc/apt/sources.list", "/var/log/", "/var/cache/", "/var/lib/apt/", "/run/", "/dev/"} {
		if e.name == p || strings.HasSuffix(p, "/") && strings.HasPrefix(e.name, p) {
			e.drop = true
		}
	}
	return nil
}

// withoutKernel drops what belongs into another partition on most boards.
func withoutKernel(e *entry) error {
	for _, p := range []string{"/boot/", "/usr/lib/modules/"} {
		e.drop = e.drop || strings.HasPrefix(e.name, p)
	}
	return nil
}

// uncompressed stores initrd and .gz files as what they hold. Packages look for some of them
// under the name without .gz as well; those that do not are documentation.
func uncompressed(e *entry) (err error) {
	switch {
	case e.drop:
	case e.Typeflag == tar.TypeReg && strings.HasPrefix(e.name, "/boot/initrd.img-"):
		e.data, err = plainInitrd(e.data)
	case e.Typeflag == tar.TypeReg && strings.HasSuffix(e.name, ".gz"):
		r, err := gzip.NewReader(bytes.NewReader(e.data))
		if err != nil {
			return err
		}
		if e.data, err = io.ReadAll(r); err != nil {
			return err
		}
		e.name = strings.TrimSuffix(e.name, ".gz")
	case (e.Typeflag == tar.TypeSymlink || e.Typeflag == tar.TypeLink) && strings.HasSuffix(e.name, ".gz"):
		e.name, e.Linkname = strings.TrimSuffix(e.name, ".gz"), strings.TrimSuffix(e.Linkname, ".gz")
	}
	return err
}

// plainKernel stores the kernel as the ELF file that is packed inside of the bzImage.
func plainKernel(e *entry) (err error) {
	if e.Typeflag == tar.TypeReg && strings.HasPrefix(e.name, "/boot/vmlinuz-") {
		e.data, err = vmlinux(e.data)
	}
	return err
}

// plainInitrd unpacks an initial RAM disk: an archive compressed by zstd, or one as it is (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst). Debian's has no uncompressed archive
// in front as long as no microcode is installed.
func plainInitrd(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("070701")) {
		return b, nil
	}
	d, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(d)
}

// vmlinux takes the kernel out of a bzImage, as scripts/extract-vmlinux of Linux does, but by the
// header's fields (Linux Documentation/arch/x86/boot.rst): setup_sects, payload_offset, payload_length.
func vmlinux(b []byte) ([]byte, error) {
	if len(b) < 0x250 || string(b[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	sectors := int(b[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	at, length := (sectors+1)*512+int(binary.LittleEndian.Uint32(b[0x248:])), int(binary.LittleEndian.Uint32(b[0x24c:]))
	if length < 16 || at > len(b) || length > len(b)-at {
		return nil, errors.New("payload outside of the bzImage")
	}
	// The last four bytes are the size of what is packed.
	payload := b[at : at+length-4]
	var out []byte
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		cmd := exec.Command("xz", "--decompress", "--stdout")
		cmd.Stdin = bytes.NewReader(payload)
		out, err = cmd.Output()
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(payload), zstd.WithDecoderMaxWindow(1<<30)); err == nil {
			out, err = io.ReadAll(d)
			d.Close()
		}
	default:
		err = fmt.Errorf("compressed in a way that begins with % x", payload[:4])
	}
	if err == nil && !bytes.HasPrefix(out, []byte("\x7fELF")) {
		err = errors.New("no ELF file")
	}
	if err != nil {
		return nil, fmt.Errorf("payload of the bzImage: %w", err)
	}
	return out, nil
}
