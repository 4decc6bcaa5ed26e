package boottest

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// saved returns the storage after one save on top of another.
func saved(t *testing.T, before, now bootctl.Record) []byte {
	t.Helper()
	d := disktest.New(image(before))
	require.NoError(t, grubenv.Open(d).Save(now))
	return d.Bytes()
}

// With any bit of any copy flipped, the loader boots what the record says or what
// the one before said, never a slot that both call bad, never a trial that
// neither has, and never with more tries than there were.
func TestEveryBit(t *testing.T) {
	for name, tr := range transitions(t) {
		env := saved(t, tr[0], tr[1])
		for _, at := range []int{grubenv.Copy0Offset, grubenv.Copy1Offset, grubenv.ConfirmedOffset} {
			for bit := range 200 * 8 { // the text is shorter, behind it only # follows
				env[at+bit/8] ^= 1 << (bit % 8)
				did := GRUB(env, World{})
				env[at+bit/8] ^= 1 << (bit % 8)
				allowed := did.Slot == next(tr[0]) || did.Slot == next(tr[1]) || !did.Trial && (did.Slot == tr[0].Good || did.Slot == tr[1].Good)
				require.True(t, allowed, "%s: bit %d of byte %d: %q", name, bit, at, did.Lines)
				if did.Trial {
					after, err := grubenv.Open(disktest.New(did.Env)).Load()
					require.NoError(t, err)
					require.Less(t, after.Tries, max(tr[0].Tries, tr[1].Tries), "%s: bit %d of byte %d", name, bit, at)
				}
			}
		}
	}
}

// Whatever the storage holds: loader and Load agree on the record, a slot that it
// marks bad does not boot, an uncommitted trial ends after at most nine boots, and
// what boots does not depend on anything but the bytes.
func TestHostileStorage(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	records := Records()
	for range 1000 {
		env := Hostile(r, saved(t, records[r.IntN(len(records))], records[r.IntN(len(records))]))
		world := World{Broken: [][]bootctl.Slot{nil, nil, {bootctl.A}, {bootctl.B}}[r.IntN(4)]}
		trials := 0
		for {
			record, err := grubenv.Open(disktest.New(env)).Load()
			did := GRUB(env, world)
			require.Equal(t, did, GRUB(env, world), "seed %d", seed)
			if err != nil {
				require.ErrorIs(t, err, bootctl.ErrNoRecord)
				require.False(t, did.Trial, "seed %d: %q", seed, did.Lines)
				if record.Confirmed != "" {
					require.NotEqual(t, record.Confirmed.Other(), did.Slot, "seed %d: %q", seed, did.Lines)
				}
				break
			}
			if did.Slot != "" {
				require.Equal(t, bootctl.OK, record.Mark(did.Slot), "seed %d: %s: %q", seed, record, did.Lines)
			}
			if !did.Trial {
				if world.loads(record.Good) {
					require.Equal(t, record.Good, did.Slot, "seed %d: %q", seed, did.Lines)
				}
				break
			}
			require.Equal(t, record.Trying, did.Slot, "seed %d", seed)
			trials++
			require.LessOrEqual(t, trials, bootctl.MaxTries, "seed %d", seed)
			env = did.Env
		}
	}
}

// grub-editenv, which is built from the same source as GRUB's save_env and
// load_env, reads the same variables and leaves the same bytes as the model.
func TestModelReadsAndWritesAsGRUB(t *testing.T) {
	if _, err := exec.LookPath("grub-editenv"); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%v; install grub-common", err)
		}
		t.Skipf("%v; it comes with grub-common", err)
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	names := []string{"tandem", "good", "trying", "tries", "bad", "gen", "check"}
	file := filepath.Join(t.TempDir(), "env")
	read, wrote := 0, 0
	for range 300 {
		block := Hostile(r, image(trial))[grubenv.Copy0Offset:][:grubenv.SectorSize]
		require.NoError(t, os.WriteFile(file, block, 0o600))
		list, listErr := exec.Command("grub-editenv", file, "list").Output()
		values, err := grubenv.Variables(block)
		require.Equal(t, listErr == nil, err == nil, "seed %d:\n%s", seed, block)
		if err != nil {
			continue
		}
		if ambiguous(values) {
			continue
		}
		for _, name := range names {
			lines := strings.Split("\n"+string(list), "\n"+name+"=")
			want, _, _ := strings.Cut(lines[len(lines)-1], "\n")
			if len(lines) == 1 {
				want = ""
			}
			require.Equal(t, want, values[name], "seed %d: %s in\n%s", seed, name, block)
			read++
		}
		set := exec.Command("grub-editenv", file, "set", "tries=2", "gen=1").Run()
		now, ok := setVariable(block, "tries", "2")
		if ok {
			now, ok = setVariable(now, "gen", "1")
		}
		require.Equal(t, set == nil, ok, "seed %d:\n%s", seed, block)
		if ok {
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), string(now), "seed %d", seed)
			wrote++
		}
	}
	require.NotZero(t, read)
	require.NotZero(t, wrote)
}

// ambiguous tells whether a name or a value has a newline in it, which makes the
// tool's list look like other variables.
func ambiguous(values map[string]string) bool {
	for name, value := range values {
		if strings.Contains(name+value, "\n") {
			return true
		}
	}
	return false
}
