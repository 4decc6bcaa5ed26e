package early_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/verity"
	"github.com/tandem-ota/tandem/qemu/tiny"
	"github.com/tandem-ota/tandem/qemu/tiny/port"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// The kernel is Debian's, unpacked by .ci/kernel.sh; the machine is QEMU's, started
// without firmware and loader, so that a boot takes seconds.
const kernelDir = "../../build/kernel"

// world is a disk with one slot that boots, and what it takes to boot it.
type world struct {
	kernel, initrd, disk, cmdline string
	parts                         map[string]partition.Part
	payload                       []byte
	signer                        mktrust.Signer
}

// machine is one run of the world.
type machine struct {
	cmd     *exec.Cmd
	console *bufio.Reader
	log     strings.Builder
	socket  string
}

func need(t *testing.T, err error) {
	if err == nil {
		return
	}
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

func find(t *testing.T, pattern string) string {
	found, err := filepath.Glob(filepath.Join(kernelDir, pattern))
	require.NoError(t, err)
	if len(found) == 0 {
		need(t, fmt.Errorf("no kernel in build/kernel; .ci/kernel.sh unpacks it"))
	}
	return found[0]
}

func newWorld(t *testing.T) *world {
	for _, tool := range []string{"qemu-system-x86_64", "sgdisk", "mke2fs", "debugfs"} {
		_, err := exec.LookPath(tool)
		need(t, err)
	}
	ctx, dir := t.Context(), t.TempDir()
	w := &world{kernel: find(t, "pkg/boot/vmlinuz-*"), disk: filepath.Join(dir, "disk.img"), initrd: filepath.Join(dir, "initrd")}
	key, err := mktrust.NewKey(mktrust.Ed25519)
	require.NoError(t, err)
	w.signer, err = mktrust.FromCrypto(key)
	require.NoError(t, err)
	keys, err := mktrust.KeySet(1, key.Public())
	require.NoError(t, err)

	board, err := boards.Get("qemu-x86_64")
	require.NoError(t, err)
	init := filepath.Join(dir, "init")
	require.NoError(t, tiny.Compile(ctx, init, "github.com/tandem-ota/tandem/bootctl/cmd/init"))
	program, err := os.ReadFile(init)
	require.NoError(t, err)
	initrd, err := image.Initramfs{
		Init: program, ModulesDir: find(t, "pkg/lib/modules/*"), Modules: board.Kernel.Modules,
		Files: []image.File{{Path: "/etc/tandem/release-keys.json", Mode: 0o644, Data: keys}},
	}.Build()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(w.initrd, initrd, 0o644))

	// The root file system and its tree.
	tree := image.NewTree(dir, time.Unix(0, 0))
	root := filepath.Join(dir, "root")
	require.NoError(t, tiny.Build(ctx, root, tiny.Options{Version: "1.0.0", Files: map[string][]byte{"/etc/tandem/root.json": []byte("anchor")}}))
	require.NoError(t, tree.AddDir(root))
	file := filepath.Join(dir, "root.img")
	size, err := image.Root(ctx, tree, [16]byte{1}, file)
	require.NoError(t, err)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	salt := sha256.Sum256([]byte(board.Name))
	hash, tail, err := verity.Build(f, size, salt[:], [16]byte{2}, f, size)
	require.NoError(t, err)
	params := verity.Params{DataBlocks: size / verity.BlockSize, Salt: salt[:], Root: hash, HashOffset: size}
	w.cmdline = "console=ttyS0 panic=1 oops=panic watchdog.handle_boot_enabled=0 tandem.slot=a tandem.verity=" + params.String()

	w.payload = manifestOf(t, params, size+tail)
	w.makeDisk(t, file)
	return w
}

// manifestOf is the least that describes the slot.
func manifestOf(t *testing.T, p verity.Params, size int64) []byte {
	blob := manifest.Content{Digest: manifest.DigestOf([]byte("blob")), Size: 4}
	m := manifest.Manifest{
		Format: manifest.Format, Product: "tiny", Boards: []string{"qemu-x86_64"}, Version: "1.0.0", Sequence: 1,
		Images: []manifest.Image{{
			Name: "root", Type: "slot", Target: "root",
			Content:  manifest.Content{Digest: manifest.DigestOf([]byte("image")), Size: size, Tree: manifest.DigestOf([]byte("tree"))},
			Verity:   &manifest.Verity{RootHash: hex.EncodeToString(p.Root[:]), Salt: hex.EncodeToString(p.Salt), DataBlocks: p.DataBlocks},
			Payloads: []manifest.Payload{{Kind: "full", Blob: blob, Memory: 1 << 20}},
		}},
		Trial:      manifest.Trial{Tries: 3, DeadlineSeconds: 600, WindowSeconds: 60, Network: "ignore"},
		DataSchema: manifest.Schema{Version: 1, ReadableFrom: 1},
		Provenance: manifest.Provenance{Source: "test", Revision: "1", Builder: "test", Built: "2026-01-01T00:00:00Z"},
	}
	text, err := m.Marshal()
	require.NoError(t, err)
	return text
}

// makeDisk makes a whole disk with independent tools.
func (w *world) makeDisk(t *testing.T, root string) {
	run(t, "truncate", "-s", "256M", w.disk)
	run(t, "sgdisk", "-n", "1:0:+1M", "-c", "1:env", "-n", "2:0:+1M", "-c", "2:boot_a",
		"-n", "3:0:+128M", "-c", "3:root_a", "-n", "4:0:+32M", "-c", "4:data", w.disk)
	disk, err := partition.OpenFile(w.disk)
	require.NoError(t, err)
	parts, err := partition.ReadTable(disk, 512)
	require.NoError(t, err)
	require.NoError(t, disk.Close())
	w.parts = make(map[string]partition.Part)
	for _, p := range parts {
		w.parts[p.Label] = p
	}
	run(t, "dd", "if="+root, "of="+w.disk, "bs=1M", "oflag=seek_bytes", "conv=notrunc,sparse", fmt.Sprintf("seek=%d", w.parts["root_a"].Start))
	data := w.parts["data"]
	run(t, "mke2fs", "-q", "-t", "ext4", "-E", fmt.Sprintf("offset=%d", data.Start), w.disk, fmt.Sprintf("%dk", data.Size>>10))
	w.sign(t, w.signer)
	w.record(t, bootctl.Record{Good: bootctl.B, Trying: bootctl.A, Tries: 2, A: bootctl.OK, B: bootctl.OK})
}

func (w *world) part(t *testing.T, label string, do func(d partition.Disk)) {
	disk, err := partition.OpenFile(w.disk)
	require.NoError(t, err)
	do(partition.Section(disk, w.parts[label].Start, w.parts[label].Size))
	require.NoError(t, disk.Close())
}

// sign writes the slot record.
func (w *world) sign(t *testing.T, signer mktrust.Signer) {
	envelope, err := mktrust.Seal(t.Context(), trust.ManifestType, w.payload, signer)
	require.NoError(t, err)
	w.part(t, "root_a", func(d partition.Disk) {
		require.NoError(t, partition.WriteRecord(d, partition.Record{Envelope: envelope}))
	})
}

func (w *world) record(t *testing.T, r bootctl.Record) {
	w.part(t, "env", func(d partition.Disk) { require.NoError(t, grubenv.Format(d, r)) })
}

func run(t *testing.T, name string, args ...string) {
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// start boots the world. A restart of the machine ends it.
func (w *world) start(t *testing.T, cmdline string) *machine {
	m := &machine{socket: filepath.Join(t.TempDir(), "port.sock")}
	// Generous: a loaded host makes the guest ten times slower.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	m.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "384",
		"-display", "none", "-nodefaults", "-no-reboot", "-kernel", w.kernel, "-initrd", w.initrd, "-append", cmdline,
		"-drive", "file="+w.disk+",format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk",
		"-device", "i6300esb", "-nic", "user,model=virtio-net-pci,restrict=on", "-serial", "stdio",
		"-chardev", "socket,id=port,path="+m.socket+",server=on,wait=off", "-serial", "chardev:port")
	out, err := m.cmd.StdoutPipe()
	require.NoError(t, err)
	m.cmd.Stderr = os.Stderr
	m.console = bufio.NewReader(io.TeeReader(out, &m.log))
	require.NoError(t, m.cmd.Start())
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		if t.Failed() {
			t.Log(m.log.String())
		}
	})
	return m
}

// await reads the console up to a text.
func (m *machine) await(t *testing.T, text string) {
	var seen strings.Builder
	for !strings.HasSuffix(seen.String(), text) {
		c, err := m.console.ReadByte()
		require.NoError(t, err, "the machine ended before %q", text)
		seen.WriteByte(c)
	}
}

// ended reads the console until the machine restarts.
func (m *machine) ended(t *testing.T) string {
	rest, err := io.ReadAll(m.console)
	require.NoError(t, err)
	require.NoError(t, m.cmd.Wait())
	return string(rest)
}

// A slot boots if everything about it is as signed, and otherwise not at all.
func TestSlot(t *testing.T) {
	w := newWorld(t)
	t.Run("boots", w.boots)
	t.Run("signed by somebody else", w.refusesSignature)
	t.Run("kernel of another release", w.refusesKernel)
	t.Run("a block of the root is damaged", w.restartsOnDamage)
}

// A slot whose parts belong together boots to the prompt, says who it is, and
// leaves what the agent needs to know; the trust anchors cannot be overlaid,
// and /etc keeps what is written to it.
func (w *world) boots(t *testing.T) {
	m := w.start(t, w.cmdline)
	m.await(t, "tiny:a:1.0.0# ")

	ctx := t.Context()
	client, err := port.Dial(ctx, m.socket)
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.Wake())
	hello, err := client.Boot(ctx, "")
	require.NoError(t, err)
	require.Equal(t, "1.0.0", hello.Version)
	sh := func(script string) string {
		answer, err := client.Run(ctx, port.Request{Argv: []string{"sh", "-c", script}})
		require.NoError(t, err)
		require.Zero(t, *answer.RC, "%s: %s%s", script, answer.Out, answer.Err)
		return answer.Out
	}

	var boot bootreport.Boot
	require.NoError(t, json.Unmarshal([]byte(sh("cat /run/tandem/boot.json")), &boot))
	require.Equal(t, "a", boot.Slot)
	require.Equal(t, string(manifest.DigestOf(w.payload)), boot.Manifest)
	require.Equal(t, bootreport.DataMounted, boot.Data)
	require.Equal(t, hello.BootID, boot.BootID)
	require.Equal(t, []string{"measure: /dev/tpmrm0: no TPM 2.0"}, boot.Problems)
	require.NotNil(t, boot.Watchdog)
	require.Equal(t, 60, boot.Watchdog.TimeoutS)
	require.Equal(t, "init", boot.Watchdog.ArmedBy)
	require.Equal(t, "active\n", sh("cat /sys/class/watchdog/watchdog0/state"))

	require.Equal(t, "anchor", sh("cat /etc/tandem/root.json"))
	answer, err := client.Run(ctx, port.Request{Argv: []string{"sh", "-c", "echo mine >/etc/tandem/root.json"}})
	require.NoError(t, err)
	require.NotZero(t, *answer.RC)
	sh("echo note >/etc/note; sync")
	require.Equal(t, "note\n", sh("cat /data/etc-a/note"))
	require.Contains(t, sh("ip"), "10.0.2.15/24")

	_, err = client.Run(ctx, port.Request{Argv: []string{"reboot"}})
	require.NoError(t, err)
	m.ended(t)
	attempts := w.attempts(t)
	require.Len(t, attempts, 2)
	require.Equal(t, bootreport.StageSwitched, attempts[1].Stage)
	require.Equal(t, boot.Manifest, attempts[1].Manifest)
}

// attempts reads the file from the data partition with debugfs.
func (w *world) attempts(t *testing.T) []bootreport.Attempt {
	dir := t.TempDir()
	data := w.parts["data"]
	run(t, "dd", "if="+w.disk, "of="+dir+"/data", "bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse",
		fmt.Sprintf("skip=%d", data.Start), fmt.Sprintf("count=%d", data.Size))
	run(t, "e2fsck", "-fn", dir+"/data")
	run(t, "debugfs", "-R", "dump /tandem/attempts "+dir+"/attempts", dir+"/data")
	attempts, err := bootreport.Attempts(dir + "/attempts")
	require.NoError(t, err)
	return attempts
}

// Whatever is wrong with a slot, its boot ends in a restart that the loader
// counts, with the reason in one line on the console and on the data partition.
func (w *world) refusesSignature(t *testing.T) {
	key, err := mktrust.NewKey(mktrust.Ed25519)
	require.NoError(t, err)
	stranger, err := mktrust.FromCrypto(key)
	require.NoError(t, err)
	w.sign(t, stranger)
	defer w.sign(t, w.signer)
	const reason = "open root: slot record of root_a: "
	require.Contains(t, w.start(t, w.cmdline).ended(t), "tandem-init: "+reason)
	attempts := w.attempts(t)
	last := attempts[len(attempts)-1]
	require.Equal(t, bootreport.StageFailed, last.Stage)
	require.Contains(t, last.Cause, reason)
}

// Both halves of a slot are of one release, or it does not boot.
func (w *world) refusesKernel(t *testing.T) {
	end := "0"
	if strings.HasSuffix(w.cmdline, end) {
		end = "1"
	}
	require.Contains(t, w.start(t, w.cmdline[:len(w.cmdline)-1]+end).ended(t),
		"tandem-init: open root: kernel and root file system are not of one release")
}

// During a trial a single damaged block ends the boot, and the kernel says why.
func (w *world) restartsOnDamage(t *testing.T) {
	w.part(t, "root_a", func(d partition.Disk) {
		_, err := d.WriteAt([]byte{0xff}, 1024)
		require.NoError(t, err)
	})
	require.Contains(t, w.start(t, w.cmdline).ended(t), "Kernel panic - not syncing: dm-verity device corrupted")
}
