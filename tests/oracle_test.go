package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/qemu"
)

// tools that a device's word is compared with, and their Debian packages.
var tools = map[string]string{
	"grub-editenv": "grub-common", "sfdisk": "fdisk", "sha256sum": "coreutils", "veritysetup": "cryptsetup-bin",
	"tpm2_nvread": "tpm2-tools", "mosquitto": "mosquitto", "mosquitto_sub": "mosquitto-clients", "mkfs.vfat": "dosfstools", "fsck.vfat": "dosfstools", "mcopy": "mtools",
}

// oracles reports the tools that are missing.
func oracles() error {
	missing := map[string]string{}
	for tool, deb := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing[tool] = deb
		}
	}
	if len(missing) > 0 {
		return &qemu.MissingError{What: missing}
	}
	return nil
}

// copies of the boot record in the env partition, by the bytes at which they
// begin (package bootctl/grubenv); each is one GRUB environment block.
var copies = []struct {
	name string
	at   int64
}{{"0", 64 << 10}, {"1", 128 << 10}, {"confirmed", 192 << 10}}

const environmentBlock = 1024 // bytes; GRUB manual, "The GRUB environment block"

// bootenv list prints the boot record as grub-editenv reads it, one line
// "COPY: NAME=VALUE" for each value, and "COPY: unreadable" for a damaged copy.
//
// bootenv destroy COPY… overwrites copies.
func bootenvCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	d := s.need(ts)
	if neg || len(args) == 0 || args[0] != "list" && args[0] != "destroy" {
		ts.Fatalf("usage: bootenv list | bootenv destroy COPY…")
	}
	for _, c := range copies {
		switch {
		case args[0] == "list":
			file := filepath.Join(s.logs, "env-"+c.name)
			ts.Check(d.Extract(s.ctx, "env", c.at, environmentBlock, file))
			out, err := exec.Command("grub-editenv", file, "list").CombinedOutput()
			if err != nil {
				fmt.Fprintf(ts.Stdout(), "%s: unreadable\n", c.name)
				continue
			}
			for line := range strings.Lines(string(out)) {
				fmt.Fprintf(ts.Stdout(), "%s: %s\n", c.name, strings.TrimSpace(line))
			}
		case contains(args[1:], c.name):
			ts.Check(d.Overwrite(s.ctx, "env", c.at, make([]byte, environmentBlock)))
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// part looks at partitions from outside, while the device is off or frozen:
//
//	part holds SLOT RELEASE        both images are in the slot, says sha256sum
//	part verity SLOT RELEASE       the root image is whole, says veritysetup
//	part damage LABEL OFFSET COUNT overwrites bytes
//	part destroy LABEL             overwrites the first MiB
func partCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	d := s.need(ts)
	if len(args) < 2 {
		ts.Fatalf("usage: part holds|verity SLOT RELEASE | part damage LABEL OFFSET COUNT | part destroy LABEL")
	}
	var err error
	switch {
	case args[0] == "holds" && len(args) == 3:
		err = s.holds(d, args[1], args[2])
	case args[0] == "verity" && len(args) == 3:
		err = s.verity(d, args[1], args[2])
	case args[0] == "damage" && len(args) == 4 && !neg:
		at, e1 := strconv.ParseInt(args[2], 0, 64)
		n, e2 := strconv.Atoi(args[3])
		ts.Check(errors.Join(e1, e2))
		ts.Check(d.Overwrite(s.ctx, args[1], at, junk(n)))
		return
	case args[0] == "destroy" && len(args) == 2 && !neg:
		ts.Check(d.Overwrite(s.ctx, args[1], 0, junk(1<<20)))
		return
	default:
		ts.Fatalf("part: cannot do %q", args)
	}
	if neg && err == nil {
		ts.Fatalf("unexpected: %q is so", args)
	}
	if !neg {
		ts.Check(err)
	}
}

func junk(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + 0x5a)
	}
	return p
}

// slots reads slots.json of a release.
func (s *story) slots(release string) (image.SlotSet, error) {
	var set image.SlotSet
	text, err := os.ReadFile(filepath.Join(s.factory.Slots(release), image.SlotsFile))
	if err == nil {
		err = json.Unmarshal(text, &set)
	}
	return set, err
}

func (s *story) holds(d *qemu.Device, slot, release string) error {
	set, err := s.slots(release)
	if err != nil {
		return err
	}
	for _, i := range set.Images {
		label := i.Target + "_" + slot
		file := filepath.Join(s.logs, label)
		if err := d.Extract(s.ctx, label, 0, i.Size, file); err != nil {
			return err
		}
		out, err := exec.Command("sha256sum", file).Output()
		os.Remove(file)
		if err != nil {
			return err
		}
		if sum, _, _ := strings.Cut(string(out), " "); sum != i.SHA256 {
			return fmt.Errorf("partition %s has SHA-256 %s, release %s has %s", label, sum, release, i.SHA256)
		}
	}
	return nil
}

func (s *story) verity(d *qemu.Device, slot, release string) error {
	set, err := s.slots(release)
	if err != nil {
		return err
	}
	for _, i := range set.Images {
		if i.Verity == nil {
			continue
		}
		file := filepath.Join(s.logs, i.Target+"_"+slot)
		defer os.Remove(file)
		if err := d.Extract(s.ctx, i.Target+"_"+slot, 0, i.Size, file); err != nil {
			return err
		}
		at := strconv.FormatInt(i.Verity.DataBlocks*4096, 10)
		out, err := exec.Command("veritysetup", "verify", "--hash-offset="+at, file, file, i.Verity.RootHash).CombinedOutput()
		if err != nil {
			return fmt.Errorf("veritysetup: %w: %s", err, out)
		}
		return nil
	}
	return fmt.Errorf("release %s has no verity image", release)
}

// tpm nvread INDEX prints the bytes of an NV index in hex, as tpm2_nvread reads
// them from the TPM of the device, which is off.
//
// tpm pcr N prints a register as the device's kernel reads it.
func tpmCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	d := s.need(ts)
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tpm nvread INDEX | tpm pcr N")
	}
	switch args[0] {
	case "nvread":
		out, err := d.TPM(s.ctx, "tpm2_nvread", args[1])
		ts.Check(err)
		fmt.Fprintf(ts.Stdout(), "%x\n", out)
	case "pcr":
		res, err := d.Run(s.ctx, qemu.Command{Argv: []string{"cat", "/sys/class/tpm/tpm0/pcr-sha256/" + args[1]}})
		ts.Check(err)
		fmt.Fprintln(ts.Stdout(), strings.ToLower(strings.TrimSpace(res.Stdout)))
	default:
		ts.Fatalf("tpm: cannot do %q", args)
	}
}
