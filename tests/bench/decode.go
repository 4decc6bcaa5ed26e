package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/delta/blocks"
)

// decoded is what one of our decoders says of itself.
type decoded struct {
	Anonymous int64 // bytes of anonymous memory at its height, looked at after every frame, and often while an old image is scanned
	Memory    int64 // bytes that the payload states
	OldRead   int64 // bytes of the old image
	OldSeeks  int64 // reads of it that did not begin where the one before ended
	NewRead   int64 // bytes of the new image behind the frame
	NewSeeks  int64
	Download  int64 // bytes of the blob that were read
	Index     int64 // of them, those of an index
}

// source counts what is read of an image, and from how many places.
type source struct {
	io.ReaderAt
	bytes, seeks, end int64
}

func (s *source) ReadAt(b []byte, at int64) (int, error) {
	if at != s.end {
		s.seeks++
	}
	n, err := s.ReaderAt.ReadAt(b, at)
	s.bytes += int64(n)
	s.end = at + int64(n)
	return n, err
}

// likeDevice sets the collector as the updater's agent does.
func likeDevice() {
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(24 << 20)
}

// anonymous is the resident memory of this process that no file stands behind. The second and
// third number of statm are resident and shared pages (proc(5)).
func anonymous() (int64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	words := strings.Fields(string(text))
	if len(words) < 3 {
		return 0, errors.New("the kernel does not tell its pages")
	}
	resident, err := strconv.ParseInt(words[1], 10, 64)
	shared, err2 := strconv.ParseInt(words[2], 10, 64)
	return (resident - shared) * int64(os.Getpagesize()), errors.Join(err, err2)
}

// checker compares leaves with their hashes in a file, as the updater does before it writes. It
// knows no leaves if the file has no name.
func checker(leaves string) (func(at int64, leaf []byte) bool, error) {
	if leaves == "" {
		return func(int64, []byte) bool { return true }, nil
	}
	f, err := os.Open(leaves)
	if err != nil {
		return nil, err
	}
	return func(at int64, leaf []byte) bool {
		var want [sha256.Size]byte
		if _, err := f.ReadAt(want[:], at/delta.Leaf*sha256.Size); err != nil {
			return false
		}
		sum := sha256.Sum256(leaf)
		return bytes.Equal(sum[:], want[:])
	}, nil
}

// apply decodes as the device does, frame by frame, and syncs what it wrote.
func apply(older, patch, leaves, out string) (d decoded, err error) {
	likeDevice()
	blob, err := open(patch)
	if err != nil {
		return d, err
	}
	old := &source{}
	var from delta.Sources
	if older != "" {
		if old.ReaderAt, err = os.Open(older); err != nil {
			return d, err
		}
		from.Old = old
	}
	check, err := checker(leaves)
	if err != nil {
		return d, err
	}
	// A device has the size from the signed manifest; here the header must do
	// (updater/delta/FORMAT.md, offset 16).
	var size [8]byte
	if _, err := blob.ReadAt(size[:], 16); err != nil {
		return d, err
	}
	p, err := delta.Open(blob, blob.Size, delta.Limits{Memory: 64 << 20, Size: int64(binary.LittleEndian.Uint64(size[:]))})
	if err != nil {
		return d, err
	}
	f, err := os.Create(out)
	if err != nil {
		return d, err
	}
	defer f.Close()
	done := &source{ReaderAt: f}
	from.New = done
	longest := make([]byte, p.Longest())
	var plain []byte
	for i := range p.Frames() {
		frame := p.Frame(i)
		packed := longest[:frame.BlobLength]
		plain = room(plain, frame.Length)
		if _, err := blob.ReadAt(packed, frame.Blob); err != nil && err != io.EOF {
			return d, err
		}
		if err := p.Decode(i, packed, from, plain); err != nil {
			return d, err
		}
		if err := d.put(f, frame.Target, plain, check); err != nil {
			return d, err
		}
	}
	d.Memory, d.Download = p.Memory(), blob.Size
	d.OldRead, d.OldSeeks, d.NewRead, d.NewSeeks = old.bytes, old.seeks, done.bytes, done.seeks
	return d, f.Sync()
}

// buildIndex scans the old image and builds the new one from an index payload. It checks every leaf as it
// goes: hashes of 48 bits are hints.
func buildIndex(older, payload, leaves, out string) (d decoded, err error) {
	likeDevice()
	file, err := open(payload)
	if err != nil {
		return d, err
	}
	blob := &source{ReaderAt: file}
	var size [8]byte
	if _, err := file.ReadAt(size[:], 16); err != nil { // updater/delta/blocks/FORMAT.md
		return d, err
	}
	base, err := open(older)
	if err != nil {
		return d, err
	}
	old := &source{ReaderAt: base}
	check, err := checker(leaves)
	if err != nil {
		return d, err
	}
	x, err := blocks.Open(blob, file.Size, blocks.Limits{Memory: 64 << 20, Size: int64(binary.LittleEndian.Uint64(size[:]))})
	if err != nil {
		return d, err
	}
	var looked error
	if err := x.Scan(blocks.Running, old, base.Size, func(int64) { looked = d.look() }); err != nil || looked != nil {
		return d, errors.Join(err, looked)
	}
	promised := x.IndexSize() + x.Missing(0)
	f, err := os.Create(out)
	if err != nil {
		return d, err
	}
	defer f.Close()
	done := &source{ReaderAt: f}
	var plain []byte
	for i := range x.Frames() {
		target, length := x.Frame(i)
		plain = room(plain, length)
		if err := x.Build(i, blocks.Sources{Blob: blob, Running: old, Done: done, Check: check}, plain); err != nil {
			return d, err
		}
		if err := d.put(f, target, plain, nil); err != nil {
			return d, err
		}
	}
	if blob.bytes < promised {
		return d, fmt.Errorf("read %d bytes of the payload, expected %d", blob.bytes, promised)
	}
	d.Memory, d.Download, d.Index = x.Memory(), blob.bytes, x.IndexSize()
	d.OldRead, d.OldSeeks, d.NewRead, d.NewSeeks = old.bytes, old.seeks, done.bytes, done.seeks
	return d, f.Sync()
}

// put checks a frame and writes it.
func (d *decoded) put(f *os.File, at int64, plain []byte, check func(int64, []byte) bool) error {
	for i := 0; check != nil && i < len(plain); i += delta.Leaf {
		if !check(at+int64(i), plain[i:min(i+delta.Leaf, len(plain))]) {
			return fmt.Errorf("leaf at %d is not what it should be", at+int64(i))
		}
	}
	if _, err := f.WriteAt(plain, at); err != nil {
		return err
	}
	return d.look()
}

// look remembers the anonymous memory at its height.
func (d *decoded) look() error {
	n, err := anonymous()
	d.Anonymous = max(d.Anonymous, n)
	return err
}

func room(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}
