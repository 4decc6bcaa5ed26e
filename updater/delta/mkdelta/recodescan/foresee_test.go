package recodescan

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/recode"
)

// changed is content with what a new version brings: bytes changed all over,
// some inserted, some gone, a part that is new.
func changed(content []byte) []byte {
	out := bytes.Clone(content)
	for i := 5000; i < len(out); i += 7000 {
		out[i]++
	}
	if len(out) < 400<<10 {
		return out
	}
	return bytes.Join([][]byte{out[:100<<10], []byte("twelve bytes"), out[100<<10 : 200<<10], out[230<<10:], []byte(strings.Repeat("new", 5000))}, nil)
}

// foreseeAll asserts that every piece of the new file comes back from the old
// matches, and returns what the patch has to carry for that.
func foreseeAll(t *testing.T, old, target []byte) int {
	t.Helper()
	a, b := Zstd(old, 1<<30), Zstd(target, 1<<30)
	require.Len(t, a, 1)
	require.Len(t, b, 1)
	p := NewPair(&a[0], &b[0])
	sum := 0
	for _, piece := range b[0].Pieces(1 << 20) {
		f, err := p.Foresee(piece) // which has tried it
		require.NoError(t, err)
		sum += len(f.Extra) + len(f.Pack) + len(f.Expand)
	}
	return sum
}

// Whichever encoder made the files, the new one comes back, and where content
// stayed, its matches cost little.
func TestForesee(t *testing.T) {
	bin := tool(t, "zstd")
	dir := t.TempDir()
	compress := func(content []byte, options string) []byte {
		in := filepath.Join(dir, "in")
		require.NoError(t, os.WriteFile(in, content, 0o600))
		out, err := exec.Command(bin, append(strings.Fields(options), "-q", "-c", in)...).Output()
		require.NoError(t, err)
		return out
	}
	all := corpora(t)
	for _, name := range []string{"program", "mixed", "skewed", "zeros", "small", "one byte", "empty"} {
		content := all[name]
		for _, options := range []string{"-9 -T0", "-19 --long=27"} {
			target := changed(content)
			packed := compress(target, options)
			size := foreseeAll(t, compress(content, options), packed)
			if name == "program" {
				require.Less(t, size, len(packed)/4, options)
			}
		}
	}
	// A file against itself costs next to nothing but its tables.
	packed := compress(all["program"], "-9")
	require.Less(t, foreseeAll(t, packed, packed), len(packed)/100)
	// A file that has nothing to do with the old one works, too.
	foreseeAll(t, compress(all["text"], "-9"), packed)
}

// The same holds for the Go encoder.
func TestForeseeGoEncoder(t *testing.T) {
	all := corpora(t)
	for _, name := range []string{"mixed", "skewed", "text", "small"} {
		content := all[name]
		for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedBetterCompression} {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
			require.NoError(t, err)
			t.Run(name+", "+level.String(), func(t *testing.T) {
				foreseeAll(t, e.EncodeAll(content, nil), e.EncodeAll(changed(content), nil))
			})
		}
	}
}

// Small frames, as blocks of squashfs are, come back from the matches of several old ones, also where content crosses
// from one into the next, and where an old one has nothing to do with them.
func TestFollow(t *testing.T) {
	bin := tool(t, "zstd")
	all := corpora(t)
	frame := func(b []byte) *Frame {
		in := filepath.Join(t.TempDir(), "in")
		require.NoError(t, os.WriteFile(in, b, 0o600))
		out, err := exec.Command(bin, "-15", "--no-check", "-q", "-c", in).Output()
		require.NoError(t, err)
		frames := Zstd(out, 1<<20)
		require.Len(t, frames, 1)
		return &frames[0]
	}
	const block = 128 << 10
	program := all["program"]
	old := []*Frame{frame(program[:block]), frame(all["text"][:block]), frame(program[block : 2*block]), frame(all["zeros"][:block])}
	target := frame(program[5000 : block+5000])
	size := func(f *Frame, old ...*Frame) int {
		told, err := Follow(f, old) // which has tried it
		require.NoError(t, err)
		var expanded []byte
		for i, o := range old {
			if told.Size[i] == 0 {
				continue
			}
			room := make([]byte, told.Size[i])
			n, err := new(recode.Coder).Expand(recode.ZstdMatches, told.Expand[i], o.data, room)
			require.NoError(t, err)
			expanded = append(expanded, room[:n]...)
		}
		same := 0
		for _, c := range told.Copies {
			for i := range c.Length {
				if told.Matches[c.To+i] == expanded[c.From+i] {
					same++
				}
			}
		}
		// The first record of an old frame may have another literal length.
		require.GreaterOrEqual(t, same, len(told.Matches)-len(old)*4)
		return len(told.Extra)
	}
	require.Less(t, size(target, old...), target.Length/10)
	require.Less(t, size(target, old[0], old[2]), target.Length/10)
	for _, name := range []string{"noise", "zeros", "text", "skewed"} {
		size(frame(all[name][:block]), old...)
		size(target, frame(all[name][:block]))
	}
	size(frame([]byte("short")), old...)
}
