package partition

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

var (
	// ErrMounted means that the partition carries a mounted file system: it is in
	// use, or the board's fstab is wrong. It must not be written.
	ErrMounted = errors.New("mounted")
	// ErrHeld means that another block device lies on the partition, as the verity
	// device of the running slot does. It must not be written.
	ErrHeld = errors.New("held by another block device")
)

// Host is the kernel's view of the block devices, as three folders.
type Host struct {
	Sys, Proc, Dev string // normally /sys, /proc and /dev
}

// ThisHost returns the machine that the program runs on.
func ThisHost() Host { return Host{Sys: "/sys", Proc: "/proc", Dev: "/dev"} }

// Node is a partition as the kernel knows it.
type Node struct {
	Path   string // device node, as /dev/vda5
	Name   string // kernel name, as vda5
	Disk   string // kernel name of the disk that it is on, as vda
	Label  string // GPT label
	Number int    // 1-based number in the table
	Device string // "major:minor"
}

// Locate returns the device node of the partition with the label. If the root
// file system is on a disk (also through a verity device), only that disk
// counts, so that a second disk with the same labels cannot offer itself as the
// spare slot. Otherwise all disks count, and a label that occurs twice is
// ErrDuplicateLabel. No such label is ErrNoPartition.
func Locate(label string) (string, error) {
	h := ThisHost()
	disk, err := h.RootDisk()
	if err != nil && !errors.Is(err, ErrNoPartition) {
		return "", err
	}
	node, err := h.Locate(label, disk)
	return node.Path, err
}

// Locate returns the partition with the label on a disk (kernel name, as vda), or
// on any disk if that is empty.
func (h Host) Locate(label, disk string) (Node, error) {
	nodes, err := h.Nodes()
	if err != nil {
		return Node{}, err
	}
	var found []Node
	for _, n := range nodes {
		if n.Label == label && (disk == "" || n.Disk == disk) {
			found = append(found, n)
		}
	}
	on := "any disk"
	if disk != "" {
		on = disk
	}
	switch len(found) {
	case 0:
		return Node{}, fmt.Errorf("%w: %q on %s", ErrNoPartition, label, on)
	case 1:
		return found[0], nil
	}
	return Node{}, fmt.Errorf("%w: %q is %s and %s", ErrDuplicateLabel, label, found[0].Path, found[1].Path)
}

// LocateUUID returns the partition with the UUID (any case), as a boot stub
// names the one it was started from. It reads the tables of all disks, since
// older kernels do not export the UUID; a disk without a valid table is passed
// over.
func (h Host) LocateUUID(uuid string) (Node, error) {
	nodes, err := h.Nodes()
	if err != nil {
		return Node{}, err
	}
	tables := make(map[string][]Part)
	var found []Node
	for _, n := range nodes {
		parts, read := tables[n.Disk]
		if !read {
			// A card reader without a card, a disk that dies: not the one we look for.
			parts, _ = h.table(n.Disk)
			tables[n.Disk] = parts
		}
		for _, p := range parts {
			if p.Number == n.Number && strings.EqualFold(p.UUID, uuid) {
				found = append(found, n)
			}
		}
	}
	switch len(found) {
	case 0:
		return Node{}, fmt.Errorf("%w: UUID %s", ErrNoPartition, uuid)
	case 1:
		return found[0], nil
	}
	return Node{}, fmt.Errorf("%w: UUID %s is %s and %s", ErrDuplicateLabel, uuid, found[0].Path, found[1].Path)
}

func (h Host) table(disk string) ([]Part, error) {
	f, err := OpenRead(filepath.Join(h.Dev, filepath.FromSlash(strings.ReplaceAll(disk, "!", "/"))))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadTable(f, f.SectorSize())
}

// Nodes returns all partitions of all disks, sorted by kernel name.
func (h Host) Nodes() ([]Node, error) {
	class := filepath.Join(h.Sys, "class", "block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var nodes []Node
	for _, e := range entries {
		node, err := h.node(filepath.Join(class, e.Name()))
		// A device that was unplugged while we looked is not there.
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("list block devices: %s: %w", e.Name(), err)
		}
		if node.Number > 0 {
			nodes = append(nodes, node)
		}
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].Name < nodes[j].Name })
	return nodes, nil
}

// node reads one device; a Number of 0 means that it is no partition.
func (h Host) node(dir string) (Node, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Node{}, err
	}
	text, err := os.ReadFile(filepath.Join(real, "uevent"))
	if err != nil {
		return Node{}, err
	}
	n := Node{Name: filepath.Base(real)}
	var major, minor string
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "MAJOR":
			major = value
		case "MINOR":
			minor = value
		case "DEVNAME":
			n.Path = filepath.Join(h.Dev, value)
		case "PARTN":
			if n.Number, err = strconv.Atoi(value); err != nil {
				return Node{}, err
			}
		case "PARTNAME":
			n.Label = value
		}
	}
	n.Device = major + ":" + minor
	if n.Number > 0 {
		n.Disk = filepath.Base(filepath.Dir(real)) // a partition is a folder in its disk's
	}
	return n, nil
}

// RootDisk returns the kernel name of the disk that holds the root file system,
// followed down through verity and other mapped devices. It is ErrNoPartition if
// the root is not on one disk (a RAM disk, a network, several disks).
func (h Host) RootDisk() (string, error) {
	mounts, err := h.mounts()
	if err != nil {
		return "", err
	}
	device := ""
	for _, m := range mounts {
		if m.at == "/" {
			device = m.device // the last one hides those before it
		}
	}
	return h.DiskOf(device)
}

// DiskOf returns the kernel name of the disk that a device ("major:minor") lies
// on, followed down through mapped devices. It is ErrNoPartition if there is
// none, or more than one.
func (h Host) DiskOf(device string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(h.Sys, "dev", "block", device))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: device %q is not on a disk", ErrNoPartition, device)
	} else if err != nil {
		return "", err
	}
	disks := make(map[string]bool)
	if err := h.descend(dir, disks, 0); err != nil {
		return "", err
	}
	if len(disks) != 1 {
		return "", fmt.Errorf("%w: device %q is on %d disks", ErrNoPartition, device, len(disks))
	}
	for disk := range disks {
		return disk, nil
	}
	panic("unreachable: there is exactly one")
}

func (h Host) descend(dir string, disks map[string]bool, depth int) error {
	if depth > 16 {
		return fmt.Errorf("block devices at %s are stacked too deep", dir)
	}
	slaves, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // partitions have no such folder
		return err
	}
	for _, s := range slaves {
		below, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", s.Name()))
		if err != nil {
			return err
		}
		if err := h.descend(below, disks, depth+1); err != nil {
			return err
		}
	}
	if len(slaves) > 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	disks[filepath.Base(dir)] = true
	return nil
}

// InUse returns ErrMounted or ErrHeld, with the label and by what, if the
// partition is in use. OpenFile refuses such a partition too; this says why.
func (h Host) InUse(n Node) error {
	mounts, err := h.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.device == n.Device {
			return fmt.Errorf("%s (%s): %w on %s", n.Label, n.Path, ErrMounted, m.at)
		}
	}
	dir := filepath.Join(h.Sys, "dev", "block", n.Device, "holders")
	holders, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(holders) > 0 {
		by := holders[0].Name()
		if name, err := os.ReadFile(filepath.Join(dir, by, "dm", "name")); err == nil {
			by += " (" + strings.TrimSpace(string(name)) + ")"
		}
		return fmt.Errorf("%s (%s): %w: %s", n.Label, n.Path, ErrHeld, by)
	}
	return nil
}

type mount struct{ device, at string }

// mounts reads what is mounted in our own name space. What another name space
// has mounted does not show here, but makes OpenFile fail.
func (h Host) mounts() ([]mount, error) {
	f, err := os.Open(filepath.Join(h.Proc, "self", "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	var mounts []mount
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// proc(5): mount ID, parent ID, major:minor, root, mount point, …
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return nil, fmt.Errorf("list mounts: unexpected line %q", lines.Text())
		}
		mounts = append(mounts, mount{device: fields[2], at: unescape(fields[4])})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return mounts, nil
}

// unescape undoes the octal escapes of mountinfo (blank, tab, newline, backslash).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
