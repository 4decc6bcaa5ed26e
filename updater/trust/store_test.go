package trust

import (
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/datafile/datafiletest"
)

// The power may fail, or the disk, at any operation of a store. Each file then is as
// one of the last two calls left it, as the last one did if that returned nil, and
// what was not written stays as it was.
func TestStorePowerCut(t *testing.T) {
	set := func() (*datafiletest.FS, folder) {
		fsys := datafiletest.New()
		f := folder{fsys, "/"}
		require.NoError(t, f.Put("journal", []byte("old")))
		require.NoError(t, f.Put("other", []byte("other")))
		fsys.Settle()
		return fsys, f
	}
	get := func(fsys *datafiletest.FS, name string) string {
		data, err := folder{fsys, "/"}.Get(name)
		if err != nil {
			require.ErrorIs(t, err, fs.ErrNotExist)
			return "gone"
		}
		return string(data)
	}
	for _, c := range []struct {
		call string
		run  func(folder) error
		want string
	}{
		{"Put", func(f folder) error { return f.Put("journal", []byte("new")) }, "new"},
		{"Delete", func(f folder) error { return f.Delete("journal") }, "gone"},
	} {
		check := func(fsys *datafiletest.FS, err error, what string) {
			done := fsys.Ops()
			for crash := range fsys.Crashes() {
				after := crash.FS()
				is := get(after, "journal")
				require.Contains(t, []string{"old", c.want}, is, "%s, %s", what, crash)
				if err == nil && crash.Cut >= done {
					require.Equal(t, c.want, is, "%s, %s", what, crash)
				}
				require.Equal(t, "other", get(after, "other"), "%s, %s", what, crash)
			}
		}
		fsys, f := set()
		require.NoError(t, c.run(f))
		check(fsys, nil, c.call)
		for at := 1; ; at++ {
			fsys, f := set()
			fsys.Inject(datafiletest.Fault{At: at, Err: syscall.ENOSPC})
			err := c.run(f)
			if !fsys.Fired() {
				require.NoError(t, err)
				break
			}
			check(fsys, err, fmt.Sprintf("%s, operation %d failed", c.call, at))
		}
	}
}
