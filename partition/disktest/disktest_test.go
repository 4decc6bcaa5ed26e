package disktest_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
)

var (
	_ partition.Disk   = (*disktest.Disk)(nil)
	_ partition.Medium = (*disktest.Disk)(nil)
)

const sector = disktest.Sector

func fill(c byte, sectors int) []byte { return bytes.Repeat([]byte{c}, sectors*sector) }

func write(t *testing.T, d *disktest.Disk, c byte, at, sectors int) {
	t.Helper()
	_, err := d.WriteAt(fill(c, sectors), int64(at*sector))
	require.NoError(t, err)
}

// picture shows a disk as one letter per sector: the letter it is filled with, ?
// for noise, ! for unreadable.
func picture(d *disktest.Disk) string {
	var s strings.Builder
	buf := make([]byte, sector)
	for at := int64(0); at < d.Size(); at += sector {
		if _, err := d.ReadAt(buf, at); err != nil {
			s.WriteByte('!')
		} else if bytes.Equal(buf, fill(buf[0], 1)) {
			s.WriteByte(buf[0])
		} else {
			s.WriteByte('?')
		}
	}
	return s.String()
}

// pictures collects all states, with how often each came at a cut.
func pictures(b *disktest.Bench, bounds disktest.Bounds) map[int][]string {
	states := make(map[int][]string)
	for crash := range b.Crashes(bounds) {
		var all []string
		for _, d := range crash.Disks() {
			all = append(all, picture(d))
		}
		states[crash.Cut] = append(states[crash.Cut], strings.Join(all, "|"))
	}
	return states
}

// A program that flips a flag before the data is flushed is caught; by a disk
// that only ever loses the end of the log it is not. That is why this package
// exists.
func TestFindsMissingSync(t *testing.T) {
	run := func(withSync bool) *disktest.Bench {
		d := disktest.New(fill('-', 20))
		write(t, d, 'D', 1, 16)
		if withSync {
			require.NoError(t, d.Sync())
		}
		write(t, d, 'F', 0, 1)
		require.NoError(t, d.Sync())
		return d.Bench()
	}
	failures := func(b *disktest.Bench, bounds disktest.Bounds) (n int) {
		for crash := range b.Crashes(bounds) {
			p := picture(crash.Disks()[0])
			if p[0] == 'F' && p[1:17] != strings.Repeat("D", 16) {
				n++
			}
		}
		return n
	}
	require.Zero(t, failures(run(true), disktest.Bounds{}))
	require.NotZero(t, failures(run(false), disktest.Bounds{}))
	require.Zero(t, failures(run(false), disktest.Bounds{InOrder: true}))
}

// With few sectors pending, exactly the states are visited that a disk can be in:
// each sector holds any of the versions since its last sync, independently.
func TestVisitsEveryStateOfFewSectors(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		d := disktest.New(fill('-', 3))
		possible := [][]byte{{'-'}, {'-'}, {'-'}} // versions of each sector
		now := []byte("---")
		want := make(map[int]map[string]bool)
		note := func(cut int) {
			set := make(map[string]bool)
			for _, a := range possible[0] {
				for _, b := range possible[1] {
					for _, c := range possible[2] {
						set[string([]byte{a, b, c})] = true
					}
				}
			}
			want[cut] = set
		}
		letter := byte('a')
		for range 8 {
			if r.IntN(4) == 0 {
				note(d.Bench().Ops())
				require.NoError(t, d.Sync())
				for i := range possible {
					possible[i] = []byte{now[i]}
				}
			} else {
				at, n := r.IntN(3), 1
				if at < 2 {
					n += r.IntN(2)
				}
				for i := at; i < at+n; i++ {
					possible[i] = append(possible[i], letter)
					now[i] = letter
				}
				note(d.Bench().Ops()) // in flight it may be there already
				write(t, d, letter, at, n)
				letter++
			}
		}
		note(d.Bench().Ops())
		got := make(map[int]map[string]bool)
		for cut, list := range pictures(d.Bench(), disktest.Bounds{Sectors: 20, Writes: 20}) {
			got[cut] = make(map[string]bool)
			for _, p := range list {
				if !strings.ContainsAny(p, "?!") {
					require.False(t, got[cut][p], "seed %d: %s twice at cut %d", seed, p, cut)
					got[cut][p] = true
				}
			}
		}
		require.Equal(t, want, got, "seed %d", seed)
	}
}

// The write in flight is torn at each of its sectors, and the sector under the
// head may be destroyed.
func TestTearsEverySector(t *testing.T) {
	d := disktest.New(fill('-', 4))
	write(t, d, 'n', 0, 4)
	got := pictures(d.Bench(), disktest.Bounds{InOrder: true})
	require.ElementsMatch(t, []string{"----", "n---", "nn--", "nnn-", "nnnn", "?---", "n?--", "nn?-", "nnn?", "!---", "n!--", "nn!-", "nnn!"}, got[0])
	require.Equal(t, []string{"nnnn"}, got[1])
}

// Disks lose power together and sync apart.
func TestDisksSyncApart(t *testing.T) {
	b := disktest.NewBench()
	one, two := b.Disk(fill('-', 1)), b.Disk(fill('-', 1))
	write(t, one, '1', 0, 1)
	write(t, two, '2', 0, 1)
	require.NoError(t, two.Sync())
	got := pictures(b, disktest.Bounds{From: 3})
	require.Contains(t, got[3], "-|2")
	require.Contains(t, got[3], "1|2")
	require.NotContains(t, got[3], "1|-")
	require.NoError(t, one.Sync())
	require.Equal(t, map[int][]string{4: {"1|2"}}, pictures(b, disktest.Bounds{From: 4}))
}

// After a sync that failed, a second one says that all is well, the cache agrees,
// and the data is not there: Linux does that.
func TestFailedSyncForgets(t *testing.T) {
	d := disktest.New(fill('-', 64))
	d.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: syscall.EIO})
	write(t, d, 'n', 0, 64)
	require.ErrorIs(t, d.Sync(), syscall.EIO)
	require.True(t, d.Fired())
	require.NoError(t, d.Sync())
	require.Equal(t, strings.Repeat("n", 64), picture(d))
	states := pictures(d.Bench(), disktest.Bounds{From: 3})
	require.Len(t, states[3], 1)
	onMedium := states[3][0]
	require.Contains(t, onMedium, "-")
	require.Contains(t, onMedium, "n")
	buf := make([]byte, 64*sector)
	_, err := d.ReadMedium(buf, 0)
	require.NoError(t, err)
	require.Equal(t, onMedium, picture(disktest.New(buf)), "reading past the cache shows it")
	buf = make([]byte, 700)
	_, err = d.ReadMedium(buf, 300)
	require.NoError(t, err)
	require.NoError(t, d.DropCache())
	require.Equal(t, onMedium, picture(d))
	require.Equal(t, d.Bytes()[300:1000], buf)
	write(t, d, 'n', 0, 64)
	require.NoError(t, d.Sync())
	require.Equal(t, map[int][]string{5: {strings.Repeat("n", 64)}}, pictures(d.Bench(), disktest.Bounds{From: 5}), "writing again helps")
}

// A sync that lies leaves everything to be lost until one that does not.
func TestLyingSync(t *testing.T) {
	d := disktest.New(fill('-', 1))
	d.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Lie: true})
	write(t, d, 'n', 0, 1)
	require.NoError(t, d.Sync())
	require.Contains(t, pictures(d.Bench(), disktest.Bounds{})[2], "-")
	require.NoError(t, d.Sync())
	require.Equal(t, []string{"n"}, pictures(d.Bench(), disktest.Bounds{})[3])
}

func TestFaults(t *testing.T) {
	t.Run("the second write fails once, half done", func(t *testing.T) {
		d := disktest.New(fill('-', 4))
		d.Inject(disktest.Fault{Op: disktest.Write, At: 2, Err: syscall.ENOSPC})
		write(t, d, 'a', 0, 1)
		require.False(t, d.Fired())
		n, err := d.WriteAt(fill('b', 4), 0)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.Equal(t, 2*sector, n)
		require.Equal(t, "bb--", picture(d))
		write(t, d, 'c', 3, 1)
	})
	t.Run("reads fail for good", func(t *testing.T) {
		d := disktest.New(fill('-', 1))
		d.Inject(disktest.Fault{Op: disktest.Read, At: 2, Sticky: true, Err: syscall.EIO})
		require.Equal(t, "-", picture(d))
		require.Equal(t, "!", picture(d))
		require.Equal(t, "!", picture(d))
	})
	t.Run("one bit is read wrong, once", func(t *testing.T) {
		d := disktest.New(make([]byte, sector))
		d.Inject(disktest.Fault{Op: disktest.Read, At: 1, Flip: 8*sector + 11})
		buf := make([]byte, 4)
		_, err := d.ReadAt(buf, 0)
		require.NoError(t, err)
		require.Equal(t, 1, countBits(buf))
		_, err = d.ReadAt(buf, 0)
		require.NoError(t, err)
		require.Zero(t, countBits(buf))
	})
	t.Run("decay", func(t *testing.T) {
		d := disktest.New(make([]byte, sector))
		d.Flip(100, 3)
		require.Equal(t, 1, countBits(d.Bytes()))
		for crash := range d.Bench().Crashes(disktest.Bounds{}) {
			require.Equal(t, 1, countBits(crash.Disks()[0].Bytes()))
		}
	})
}

func countBits(b []byte) (n int) {
	for _, c := range b {
		for ; c != 0; c &= c - 1 {
			n++
		}
	}
	return n
}

// An unreadable sector stays so, over another crash too, until it is written
// whole.
func TestUnreadableSector(t *testing.T) {
	d := disktest.New(fill('-', 2))
	write(t, d, 'n', 0, 1)
	met := 0
	for crash := range d.Bench().Crashes(disktest.Bounds{}) {
		after := crash.Disks()[0]
		if picture(after) != "!-" {
			continue
		}
		met++
		_, err := after.WriteAt([]byte{1}, 5)
		require.ErrorIs(t, err, syscall.EIO)
		write(t, after, 'm', 0, 1)
		require.Equal(t, "m-", picture(after))
		again := pictures(after.Bench(), disktest.Bounds{})
		require.Contains(t, again[0], "!-")
		require.Contains(t, again[1], "m-")
		require.NoError(t, after.Sync())
		require.Equal(t, []string{"m-"}, pictures(after.Bench(), disktest.Bounds{})[2])
	}
	require.NotZero(t, met)
}

// On a disk that writes larger units, a cut may destroy the one that was being written,
// with what was in it and nobody wrote: after the units before it, or as the first of
// all; so it may a unit that was in the cache. Other states are as on other disks.
func TestDestroysUnits(t *testing.T) {
	states := func(unit int64, bounds disktest.Bounds) (units, others []string) {
		d := disktest.New(fill('-', 10)) // the last unit is a short one
		d.SetUnit(unit)
		write(t, d, 'a', 1, 1)
		write(t, d, 'b', 3, 6)
		bounds.From = 1
		for crash := range d.Bench().Crashes(bounds) {
			if crash.Cut > 1 {
				break
			}
			state := picture(crash.Disks()[0])
			if crash.Class == disktest.Unit {
				require.True(t, crash.Destroyed())
				units = append(units, state)
			} else {
				others = append(others, state)
			}
		}
		return units, others
	}
	none, others := states(sector, disktest.Bounds{})
	require.Empty(t, none)
	units, same := states(4*sector, disktest.Bounds{})
	require.Equal(t, others, same)
	var want []string
	for _, broken := range []string{"????", "!!!!"} {
		want = append(want,
			broken+"------",       // 'a', or the first sector of 'b', is destroyed
			"-a-b"+broken+"--",    // the middle of 'b', and all before is there
			"----"+broken+"--",    // and nothing is
			"-a-bbbbb"+broken[:2], // its end
			"--------"+broken[:2], //
		)
	}
	// Noise follows from the write too: of the first unit there are two.
	require.ElementsMatch(t, append(want, "????------"), units)
	inOrder, _ := states(4*sector, disktest.Bounds{InOrder: true})
	require.ElementsMatch(t, []string{"????------", "!!!!------", "-a-b????--", "-a-b!!!!--", "-a-bbbbb??", "-a-bbbbb!!"}, inOrder)
}

// States with the same content have the same sum, and others another one, also where
// sectors are destroyed that nobody wrote, before and after these were written.
func TestSumOfUnits(t *testing.T) {
	d := disktest.New(fill('-', 12))
	d.SetUnit(4 * sector)
	write(t, d, 'a', 2, 1)
	require.NoError(t, d.Sync())
	write(t, d, 'b', 1, 2)
	write(t, d, 'a', 3, 6)
	content, sum := map[uint64]string{}, map[string]uint64{}
	states := 0
	for crash := range d.Bench().Crashes(disktest.Bounds{}) {
		states++
		after := crash.Disks()[0]
		holds := ""
		for at, c := range picture(after) {
			if holds += string(c); c == '?' {
				holds += string(after.Bytes()[at*sector : (at+1)*sector])
			}
		}
		if old, ok := content[crash.Sum(0)]; ok {
			require.True(t, old == holds, "%s", crash)
		}
		if old, ok := sum[holds]; ok {
			require.Equal(t, old, crash.Sum(0), "%s", crash)
		}
		content[crash.Sum(0)], sum[holds] = holds, crash.Sum(0)
		for untouched := range after.Bench().Crashes(disktest.Bounds{}) {
			require.Equal(t, untouched.Sum(0), crash.Sum(0), "%s", crash)
		}
	}
	require.Less(t, len(sum), states, "some came twice")
}

// A unit that cannot be read is written as a whole, and no part of it; so it is on the
// machine after the next cut.
func TestUnreadableUnit(t *testing.T) {
	d := disktest.New(fill('-', 8))
	d.SetUnit(4 * sector)
	write(t, d, 'n', 1, 1)
	met := 0
	for crash := range d.Bench().Crashes(disktest.Bounds{}) {
		after := crash.Disks()[0]
		if picture(after) != "!!!!----" {
			continue
		}
		met++
		for at := range 4 {
			_, err := after.WriteAt(fill('m', 1), int64(at*sector))
			require.ErrorIs(t, err, syscall.EIO)
		}
		write(t, after, 'm', 0, 4)
		require.Equal(t, "mmmm----", picture(after))
		require.NoError(t, after.Sync())
		write(t, after, 'o', 5, 1)
		require.Contains(t, pictures(after.Bench(), disktest.Bounds{})[2], "mmmm!!!!")
	}
	require.NotZero(t, met)
}

// The line that a state prints brings back that state and no other, also the
// crash of a recovery.
func TestReplay(t *testing.T) {
	first := func() *disktest.Bench {
		b := disktest.NewBench()
		one, two := b.Disk(fill('-', 5)), b.Disk(fill('-', 2))
		one.SetUnit(4 * sector)
		write(t, one, 'a', 0, 3)
		write(t, two, 'b', 0, 2)
		require.NoError(t, one.Sync())
		write(t, one, 'c', 2, 3)
		return b
	}
	type state struct {
		line    string
		content [][]byte
	}
	var all []state
	n, units := 0, 0
	for crash := range first().Crashes(disktest.Bounds{}) {
		if n++; n%5 != 0 {
			continue
		}
		if crash.Class == disktest.Unit {
			units++
		}
		disks := crash.Disks()
		write(t, disks[1], 'z', 0, 2)
		for nested := range disks[1].Bench().Crashes(disktest.Bounds{Samples: 4}) {
			s := state{line: nested.String()}
			for _, d := range nested.Disks() {
				s.content = append(s.content, d.Bytes())
			}
			all = append(all, s)
		}
	}
	require.Greater(t, len(all), 100)
	require.NotZero(t, units)
	for i, want := range all {
		t.Setenv("DISKTEST", []string{"", "what came before, of the test's own: "}[i%2]+want.line)
		var got []state
		for crash := range first().Crashes(disktest.Bounds{}) {
			disks := crash.Disks()
			write(t, disks[1], 'z', 0, 2)
			for nested := range disks[1].Bench().Crashes(disktest.Bounds{}) {
				s := state{line: nested.String()}
				for _, d := range nested.Disks() {
					s.content = append(s.content, d.Bytes())
				}
				got = append(got, s)
			}
		}
		require.Equal(t, []state{want}, got)
	}
}

// What comes before a fault and what comes after it can be told apart, and so can a state
// of which nothing is lost.
func TestFiredAt(t *testing.T) {
	b := disktest.NewBench()
	one, two := b.Disk(fill('-', 4)), b.Disk(fill('-', 4))
	one.Inject(disktest.Fault{Op: disktest.Write, At: 2, Err: syscall.EIO, Sticky: true})
	one.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Lie: true})
	write(t, one, 'a', 0, 1)
	write(t, two, 'b', 0, 1)
	_, fired := one.FiredAt()
	require.False(t, fired)
	for range 2 {
		_, err := one.WriteAt(fill('c', 1), 0)
		require.ErrorIs(t, err, syscall.EIO)
		write(t, two, 'd', 1, 1)
		require.NoError(t, one.Sync())
	}
	ops, fired := one.FiredAt()
	require.True(t, fired)
	require.Equal(t, 2, ops, "the first of them")

	lost := map[bool]int{}
	for crash := range b.Crashes(disktest.Bounds{From: ops}) {
		require.GreaterOrEqual(t, crash.Cut, ops)
		whole := crash.Disks()[1].Bytes()[0] == 'b'
		lost[crash.Lost()]++
		require.False(t, !crash.Lost() && !whole, "%s", crash)
	}
	require.Positive(t, lost[true])
	require.Positive(t, lost[false])
}

// A program that dies without a power cut leaves its unsynced writes in the
// cache, where they can still be lost.
func TestRevive(t *testing.T) {
	for cut := 1; ; cut++ {
		d := disktest.New(fill('-', 2))
		d.Bench().CutAt(cut)
		run := func() error {
			for i, c := range []byte("ab") {
				if _, err := d.WriteAt(fill(c, 1), int64(i*sector)); err != nil {
					return err
				}
			}
			return d.Sync()
		}
		err := run()
		if !d.Bench().Cut() {
			require.NoError(t, err)
			require.Equal(t, 4, cut, "two writes and a sync")
			return
		}
		require.ErrorIs(t, err, disktest.ErrPower)
		_, err = d.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, disktest.ErrPower)
		require.Equal(t, cut-1, d.Bench().Ops())
		// What the power cut itself can have left, the write in flight included.
		states := pictures(d.Bench(), disktest.Bounds{From: cut - 1})
		require.Contains(t, states[cut-1], "--")
		if cut == 2 {
			require.Contains(t, states[1], "ab")
		}
		d.Bench().Revive()
		require.Equal(t, []string{"--", "a-", "ab"}[cut-1], picture(d))
		states = pictures(d.Bench(), disktest.Bounds{From: cut - 1})
		require.Contains(t, states[cut-1], "--", "still not durable")
		if cut == 2 {
			require.NotContains(t, states[1], "ab", "what was in flight never happened")
		}
		require.NoError(t, d.Sync())
	}
}

// A write that is not aligned changes only its bytes, and tears by sectors.
func TestUnalignedWrite(t *testing.T) {
	d := disktest.New(fill('-', 3))
	_, err := d.WriteAt(fill('n', 1), 100)
	require.NoError(t, err)
	want := slices.Concat(fill('-', 1)[:100], fill('n', 1), fill('-', 2)[:2*sector-100])
	require.Equal(t, want, d.Bytes())
	halves := 0
	for crash := range d.Bench().Crashes(disktest.Bounds{InOrder: true}) {
		if strings.HasPrefix(crash.String(), "cut=0 n1o1") {
			got := crash.Disks()[0].Bytes()
			require.Equal(t, slices.Concat(want[:sector], fill('-', 2)), got)
			halves++
		}
	}
	require.Equal(t, 1, halves)
	_, err = d.WriteAt([]byte{1}, d.Size())
	require.Error(t, err)
	_, err = d.ReadAt([]byte{1}, d.Size())
	require.ErrorIs(t, err, io.EOF)
}

// A loop of the kind that a user writes, kept compiling.
func ExampleBench_Crashes() {
	bench := disktest.NewBench()
	disk := bench.Disk(bytes.Repeat([]byte{'-'}, 2*disktest.Sector))
	_, _ = disk.WriteAt(bytes.Repeat([]byte{'n'}, 2*disktest.Sector), 0)
	for crash := range bench.Crashes(disktest.Bounds{InOrder: true}) {
		fmt.Println(crash)
	}
	// Output:
	// cut=0 o2
	// cut=0 n1o1
	// cut=0 n2
	// cut=0 x1o1
	// cut=0 u1o1
	// cut=0 n1x1
	// cut=0 n1u1
	// cut=1 n2
}
