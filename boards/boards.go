// Package boards says what differs between products, as data.
//
// A board is one JSON file in this folder, embedded into the programs. It names
// the partitions, which of them make a slot, the bootloader, the watchdog, the
// TPM registers, the kernel's modules and command line, how QEMU plays the board
// in the lab, and what the board's root of trust is, so that nobody believes
// more of it than is so. README.md tells how to add one without reading Go.
//
// Sizes are in MiB in the file and in bytes in Go. [Parse] is strict: a key that
// is unknown or occurs twice, a partition that overlaps another, a slot without
// its partitions is an error that names it, because a misspelt key that is
// silently ignored shows on a thousand devices in the field and not on the desk.
//
// [Open] turns a board into the parts of the machine the program runs on. Images
// of boards are made by package boards/image, which no device links.
package boards

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/bootctl"
)

//go:embed *.json
var files embed.FS

// MiB is the unit of sizes in board files, in bytes.
const MiB = 1 << 20

// Board is one product.
type Board struct {
	Format     int                        `json:"format"` // 1
	Name       string                     `json:"name"`   // as in a manifest's "boards", lower case
	Title      string                     `json:"title"`  // for people
	Arch       string                     `json:"arch"`   // as Go says it: "amd64", "arm64", "arm"
	Trust      Trust                      `json:"trust"`
	Disk       Disk                       `json:"disk"`
	Slots      map[bootctl.Slot]SlotParts `json:"slots"`
	Bootloader Bootloader                 `json:"bootloader"`
	Data       string                     `json:"data"` // label of the partition that is mounted at /data
	Watchdog   Watchdog                   `json:"watchdog"`
	TPM        *TPM                       `json:"tpm"` // nil: the board has no TPM
	Kernel     Kernel                     `json:"kernel"`
	QEMU       *QEMU                      `json:"qemu"` // nil: the lab cannot play this board
}

// Trust states what an attacker with the disk in hand cannot change unnoticed.
type Trust struct {
	Root string `json:"root"` // "secure boot", "measured boot" or "none"
	Note string `json:"note"` // what exactly is covered and what is not
}

// The roots of trust that a board can have.
const (
	// SecureBoot: firmware starts only what it can verify.
	SecureBoot = "secure boot"
	// MeasuredBoot: firmware starts anything, and a TPM quote tells what it was.
	MeasuredBoot = "measured boot"
	// NoTrust: whoever can write the disk owns the device.
	NoTrust = "none"
)

// Disk is the medium that the slots are on.
type Disk struct {
	SectorBytes int         `json:"sector_bytes"` // logical sector, 512 or 4096
	Partitions  []Partition `json:"partitions"`   // in the order of their numbers
}

// Partition is a GPT partition.
type Partition struct {
	Label    string `json:"label"`
	Type     string `json:"type"`      // "esp" or "linux"
	SizeMiB  int64  `json:"size_mib"`  // at least 1
	StartMiB int64  `json:"start_mib"` // 0: behind the one before
}

// SlotParts are the labels of the partitions of one slot.
type SlotParts struct {
	Boot string `json:"boot"`
	Root string `json:"root"`
}

// Bootloader says who chooses the slot, and where it keeps the boot record.
type Bootloader struct {
	Kind string `json:"kind"` // "grub"
	ESP  string `json:"esp"`  // label of the partition that firmware starts it from
	Env  string `json:"env"`  // label of the environment partition; package bootctl/grubenv has its layout
}

// Watchdog is the timer that takes a device back which no longer answers.
type Watchdog struct {
	Kind           string `json:"kind"`            // "i6300esb", "none"
	Device         string `json:"device"`          // as "/dev/watchdog0"
	LoaderSeconds  int    `json:"loader_seconds"`  // the bootloader arms it with this; 0: it cannot
	TimeoutSeconds int    `json:"timeout_seconds"` // while the system runs
}

// TPM names the registers that belong to Tandem.
type TPM struct {
	PCR    int     `json:"pcr"`       // the running slot's manifest digest
	Ledger NVIndex `json:"nv_ledger"` // the ledger of installed manifests
}

// NVIndex is the handle of a TPM's NV index, in hexadecimal in the file, as all
// TPM tools print it.
type NVIndex uint32

// UnmarshalJSON reads "0x01840000".
func (i *NVIndex) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("NV index %s: want a string as \"0x01840000\"", data)
	}
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return fmt.Errorf("NV index %q: want a number as \"0x01840000\"", s)
	}
	*i = NVIndex(n)
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (i NVIndex) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, `"%#08x"`, uint32(i)), nil }

// Kernel is what the image of a slot's boot partition needs to know.
type Kernel struct {
	Console string   `json:"console"` // as "ttyS0"
	Cmdline string   `json:"cmdline"` // all but the verity parameters
	Modules []string `json:"modules"` // for the initramfs, in the order of loading; what they depend on is found
	Stub    string   `json:"stub"`    // EFI stub of the unified kernel image, a file on the desk
}

// QEMU says how the lab plays the board.
type QEMU struct {
	System    string   `json:"system"` // "x86_64": qemu-system-x86_64
	Machine   string   `json:"machine"`
	CPU       string   `json:"cpu"`
	MemoryMiB int      `json:"memory_mib"`
	Firmware  string   `json:"firmware"`  // code flash, read-only
	Variables string   `json:"variables"` // template of the variable flash, copied for each device
	Disk      string   `json:"disk"`      // device model, as "virtio-blk-pci"
	Network   string   `json:"network"`
	TPM       string   `json:"tpm"`
	Devices   []string `json:"devices"` // further -device arguments
}

// Place is where a partition is on the disk, in bytes.
type Place struct {
	Label  string
	Type   string
	Number int // 1-based
	Start  int64
	Size   int64
}

// Places returns where the partitions are, in the order of their numbers. The
// first MiB of the disk is left to the partition table.
func (b Board) Places() []Place {
	places := make([]Place, len(b.Disk.Partitions))
	next := int64(1)
	for i, p := range b.Disk.Partitions {
		start := p.StartMiB
		if start == 0 {
			start = next
		}
		next = start + p.SizeMiB
		places[i] = Place{Label: p.Label, Type: p.Type, Number: i + 1, Start: start * MiB, Size: p.SizeMiB * MiB}
	}
	return places
}

// Place returns where the partition with the label is.
func (b Board) Place(label string) (Place, error) {
	for _, p := range b.Places() {
		if p.Label == label {
			return p, nil
		}
	}
	return Place{}, fmt.Errorf("board %s has no partition %q", b.Name, label)
}

// DiskSize returns the smallest disk that the board fits on, in bytes: all
// partitions, and a MiB for the backup of the partition table.
func (b Board) DiskSize() int64 {
	var end int64
	for _, p := range b.Places() {
		end = max(end, p.Start+p.Size)
	}
	return end + MiB
}

// Label returns the label of the partition that has the role "boot" or "root"
// in a slot.
func (b Board) Label(s bootctl.Slot, role string) (string, error) {
	parts, ok := b.Slots[s]
	if !ok {
		return "", fmt.Errorf("board %s has no slot %q", b.Name, s)
	}
	switch role {
	case "boot":
		return parts.Boot, nil
	case "root":
		return parts.Root, nil
	}
	return "", fmt.Errorf("board %s has no role %q in a slot, only boot and root", b.Name, role)
}

// Get returns the embedded board with the name.
func Get(name string) (Board, error) {
	if !slices.Contains(Names(), name) {
		return Board{}, fmt.Errorf("unknown board %q (known: %s)", name, strings.Join(Names(), ", "))
	}
	return load(files, name)
}

func load(files fs.FS, name string) (Board, error) {
	data, err := fs.ReadFile(files, name+".json")
	if err != nil {
		return Board{}, fmt.Errorf("read board %s: %w", name, err)
	}
	b, err := Parse(data)
	if err != nil {
		return Board{}, fmt.Errorf("read board %s: %w", name, err)
	}
	if b.Name != name {
		return Board{}, fmt.Errorf("read board %s: the file calls itself %q", name, b.Name)
	}
	return b, nil
}

// JSON returns the embedded file of the board with the name.
func JSON(name string) ([]byte, error) {
	if _, err := Get(name); err != nil {
		return nil, err
	}
	return files.ReadFile(name + ".json")
}

// Names returns the names of the embedded boards, sorted.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // the root of an embed.FS always reads
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(path.Base(e.Name()), ".json"))
	}
	return names
}
