package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/qemu"
)

// tools are the programs of others that the device's word is compared with, and their
// Debian packages.
var tools = map[string]string{
	"grub-editenv": "grub-common", "sfdisk": "fdisk", "sha256sum": "coreutils", "veritysetup": "cryptsetup-bin", "tpm2_nvread": "tpm2-tools", "mke2fs": "e2fsprogs",
}

// equipped reports everything that is missing here, at once.
func equipped() error {
	missing := map[string]string{}
	for tool, deb := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing[tool] = deb
		}
	}
	if len(missing) > 0 {
		return &qemu.MissingError{What: missing}
	}
	return qemu.Check(qemu.Config{TPM: true})
}

// copies of the boot record in the env partition, by the byte at which they begin; see
// bootctl/grubenv/FORMAT.md. The confirmed one is the last.
var copies = []int64{64 << 10, 128 << 10, 192 << 10}

// bootRecord is what grub-editenv reads in the copy that is in force, and in the
// confirmed one. The machine stands still meanwhile, its watchdog too.
func (p *play) bootRecord(ctx context.Context) (record, confirmed map[string]string, err error) {
	if p.off == nil {
		if err := p.machine.Freeze(ctx); err != nil {
			return nil, nil, err
		}
		defer func() {
			if thaw := p.machine.Thaw(ctx); err == nil {
				err = thaw
			}
		}()
	}
	var found []map[string]string
	for i, at := range copies {
		file := filepath.Join(p.dir, "env-"+strconv.Itoa(i))
		if err := p.machine.Extract(ctx, p.board.Bootloader.Env, at, 1024, file); err != nil {
			return nil, nil, err
		}
		out, err := exec.CommandContext(ctx, "grub-editenv", file, "list").CombinedOutput()
		if err != nil {
			return nil, nil, fmt.Errorf("grub-editenv: %w: %s", err, out)
		}
		values := map[string]string{}
		for line := range strings.Lines(string(out)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			values[name] = value
		}
		found = append(found, values)
	}
	// Generations run 0, 1, 2, 0: copy 1 is in force if it is one ahead.
	record = found[0]
	switch found[0]["gen"] + found[1]["gen"] {
	case "01", "12", "20":
		record = found[1]
	}
	return record, found[2], nil
}

// checkRecord compares the boot record with "good=b trying=none …".
func (p *play) checkRecord(ctx context.Context, want string) error {
	record, _, err := p.bootRecord(ctx)
	if err != nil {
		return err
	}
	var have []string
	for pair := range strings.FieldsSeq(want) {
		name, _, _ := strings.Cut(pair, "=")
		have = append(have, name+"="+record[name])
	}
	return p.compare("grub-editenv", "boot record", strings.Join(have, " "), want)
}

// checkSlot compares the partitions of a slot with the images of a release: sha256sum
// for all, and veritysetup for the root file system.
func (p *play) checkSlot(ctx context.Context, slot string, r parcel) (err error) {
	set, err := r.images()
	if err != nil {
		return err
	}
	if p.off == nil {
		if err := p.machine.Freeze(ctx); err != nil {
			return err
		}
		defer func() {
			if thaw := p.machine.Thaw(ctx); err == nil {
				err = thaw
			}
		}()
	}
	for _, i := range set.Images {
		label := i.Target + "_" + slot
		file := filepath.Join(p.dir, label)
		if err := p.machine.Extract(ctx, label, 0, i.Size, file); err != nil {
			return err
		}
		defer os.Remove(file)
		out, err := exec.CommandContext(ctx, "sha256sum", file).Output()
		if err != nil {
			return fmt.Errorf("sha256sum: %w", err)
		}
		sum, _, _ := strings.Cut(string(out), " ")
		if err := p.compare("sha256sum", fmt.Sprintf("partition %s, %s of %s", label, i.File, r.m.Version), sum, i.SHA256); err != nil {
			return err
		}
		if i.Verity == nil {
			continue
		}
		at := strconv.FormatInt(i.Verity.DataBlocks*4096, 10)
		if out, err := exec.CommandContext(ctx, "veritysetup", "verify", "--hash-offset="+at, file, file, i.Verity.RootHash).CombinedOutput(); err != nil {
			return fmt.Errorf("veritysetup: partition %s: %w: %s", label, err, out)
		}
		p.agreed("veritysetup", fmt.Sprintf("partition %s, root hash %s", label, short(i.Verity.RootHash)))
	}
	return nil
}

// checkRegister compares the register, as the device's kernel reads it, with what it
// must be if the running release was measured and nothing else.
func (p *play) checkRegister(ctx context.Context, r parcel) error {
	file := "/sys/class/tpm/tpm0/pcr-sha256/" + strconv.Itoa(p.board.TPM.PCR)
	res, err := p.machine.Run(ctx, qemu.Command{Argv: []string{"cat", file}})
	if err != nil {
		return err
	}
	if res.Code != 0 {
		return fmt.Errorf("read %s: exit code %d: %s", file, res.Code, res.Stderr)
	}
	manifest := r.sum.Sum()
	want := sha256.Sum256(append(make([]byte, 32), manifest[:]...))
	what := fmt.Sprintf("PCR %d in the kernel's sysfs, SHA-256(0…0, manifest of %s)", p.board.TPM.PCR, r.m.Version)
	return p.compare("sysfs", what, strings.ToLower(strings.TrimSpace(res.Stdout)), hex.EncodeToString(want[:]))
}

// checkLedger compares the NV index in the TPM of a device that is off with what the
// device said last.
func (p *play) checkLedger(ctx context.Context) error {
	out, err := p.machine.TPM(ctx, "tpm2_nvread", fmt.Sprintf("%#08x", uint32(p.board.TPM.Ledger)))
	if err != nil {
		return err
	}
	return p.compare("tpm2_nvread", "the ledger", hex.EncodeToString(out), p.state.TPM.Ledger)
}

func (p *play) compare(tool, what, have, want string) error {
	if have != want {
		return fmt.Errorf("%s does not agree: %s is %q, want %q", tool, what, have, want)
	}
	p.agreed(tool, what+": "+short64(have))
	return nil
}

// short64 shortens hashes, and nothing else.
func short64(s string) string {
	if len(s) == 64 {
		return short(s)
	}
	return s
}

func (p *play) agreed(tool, what string) {
	p.checks = append(p.checks, tool)
	p.line("check", "%s agrees: %s", tool, what)
}
