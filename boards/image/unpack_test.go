package image

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/u-root/u-root/pkg/cpio"
)

func cpioOf(t *testing.T, names ...string) []byte {
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	for i, n := range names {
		require.NoError(t, w.WriteRecord(cpio.StaticFile(n, string(noise(i, 5000)), 0o644)))
	}
	require.NoError(t, cpio.WriteTrailer(w))
	return b.Bytes()
}

// An initramfs is unpacked in place, behind the microcode that is never packed; cpio itself lists the same files
// afterwards. What is no archive, or ends in something unknown, is left alone.
func TestUnpackInitramfs(t *testing.T) {
	pack := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, err := w.Write(b)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return out.Bytes()
	}
	early, main := cpioOf(t, "kernel/x86/microcode/GenuineIntel.bin"), cpioOf(t, "init", "lib/a.ko")
	files := map[string][]byte{
		"/boot/initrd.img-1":   append(bytes.Clone(early), pack(main)...),
		"/boot/initramfs-2":    pack(main),
		"/boot/initrd.img-odd": append(pack(main), "something"...),
		"/boot/initrd.img-no":  pack([]byte("no archive")),
		"/boot/vmlinuz":        pack(main),
		"/usr/initrd.img":      pack(main),
		"/boot/initrd.plain":   main,
	}
	tree := NewTree(t.TempDir(), Epoch)
	for name, data := range files {
		require.NoError(t, tree.AddFile(File{Path: name, Mode: 0o600, Data: data}))
	}
	done, err := tree.UnpackInitramfs(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"/boot/initramfs-2", "/boot/initrd.img-1"}, done)
	for name, before := range files {
		got, err := os.ReadFile(tree.nodes[name].source)
		require.NoError(t, err)
		require.EqualValues(t, len(got), tree.nodes[name].size, name)
		switch name {
		case "/boot/initramfs-2":
			require.True(t, bytes.Equal(main, got))
		case "/boot/initrd.img-1":
			require.True(t, bytes.HasPrefix(got, early))
			require.True(t, bytes.HasSuffix(got, main))
			require.Zero(t, (len(got)-len(main))%4)
		default:
			require.True(t, bytes.Equal(before, got), name)
		}
	}
	cmd := exec.Command(program(t, "cpio"), "-it", "--quiet", "--file", tree.nodes["/boot/initramfs-2"].source)
	list, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "init\nlib/a.ko\n", string(list))
}

// With the options of the command, the next slot is laid out like the one before.
func TestSlotsLike(t *testing.T) {
	o := systemParts(t, t.TempDir())
	set, err := Slots(t.Context(), o)
	require.NoError(t, err)
	old := o.Out
	next := systemParts(t, t.TempDir())
	write(t, filepath.Join(next.Root, "a-first-file"), noise(7, 50_000))
	next.Unpack = true
	plain, err := Slots(t.Context(), next)
	require.NoError(t, err)
	next.Like = old
	next.Out += "-like"
	like, err := Slots(t.Context(), next)
	require.NoError(t, err)
	require.Equal(t, set.Images[1].Size, like.Images[1].Size)
	require.NotEqual(t, plain.Images[1].SHA256, like.Images[1].SHA256)
	a, _ := written(t, filepath.Join(old, "root.img"), filepath.Join(next.Out, "root.img"))
	b, _ := written(t, filepath.Join(old, "root.img"), filepath.Join(next.Root, "../out/root.img"))
	require.Less(t, a, b/2)
	verity := like.Images[1].Verity
	ask(t, "veritysetup", "verify", filepath.Join(next.Out, "root.img"), filepath.Join(next.Out, "root.img"), verity.RootHash, fmt.Sprintf("--hash-offset=%d", verity.DataBlocks*4096))
}
