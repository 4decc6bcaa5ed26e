package crosscheck

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// The machine is killed (kill -9 of QEMU) at any moment of a boot in which GRUB takes a
// try from a trial and saves it. The environment is then what it was before the boot or
// what the model says GRUB leaves, byte for byte: grub-editenv reads every copy, tries
// never grow, and the next boot goes on from there until the trial is over.
func TestGRUBKilled(t *testing.T) {
	need(t, "grub-editenv", "grub-common")
	lab.BIOS(t)
	kills := 15
	if long {
		kills = 1000
		t.Parallel()
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	trial := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: bootctl.MaxTries}
	fresh := grubenv.Image(trial)[:grubenv.LedgerOffset]
	disk := lab.BIOSDisk(t, lab.Params())
	copy(disk[lab.Env:], grubenv.Image(trial))
	m := lab.Start(t, disk, "-drive", "file=DISK,format=raw,if=ide")
	began := time.Now()
	_, slot := m.Boot()
	require.Equal(t, "b", slot)
	whole := time.Since(began) // how long a boot takes here and now
	m.Kill()

	before := m.Env()
	saved, unsaved, late, trials := 0, 0, 0, 0
	for saved+unsaved < kills {
		if tries(t, before) == 0 {
			trials++
			did := boottest.GRUB(before, boottest.World{})
			require.False(t, did.Trial, "a trial without end")
			before = fresh
			m.Put(before, lab.Env)
		}
		m.On()
		// GRUB is not there in the first part of a boot, and saves just before its end.
		began := time.Now()
		_, slot, booted := m.BootWithin(whole/2 + time.Duration(r.Int64N(int64(whole)*6/10)))
		m.Kill()
		what := fmt.Sprintf("kill %d, seed %d", saved+unsaved+late, seed)
		did := boottest.GRUB(before, boottest.World{})
		after := m.Env()
		wrote := bytes.Equal(did.Env, after)
		require.True(t, wrote || bytes.Equal(before, after), "%s: the environment is neither the old nor the new one", what)
		listed(t, after, what)
		require.LessOrEqual(t, tries(t, after), tries(t, before), "%s", what)
		switch {
		case booted:
			// Too late: it had booted. The measure of a boot follows the load of the machine.
			require.Equal(t, string(did.Slot), slot, "%s", what)
			require.True(t, wrote, "%s: booted without a save", what)
			whole = (3*whole + time.Since(began)) / 4
			late++
		case wrote:
			saved++
		default:
			whole += whole / 50
			unsaved++
		}
		before = slices.Clone(after)
		if n := saved + unsaved; n%100 == 0 && !booted {
			t.Logf("%d of %d killed", n, kills)
		}
	}
	t.Logf("%d killed before the save and %d after it; %d boots ended first; %d trials over; a boot takes %s", unsaved, saved, late, trials, whole)
	if long {
		require.NotZero(t, saved)
		require.NotZero(t, unsaved)
	}
	t.Attr("grub-kills", fmt.Sprint(saved+unsaved))
}

// tries is what the record in force has left.
func tries(t *testing.T, env []byte) int {
	t.Helper()
	record, err := grubenv.Open(disktest.New(env)).Load()
	require.NoError(t, err)
	require.Empty(t, record.Degraded)
	return record.Tries
}

// listed requires that grub-editenv reads every copy as Tandem does.
func listed(t *testing.T, env []byte, what string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "env")
	for _, at := range []int{grubenv.Copy0Offset, grubenv.Copy1Offset, grubenv.ConfirmedOffset} {
		block := env[at : at+grubenv.BlockSize]
		require.NoError(t, os.WriteFile(file, block, 0o600))
		out, err := exec.Command("grub-editenv", file, "list").CombinedOutput()
		require.NoError(t, err, "%s: copy at %d: %s", what, at, out)
		want, err := grubenv.Variables(block)
		require.NoError(t, err, "%s: copy at %d", what, at)
		have := map[string]string{}
		for line := range strings.Lines(string(out)) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			have[name] = value
		}
		require.Equal(t, want, have, "%s: copy at %d", what, at)
	}
}
