// Package grubenv keeps the boot record where GRUB finds it, and generates the
// script by which GRUB chooses the slot.
//
// The record is a native GRUB environment block, so that `grub-editenv FILE list`
// reads it, in two copies that are written in turn and a third one that is
// written only at commit. They lie at fixed bytes of a partition of their own
// (FORMAT.md has every byte). GRUB 2.06 reads them by block list but refuses to
// save to one; for that the partition also carries a constant FAT12 file system
// whose files are those sectors. Nobody ever mounts it, and nothing but Format
// and repairs writes to its metadata.
//
// Everything that changes is in one 512-byte sector per copy: the unit that a
// disk writes whole or, if power fails, may garble as a whole. A garbled copy is
// recognised by a check word, by Go and by GRUB alike; GRUB cannot compute it
// and looks it up in a list of all records that can exist. The older copy is
// still there then, and a state one step older is always safe: it has the trial
// not begun yet, or one try more of the same verified image, or not committed.
//
// GRUB takes a try from a trial before it boots it, and reads back what it
// saved. It has no way to flush a disk's write cache; where a power cut just
// after the hand-over makes the cache lose that sector, that boot is not counted.
//
// This package does not decide when to try, commit or revert; see package
// bootctl for the rules and package updater for the decisions.
package grubenv
