package files

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// debugfs, dumpe2fs and this package say the same of inodes, blocks and what is free, with and without the features
// that mke2fs has by default.
func TestLayout(t *testing.T) {
	need(t, "mke2fs", "e2fsprogs")
	need(t, "debugfs", "e2fsprogs")
	for name, features := range map[string][]string{
		"by default": {"-O", "has_journal"}, "bare": {"-O", "none,extent,filetype,sparse_super,flex_bg"}, "ext2": {"-O", "none,filetype,sparse_super"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root := filepath.Join(dir, "root")
			tree(t, root, false)
			img := filepath.Join(dir, "img")
			args := append([]string{"-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0", "-d", root}, features...)
			run(t, "mke2fs", append(args, img, "160M")...)
			b, err := os.ReadFile(img)
			require.NoError(t, err)
			l, err := Layout(bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)

			ask := func(name string, args ...string) string {
				cmd := exec.Command(name, args...)
				cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBUGFS_PAGER=cat", "PATH="+os.Getenv("PATH")+":/usr/sbin")
				out, err := cmd.Output()
				require.NoError(t, err)
				return string(out)
			}
			head := ask("/usr/sbin/dumpe2fs", "-h", img)
			field := func(name string) string {
				_, rest, ok := strings.Cut(head, name+":")
				require.True(t, ok, name)
				line, _, _ := strings.Cut(rest, "\n")
				return strings.TrimSpace(line)
			}
			require.Equal(t, field("Inode count"), strconv.FormatInt(l.Inodes, 10))
			require.Equal(t, field("Block count"), strconv.FormatInt(l.Blocks, 10))
			require.Equal(t, strings.ReplaceAll(field("Filesystem UUID"), "-", ""), fmt.Sprintf("%x", l.UUID))
			free := int64(0)
			for _, e := range l.Free {
				free += e.Length / l.Block
			}
			require.Equal(t, field("Free blocks"), strconv.FormatInt(free, 10))
			require.Equal(t, name == "by default", len(l.Journal) > 0)

			for _, n := range l.Nodes {
				if n.Path == "lost+found" || len(n.Extents) == 0 {
					continue
				}
				want := ask("/usr/sbin/debugfs", "-R", fmt.Sprintf("blocks <%d>", n.Inode), img)
				got := map[string]bool{}
				for _, e := range n.Extents {
					for at := e.Offset; at < e.Offset+e.Length; at += l.Block {
						got[strconv.FormatInt(at/l.Block, 10)] = true
					}
				}
				// debugfs lists the blocks of the map, too.
				blocks := strings.Fields(want)
				for b := range got {
					require.Contains(t, blocks, b, n.Path)
				}
				require.LessOrEqual(t, len(blocks)-len(got), 6, n.Path)
			}
		})
	}
}

// Whatever is wrong with an image is an error that says so.
func TestLayoutDamaged(t *testing.T) {
	need(t, "mke2fs", "e2fsprogs")
	b := small(t)["ext4"]
	for i := 1024; i < 6000; i++ {
		damaged := bytes.Clone(b)
		damaged[i] ^= 0xff
		if _, err := Layout(bytes.NewReader(damaged), int64(len(damaged))); err != nil {
			require.True(t, is(err), err)
		}
	}
	for _, n := range []int{0, 1023, 1100, 2048, len(b) / 2} {
		if _, err := Layout(bytes.NewReader(b[:n]), int64(n)); err != nil {
			require.True(t, is(err), err)
		}
	}
}
