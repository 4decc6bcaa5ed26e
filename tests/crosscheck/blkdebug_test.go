package crosscheck

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/tests/workbench"
)

// broken is a sector that does not do what it is asked for.
type broken struct {
	name   string
	label  string // of the partition
	iotype string // of blkdebug: "read", "write", "flush"
	off    int64  // in the partition; -1 is any, and the only one for a flush
	errno  syscall.Errno
	once   bool
	code   int // that the program ends with; -1 is tried in LONG mode only, and may end with several
}

func sectors() []broken {
	const (
		record = lab.RootSize - partition.RecordSize
		own    = 3 * 4096 // a page that each system has its own; see workbench
	)
	all := []broken{
		{"the older copy of the boot record cannot be written", "env", "write", grubenv.Copy1Offset, syscall.EIO, false, 1},
		{"the other copy cannot be written", "env", "write", grubenv.Copy0Offset, syscall.EIO, false, 1},
		{"the boot record is not flushed, once", "env", "flush", -1, syscall.EIO, true, 1},
		{"one copy of the boot record cannot be read", "env", "read", grubenv.Copy0Offset, syscall.EIO, false, 1},
		{"nothing of the boot record can be read", "env", "read", -1, syscall.EIO, false, 6},
		{"the kernel's partition cannot be written", "boot_b", "write", -1, syscall.EIO, false, 1},
		{"the spare slot is full, it says", "root_b", "write", 1<<20 + own, syscall.ENOSPC, false, 1},
		{"the spare slot is not flushed, once", "root_b", "flush", -1, syscall.EIO, true, 1},
		{"the spare slot is never flushed", "root_b", "flush", -1, syscall.EIO, false, 1},
		{"a sector that was written cannot be read", "root_b", "read", 2 << 20, syscall.EIO, false, 1},
		{"the slot record cannot be written", "root_b", "write", record, syscall.EIO, false, 1},
		{"the running system cannot be read, once, and is not needed", "root_a", "read", 1 << 20, syscall.EIO, true, 0},
	}
	for off := int64(own); off < lab.RootSize; off += 96 << 10 {
		for _, iotype := range []string{"read", "write"} {
			all = append(all, broken{fmt.Sprintf("%s at %d", iotype, off), "root_b", iotype, off, syscall.EIO, off%(192<<10) == own, -1})
		}
	}
	for _, label := range []string{"env", "boot_b", "root_b"} {
		for _, iotype := range []string{"write", "flush"} {
			for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
				all = append(all, broken{fmt.Sprintf("%s of %s, %s", iotype, label, errno), label, iotype, -1, errno, false, -1})
				all = append(all, broken{fmt.Sprintf("%s of %s, %s, once", iotype, label, errno), label, iotype, -1, errno, true, -1})
			}
		}
	}
	return all
}

// A sector of a partition fails under the device program, once or for good, as QEMU's
// blkdebug has it: the program says so with a code that its manual has, or gets by; the
// running slot is untouched, whatever boots is whole, and on a mended disk the same
// command does what it was asked for.
func TestBlkdebug(t *testing.T) {
	g := theGoods(t)
	v := newVictim(t, g)
	tried := 0
	for _, b := range sectors() {
		if b.code < 0 && !long {
			continue
		}
		t.Run(b.name, func(t *testing.T) {
			v.reset()
			rules := fmt.Sprintf("inject-error.0.event=none,inject-error.0.iotype=%s,inject-error.0.errno=%d", b.iotype, b.errno)
			if b.off >= 0 {
				rules += fmt.Sprintf(",inject-error.0.sector=%d", b.off/disktest.Sector)
			}
			if b.once {
				rules += ",inject-error.0.once=on"
			}
			var res workbench.Result
			v.Failing(b.label, rules, func() { res = v.Run(install...) })
			t.Logf("exit code %d: %s", res.Code, res.Output[max(0, len(res.Output)-300):])
			if b.code >= 0 {
				require.Equal(t, b.code, res.Code, res.Output)
			}
			require.Contains(t, []int{0, 1, 3, 6}, res.Code, res.Output)
			v.unhurt(t, res, b.name)
			v.recovers(t, b.name)
			tried++
		})
	}
	t.Attr("blkdebug-faults", fmt.Sprint(tried))
}
