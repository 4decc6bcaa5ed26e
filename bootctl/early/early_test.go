package early

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/verity"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// The command line is read as the kernel reads it.
func TestParseCmdline(t *testing.T) {
	for line, want := range map[string]Cmdline{
		"":                           nil,
		"  \n":                       nil,
		"ro quiet":                   {{"ro", ""}, {"quiet", ""}},
		"a=1 b=2=3\n":                {{"a", "1"}, {"b", "2=3"}},
		`dyndbg="file a.c +p" x`:     {{"dyndbg", "file a.c +p"}, {"x", ""}},
		`"k=v w" z`:                  {{"k", "v w"}, {"z", ""}},
		"tandem.slot=a -- tandem.x=": {{"tandem.slot", "a"}},
		`open="never closed`:         {{"open", "never closed"}},
	} {
		require.Equal(t, want, ParseCmdline(line), "%q", line)
	}
}

// A parameter that stands there twice has no value: nobody can tell which one
// was reviewed and measured.
func TestCmdlineTwice(t *testing.T) {
	line := ParseCmdline("tandem.verity=1 tandem.slot=a tandem.verity=2")
	_, err := line.Value("tandem.verity")
	require.ErrorIs(t, err, ErrCmdline)
	value, err := line.Value("tandem.slot")
	require.NoError(t, err)
	require.Equal(t, "a", value)
	value, err = line.Value("absent")
	require.NoError(t, err)
	require.Empty(t, value)
}

// The board says how long the machine may hang, in whole seconds up to an hour; anything
// else would leave it without a watchdog, and is refused.
func TestWatchdogTimeout(t *testing.T) {
	for line, want := range map[string]time.Duration{
		"":                     defaultTimeout,
		"tandem.watchdog=":     defaultTimeout,
		"tandem.watchdog=1":    time.Second,
		"tandem.watchdog=3600": time.Hour,
	} {
		got, err := ParseCmdline(line).watchdogTimeout()
		require.NoError(t, err, line)
		require.Equal(t, want, got, line)
	}
	for _, bad := range []string{"0", "-1", "0.5", "1.5", "3601", "1m", "x", "1 tandem.watchdog=1"} {
		_, err := ParseCmdline("tandem.watchdog=" + bad).watchdogTimeout()
		require.ErrorIs(t, err, ErrCmdline, bad)
	}
}

// A slot is named by its boot partition and by nothing else.
func TestSlotOf(t *testing.T) {
	for _, want := range []bootctl.Slot{bootctl.A, bootctl.B} {
		slot, err := slotOf("boot_" + string(want))
		require.NoError(t, err)
		require.Equal(t, want, slot)
	}
	for _, bad := range []string{"", "a", "b", "boot_", "boot_c", "root_a", "boot_boot_a"} {
		_, err := slotOf(bad)
		require.ErrorIs(t, err, ErrSlot, bad)
	}
}

// A disk may take its time to appear, and no longer than that: the watchdog would cut a
// boot that waits for ever short, and nobody would know why.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		appears := func(after time.Duration) func() (partition.Node, error) {
			return func() (partition.Node, error) {
				if time.Since(begin) < after {
					return partition.Node{}, partition.ErrNoPartition
				}
				return partition.Node{Name: "vda5"}, nil
			}
		}
		node, err := await(time.Minute, appears(time.Minute))
		require.NoError(t, err)
		require.Equal(t, "vda5", node.Name)

		begin = time.Now()
		_, err = await(time.Minute, appears(time.Hour))
		require.ErrorIs(t, err, partition.ErrNoPartition)

		// Nothing else gets better by waiting.
		begin = time.Now()
		_, err = await(time.Minute, func() (partition.Node, error) { return partition.Node{}, partition.ErrDuplicateLabel })
		require.ErrorIs(t, err, partition.ErrDuplicateLabel)
		require.Equal(t, begin, time.Now())
	})
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`a=1 b "c d" -- e`)
	f.Fuzz(func(t *testing.T, line string) {
		for _, p := range ParseCmdline(line) {
			require.NotContains(t, p.Key+p.Value, `"`)
		}
	})
}

// The list keeps its order, and a line that could load something else than
// what stands there is refused.
func TestParseModules(t *testing.T) {
	list, err := ParseModules(strings.NewReader("# board\n\n/lib/modules/a.ko\n  /lib/modules/b.ko heartbeat=60 nowayout=1 \n"))
	require.NoError(t, err)
	require.Equal(t, []Module{{"/lib/modules/a.ko", ""}, {"/lib/modules/b.ko", "heartbeat=60 nowayout=1"}}, list)

	for _, bad := range []string{"a.ko", "lib/a.ko", "/lib/../a.ko", "/lib//a.ko", "/lib/a.ko/", strings.Repeat("/a.ko\n", maxModules+1), "/" + strings.Repeat("x", 1<<20)} {
		_, err := ParseModules(strings.NewReader(bad))
		require.ErrorIs(t, err, ErrModules, "%.40q", bad)
	}
}

// variable is the content of an efivarfs file.
func variable(text string) []byte {
	file := []byte{6, 0, 0, 0}
	for _, u := range utf16.Encode([]rune(text)) {
		file = binary.LittleEndian.AppendUint16(file, u)
	}
	return file
}

// What the stub wrote is taken, in lower case as partition tables are spelled;
// anything else is not taken for a UUID.
func TestParsePartUUID(t *testing.T) {
	const uuid = "4A67B082-0A4C-41CF-B6C7-440B29BB8C4F"
	got, err := parsePartUUID(variable(uuid + "\x00"))
	require.NoError(t, err)
	require.Equal(t, strings.ToLower(uuid), got)

	good := variable(uuid + "\x00")
	for n := range len(good) {
		_, err := parsePartUUID(good[:n])
		require.Error(t, err, "cut to %d bytes", n)
	}
	for _, bad := range []string{uuid, uuid + "!", uuid[:35] + "\x00\x00", strings.ReplaceAll(uuid, "-", "_") + "\x00", strings.Repeat("g", 36) + "\x00", "g" + uuid[1:] + "\x00", ":" + uuid[1:] + "\x00", "/" + uuid[1:] + "\x00", "`" + uuid[1:] + "\x00", uuid + "\x00\x00"} {
		_, err := parsePartUUID(variable(bad))
		require.Error(t, err, "%q", bad)
	}
}

func FuzzParsePartUUID(f *testing.F) {
	f.Add(variable("4A67B082-0A4C-41CF-B6C7-440B29BB8C4F\x00"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if uuid, err := parsePartUUID(file); err == nil {
			require.Regexp(t, `^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`, uuid)
		}
	})
}

// The loader's work is seen in the watchdog's register while no driver is
// loaded, and in sysfs where the driver is built in.
func TestLoaderArmed(t *testing.T) {
	config := make([]byte, 256)
	binary.LittleEndian.PutUint32(config, 0x25ab8086)
	for _, c := range []struct {
		world string
		lock  byte
		id    uint32
		state string
		want  bool
	}{
		{"the loader armed it", 0x02, 0x25ab8086, "", true},
		{"the loader armed and locked it", 0x03, 0x25ab8086, "", true},
		{"nobody armed it", 0x00, 0x25ab8086, "", false},
		{"another device with the same bit", 0x02, 0x29188086, "", false},
		{"a built-in driver found it running", 0x00, 0x29188086, "active\n", true},
		{"a built-in driver found it stopped", 0x02, 0x25ab8086, "inactive\n", false},
	} {
		sys := t.TempDir()
		binary.LittleEndian.PutUint32(config, c.id)
		config[0x68] = c.lock
		put(t, sys, "bus/pci/devices/0000:00:03.0/config", config)
		put(t, sys, "bus/pci/devices/0000:00:04.0/config", config[:64]) // not root's view
		if c.state != "" {
			put(t, sys, "class/watchdog/watchdog0/state", []byte(c.state))
		}
		require.Equal(t, c.want, loaderArmed(sys), c.world)
	}
	require.False(t, loaderArmed(t.TempDir()), "a board without PCI")
}

func put(t *testing.T, dir, name string, content []byte) {
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, content, 0o644))
}

// The parts of a panic's log are put in order, an Oops that did not stop the
// kernel is not taken for one, and the end is kept if it is too long.
func TestReadPstore(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "dmesg-efi-170000000001001", []byte("Panic#2 Part1\n<4>[   1.5] third\n<0>Kernel panic - not syncing\n"))
	put(t, dir, "dmesg-efi-170000000002001", []byte("Panic#2 Part2\nfirst\nsecond"))
	put(t, dir, "dmesg-efi-160000000001001", []byte("Oops#1 Part1\nearlier\n"))
	put(t, dir, "dmesg-efi-160000000001002", nil)
	put(t, dir, "console-ramoops-0", []byte("Panic#9 Part1\nno dump\n"))
	text, files := readPstore(dir)
	require.Equal(t, "first\nsecond\n[   1.5] third\nKernel panic - not syncing", text)
	require.Len(t, files, 4)

	var long strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&long, "line %d\n", i)
	}
	put(t, dir, "dmesg-efi-170000000001001", []byte("Panic#2 Part1\n"+long.String()))
	text, _ = readPstore(dir)
	require.LessOrEqual(t, len(text), maxPanic)
	require.True(t, strings.HasPrefix(text, "line "))
	require.True(t, strings.HasSuffix(text, "\nline 999"))

	put(t, dir, "dmesg-efi-170000000001001", []byte("Panic#2 Part1\n"+strings.Repeat("x\n", 1<<19)+"not read"))
	text, _ = readPstore(dir)
	require.NotContains(t, text, "not read", "a megabyte is enough")

	text, files = readPstore(filepath.Join(dir, "absent"))
	require.Empty(t, text)
	require.Empty(t, files)
}

// The command line and the manifest agree in all three numbers, or the slot's
// halves are of different releases.
func TestSameRoot(t *testing.T) {
	params := verity.Params{DataBlocks: 10, Salt: []byte{1, 2}, Root: [32]byte{3}, HashOffset: 40960}
	with := func(change func(*manifest.Image)) manifest.Manifest {
		image := manifest.Image{Type: "slot", Target: "root", Verity: &manifest.Verity{
			RootHash: fmt.Sprintf("%x", params.Root), Salt: "0102", DataBlocks: 10}}
		change(&image)
		return manifest.Manifest{Images: []manifest.Image{{Type: "slot", Target: "boot"}, image}}
	}
	require.NoError(t, sameRoot(with(func(*manifest.Image) {}), params))
	for world, change := range map[string]func(*manifest.Image){
		"another root hash":                    func(i *manifest.Image) { i.Verity.RootHash = strings.Repeat("0", 64) },
		"another salt":                         func(i *manifest.Image) { i.Verity.Salt = "" },
		"another size":                         func(i *manifest.Image) { i.Verity.DataBlocks++ },
		"no verity":                            func(i *manifest.Image) { i.Verity = nil },
		"no root image":                        func(i *manifest.Image) { i.Target = "other" },
		"a handler that calls its target root": func(i *manifest.Image) { i.Type = "external" },
	} {
		require.ErrorIs(t, sameRoot(with(change), params), ErrMismatch, world)
	}
}

// Every file system that a root image may have is told by its magic number.
func TestFileSystem(t *testing.T) {
	for kind, magic := range map[string]struct {
		at    int
		bytes string
	}{
		"erofs":    {1024, "\xe2\xe1\xf5\xe0"},
		"squashfs": {0, "hsqs"},
		"ext4":     {1080, "\x53\xef"},
	} {
		head := make([]byte, 4096)
		copy(head[magic.at:], magic.bytes)
		got, _, err := fileSystemOf(head)
		require.NoError(t, err)
		require.Equal(t, kind, got)
	}
	_, _, err := fileSystemOf(make([]byte, 4096))
	require.ErrorIs(t, err, ErrFileSystem)
}

// timerConfig is the watchdog's configuration space as QEMU has it: the lock
// register answers to reads of a single byte only.
type timerConfig byte

func (c timerConfig) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	switch {
	case off == 0 && len(p) >= 4:
		binary.LittleEndian.PutUint32(p, 0x25ab8086)
	case off == 0x68 && len(p) == 1:
		p[0] = byte(c)
	}
	return len(p), nil
}

// An armed timer is seen although its register cannot be read as part of a word.
func TestESBArmed(t *testing.T) {
	require.True(t, esbArmed(timerConfig(0x02)))
	require.False(t, esbArmed(timerConfig(0x01)))
}
