package attacks

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition"
)

// tableAttacks are partition tables that lie. Their checksums are right unless the case
// is about them: who can write the table can compute them.
var tableAttacks = []Attack{
	lyingTable("four-billion-entries", "a table that says it has 2^32 entries", []string{tufEndless}, func(t *table) {
		t.header(80, uint64(1<<32-1), 4)
	}, func(t *table) { t.header(80, 1025, 4) }, func(t *table) { t.header(80, 0, 4) }),
	lyingTable("entries-of-any-size", "entries of no, of odd and of gigabytes of size", []string{tufEndless},
		func(t *table) { t.header(84, 0, 4) }, func(t *table) { t.header(84, 1, 4) }, func(t *table) { t.header(84, 127, 4) }, func(t *table) { t.header(84, 129, 4) },
		func(t *table) { t.header(84, 1<<31, 4) }, func(t *table) { t.header(84, 1<<32-1, 4) }, func(t *table) { t.header(84, 4096, 4) },
		// 2^25 entries of 128 bytes are 2^32 bytes: nothing, in 32 bits.
		func(t *table) { t.header(80, 1<<25, 4) }, func(t *table) { t.header(80, 1<<20, 4); t.header(84, 1<<12, 4) }),
	lyingTable("entries-elsewhere", "entries before, on, and behind everything, and where an address wraps", []string{suitLocation}, func(t *table) { t.header(72, 0, 8) },
		func(t *table) { t.header(72, 1, 8) }, func(t *table) { t.header(72, 100, 8) }, func(t *table) { t.header(72, tableSectors-1, 8) },
		func(t *table) { t.header(72, tableSectors, 8) }, func(t *table) { t.header(72, 1<<55, 8) }, func(t *table) { t.header(72, 1<<63, 8) }, func(t *table) { t.header(72, 1<<64-1, 8) }),
	lyingTable("partitions-overlap", "the spare slot laid over the running one, wholly, partly and by a sector", []string{suitLocation},
		func(t *table) { t.entry(1, 32, firstA) }, func(t *table) { t.entry(1, 32, lastA) }, func(t *table) { t.entry(1, 32, firstA); t.entry(1, 40, lastA) },
		func(t *table) { t.entry(1, 32, firstA+1); t.entry(1, 40, lastA-1) }, func(t *table) { t.entry(0, 40, lastB) }),
	lyingTable("partition-ends-before-it-begins", "a partition of a negative size", []string{suitLocation},
		func(t *table) { t.entry(1, 40, firstB-1) }, func(t *table) { t.entry(1, 40, 0) }, func(t *table) { t.entry(1, 32, 1<<64-1) }, func(t *table) { t.entry(1, 32, 1<<63) }),
	lyingTable("partition-past-the-end", "a partition that goes on behind the disk, and around", []string{suitLocation},
		func(t *table) { t.entry(1, 40, tableSectors-33) }, func(t *table) { t.entry(1, 40, tableSectors) }, func(t *table) { t.entry(1, 40, 1<<55) },
		func(t *table) { t.entry(1, 40, 1<<63-1) }, func(t *table) { t.entry(1, 40, 1<<64-1) }, func(t *table) { t.entry(1, 32, 1<<55); t.entry(1, 40, 1<<55+100) }),
	lyingTable("partition-on-the-table", "a partition over the table that it is in", []string{suitLocation},
		func(t *table) { t.entry(0, 32, 0) }, func(t *table) { t.entry(0, 32, 1) }, func(t *table) { t.entry(0, 32, 33) }, func(t *table) { t.header(40, 1, 8); t.entry(0, 32, 2) },
		func(t *table) { t.header(48, tableSectors-1, 8); t.entry(1, 40, tableSectors-2) }, func(t *table) { t.header(48, tableSectors-2, 8) }),
	lyingTable("usable-sectors-that-are-not", "a usable area that is empty, turned round or larger than the disk", []string{suitLocation},
		func(t *table) { t.header(40, tableSectors, 8) }, func(t *table) { t.header(48, 0, 8) }, func(t *table) { t.header(48, 1<<64-1, 8) }, func(t *table) { t.header(40, 0, 8) },
		func(t *table) { t.header(40, 1<<63, 8); t.header(48, 1<<63+5, 8) }),
	lyingTable("same-uuid-twice", "two partitions of one unique name", []string{suitLocation}, func(t *table) { copy(t.part(1)[16:32], t.part(0)[16:32]) }),
	lyingTable("both-headers-bad", "a disk whose headers are zero, ff, without signature, or each the other's", nil,
		func(t *table) { clear(t.head) }, func(t *table) { copy(t.head, bytes.Repeat([]byte{0xff}, 512)) }, func(t *table) { t.head[0] = 'e' },
		func(t *table) { t.header(24, t.at^1, 8) }, func(t *table) { t.header(24, tableSectors-t.at, 8) }, func(t *table) { t.header(8, 0x20000, 4) },
		func(t *table) { t.header(12, 91, 4) }, func(t *table) { t.header(12, 513, 4) }, func(t *table) { t.header(12, 1<<32-1, 4) }),
	{
		Name: "table/checksums-wrong", Input: "either checksum of both tables wrong, the other right", Want: partition.ErrTable, Threats: []string{suitModification},
		Run: func(s *Scene) error {
			for name, spoil := range map[string]func(t *table){
				"header":            func(t *table) { t.head[16] ^= 1 },
				"entries":           func(t *table) { t.header(88, uint64(t.sum()^1), 4) },
				"header, same sum":  func(t *table) { t.head[56] ^= 1 },
				"entries, same sum": func(t *table) { t.entries[127*128+100] ^= 1 },
			} {
				disk := tableDisk()
				for _, t := range copiesOf(disk) {
					t.seal()
					spoil(t)
					if name == "entries" {
						t.sealHeader()
					}
				}
				_, err := s.table(disk)
				s.Variant(err, "%s", name)
			}
			return nil
		},
	},
	{
		Name: "table/protective-mbr-only", Input: "a disk with nothing but a protective MBR, or a garbled one", Want: partition.ErrTable, Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			disk := tableDisk()
			clear(disk[512:])
			_, err := s.table(disk)
			s.Variant(err, "only the MBR")
			copy(disk[446:510], bytes.Repeat([]byte{0x80, 1, 2, 3, 0x83, 9, 9, 9, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, 4))
			_, err = s.table(disk)
			s.Variant(err, "an MBR with partitions over everything")
			for _, n := range []int{0, 511, 512, 1024, 1535} {
				_, err = s.table(tableDisk()[:n])
				s.Variant(err, "a disk of %d bytes", n)
			}
			return nil
		},
	},
	{
		Name: "table/mbr-garbage", Input: "a protective MBR of noise before a good table", Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			disk := tableDisk()
			want := must(s.table(disk))
			for _, b := range []byte{0, 0xff, 0x55} {
				copy(disk, bytes.Repeat([]byte{b}, 512))
				require.Equal(s, want, must(s.table(disk)), "the firmware may mind, the table is the same")
				s.Variant(nil, "%#x", b)
			}
			return nil
		},
	},
	{
		Name: "table/one-copy-lies", Input: "a primary or a backup that lies while the other is good", Want: partition.ErrTable, Threats: []string{suitLocation, tufMixAndMatch},
		Run: func(s *Scene) error {
			honest := must(s.table(tableDisk()))
			for i, name := range []string{"primary", "backup"} {
				for what, lie := range map[string]func(t *table){
					"overlap":     func(t *table) { t.entry(1, 32, firstA) },
					"far entries": func(t *table) { t.header(72, 1<<55, 8) },
					"no header":   func(t *table) { clear(t.head) },
				} {
					disk := tableDisk()
					t := copiesOf(disk)[i]
					lie(t)
					t.seal()
					require.Equal(s, honest, must(s.table(disk)), "the other copy speaks")
					s.Variant(partition.CheckTable(still{bytes.NewReader(disk)}, 512), "%s: %s", name, what)
				}
			}
			// A backup that is whole and says something else is believed by nobody while
			// the primary speaks, and is reported.
			disk := tableDisk()
			t := copiesOf(disk)[1]
			copy(t.part(0)[56:], utf16le("root_b"))
			copy(t.part(1)[56:], utf16le("root_a"))
			t.seal()
			require.Equal(s, honest, must(s.table(disk)))
			s.Variant(partition.CheckTable(still{bytes.NewReader(disk)}, 512), "slots exchanged in the backup")
			return nil
		},
	},
	{
		Name: "table/label-of-a-slot-twice", Input: "two partitions with the label of the spare slot", Want: partition.ErrDuplicateLabel, Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			disk := tableDisk()
			for _, t := range copiesOf(disk) {
				copy(t.part(2)[56:], utf16le("root_b"))
				t.seal()
			}
			_, err := partition.Find(must(s.table(disk)), "root_b")
			return err
		},
	},
	{
		Name: "table/labels-that-look-alike", Input: "labels with no end, control characters, half characters and letters of another script", Want: partition.ErrNoPartition, Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			for _, label := range []string{
				"root_b\n", "root_b ", " root_b", "root_b\x01", "ROOT_B", "r\u043e\u043et_b", "root_b\u200b", "root\u202e_b", "../root_b", "root_b/", "root_a,root_b", "",
				"root_broot_broot_broot_broot_broot_b",
			} {
				disk := tableDisk()
				for _, t := range copiesOf(disk) {
					clear(t.part(1)[56:128])
					copy(t.part(1)[56:], utf16le(label))
					t.seal()
				}
				_, err := partition.Find(must(s.table(disk)), "root_b")
				s.Variant(err, "%q", label)
			}
			for _, units := range [][]byte{{0, 0xd8}, {0, 0xdc}, {0xff, 0xff}, {0, 0}} {
				disk := tableDisk()
				for _, t := range copiesOf(disk) {
					copy(t.part(1)[56:], append(units, utf16le("root_b")...))
					t.seal()
				}
				_, err := partition.Find(must(s.table(disk)), "root_b")
				s.Variant(err, "% x", units)
			}
			return nil
		},
	},
}

// The honest table.
const (
	tableSectors = 512
	firstA       = 64
	lastA        = 163
	firstB       = 164
	lastB        = 263
)

// tableDisk is a disk with the root partitions of two slots, and one for data, whose
// table another program wrote.
func tableDisk() []byte {
	dir := must(os.MkdirTemp("", "table"))
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "disk")
	if err := os.WriteFile(name, make([]byte, tableSectors*512), 0o600); err != nil {
		panic(err)
	}
	t := gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, GUID: "3F5E5210-7A5C-4B1D-9E41-020304050607"}
	for i, p := range []struct {
		label       string
		first, last uint64
	}{{"root_a", firstA, lastA}, {"root_b", firstB, lastB}, {"data", lastB + 1, 463}} {
		t.Partitions = append(t.Partitions, &gpt.Partition{
			Index: i + 1, Start: p.first, End: p.last, Size: (p.last - p.first + 1) * 512, Type: gpt.LinuxFilesystem, Name: p.label,
			GUID: "3F5E5210-7A5C-4B1D-9E41-0000000000" + string([]byte{'0', byte('1' + i)}),
		})
	}
	disk := must(file.OpenFromPath(name, false))
	defer disk.Close()
	if err := t.Write(must(disk.Writable()), tableSectors*512); err != nil {
		panic(err)
	}
	return must(os.ReadFile(name))
}

// table reads the table of a disk that must stay as it is.
func (s *Scene) table(disk []byte) ([]partition.Part, error) {
	disk = bytes.Clone(disk) // the case goes on to spoil its own
	s.Keep("the disk", func() []byte { return disk })
	parts, err := partition.ReadTable(still{bytes.NewReader(disk)}, 512)
	return parts, err
}

// table is one of the two copies on a disk.
type table struct {
	at            uint64
	head, entries []byte
}

func copiesOf(disk []byte) []*table {
	const array = 128 * 128
	end := len(disk) - 512
	return []*table{
		{at: 1, head: disk[512:1024], entries: disk[1024:][:array]},
		{at: tableSectors - 1, head: disk[end:], entries: disk[end-array : end]},
	}
}

// header sets a number in the header, entry one in an entry.
func (t *table) header(at int, v uint64, size int) { number(t.head[at:], v, size) }
func (t *table) entry(i, at int, v uint64)         { number(t.part(i)[at:], v, 8) }
func (t *table) part(i int) []byte                 { return t.entries[i*128:][:128] }

func number(p []byte, v uint64, size int) {
	copy(p[:size], binary.LittleEndian.AppendUint64(nil, v))
}

func (t *table) sum() uint32 { return crc32.ChecksumIEEE(t.entries) }

// seal makes both checksums right, over the entries as they are; a header that does not
// say its length stays as it is.
func (t *table) seal() {
	t.header(88, uint64(t.sum()), 4)
	t.sealHeader()
}

func (t *table) sealHeader() {
	clear(t.head[16:20])
	length := min(binary.LittleEndian.Uint32(t.head[12:]), 512)
	t.header(16, uint64(crc32.ChecksumIEEE(t.head[:length])), 4)
}

func utf16le(s string) (out []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// lyingTable is a case of tables that are refused; both copies say the same.
func lyingTable(name, input string, threats []string, lies ...func(t *table)) Attack {
	return Attack{Name: "table/" + name, Input: input, Want: partition.ErrTable, Threats: threats, Run: func(s *Scene) error {
		honest := tableDisk()
		must(s.table(honest))
		for i, lie := range lies {
			disk := bytes.Clone(honest)
			for _, t := range copiesOf(disk) {
				lie(t)
				t.seal()
			}
			_, err := s.table(disk)
			s.Variant(err, "lie %d", i)
		}
		return nil
	}}
}
