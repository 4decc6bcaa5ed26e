package early

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
)

const dataDir = "/data"

// mountKernel mounts what the kernel shows of itself. A file system that the
// kernel or an earlier run mounted already is left as it is.
func mountKernel() error {
	for _, m := range []struct {
		kind, dir, options string
		flags              uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "mode=755", unix.MS_NOSUID},
		{"tmpfs", "/run", "mode=755,size=20%", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	return nil
}

// mountEFI mounts the firmware's variables and what a panic left there. A board
// without UEFI has no such directory in sysfs, and pstore may have no backend.
func mountEFI() error {
	if _, err := os.Stat(efivars); err == nil {
		err := unix.Mount("efivarfs", efivars, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("efivarfs: %w", err)
		}
	}
	err := unix.Mount("pstore", "/sys/fs/pstore", "pstore", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("pstore: %w", err)
	}
	return nil
}

// mountData mounts the data partition of the same disk, or a RAM disk in its
// place. Losing the data partition must not lose the device: it boots, the
// report says so, and the agent decides what to do about it. Nothing is
// repaired or formatted here, since what looks blank may be a failing disk.
func (b *boot) mountData() error {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return err
	}
	node, err := b.host.Locate("data", b.node.Disk)
	if err == nil {
		if err = unix.Mount(node.Path, dataDir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, ""); err == nil {
			b.data, b.report.Data = true, bootreport.DataMounted
			return nil
		}
		err = fmt.Errorf("mount %s: %w", node.Path, err)
	}
	b.report.Data = bootreport.DataMissing
	b.problem("data partition: %v; a RAM disk takes its place", err)
	return unix.Mount("tmpfs", dataDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=20%")
}

// prepareRoot puts the writable places into the read-only root: /data, and /etc
// as an overlay whose changes belong to this slot alone, so that a revert finds
// the configuration as the old system left it.
//
// A failing overlay leaves /etc read-only, which the agent and a person can
// still work with.
func (b *boot) prepareRoot() error {
	if err := b.overlayEtc(); err != nil {
		b.problem("overlay on /etc: %v", err)
	}
	if err := unix.Mount(dataDir, sysroot+dataDir, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s: %w", dataDir, err)
	}
	b.root = sysroot
	return nil
}

func (b *boot) overlayEtc() error {
	upper := filepath.Join(dataDir, "etc-"+string(b.slot))
	work := filepath.Join(dataDir, ".etc-"+string(b.slot)+".work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	etc := sysroot + "/etc"
	// The trust anchors stay those of the image: whoever can write to /data
	// must not be able to exchange the keys that judge the next release. The
	// handle sees below the overlay that is about to cover it.
	anchors, err := unix.Open(etc+"/tandem", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", etc, upper, work)
	if err := unix.Mount("overlay", etc, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return err
	}
	if anchors < 0 {
		return nil
	}
	defer unix.Close(anchors)
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", anchors), etc+"/tandem", "", unix.MS_BIND, "")
}
