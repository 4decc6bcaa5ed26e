package partition

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func envelope(n int) []byte {
	return []byte(strings.Repeat(`{"payloadType":"application/vnd.tandem"}`, n/40+1)[:n])
}

// What was written into a slot is read from it, at any length.
func TestRecordRoundTrip(t *testing.T) {
	d := make(memory, RecordSize+512)
	_, err := ReadRecord(d)
	require.ErrorIs(t, err, ErrNoRecord)
	for _, n := range []int{1, 2047, BlockSize - recordHeader, BlockSize - recordHeader + 1, MaxEnvelope, 7} {
		require.NoError(t, WriteRecord(d, Record{Envelope: envelope(n)}))
		r, err := ReadRecord(d)
		require.NoError(t, err)
		require.Equal(t, envelope(n), r.Envelope)
	}
	require.NoError(t, EraseRecord(d))
	require.NoError(t, EraseRecord(d))
	_, err = ReadRecord(d)
	require.ErrorIs(t, err, ErrNoRecord)
	require.Equal(t, make([]byte, 512), []byte(d[:512]), "the image before the record is not touched")
}

// The bytes of FORMAT.md, taken apart by dd, od and sha256sum.
func TestRecordBytesByOtherTools(t *testing.T) {
	for _, tool := range []string{"dd", "od", "sha256sum", "sh"} {
		needTool(t, tool, "coreutils")
	}
	path := filepath.Join(t.TempDir(), "slot")
	require.NoError(t, os.WriteFile(path, make([]byte, 3*RecordSize), 0o600))
	f, err := OpenFile(path)
	require.NoError(t, err)
	require.NoError(t, WriteRecord(f, Record{Envelope: envelope(5000)}))
	require.NoError(t, f.Close())

	out, err := exec.Command("sh", "-c", fmt.Sprintf(`set -e
		record() { dd if=%s bs=65536 skip=2 count=1 status=none; }
		record | od -A n -t c -N 8 | tr -d ' \n'; echo
		record | od -A n --endian=little -t u4 -j 8 -N 8 | tr -s ' '
		record | od -A n -t x1 -j 16 -N 32 | tr -d ' \n'; echo
		record | tail -c +49 | head -c 5000 | sha256sum | cut -d ' ' -f 1`, path)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	sum := fmt.Sprintf("%x", sha256.Sum256(envelope(5000)))
	require.Equal(t, "TNDMSLOT\n 1 5000\n"+sum+"\n"+sum+"\n", string(out))
}

// A record with any bit flipped, or cut at any length, is no record.
func TestRecordCorruption(t *testing.T) {
	r := Record{Envelope: envelope(700)}
	area, err := r.bytes()
	require.NoError(t, err)
	for i := range recordHeader + len(r.Envelope) {
		for bit := range 8 {
			area[i] ^= 1 << bit
			_, err := parseRecord(area)
			require.ErrorIs(t, err, ErrNoRecord, "byte %d bit %d", i, bit)
			area[i] ^= 1 << bit
		}
	}
	for n := range recordHeader + len(r.Envelope) {
		_, err := parseRecord(area[:n])
		require.ErrorIs(t, err, ErrNoRecord, "cut at %d", n)
	}
	// The rest of the area belongs to nobody: what an older, longer record left
	// there does no harm.
	for i := recordHeader + len(r.Envelope); i < len(area); i++ {
		area[i] = 0xff
	}
	got, err := parseRecord(area)
	require.NoError(t, err)
	require.Equal(t, r, got)

	// A hash proves nothing about a length that no record has.
	for n, whole := range map[int]bool{0: false, 1: true, MaxEnvelope: true, MaxEnvelope + 1: false} {
		area := make([]byte, RecordSize+BlockSize)
		copy(area, recordMagic)
		binary.LittleEndian.PutUint32(area[8:], recordVersion)
		binary.LittleEndian.PutUint32(area[12:], uint32(n))
		sum := sha256.Sum256(area[recordHeader : recordHeader+n])
		copy(area[16:], sum[:])
		got, err := parseRecord(area)
		if !whole {
			require.ErrorIs(t, err, ErrNoRecord, "%d bytes", n)
			continue
		}
		require.NoError(t, err)
		require.Len(t, got.Envelope, n)
	}
}

func TestRecordRefuses(t *testing.T) {
	d := make(memory, RecordSize)
	require.ErrorContains(t, WriteRecord(d, Record{}), "envelope of 0 bytes")
	require.ErrorContains(t, WriteRecord(d, Record{Envelope: make([]byte, MaxEnvelope+1)}), "envelope of 65489 bytes")
	require.True(t, isZero(d))
	small := make(memory, RecordSize-1)
	require.ErrorIs(t, WriteRecord(small, Record{Envelope: []byte{1}}), ErrOutside)
	require.ErrorIs(t, EraseRecord(small), ErrOutside)
	_, err := ReadRecord(small)
	require.ErrorIs(t, err, ErrOutside)
}

// Whatever is at the end of a slot, it is no record or one that is written back
// as the same bytes.
func FuzzParseRecord(f *testing.F) {
	good, _ := Record{Envelope: envelope(100)}.bytes()
	f.Add(good, false)
	f.Add(good[:60], true)
	f.Add([]byte("TNDMSLOT\x01\x00\x00\x00\xff\xff\xff\xff"), true)
	f.Fuzz(func(t *testing.T, area []byte, repair bool) {
		if repair && len(area) >= recordHeader { // otherwise the hash keeps the fuzzer out
			if n := binary.LittleEndian.Uint32(area[12:]); int64(n) <= int64(len(area)-recordHeader) {
				sum := sha256.Sum256(area[recordHeader : recordHeader+n])
				copy(area[16:], sum[:])
			}
		}
		r, err := parseRecord(area)
		if err != nil {
			require.ErrorIs(t, err, ErrNoRecord)
			return
		}
		b, err := r.bytes()
		require.NoError(t, err)
		n := recordHeader + len(r.Envelope)
		require.True(t, bytes.Equal(b[:n], area[:n]))
	})
}
