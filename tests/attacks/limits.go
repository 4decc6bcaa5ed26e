package attacks

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/tpm"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/trust"
)

// limitAttacks take away what a program needs: whoever fills the data partition, leaks
// descriptors or eats the memory gets an error out of the device, and no more.
var limitAttacks = []Attack{
	{
		Name: "limits/no-descriptor-left", Input: "a process that may not open one file more", Want: syscall.EMFILE, Threats: []string{uptaneDropRequest},
		Run: func(s *Scene) error {
			s.device(theDesk().first, theDesk().old).keep(everything...)
			provision, dir := s.provision(), s.notes()
			disk := filepath.Join(s.TempDir(), "disk")
			require.NoError(s, os.WriteFile(disk, tableDisk(), 0o600))
			s.keepFolder(provision)
			s.keepFolder(dir)
			release := exhaust(s)
			for _, does := range s.uses(dir, provision, disk) {
				s.Variant(does.run(), "%s", does.what)
			}
			release()
			// And it was nothing but that.
			for _, does := range s.uses(must(os.MkdirTemp(s.TempDir(), "")), provision, disk) {
				if err := does.run(); err != nil {
					require.ErrorIs(s, err, os.ErrNotExist, does.what)
				}
			}
			return nil
		},
	},
	{
		Name: "limits/disk-full-at-every-write", Input: "a data partition of 64 KiB with room for no to twelve pages", Want: syscall.ENOSPC, Threats: []string{tufEndless, uptaneEndlessData},
		Run: func(s *Scene) error {
			s.device(theDesk().first, theDesk().old).keep(everything...)
			dir := s.small()
			store, attempts := trust.Dir(dir), filepath.Join(dir, "attempts")
			old, next := bytes.Repeat([]byte("old\n"), 2500), bytes.Repeat([]byte("next"), 2600)
			require.NoError(s, store.Put(journal.Name, old))
			require.NoError(s, bootreport.Append(attempts, bootreport.Attempt{BootID: "first"}))
			refused := 0
			for free := range 13 {
				ballast := fillUp(s, dir, free*4096)
				switch err := store.Put(journal.Name, next); {
				case err == nil:
					require.Equal(s, next, must(store.Get(journal.Name)), "%d pages", free)
				default:
					require.Equal(s, old, must(store.Get(journal.Name)), "%d pages", free)
					require.NoFileExists(s, filepath.Join(dir, "."+journal.Name+".new"), "a full disk is made fuller")
					refused++
					s.Variant(err, "replace with %d pages", free)
				}
				// A log of 32 KiB is a hole that needs no room before it is written.
				if log, err := tpm.CreateLog(filepath.Join(dir, "ledger"), 32<<10); err == nil {
					if _, err = log.WriteAt(make([]byte, 16<<10), 0); err != nil {
						s.Variant(err, "ledger with %d pages", free)
					}
					require.NoError(s, log.Close())
				}
				long := bootreport.Attempt{BootID: "second", Pstore: strings.Repeat("x", 4096), Cause: strings.Repeat("y", 4096)}
				if err := bootreport.Append(attempts, long); err != nil {
					s.Variant(err, "attempt with %d pages", free)
				}
				all := must(bootreport.Attempts(attempts))
				require.Equal(s, "first", all[0].BootID, "%d pages", free)
				// With room again all goes on, and the files are as they were.
				require.NoError(s, errors.Join(os.Remove(ballast), os.RemoveAll(filepath.Join(dir, "ledger")), os.Remove(attempts)))
				require.NoError(s, store.Put(journal.Name, old))
				require.NoError(s, bootreport.Append(attempts, bootreport.Attempt{BootID: "first"}))
			}
			require.NotZero(s, refused, "the disk was never full")
			return nil
		},
	},
	{
		// What asks for a gigabyte is in this process too, which has it. Here it does not.
		Name: "limits/no-memory-for-it", Input: "the attacks that ask for memory, where there is little", Threats: []string{tufEndless, uptaneEndlessData},
		Run: func(s *Scene) error {
			s.device(theDesk().first, theDesk().old).keep(everything...)
			tool, err := exec.LookPath("prlimit")
			if err != nil {
				s.lacks(fmt.Sprintf("%v; it comes with util-linux", err))
			}
			// The runtime maps 64 MiB at a time.
			child := exec.Command(tool, fmt.Sprintf("--data=%d", 256<<20), must(os.Executable()), "-test.v", "-test.run",
				`^TestAttacks$/^(mqtt|config|table|record|journal|attempts|tpm)$/^(header-of|packet-over|board-nested|board-huge|settings-garbled|id-of-no|four-billion|entries-of|length-that|too-long|nested|no-end|huge-size)`)
			out, err := child.CombinedOutput()
			require.NoError(s, err, "%s", out)
			require.Greater(s, strings.Count(string(out), "--- PASS: TestAttacks/"), 10, "%s", out)
			return nil
		},
	},
}

// lacks skips a case on a desk and fails it where nothing may be missing.
func (s *Scene) lacks(reason string) {
	if os.Getenv("TANDEM_CI") != "" {
		s.Fatal(reason)
	}
	s.Skip(reason)
}

// notes is a folder with the files that a device keeps.
func (s *Scene) notes() string {
	dir := must(os.MkdirTemp(s.TempDir(), ""))
	require.NoError(s, trust.Dir(dir).Put(journal.Name, journal.Journal{Counter: 7}.Encode()))
	require.NoError(s, bootreport.Append(filepath.Join(dir, "attempts"), bootreport.Attempt{BootID: "first"}))
	return dir
}

// use is something that a device does with files.
type use struct {
	what string
	run  func() error
}

func (s *Scene) uses(dir, provision, disk string) []use {
	return []use{
		{"read the journal", func() error { _, err := journal.Load(trust.Dir(dir)); return err }},
		{"write the journal", func() error { return journal.Save(trust.Dir(dir), journal.Journal{Counter: 8}) }},
		{"read the attempts", func() error { _, err := bootreport.Attempts(filepath.Join(dir, "attempts")); return err }},
		{"note an attempt", func() error {
			return bootreport.Append(filepath.Join(dir, "attempts"), bootreport.Attempt{BootID: "next"})
		}},
		{"make the ledger's log", func() error { return closed(tpm.CreateLog(filepath.Join(dir, "ledger"), 512)) }},
		{"read the provisioning", func() error { _, err := mqtt.Load(provision); return err }},
		{"open a partition", func() error { return closed(partition.OpenFile(disk)) }},
		{"look at a partition", func() error { return closed(partition.OpenRead(disk)) }},
	}
}

func closed[C interface{ Close() error }](c C, err error) error {
	if err != nil {
		return err
	}
	return c.Close()
}

// exhaust opens files until there are no more, and returns what gives them back.
func exhaust(s *Scene) func() {
	var was syscall.Rlimit
	require.NoError(s, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was))
	tight := was
	tight.Cur = min(was.Cur, 64)
	require.NoError(s, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &tight))
	var held []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			require.ErrorIs(s, err, syscall.EMFILE)
			break
		}
		held = append(held, f)
	}
	return func() {
		for _, f := range held {
			f.Close()
		}
		require.NoError(s, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was))
	}
}

// small is a file system of 64 KiB.
func (s *Scene) small() string {
	if os.Getuid() != 0 {
		s.lacks("only root mounts a small file system")
	}
	dir := s.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		s.lacks(fmt.Sprintf("mount a small tmpfs: %v", err))
	}
	s.Cleanup(func() { require.NoError(s, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// fillUp leaves so many bytes of a file system free.
func fillUp(s *Scene, dir string, free int) string {
	var st syscall.Statfs_t
	require.NoError(s, syscall.Statfs(dir, &st))
	name := filepath.Join(dir, "ballast")
	require.NoError(s, os.WriteFile(name, make([]byte, max(0, int(st.Bavail)*int(st.Bsize)-free)), 0o600))
	return name
}
