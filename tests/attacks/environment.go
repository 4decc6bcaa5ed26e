package attacks

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// environmentAttacks are what the boot record's partition may hold after decay, a tool
// that does not know it, or somebody who does. boottest's TestHostileStorage has a million
// more of them.
var environmentAttacks = []Attack{
	environment("one-copy-spoiled", "each copy in turn zero, ff, noise, or of another file", nil, func(offer func([]byte, string, ...any)) {
		for _, at := range copiesAt {
			for name, sector := range strange() {
				for _, env := range environments() {
					copy(env[at:], sector)
					offer(env, "copy at %d: %s", at, name)
				}
			}
		}
	}),
	environment("no-record-left", "both copies of the record gone, with and without the confirmed one", bootctl.ErrNoRecord, func(offer func([]byte, string, ...any)) {
		for name, sector := range strange() {
			for _, env := range environments() {
				copy(env[grubenv.Copy0Offset:], sector)
				copy(env[grubenv.Copy1Offset:], sector)
				offer(env, "%s", name)
				copy(env[grubenv.ConfirmedOffset:], sector)
				offer(env, "%s, and the confirmed copy", name)
			}
		}
	}),
	environment("same-generation-twice", "two whole copies of one generation that say different things", nil, func(offer func([]byte, string, ...any)) {
		for i, one := range boottest.Records() {
			for j, other := range boottest.Records() {
				if (i+j)%11 != 0 {
					continue
				}
				env := environments()[0]
				copy(env[grubenv.Copy0Offset:], grubenv.Copy{Record: one, Generation: 1}.Block())
				copy(env[grubenv.Copy1Offset:], grubenv.Copy{Record: other, Generation: 1}.Block())
				offer(env, "%s; %s", one, other)
			}
		}
	}),
	forgedRecord("generation-out-of-range", "a generation that no loader counts to, its check word right", "gen", "3", "-1", "99", "", "00", "0x1", " 1"),
	forgedRecord("tries-out-of-range", "99, -1 and four billion tries, their check word right", "tries", "10", "99", "-1", "03", "4294967297", "", "9 ", "x"),
	forgedRecord("trying-the-good-slot", "a trial of the good slot, of a bad one, and of none that there is", "trying", "a", "c", "", "ab", "A"),
	forgedRecord("good-slot-that-is-none", "a good slot that is marked bad, or does not exist", "good", "none", "c", "", "a/../b", "B"),
	forgedRecord("version-of-tomorrow", "a record whose form the loader cannot know", "tandem", "2", "0", "", "1.0", "01"),
	environment("names-twice", "each variable a second time, with another value, before and behind", nil, func(offer func([]byte, string, ...any)) {
		for _, name := range []string{"tandem", "good", "trying", "tries", "bad", "gen", "check"} {
			for _, value := range []string{"a", "b", "none", "9", "0", "", strings.Repeat("f", 8)} {
				for _, place := range []string{"tandem=", "check="} {
					for _, env := range environments() {
						changeText(env, place, name+"="+value+"\n"+place)
						offer(env, "%s=%s at %s", name, value, place)
					}
				}
			}
		}
	}),
	environment("newlines-escaped", "lines that a backslash joins, and comments that hide one", nil, func(offer func([]byte, string, ...any)) {
		for _, name := range []string{"good=", "trying=", "tries=", "bad=", "gen=", "check="} {
			for _, escape := range []string{"\\\n", "\\", "\\\\", "#", "#\\\n", "\x00", "\r\n", "=\\\n"} {
				for _, env := range environments() {
					changeText(env, name, escape+name)
					offer(env, "%q before %s", escape, name)
					env = environments()[1]
					changeText(env, name, name+escape)
					offer(env, "%q after %s", escape, name)
				}
			}
		}
	}),
	environment("no-room-to-save", "values so long that nothing more fits", nil, func(offer func([]byte, string, ...any)) {
		for n := 250; n < 512; n += 7 {
			for _, env := range environments() {
				changeText(env, "tandem=", "note="+strings.Repeat("x", n)+"\ntandem=")
				offer(env, "%d bytes", n)
			}
		}
	}),
	environment("confirmed-names-a-bad-slot", "a confirmed copy for the slot that the record calls bad", nil, func(offer func([]byte, string, ...any)) {
		for _, env := range environments() {
			copy(env[grubenv.ConfirmedOffset:], grubenv.Image(bootctl.Record{Good: bootctl.B, A: bootctl.Bad, B: bootctl.OK})[grubenv.ConfirmedOffset:][:grubenv.BlockSize])
			offer(env, "b")
		}
	}),
	environment("file-system-damaged", "the FAT around the copies with a bit flipped, empty, or all ff", nil, func(offer func([]byte, string, ...any)) {
		for _, env := range environments() {
			for at := 0; at < grubenv.Copy0Offset; at += 499 {
				env[at] ^= 0x10
				offer(env, "byte %d", at)
				env[at] ^= 0x10
			}
			for _, fill := range []byte{0, 0xff} {
				copy(env, bytes.Repeat([]byte{fill}, grubenv.Copy0Offset))
				offer(env, "all %#x", fill)
			}
		}
	}),
	environment("noise", "copies spoiled at random, but one", nil, func(offer func([]byte, string, ...any)) {
		r := rand.New(rand.NewPCG(4, 4))
		for i := range 100 {
			env := boottest.Hostile(r, environments()[i%2])
			copy(env[grubenv.Copy1Offset:], environments()[i%2][grubenv.Copy1Offset:][:grubenv.BlockSize])
			offer(env, "%d", i)
		}
	}),
	{
		Name: "environment/partition-too-short", Input: "a partition that ends before, on and behind each copy", Want: bootctl.ErrNoRecord, Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(everything...)
			for _, size := range []int64{0, 512, 32 << 10, grubenv.Copy0Offset, grubenv.Copy0Offset + 511} {
				short := partition.Section(d.disks["record"], 0, size)
				_, err := grubenv.Open(short).Load()
				s.Variant(err, "%d bytes", size)
				require.Error(s, grubenv.Open(short).Save(bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK}), "%d bytes", size)
				require.Error(s, grubenv.Format(short, bootctl.Record{Good: bootctl.B, A: bootctl.OK, B: bootctl.OK}), "%d bytes", size)
			}
			return nil
		},
	},
	{
		// A loader that cannot count boots the good slot, never the trial; the updater says
		// that it cannot arm one.
		Name: "environment/read-only", Input: "a record that nobody can write to, with a trial in it", Want: syscall.EROFS, Threats: []string{uptaneFreeze},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			env := environments()[1]
			d.disks["record"] = disktest.New(env)
			d.disks["record"].Inject(disktest.Fault{Op: disktest.Write, At: 1, Err: syscall.EROFS, Sticky: true})
			d.keep(everything...)
			did := boottest.GRUB(env, boottest.World{ReadOnly: true})
			require.False(s, did.Trial)
			require.Equal(s, bootctl.A, did.Slot)
			record := d.record()
			reverted := must(record.Revert())
			return grubenv.Open(d.disks["record"]).Save(reverted)
		},
	},
}

var copiesAt = []int{grubenv.Copy0Offset, grubenv.Copy1Offset, grubenv.ConfirmedOffset}

// environments are the storage of a device whose spare slot is bad, and of one with a trial.
func environments() [][]byte {
	var out [][]byte
	for _, r := range []bootctl.Record{
		{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad},
		{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: 3},
	} {
		out = append(out, grubenv.Image(r)[:grubenv.LedgerOffset])
	}
	return out
}

// strange are sectors that are no copy.
func strange() map[string][]byte {
	noise := make([]byte, grubenv.SectorSize)
	for i := range noise {
		noise[i] = byte(rand.NewPCG(uint64(i), 1).Uint64())
	}
	gpt := tableDisk()
	other := "# GRUB Environment Block\nsaved_entry=Debian\nnext_entry=\n"
	return map[string][]byte{
		"zero": make([]byte, grubenv.SectorSize), "ff": bytes.Repeat([]byte{0xff}, grubenv.SectorSize), "noise": noise, "a partition table": gpt[512:1024],
		"another's environment":                []byte(other + strings.Repeat("#", grubenv.SectorSize-len(other))),
		"an environment without an end":        []byte(other + strings.Repeat("x", grubenv.SectorSize-len(other))),
		"a signature and nothing":              append([]byte("# GRUB Environment Block\n"), make([]byte, grubenv.SectorSize-25)...),
		"a boot sector of another file system": append(bytes.Repeat([]byte{0xeb, 0x3c, 0x90}, 170), 0x55, 0xaa),
	}
}

// changeText replaces a text in copy 0, the newer one; what is behind the sector is cut off.
func changeText(env []byte, old, new string) {
	sector := env[grubenv.Copy0Offset:][:grubenv.SectorSize]
	copy(sector, replaced(sector, "\n"+old, "\n"+new))
}

// environment is a case of storages: whatever they hold, the loader does not start what
// the record calls bad, and comes to rest.
func environment(name, input string, want error, variants func(offer func(env []byte, format string, args ...any))) Attack {
	return Attack{Name: "environment/" + name, Input: input, Want: want, Threats: []string{suitNonAuth, tufRollback}, Run: func(s *Scene) error {
		d := s.device(theDesk().first, theDesk().old)
		n := 0
		d.keep(running, spare, tuf)
		variants(func(env []byte, format string, args ...any) {
			env = bytes.Clone(env)
			s.comesToRest(env, format, args...)
			_, err := grubenv.Open(still{bytes.NewReader(env)}).Load()
			s.Variant(err, format, args...)
			// The machine goes on with it: starting it takes longer than asking its loader.
			if n++; n%23 == 1 {
				d.disks["record"] = disktest.New(env)
				s.Bubble(func() { d.start() })
			}
		})
		return nil
	}}
}

// comesToRest boots a storage until that changes nothing any more, over at most as many
// trials as a record can have tries.
func (s *Scene) comesToRest(env []byte, format string, args ...any) {
	s.Helper()
	at, trials := fmt.Sprintf(format, args...), 0
	for range bootctl.MaxTries + 3 {
		record, err := grubenv.Open(still{bytes.NewReader(env)}).Load()
		did := boottest.GRUB(env, boottest.World{})
		if err != nil {
			require.False(s, did.Trial, "%s: %q", at, did.Lines)
			require.NotEqual(s, record.Confirmed.Other(), did.Slot, "%s: %q", at, did.Lines)
		} else {
			require.Equal(s, bootctl.OK, record.Mark(did.Slot), "%s: %s: %q", at, record, did.Lines)
		}
		if did.Trial {
			trials++
		}
		if bytes.Equal(env, did.Env) {
			require.LessOrEqual(s, trials, bootctl.MaxTries, at)
			return
		}
		env = did.Env
	}
	require.Fail(s, "each boot changes the storage", at)
}

// forgedRecord is a case of copies that have one value that no record can have, and the
// check word that belongs to it.
func forgedRecord(name, input, variable string, values ...string) Attack {
	return Attack{Name: "environment/" + name, Input: input, Want: grubenv.ErrGarbled, Threats: []string{suitNonAuth}, Run: func(s *Scene) error {
		s.device(theDesk().first, theDesk().old).keep(everything...)
		for _, value := range values {
			lines := "tandem=1\ngood=a\ntrying=b\ntries=3\nbad=none\ngen=1\n"
			from := strings.Index(lines, variable+"=")
			to := from + strings.Index(lines[from:], "\n")
			lines = lines[:from] + variable + "=" + value + lines[to:]
			text := fmt.Sprintf("# GRUB Environment Block\n%scheck=%08x\n", lines, crc32.ChecksumIEEE([]byte(lines)))
			sector := []byte(text + strings.Repeat("#", grubenv.SectorSize-len(text)))
			_, err := grubenv.Parse(sector)
			s.Variant(err, "%s=%q", variable, value)
			for _, at := range copiesAt {
				env := environments()[0]
				copy(env[at:], sector)
				s.comesToRest(env, "%s=%q at %d", variable, value, at)
				require.Equal(s, bootctl.A, boottest.GRUB(env, boottest.World{}).Slot)
			}
		}
		return nil
	}}
}
