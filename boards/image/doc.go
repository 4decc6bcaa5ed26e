// Package image makes what is written to a board: the images of a slot, and
// whole disks.
//
//	kernel, modules, init ─┐
//	root file system ──────┼─ Slots ─→ boot.img, root.img, slots.json ─→ (a release)
//	keys, board ───────────┘                      │
//	                          signed manifest ────┼─ Disk ─→ disk.img ─→ Flash ─→ a device
//	                          provisioning ───────┘
//
// All of it works without root rights and without loop devices, and the same
// input gives the same bytes: identifiers are derived from the board's name,
// times are [Epoch] or the caller's, and everything is in sorted order. Images are
// sparse files; sizes and offsets are in bytes.
//
// # The images of a slot
//
// boot.img is the used front of a FAT16 file system that spans the boot
// partition ([FAT]); in it is one file, linux.efi, a unified kernel image
// ([UKI]): systemd's stub, the kernel, an initramfs ([Initramfs]) and the
// command line with the verity root hash of root.img. The same bytes serve
// either slot: the stub tells the kernel which partition it came from.
//
// root.img is an ext4 file system without a journal ([Root]), followed by its
// verity superblock and tree (package partition/verity). It can keep the places
// that files have in an older image ([RootLike]), so that devices write less.
//
// # slots.json
//
//	{"board": "qemu-x86_64", "images": [
//	  {"name": "boot", "target": "boot", "file": "boot.img", "size": 9437184, "sha256": "<hex>"},
//	  {"name": "root", "target": "root", "file": "root.img", "size": 69210112, "sha256": "<hex>",
//	   "verity": {"root_hash": "<hex>", "salt": "<hex>", "data_blocks": 16384}}]}
//
// # The whole disk
//
// A GUID partition table with the board's partitions; in the ESP GRUB with its
// configuration inside; the environment with slot a good and slot b bad; slot a
// with its images and slot record; slot b empty; an ext4 file system for data.
//
// Programs that must be installed: grub-mkimage with its x86_64-efi modules,
// systemd's EFI stub, and mke2fs and debugfs of e2fsprogs 1.47 or later.
// No device links this package.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/tandem-ota/tandem/boards"
)

// Epoch is the time stamp of everything that has no time of its own. It is the
// same in each release, since a time stamp that moves makes every delta larger.
// FAT knows no time before 1980.
var Epoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// uuid returns an identifier that belongs to a thing of a board and never
// changes. It has the form of RFC 9562's version 8, "made by the vendor's rule".
func uuid(b boards.Board, thing string) [16]byte {
	sum := sha256.Sum256([]byte("tandem image\x00" + b.Name + "\x00" + thing))
	u := [16]byte(sum[:16])
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

func uuidString(u [16]byte) string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Salt returns the verity salt of a board's root file systems. It is the same in
// every release: with a salt that changes, each byte of the tree does too, and a
// delta would have to carry all of it. It is no secret.
func Salt(b boards.Board) []byte {
	sum := sha256.Sum256([]byte(b.Name))
	return sum[:]
}
