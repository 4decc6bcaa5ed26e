package qemu

import (
	"bytes"
	"debug/elf"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is loaded at a reset covers the RAM of the machine to its last byte, and
// nothing of the ROM.
func TestBlank(t *testing.T) {
	const mib = 1 << 20
	for memory, end := range map[int]uint64{64: 64 * mib, 512: 512 * mib, 2048: 2048 * mib, 2815: 2815 * mib, 2816: 2048 * mib, 4096: 2048 * mib} {
		f, err := elf.NewFile(bytes.NewReader(blank(memory)))
		require.NoError(t, err)
		require.Len(t, f.Progs, 2)
		for i, want := range [][2]uint64{{0, 0xa0000}, {mib, end}} {
			p := f.Progs[i]
			require.Equal(t, want, [2]uint64{p.Paddr, p.Paddr + p.Memsz}, "%d MiB", memory)
			data := make([]byte, p.Filesz)
			_, err := p.ReadAt(data, 0)
			require.NoError(t, err)
			require.NotEmpty(t, data)
			require.Equal(t, make([]byte, len(data)), data)
		}
	}
}

// A reset leaves nothing in memory, and with the memory go the translations that
// make firmware crawl: the guest counts its boots above 1 MiB, where SeaBIOS leaves
// things alone, and never gets further than one.
func TestResetClearsMemory(t *testing.T) {
	ctx := t.Context()
	code := []byte{
		0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xff, 0x06, 0x10, 0x80, // ds = 0xffff; inc word [0x8010]
		0xa0, 0x10, 0x80, 0x04, '0', // al = [0x8010] + '0'
		0xba, 0xf8, 0x03, 0xee, 0xb0, '.', 0xee, 0xb0, '\n', 0xee, // COM1
		0xf4, 0xeb, 0xfd, // hlt
	}
	d := lab(t, Config{BIOS: true, Image: bootable(t, code), Memory: 64})
	require.NoError(t, d.Start(ctx))
	for range 3 {
		said, err := d.Expect(ctx, regexp.MustCompile(`\d\.\n`), time.Minute)
		require.NoError(t, err)
		require.Equal(t, "1.\n", said[0])
		require.NoError(t, d.Reset(ctx))
	}
}
