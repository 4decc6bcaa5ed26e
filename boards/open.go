package boards

import (
	"errors"
	"fmt"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
)

var (
	// ErrSlot means that it cannot be told which slot runs, or that two sources
	// disagree. Nothing may be written: what is taken for the spare slot might be
	// the running one.
	ErrSlot = errors.New("running slot is not known")
	// ErrRunning means that the partition belongs to the running slot, which is
	// never written.
	ErrRunning = errors.New("belongs to the running slot")
)

// Options is what Open knows beforehand.
type Options struct {
	// Host is the machine; the zero value is the one the program runs on.
	Host partition.Host
	// Running is the slot that the kernel was started from, as the first program
	// found it. If it is empty, the slot whose root partition is in use is taken.
	Running bootctl.Slot
	// ReadOnly opens the boot record so that others may have it open too. Saving
	// it fails.
	ReadOnly bool
}

// Parts are the parts of a board on the machine at hand.
type Parts struct {
	Board   Board
	Running bootctl.Slot
	Disk    string         // kernel name of the disk that the slots are on, as "vda"
	Store   *grubenv.Store // the boot record

	host partition.Host
	env  *partition.File
}

// Open finds the board's partitions on the disk that holds the running slot, and
// opens the boot record. A second disk with the same labels (a stick with the
// same image) does not count.
//
// Errors wrap ErrSlot, partition.ErrNoPartition, partition.ErrDuplicateLabel, or
// partition.ErrBusy if another process has the boot record open for writing.
func Open(b Board, o Options) (*Parts, error) {
	if o.Host == (partition.Host{}) {
		o.Host = partition.ThisHost()
	}
	p := &Parts{Board: b, host: o.Host}
	if err := p.open(o); err != nil {
		return nil, fmt.Errorf("open board %s: %w", b.Name, err)
	}
	return p, nil
}

func (p *Parts) open(o Options) error {
	disk, err := o.Host.RootDisk()
	// A program of the initramfs runs before there is a root on any disk; then the
	// labels must be unique on the machine.
	if err != nil && !errors.Is(err, partition.ErrNoPartition) {
		return err
	}
	p.Disk = disk
	if p.Running, err = p.running(o.Running); err != nil {
		return err
	}
	env, err := p.node(p.Board.Bootloader.Env)
	if err != nil {
		return err
	}
	p.Disk = env.Disk
	open := partition.OpenFile
	if o.ReadOnly {
		open = partition.OpenRead
	}
	if p.env, err = open(env.Path); err != nil {
		return fmt.Errorf("partition %s: %w", env.Label, err)
	}
	p.Store = grubenv.Open(p.env)
	return nil
}

// running returns the slot whose root partition carries a mount or a verity
// device, and checks it against what the caller was told.
func (p *Parts) running(told bootctl.Slot) (bootctl.Slot, error) {
	var used []bootctl.Slot
	for _, s := range []bootctl.Slot{bootctl.A, bootctl.B} {
		n, err := p.node(p.Board.Slots[s].Root)
		if err != nil {
			return "", err
		}
		err = p.host.InUse(n)
		switch {
		case errors.Is(err, partition.ErrMounted), errors.Is(err, partition.ErrHeld):
			used = append(used, s)
		case err != nil:
			return "", err
		}
	}
	switch {
	case told != "" && !told.Valid():
		return "", fmt.Errorf("%w: told %q", ErrSlot, told)
	case len(used) == 2:
		return "", fmt.Errorf("%w: the root partitions of both slots are in use", ErrSlot)
	case len(used) == 0 && told == "":
		return "", fmt.Errorf("%w: no root partition of a slot is in use", ErrSlot)
	case len(used) == 0:
		return told, nil
	case told != "" && told != used[0]:
		return "", fmt.Errorf("%w: booted as slot %s, but the root partition of slot %s is in use", ErrSlot, told, used[0])
	}
	return used[0], nil
}

func (p *Parts) node(label string) (partition.Node, error) {
	return p.host.Locate(label, p.Disk)
}

// Device returns the device node of a slot's partition with the role "boot" or
// "root".
func (p *Parts) Device(s bootctl.Slot, role string) (string, error) {
	label, err := p.Board.Label(s, role)
	if err != nil {
		return "", err
	}
	n, err := p.node(label)
	return n.Path, err
}

// DataDevice returns the device node of the data partition.
func (p *Parts) DataDevice() (string, error) {
	n, err := p.node(p.Board.Data)
	return n.Path, err
}

// OpenSpare opens the spare slot's partition with the role "boot" or "root" for
// writing, for this holder alone. It is ErrRunning for a partition that is in use, whatever
// the labels say, and partition.ErrBusy if another installation has it.
func (p *Parts) OpenSpare(role string) (*partition.File, error) {
	spare := p.Running.Other()
	label, err := p.Board.Label(spare, role)
	if err != nil {
		return nil, err
	}
	n, err := p.node(label)
	if err != nil {
		return nil, err
	}
	if err := p.host.InUse(n); err != nil {
		return nil, fmt.Errorf("open slot %s: %w: %w", spare, ErrRunning, err)
	}
	f, err := partition.OpenFile(n.Path)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %s: %w", spare, label, err)
	}
	return f, nil
}

// OpenRunning opens the running slot's partition with the role for reading: the
// base of a delta, and its slot record.
func (p *Parts) OpenRunning(role string) (*partition.File, error) {
	return p.OpenRead(p.Running, role)
}

// OpenRead opens a slot's partition with the role for reading.
func (p *Parts) OpenRead(s bootctl.Slot, role string) (*partition.File, error) {
	path, err := p.Device(s, role)
	if err != nil {
		return nil, err
	}
	f, err := partition.OpenRead(path)
	if err != nil {
		return nil, fmt.Errorf("open slot %s: %w", s, err)
	}
	return f, nil
}

// Ledger returns the room for the TPM ledger's log that is outside the data
// partition, so that losing that partition does not lose the log.
func (p *Parts) Ledger() partition.Disk {
	return partition.Section(p.env, grubenv.LedgerOffset, grubenv.LedgerSize)
}

// Close closes the boot record.
func (p *Parts) Close() error { return p.env.Close() }
