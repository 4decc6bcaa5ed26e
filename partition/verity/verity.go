// Package verity builds dm-verity hash trees and opens verity devices, without
// libcryptsetup, udev or C.
//
// A verity device is a read-only view of a data device in which every 4 KiB
// block is checked against a tree of SHA-256 digests as it is read. Whoever
// knows the 32 bytes of the root hash from a trusted place (a signed kernel
// command line, a signed manifest) can trust every byte below it.
//
// Only one flavour exists here: on-disk version 1, SHA-256, 4096-byte data and
// hash blocks, superblock in front of the tree. It is what `veritysetup format`
// writes by default, and the bytes are identical to its output.
//
// # Bytes
//
// The data is [0, size), size a multiple of 4096. At a place chosen by the
// caller (Tandem: directly behind the data) follows one block with the
// superblock, then the levels of the tree, the topmost first. Numbers are
// little-endian.
//
//	superblock   bytes    content
//	  0            8      "verity" 00 00
//	  8            4      1, version
//	 12            4      1, hash type (the salt goes in front of the block)
//	 16           16      UUID
//	 32           32      "sha256", zero padded
//	 64            4      4096, data block size
//	 68            4      4096, hash block size
//	 72            8      number of data blocks
//	 80            2      length of the salt, 0 to 256
//	 82            6      zero
//	 88          256      salt, zero padded
//	344         3752      zero
//
// The digest of a block is SHA-256(salt ‖ block). The lowest level holds the
// digests of the data blocks, 128 to a block; each further level holds the
// digests of the blocks below it; the last block of a level is padded with
// zeros. The root hash is the digest of the only block of the topmost level. A
// single data block has no tree: the root hash is its digest.
//
// Sources: Linux Documentation/admin-guide/device-mapper/verity.rst; the
// cryptsetup wiki page DMVerity; `veritysetup` 2.6.1 as the oracle in the tests.
//
// # What it does not do
//
// No forward error correction, no signed root hashes in the kernel keyring, no
// other hash or block size. It does not decide whether a root hash is to be
// trusted.
package verity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// BlockSize is the size of data and hash blocks, in bytes.
	BlockSize = 4096
	// MaxSalt is the longest salt that the superblock can hold, in bytes.
	MaxSalt = 256

	digestSize  = 32
	perBlock    = BlockSize / digestSize // digests in one hash block
	digestShift = 7                      // log2(perBlock)

	// maxBlocks keeps data and tree together below 2^63 bytes.
	maxBlocks = 1 << 48
)

// ErrParams means that a size, a salt or a parameter string cannot describe a
// verity device. Repeating does not help; the caller has the wrong input.
var ErrParams = errors.New("invalid verity parameters")

// Corruption is what the kernel does when a block does not match its digest.
type Corruption string

const (
	// Fail makes the read fail with EIO. What is read is never wrong, and the
	// system goes on as far as it can.
	Fail Corruption = ""
	// Restart restarts the machine. During a trial boot a damaged slot thereby
	// becomes a failed try; afterwards it is a restart loop unless the
	// bootloader counts.
	Restart Corruption = "restart_on_corruption"
	// Panic panics the kernel, so that the reason can land in pstore.
	Panic Corruption = "panic_on_corruption"
	// Ignore logs and hands out the damaged block. For forensics only.
	Ignore Corruption = "ignore_corruption"
)

// Params says what a verity device is made of.
type Params struct {
	DataBlocks int64            // number of 4 KiB data blocks, at least 1
	Salt       []byte           // at most MaxSalt bytes
	Root       [digestSize]byte // the digest that everything hangs on
	HashOffset int64            // byte offset of the superblock on the same device
	OnCorrupt  Corruption       // not part of the string form
}

// paramsVersion leads the string form, so that a later flavour can be told apart
// by an initramfs that does not know it.
const paramsVersion = "1"

// ParseParams reads the string form "1,<data blocks>,<salt>,<root hash>" as it
// stands in a kernel command line behind "tandem.verity=". Salt and root hash
// are lower-case hexadecimal; a missing salt is "-". The superblock is directly
// behind the data. Every other spelling is ErrParams.
func ParseParams(s string) (Params, error) {
	fields := strings.Split(s, ",")
	if len(fields) != 4 {
		return Params{}, fmt.Errorf("%w: %d fields instead of 4", ErrParams, len(fields))
	}
	if fields[0] != paramsVersion {
		return Params{}, fmt.Errorf("%w: version %q", ErrParams, fields[0])
	}
	blocks, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || blocks < 1 || blocks > maxBlocks {
		return Params{}, fmt.Errorf("%w: data blocks %q", ErrParams, fields[1])
	}
	p := Params{DataBlocks: blocks, HashOffset: blocks * BlockSize}
	if fields[2] != "-" {
		if p.Salt, err = hex.DecodeString(fields[2]); err != nil || len(p.Salt) == 0 || len(p.Salt) > MaxSalt {
			return Params{}, fmt.Errorf("%w: salt", ErrParams)
		}
	}
	root, err := hex.DecodeString(fields[3])
	if err != nil || len(root) != digestSize {
		return Params{}, fmt.Errorf("%w: root hash", ErrParams)
	}
	copy(p.Root[:], root)
	// One state, one spelling: leading zeros, signs and capitals would let two
	// command lines mean the same device and be measured differently.
	if p.String() != s {
		return Params{}, fmt.Errorf("%w: %q is not in canonical form", ErrParams, s)
	}
	return p, nil
}

// String is the form that ParseParams reads.
func (p Params) String() string {
	salt := "-"
	if len(p.Salt) > 0 {
		salt = hex.EncodeToString(p.Salt)
	}
	return paramsVersion + "," + strconv.FormatInt(p.DataBlocks, 10) + "," + salt + "," + hex.EncodeToString(p.Root[:])
}

func (p Params) check() error {
	switch {
	case p.DataBlocks < 1 || p.DataBlocks > maxBlocks:
		return fmt.Errorf("%w: %d data blocks", ErrParams, p.DataBlocks)
	case len(p.Salt) > MaxSalt:
		return fmt.Errorf("%w: salt of %d bytes", ErrParams, len(p.Salt))
	case p.HashOffset < p.DataBlocks*BlockSize || p.HashOffset%BlockSize != 0:
		return fmt.Errorf("%w: superblock at %d does not lie behind %d data blocks", ErrParams, p.HashOffset, p.DataBlocks)
	}
	switch p.OnCorrupt {
	case Fail, Restart, Panic, Ignore:
		return nil
	}
	return fmt.Errorf("%w: corruption mode %q", ErrParams, p.OnCorrupt)
}
