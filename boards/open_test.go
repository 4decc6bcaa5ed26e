package boards

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
)

// machine is a made-up /sys, /proc and /dev: the board's disk as vda, and a stick
// with the same labels as sda.
type machine struct {
	t *testing.T
	partition.Host
	board Board
}

func newMachine(t *testing.T) machine {
	b, err := Get("qemu-x86_64")
	require.NoError(t, err)
	dir := t.TempDir()
	m := machine{t, partition.Host{Sys: dir + "/sys", Proc: dir + "/proc", Dev: dir + "/dev"}, b}
	for _, d := range []string{m.Sys + "/class/block", m.Sys + "/dev/block", m.Dev} {
		require.NoError(t, os.MkdirAll(d, 0o700))
	}
	m.disk("vda", 254)
	m.disk("sda", 8)
	m.device("dm-0", "253:0", "DEVTYPE=disk\n")
	m.mounts("1 1 0:2 / / rw - rootfs none rw\n")
	return m
}

func (m machine) file(path, text string) {
	m.t.Helper()
	require.NoError(m.t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(m.t, os.WriteFile(path, []byte(text), 0o600))
}

func (m machine) device(place, number, uevent string) {
	name := filepath.Base(place)
	dir := m.Sys + "/devices/block/" + place
	var major, minor int
	_, err := fmt.Sscanf(number, "%d:%d", &major, &minor)
	require.NoError(m.t, err)
	m.file(dir+"/uevent", fmt.Sprintf("MAJOR=%d\nMINOR=%d\nDEVNAME=%s\n%s", major, minor, name, uevent))
	require.NoError(m.t, os.Symlink(dir, m.Sys+"/class/block/"+name))
	require.NoError(m.t, os.Symlink(dir, m.Sys+"/dev/block/"+number))
	require.NoError(m.t, os.MkdirAll(dir+"/holders", 0o700))
	m.file(m.Dev+"/"+name, "")
}

func (m machine) disk(name string, major int) {
	m.device(name, fmt.Sprintf("%d:0", major), "DEVTYPE=disk\n")
	for _, p := range m.board.Places() {
		part := fmt.Sprintf("%s%d", name, p.Number)
		m.device(name+"/"+part, fmt.Sprintf("%d:%d", major, p.Number), fmt.Sprintf("DEVTYPE=partition\nPARTN=%d\nPARTNAME=%s\n", p.Number, p.Label))
		m.file(m.Sys+"/devices/block/"+name+"/"+part+"/partition", fmt.Sprintln(p.Number))
		if p.Label == "env" {
			image := grubenv.Image(bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad})
			require.NoError(m.t, os.WriteFile(m.Dev+"/"+part, image, 0o600))
		}
	}
}

func (m machine) mounts(text string) { m.file(m.Proc+"/self/mountinfo", text) }

// runs opens verity on a partition, as the initramfs does, and mounts it as the root.
func (m machine) runs(disk, part string) {
	block := m.Sys + "/devices/block/"
	m.holds(disk, part)
	require.NoError(m.t, os.MkdirAll(block+"dm-0/slaves", 0o700))
	require.NoError(m.t, os.Symlink(block+disk+"/"+part, block+"dm-0/slaves/"+part))
	m.mounts("22 1 253:0 / / ro - ext4 /dev/dm-0 ro\n")
}

func (m machine) holds(disk, part string) {
	block := m.Sys + "/devices/block/"
	require.NoError(m.t, os.Symlink(block+"dm-0", block+disk+"/"+part+"/holders/dm-0"))
}

// alone takes the stick out.
func (m machine) alone() {
	for _, p := range m.board.Places() {
		require.NoError(m.t, os.RemoveAll(fmt.Sprintf("%s/class/block/sda%d", m.Sys, p.Number)))
	}
}

func (m machine) open(running bootctl.Slot) (*Parts, error) {
	p, err := Open(m.board, Options{Host: m.Host, Running: running})
	if err == nil {
		m.t.Cleanup(func() { p.Close() })
	}
	return p, err
}

// The running slot is the one whose root partition is in use, its disk is the
// disk that counts, and only the other slot can be opened for writing.
func TestOpen(t *testing.T) {
	for slot, part := range map[bootctl.Slot]string{bootctl.A: "vda5", bootctl.B: "vda6"} {
		m := newMachine(t)
		m.runs("vda", part)
		for _, told := range []bootctl.Slot{"", slot} {
			p, err := m.open(told)
			require.NoError(t, err)
			require.Equal(t, slot, p.Running)
			require.Equal(t, "vda", p.Disk)
			record, err := p.Store.Load()
			require.NoError(t, err)
			require.Equal(t, bootctl.A, record.Good)
			require.EqualValues(t, grubenv.LedgerSize, p.Ledger().Size())

			spare, err := p.OpenSpare("root")
			require.NoError(t, err)
			require.NotEqual(t, m.Dev+"/"+part, spare.Name())
			require.NoError(t, spare.Close())
			running, err := p.OpenRunning("root")
			require.NoError(t, err)
			require.Equal(t, m.Dev+"/"+part, running.Name())
			require.NoError(t, running.Close())
			data, err := p.DataDevice()
			require.NoError(t, err)
			require.Equal(t, m.Dev+"/vda7", data)
			require.NoError(t, p.Close())
		}
	}
}

// Where it is not certain which slot runs, nothing is opened.
func TestOpenUncertain(t *testing.T) {
	for state, c := range map[string]struct {
		prepare func(m machine)
		told    bootctl.Slot
		want    error
	}{
		"the loader says a, verity says b":                {func(m machine) { m.runs("vda", "vda6") }, bootctl.A, ErrSlot},
		"both roots are in use":                           {func(m machine) { m.runs("vda", "vda5"); m.holds("vda", "vda6") }, "", ErrSlot},
		"neither is, and nobody told":                     {machine.alone, "", ErrSlot},
		"neither is, and told of one that does not exist": {machine.alone, "c", ErrSlot},
		"two disks have the labels":                       {func(machine) {}, bootctl.A, partition.ErrDuplicateLabel},
		"a slot that does not exist":                      {func(m machine) { m.runs("vda", "vda5") }, "c", ErrSlot},
	} {
		t.Run(state, func(t *testing.T) {
			m := newMachine(t)
			c.prepare(m)
			_, err := m.open(c.told)
			require.ErrorIs(t, err, c.want)
		})
	}
}

// Before there is a root on any disk, as in the initramfs, the slot that was told counts.
func TestOpenTold(t *testing.T) {
	for _, slot := range []bootctl.Slot{bootctl.A, bootctl.B} {
		m := newMachine(t)
		m.alone()
		p, err := m.open(slot)
		require.NoError(t, err)
		require.Equal(t, slot, p.Running)
		require.Equal(t, "vda", p.Disk)
	}
}

// A spare slot that somebody mounted is not written.
func TestOpenSpareInUse(t *testing.T) {
	m := newMachine(t)
	m.runs("vda", "vda5")
	p, err := m.open("")
	require.NoError(t, err)
	m.mounts("22 1 253:0 / / ro - ext4 /dev/dm-0 ro\n23 22 254:6 / /mnt rw - ext4 /dev/vda6 rw\n")
	_, err = p.OpenSpare("root")
	require.ErrorIs(t, err, ErrRunning)
	require.ErrorIs(t, err, partition.ErrMounted)
	require.ErrorContains(t, err, "root_b")
}

// Two processes cannot both change the boot record, and any number may read it.
func TestOpenTwice(t *testing.T) {
	m := newMachine(t)
	m.runs("vda", "vda5")
	_, err := m.open("")
	require.NoError(t, err)
	_, err = m.open("")
	require.ErrorIs(t, err, partition.ErrBusy)
	p, err := Open(m.board, Options{Host: m.Host, ReadOnly: true})
	require.NoError(t, err)
	record, err := p.Store.Load()
	require.NoError(t, err)
	require.Error(t, p.Store.Save(record))
	require.NoError(t, p.Close())
}
