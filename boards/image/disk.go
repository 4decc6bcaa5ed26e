package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
)

// DiskOptions is what a whole disk is made of.
type DiskOptions struct {
	Board     boards.Board
	BootImage string // file for slot a
	RootImage string // file for slot a
	// Envelope is the signed manifest of the two images, for the slot record.
	// Without one the disk is made, but an initramfs that checks its slot stops.
	Envelope []byte
	// Provision is a folder that becomes the content of the data partition; "" for
	// an empty one. Files keep their permissions and belong to root.
	Provision string
}

// Build makes the disk image as the file out, which is replaced. The file is
// sparse and as large as the smallest disk that the board fits on.
//
// On an error there is no new file, and an old one is as it was.
func Build(ctx context.Context, o DiskOptions, out string) error {
	if err := build(ctx, o, out); err != nil {
		return fmt.Errorf("make disk image of board %s: %w", o.Board.Name, err)
	}
	return nil
}

func build(ctx context.Context, o DiskOptions, out string) (err error) {
	if err := checkEnvelope(o); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+"-")
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	err = errors.Join(f.Chmod(0o644), f.Truncate(o.Board.DiskSize()), f.Close())
	if err != nil {
		return err
	}
	if err := writeTable(o.Board, tmp); err != nil {
		return err
	}
	disk, err := partition.OpenFile(tmp)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := fill(ctx, o, disk); err != nil {
		return err
	}
	if err := disk.Sync(); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

// section returns the partition with the label as a disk of its own.
func section(d partition.Disk, b boards.Board, label string) (partition.Disk, error) {
	p, err := b.Place(label)
	if err != nil {
		return nil, err
	}
	return partition.Section(d, p.Start, p.Size), nil
}

// fill writes all partitions of a disk that is zero behind its table.
func fill(ctx context.Context, o DiskOptions, disk partition.Disk) error {
	b := o.Board
	loader, err := GRUB(ctx, b)
	if err != nil {
		return err
	}
	esp, err := b.Place(b.Bootloader.ESP)
	if err != nil {
		return err
	}
	// UEFI 2.10, section 3.5.1.1: the name under which firmware looks for a loader
	// on a disk that it has no boot entry for.
	content, err := FAT{
		Size: esp.Size, Bits: 32, Cluster: fat32Cluster(esp.Size), Serial: serial(b, "esp"), Label: "ESP",
		Files: []File{{Path: "/EFI/BOOT/BOOTX64.EFI", Data: loader}},
	}.Build()
	if err != nil {
		return err
	}
	if err := writeSparse(disk, esp.Start, content); err != nil {
		return err
	}
	env, err := b.Place(b.Bootloader.Env)
	if err != nil {
		return err
	}
	record := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad, Confirmed: bootctl.A}
	if err := record.Check(); err != nil {
		return err
	}
	if err := writeSparse(disk, env.Start, grubenv.Image(record)); err != nil {
		return err
	}
	for role, name := range map[string]string{"boot": o.BootImage, "root": o.RootImage} {
		label, err := b.Label(bootctl.A, role)
		if err != nil {
			return err
		}
		place, err := b.Place(label)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if err := checkSize(b, role, info.Size()); err != nil {
			return err
		}
		if _, err := copySparse(disk, place.Start, name); err != nil {
			return err
		}
	}
	root, err := section(disk, b, b.Slots[bootctl.A].Root)
	if err != nil {
		return err
	}
	if len(o.Envelope) > 0 {
		if err := partition.WriteRecord(root, partition.Record{Envelope: o.Envelope}); err != nil {
			return err
		}
	}
	return writeData(ctx, b, o.Provision, disk)
}

// writeData fills the data partition, which must be zero.
func writeData(ctx context.Context, b boards.Board, dir string, disk partition.Disk) error {
	stage, err := os.MkdirTemp("", "tandem-data-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	tree := NewTree(stage, Epoch)
	if dir != "" {
		if err := tree.AddDir(dir); err != nil {
			return err
		}
	}
	place, err := b.Place(b.Data)
	if err != nil {
		return err
	}
	img := filepath.Join(stage, "data.img")
	if err := Data(ctx, tree, uuid(b, "data"), place.Size, img); err != nil {
		return err
	}
	_, err = copySparse(disk, place.Start, img)
	return err
}

// ProvisionData replaces the data partition of the disk image img by a new file
// system that holds what is in the folder dir ("" for nothing): the identity of
// a lab device, say. The image must not be in use. On an error the data
// partition holds anything; calling it again is safe.
func ProvisionData(ctx context.Context, img string, b boards.Board, dir string) error {
	disk, err := partition.OpenFile(img)
	if err != nil {
		return fmt.Errorf("provision %s: %w", img, err)
	}
	defer disk.Close()
	place, err := b.Place(b.Data)
	if err != nil {
		return fmt.Errorf("provision %s: %w", img, err)
	}
	if err := checkTable(disk, b); err != nil {
		return fmt.Errorf("provision %s: %w", img, err)
	}
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("provision %s: %w", img, err)
	}
	defer f.Close()
	if err := clearRange(f, disk, place.Start, place.Size); err != nil {
		return fmt.Errorf("provision %s: %w", img, err)
	}
	if err := errors.Join(writeData(ctx, b, dir, disk), disk.Sync()); err != nil {
		return fmt.Errorf("provision %s: %w", img, err)
	}
	return nil
}

// checkTable compares the partition table of a disk with the board's.
func checkTable(disk partition.Disk, b boards.Board) error {
	parts, err := partition.ReadTable(disk, b.Disk.SectorBytes)
	if err != nil {
		return err
	}
	for _, p := range b.Places() {
		found, err := partition.Find(parts, p.Label)
		if err != nil {
			return err
		}
		if found.Start != p.Start || found.Size != p.Size {
			return fmt.Errorf("partition %s is at %d with %d bytes, board %s has it at %d with %d",
				p.Label, found.Start, found.Size, b.Name, p.Start, p.Size)
		}
	}
	return nil
}

// fat32Cluster returns the largest cluster, up to 4 KiB, that a FAT32 file system
// of size bytes can have.
func fat32Cluster(size int64) int {
	c := pageSize
	for c > fatSector && size/int64(c) < 65525+2048 {
		c /= 2
	}
	return c
}

// writeTable writes the partition table.
func writeTable(b boards.Board, name string) error {
	sector := int64(b.Disk.SectorBytes)
	t := gpt.Table{
		LogicalSectorSize: b.Disk.SectorBytes, PhysicalSectorSize: b.Disk.SectorBytes, ProtectiveMBR: true,
		GUID: strings.ToUpper(uuidString(uuid(b, "disk"))),
	}
	for _, p := range b.Places() {
		kind := gpt.LinuxFilesystem
		if p.Type == "esp" {
			kind = gpt.EFISystemPartition
		}
		t.Partitions = append(t.Partitions, &gpt.Partition{
			Index: p.Number, Start: uint64(p.Start / sector), End: uint64((p.Start+p.Size)/sector) - 1, Size: uint64(p.Size),
			Type: kind, Name: p.Label, GUID: strings.ToUpper(uuidString(uuid(b, "partition "+p.Label))),
		})
	}
	disk, err := file.OpenFromPath(name, false)
	if err != nil {
		return err
	}
	defer disk.Close()
	w, err := disk.Writable()
	if err != nil {
		return err
	}
	if err := t.Write(w, b.DiskSize()); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	return disk.Close()
}
