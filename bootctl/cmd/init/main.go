// Init is /init of the initramfs in a slot's boot part: the first program of a
// boot. It takes no arguments; package early says what it does, step by step,
// and what it needs in the initramfs and on the kernel's command line.
//
// This one is for boards that keep the boot record in GRUB environment blocks on
// the partition "env", with or without a TPM. It ends by becoming /sbin/init of the slot, or by
// restarting the machine with one line on the console that says why.
package main

import (
	"os"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/early"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/tpm"
)

func main() {
	if err := early.Run(early.Config{Measure: measure, OnTrial: onTrial}); err != nil {
		// The restart that Run asked for did not happen. The end of the first
		// program is a panic, and "panic=" restarts then.
		os.Exit(1)
	}
}

func measure(pcr int, digest [32]byte) error {
	t, err := tpm.Open(tpm.Device)
	if err != nil {
		return err
	}
	defer t.Close()
	_, err = t.Measure(pcr, digest)
	return err
}

func onTrial(env partition.Disk, slot bootctl.Slot) (bool, error) {
	record, err := grubenv.Open(env).Load()
	return err == nil && record.Trying == slot, err
}
