package early

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
)

// ErrSlot means that the first program does not know which slot it was started
// from. Guessing could join the kernel of one slot with the system of the other.
var ErrSlot = errors.New("running slot unknown")

const (
	efivars = "/sys/firmware/efi/efivars"
	// stubVariable is set by systemd's UEFI stub to the UUID of the partition
	// that it was started from (Boot Loader Interface, UAPI.4).
	stubVariable = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

// parsePartUUID reads the content of an efivarfs file: 4 bytes of attributes,
// then a partition UUID in UTF-16LE with a final NUL. The result is in lower
// case, as tables spell it.
func parsePartUUID(file []byte) (string, error) {
	const digits = 36
	if len(file) != 4+2*(digits+1) {
		return "", fmt.Errorf("%d bytes instead of %d", len(file), 4+2*(digits+1))
	}
	units := make([]uint16, digits+1)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(file[4+2*i:])
	}
	if units[digits] != 0 {
		return "", errors.New("no NUL at the end")
	}
	uuid := strings.ToLower(string(utf16.Decode(units[:digits])))
	for i, c := range []byte(uuid) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		if dash != (c == '-') || !dash && !hex {
			return "", fmt.Errorf("%q is not a UUID", uuid)
		}
	}
	return uuid, nil
}

// findSlot waits for the disk and returns the slot that this kernel was started
// from, with its boot partition.
//
// The firmware's word counts. Without UEFI stub (a kernel that the lab starts
// directly) the command line may name the slot with tandem.slot=; where the stub
// is, that word is ignored, since the stub knows and a word can be wrong.
func findSlot(host partition.Host, line Cmdline, wait time.Duration) (bootctl.Slot, partition.Node, error) {
	file, err := os.ReadFile(efivars + "/" + stubVariable)
	if err == nil {
		uuid, err := parsePartUUID(file)
		if err != nil {
			return "", partition.Node{}, fmt.Errorf("%w: LoaderDevicePartUUID: %w", ErrSlot, err)
		}
		node, err := await(wait, func() (partition.Node, error) { return host.LocateUUID(uuid) })
		if err != nil {
			return "", node, fmt.Errorf("%w: partition %s: %w", ErrSlot, uuid, err)
		}
		slot, err := slotOf(node.Label)
		return slot, node, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", partition.Node{}, fmt.Errorf("%w: %w", ErrSlot, err)
	}

	named, err := line.Value("tandem.slot")
	if err != nil {
		return "", partition.Node{}, err
	}
	slot := bootctl.Slot(named)
	if !slot.Valid() {
		return "", partition.Node{}, fmt.Errorf("%w: no LoaderDevicePartUUID, and tandem.slot is %q", ErrSlot, named)
	}
	node, err := await(wait, func() (partition.Node, error) { return host.Locate("boot_"+named, "") })
	if err != nil {
		return "", node, fmt.Errorf("%w: %w", ErrSlot, err)
	}
	return slot, node, nil
}

// slotOf returns the slot whose boot partition has the label.
func slotOf(label string) (bootctl.Slot, error) {
	name, boot := strings.CutPrefix(label, "boot_")
	slot := bootctl.Slot(name)
	if !boot || !slot.Valid() {
		return "", fmt.Errorf("%w: started from partition %q", ErrSlot, label)
	}
	return slot, nil
}

// await asks again until there is an answer, since a driver finds its disks in
// its own time. Only "no such partition" is worth waiting for.
func await(limit time.Duration, look func() (partition.Node, error)) (partition.Node, error) {
	for end := time.Now().Add(limit); ; {
		node, err := look()
		if !errors.Is(err, partition.ErrNoPartition) || time.Now().After(end) {
			return node, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
