package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

var uuid = [16]byte{0x3f, 0x5e, 0x52, 0x10, 0x7a, 0x5c, 0x4b, 0x1d, 0x9e, 0x41, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07}

const uuidText = "3f5e5210-7a5c-4b1d-9e41-020304050607"

// image makes blocks of seeded noise: no two alike, so that a swapped digest shows.
func image(t testing.TB, blocks int64) []byte {
	t.Helper()
	data := make([]byte, blocks*BlockSize)
	_, err := rand.NewChaCha8([32]byte{1}).Read(data)
	require.NoError(t, err)
	return data
}

// A slot that Build made and one that `veritysetup format` made are the same
// bytes, whatever the number of levels and however full their last blocks.
func TestBuildEqualsVeritysetup(t *testing.T) {
	tool := needTool(t, "veritysetup", "cryptsetup-bin")
	salts := map[string][]byte{
		"32 byte salt":  bytes.Repeat([]byte{0xa5}, 32),
		"no salt":       nil,
		"longest salt":  bytes.Repeat([]byte{0x5a, 0x01}, MaxSalt/2),
		"one byte salt": {7},
	}
	for _, blocks := range []int64{1, 2, 127, 128, 129, 128 * 128, 128*128 + 1} {
		for name, salt := range salts {
			if blocks > 1000 && len(salt) != 32 {
				continue // the salt goes through the same code at every level
			}
			t.Run(fmt.Sprintf("%d blocks, %s", blocks, name), func(t *testing.T) {
				data := image(t, blocks)
				dir := t.TempDir()
				theirs := filepath.Join(dir, "theirs")
				require.NoError(t, os.WriteFile(theirs, data, 0o600))
				saltArg := "-"
				if len(salt) > 0 {
					saltArg = hex.EncodeToString(salt)
				}
				out, err := exec.Command(tool, "format", theirs, theirs, "--salt", saltArg, "--uuid", uuidText,
					"--hash-offset", fmt.Sprint(len(data)), "--data-blocks", fmt.Sprint(blocks)).CombinedOutput()
				require.NoError(t, err, "%s", out)
				rootText := regexp.MustCompile(`(?m)^Root hash:\s+([0-9a-f]{64})$`).FindSubmatch(out)
				require.NotNil(t, rootText, "%s", out)
				want, err := os.ReadFile(theirs)
				require.NoError(t, err)

				ours := filepath.Join(dir, "ours")
				require.NoError(t, os.WriteFile(ours, data, 0o600))
				f, err := os.OpenFile(ours, os.O_RDWR, 0)
				require.NoError(t, err)
				defer f.Close()
				root, size, err := Build(f, int64(len(data)), salt, uuid, f, int64(len(data)))
				require.NoError(t, err)
				got, err := os.ReadFile(ours)
				require.NoError(t, err)

				require.Equal(t, string(rootText[1]), hex.EncodeToString(root[:]))
				require.EqualValues(t, len(got)-len(data), size)
				predicted, err := TreeSize(int64(len(data)))
				require.NoError(t, err)
				require.Equal(t, size, predicted)
				// veritysetup writes the 512 bytes of the superblock and leaves a
				// hole; without a tree behind it the file ends there.
				want = append(want, make([]byte, max(0, len(got)-len(want)))...)
				require.True(t, bytes.Equal(want, got), "trees differ")

				out, err = exec.Command(tool, "verify", ours, ours, string(rootText[1]), "--hash-offset", fmt.Sprint(len(data))).CombinedOutput()
				require.NoError(t, err, "%s", out)
			})
		}
	}
}

// No flipped bit of the data keeps the root hash.
func TestRootNoticesEveryBlock(t *testing.T) {
	data := image(t, 130)
	good, _, err := Build(bytes.NewReader(data), int64(len(data)), nil, uuid, discard{}, 0)
	require.NoError(t, err)
	for block := range 130 {
		i := block*BlockSize + (block*37)%BlockSize
		data[i] ^= 1 << (block % 8)
		bad, _, err := Build(bytes.NewReader(data), int64(len(data)), nil, uuid, discard{}, 0)
		require.NoError(t, err)
		require.NotEqual(t, good, bad, "flipped bit in block %d", block)
		data[i] ^= 1 << (block % 8)
	}
}

// A size that no verity device can have, and a medium that gives up at any
// write, are errors and never a root hash.
func TestBuildRefuses(t *testing.T) {
	for _, size := range []int64{-4096, 0, 1, 4095, 4097, 1 << 62} {
		_, _, err := Build(bytes.NewReader(nil), size, nil, uuid, discard{}, 0)
		require.ErrorIs(t, err, ErrParams, "size %d", size)
	}
	_, _, err := Build(bytes.NewReader(nil), 4096, make([]byte, 257), uuid, discard{}, 0)
	require.ErrorIs(t, err, ErrParams)
	_, _, err = Build(bytes.NewReader(make([]byte, 5000)), 8192, nil, uuid, discard{}, 0)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)

	data := image(t, 300)
	for n := 0; ; n++ {
		w := &failing{left: n}
		_, _, err := Build(bytes.NewReader(data), int64(len(data)), nil, uuid, w, 0)
		if !w.failed {
			require.NoError(t, err)
			require.Equal(t, 1+3+1, n, "superblock, three blocks of digests, the top")
			break
		}
		require.ErrorIs(t, err, errMedium, "write %d", n)
	}
}

// The largest device that a command line can name is the largest that has a tree.
func TestLargestDevice(t *testing.T) {
	p := Params{DataBlocks: maxBlocks, HashOffset: maxBlocks * BlockSize}
	_, err := ParseParams(p.String())
	require.NoError(t, err)
	require.NoError(t, p.check())
	size, err := TreeSize(maxBlocks * BlockSize)
	require.NoError(t, err)
	require.Positive(t, p.HashOffset+size, "data and tree end before 2^63")

	p.DataBlocks++
	p.HashOffset += BlockSize
	_, err = ParseParams(p.String())
	require.ErrorIs(t, err, ErrParams)
	require.ErrorIs(t, p.check(), ErrParams)
	_, err = TreeSize((maxBlocks + 1) * BlockSize)
	require.ErrorIs(t, err, ErrParams)
}

var errMedium = errors.New("medium gave up")

// failing accepts so many writes and no more.
type failing struct {
	left   int
	failed bool
}

func (f *failing) WriteAt(p []byte, _ int64) (int, error) {
	if f.left == 0 {
		f.failed = true
		return 0, errMedium
	}
	f.left--
	return len(p), nil
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// needTool returns the path of a tool, or skips, or fails where the tool must be.
func needTool(t *testing.T, name, pkg string) string {
	t.Helper()
	for _, dir := range []string{"", "/sbin/", "/usr/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatalf("%s is missing: apt install %s", name, pkg)
	}
	t.Skipf("%s is missing: apt install %s", name, pkg)
	return ""
}

func BenchmarkBuild(b *testing.B) {
	data := image(b, 4096)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Build(bytes.NewReader(data), int64(len(data)), make([]byte, 32), uuid, discard{}, 0); err != nil {
			b.Fatal(err)
		}
	}
}
