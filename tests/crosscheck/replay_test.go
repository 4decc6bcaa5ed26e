package crosscheck

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/tests/workbench"
)

// replayed puts what QEMU logged on disks that can lose it, a partition each: what was
// written to one and not synced may be in the page cache when another one is synced.
//
// The syncs are those that disktest recorded of the same installation: QEMU's exports
// flush when a file is closed too, which no disk does, and which would hide a sync that
// is missing.
func replayed(t *testing.T, before workbench.Disk, saw, recorded []workbench.Entry) *disktest.Bench {
	t.Helper()
	bench := disktest.NewBench()
	for _, p := range workbench.Parts {
		bench.Disk(before[p.Label])
	}
	saw = slices.DeleteFunc(slices.Clone(saw), func(e workbench.Entry) bool { return e.Sync })
	for _, e := range recorded {
		n := slices.IndexFunc(workbench.Parts, func(p workbench.Part) bool { return e.Off >= p.Start && e.Off < p.Start+p.Size })
		if e.Sync {
			require.NoError(t, bench.Disks()[n].Sync())
			continue
		}
		require.NotEmpty(t, saw)
		require.Equal(t, e.String(), saw[0].String())
		_, err := bench.Disks()[n].WriteAt(saw[0].Data, saw[0].Off-workbench.Parts[n].Start)
		require.NoError(t, err)
		saw = saw[1:]
	}
	require.Empty(t, saw)
	return bench
}

// after is what the partitions hold after a crash.
func after(c *disktest.Crash) workbench.Disk {
	d := workbench.Disk{}
	for n, disk := range c.Disks() {
		d[workbench.Parts[n].Label] = disk.Bytes()
	}
	return d
}

// crashes goes through n states, or some more, in which a power cut may have left the
// disk: all that there are while a write to the environment was in flight, and of other
// moments, at even distances, one or a few each. A file cannot have unreadable sectors,
// so states with one are left out.
func crashes(bench *disktest.Bench, log []workbench.Entry, n int) iter.Seq[*disktest.Crash] {
	return func(yield func(*disktest.Crash) bool) {
		step, each := max(1, len(log)/n), max(1, n/len(log))
		for cut := range len(log) + 1 {
			env := cut < len(log) && !log[cut].Sync && log[cut].Off < lab.Env+grubenv.Size
			if !env && cut%step != 0 {
				continue
			}
			// The simplest states come first; a number that jumps takes all kinds in turn.
			inFlight := 0
			if cut < len(log) {
				inFlight = len(log[cut].Data) / disktest.Sector
			}
			number, next, taken := 0, cut*37%(2*inFlight+8), 0
			for c := range bench.Crashes(disktest.Bounds{From: cut, Samples: 8, Writes: 3, Sectors: 4}) {
				if c.Cut > cut {
					break
				}
				if _, fates, _ := strings.Cut(c.String(), " "); strings.Contains(fates, "u") {
					continue
				}
				number++
				if !env && number <= next {
					continue
				}
				if !yield(c) {
					return
				}
				next += 13
				if taken++; !env && taken == each {
					break
				}
			}
		}
	}
}

// Disks as a power cut may leave them at any moment of an installation (writes lost,
// torn, out of order, sectors garbled), made from what QEMU logged under the device
// program, boot in the real GRUB: it chooses the slot that the model says, leaves the
// same bytes, and the slot holds a whole and signed system, whose kernel starts. A trial
// that nobody commits ends after its tries in the old system.
func TestReplay(t *testing.T) {
	each := 6
	if long {
		each = 120
	}
	g := theGoods(t)
	factory := lab.BIOSDisk(t, lab.Params())
	first := g.Factory(t, "1.0.0", "").On(factory)
	m := lab.Start(t, first, "-drive", "file=DISK,format=raw,if=ide")
	m.Boot()
	disks, boots, trials := 0, 0, 0
	for _, i := range installs {
		t.Run(i.name, func(t *testing.T) {
			m.T = t
			before := g.Factory(t, "1.0.0", i.spare)
			saw, _ := watched(t, g, before, i.version)
			recorded, _ := g.Record(t, before, "1.0.0", i.version)
			bench := replayed(t, before, saw, recorded)
			for crash := range crashes(bench, recorded, each) {
				disks++
				disk := after(crash)
				m.Put(disk.On(factory), 0)
				for tries := 0; ; tries++ {
					did, version, err := g.Boots(disk)
					require.NoError(t, err, "%s", crash)
					boots++
					m.Command("system_reset")
					said, kernel := m.Boot()
					require.Equal(t, did.Lines, said, "%s", crash)
					require.Equal(t, version[:1], kernel, "%s", crash)
					require.True(t, bytes.Equal(did.Env, m.Env()), "%s: GRUB left other bytes", crash)
					if !did.Trial {
						require.Equal(t, "1.0.0", version, "%s", crash)
						break
					}
					if tries == 0 {
						trials++
					}
					if !long && trials > 2 {
						break // of some, it is seen to the end
					}
					require.Less(t, tries, workbench.Tries, "%s: a trial without end", crash)
					copy(disk["env"], did.Env)
				}
			}
		})
	}
	require.NotZero(t, trials, "no disk of a trial among them")
	t.Logf("%d disks, %d of them with a trial, %d boots", disks, trials, boots)
	t.Attr("replayed-disks", fmt.Sprint(disks))
}
