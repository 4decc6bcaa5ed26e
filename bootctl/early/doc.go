// Package early is the first program of a boot: what runs in the initramfs of a
// slot's boot part, between the kernel and /sbin/init of the slot's root part.
//
// The firmware or the loader has verified and measured the boot part as far as
// the board can. This program carries that trust over to the root part, and
// makes sure that a boot which does not work ends in a reset that the loader
// counts. Everything it needs is in the initramfs, and so covered by whatever
// covers the boot part:
//
//	/init                             the program (bootctl/cmd/init)
//	/etc/tandem/modules               kernel modules in the order of loading
//	/etc/tandem/release-keys.json     who may sign what a slot holds
//	/lib/modules/…                    the modules
//
// and on the kernel's command line:
//
//	tandem.verity=1,BLOCKS,SALT,ROOT  the root file system of this release (partition/verity)
//	tandem.watchdog=SECONDS           optional, 1 to 3600, default 60
//	tandem.slot=a|b                   only for a kernel that was started without UEFI stub, in the lab
//	watchdog.handle_boot_enabled=0    for the kernel: do not feed on our behalf
//	panic=5 oops=panic                for the kernel: a broken one restarts
//
// # The steps
//
//  1. Mount /proc, /sys, /dev, /run.
//  2. Read the command line.
//  3. Ask whether the loader armed the watchdog, then load the modules. The
//     watchdog device is opened the moment its driver made it, and its time-out set:
//     drivers stop at their start what the loader had armed. From here on a
//     step that is done is what feeds it, and nothing else.
//  4. Find out which slot this is, from the UUID that the UEFI stub left of the
//     partition it was started from. Both slots hold the same bytes, so neither
//     the kernel nor its command line can know.
//  5. Mount data. Early, because all later failures want to be written down.
//  6. Note the attempt, with what the boot before could not write itself: the
//     watchdog's status and the kernel's last words. Then clear those.
//  7. Open the root: slot record and its signature (never its age: a device that
//     slept for years boots), the record's verity root against the command line's,
//     the verity device, the file system. Both halves of the slot are of one
//     release, or the boot ends here.
//  8. Measure the manifest's digest into PCR 14, before any byte of the measured
//     system runs; what runs cannot measure itself. PCR 14 has no other user
//     where there is no shim (UAPI.7).
//  9. Put /data and the slot's own /etc into the root. /etc/tandem stays the
//     image's: the trust anchors in it cannot be overlaid.
//  10. Write /run/tandem/boot.json and note that the initramfs is done.
//  11. Move the root, and become its /sbin/init, with the watchdog's descriptor
//     open and its number in WATCHDOG_FD. /sbin/init has one time-out to have
//     somebody feed it.
//
// # When something fails
//
// One line "tandem-init: STEP: CAUSE" on the console, the same in
// /data/tandem/attempts if that can be reached, and a restart. Never a shell,
// never a wait without a bound. Not every fault is a failure: a missing TPM, a
// missing or unreadable data partition, an overlay that cannot be mounted, a
// module that cannot be loaded and a board without watchdog are problems in
// boot.json (package bootreport), for the agent to judge.
//
// # What it does not do
//
// It does not choose a slot, count tries or write any boot record (the loader
// and package bootctl do), does not check the age or order of a release
// (updater/trust), and does not format or repair anything.
package early
