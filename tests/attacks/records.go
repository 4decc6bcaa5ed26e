package attacks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/datafile"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/tpm"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/trust"
)

// recordAttacks are the device's own notes, as decay or somebody with the disk in hand
// leaves them: the record of a slot, the journal, the attempts of the boots before.
var recordAttacks = []Attack{
	{
		Name: "record/truncated-at-every-byte", Input: "each beginning of a slot record, and zeros", Want: partition.ErrNoRecord, Threats: []string{suitNonAuth},
		Run: func(s *Scene) error {
			s.slotRecord(func(area []byte, n int, read func(string, ...any)) {
				for at := range n {
					clear(area[at:])
					read("%d bytes", at)
					copy(area, noted(wholeRecord))
				}
			})
			return nil
		},
	},
	{
		Name: "record/every-bit-flipped", Input: "a slot record with one other bit", Want: partition.ErrNoRecord, Threats: []string{suitNonAuth, suitModification},
		Run: func(s *Scene) error {
			s.slotRecord(func(area []byte, n int, read func(string, ...any)) {
				for bit := range n * 8 {
					area[bit/8] ^= 1 << (bit % 8)
					read("bit %d", bit)
					area[bit/8] ^= 1 << (bit % 8)
				}
			})
			return nil
		},
	},
	{
		Name: "record/length-that-lies", Input: "a slot record of no, of too many and of four billion bytes", Want: partition.ErrNoRecord, Threats: []string{tufEndless},
		Run: func(s *Scene) error {
			s.slotRecord(func(area []byte, _ int, read func(string, ...any)) {
				for _, length := range []uint32{0, partition.MaxEnvelope + 1, 1 << 31, 1<<32 - 48, 1<<32 - 1} {
					binary.LittleEndian.PutUint32(area[12:], length)
					sum := sha256.Sum256(area[48:][:min(length, partition.MaxEnvelope)])
					copy(area[16:], sum[:])
					read("%d bytes", length)
				}
			})
			return nil
		},
	},
	{
		Name: "record/version-of-tomorrow", Input: "a slot record whose form the device cannot know", Want: partition.ErrNoRecord, Threats: []string{suitFormat},
		Run: func(s *Scene) error {
			s.slotRecord(func(area []byte, _ int, read func(string, ...any)) {
				for _, version := range []uint32{0, 2, 1 << 31, 1<<32 - 1} {
					binary.LittleEndian.PutUint32(area[8:], version)
					read("version %d", version)
				}
			})
			return nil
		},
	},
	{
		Name: "record/partition-too-small", Input: "a partition that has no room for a slot record", Want: partition.ErrOutside, Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(everything...)
			for _, size := range []int64{0, 512, partition.RecordSize - 1} {
				small := partition.Section(d.disks["b/root"], 0, size)
				_, err := partition.ReadRecord(small)
				s.Variant(err, "read in %d bytes", size)
				s.Variant(partition.WriteRecord(small, partition.Record{Envelope: theDesk().next.envelope}), "write in %d bytes", size)
				s.Variant(partition.EraseRecord(small), "erase in %d bytes", size)
			}
			return nil
		},
	},
	{
		// A disk that does not answer has not said that there is no record.
		Name: "record/sector-unreadable", Input: "a disk that cannot read the slot record", Want: syscall.EIO,
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(everything...)
			disk := d.disks["b/root"]
			disk.Inject(disktest.Fault{Op: disktest.Read, At: 1, Err: syscall.EIO})
			_, err := partition.ReadRecord(disk)
			require.NotErrorIs(s, err, partition.ErrNoRecord)
			return err
		},
	},
	journalled("truncated-at-every-byte", "each beginning of a journal", func(whole []byte, offer func([]byte, string, ...any)) {
		for n := range whole {
			offer(whole[:n], "%d bytes", n)
		}
	}),
	journalled("every-bit-flipped", "a journal with one other bit", func(whole []byte, offer func([]byte, string, ...any)) {
		for bit := range len(whole) * 8 {
			bad := bytes.Clone(whole)
			bad[bit/8] ^= 1 << (bit % 8)
			offer(bad, "bit %d", bit)
		}
	}),
	journalled("too-long", "a journal of a byte and of megabytes too many, its checksum right", func(_ []byte, offer func([]byte, string, ...any)) {
		for _, n := range []int{journal.MaxSize, 8 << 20} {
			offer(summed(`{"state":"`+strings.Repeat("x", n)+`"}`), "%d bytes", n)
		}
	}),
	journalled("nested-for-ever", "a journal of nothing but brackets, its checksum right", func(_ []byte, offer func([]byte, string, ...any)) {
		offer(summed(`{"later":`+strings.Repeat("[", 200_000)), "arrays")
		offer(summed(strings.Repeat(`{"update":`, 20_000)), "objects")
	}),
	journalled("other-types", "a journal with numbers for words and out of every range, its checksum right", func(_ []byte, offer func([]byte, string, ...any)) {
		for _, body := range []string{
			``, `[]`, `"x"`, `5`, `{}{}`, `{"state":5}`, `{"update":[]}`, `{"update":{"written":{"root":"far"}}}`, `{"counter":-1}`, `{"counter":18446744073709551616}`,
			`{"counter":1e400}`, `{"time_floor":9223372036854775808}`, `{"failed":{}}`, `{"update":{"tries":1.5}}`, "{\"state\":\"\x01\"}",
		} {
			offer(summed(body), "%s", body)
		}
	}),
	{
		// An updater that is reverted to finds the journal of a newer one. What it does not
		// know it leaves alone, and the boot record says what runs.
		Name: "journal/state-of-a-newer-updater", Input: "a journal in a state, and with fields, of tomorrow", Threats: []string{suitFormat},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			d.store.files[journal.Name] = summed(`{"state":"levitating","update":{"id":"x","slot":"b","tries":3,"hover":{"at":1}},"later":[{"a":[1,2,3]}]}`)
			d.keep(running, spare, record, tuf)
			s.Bubble(func() { d.start() })
			return nil
		},
	},
	{
		Name: "journal/numbers-beside-the-truth", Input: "a journal that is whole and says what cannot be", Threats: []string{tufRollback},
		Run: func(s *Scene) error {
			for _, body := range []string{
				`{"state":"writing","update":{"id":"x","slot":"a","tries":3,"written":{"root":9223372036854775807}}}`,
				`{"state":"writing","update":{"id":"x","slot":"c","tries":-3,"written":{"root":-1,"../../a":5}}}`,
				`{"state":"trial","update":{"id":"x","slot":"","tries":2147483647,"used":-2147483648}}`,
				`{"state":"armed"}`, `{"state":"trial"}`, `{"state":"written"}`, `{"state":"writing"}`,
				`{"state":"","update":{"slot":"a"},"last":{"id":"x","slot":"a","result":"committed"}}`,
			} {
				d := s.device(theDesk().first, theDesk().old)
				d.store.files[journal.Name] = summed(body)
				d.keep(running, spare, record)
				s.Bubble(func() { d.start() })
				s.Variant(nil, "%s", body)
			}
			return nil
		},
	},
	{
		Name: "attempts/truncated-at-every-byte", Input: "each beginning of the boot attempts", Threats: []string{suitModification},
		Run: func(s *Scene) error {
			f := s.attempts()
			for n := range f.whole {
				got := f.read(f.whole[:n])
				require.Len(s, got, bytes.Count(f.whole[:n], []byte("\n")), "%d bytes", n)
				for i := range got {
					require.Equal(s, f.events[i], got[i], "%d bytes", n)
				}
				s.Variant(nil, "%d bytes", n)
			}
			f.appends()
			return nil
		},
	},
	{
		Name: "attempts/every-bit-flipped", Input: "the boot attempts with one other bit", Threats: []string{suitModification},
		Run: func(s *Scene) error {
			f := s.attempts()
			for bit := range len(f.whole) * 8 {
				bad := bytes.Clone(f.whole)
				bad[bit/8] ^= 1 << (bit % 8)
				for _, e := range f.read(bad) {
					require.Contains(s, f.events, e, "bit %d", bit)
				}
				s.Variant(nil, "bit %d", bit)
			}
			f.appends()
			return nil
		},
	},
	{
		Name: "attempts/no-end-in-sight", Input: "boot attempts of a gigabyte, of one line, of lines that are nested and none", Threats: []string{tufEndless},
		Run: func(s *Scene) error {
			f := s.attempts()
			for i, bad := range [][]byte{
				bytes.Repeat([]byte{'a'}, 2*bootreport.MaxSize), bytes.Repeat([]byte{'\n'}, 2*bootreport.MaxSize), bytes.Repeat([]byte{0}, bootreport.MaxSize),
				summed(strings.Repeat("[", bootreport.MaxSize-10)), summed(`{"slot":[]}`), summed(`null`), []byte("00000000 \n"), []byte("-0000001 x\n"),
			} {
				for _, e := range f.read(bad) {
					require.Equal(s, bootreport.Attempt{}, e)
				}
				f.appends()
				s.Variant(nil, "content %d", i)
			}
			require.NoError(s, os.Truncate(f.path, 1<<30))
			_, err := bootreport.Attempts(f.path)
			f.appends()
			info := must(os.Stat(f.path))
			require.LessOrEqual(s, info.Size(), int64(bootreport.MaxSize), "it stays as long as somebody made it")
			s.Variant(err, "a gigabyte")
			return nil
		},
	},
	{
		// The data partition is not verified by anything. What stands in the place of its
		// files must neither hold a boot up for ever nor lead a write to a device.
		Name: "files/that-are-none", Input: "pipes, links and folders where the files of the data partition are", Want: either(datafile.ErrNoFile, syscall.EISDIR, syscall.EEXIST), Threats: []string{suitLocation, uptaneSlowRetrieval},
		Run: func(s *Scene) error {
			victim := filepath.Join(s.TempDir(), "partition")
			require.NoError(s, os.WriteFile(victim, theDesk().first.envelope, 0o600))
			s.Keep("what a link leads to", func() []byte { return must(os.ReadFile(victim)) })
			for name, plant := range map[string]func(path string) error{
				"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
				"link":   func(path string) error { return os.Symlink(victim, path) },
				"device": func(path string) error { return os.Symlink("/dev/zero", path) },
				"folder": func(path string) error { return os.Mkdir(path, 0o700) },
			} {
				at := func() string {
					path := filepath.Join(must(os.MkdirTemp(s.TempDir(), "")), journal.Name)
					require.NoError(s, plant(path))
					return path
				}
				_, err := bootreport.Attempts(at())
				s.Variant(err, "a %s for the attempts", name)
				s.Variant(bootreport.Append(at(), bootreport.Attempt{}), "a %s for the attempts, one more", name)
				_, err = tpm.CreateLog(at(), 512)
				s.Variant(err, "a %s for the ledger", name)
				_, err = journal.Load(trust.Dir(filepath.Dir(at())))
				s.Variant(err, "a %s for the journal", name)
			}
			return nil
		},
	},
}

// wholeRecord is an envelope short enough to try each bit.
var wholeRecord = []byte(`{"payload":"e30=","signatures":[{"keyid":"1","sig":"AA=="}]}`)

// noted is a slot record, of which nothing is zero but the upper bytes of its numbers.
func noted(envelope []byte) []byte {
	disk := disktest.New(make([]byte, partition.RecordSize))
	if err := partition.WriteRecord(disk, partition.Record{Envelope: envelope}); err != nil {
		panic(err)
	}
	return disk.Bytes()[:48+len(envelope)]
}

// still is a disk that nothing may write to.
type still struct{ *bytes.Reader }

func (still) WriteAt([]byte, int64) (int, error) { panic("a reader writes") }
func (still) Sync() error                        { panic("a reader syncs") }

// slotRecord gives a case a slot record of n bytes to spoil, and to be read.
func (s *Scene) slotRecord(spoil func(area []byte, n int, read func(string, ...any))) {
	s.device(theDesk().first, theDesk().old).keep(everything...)
	area, whole := make([]byte, partition.RecordSize), noted(wholeRecord)
	copy(area, whole)
	disk := still{bytes.NewReader(area)}
	must(partition.ReadRecord(disk))
	spoil(area, len(whole), func(format string, args ...any) {
		before := sha256.Sum256(area)
		_, err := partition.ReadRecord(disk)
		s.Variant(err, format, args...)
		require.Equal(s, before, sha256.Sum256(area))
	})
}

// summed is a line with its checksum, as journal and attempts have it.
func summed(body string) []byte {
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)), body)
}

// journalled is a case of journals that are none: the device goes on without.
func journalled(name, input string, variants func(whole []byte, offer func(bad []byte, format string, args ...any))) Attack {
	return Attack{Name: "journal/" + name, Input: input, Want: journal.ErrDamaged, Threats: []string{suitModification}, Run: func(s *Scene) error {
		d := s.device(theDesk().first, theDesk().old).keep(running, spare, record, tuf)
		up := &journal.Update{ID: "1", Slot: "b", Tries: 3, Written: map[string]int64{"root.img": 65536}}
		whole := journal.Journal{State: "writing", Update: up, Counter: 7}.Encode()
		n := 0
		variants(whole, func(bad []byte, format string, args ...any) {
			d.store.files[journal.Name] = bad
			j, err := journal.Load(d.store)
			require.Empty(s, j)
			s.Variant(err, format, args...)
			// Starting a device takes longer than reading its journal.
			if n++; n%97 == 1 {
				s.Bubble(func() { d.start() })
			}
		})
		return nil
	}}
}

// attemptsFile is a file of boot attempts in a folder of its own.
type attemptsFile struct {
	s      *Scene
	path   string
	whole  []byte
	events []bootreport.Attempt
}

func (s *Scene) attempts() *attemptsFile {
	s.device(theDesk().first, theDesk().old).keep(everything...)
	f := &attemptsFile{s: s, path: filepath.Join(s.TempDir(), "attempts")}
	for _, stage := range []string{bootreport.StageStarted, bootreport.StageSwitched} {
		f.events = append(f.events, bootreport.Attempt{BootID: "0b6e", Slot: "b", Stage: stage})
		require.NoError(s, bootreport.Append(f.path, f.events[len(f.events)-1]))
	}
	f.whole = must(os.ReadFile(f.path))
	require.Equal(s, f.events, must(bootreport.Attempts(f.path)))
	return f
}

// read reads a file with another content.
func (f *attemptsFile) read(content []byte) []bootreport.Attempt {
	require.NoError(f.s, os.WriteFile(f.path, content, 0o600))
	return must(bootreport.Attempts(f.path))
}

// appends requires that the next boot can write down what happens to it.
func (f *attemptsFile) appends() {
	next := bootreport.Attempt{BootID: "next", Stage: bootreport.StageFailed}
	require.NoError(f.s, bootreport.Append(f.path, next))
	all := must(bootreport.Attempts(f.path))
	require.Equal(f.s, next, all[len(all)-1])
}
