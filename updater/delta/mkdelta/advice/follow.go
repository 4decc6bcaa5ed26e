package advice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/compressed"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
)

const block = 4096

// followed is an image as it would be if all advice had been followed, as far as a delta can see: nobody could mount
// it. What is compressed is unpacked behind its end, and what should not be there is zeros.
type followed struct {
	mkdelta.Image
	file   *os.File
	system *files.System // where its files are; nil: as mkdelta finds them
	parts  []owned       // behind the end, by file of the view
	grown  int64         // bytes that unpacked content takes more
	failed map[int]error // files that could not be unpacked
}

// follow makes that image in a temporary file. Of what is compressed, that is unpacked which wanted says.
func (v *view) follow(ctx context.Context, dir string, wanted func(item) bool, progress func(done, total int64)) (_ *followed, err error) {
	f := &followed{failed: map[int]error{}}
	if f.file, err = frames.Temporary(dir, "advice-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.file.Close()
		}
	}()
	end := int64(0)
	var list files.System
	packs := v.packs()
	if !packs { // else the file system would be another one: only the content is compared
		if err := copyImage(ctx, f.file, v.Image); err != nil {
			return nil, err
		}
		if err := v.tidy(f.file); err != nil {
			return nil, err
		}
		end = v.Size
		list = v.system
	}
	items := map[int]item{}
	for _, it := range v.items {
		if wanted(it) {
			items[it.file] = it
		}
	}
	done, total := int64(0), int64(0)
	for i, file := range v.files {
		if _, ok := items[i]; ok || packs {
			total += file.Size
		}
	}
	for i, file := range v.files {
		it, packed := items[i]
		if !packs && !packed {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := files.Read(v, file, compressed.Limit)
		if err != nil {
			f.failed[i] = err
			continue
		}
		var plain []byte
		if packed {
			if plain, err = compressed.Unpack(ctx, it.codec, b[it.from:it.to]); err != nil {
				f.failed[i] = err
				if !packs {
					continue
				}
			} else if !packs {
				// The rest of the file stays where it is.
				for _, p := range places(file, int64(it.from), int64(it.to)) {
					if err := zero(f.file, p); err != nil {
						return nil, err
					}
				}
				f.grown += int64(len(plain) - (it.to - it.from))
			} else {
				b = append(b[:it.from:it.from], b[it.to:]...)
			}
		}
		for _, part := range []struct {
			path string
			data []byte
		}{{file.Path, b}, {file.Path + "//", plain}} {
			if len(part.data) == 0 || !packs && part.path == file.Path {
				continue
			}
			if _, err := f.file.WriteAt(part.data, end); err != nil {
				return nil, fmt.Errorf("write temporary file: %w", err)
			}
			f.parts = append(f.parts, owned{stretch{end, int64(len(part.data))}, ownFiles + i})
			list.Files = append(list.Files, members(part.path, part.data, end)...)
			end += (int64(len(part.data)) + block - 1) / block * block
		}
		done += file.Size
		progress(done, total)
	}
	if packs {
		f.grown = end - v.Size
	}
	if err := f.file.Truncate(max(end, block)); err != nil {
		return nil, fmt.Errorf("write temporary file: %w", err)
	}
	f.Image = mkdelta.Image{ReaderAt: f.file, Size: max(end, block)}
	if v.system.Kind != files.None {
		f.system = &list
	}
	return f, nil
}

// members lists content that was put at an offset: an archive by what is in it, as package files does.
func members(path string, b []byte, at int64) []files.File {
	n := int64(len(b))
	one := files.File{Path: strings.TrimSuffix(path, "//"), Size: n, Extents: []files.Extent{{Size: n, Offset: at, Length: n, Plain: n}}}
	if strings.HasSuffix(path, "//") {
		one.Path = path + "content"
	}
	archive, err := files.List(bytes.NewReader(b), n)
	if archive.Kind != files.Cpio || err != nil {
		return []files.File{one}
	}
	for i := range archive.Files {
		m := &archive.Files[i]
		m.Path = strings.TrimSuffix(path, "//") + "//" + m.Path
		for k := range m.Extents {
			m.Extents[k].Offset += at
		}
	}
	return archive.Files
}

// copyImage copies all but zeros.
func copyImage(ctx context.Context, out *os.File, im mkdelta.Image) error {
	buf, none := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < im.Size; at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), im.Size-at)]
		if n, err := im.ReadAt(b, at); n != len(b) {
			return fmt.Errorf("read image: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		if bytes.Equal(b, none[:len(b)]) {
			continue
		}
		if _, err := out.WriteAt(b, at); err != nil {
			return fmt.Errorf("write temporary file: %w", err)
		}
	}
	return out.Truncate(im.Size)
}

func zero(out *os.File, p stretch) error {
	for n := int64(0); n < p.size; n += 1 << 20 {
		if _, err := out.WriteAt(make([]byte, min(1<<20, p.size-n)), p.at+n); err != nil {
			return fmt.Errorf("write temporary file: %w", err)
		}
	}
	return nil
}

// Where an inode of ext4 has its times and checksums (Documentation/filesystems/ext4/inodes.rst).
var inodeNoise = []stretch{{8, 12}, {0x7c, 2}, {0x82, 2}, {0x84, 20}}

// tidy clears what need not be in an image that is never written: times, checksums, a journal, what deleted files
// left behind, and the signatures of modules.
func (v *view) tidy(out *os.File) error {
	all := append([]stretch(nil), v.signed...)
	if l := v.layout; l != nil {
		for _, n := range l.Nodes {
			for _, p := range inodeNoise {
				if p.at+p.size <= min(l.InodeSize, 0x98) {
					all = append(all, stretch{n.At + p.at, p.size})
				}
			}
			if n.Mode>>12 != 4 || l.ReadOnly&files.ExtChecksums == 0 {
				continue
			}
			for _, e := range n.Extents {
				for at := e.Offset + l.Block; at <= e.Offset+e.Length; at += l.Block {
					all = append(all, stretch{at - 4, 4}) // of the directory's block
				}
			}
		}
		for _, e := range append(append([]files.Extent(nil), l.Journal...), l.Free...) {
			all = append(all, stretch{e.Offset, e.Length})
		}
	}
	for _, p := range all {
		if p.at < 0 || p.at+p.size > v.Size {
			continue
		}
		if err := zero(out, p); err != nil {
			return err
		}
	}
	return nil
}

// ledger divides the image among its owners.
func (f *followed) ledger(v *view) *ledger {
	if v.packs() {
		return newLedger(f.parts, ownFiles+len(v.files))
	}
	l := v.ledger()
	l.parts = append(l.parts, f.parts...)
	return l
}
