package files

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// small returns small images of every kind, by name; those whose tool is missing are left out.
func small(t testing.TB) map[string][]byte {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	for path, n := range map[string]int{"a": 10, "b": 5000, "c/d": 70000, "c/e/f": 130, "c/zero": 20000} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(src, path)), 0o755))
		b := bytes.Repeat([]byte(path+" text that packs. "), n/16+1)[:n]
		if path == "c/zero" {
			clear(b[:16384])
		}
		require.NoError(t, os.WriteFile(filepath.Join(src, path), b, 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(src, "cpio"), archive(map[string][]byte{"./etc/passwd": []byte("x")}), 0o644))
	image := filepath.Join(dir, "image")
	out := map[string][]byte{"cpio": archive(map[string][]byte{"./etc/passwd": []byte("root"), "kernel/blob": make([]byte, 1000)})}
	for name, argv := range map[string][]string{
		"ext4":     {"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "32", "-O", "^has_journal,^resize_inode,inline_data", "-d", src, image, "256k"},
		"ext2":     {"mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-N", "32", "-d", src, image, "256k"},
		"squashfs": {"mksquashfs", src, image, "-noappend", "-quiet", "-no-progress", "-comp", "lz4", "-b", "4K"},
		"gzip":     {"mksquashfs", src, image, "-noappend", "-quiet", "-no-progress", "-b", "16K"},
		"zstd":     {"mksquashfs", src, image, "-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "1", "-noI"},
		"erofs":    {"mkfs.erofs", "-zlz4", "-C16384", image, src},
		"full":     {"mkfs.erofs", "-zlz4", "-Elegacy-compress", image, src},
		"tails":    {"mkfs.erofs", "-zlz4", "-C16384", "-Eztailpacking,fragments", image, src},
		"chunks":   {"mkfs.erofs", "--chunksize=4096", image, src},
	} {
		require.NoError(t, os.RemoveAll(image))
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue
		}
		if exec.Command(argv[0], argv[1:]...).Run() != nil {
			continue
		}
		b, err := os.ReadFile(image)
		require.NoError(t, err)
		out[name] = b
	}
	return out
}

// use does with an image what an encoder does, and states what holds whatever it says.
func use(t testing.TB, b []byte) {
	s, err := List(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		require.True(t, is(err), err)
	}
	for _, f := range s.Files {
		end := int64(0)
		for _, e := range f.Extents {
			require.GreaterOrEqual(t, e.Logical, end, f.Path)
			require.Positive(t, e.Size, f.Path)
			require.Positive(t, e.Length, f.Path)
			require.GreaterOrEqual(t, e.Offset, int64(0), f.Path)
			require.LessOrEqual(t, e.Length, int64(len(b))-e.Offset, f.Path)
			if e.Codec == Stored {
				require.Equal(t, e.Size, e.Length, f.Path)
			}
			end = e.Logical + e.Size
		}
		require.LessOrEqual(t, end, f.Size, f.Path)
		if _, err := Read(bytes.NewReader(b), f, 1<<20); err != nil {
			require.True(t, is(err), err)
		}
	}
}

// Whatever is damaged, what List says stays inside the image, and nothing panics:
// bytes changed one by one where the structures are, and in many places at a time.
func TestDamaged(t *testing.T) {
	for name, b := range small(t) {
		t.Run(name, func(t *testing.T) {
			use(t, b)
			r := rand.New(rand.NewPCG(1, 1))
			for range 1500 {
				bad := bytes.Clone(b)
				for range 1 + r.IntN(8) {
					at := r.IntN(len(bad))
					if r.IntN(2) == 0 {
						at = r.IntN(min(len(bad), 6000))
					}
					for bad[at] == 0 && r.IntN(50) != 0 { // most of an image is empty
						at = (at + 1) % len(bad)
					}
					switch r.IntN(3) {
					case 0:
						bad[at] ^= 1 << r.IntN(8)
					case 1:
						bad[at] = 0xff
					case 2:
						bad[at] = byte(r.Uint32())
					}
				}
				use(t, bad)
			}
			for range 60 {
				use(t, b[:r.IntN(len(b))])
			}
			for i := 96; i < 1024+256 && i < len(b); i++ {
				use(t, b[:i])
			}
		})
	}
}

// fuzz changes images by patches, each 3 bytes of offset and 1 of value: whole images
// would be too long to mutate. Images are numbered by name.
func fuzz(f *testing.F, names ...string) {
	all := small(f)
	var images [][]byte
	for _, name := range names {
		if b, ok := all[name]; ok {
			images = append(images, b)
		}
	}
	if len(images) == 0 {
		f.Skip("none of the tools is here")
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{0, 4, 24, 1, 0, 4, 88, 255})
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		b := bytes.Clone(images[int(which)%len(images)])
		for ; len(patches) >= 4; patches = patches[4:] {
			b[(int(patches[0])<<16|int(patches[1])<<8|int(patches[2]))%len(b)] = patches[3]
		}
		use(t, b)
	})
}

func FuzzExt4(f *testing.F)     { fuzz(f, "ext4", "ext2") }
func FuzzSquashfs(f *testing.F) { fuzz(f, "squashfs", "gzip", "zstd") }
func FuzzErofs(f *testing.F)    { fuzz(f, "erofs", "full", "tails", "chunks") }

// An archive is short enough to be mutated as a whole.
func FuzzCpio(f *testing.F) {
	f.Add(small(f)["cpio"])
	f.Fuzz(func(t *testing.T, b []byte) { use(t, b) })
}

// Any bytes may be claimed to be packed.
func FuzzUnpack(f *testing.F) {
	codecs := []Codec{Stored, Gzip, Zstd, LZ4, LZ4Padded, Deflate, ZstdPadded, XZ}
	f.Add(uint8(3), []byte("\x50hello\x05\x00\x10xxxxx"))
	f.Fuzz(func(t *testing.T, c uint8, b []byte) {
		out, err := Unpack(codecs[int(c)%len(codecs)], b, 100000)
		if err != nil {
			require.True(t, is(err), err)
		}
		require.LessOrEqual(t, len(out), 100000)
	})
}

// is tells whether an error is of a class that callers know.
func is(err error) bool { return errors.Is(err, ErrFormat) || errors.Is(err, ErrUnsupported) }
