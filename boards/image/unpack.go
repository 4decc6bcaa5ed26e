package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/compressed"
)

// UnpackInitramfs replaces the initramfs archives in /boot by what they hold, under the same names: every kernel takes
// a plain archive (Documentation/driver-api/early-userspace/buffer-format.rst), and a delta sees into it. It returns
// their paths. An archive that does not unpack to its last byte stays as it is.
//
// Nothing else is unpacked, because nothing else is safe everywhere: the names of compressed kernel modules stand in the
// index of depmod, and who opens a compressed file expects one.
func (t *Tree) UnpackInitramfs(ctx context.Context) ([]string, error) {
	var done []string
	for _, p := range t.paths() {
		n := t.nodes[p]
		if path.Dir(p) != "/boot" || !strings.HasPrefix(path.Base(p), "initr") || n.link != "" || n.mode&unix.S_IFMT != unix.S_IFREG || n.source == "" {
			continue
		}
		b, err := os.ReadFile(n.source)
		if err != nil {
			return done, err
		}
		from, to, codec, kind := compressed.Look(p, b)
		if codec == "" || kind != compressed.KindInitrd {
			continue
		}
		plain, err := compressed.UnpackAll(ctx, codec, b[from:to])
		if errors.Is(err, compressed.ErrNoTool) {
			return done, fmt.Errorf("unpack %s: %w", p, err)
		}
		if err != nil || !bytes.HasPrefix(plain, []byte("07070")) {
			continue
		}
		// The header of an archive begins at a multiple of 4.
		whole := append(b[:from:from], make([]byte, -from&3)...)
		if err := t.content(n, bytes.NewReader(append(whole, plain...))); err != nil {
			return done, fmt.Errorf("unpack %s: %w", p, err)
		}
		done = append(done, p)
	}
	return done, nil
}
