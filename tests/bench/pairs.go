package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/boards/image"
)

// A pair is an update: from one image to another.
type pair struct {
	name, about string
	old, new    recipe
	slow        bool // the slow peers too, though the images are large
}

// A recipe says how an image is made.
type recipe struct {
	tree string
	as   string // what is done with the tree
}

// pairs in the order of the report. The first is what the others are measured by: run it first.
// The chain is release → kernel → updated: its first step is ext4-kernel, the step over
// both is ext4-whole, and the second step is chain.
var pairs = []pair{
	{name: "ext4-whole", about: "root file system with kernel, as Debian makes it; point release to all security updates", old: recipe{"release", "ext4"}, new: recipe{"updated", "ext4"}, slow: true},
	{name: "ext4-one-package", about: "the same point release, with OpenSSL updated", old: recipe{"release", "ext4"}, new: recipe{"openssl", "ext4"}, slow: true},
	{name: "ext4-added", about: "the same point release, with 11 packages and what they need added", old: recipe{"release", "ext4"}, new: recipe{"added", "ext4"}},
	{name: "ext4-kernel", about: "the same point release, with kernel, modules and initrd updated", old: recipe{"release", "ext4"}, new: recipe{"kernel", "ext4"}},
	{name: "advised", about: "ext4-whole with initrd and .gz files stored uncompressed, the kernel as Debian ships it", old: recipe{"release", "ext4-advised"}, new: recipe{"updated", "ext4-advised"}},
	{name: "advised-plain-kernel", about: "the same with the kernel stored uncompressed too (the vmlinux out of Debian's bzImage)", old: recipe{"release", "ext4-plain-kernel"}, new: recipe{"updated", "ext4-plain-kernel"}},
	{name: "squashfs-zstd", about: "the trees of ext4-whole without /boot and modules, by mksquashfs -comp zstd", old: recipe{"release", "squashfs"}, new: recipe{"updated", "squashfs"}},
	{name: "erofs-lz4", about: "the trees of ext4-whole without /boot and modules, by mkfs.erofs -zlz4hc", old: recipe{"release", "erofs"}, new: recipe{"updated", "erofs"}},
	{name: "firmware", about: "U-Boot for arm64 as Debian 12 and Debian 13 ship it, u-boot.bin of qemu_arm64", old: recipe{"uboot-12", "u-boot.bin"}, new: recipe{"uboot-13", "u-boot.bin"}},
	{name: "chain", about: "second step of a chain: the release of ext4-kernel to all security updates; ext4-whole is the step over both", old: recipe{"kernel", "ext4"}, new: recipe{"updated", "ext4"}},
}

func pairNames() (names []string) {
	for _, p := range pairs {
		names = append(names, p.name)
	}
	return names
}

// made says what the images of a pair are.
type made struct {
	Old, New picture
	Packages []string // that differ, with their versions
}

// picture is an image, once made.
type picture struct {
	Path   string `json:"-"` // differs from desk to desk
	File   string // its last part
	Size   int64
	SHA256 string
}

// make makes the images of a pair in the folder dir, if they are not there.
func (p pair) make(ctx context.Context, dir string, log io.Writer) (made, error) {
	var m made
	var err error
	if m.Old, err = p.old.make(ctx, dir, log); err != nil {
		return m, err
	}
	if m.New, err = p.new.make(ctx, dir, log); err != nil {
		return m, err
	}
	if trees[p.old.tree].variant == "extract" {
		return m, nil // nothing is installed in it
	}
	older, err := packages(trees[p.old.tree].file(dir, p.old.tree))
	if err != nil {
		return m, err
	}
	newer, err := packages(trees[p.new.tree].file(dir, p.new.tree))
	if err != nil {
		return m, err
	}
	for name, version := range newer {
		if was, ok := older[name]; !ok {
			m.Packages = append(m.Packages, name+" "+version+" is new")
		} else if was != version {
			m.Packages = append(m.Packages, name+" "+was+" → "+version)
		}
	}
	for name, version := range older {
		if _, ok := newer[name]; !ok {
			m.Packages = append(m.Packages, name+" "+version+" is gone")
		}
	}
	sort.Strings(m.Packages)
	return m, nil
}

// imageID is what every file system here has as its identity, so that it does not count as
// a difference. (Version and variant bits as in RFC 9562.)
var imageID = [16]byte{0x5a, 0x1c, 0x1d, 0x4e, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}

const imageUUID = "5a1c1d4e-0000-4000-8000-000000000001"

func (r recipe) make(ctx context.Context, dir string, log io.Writer) (picture, error) {
	archive, err := makeTree(ctx, dir, r.tree, log)
	if err != nil {
		return picture{}, err
	}
	base := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(archive), "tree-"), ".tar")
	pic := picture{Path: filepath.Join(dir, r.as+"-"+base+".img"), File: r.as + "-" + base + ".img"}
	if _, err := os.Stat(pic.Path); err != nil {
		fmt.Fprintf(log, "bench: making %s\n", pic.File)
		temp := pic.Path + ".new"
		os.Remove(temp) // mkfs programs add to what is there
		if err := r.write(ctx, archive, dir, temp); err != nil {
			return pic, fmt.Errorf("make %s: %w", pic.File, err)
		}
		if err := os.Rename(temp, pic.Path); err != nil {
			return pic, err
		}
	}
	info, err := os.Stat(pic.Path)
	if err != nil {
		return pic, err
	}
	pic.Size = info.Size()
	pic.SHA256, err = digest(pic.Path)
	return pic, err
}

func (r recipe) write(ctx context.Context, archive, dir, out string) error {
	switch r.as {
	case "ext4":
		return ext4(ctx, archive, dir, out, neutral)
	case "ext4-advised":
		return ext4(ctx, archive, dir, out, neutral, uncompressed)
	case "ext4-plain-kernel":
		return ext4(ctx, archive, dir, out, neutral, uncompressed, plainKernel)
	case "squashfs":
		return squashfs(ctx, archive, out)
	case "erofs":
		return erofs(ctx, archive, dir, out)
	case "u-boot.bin":
		data, err := member(archive, "/usr/lib/u-boot/qemu_arm64/u-boot.bin")
		if err != nil {
			return err
		}
		return os.WriteFile(out, data, 0o644)
	}
	return fmt.Errorf("no recipe %q", r.as)
}

// ext4 makes the file system as `tandem image build` does: package image's, which is
// mke2fs's own allocation with files in sorted order and a clock that stands still.
func ext4(ctx context.Context, archive, dir, out string, edits ...edit) error {
	stage, err := os.MkdirTemp(dir, "stage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	content, err := edited(archive, edits...)
	if err != nil {
		return err
	}
	defer content.Close()
	t := image.NewTree(stage, image.Epoch)
	if err := t.AddTar(content); err != nil {
		return err
	}
	_, err = image.Root(ctx, t, imageID, out)
	return err
}

func squashfs(ctx context.Context, archive, out string) error {
	content, err := edited(archive, neutral, withoutKernel)
	if err != nil {
		return err
	}
	defer content.Close()
	return tool(ctx, content, "mksquashfs", "-", out, "-tar", "-comp", "zstd", "-noappend", "-no-progress", "-quiet")
}

// erofs unpacks the archive, because mkfs.erofs of Debian 12 reads folders only.
func erofs(ctx context.Context, archive, dir, out string) error {
	stage, err := os.MkdirTemp(dir, "stage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	content, err := edited(archive, neutral, withoutKernel)
	if err != nil {
		return err
	}
	defer content.Close()
	if err := tool(ctx, content, "tar", "-x", "-C", stage, "--no-same-owner"); err != nil {
		return err
	}
	return tool(ctx, nil, "mkfs.erofs", "--quiet", "-zlz4hc", "-x-1", "-T"+epoch, "-U"+imageUUID, "--all-root", out, stage)
}

// epoch is the time of everything, in seconds since 1970.
var epoch = strconv.FormatInt(image.Epoch.Unix(), 10)

// tool runs a program with its clock stopped (https://reproducible-builds.org/specs/source-date-epoch); its error is
// what it said.
func tool(ctx context.Context, stdin io.Reader, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH="+epoch)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(said)))
	}
	return nil
}
