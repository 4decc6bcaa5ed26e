package boards

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

// Every board that is shipped parses, and survives being written and read again.
func TestBoardsParse(t *testing.T) {
	require.NotEmpty(t, Names())
	for _, name := range Names() {
		b, err := Get(name)
		require.NoError(t, err, name)
		data, err := json.Marshal(b)
		require.NoError(t, err, name)
		again, err := Parse(data)
		require.NoError(t, err, name)
		require.Equal(t, b, again, name)
	}
	_, err := Get("no-such-board")
	require.ErrorContains(t, err, `unknown board "no-such-board" (known: `)
}

// A board is found under its own name: a copy of a file that still has the name of the
// first is refused, and not taken for the first.
func TestBoardsHaveTheirOwnNames(t *testing.T) {
	data, err := JSON("qemu-x86_64")
	require.NoError(t, err)
	copies := fstest.MapFS{"qemu-x86_64.json": {Data: data}, "gateway.json": {Data: data}, "empty.json": {}}
	b, err := load(copies, "qemu-x86_64")
	require.NoError(t, err)
	require.Equal(t, "qemu-x86_64", b.Name)
	b, err = load(copies, "gateway")
	require.ErrorContains(t, err, `calls itself "qemu-x86_64"`)
	require.Empty(t, b)
	_, err = load(copies, "empty")
	require.ErrorIs(t, err, ErrBoard)
	_, err = load(copies, "none")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// The lab's board is laid out as the tools that look at its images expect.
func TestQEMULayout(t *testing.T) {
	b, err := Get("qemu-x86_64")
	require.NoError(t, err)
	var labels []string
	next := int64(MiB)
	for i, p := range b.Places() {
		require.Equal(t, i+1, p.Number)
		require.Equal(t, next, p.Start, p.Label)
		next += p.Size
		labels = append(labels, p.Label)
	}
	require.Equal(t, []string{"esp", "env", "boot_a", "boot_b", "root_a", "root_b", "data"}, labels)
	require.Equal(t, next+MiB, b.DiskSize())
}

// A mistake in a board file is an error that names what is wrong. Each row is a
// mistake: a text of the shipped file, what it is replaced with, and the word
// that the message has to contain.
func TestParseNamesTheMistake(t *testing.T) {
	data, err := JSON("qemu-x86_64")
	require.NoError(t, err)
	_, err = Parse(data)
	require.NoError(t, err)
	for mistake, c := range map[string]struct{ old, with, want string }{
		"a misspelt key":                  {`"title":`, `"titel":`, `titel`},
		"a misspelt key further in":       {`"sector_bytes":`, `"sector_byte":`, `sector_byte`},
		"a key twice":                     {`"arch": "amd64",`, `"arch": "amd64", "arch": "arm64",`, `arch`},
		"a key twice in a partition":      {`{"label": "env",`, `{"label": "env", "Label": "env",`, `disk.partitions[1].Label`},
		"another format":                  {`"format": 1`, `"format": 2`, `format 2`},
		"an upper-case name":              {`"name": "qemu-x86_64"`, `"name": "QEMU"`, `QEMU`},
		"an unknown architecture":         {`"amd64"`, `"x86"`, `x86`},
		"a made-up root of trust":         {`"measured boot"`, `"very secure"`, `very secure`},
		"measured boot without a TPM":     {`"tpm": {"pcr": 14, "nv_ledger": "0x01840000"}`, `"tpm": null`, `no tpm`},
		"sectors of 520 bytes":            {`"sector_bytes": 512`, `"sector_bytes": 520`, `520`},
		"two partitions with a label":     {`"label": "boot_b"`, `"label": "boot_a"`, `"boot_a" occurs twice`},
		"an empty partition":              {`"env", "type": "linux", "size_mib": 1}`, `"env", "type": "linux", "size_mib": 0}`, `"env"`},
		"a negative size":                 {`"size_mib": 512`, `"size_mib": -512`, `"data"`},
		"a size in words":                 {`"size_mib": 512`, `"size_mib": "512"`, `size_mib`},
		"partitions that overlap":         {`"root_b", "type": "linux",`, `"root_b", "type": "linux", "start_mib": 200,`, `"root_b" overlaps partition "root_a"`},
		"a partition before the disk":     {`"esp", "type": "esp",`, `"esp", "type": "esp", "start_mib": -1,`, `"esp"`},
		"a slot that nobody knows":        {`"b": {"boot": "boot_b", "root": "root_b"}`, `"a2": {}`, `"a2"`},
		"a slot without its root":         {`"root": "root_b"`, `"root": ""`, `slots.b.root`},
		"a slot with no such partition":   {`"root": "root_b"`, `"root": "root_c"`, `root_c`},
		"both slots on one partition":     {`"root": "root_b"`, `"root": "root_a"`, `"root_a" is used by slots.a.root and slots.b.root`},
		"slots of different size":         {`"boot_b", "type": "linux", "size_mib": 64`, `"boot_b", "type": "linux", "size_mib": 63`, `"boot_b"`},
		"an unknown bootloader":           {`"kind": "grub"`, `"kind": "lilo"`, `lilo`},
		"the record in the data":          {`"env": "env"`, `"env": "data"`, `data`},
		"firmware cannot find the loader": {`"type": "esp"`, `"type": "linux"`, `esp`},
		"an unknown watchdog":             {`"kind": "i6300esb"`, `"kind": "dog"`, `dog`},
		"a watchdog of a second":          {`"timeout_seconds": 60`, `"timeout_seconds": 1`, `timeout_seconds`},
		"a PCR that anyone can reset":     {`"pcr": 14`, `"pcr": 16`, `pcr`},
		"an index that is none":           {`"0x01840000"`, `"0x81000001"`, `0x81000001`},
		"verity in the command line":      {`"cmdline": "`, `"cmdline": "tandem.verity=1 `, `tandem.verity`},
		"a path as a module":              {`"virtio_pci"`, `"../virtio_pci"`, `../virtio_pci`},
		"no memory in QEMU":               {`"memory_mib": 512`, `"memory_mib": 0`, `memory_mib`},
		"more than one object":            {"\n}\n", "\n}\n{}", `closing brace`},
		"nothing but brackets":            {`"format": 1`, `"format": ` + strings.Repeat("[", 60_000), `nested too deeply`},
	} {
		t.Run(mistake, func(t *testing.T) {
			require.Contains(t, string(data), c.old)
			_, err := Parse([]byte(strings.Replace(string(data), c.old, c.with, 1)))
			require.ErrorIs(t, err, ErrBoard)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// Each number and length in a board file is accepted on its edge and refused one past it.
func TestParseEdges(t *testing.T) {
	shipped, err := JSON("qemu-x86_64")
	require.NoError(t, err)
	judge := func(change func(b *Board)) error {
		b, err := Parse(shipped)
		require.NoError(t, err)
		change(&b)
		data, err := json.Marshal(b)
		require.NoError(t, err)
		_, err = Parse(data)
		return err
	}
	text := func(n int64) string { return strings.Repeat("a", int(n)) }
	for name, edge := range map[string]struct {
		low, high int64
		set       func(b *Board, n int64)
		want      string
	}{
		"letters of the name":    {1, 63, func(b *Board, n int64) { b.Name = text(n) }, "name"},
		"letters of a label":     {1, 36, func(b *Board, n int64) { b.Disk.Partitions[6].Label, b.Data = text(n), text(n) }, "partition label"},
		"size of a partition":    {1, 1 << 30, func(b *Board, n int64) { b.Disk.Partitions[6].SizeMiB = n }, "size_mib"},
		"start of a partition":   {0, 1 << 30, func(b *Board, n int64) { b.Disk.Partitions[6].StartMiB = n }, "start_mib"},
		"seconds of the dog":     {10, 2046, func(b *Board, n int64) { b.Watchdog.TimeoutSeconds = int(n) }, "timeout_seconds"},
		"seconds for the loader": {10, 2046, func(b *Board, n int64) { b.Watchdog.LoaderSeconds = int(n) }, "loader_seconds"},
		"register of the TPM":    {8, 15, func(b *Board, n int64) { b.TPM.PCR = int(n) }, "tpm.pcr"},
		"partitions": {7, 128, func(b *Board, n int64) {
			for i := len(b.Disk.Partitions); i < int(n); i++ {
				b.Disk.Partitions = append(b.Disk.Partitions, Partition{Label: fmt.Sprint("more", i), Type: "linux", SizeMiB: 1})
			}
		}, "partitions: a table"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, judge(func(b *Board) { edge.set(b, edge.low) }))
			require.NoError(t, judge(func(b *Board) { edge.set(b, edge.high) }))
			err := judge(func(b *Board) { edge.set(b, edge.high+1) })
			require.ErrorIs(t, err, ErrBoard)
			require.ErrorContains(t, err, edge.want)
			if name != "partitions" {
				err = judge(func(b *Board) { edge.set(b, edge.low-1) })
				require.ErrorIs(t, err, ErrBoard)
				require.ErrorContains(t, err, edge.want)
			}
		})
	}
	require.NoError(t, judge(func(b *Board) { b.Watchdog.LoaderSeconds = 0 }))
	require.NoError(t, judge(func(b *Board) { b.Watchdog = Watchdog{Kind: "none"} }))
	for want, change := range map[string]func(b *Board){
		"trust.note":              func(b *Board) { b.Trust.Note = "" },
		"want esp or linux":       func(b *Board) { b.Disk.Partitions[6].Type = "swap" },
		"data has no partition":   func(b *Board) { b.Data = "" },
		"want a path below /dev":  func(b *Board) { b.Watchdog.Device = "watchdog0" },
		"other keys describe one": func(b *Board) { b.Watchdog.Kind = "none" },
		"want one line":           func(b *Board) { b.Kernel.Cmdline = "a\nb" },
		"kernel.stub is missing":  func(b *Board) { b.Kernel.Stub = "" },
		"qemu.cpu is missing":     func(b *Board) { b.QEMU.CPU = "" },
		`name "_a"`:               func(b *Board) { b.Name = "_a" },
		`name "a/b"`:              func(b *Board) { b.Name = "a/b" },
		`name "-a"`:               func(b *Board) { b.Name = "-a" },
		`label "a b"`:             func(b *Board) { b.Disk.Partitions[6].Label = "a b" },
		"kernel.modules":          func(b *Board) { b.Kernel.Modules = []string{"a\x00"} },
	} {
		err := judge(change)
		require.ErrorIs(t, err, ErrBoard)
		require.ErrorContains(t, err, want)
	}
	for _, name := range []string{"a_b", "a.b", "a-b", "0"} {
		require.NoError(t, judge(func(b *Board) { b.Name = name }), name)
	}

	padded := append(bytes.Clone(shipped), bytes.Repeat([]byte(" "), maxFile-len(shipped))...)
	_, err = Parse(padded)
	require.NoError(t, err)
	_, err = Parse(append(padded, ' '))
	require.ErrorIs(t, err, ErrBoard)
}

// A slot that is missing is named.
func TestParseMissingSlot(t *testing.T) {
	b, err := Get("qemu-x86_64")
	require.NoError(t, err)
	delete(b.Slots, "b")
	data, err := json.Marshal(b)
	require.NoError(t, err)
	_, err = Parse(data)
	require.ErrorIs(t, err, ErrBoard)
	require.ErrorContains(t, err, `slot "b"`)
}

// Whatever the file holds, Parse returns a board or an error, and what it returns
// can be placed on a disk.
func FuzzParse(f *testing.F) {
	for _, name := range Names() {
		data, err := JSON(name)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{`))
	f.Add([]byte(`{"a":[[[]]],"a":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Parse(data)
		if err != nil {
			require.ErrorIs(t, err, ErrBoard)
			return
		}
		for _, p := range b.Places() {
			require.Positive(t, p.Start)
			require.LessOrEqual(t, p.Start+p.Size, b.DiskSize()-MiB)
		}
	})
}
