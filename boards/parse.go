package boards

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"unicode/utf16"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
)

// ErrBoard means that a board file makes no sense. The message names the key,
// partition or slot; the file has to be changed.
var ErrBoard = errors.New("invalid board")

// maxFile bounds a board file, in bytes.
const maxFile = 64 << 10

// nameForm reports whether s is a name as manifests have it: lower case, at most 63
// bytes. labelForm allows capitals too, and any length. By hand, because package
// regexp would be the largest thing that a device links for its board.
func nameForm(s string) bool {
	return len(s) <= 63 && s == strings.ToLower(s) && labelForm(s)
}

func labelForm(s string) bool {
	for i, c := range []byte(s) {
		alphanumeric := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alphanumeric && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// Parse reads a board file. Errors are ErrBoard.
func Parse(data []byte) (Board, error) {
	if len(data) > maxFile {
		return Board{}, fmt.Errorf("%w: %d bytes, want at most %d", ErrBoard, len(data), maxFile)
	}
	if err := duplicateKeys(data); err != nil {
		return Board{}, fmt.Errorf("%w: %w", ErrBoard, err)
	}
	var b Board
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return Board{}, fmt.Errorf("%w: %w", ErrBoard, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Board{}, fmt.Errorf("%w: something follows the closing brace", ErrBoard)
	}
	if err := b.check(); err != nil {
		return Board{}, fmt.Errorf("%w: %w", ErrBoard, err)
	}
	return b, nil
}

// maxDepth is more nesting than any board has. Each level's name holds those above it,
// so that a file of nothing but brackets would cost a gigabyte.
const maxDepth = 16

// duplicateKeys refuses an object that has a key twice. encoding/json would take
// the last one, and whoever copied a block in an editor would look at the first.
func duplicateKeys(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	var value func(at string, depth int) error
	value = func(at string, depth int) error {
		if depth > maxDepth {
			return errors.New("nested too deeply")
		}
		t, err := d.Token()
		if err != nil {
			return err
		}
		delim, ok := t.(json.Delim)
		if !ok {
			return nil
		}
		seen := make(map[string]bool)
		for i := 0; d.More(); i++ {
			in := fmt.Sprintf("%s[%d]", at, i)
			if delim == '{' {
				k, err := d.Token()
				if err != nil {
					return err
				}
				key, _ := k.(string) // the decoder accepts nothing else here
				// Field names match in any case, so these count as equal too.
				if in = strings.TrimPrefix(at+"."+key, "."); seen[strings.ToLower(key)] {
					return fmt.Errorf("key %q occurs twice", in)
				}
				seen[strings.ToLower(key)] = true
			}
			if err := value(in, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
		return err
	}
	return value("", 0)
}

func (b Board) check() error {
	if b.Format != 1 {
		return fmt.Errorf("format %d, this program knows 1", b.Format)
	}
	if !nameForm(b.Name) {
		return fmt.Errorf("name %q: want lower-case letters, digits, and - _ . between", b.Name)
	}
	switch b.Arch {
	case "amd64", "arm64", "arm":
	default:
		return fmt.Errorf("arch %q: want amd64, arm64 or arm", b.Arch)
	}
	switch b.Trust.Root {
	case SecureBoot, MeasuredBoot, NoTrust:
	default:
		return fmt.Errorf("trust.root %q: want %q, %q or %q", b.Trust.Root, SecureBoot, MeasuredBoot, NoTrust)
	}
	if b.Trust.Root == MeasuredBoot && b.TPM == nil {
		return fmt.Errorf("trust.root is %q, but there is no tpm", MeasuredBoot)
	}
	if b.Trust.Note == "" {
		return errors.New("trust.note is missing: say what is covered and what is not")
	}
	for _, check := range []func() error{b.checkDisk, b.checkSlots, b.checkBootloader, b.checkDevices, b.checkQEMU} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// The smallest partition has room for a boot record, and for a slot's record and something
// before it; this does not compile otherwise.
const _ = uint(MiB-grubenv.Size) + uint(MiB-partition.RecordSize-1)

func (b Board) checkDisk() error {
	if b.Disk.SectorBytes != 512 && b.Disk.SectorBytes != 4096 {
		return fmt.Errorf("disk.sector_bytes %d: want 512 or 4096", b.Disk.SectorBytes)
	}
	if n := len(b.Disk.Partitions); n > 128 {
		return fmt.Errorf("%d partitions: a table has room for 128", n)
	}
	const most = 1 << 30 // MiB: a pebibyte, and no sum of 128 of them overflows
	labels := make(map[string]bool)
	for _, p := range b.Disk.Partitions {
		switch {
		case !labelForm(p.Label) || len(utf16.Encode([]rune(p.Label))) > 36:
			return fmt.Errorf("partition label %q: want 1 to 36 letters, digits, and - _ . between", p.Label)
		case labels[p.Label]:
			return fmt.Errorf("partition %q occurs twice", p.Label)
		case p.Type != "esp" && p.Type != "linux":
			return fmt.Errorf("partition %q: type %q: want esp or linux", p.Label, p.Type)
		case p.SizeMiB < 1 || p.SizeMiB > most:
			return fmt.Errorf("partition %q: size_mib %d: want 1 to %d", p.Label, p.SizeMiB, most)
		case p.StartMiB < 0 || p.StartMiB > most:
			return fmt.Errorf("partition %q: start_mib %d: want 1 to %d, or 0 for the next free place", p.Label, p.StartMiB, most)
		}
		labels[p.Label] = true
	}
	places := b.Places()
	sort.SliceStable(places, func(i, j int) bool { return places[i].Start < places[j].Start })
	for i := 1; i < len(places); i++ {
		if places[i].Start < places[i-1].Start+places[i-1].Size {
			return fmt.Errorf("partition %q overlaps partition %q", places[i].Label, places[i-1].Label)
		}
	}
	return nil
}

func (b Board) checkSlots() error {
	used := make(map[string]string)
	use := func(label, by string) error {
		if label == "" {
			return fmt.Errorf("%s has no partition", by)
		}
		if _, err := b.Place(label); err != nil {
			return fmt.Errorf("%s: no partition %q in disk.partitions", by, label)
		}
		if other, ok := used[label]; ok {
			return fmt.Errorf("partition %q is used by %s and %s", label, other, by)
		}
		used[label] = by
		return nil
	}
	for s := range b.Slots {
		if !s.Valid() {
			return fmt.Errorf("slot %q: want a and b", s)
		}
	}
	for _, s := range []bootctl.Slot{bootctl.A, bootctl.B} {
		parts, ok := b.Slots[s]
		if !ok {
			return fmt.Errorf("slot %q is missing", s)
		}
		if err := use(parts.Boot, fmt.Sprintf("slots.%s.boot", s)); err != nil {
			return err
		}
		if err := use(parts.Root, fmt.Sprintf("slots.%s.root", s)); err != nil {
			return err
		}
	}
	for _, role := range []string{"boot", "root"} {
		la, _ := b.Label(bootctl.A, role) // both were just looked at
		lb, _ := b.Label(bootctl.B, role)
		pa, _ := b.Place(la)
		pb, _ := b.Place(lb)
		if pa.Size != pb.Size {
			return fmt.Errorf("partitions %q and %q differ in size: a release must fit into either slot", la, lb)
		}
	}
	if err := use(b.Bootloader.Env, "bootloader.env"); err != nil {
		return err
	}
	if err := use(b.Bootloader.ESP, "bootloader.esp"); err != nil {
		return err
	}
	return use(b.Data, "data")
}

func (b Board) checkBootloader() error {
	if b.Bootloader.Kind != "grub" {
		return fmt.Errorf("bootloader.kind %q: want grub", b.Bootloader.Kind)
	}
	if _, err := b.Place(b.Bootloader.Env); err != nil {
		return err
	}
	esp, err := b.Place(b.Bootloader.ESP)
	if err != nil {
		return err
	}
	if esp.Type != "esp" {
		return fmt.Errorf("partition %q: type %q, firmware looks for esp", esp.Label, esp.Type)
	}
	return nil
}

func (b Board) checkDevices() error {
	w := b.Watchdog
	switch w.Kind {
	case "i6300esb":
		if !strings.HasPrefix(w.Device, "/dev/") {
			return fmt.Errorf("watchdog.device %q: want a path below /dev", w.Device)
		}
		// 2046 s is what the hardware counts to; less than 10 s no system starts in.
		if w.TimeoutSeconds < 10 || w.TimeoutSeconds > 2046 {
			return fmt.Errorf("watchdog.timeout_seconds %d: want 10 to 2046", w.TimeoutSeconds)
		}
		if w.LoaderSeconds != 0 && (w.LoaderSeconds < 10 || w.LoaderSeconds > 2046) {
			return fmt.Errorf("watchdog.loader_seconds %d: want 10 to 2046, or 0 if the loader cannot arm it", w.LoaderSeconds)
		}
	case "none":
		if w != (Watchdog{Kind: "none"}) {
			return errors.New(`watchdog.kind is "none", but other keys describe one`)
		}
	default:
		return fmt.Errorf("watchdog.kind %q: want i6300esb or none", w.Kind)
	}
	if b.TPM != nil {
		// 16 and 23 can be reset by software and so prove nothing; 0 to 7 are the firmware's.
		if p := b.TPM.PCR; p < 8 || p > 15 {
			return fmt.Errorf("tpm.pcr %d: want 8 to 15", p)
		}
		if i := uint32(b.TPM.Ledger); i>>24 != 0x01 {
			return fmt.Errorf("tpm.nv_ledger %#x: an NV index begins with 0x01", i)
		}
	}
	for _, m := range b.Kernel.Modules {
		if !labelForm(m) {
			return fmt.Errorf("kernel.modules: %q is no module name", m)
		}
	}
	if strings.Contains(b.Kernel.Cmdline, "tandem.verity=") {
		return errors.New("kernel.cmdline: tandem.verity is added when the image is built")
	}
	if strings.ContainsAny(b.Kernel.Cmdline, "\n\x00") {
		return errors.New("kernel.cmdline: want one line")
	}
	if b.Kernel.Stub == "" {
		return errors.New("kernel.stub is missing")
	}
	return nil
}

func (b Board) checkQEMU() error {
	q := b.QEMU
	if q == nil {
		return nil
	}
	for key, v := range map[string]string{"system": q.System, "machine": q.Machine, "cpu": q.CPU, "firmware": q.Firmware, "disk": q.Disk} {
		if v == "" {
			return fmt.Errorf("qemu.%s is missing", key)
		}
	}
	if q.MemoryMiB < 64 {
		return fmt.Errorf("qemu.memory_mib %d: want at least 64", q.MemoryMiB)
	}
	return nil
}
