package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/verity"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/files"
)

// Files of a slot, where the device's programs look for them.
const (
	KeysPath      = "/etc/tandem/release-keys.json" // in the initramfs and in the root file system
	BoardPath     = "/etc/tandem/board.json"        // in both
	DevicePath    = "/etc/tandem/device.json"       // in the root file system
	TrustRootPath = "/etc/tandem/root.json"         // in the root file system
	SlotsFile     = "slots.json"
)

// SlotOptions is what the images of a slot are made of.
type SlotOptions struct {
	Board     boards.Board
	Kernel    string    // file: a bzImage
	Modules   string    // folder: as /lib/modules/6.1.0-56-amd64
	Init      string    // file: the first program, statically linked
	Root      string    // folder, or archive (.tar, .tar.zst) of the root file system
	Keys      []byte    // of KeysPath: whoever holds one of them can sign what boots
	RootFiles []File    // added to the root file system
	Date      time.Time // no file of the root file system is younger; see SourceDate
	Append    string    // added to the board's kernel command line; "" for a product
	Unpack    bool      // initramfs archives in /boot of the root file system, see UnpackInitramfs
	Like      string    // root image, or folder with one, whose places the root file system keeps; "" for none
	Out       string    // folder, made if it is not there
}

// SlotSet is what slots.json says.
type SlotSet struct {
	Board  string      `json:"board"`
	Images []SlotImage `json:"images"`
}

// SlotImage is one image of a slot.
type SlotImage struct {
	Name   string      `json:"name"`
	Target string      `json:"target"` // role in the slot: "boot" or "root"
	File   string      `json:"file"`   // beside slots.json
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"`
	Verity *SlotVerity `json:"verity,omitempty"`
}

// SlotVerity is how the root image is opened.
type SlotVerity struct {
	RootHash   string `json:"root_hash"`
	Salt       string `json:"salt"`
	DataBlocks int64  `json:"data_blocks"`
}

// ErrTooLarge means that an image does not fit into the board's partition.
var ErrTooLarge = errors.New("image is larger than the board's partition")

// Slots makes boot.img, root.img and slots.json in the folder o.Out. Whatever it
// held under these names is replaced; on an error nothing in it is of use.
func Slots(ctx context.Context, o SlotOptions) (SlotSet, error) {
	set, err := slots(ctx, o)
	if err != nil {
		return SlotSet{}, fmt.Errorf("make slot images of board %s: %w", o.Board.Name, err)
	}
	return set, nil
}

func slots(ctx context.Context, o SlotOptions) (SlotSet, error) {
	set := SlotSet{Board: o.Board.Name}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return set, err
	}
	// slots.json comes last: with it the images are whole.
	if err := os.Remove(filepath.Join(o.Out, SlotsFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return set, err
	}
	stage, err := os.MkdirTemp(o.Out, ".stage-")
	if err != nil {
		return set, err
	}
	defer os.RemoveAll(stage)

	tree, err := rootTree(o, stage)
	if err != nil {
		return set, err
	}
	osRelease, err := tree.osRelease()
	if err != nil {
		return set, err
	}
	if o.Unpack {
		if _, err := tree.UnpackInitramfs(ctx); err != nil {
			return set, err
		}
	}
	like, err := olderRoot(o.Like)
	if err != nil {
		return set, err
	}
	params, err := rootImage(ctx, o.Board, tree, like, filepath.Join(o.Out, "root.img"))
	if err != nil {
		return set, err
	}
	boot, err := bootImage(o, osRelease, params)
	if err != nil {
		return set, err
	}
	if err := os.WriteFile(filepath.Join(o.Out, "boot.img"), boot, 0o644); err != nil {
		return set, err
	}
	for _, role := range []string{"boot", "root"} {
		i, err := describe(o.Board, role, o.Out)
		if err != nil {
			return set, err
		}
		if role == "root" {
			i.Verity = &SlotVerity{
				RootHash: hex.EncodeToString(params.Root[:]), Salt: hex.EncodeToString(params.Salt), DataBlocks: params.DataBlocks,
			}
		}
		set.Images = append(set.Images, i)
	}
	data, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return set, err
	}
	return set, os.WriteFile(filepath.Join(o.Out, SlotsFile), append(data, '\n'), 0o644)
}

// rootTree collects the root file system.
func rootTree(o SlotOptions, stage string) (*Tree, error) {
	tree := NewTree(stage, o.Date)
	info, err := os.Stat(o.Root)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		err = tree.AddDir(o.Root)
	} else {
		err = addArchive(tree, o.Root)
	}
	if err != nil {
		return nil, err
	}
	board, err := json.MarshalIndent(o.Board, "", "  ")
	if err != nil {
		return nil, err
	}
	added := append([]File{{KeysPath, 0o644, o.Keys}, {BoardPath, 0o644, append(board, '\n')}}, o.RootFiles...)
	for _, f := range added {
		if err := tree.AddFile(f); err != nil {
			return nil, err
		}
	}
	// The read-only root is mounted on by these; they cannot be made later.
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/data"} {
		tree.parents(dir + "/x")
	}
	return tree, nil
}

func addArchive(t *Tree, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".zst") {
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		defer z.Close()
		r = z
	}
	if err := t.AddTar(r); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// osRelease returns what the system calls itself; the kernel image carries it too.
func (t *Tree) osRelease() ([]byte, error) {
	for _, p := range []string{"/usr/lib/os-release", "/etc/os-release"} {
		if n := t.nodes[p]; n != nil && n.source != "" {
			return os.ReadFile(n.source)
		}
	}
	return nil, errors.New("the root file system has no /usr/lib/os-release and no /etc/os-release")
}

// olderRoot reads the layout of an older root image, nil if there is none to follow. It is read before anything is
// written: the new image may replace it.
func olderRoot(name string) (*files.Ext4Layout, error) {
	if name == "" {
		return nil, nil
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		name = filepath.Join(name, "root.img")
	}
	return layout(name)
}

// rootImage writes file system and verity tree.
func rootImage(ctx context.Context, b boards.Board, t *Tree, like *files.Ext4Layout, out string) (verity.Params, error) {
	size, err := root(ctx, t, uuid(b, "root"), like, out)
	if err != nil {
		return verity.Params{}, err
	}
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		return verity.Params{}, err
	}
	defer f.Close()
	hash, _, err := verity.Build(f, size, Salt(b), uuid(b, "verity"), f, size)
	if err != nil {
		return verity.Params{}, err
	}
	return verity.Params{DataBlocks: size / verity.BlockSize, Salt: Salt(b), Root: hash, HashOffset: size}, f.Close()
}

// bootImage returns the file system with the unified kernel image.
func bootImage(o SlotOptions, osRelease []byte, params verity.Params) ([]byte, error) {
	cmdline := o.Board.Kernel.Cmdline + " tandem.verity=" + params.String()
	if s := o.Board.Watchdog.TimeoutSeconds; s > 0 {
		cmdline += fmt.Sprintf(" tandem.watchdog=%d", s)
	}
	if o.Append != "" {
		cmdline += " " + o.Append
	}
	u := UKI{OSRelease: osRelease, Cmdline: cmdline}
	i := Initramfs{ModulesDir: o.Modules, Modules: o.Board.Kernel.Modules}
	for name, into := range map[string]*[]byte{o.Board.Kernel.Stub: &u.Stub, o.Kernel: &u.Kernel, o.Init: &i.Init} {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) && name == o.Board.Kernel.Stub {
			return nil, fmt.Errorf("%w; install the package systemd-boot-efi", err)
		} else if err != nil {
			return nil, err
		}
		*into = data
	}
	board, err := json.Marshal(o.Board)
	if err != nil {
		return nil, err
	}
	i.Files = []File{{KeysPath, 0o644, o.Keys}, {BoardPath, 0o644, board}}
	if u.Initrd, err = i.Build(); err != nil {
		return nil, err
	}
	program, err := u.Build()
	if err != nil {
		return nil, err
	}
	label, err := o.Board.Label(bootctl.A, "boot")
	if err != nil {
		return nil, err
	}
	place, err := o.Board.Place(label)
	if err != nil {
		return nil, err
	}
	return FAT{
		Size: place.Size, Bits: 16, Cluster: fat16Cluster(place.Size), Serial: serial(o.Board, "boot"), Label: "BOOT",
		Files: []File{{Path: grubenv.ImagePath, Data: program}},
	}.Build()
}

// fat16Cluster returns the smallest cluster, from 4 KiB, that a FAT16 file system
// of size bytes can have.
func fat16Cluster(size int64) int {
	c := pageSize
	for size/int64(c) > 65524 {
		c *= 2
	}
	return c
}

func describe(b boards.Board, role, dir string) (SlotImage, error) {
	i := SlotImage{Name: role, Target: role, File: role + ".img"}
	sum, size, err := fileDigest(filepath.Join(dir, i.File))
	if err != nil {
		return i, err
	}
	i.Size, i.SHA256 = size, hex.EncodeToString(sum[:])
	return i, checkSize(b, role, size)
}

// checkSize returns ErrTooLarge if an image does not fit into its partition, and
// for the root partition the slot record behind it.
func checkSize(b boards.Board, role string, size int64) error {
	label, err := b.Label(bootctl.A, role)
	if err != nil {
		return err
	}
	place, err := b.Place(label)
	if err != nil {
		return err
	}
	room := place.Size
	if role == "root" {
		room -= partition.RecordSize
	}
	if size > room {
		return fmt.Errorf("%w: %s has %d bytes, %s has room for %d", ErrTooLarge, role, size, label, room)
	}
	return nil
}

func fileDigest(name string) (sum [sha256.Size]byte, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return sum, 0, fmt.Errorf("read %s: %w", name, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), size, nil
}
