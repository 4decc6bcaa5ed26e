// Updater is the device program of Tandem. It brings a signed release into the slot
// that does not run, boots it on trial, and goes back unless it proves itself.
//
//	updater run                      the agent: follows the fleet, serves the other commands
//	updater install RELEASE          from a folder or tar file (a USB stick), then reboots
//	        -full        take whole images where nothing smaller fits
//	        -force       also what is not newer, or failed here before
//	        -hold        do not reboot
//	updater status                   what runs, what is in the slots, how the last update ended
//	updater commit                   vouch for the system on trial
//	        -force       only in an alarm (exit code 6): neither the good slot nor one on
//	                     trial runs, or the boot record cannot be read. Compares the
//	                     running slot with its signed manifest, says what it finds, and
//	                     makes the slot the good one; refused (3) if there is no alarm
//	updater rollback [-force]        boot the other slot again; on trial: give it up
//	updater cancel                   give up the installation that runs
//	updater verify [RELEASE]         compare both slots with their manifests, or check a release
//	updater doctor                   look for what will make trouble, and say what to do
//	updater version
//
// With -json (after the command) the output is JSON. status, verify, doctor, install,
// commit and rollback work without an agent too. Configuration is in
// /etc/tandem/device.json (in the image) and /data/tandem/provision (per device).
//
// Exit codes:
//
//	0  done                               4  busy: another installation runs
//	1  could not be done                  5  this is no Tandem device, or no agent runs
//	2  wrong usage                        6  alarm: the boot record needs a person
//	3  refused: signature, board,         7  nothing to do: it runs already
//	   sequence, epoch, policy, failed before
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/tandem-ota/tandem/updater/control"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if slices.Contains(os.Args, "-json") || slices.Contains(os.Args, "--json") {
		_ = json.NewEncoder(os.Stdout).Encode(control.Line{Error: err.Error(), Code: codeOf(err)})
	}
	fmt.Fprintln(os.Stderr, "updater:", err)
	if hint := hintFor(err); hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", hint)
	}
	os.Exit(codeOf(err))
}
