package early

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/verity"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// ErrMismatch means that the signed manifest of root_x describes another root
// file system than the one that boot_x's command line names: the two halves
// of the slot are of different releases.
var ErrMismatch = errors.New("kernel and root file system are not of one release")

// ErrFileSystem means that the root partition holds none of the read-only file
// systems that are known here.
var ErrFileSystem = errors.New("unknown root file system")

const (
	// sysroot is where the root file system is until it becomes the root.
	sysroot = "/sysroot"
	// measuredPCR is free on systems without shim; see tpm's documentation.
	measuredPCR = 14
)

// openRoot makes the root file system trustworthy and mounts it.
//
// The order is the point: the record's signature, then that the record and this
// kernel's command line name the same verity root, and only then is the
// partition opened, so that not one byte of a foreign file system is parsed.
func (b *boot) openRoot() error {
	value, err := b.line.Value("tandem.verity")
	if err != nil {
		return err
	}
	if value == "" {
		return fmt.Errorf("%w: no tandem.verity", ErrCmdline)
	}
	params, err := verity.ParseParams(value)
	if err != nil {
		return err
	}
	node, err := b.host.Locate("root_"+string(b.slot), b.node.Disk)
	if err != nil {
		return err
	}
	m, err := b.verifiedManifest(node)
	if err != nil {
		return err
	}
	if err := sameRoot(m, params); err != nil {
		return err
	}
	b.report.Version, b.report.Verity = m.Version, fmt.Sprintf("%x", params.Root)

	params.OnCorrupt = b.onCorruption()
	device, err := verity.Activate(node.Label, node.Path, params)
	if err != nil {
		return err
	}
	kind, options, err := fileSystem(device)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(sysroot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, sysroot, kind, unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("mount %s as %s: %w", device, kind, err)
	}
	b.say("%s %s on %s", m.Product, m.Version, node.Label)
	return nil
}

// verifiedManifest reads the slot record and checks its signature with the keys
// of the initramfs. There is no expiry here: a device that slept for years boots.
func (b *boot) verifiedManifest(node partition.Node) (manifest.Manifest, error) {
	disk, err := partition.OpenRead(node.Path)
	if err != nil {
		return manifest.Manifest{}, err
	}
	defer disk.Close()
	record, err := partition.ReadRecord(disk)
	if err != nil {
		return manifest.Manifest{}, err
	}
	text, err := os.ReadFile(keysFile)
	if err != nil {
		return manifest.Manifest{}, err
	}
	keys, err := trust.ParseKeySet(text)
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("release keys: %w", err)
	}
	payload, err := trust.Verify(record.Envelope, trust.ManifestType, keys)
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("slot record of %s: %w", node.Label, err)
	}
	m, err := manifest.Parse(payload)
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("slot record of %s: %w", node.Label, err)
	}
	b.report.Manifest = string(manifest.DigestOf(payload))
	return m, nil
}

// sameRoot compares the manifest's root image with the command line.
func sameRoot(m manifest.Manifest, p verity.Params) error {
	for _, image := range m.Images {
		if image.Type != "slot" || image.Target != "root" {
			continue
		}
		v := image.Verity
		if v == nil {
			return fmt.Errorf("%w: the manifest has no verity root", ErrMismatch)
		}
		if v.RootHash != fmt.Sprintf("%x", p.Root) || v.Salt != fmt.Sprintf("%x", p.Salt) || v.DataBlocks != p.DataBlocks {
			return fmt.Errorf("%w: manifest %s, command line %x", ErrMismatch, v.RootHash, p.Root)
		}
		return nil
	}
	return fmt.Errorf("%w: the manifest has no root image", ErrMismatch)
}

// onCorruption decides what a damaged block does. During a trial it ends the
// boot, by a panic so that the reason survives in pstore, and the loader counts
// the try. A committed system instead sees a read error: it has nothing to go
// back to by itself, and a restart loop helps nobody. When it is unknown
// whether this is a trial, it is none: a loader that cannot read the record
// boots the good slot.
func (b *boot) onCorruption() verity.Corruption {
	trial, err := b.onTrial()
	if err != nil {
		b.problem("read boot record: %v", err)
	}
	if trial {
		return verity.Panic
	}
	return verity.Fail
}

func (b *boot) onTrial() (bool, error) {
	node, err := b.host.Locate("env", b.node.Disk)
	if err != nil {
		return false, err
	}
	env, err := partition.OpenRead(node.Path)
	if err != nil {
		return false, err
	}
	defer env.Close()
	return b.OnTrial(env, b.slot)
}

// fileSystem names the file system on a device by its magic number, and the
// mount options that keep it from writing.
func fileSystem(device string) (kind, options string, err error) {
	f, err := os.Open(device)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	var head [4096]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return "", "", fmt.Errorf("read %s: %w", device, err)
	}
	return fileSystemOf(head[:])
}

func fileSystemOf(head []byte) (kind, options string, err error) {
	switch {
	case binary.LittleEndian.Uint32(head[1024:]) == 0xe0f5e1e2:
		return "erofs", "", nil
	case string(head[:4]) == "hsqs":
		return "squashfs", "", nil
	case binary.LittleEndian.Uint16(head[1024+0x38:]) == 0xef53:
		// noload: even a read-only mount replays a journal, into a device
		// that refuses writes.
		return "ext4", "noload", nil
	}
	return "", "", ErrFileSystem
}
