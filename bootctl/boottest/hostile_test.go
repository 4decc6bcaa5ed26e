package boottest

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
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

// hostileEnvironments is how many of them TestHostileStorage tries. Each is made by its
// number and hostileSeed alone.
const (
	hostileEnvironments = 1_000_000
	hostileSeed         = 4
)

// Whatever the storage holds, by structured lies or wholly at random: a slot that the
// record marks bad does not boot; a trial boots only by a record with its check word,
// and each of its boots leaves one try less, so that there are at most nine, and soon
// no boot changes anything any more. In each 256th environment, Load agrees with the loader
// at every boot, and what boots depends on nothing but the bytes.
//
// Where no record is left the confirmed slot boots and no other, and where not even that
// is known, slot A by a guess: whether it holds anything is for its initramfs to find out.
func TestHostileStorage(t *testing.T) {
	var parts []part
	// The numbers of tries between teach nothing that the ends do not.
	records := slices.DeleteFunc(Records(), func(r bootctl.Record) bool { return r.Tries > 3 && r.Tries < bootctl.MaxTries })
	for _, before := range records {
		for _, now := range records {
			parts = append(parts, cut(saved(t, before, now)))
		}
	}
	const workers = 2
	var wg sync.WaitGroup
	var all [workers]bench
	for i := range all {
		b := &all[i]
		b.env = image(fresh)
		wg.Go(func() {
			for n := uint64(i); n < hostileEnvironments && b.err == nil; n += workers {
				if err := b.try(n, parts); err != nil {
					b.err = fmt.Errorf("environment %d: %w", n, err)
				}
			}
		})
	}
	wg.Wait()
	var sum bench
	for _, b := range all {
		require.NoError(t, b.err)
		sum.boots += b.boots
		sum.trials += b.trials
		sum.loads += b.loads
		sum.records += b.records
		sum.confirmed += b.confirmed
		sum.guesses += b.guesses
	}
	t.Logf("seed %d: %d environments, %d boots, %d of them trials, %d compared with Load; first boots by a record %d, by the confirmed copy %d, by a guess %d",
		hostileSeed, hostileEnvironments, sum.boots, sum.trials, sum.loads, sum.records, sum.confirmed, sum.guesses)
	t.Attr("hostile-environments", fmt.Sprint(hostileEnvironments))
	t.Attr("hostile-environment-boots", fmt.Sprint(sum.boots))
	t.Attr("hostile-environment-trials", fmt.Sprint(sum.trials))
	// A generator that only made garbage would prove nothing.
	for what, n := range map[string]int{"trials": sum.trials, "records": sum.records, "confirmed": sum.confirmed, "guesses": sum.guesses} {
		require.Greater(t, n, hostileEnvironments/100, what)
	}
}

// Over a sector that a writer left, the loader's own way of setting variables one by
// one leaves just the new copy: the model takes the short way there.
func TestSaveOverWritten(t *testing.T) {
	for older := range written() {
		for now, c := range written() {
			want, err := grubenv.Variables(c.Block())
			require.NoError(t, err)
			block, ok := older[:], true
			for _, name := range []string{"tandem", "good", "trying", "tries", "bad", "gen", "check"} {
				block, ok = setVariable(block, name, want[name])
				require.True(t, ok)
			}
			require.True(t, bytes.Equal(now[:], block), "%s over\n%s", now, older)
		}
	}
}

// part is what differs between two environments: the blocks of the copies.
type part [3][grubenv.BlockSize]byte

func cut(env []byte) (p part) {
	for i, at := range copies {
		copy(p[i][:], env[at:])
	}
	return p
}

// bench is one environment that is made hostile again and again.
type bench struct {
	env                                               []byte
	err                                               error
	boots, trials, loads, records, confirmed, guesses int
}

func (b *bench) try(n uint64, parts []part) error {
	r := rand.New(rand.NewPCG(hostileSeed, n))
	p := &parts[r.IntN(len(parts))]
	for i, at := range copies {
		copy(b.env[at:], p[i][:])
	}
	Spoil(r, b.env)
	world := World{Broken: [][]bootctl.Slot{nil, nil, nil, {bootctl.A}, {bootctl.B}, {bootctl.A, bootctl.B}}[r.IntN(6)], ReadOnly: r.IntN(16) == 0}
	if r.IntN(16) == 0 { // the file system around the copies
		at, bit := r.IntN(grubenv.Copy0Offset), byte(1)<<r.IntN(8)
		b.env[at] ^= bit
		defer func() { b.env[at] ^= bit }()
		world.ReadOnly = true // that is what the model makes of it
	}
	return b.live(world, n%256 == 0)
}

// live boots the machine until booting changes nothing any more.
func (b *bench) live(w World, all bool) error {
	trials := 0
	for boot := 0; ; boot++ {
		record, known := inEffect(b.env)
		confirmed, sure := look(b.env, grubenv.ConfirmedOffset)
		before := cut(b.env)
		if all {
			if err := b.agrees(record, known); err != nil {
				return fmt.Errorf("boot %d: %w", boot, err)
			}
			pure, again := GRUB(b.env, w), GRUB(b.env, w)
			if !reflect.DeepEqual(pure, again) || before != cut(b.env) {
				return fmt.Errorf("two boots of the same bytes differ: %q and %q", pure.Lines, again.Lines)
			}
		}
		did := GRUBInPlace(b.env, w)
		b.boots++
		changed := before != cut(b.env)
		if !known {
			if boot > 0 || changed || did.Trial || sure && did.Slot == confirmed.Record.Good.Other() {
				return fmt.Errorf("no record at boot %d, changed %v: %q", boot, changed, did.Lines)
			}
			if sure {
				b.confirmed++
			} else {
				b.guesses++
			}
			return nil
		}
		if boot == 0 {
			b.records++
		}
		if err := b.keeps(record, did, w, before, changed); err != nil {
			return fmt.Errorf("boot %d by %s: %w: %q", boot, record, err, did.Lines)
		}
		if !changed {
			return nil
		}
		if did.Trial {
			trials++
		}
		// Besides the trials, a count that fails may leave its trace once in either copy.
		if trials > bootctl.MaxTries || boot == bootctl.MaxTries+2 {
			return fmt.Errorf("boot %d still changes the storage, %d trials: %q", boot, trials, did.Lines)
		}
	}
}

// inEffect is which record counts, as FORMAT.md of grubenv says it: the newer copy's,
// copy 0 where neither is one generation ahead.
func inEffect(env []byte) (bootctl.Record, bool) {
	c0, whole0 := look(env, grubenv.Copy0Offset)
	c1, whole1 := look(env, grubenv.Copy1Offset)
	if whole1 && (!whole0 || (c0.Generation+1)%3 == c1.Generation) {
		return c1.Record, true
	}
	return c0.Record, whole0
}

// agrees tells whether the device's own program reads the same record.
func (b *bench) agrees(record bootctl.Record, known bool) error {
	b.loads++
	loaded, err := grubenv.Open(seen{bytes.NewReader(b.env)}).Load()
	switch {
	case known && err == nil && loaded.Same(record):
		return nil
	case !known && errors.Is(err, bootctl.ErrNoRecord):
		return nil
	}
	return fmt.Errorf("Load says %s (%v), the loader has %s", loaded, err, record)
}

// keeps tells whether a boot kept to the record, which before held.
func (b *bench) keeps(record bootctl.Record, did Boot, w World, before part, changed bool) error {
	if did.Slot != "" && record.Mark(did.Slot) != bootctl.OK {
		return errors.New("a bad slot booted")
	}
	if changed {
		after, known := inEffect(b.env)
		want := record
		want.Tries--
		// A count that cannot be read back is no trial. What it leaves is the record as it
		// was, or one that a forger had hidden in the older copy.
		if !known || record.Trying == "" || w.ReadOnly || did.Trial && !after.Same(want) {
			return fmt.Errorf("left %s", after)
		}
	}
	if !did.Trial {
		if w.loads(record.Good) && did.Slot != record.Good {
			return errors.New("the good slot loads and did not boot")
		}
		return nil
	}
	b.trials++
	if did.Slot != record.Trying || !changed {
		return errors.New("a trial that was not counted")
	}
	// Not by the parser that the loader's model shares with Load.
	body := fmt.Sprintf("tandem=1\ngood=%s\ntrying=%s\ntries=%d\nbad=none\ngen=", record.Good, record.Trying, record.Tries)
	for gen := range 3 {
		word := fmt.Appendf(nil, "%08x", crc32.ChecksumIEEE(fmt.Appendf(nil, "%s%d\n", body, gen)))
		for _, block := range before[:2] {
			if bytes.Contains(bytes.ReplaceAll(block[:grubenv.SectorSize], []byte{'\\'}, nil), word) {
				return nil
			}
		}
	}
	return errors.New("a trial by a record whose check word nobody wrote")
}

// seen is a storage to look at: Load never writes.
type seen struct{ *bytes.Reader }

func (seen) WriteAt([]byte, int64) (int, error) { panic("Load writes") }
func (seen) Sync() error                        { panic("Load syncs") }

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
