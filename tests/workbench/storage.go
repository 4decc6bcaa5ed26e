package workbench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// QEMU's block drivers lie under the partitions where something independent has to
// watch or to fail: qemu-storage-daemon exports a partition as a file, by FUSE. The
// kernel hands each write of the program to it as one request and answers the program
// only then (FUSE without a write-back cache), so what the daemon sees is what the
// program did, in its order. It flushes also when a file is closed.

// daemon is a running qemu-storage-daemon.
type daemon struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// storage starts a daemon, and returns when its exports are there.
func storage(t *testing.T, dir, name string, args ...string) *daemon {
	t.Helper()
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		unavailable(t, fmt.Errorf("%w; install qemu-system-common", err))
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		unavailable(t, err)
	}
	d := &daemon{}
	pid := filepath.Join(dir, name+".pid")
	d.cmd = exec.Command("qemu-storage-daemon", append(args, "--pidfile", pid)...)
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = dir, &d.out, &d.out
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() { d.stop(t) })
	// The pid file is the last thing it does before it serves.
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(pid); err == nil {
			return d
		}
		var status unix.WaitStatus
		gone, _ := unix.Wait4(d.cmd.Process.Pid, &status, unix.WNOHANG, nil)
		if gone > 0 || time.Now().After(end) {
			d.cmd.Process = nil
			require.Fail(t, "qemu-storage-daemon does not serve", "%s", d.out.String())
		}
	}
}

// stop ends the daemon, which writes what it has and takes its exports away.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if d.cmd.Process == nil || d.cmd.ProcessState != nil {
		return
	}
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, d.cmd.Wait(), "%s", d.out.String())
}

// folder is a temporary folder without a test's name in its path: a socket's must be
// short, and a comma means something in QEMU's options.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "workbench")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// logSize is room for all that an installation writes, and for a sector with each write.
const logSize = 16 << 20

// Watched runs do while blklogwrites logs what it does to the partitions: to each of
// them, and to the disk that they are on. The partitions are files again afterwards.
func (b *Bench) Watched(do func()) (whole []Entry, parts map[string][]Entry) {
	b.t.Helper()
	dir := folder(b.t)
	disk := b.Disk().On(make([]byte, 24<<20))
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, "disk"), disk, 0o600))
	log := func(name string) string {
		file := filepath.Join(dir, name+".log")
		require.NoError(b.t, os.WriteFile(file, nil, 0o600))
		require.NoError(b.t, os.Truncate(file, logSize))
		return file
	}
	// Without log-super-update-interval the log says how long it is only when the
	// daemon ends in peace.
	const logging = "driver=blklogwrites,log-sector-size=512,log-super-update-interval=1,"
	lower := []string{
		"--blockdev", "driver=file,node-name=file,filename=disk",
		"--blockdev", "driver=file,node-name=log,filename=" + log("disk"),
		"--blockdev", logging + "node-name=disk,file=file,log=log",
		"--nbd-server", "addr.type=unix,addr.path=nbd,max-connections=100",
	}
	var upper []string
	for _, p := range Parts {
		lower = append(lower,
			"--blockdev", fmt.Sprintf("driver=raw,node-name=%s,file=disk,offset=%d,size=%d", p.Label, p.Start, p.Size),
			"--export", fmt.Sprintf("type=nbd,id=nbd-%s,node-name=%s,name=%s,writable=on", p.Label, p.Label, p.Label))
		upper = append(upper,
			"--blockdev", fmt.Sprintf("driver=nbd,node-name=nbd-%s,server.type=unix,server.path=nbd,export=%s", p.Label, p.Label),
			"--blockdev", fmt.Sprintf("driver=file,node-name=log-%s,filename=%s", p.Label, log(p.Label)),
			"--blockdev", fmt.Sprintf("%snode-name=%s,file=nbd-%s,log=log-%s", logging, p.Label, p.Label, p.Label),
			"--export", fmt.Sprintf("type=fuse,id=fuse-%s,node-name=%s,mountpoint=%s,writable=on", p.Label, p.Label, b.Node(p)))
	}
	below := storage(b.t, dir, "below", lower...)
	above := storage(b.t, dir, "above", upper...)
	do()
	above.stop(b.t)
	below.stop(b.t)

	left, err := os.ReadFile(filepath.Join(dir, "disk"))
	require.NoError(b.t, err)
	b.Put(From(left))
	parts = map[string][]Entry{}
	for _, p := range Parts {
		parts[p.Label] = ReadLog(b.t, filepath.Join(dir, p.Label+".log"))
	}
	return ReadLog(b.t, filepath.Join(dir, "disk.log")), parts
}

// Failing runs do while blkdebug fails what rules say of one partition (QEMU's
// docs/devel/blkdebug.rst, as "inject-error.0.iotype=write"). The partition is a file
// again afterwards.
func (b *Bench) Failing(label, rules string, do func()) {
	b.t.Helper()
	dir := folder(b.t)
	for _, p := range Parts {
		if p.Label != label {
			continue
		}
		backing := filepath.Join(dir, label)
		content, err := os.ReadFile(b.Node(p))
		require.NoError(b.t, err)
		require.NoError(b.t, os.WriteFile(backing, content, 0o600))
		d := storage(b.t, dir, "failing",
			"--blockdev", "driver=file,node-name=file,filename="+backing,
			"--blockdev", "driver=blkdebug,node-name=debug,image=file,"+rules,
			"--export", "type=fuse,id=fuse,node-name=debug,mountpoint="+b.Node(p)+",writable=on")
		do()
		d.stop(b.t)
		content, err = os.ReadFile(backing)
		require.NoError(b.t, err)
		require.NoError(b.t, os.WriteFile(b.Node(p), content, 0o644))
	}
}
