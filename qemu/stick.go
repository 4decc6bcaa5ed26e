package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	sector = 512
	// stickStart is where the first partition of a stick begins, in bytes: where
	// Windows and sfdisk put it.
	stickStart = 1 << 20
	// stickLeast is the smallest partition, in bytes. FAT32 has at least 65525
	// clusters (Microsoft, FAT specification 1.03, "FAT Type Determination").
	stickLeast = 64 << 20
	// stickFile is the largest file of FAT, in bytes: its size has 32 bits.
	stickFile = 1<<32 - 1
	// stickCluster is the largest cluster that mkfs.vfat chooses, in
	// bytes; a file takes whole ones.
	stickCluster = 32 << 10
)

// ErrStickFile means that a file is larger than FAT can hold. The release has to
// travel as a folder, or without the payloads that the device does not need.
var ErrStickFile = errors.New("4 GiB or more, which FAT cannot hold")

// MakeStick makes the image of a memory stick as they are sold, with the given
// files and folders in its root: a partition table of the old kind (MBR) with one
// FAT32 partition. It needs sfdisk, mkfs.vfat and mcopy.
//
// The image is sparse and a little larger than the files. It appears under its
// name only when it is whole; if MakeStick fails, calling it again is safe.
func MakeStick(ctx context.Context, image string, files ...string) error {
	if err := makeStick(ctx, image, files); err != nil {
		return fmt.Errorf("make stick %s: %w", image, err)
	}
	return nil
}

func makeStick(ctx context.Context, image string, files []string) error {
	missing := map[string]string{}
	for tool, deb := range map[string]string{"sfdisk": "fdisk", "mkfs.vfat": "dosfstools", "mcopy": "mtools"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing[tool] = deb
		}
	}
	if len(missing) > 0 {
		return &MissingError{missing}
	}
	size, err := stickSize(files)
	if err != nil {
		return err
	}
	temp := image + ".new"
	if err := os.WriteFile(temp, nil, 0o644); err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Truncate(temp, stickStart+size); err != nil {
		return err
	}
	start := fmt.Sprint(stickStart / sector)
	// Type c: FAT32, addressed by block. The boot sector repeats where its
	// partition begins ("hidden sectors"); some firmware goes by that.
	if err := tool(ctx, "label: dos\nstart="+start+", type=c\n", "sfdisk", "--quiet", temp); err != nil {
		return err
	}
	if err := tool(ctx, "", "mkfs.vfat", "-F", "32", "-n", "STICK", "-h", start, "--offset", start, temp); err != nil {
		return err
	}
	if len(files) > 0 {
		// -Q: the first file that does not fit is the end, not a question.
		argv := append([]string{"mcopy", "-s", "-Q", "-i", fmt.Sprintf("%s@@%d", temp, stickStart)}, files...)
		if err := tool(ctx, "", append(argv, "::/")...); err != nil {
			return err
		}
	}
	return os.Rename(temp, image)
}

// stickSize is how large a partition holds the files, in bytes.
func stickSize(files []string) (int64, error) {
	var sum int64
	for _, f := range files {
		err := filepath.WalkDir(f, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			// As mcopy does, follow links.
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			if info.Mode().IsRegular() {
				if info.Size() > stickFile {
					return fmt.Errorf("%s has %d bytes: %w", path, info.Size(), ErrStickFile)
				}
				sum += info.Size()
			}
			// What does not fill a cluster, and room for the name in its folder.
			sum += 2 * stickCluster
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	// Two tables of four bytes for each cluster, of 512 bytes at least.
	const mib = 1 << 20
	sum += sum/32 + mib
	return max(stickLeast, (sum+mib-1)/mib*mib), nil
}

// tool runs a program that says nothing when all is well.
func tool(ctx context.Context, stdin string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
