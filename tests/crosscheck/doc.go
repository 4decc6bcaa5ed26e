// Package crosscheck compares what our own tests believe with what others see: the
// device program as it is shipped, on a workbench, under tools that are not ours.
//
//   - TestRecorder: QEMU's blklogwrites records an installation by the program, and
//     partition/disktest records the same one by package updater; the logs are equal.
//   - TestGuestRecorded: so does blklogwrites under a whole guest, whose kernel's page
//     cache is between, as far as that may not change things.
//   - TestReplay: disks as a power cut may have left them, made from QEMU's log, boot in
//     the real GRUB; it chooses what the model says, and what it chooses is whole.
//   - TestStrace: strace fails system calls, and kills the program at them.
//   - TestBlkdebug: QEMU's blkdebug fails sectors under the program.
//   - TestOtherProcesses, TestReleaseReplaced, TestTerminated, TestDescriptors: what people
//     and other programs do to the program while it installs.
//   - TestGRUBKilled: QEMU is killed at any moment while GRUB counts tries.
//   - TestGuestKilled: QEMU is killed at any moment of an update of a whole system.
//
// A sample of each runs in CI, of TestGuestKilled one kill during an installation; but
// TestGuestRecorded, which boots whole guests for minutes, runs with TANDEM_LONG=1 only,
// as all of the others does (make proof).
//
// # What this does not prove
//
// No hardware was harmed. The medium is a file: there is no flash with erase blocks,
// wear, read disturb or pages that a failing supply leaves half-programmed, and no
// controller that remaps, loses its own tables, or writes what nobody asked for.
//
// A flush is believed. A disk that says "flushed" and keeps the data in volatile memory,
// or reorders writes across a flush, can lose what the program was told is safe; no
// program can survive that in general. What the tests of packages updater and disktest
// show for such disks is only that nothing unverified boots.
//
// Killing a process, or QEMU, loses no write that it has made: the host's page cache has
// it. What is lost or torn with the power is replayed from the logs instead, by rules
// (package disktest) that are a model, if a harsh one.
//
// Guests have their watchdog off. Emulated on a busy host they are slower than it allows,
// and a restart that nobody asked for would use up the release's one try. So what comes up
// after a kill comes up without its help; that it ends a hang is shown by the stories of
// package tests. Where a kill fell is known from what the device said before it and from
// the boot record after it: between the arming of a trial and the hello of its system,
// shutdown, GRUB and kernel are not told apart.
//
// The program finds regular files in the place of partitions. The kernel's block layer
// and its page cache on block devices are passed only in virtual machines: by the tests of
// guests, and in the stories (package tests). GRUB is Debian's 2.06 for BIOS; under UEFI it reads and writes
// through the firmware, which is tried in package boottest and in the stories.
package crosscheck
