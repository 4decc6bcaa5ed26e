package boottest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
)

var board = lab.Params()

// vector is one state of the storage for real GRUB and the model to agree on.
type vector struct {
	state string
	env   []byte
	world World
	boots int // as many boots in a row, each from what the one before left
}

func vectors() []vector {
	both := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK}
	committed := bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK}
	over := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B}
	nine := bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.A, Tries: 9}
	a, b := []bootctl.Slot{bootctl.A}, []bootctl.Slot{bootctl.B}
	neither := []bootctl.Slot{bootctl.A, bootctl.B}

	env := func(newer bootctl.Record, change ...func([]byte)) []byte {
		e := image(newer)
		for _, c := range change {
			c(e)
		}
		return e
	}
	fill := func(at int, v byte) func([]byte) {
		return func(e []byte) { copy(e[at:], bytes.Repeat([]byte{v}, grubenv.SectorSize)) }
	}
	replace := func(at int, old, now string) func([]byte) {
		return func(e []byte) {
			s := e[at : at+grubenv.SectorSize]
			copy(s, bytes.Replace(s, []byte(old), []byte(now), 1))
		}
	}
	put := func(at int, r bootctl.Record, gen int) func([]byte) {
		return func(e []byte) { copy(e[at:], grubenv.Copy{Record: r, Generation: gen}.Block()) }
	}
	const copy0, copy1, confirmed = grubenv.Copy0Offset, grubenv.Copy1Offset, grubenv.ConfirmedOffset
	all := []vector{
		{"spare is bad", env(fresh), World{}, 1},
		{"spare is ok", env(both), World{}, 1},
		{"committed b", env(committed), World{}, 1},
		{"trial of nine boots, through all generations", env(nine), World{}, 11},

		{"good does not load, spare is bad", env(fresh), World{Broken: a}, 1},
		{"good does not load, spare is ok", env(both), World{Broken: a}, 1},
		{"trial does not load", env(trial), World{Broken: b}, 2},
		{"good behind a trial does not load", env(trial), World{Broken: a}, 1},
		{"good behind a trial that is over does not load", env(both, put(copy0, over, 0)), World{Broken: a}, 1},
		{"nothing loads", env(trial), World{Broken: neither}, 1},

		{"older copy is zero", env(trial, fill(copy1, 0)), World{}, 1},
		{"older copy is erased flash", env(trial, fill(copy1, 0xff)), World{}, 1},
		{"older copy has a wrong value and can be saved to", env(trial, replace(copy1, "tries=3", "tries=8")), World{}, 2},
		{"older copy has a wrong name and can be saved to", env(trial, replace(copy1, "tries=3", "trees=3")), World{}, 2},
		{"newer copy is zero", env(fresh, put(copy1, trial, 2), fill(copy0, 0)), World{}, 1},
		{"newer copy has a wrong value", env(fresh, put(copy1, trial, 2), replace(copy0, "good=a", "good=b")), World{}, 2},
		{"newer copy has a wrong check word", env(fresh, put(copy1, both, 2), replace(copy0, "check=", "check=f")), World{}, 1},
		{"copy of a later version", env(fresh, put(copy1, trial, 2), replace(copy0, "tandem=1", "tandem=2")), World{}, 2},
		{"both copies are zero", env(trial, fill(copy0, 0), fill(copy1, 0)), World{}, 1},
		{"both copies are zero, b was confirmed", env(committed, fill(copy0, 0), fill(copy1, 0)), World{}, 1},
		{"both copies are zero, confirmed does not load", env(trial, fill(copy0, 0), fill(copy1, 0)), World{Broken: a}, 1},
		{"nothing is readable", env(trial, fill(copy0, 0), fill(copy1, 0), fill(confirmed, 0)), World{}, 1},
		{"nothing is readable and a does not load", env(trial, fill(copy0, 0), fill(copy1, 0), fill(confirmed, 0)), World{Broken: a}, 1},

		{"file system is gone", env(trial, fill(0, 0)), World{}, 1},
		{"no room for the values", env(trial, func(e []byte) {
			copy(e[copy1+len("# GRUB Environment Block\n"):copy1+512], "x="+string(bytes.Repeat([]byte("y"), 600))+"\n")
			e[copy1+511] = '\n'
		}), World{}, 1},
		{"duplicate names, the last wins", env(fresh, replace(copy0, "check=", "good=b\ncheck=")), World{}, 1},
	}
	for _, g := range [][2]int{{0, 1}, {1, 2}, {2, 0}, {1, 0}, {0, 2}, {1, 1}} {
		all = append(all, vector{fmt.Sprintf("generations %d and %d", g[0], g[1]), env(fresh, put(copy0, fresh, g[0]), put(copy1, committed, g[1])), World{}, 1})
	}
	return all
}

// Real GRUB with the script that the package generates, and the model, boot the
// same slot, say the same, and leave the same bytes, in every state.
func TestGRUB(t *testing.T) {
	lab.BIOS(t)
	disk := lab.BIOSDisk(t, board)
	whole := map[bootctl.Slot][]byte{
		bootctl.A: slices.Clone(disk[lab.BootA : lab.BootA+lab.BootSize]),
		bootctl.B: slices.Clone(disk[lab.BootB : lab.BootB+lab.BootSize]),
	}
	broken := lab.FAT(t, lab.BootSize, "", nil)
	copy(disk[lab.Env:], grubenv.Image(fresh))
	m := lab.Start(t, disk, "-drive", "file=DISK,format=raw,if=ide")
	m.Boot()

	seed := rand.Uint64()
	for _, v := range append(vectors(), hostile(seed, 8)...) {
		t.Run(v.state, func(t *testing.T) {
			m.T = t
			m.Put(v.env, lab.Env)
			for s, at := range map[bootctl.Slot]int64{bootctl.A: lab.BootA, bootctl.B: lab.BootB} {
				if v.world.loads(s) {
					m.Put(whole[s], at)
				} else {
					m.Put(broken, at)
				}
			}
			env := v.env
			for boot := range v.boots {
				m.Command("system_reset")
				said, slot := m.Boot()
				did := GRUB(env, v.world)
				require.Equal(t, did.Lines, said, "boot %d, seed %d", boot+1, seed)
				require.Equal(t, string(did.Slot), slot, "boot %d, seed %d", boot+1, seed)
				require.True(t, bytes.Equal(did.Env, m.Env()), "boot %d, seed %d: GRUB left other bytes", boot+1, seed)
				env = did.Env
			}
		})
	}
}

// hostile returns states that no writer leaves behind: random bytes of random
// copies of a trial changed.
func hostile(seed uint64, n int) []vector {
	r := rand.New(rand.NewPCG(seed, 0))
	var all []vector
	for i := range n {
		all = append(all, vector{fmt.Sprintf("hostile %d", i), Hostile(r, image(trial)), World{}, 1})
	}
	return all
}

// A disk that cannot be written to boots the good slot, never the trial.
func TestGRUBReadOnly(t *testing.T) {
	lab.BIOS(t)
	disk := lab.BIOSDisk(t, board)
	copy(disk[lab.Env:], grubenv.Image(trial))
	m := lab.Start(t, disk, "-drive", "file=DISK,format=raw,if=virtio,readonly=on")
	said, slot := m.Boot()
	did := GRUB(image(trial), World{ReadOnly: true})
	require.Equal(t, did.Lines, said)
	require.Equal(t, string(did.Slot), slot)
	require.Equal(t, image(trial), m.Env())
}

// A write that goes elsewhere is no save, whatever its exit status says: the
// script reads back the sectors that the next boot will look at.
func TestGRUBWriteElsewhere(t *testing.T) {
	lab.BIOS(t)
	disk := lab.BIOSDisk(t, board)
	env := grubenv.Image(trial)
	// The directory says that copy 1 is the ledger's cluster, where a block lies.
	const clusterOfCopy1, elsewhere = 127*512 + 2*32 + 26, 5
	env[clusterOfCopy1] = elsewhere
	copy(env[grubenv.LedgerOffset:], env[grubenv.Copy1Offset:grubenv.Copy1Offset+grubenv.BlockSize])
	copy(disk[lab.Env:], env)
	m := lab.Start(t, disk, "-drive", "file=DISK,format=raw,if=ide")
	said, slot := m.Boot()
	require.Equal(t, []string{"tandem: slot a (good; the try of slot b could not be saved)"}, said)
	require.Equal(t, "a", slot)
	require.Equal(t, env[:grubenv.LedgerOffset], m.Env())
	written := make([]byte, grubenv.SectorSize)
	_, err := m.Disk.ReadAt(written, lab.Env+grubenv.LedgerOffset)
	require.NoError(t, err)
	require.Contains(t, string(written), "tries=2", "GRUB wrote, and believed that it saved")
}

// GRUB arms the watchdog before the slot starts: a slot that hangs before it has
// any driver is reset, counted, and given up for the good one.
func TestGRUBWatchdog(t *testing.T) {
	lab.BIOS(t)
	p := board
	p.Watchdog, p.WatchdogSeconds = "i6300esb", 4
	disk := lab.BIOSDisk(t, p)
	r := trial
	r.Tries = 2
	copy(disk[lab.Env:], grubenv.Image(r))
	m := lab.Start(t, disk, "-drive", "file=DISK,format=raw,if=ide", "-device", "i6300esb", "-action", "watchdog=reset")
	for _, want := range []string{"tandem: slot b (trial, 1 left)", "tandem: slot b (trial, 0 left)", "tandem: slot a (good; slot b has used up its tries)"} {
		said, _ := m.Boot()
		require.Equal(t, []string{want}, said)
		m.WaitEvent("WATCHDOG")
	}
}

// The same script under UEFI chain-loads an EFI program and saves through the
// firmware's disk driver.
func TestGRUBUnderUEFI(t *testing.T) {
	code, vars := "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	lab.Tools(t, "qemu-system-x86_64", "grub-mkimage", "sgdisk", "mkfs.vfat", "mcopy", "/usr/lib/grub/x86_64-efi/chain.mod", code, vars)
	script, err := grubenv.Config(board)
	require.NoError(t, err)
	disk := lab.Partitioned(t, "ef00")
	copy(disk[lab.First:], lab.FAT(t, 9<<20, "/EFI/BOOT/BOOTX64.EFI", lab.GRUBImage(t, "x86_64-efi", script, grubenv.Modules(board)...)))
	for at, name := range map[int64]string{lab.BootA: "a", lab.BootB: "b"} {
		// The slot's program is a second GRUB, which says who it is and stops.
		program := lab.GRUBImage(t, "x86_64-efi", "serial\nterminal_output serial\necho 'SLOT "+name+"'\nsleep 1000\n",
			"memdisk", "tar", "normal", "serial", "terminal", "echo", "sleep")
		copy(disk[at:], lab.FAT(t, lab.BootSize, grubenv.ImagePath, program))
	}
	r := trial
	r.Tries = 1
	copy(disk[lab.Env:], grubenv.Image(r))
	store := t.TempDir() + "/vars"
	content, err := os.ReadFile(vars)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(store, content, 0o600))
	m := lab.Start(t, disk, "-machine", "q35", "-drive", "if=pflash,format=raw,readonly=on,file="+code, "-drive", "if=pflash,format=raw,file="+store,
		"-drive", "if=none,id=d0,format=raw,file=DISK", "-device", "virtio-blk-pci,drive=d0,bootindex=1")
	env := image(r)
	for range 2 {
		said, slot := m.Boot()
		did := GRUB(env, World{})
		require.Equal(t, did.Lines, said)
		require.Equal(t, string(did.Slot), slot)
		require.True(t, bytes.Equal(did.Env, m.Env()))
		env = did.Env
		m.Command("system_reset")
	}
}
