// Package workbench runs the device program as it is shipped, on the machine at hand
// and without a virtual one: in a folder that it takes for the root of a device.
//
//	etc/tandem/          device.json, release keys, TUF root: as in a system image
//	data/tandem/         the data partition, a folder of this machine
//	run/tandem/          the boot report, as the first program leaves it
//	sys, proc            what the kernel would say of a disk vda, slot a of which runs
//	dev/vda2 … vda6      its partitions: files, or what qemu-storage-daemon exports
//	media/VERSION/       releases, as on a stick
//
// The program is not changed for it, and gets no option that a device would not have:
// it is started with chroot, and its partitions are regular files, which package
// partition opens as it does block devices. What only a block device does is not seen
// here: its exclusive open, its page cache, BLKFLSBUF. Needs root.
//
// The partitions lie where the real GRUB of package boottest/lab looks for them, and a
// slot's kernel is a program that says which release it is, so that what an
// installation has left can be booted.
package workbench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
)

// Part is a partition of the bench's disk.
type Part struct {
	Label       string
	Number      int
	Start, Size int64 // bytes, on the disk of package lab
}

// Parts are the partitions that an installation may read or write.
var Parts = []Part{
	{"env", 2, lab.Env, grubenv.Size},
	{"boot_a", 3, lab.BootA, lab.BootSize},
	{"boot_b", 4, lab.BootB, lab.BootSize},
	{"root_a", 5, lab.RootA, lab.RootSize},
	{"root_b", 6, lab.RootB, lab.RootSize},
}

// Disk is the content of the partitions, by label.
type Disk map[string][]byte

// On puts the partitions on a whole disk.
func (d Disk) On(whole []byte) []byte {
	whole = bytes.Clone(whole)
	for _, p := range Parts {
		copy(whole[p.Start:], d[p.Label])
	}
	return whole
}

// From takes the partitions off a whole disk.
func From(whole []byte) Disk {
	d := Disk{}
	for _, p := range Parts {
		d[p.Label] = whole[p.Start : p.Start+p.Size]
	}
	return d
}

// Factory is a disk whose slot a is good and holds a release; slot b holds another
// one, or nothing if spare is "".
func (g *Goods) Factory(t *testing.T, running, spare string) Disk {
	t.Helper()
	record := bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad}
	if spare != "" {
		record.B = bootctl.OK
	}
	d := Disk{"env": grubenv.Image(record)}
	for slot, version := range map[string]string{"a": running, "b": spare} {
		d["boot_"+slot] = bytes.Repeat([]byte{0xff}, lab.BootSize)
		root := disktest.New(bytes.Repeat([]byte{0xff}, lab.RootSize))
		if version != "" {
			r := g.Release(version)
			copy(d["boot_"+slot], r.Images["boot"])
			_, err := root.WriteAt(r.Images["root"], 0)
			require.NoError(t, err)
			require.NoError(t, partition.WriteRecord(root, partition.Record{Envelope: r.Envelope}))
		}
		d["root_"+slot] = root.Bytes()
	}
	return d
}

// Bench is a folder that looks like a device.
type Bench struct {
	Dir   string
	goods *Goods
	t     *testing.T
}

// New puts a device on the bench: the disk, of which slot a runs with a release.
func (g *Goods) New(t *testing.T, disk Disk, running string) *Bench {
	t.Helper()
	if os.Geteuid() != 0 {
		unavailable(t, errors.New("chroot needs root"))
	}
	b := &Bench{Dir: folder(t), goods: g, t: t}
	r := g.Release(running)
	config, err := json.Marshal(map[string]any{"board": board, "product": product, "checkpoint_mib": checkpoint >> 20})
	require.NoError(t, err)
	b.file(image.DevicePath, config)
	b.file(image.KeysPath, g.keyFile)
	b.file(image.TrustRootPath, g.anchor)
	require.NoError(t, os.MkdirAll(filepath.Join(b.Dir, "run"), 0o755)) // the kernel's, as is /sys below
	require.NoError(t, bootreport.WriteBoot(filepath.Join(b.Dir, bootreport.BootPath), bootreport.Boot{
		Slot: "a", Manifest: string(r.Digest), Version: running, Data: bootreport.DataMounted, BootID: "bench-1",
	}))
	program, err := os.ReadFile(g.program)
	require.NoError(t, err)
	b.file("/usr/bin/updater", program)
	require.NoError(t, os.Chmod(filepath.Join(b.Dir, "usr/bin/updater"), 0o755))
	for version, r := range g.releases {
		require.NoError(t, os.CopyFS(filepath.Join(b.Dir, "media", version), os.DirFS(r.Dir)))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(b.Dir, "data/tandem"), 0o755))
	b.kernel()
	b.Put(disk)
	return b
}

func (b *Bench) file(path string, content []byte) {
	b.t.Helper()
	path = filepath.Join(b.Dir, path)
	require.NoError(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(b.t, os.WriteFile(path, content, 0o644))
}

func (b *Bench) link(target, path string) {
	b.t.Helper()
	path = filepath.Join(b.Dir, path)
	require.NoError(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(b.t, os.Symlink(target, path))
}

// kernel is what a kernel would say: root_a carries the root file system.
func (b *Bench) kernel() {
	for _, p := range Parts {
		name := fmt.Sprintf("vda%d", p.Number)
		at := "sys/devices/vda/" + name
		b.file(at+"/uevent", fmt.Appendf(nil, "MAJOR=254\nMINOR=%d\nDEVNAME=%s\nDEVTYPE=partition\nPARTN=%d\nPARTNAME=%s\n", p.Number, name, p.Number, p.Label))
		b.file(at+"/partition", fmt.Appendln(nil, p.Number))
		b.link("../../devices/vda/"+name, "sys/class/block/"+name)
		b.link("../../devices/vda/"+name, fmt.Sprintf("sys/dev/block/254:%d", p.Number))
	}
	b.file("proc/self/mountinfo", []byte("21 1 254:5 / / ro,relatime - ext4 /dev/vda5 ro\n"))
}

// Node is where the program finds a partition, as a path of this machine.
func (b *Bench) Node(p Part) string { return filepath.Join(b.Dir, fmt.Sprintf("dev/vda%d", p.Number)) }

// Put makes the partitions files with this content.
func (b *Bench) Put(d Disk) {
	b.t.Helper()
	for _, p := range Parts {
		b.file(fmt.Sprintf("dev/vda%d", p.Number), d[p.Label])
	}
}

// Disk is what is in the partitions now.
func (b *Bench) Disk() Disk {
	b.t.Helper()
	d := Disk{}
	for _, p := range Parts {
		content, err := os.ReadFile(b.Node(p))
		require.NoError(b.t, err)
		d[p.Label] = content
	}
	return d
}

// ForgetData empties the data partition.
func (b *Bench) ForgetData() {
	b.t.Helper()
	require.NoError(b.t, os.RemoveAll(filepath.Join(b.Dir, "data/tandem")))
	require.NoError(b.t, os.MkdirAll(filepath.Join(b.Dir, "data/tandem"), 0o755))
}

// Result is how the program ended.
type Result struct {
	Code   int // -1 if a signal ended it
	Signal syscall.Signal
	Output string
	Peak   int64 // bytes of memory at most, if it was not traced
}

// limit is for a program that hangs: an installation takes a second on a quiet machine.
const limit = 3 * time.Minute

// Updater is the program with these arguments, not started. What is before it (strace,
// prlimit) runs outside of the device's root.
func (b *Bench) Updater(before []string, args ...string) *exec.Cmd {
	argv := slices.Concat(before, []string{"chroot", b.Dir, "/usr/bin/updater"}, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return cmd
}

// Run runs the program to its end.
func (b *Bench) Run(args ...string) Result { return b.Under(nil, args...) }

// Under runs the program under another one.
func (b *Bench) Under(before []string, args ...string) Result {
	b.t.Helper()
	var out bytes.Buffer
	cmd := b.Updater(before, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(b.t, cmd.Start())
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	require.True(b.t, late.Stop(), "updater %q still ran after %s:\n%s", args, limit, out.String())
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		require.NoError(b.t, err)
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	res := Result{Code: cmd.ProcessState.ExitCode(), Output: out.String()}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		res.Peak = usage.Maxrss << 10
	}
	if status.Signaled() {
		res.Signal = status.Signal()
	}
	return res
}

// unavailable ends a test whose tools are not here: on a desk with a reason, in CI with
// a failure.
func unavailable(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
