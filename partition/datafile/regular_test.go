package datafile_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/datafile"
)

// Who has the disk in hand can put anything in the place of a file of the device: a
// pipe must not hold the boot up for ever, a link must not lead a write elsewhere, and a
// device must not be read for a file. It is an error, and what a link points at stays.
func TestOnlyFiles(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	for name, plant := range map[string]func(path string) error{
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link":   func(path string) error { return os.Symlink(victim, path) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"device": func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		for _, at := range []string{"file", ".file.new"} {
			for does, do := range map[string]func(path string) error{
				"replace": func(path string) error { return datafile.Replace(datafile.OS{}, path, []byte("new\n"), 0o600) },
				"append":  func(path string) error { return datafile.Append(datafile.OS{}, path, []byte("new\n"), 0o600) },
				"create": func(path string) error {
					f, err := datafile.Create(datafile.OS{}, path, 512, 0o600)
					if err == nil {
						err = f.Close()
					}
					return err
				},
				"read": func(path string) error {
					f, err := datafile.OS{}.OpenFile(path, os.O_RDONLY, 0)
					if err == nil {
						_, err = f.ReadAt(make([]byte, 1), 0)
						f.Close()
					}
					return err
				},
			} {
				t.Run(does+" where a "+name+" is "+at, func(t *testing.T) {
					dir := t.TempDir()
					require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
					require.NoError(t, plant(filepath.Join(dir, at)))
					done := make(chan error, 1)
					go func() { done <- do(filepath.Join(dir, "file")) }()
					select {
					case err := <-done:
						// A replacement takes the place of what is there, whatever it is; append and
						// create make no temporary file unless there is no other.
						switch {
						case at != "file" && does != "replace" || at == "file" && does == "replace" && name != "folder":
						case name == "folder":
							require.Error(t, err)
						default:
							require.ErrorIs(t, err, datafile.ErrNoFile)
						}
					case <-time.After(20 * time.Second):
						t.Fatal("it waits for ever")
					}
					content, err := os.ReadFile(victim)
					require.NoError(t, err)
					require.Equal(t, "precious", string(content))
					// What lay in the way of the temporary file is gone by the next try.
					if does == "replace" && at == ".file.new" && name != "folder" {
						require.NoError(t, do(filepath.Join(dir, "file")))
					}
				})
			}
		}
	}
}
