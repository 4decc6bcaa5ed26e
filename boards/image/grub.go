package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
)

// GRUB returns the board's bootloader as one EFI program, with the modules it
// needs and its configuration inside: there is no file beside it that could be
// changed, and firmware that verifies or measures it covers the configuration
// too.
func GRUB(ctx context.Context, b boards.Board) ([]byte, error) {
	loader, err := grubImage(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("make bootloader: %w", err)
	}
	return loader, nil
}

func grubParams(b boards.Board) (grubenv.Params, error) {
	p := grubenv.Params{Serial: -1, WatchdogSeconds: b.Watchdog.LoaderSeconds}
	for label, number := range map[string]*int{
		b.Bootloader.Env:        &p.Env,
		b.Slots[bootctl.A].Boot: &p.BootA,
		b.Slots[bootctl.B].Boot: &p.BootB,
	} {
		place, err := b.Place(label)
		if err != nil {
			return p, err
		}
		*number = place.Number
	}
	if unit, ok := strings.CutPrefix(b.Kernel.Console, "ttyS"); ok {
		n, err := strconv.Atoi(unit)
		if err != nil {
			return p, fmt.Errorf("console %q", b.Kernel.Console)
		}
		p.Serial = n
	}
	if b.Watchdog.LoaderSeconds > 0 {
		p.Watchdog = b.Watchdog.Kind
	}
	return p, nil
}

func grubImage(ctx context.Context, b boards.Board) ([]byte, error) {
	if b.Arch != "amd64" {
		return nil, fmt.Errorf("GRUB for %s is not known here", b.Arch)
	}
	mkimage, err := exec.LookPath("grub-mkimage")
	if err != nil {
		return nil, errors.New("grub-mkimage not found; install the packages grub-common and grub-efi-amd64-bin")
	}
	p, err := grubParams(b)
	if err != nil {
		return nil, err
	}
	config, err := grubenv.Config(p)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tandem-grub-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var disk bytes.Buffer
	w := tar.NewWriter(&disk)
	h := tar.Header{Name: "boot/grub/grub.cfg", Mode: 0o644, Size: int64(len(config)), ModTime: Epoch, Format: tar.FormatUSTAR}
	if err := w.WriteHeader(&h); err != nil {
		return nil, err
	}
	if _, err := w.Write([]byte(config)); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	memdisk, out := filepath.Join(dir, "memdisk.tar"), filepath.Join(dir, "grub.efi")
	if err := os.WriteFile(memdisk, disk.Bytes(), 0o600); err != nil {
		return nil, err
	}
	args := append([]string{"-O", "x86_64-efi", "-p", "(memdisk)/boot/grub", "-m", memdisk, "-o", out}, grubenv.Modules(p)...)
	cmd := exec.CommandContext(ctx, mkimage, args...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("grub-mkimage: %w: %s", err, bytes.TrimSpace(output))
	}
	return os.ReadFile(out)
}
