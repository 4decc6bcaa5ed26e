package qemu

import (
	"encoding/binary"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a machine writes is in the log, also when its power is cut right after; and the log
// begins anew with the next power-on.
func TestLogWrites(t *testing.T) {
	ctx := t.Context()
	code := []byte{
		0x31, 0xc0, 0x8e, 0xc0, // es = 0
		0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13, // this sector, to the second one
		0xba, 0xf8, 0x03, 0xb0, '.', 0xee, 0xb0, '\n', 0xee, // COM1
		0xf4, 0xeb, 0xfd, // hlt
	}
	d := lab(t, Config{BIOS: true, Image: bootable(t, code), Memory: 64, LogWrites: true})
	for range 2 {
		require.NoError(t, d.Start(ctx))
		_, err := d.Expect(ctx, regexp.MustCompile(`\.\n`), time.Minute)
		require.NoError(t, err)
		require.NoError(t, d.Cut())
		disk, err := os.ReadFile(d.Disk())
		require.NoError(t, err)
		log, err := os.Open(d.Writes())
		require.NoError(t, err)
		defer log.Close()
		// Linux, Documentation/admin-guide/device-mapper/log-writes.rst
		b := make([]byte, 3*512)
		_, err = log.ReadAt(b, 0)
		require.NoError(t, err)
		le := binary.LittleEndian
		require.EqualValues(t, 1, le.Uint64(b[16:]), "entries")
		require.EqualValues(t, 1, le.Uint64(b[512:]), "its sector")
		require.EqualValues(t, 1, le.Uint64(b[512+8:]), "sectors of it")
		require.Equal(t, disk[:512], b[1024:])
		require.Equal(t, disk[:512], disk[512:1024])
	}
}
