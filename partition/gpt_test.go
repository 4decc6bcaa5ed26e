package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// memory is a Disk without a medium behind it.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, errors.New("outside of memory")
	}
	return copy(m[off:], p), nil
}

func (m memory) Sync() error { return nil }
func (m memory) Size() int64 { return int64(len(m)) }

// needTool returns the path of a tool, or skips, or fails where the tool must be.
func needTool(t *testing.T, name, pkg string) string {
	t.Helper()
	for _, dir := range []string{"", "/sbin/", "/usr/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	lacking(t, fmt.Sprintf("%s is missing: apt install %s", name, pkg))
	return ""
}

// lacking skips a test on a desk and fails it where nothing may be missing.
func lacking(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// The table that sgdisk writes is the table that ReadTable reads: labels,
// numbers, UUIDs, types, starts and sizes, whichever copy is left.
func TestReadTableAgreesWithSgdisk(t *testing.T) {
	tool := needTool(t, "sgdisk", "gdisk")
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, make([]byte, 16<<20), 0o600))
	run := func(args ...string) string {
		out, err := exec.Command(tool, append(args, path)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	labels := map[int]string{1: "esp", 2: "env", 3: "boot_a", 4: "boot_b", 7: "root_a", 12: "größe 😀"}
	run("-o", "-U", "3f5e5210-7a5c-4b1d-9e41-020304050607",
		"-n1:2048:+1M", "-c1:esp", "-t1:ef00", "-n2:0:+1M", "-c2:env", "-n3:0:+1M", "-c3:boot_a",
		"-n4:0:+512K", "-c4:boot_b", "-n7:0:+2M", "-c7:root_a", "-n12:0:+8M", "-c12:"+labels[12])
	require.Contains(t, run("-v"), "No problems found")
	disk, err := os.ReadFile(path)
	require.NoError(t, err)

	check := func(t *testing.T, disk []byte) {
		parts, err := ReadTable(memory(disk), 512)
		require.NoError(t, err)
		require.Len(t, parts, len(labels))
		for _, p := range parts {
			require.Equal(t, labels[p.Number], p.Label)
			info := run("-i" + fmt.Sprint(p.Number))
			field := func(pattern string) string {
				m := regexp.MustCompile(pattern).FindStringSubmatch(info)
				require.NotNil(t, m, info)
				return strings.ToLower(m[1])
			}
			require.Equal(t, field(`Partition GUID code: (\S+)`), p.Type)
			require.Equal(t, field(`unique GUID: (\S+)`), p.UUID)
			require.Equal(t, field(`First sector: (\d+)`), fmt.Sprint(p.Start/512))
			require.Equal(t, field(`Partition size: (\d+)`), fmt.Sprint(p.Size/512))
		}
	}
	t.Run("both copies whole", func(t *testing.T) {
		check(t, disk)
		require.NoError(t, CheckTable(memory(disk), 512))
	})
	t.Run("primary header gone", func(t *testing.T) {
		broken := bytes.Clone(disk)
		clear(broken[512:1024])
		check(t, broken)
		require.ErrorIs(t, CheckTable(memory(broken), 512), ErrTable)
	})
	t.Run("primary entries damaged", func(t *testing.T) {
		broken := bytes.Clone(disk)
		broken[2*512+3*128] ^= 1
		check(t, broken)
	})
	t.Run("backup gone", func(t *testing.T) {
		broken := bytes.Clone(disk)
		clear(broken[len(broken)-33*512:])
		check(t, broken)
		require.ErrorIs(t, CheckTable(memory(broken), 512), ErrTable)
	})
	t.Run("copied to a larger disk", func(t *testing.T) {
		check(t, append(bytes.Clone(disk), make([]byte, 1<<20)...))
	})
	t.Run("both headers gone, the protective MBR is no table", func(t *testing.T) {
		broken := bytes.Clone(disk)
		clear(broken[512:1024])
		clear(broken[len(broken)-512:])
		_, err := ReadTable(memory(broken), 512)
		require.ErrorIs(t, err, ErrTable)
	})
	t.Run("as many entries as we read", func(t *testing.T) {
		run("-S", fmt.Sprint(maxEntries))
		disk, err := os.ReadFile(path)
		require.NoError(t, err)
		check(t, disk)
		require.NoError(t, CheckTable(memory(disk), 512))
	})
}

// table makes a disk of 256 sectors with a table in both places. The entries
// field of a header can be anything; sums are made right afterwards, as an
// attacker would.
type table struct {
	sector   int
	count    uint32
	size     uint32
	first    uint64
	last     uint64
	revision uint32
	header   uint32 // bytes of it
	entries  uint64 // of the primary
	parts    []entry
}

type entry struct {
	label       string
	uuid        byte
	first, last uint64
}

func plainTable() table {
	return table{sector: 512, count: 128, size: 128, first: 34, last: 222, revision: 0x10000, header: 92, entries: 2,
		parts: []entry{{"root_a", 1, 40, 99}, {"root_b", 2, 100, 159}}}
}

func (t table) disk() memory {
	const sectors = 256
	d := make(memory, sectors*t.sector)
	array := make([]byte, max(len(t.parts), min(int(t.count), 1024))*max(128, min(int(t.size), 4096)))
	for i, p := range t.parts {
		e := array[i*max(128, min(int(t.size), 4096)):]
		e[0], e[16] = 0xaf, p.uuid
		binary.LittleEndian.PutUint64(e[32:], p.first)
		binary.LittleEndian.PutUint64(e[40:], p.last)
		for j, c := range []byte(p.label) {
			e[56+2*j] = c
		}
	}
	put := func(at, entries uint64) {
		h := d[int(at)*t.sector:][:t.sector]
		copy(h, "EFI PART")
		binary.LittleEndian.PutUint32(h[8:], t.revision)
		binary.LittleEndian.PutUint32(h[12:], t.header)
		binary.LittleEndian.PutUint64(h[24:], at)
		binary.LittleEndian.PutUint64(h[40:], t.first)
		binary.LittleEndian.PutUint64(h[48:], t.last)
		binary.LittleEndian.PutUint64(h[72:], entries)
		binary.LittleEndian.PutUint32(h[80:], t.count)
		binary.LittleEndian.PutUint32(h[84:], t.size)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(array))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(int(t.header), t.sector)]))
		if at := entries * uint64(t.sector); at < uint64(len(d)) {
			copy(d[at:], array)
		}
	}
	put(sectors-1, 223)
	put(1, t.entries)
	return d
}

// A table whose checksums are right can still be an attack, and is an error that
// says what it is, without the memory or the reads that it asks for.
func TestReadTableRefuses(t *testing.T) {
	for name, change := range map[string]func(*table){
		"entries of no bytes":              func(t *table) { t.size = 0 },
		"entries of 127 bytes":             func(t *table) { t.size = 127 },
		"entries of 384 bytes":             func(t *table) { t.size, t.count = 384, 32 },
		"entries of 2 GiB":                 func(t *table) { t.size = 1 << 31 },
		"no entries":                       func(t *table) { t.count, t.parts = 0, nil },
		"four billion entries":             func(t *table) { t.count = 1<<32 - 1 },
		"too many large entries":           func(t *table) { t.count, t.size = 1024, 4096 },
		"revision 2":                       func(t *table) { t.revision = 0x20000 },
		"header of 91 bytes":               func(t *table) { t.header = 91 },
		"header past its sector":           func(t *table) { t.header = 513 },
		"usable area begins on the table":  func(t *table) { t.first = 20 },
		"usable area begins at 0":          func(t *table) { t.first = 0 },
		"usable area ends before it began": func(t *table) { t.last = 33 },
		"usable area ends past the disk":   func(t *table) { t.last = 1 << 40 },
		"usable area ends at 2^64":         func(t *table) { t.last = 1<<64 - 1 },
		"usable area covers the backup":    func(t *table) { t.last = 255 },
		"partition ends before it began":   func(t *table) { t.parts[0].last = 39 },
		"partition on the table":           func(t *table) { t.parts[0].first = 2 },
		"partition past the usable area":   func(t *table) { t.parts[1].last = 230 },
		"partition past the disk":          func(t *table) { t.parts[1].last = 1 << 62 },
		"partition ends at 2^64":           func(t *table) { t.parts[1].last = 1<<64 - 1 },
		"partitions overlap in one sector": func(t *table) { t.parts[1].first = 99 },
		"partition inside another":         func(t *table) { t.parts[1].first, t.parts[1].last = 50, 60 },
		"UUID twice":                       func(t *table) { t.parts[1].uuid = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			table := plainTable()
			change(&table)
			parts, err := ReadTable(table.disk(), 512)
			require.ErrorIs(t, err, ErrTable, "%v", parts)
		})
	}
	t.Run("entries far away, and a good backup", func(t *testing.T) {
		// The last is the right place once it has been multiplied and cut to 64 bits.
		for _, entries := range []uint64{0, 1, 256, 1 << 40, 1 << 63, 1<<64 - 1, 1<<55 + 2} {
			table := plainTable()
			table.entries = entries
			parts, err := ReadTable(table.disk(), 512)
			require.NoError(t, err)
			require.Len(t, parts, 2)
			require.ErrorIs(t, CheckTable(table.disk(), 512), ErrTable)
		}
	})
	t.Run("no disk at all", func(t *testing.T) {
		for _, size := range []int{0, 1, 511, 512, 1024, 1535} {
			_, err := ReadTable(make(memory, size), 512)
			require.ErrorIs(t, err, ErrTable)
		}
		_, err := ReadTable(make(memory, 1<<16), 1024)
		require.ErrorIs(t, err, ErrTable)
	})
}

// A disk with sectors of 4096 bytes is read in its own unit, and not by mistake
// in the other.
func TestReadTable4096(t *testing.T) {
	table := plainTable()
	table.sector = 4096
	parts, err := ReadTable(table.disk(), 4096)
	require.NoError(t, err)
	require.EqualValues(t, 40*4096, parts[0].Start)
	require.EqualValues(t, 60*4096, parts[0].Size)
	_, err = ReadTable(table.disk(), 512)
	require.ErrorIs(t, err, ErrTable)
}

// A header may be longer than what we know of it, up to its sector; and entries (128 × 2^n
// bytes) up to a sector of the largest kind.
func TestReadTableOfLaterDays(t *testing.T) {
	for _, size := range []uint32{92, 96, 512} {
		table := plainTable()
		table.header = size
		require.NoError(t, CheckTable(table.disk(), 512), "%d", size)
	}
	for size := uint32(128); size <= 4096; size *= 2 {
		table := plainTable()
		table.sector, table.size, table.count = 4096, size, 32
		disk := table.disk()
		require.NoError(t, CheckTable(disk, 4096), "%d", size)
		parts, err := ReadTable(disk, 4096)
		require.NoError(t, err)
		found, err := Find(parts, "root_b")
		require.NoError(t, err, "%d", size)
		require.EqualValues(t, 100*4096, found.Start, "%d", size)
	}
}

// A partition may be all that is usable, or one sector at either end of it.
func TestReadTableToTheEdge(t *testing.T) {
	for _, parts := range [][]entry{
		{{"root_a", 1, 34, 222}},
		{{"root_a", 1, 34, 34}, {"root_b", 2, 222, 222}, {"data", 3, 35, 221}},
	} {
		table := plainTable()
		table.parts = parts
		got, err := ReadTable(table.disk(), 512)
		require.NoError(t, err)
		for i, p := range parts {
			require.EqualValues(t, p.first*512, got[i].Start)
			require.EqualValues(t, (p.last-p.first+1)*512, got[i].Size)
		}
	}
}

// A label finds one partition or none; two are no answer.
func TestFind(t *testing.T) {
	table := plainTable()
	table.parts = append(table.parts, entry{"root_a", 3, 160, 170}, entry{"", 4, 171, 172}, entry{"", 5, 173, 174})
	parts, err := ReadTable(table.disk(), 512)
	require.NoError(t, err)
	found, err := Find(parts, "root_b")
	require.NoError(t, err)
	require.Equal(t, Part{Number: 2, Label: "root_b", Start: 100 * 512, Size: 60 * 512,
		UUID: "00000002-0000-0000-0000-000000000000", Type: "000000af-0000-0000-0000-000000000000"}, found)
	_, err = Find(parts, "root_a")
	require.ErrorIs(t, err, ErrDuplicateLabel)
	_, err = Find(parts, "ROOT_B")
	require.ErrorIs(t, err, ErrNoPartition)
}

// No single flipped bit in either copy changes what is read: the other copy
// still speaks, and it is noticed.
func TestReadTableCorruption(t *testing.T) {
	want, err := ReadTable(plainTable().disk(), 512)
	require.NoError(t, err)
	disk := plainTable().disk()
	flip := func(from, to int) {
		for i := from; i < to; i++ {
			for bit := range 8 {
				disk[i] ^= 1 << bit
				got, err := ReadTable(disk, 512)
				require.NoError(t, err, "byte %d bit %d", i, bit)
				require.Equal(t, want, got, "byte %d bit %d", i, bit)
				require.ErrorIs(t, CheckTable(disk, 512), ErrTable, "byte %d bit %d", i, bit)
				disk[i] ^= 1 << bit
			}
		}
	}
	flip(512, 512+92)
	flip(2*512, 2*512+3*128)
	flip(255*512, 255*512+92)
	flip(223*512, 223*512+3*128)
}

// CheckTable says which copy is damaged, and how, or that two good ones disagree: the
// one who repairs it must not overwrite the good copy with the bad one.
func TestCheckTable(t *testing.T) {
	renamed, shorter := plainTable(), plainTable()
	renamed.parts = []entry{renamed.parts[0], {"root_c", 2, 100, 159}}
	shorter.parts = shorter.parts[:1]
	for name, world := range map[string]struct {
		change func(disk memory)
		want   string
	}{
		"primary damaged": {func(disk memory) { disk[512]++ }, "primary: no signature"},
		"backup damaged":  {func(disk memory) { disk[255*512]++ }, "backup: no signature"},
		"both damaged": {func(disk memory) { disk[512]++; disk[223*512]++ },
			"primary: no signature; backup: checksum of the entries does not match"},
		"backup has another label":     {func(disk memory) { copy(disk[223*512:], renamed.disk()[223*512:]) }, "partition 2 differs between primary and backup"},
		"backup has a partition less":  {func(disk memory) { copy(disk[223*512:], shorter.disk()[223*512:]) }, "2 partitions in the primary, 1 in the backup"},
		"primary has a partition less": {func(disk memory) { copy(disk[:34*512], shorter.disk()) }, "1 partitions in the primary, 2 in the backup"},
		"backup's header in the place of the primary's": {func(disk memory) { copy(disk[512:1024], disk[255*512:]) },
			"primary: header of sector 255 in sector 1"},
		"a disk too small for any": {nil, "disk of 1024 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			disk := plainTable().disk()
			require.NoError(t, CheckTable(disk, 512))
			if world.change == nil {
				disk = disk[:1024]
			} else {
				world.change(disk)
			}
			require.EqualError(t, CheckTable(disk, 512), "invalid partition table: "+world.want)
		})
	}
}

// What a header points at is on the disk, and header, entries and usable area keep clear of
// each other, in either copy and to the sector.
func TestCheckHeader(t *testing.T) {
	g := gpt{sector: 512, last: 255}
	tight := header{firstUsable: 34, lastUsable: 222, entries: 2, count: 128, size: 128} // 32 sectors of entries
	for _, row := range []struct {
		state  string
		at     uint64
		change func(*header)
		want   string // "" if it is allowed
	}{
		{"primary", 1, func(*header) {}, ""},
		{"backup", 255, func(h *header) { h.entries = 223 }, ""},
		{"entries of 64 bytes", 1, func(h *header) { h.size = 64 }, "entries of 64 bytes"},
		{"entries of 8 KiB", 1, func(h *header) { h.size, h.count = 8192, 1 }, "entries of 8192 bytes"},
		{"no entries", 1, func(h *header) { h.count = 0 }, "0 entries"},
		{"as many entries as are read", 1, func(h *header) { h.count, h.size, h.firstUsable, h.lastUsable = 32, 4096, 300, 300 }, "usable sectors 300"},
		{"one entry too many", 1, func(h *header) { h.count = maxEntries + 1 }, "1025 entries"},
		{"one large entry too many", 1, func(h *header) { h.count, h.size = 33, 4096 }, "33 entries"},
		{"usable area begins on the header", 1, func(h *header) { h.firstUsable = 1 }, "usable sectors 1 to 222"},
		{"usable area ends before it began", 1, func(h *header) { h.lastUsable = 33 }, "usable sectors 34 to 33"},
		{"usable area to the last sector", 1, func(h *header) { h.lastUsable = 255 }, "usable sectors 34 to 255"},
		{"header at the first usable sector", 34, func(*header) {}, "header inside"},
		{"header at the last usable sector", 222, func(*header) {}, "header inside"},
		{"one sector too few before the usable area", 255, func(h *header) { h.firstUsable, h.entries = 33, 223 }, "no room"},
		{"one sector too few behind the usable area", 1, func(h *header) { h.lastUsable = 223 }, "no room"},
		{"entries on the protective MBR", 255, func(h *header) { h.entries = 0 }, "not on the disk"},
		{"entries on the other header", 255, func(h *header) { h.entries = 1 }, "not on the disk"},
		{"entries past the end", 1, func(h *header) { h.entries = 225 }, "not on the disk"},
		{"entries behind the end", 1, func(h *header) { h.entries = 257 }, "not on the disk"},
		{"entries reach into the usable area", 1, func(h *header) { h.entries = 3 }, "entries inside"},
		{"entries begin in the usable area", 1, func(h *header) { h.entries = 222 }, "entries inside"},
		{"entries end with the disk", 1, func(h *header) { h.entries = 224 }, ""},
		{"entries end on their header", 255, func(h *header) { h.entries = 224 }, "on top of the header"},
		{"entries begin on their header", 2, func(*header) {}, "on top of the header"},
	} {
		t.Run(row.state, func(t *testing.T) {
			h := tight
			row.change(&h)
			err := g.checkHeader(h, row.at)
			if row.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, row.want)
		})
	}
}

// Whatever is on the disk, reading it ends with an error or with partitions that
// lie on the disk and apart from each other.
func FuzzReadTable(f *testing.F) {
	f.Add([]byte(plainTable().disk()), false)
	wild := plainTable()
	wild.parts[0].last = 1<<64 - 1
	f.Add([]byte(wild.disk()), true)
	f.Fuzz(func(t *testing.T, disk []byte, repair bool) {
		if repair { // otherwise the checksums keep the fuzzer out
			for _, at := range []int{512, len(disk) - len(disk)%512 - 512} {
				if at < 0 || at+512 > len(disk) {
					continue
				}
				h := disk[at : at+512]
				first := binary.LittleEndian.Uint64(h[72:])
				n := uint64(binary.LittleEndian.Uint32(h[80:])) * uint64(binary.LittleEndian.Uint32(h[84:]))
				if start := first * 512; first < 1<<20 && start <= uint64(len(disk)) && n <= uint64(len(disk))-start {
					binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(disk[start:start+n]))
				}
				clear(h[16:20])
				if length := binary.LittleEndian.Uint32(h[12:]); length <= 512 {
					binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:length]))
				}
			}
		}
		parts, err := ReadTable(memory(disk), 512)
		if err != nil {
			require.ErrorIs(t, err, ErrTable)
			return
		}
		for i, p := range parts {
			require.True(t, p.Start >= 1024 && p.Size > 0 && p.Start+p.Size <= int64(len(disk)), "%+v", p)
			for _, q := range parts[:i] {
				require.True(t, p.Start+p.Size <= q.Start || q.Start+q.Size <= p.Start, "%+v %+v", p, q)
			}
		}
	})
}

// stretched is a disk of 16 TiB of which only the beginning is not blank. It notes the
// largest read.
type stretched struct {
	memory
	largest int
}

func (s *stretched) Size() int64 { return 16 << 40 }

func (s *stretched) ReadAt(p []byte, off int64) (int, error) {
	s.largest = max(s.largest, len(p))
	if s.largest > 1<<20 {
		return 0, errors.New("who should have that much memory?")
	}
	clear(p)
	if off < int64(len(s.memory)) {
		copy(p, s.memory[off:])
	}
	return len(p), nil
}

// On a disk that has the room, too, a table does not get the memory that it asks for.
func TestReadTableHugeDisk(t *testing.T) {
	for name, change := range map[string]func(*table){
		"four billion entries":    func(t *table) { t.count = 1<<32 - 1 },
		"sixteen million entries": func(t *table) { t.count = 1 << 24 },
		"4 GiB, or 0 in 32 bits":  func(t *table) { t.count = 1 << 25 },
		"two entries of 2 GiB":    func(t *table) { t.count, t.size = 2, 1<<31 },
		"more than usual":         func(t *table) { t.count = maxEntries + 1 },
		"a few, and large":        func(t *table) { t.count, t.size = 64, 4096 },
	} {
		t.Run(name, func(t *testing.T) {
			table := plainTable()
			table.first, table.last, table.parts = 1<<31, 1<<33, nil
			change(&table)
			d := &stretched{memory: table.disk()}
			parts, err := ReadTable(d, 512)
			require.ErrorIs(t, err, ErrTable, "%v", parts)
			require.LessOrEqual(t, d.largest, maxEntries*gptEntry)
		})
	}
}
