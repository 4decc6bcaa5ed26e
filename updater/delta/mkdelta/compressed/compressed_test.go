package compressed_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/compressed"
)

// tool packs with the reference program of a format.
func tool(t testing.TB, b []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	require.NoError(t, err)
	return out
}

func bzImage(payload []byte) []byte {
	b := make([]byte, 2048)
	le := binary.LittleEndian
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x248:], 1024)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(b, payload...), "what follows"...)
}

func zboot(payload []byte) []byte {
	b := append([]byte("MZ\x00\x00zimg"), make([]byte, 1000)...)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	return append(append(b, payload...), "PE sections"...)
}

// What the reference programs pack is found for what it is and unpacked, with and without something behind it.
func TestUnpack(t *testing.T) {
	content := bytes.Repeat([]byte("0707 the content of a file, of some length. "), 40_000)
	for name, pack := range map[string]func(testing.TB) []byte{
		"gzip": func(t testing.TB) []byte { return tool(t, content, "gzip", "-9nc") },
		"zstd": func(t testing.TB) []byte { return tool(t, content, "zstd", "-19", "-c") },
		"xz": func(t testing.TB) []byte {
			return tool(t, content, "xz", "--x86", "--lzma2=dict=1MiB", "--check=crc32", "-c")
		},
		"lzma":  func(t testing.TB) []byte { return tool(t, content, "xz", "--format=lzma", "-c") },
		"bzip2": func(t testing.TB) []byte { return tool(t, content, "bzip2", "-c") },
		"lz4":   func(t testing.TB) []byte { return tool(t, content, "lz4", "-lc") },
	} {
		t.Run(name, func(t *testing.T) {
			packed := pack(t)
			got, err := compressed.UnpackAll(t.Context(), name, packed)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, got))
			// The kernel's build appends the length of the content.
			tail := binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(len(content)))
			got, err = compressed.Unpack(t.Context(), name, tail)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, got))
			if name != "lzma" { // has no end that could be told
				_, err = compressed.UnpackAll(t.Context(), name, tail)
				require.Error(t, err, "something was left over")
			}
			_, err = compressed.UnpackAll(t.Context(), name, packed[:len(packed)/2])
			require.Error(t, err)

			early := append(append([]byte("070701"), bytes.Repeat([]byte("x"), 200)...), "TRAILER!!!\x00\x00\x00\x00\x00\x00"...)
			for path, row := range map[string]struct {
				file []byte
				from int
				kind string
			}{
				"boot/initrd.img-1":   {packed, 0, compressed.KindInitrd},
				"boot/initrd.img-2":   {append(bytes.Clone(early), packed...), len(early), compressed.KindInitrd},
				"boot/vmlinuz-1":      {bzImage(packed), 2048, compressed.KindKernel},
				"boot/vmlinuz-2":      {zboot(packed), 1008, compressed.KindKernel},
				"lib/modules/a.ko.xz": {packed, 0, compressed.KindModule},
				"doc/changelog.lzma":  {packed, 0, compressed.KindFile},
			} {
				from, to, codec, kind := compressed.Look(path, row.file)
				require.Equal(t, name, codec, path)
				require.Equal(t, row.kind, kind, path)
				require.Equal(t, row.from, from, path)
				require.Equal(t, len(packed), to-from, path)
			}
		})
	}
}

// Whatever a file is, looking at it does no harm.
func TestLookAtAnything(t *testing.T) {
	image := bzImage([]byte("\x1f\x8b\x08"))
	for i := range image {
		for _, v := range []byte{0, 0x7f, 0xff} {
			b := bytes.Clone(image)
			b[i] = v
			compressed.Look("boot/vmlinuz", b)
			compressed.Look("boot/vmlinuz", b[:i])
		}
	}
	for _, codec := range []string{"gzip", "zstd", "bzip2", "lz4", "xz", "lzma", "none"} {
		_, err := compressed.Unpack(t.Context(), codec, []byte("\x02\x21\x4c\x18 no such thing"))
		require.Error(t, err, codec)
	}
	t.Setenv("PATH", "")
	_, err := compressed.Unpack(t.Context(), "xz", []byte("\xfd7zXZ\x00"))
	require.True(t, errors.Is(err, compressed.ErrNoTool))
}
