package journal

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
)

type memory map[string][]byte

func (m memory) Get(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}

func (m memory) Put(name string, data []byte) error { m[name] = data; return nil }

func sample() Journal {
	d := manifest.DigestOf([]byte("release"))
	j := Journal{
		State: "writing", Counter: 7, TimeFloor: 1790000000, EpochFloor: 2, DataSchema: 3,
		Update: &Update{ID: "x", Manifest: d, Version: "2.0.0", Sequence: 2, Slot: "b", Tries: 3, Written: map[string]int64{"root": 4 << 20}},
		Want:   &Want{Manifest: d, Counter: 7},
	}
	j.Fail(Failure{Manifest: manifest.DigestOf([]byte("bad")), Version: "1.5.0", Reason: "watchdog"})
	j.Begin(d)
	return j
}

// What was saved is loaded, and a device that never saved starts empty.
func TestSaveLoad(t *testing.T) {
	m := memory{}
	j, err := Load(m)
	require.NoError(t, err)
	require.Equal(t, Journal{}, j)
	require.NoError(t, Save(m, sample()))
	j, err = Load(m)
	require.NoError(t, err)
	require.Equal(t, sample(), j)
}

// Any flipped bit and any truncation is noticed, and the answer is an empty journal.
func TestDamage(t *testing.T) {
	whole := sample().Encode()
	for i := range whole {
		for bit := range 8 {
			bad := append([]byte(nil), whole...)
			bad[i] ^= 1 << bit
			j, err := Parse(bad)
			require.ErrorIs(t, err, ErrDamaged, "byte %d bit %d", i, bit)
			require.Equal(t, Journal{}, j)
		}
		_, err := Parse(whole[:i])
		require.ErrorIs(t, err, ErrDamaged, "cut to %d", i)
	}
	_, err := Parse(append(whole, 'x'))
	require.ErrorIs(t, err, ErrDamaged)
	// A journal of any length could be whole: what is too long is refused for that.
	sealed := func(n int) []byte {
		body := append([]byte("{}"), bytes.Repeat([]byte(" "), n-len("12345678 {}\n"))...)
		return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body)
	}
	_, err = Parse(sealed(MaxSize))
	require.NoError(t, err)
	_, err = Parse(sealed(MaxSize + 1))
	require.ErrorIs(t, err, ErrDamaged)
	// Neither the space nor the newline is optional.
	_, err = Parse([]byte("00000000"))
	require.ErrorIs(t, err, ErrDamaged)
	whole = sealed(100)
	_, err = Parse(whole[:len(whole)-1])
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, "checksum")
}

// The memory of failures and attempts is bounded, and forgets the oldest.
func TestBounds(t *testing.T) {
	var j Journal
	for i := range MaxFailures + 3 {
		d := manifest.DigestOf([]byte{byte(i)})
		j.Fail(Failure{Manifest: d})
		j.Fail(Failure{Manifest: d, Reason: "again"})
		require.Equal(t, 1, j.Begin(d))
		require.Equal(t, 2, j.Begin(d))
	}
	require.Len(t, j.Failed, MaxFailures)
	require.Len(t, j.Attempts, MaxFailures)
	_, known := j.FailedBefore(manifest.DigestOf([]byte{0}))
	require.False(t, known)
	last := manifest.DigestOf([]byte{MaxFailures + 2})
	reason, known := j.FailedBefore(last)
	require.True(t, known)
	require.Equal(t, "again", reason)
	j.Forget(last)
	_, known = j.FailedBefore(last)
	require.False(t, known)
	require.Equal(t, 1, j.Begin(last))
	// Forgetting one forgets nothing else.
	other := manifest.DigestOf([]byte{MaxFailures + 1})
	_, known = j.FailedBefore(other)
	require.True(t, known)
	require.Equal(t, 3, j.Begin(other))
}

// Whatever the file holds, with a right sum or a wrong one: it is damaged, or a
// journal that is written back as the same.
func FuzzParse(f *testing.F) {
	for _, j := range []Journal{sample(), {}} {
		whole := j.Encode()
		f.Add(whole)
		f.Add(whole[9 : len(whole)-1])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		sealed := fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(data, castagnoli), data)
		for _, data := range [][]byte{data, sealed} {
			j, err := Parse(data)
			if err != nil {
				require.ErrorIs(t, err, ErrDamaged)
				continue
			}
			again, err := Parse(j.Encode())
			require.NoError(t, err)
			require.Equal(t, string(j.Encode()), string(again.Encode())) // no list is an empty list
		}
	})
}
