package advice_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/advice"
)

// tool runs a program of the desk, on input if there is any.
func tool(t testing.TB, input []byte, name string, args ...string) []byte {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if p, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			if os.Getenv("TANDEM_CI") != "" {
				t.Fatalf("%s is not installed", name)
			}
			t.Skipf("%s is not installed", name)
		}
	}
	cmd := exec.Command(p, args...)
	cmd.Stdin = bytes.NewReader(input)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	require.NoError(t, cmd.Run(), "%s: %s", name, bad.String())
	return out.Bytes()
}

// text is content as programs have it; version changes some of it, at places that depend on the seed.
func text(seed uint64, size, version int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var words [300][]byte
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(9))
		for k := range words[i] {
			words[i][k] = byte('!' + r.IntN(90))
		}
	}
	out := make([]byte, 0, size+16)
	for len(out) < size {
		out = append(append(out, words[r.IntN(len(words))]...), ' ')
	}
	change := rand.New(rand.NewPCG(seed, uint64(100+version)))
	for range version * size / 40000 {
		copy(out[change.IntN(size-40):], fmt.Sprintf("change %d of %x", version, change.Uint64()))
	}
	return out[:size]
}

func cpio(files map[string][]byte, names ...string) []byte {
	var b bytes.Buffer
	add := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, n := range names {
		add(n, 0o100644, files[n])
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	e, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer e.Close()
	return e.EncodeAll(b, nil)
}

// bzImage is a kernel to those who look for its payload.
func bzImage(payload []byte) []byte {
	b := make([]byte, 2048)
	le := binary.LittleEndian
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x248:], 1024)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(b, payload...)
}

// signed appends a signature as the kernel's build does.
func signed(b []byte, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 9))
	sig := make([]byte, 400)
	for i := range sig {
		sig[i] = byte(r.Uint32())
	}
	out := append(append(bytes.Clone(b), sig...), make([]byte, 8)...)
	return append(binary.BigEndian.AppendUint32(out, 400), "~Module signature appended~\n"...)
}

// system is a root file system of a version: as distributions build it, or as it is advised.
func system(t testing.TB, version int, advised bool) map[string][]byte {
	pack := func(codec string, b []byte) []byte {
		switch {
		case advised:
			return b
		case codec == "gzip":
			return gz(t, b)
		case codec == "zstd":
			return zst(t, b)
		}
		return tool(t, b, "xz", "-c", "--check=crc32")
	}
	members := map[string][]byte{"bin/sh": text(20, 400_000, version), "lib/m.ko": text(21, 200_000, version), "conf": text(22, 3000, 0)}
	initrd := pack("xz", cpio(members, "bin/sh", "conf", "lib/m.ko"))
	microcode := cpio(map[string][]byte{"kernel/x86/microcode/GenuineIntel.bin": text(23, 30_000, 0)}, "kernel/x86/microcode/GenuineIntel.bin")
	kernel := text(24, 700_000, version)
	all := map[string][]byte{
		fmt.Sprintf("boot/initrd.img-6.1.0-%d", 40+version): append(microcode, initrd...),
		fmt.Sprintf("boot/vmlinuz-6.1.0-%d", 40+version):    bzImage(pack("xz", kernel)),
		"usr/share/doc/a/changelog.gz":                      pack("gzip", text(25, 150_000, version)),
		"usr/share/doc/b/changelog.gz":                      pack("gzip", text(26, 150_000, 0)), // does not change
		"usr/lib/firmware/f.bin.zst":                        pack("zstd", text(27, 300_000, version)),
	}
	for i := range uint64(6) {
		m := text(30+i, 60_000, version)
		if advised {
			all[fmt.Sprintf("usr/lib/modules/6.1.0/m%d.ko", i)] = m
		} else {
			all[fmt.Sprintf("usr/lib/modules/6.1.0/m%d.ko", i)] = signed(m, i+100*uint64(version))
		}
		all[fmt.Sprintf("usr/bin/tool%d", i)] = text(50+i, 200_000+int(i)*7000*version, version*int(i&1))
	}
	return all
}

// asBuilt makes an image as people do who have not been advised.
func asBuilt(t testing.TB, version int) string {
	dir := t.TempDir()
	for name, b := range system(t, version, false) {
		p := filepath.Join(dir, "root", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, b, 0o644))
		when := time.Unix(1_700_000_000+int64(version)*86400, 0)
		require.NoError(t, os.Chtimes(p, when, when))
	}
	out := filepath.Join(dir, "root.img")
	tool(t, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "has_journal,metadata_csum", "-d", dir+"/root", out, "24M")
	return out
}

// asAdvised makes it as tandem image does, of content that follows the advice.
func asAdvised(t testing.TB, version int) string {
	dir := t.TempDir()
	tree := image.NewTree(dir, image.Epoch)
	for name, b := range system(t, version, true) {
		require.NoError(t, tree.AddFile(image.File{Path: "/" + name, Mode: 0o644, Data: b}))
	}
	out := filepath.Join(dir, "root.img")
	_, err := image.Root(context.Background(), tree, [16]byte{1}, out)
	require.NoError(t, err)
	return out
}

func open(t testing.TB, name string) mkdelta.Image {
	f, err := os.Open(name)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	require.NoError(t, err)
	return mkdelta.Image{ReaderAt: f, Size: info.Size()}
}

func row(t testing.TB, r advice.Report, topic string) advice.Advice {
	for _, a := range r.Advice {
		if a.Topic == topic {
			return a
		}
	}
	t.Fatalf("no advice on %s in %+v", topic, r.Advice)
	return advice.Advice{}
}

// What the check promises is what comes out when its advice is followed.
func TestFollowed(t *testing.T) {
	tmp := t.TempDir()
	o := advice.Options{Level: 2, TempDir: tmp, Date: time.Unix(1_600_000_000, 0)}
	r, err := advice.Compare(t.Context(), "root", open(t, asBuilt(t, 1)), open(t, asBuilt(t, 2)), o)
	require.NoError(t, err)
	for _, a := range r.Advice {
		t.Logf("%-16s %3d files %9d bytes: %8d -> %8d saves %8d, writes %9d  %v %s", a.Topic, a.Files, a.Bytes, a.Now, a.Then, a.Saving, a.Writes, a.Examples, a.Note)
	}

	stats, err := mkdelta.Make(t.Context(), open(t, asAdvised(t, 1)), open(t, asAdvised(t, 2)), mkdelta.Options{Level: 2, TempDir: tmp}, io.Discard)
	require.NoError(t, err)
	t.Logf("now %d, followed %d, really followed %d", r.Delta, r.Followed, stats.Size)
	require.InDelta(t, stats.Size, r.Followed, 0.1*float64(stats.Size)+4096)
	require.Less(t, r.Followed, r.Delta/2)

	now, then := int64(0), int64(0)
	for _, a := range r.Advice {
		now, then = now+a.Now, then+a.Then
		require.Equal(t, a.Now-a.Then, a.Saving)
	}
	require.InDelta(t, r.Delta, now, float64(len(r.Advice)), "the rows add up to the delta")
	require.InDelta(t, r.Followed, then, float64(len(r.Advice)))

	for _, topic := range []string{advice.TopicInitrd, advice.TopicKernel, advice.TopicSignatures} {
		a := row(t, r, topic)
		require.Positive(t, a.Saving, topic)
		require.Less(t, a.Then, a.Now/2, topic)
	}
	require.Equal(t, 6, row(t, r, advice.TopicSignatures).Files)
	require.Equal(t, 6*(400+12+28), int(row(t, r, advice.TopicSignatures).Bytes))
	require.Equal(t, 3, row(t, r, advice.TopicFiles).Files)
	require.Contains(t, row(t, r, advice.TopicMetadata).Note, "equal but for their times")
	require.Positive(t, row(t, r, advice.TopicJournal).Bytes)
	require.Contains(t, row(t, r, advice.TopicMetadata).Note, "checksums")
	row(t, r, advice.TopicIdentifiers)
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left, "temporary files were left behind")
}

// Of an image that was built as advised there is little left to say, and nothing that would pay.
func TestNothingToAdvise(t *testing.T) {
	r, err := advice.Compare(t.Context(), "root", open(t, asAdvised(t, 1)), open(t, asAdvised(t, 2)), advice.Options{Level: 2, Date: image.Epoch})
	require.NoError(t, err)
	for _, a := range r.Advice {
		require.Less(t, a.Saving, r.Delta/50+256, a.Topic)
		require.Contains(t, []string{advice.TopicMetadata, advice.TopicMoved, advice.TopicRest}, a.Topic)
	}
	require.Empty(t, r.Holds)
	require.InDelta(t, r.Delta, r.Followed, float64(r.Delta)/20+256)
}

// What a delta goes into is booked on the files that changed.
func TestBooking(t *testing.T) {
	base, err := os.ReadFile(asAdvised(t, 1))
	require.NoError(t, err)
	changed := bytes.Clone(base)
	noise := signed(nil, 77)[:400]
	at := bytes.Index(changed, text(53, 200_000+3*7000, 1)[:4096])
	require.Positive(t, at)
	for i := range 40 {
		copy(changed[at+4096*i+100:], noise[i:])
	}
	r, err := advice.Compare(t.Context(), "root", image2(base), image2(changed), advice.Options{Level: 2})
	require.NoError(t, err)
	require.Equal(t, "usr/bin/tool3", r.Largest[0].Path)
	require.Greater(t, float64(r.Largest[0].Delta), 0.9*float64(r.Delta-2000))
}

func image2(b []byte) mkdelta.Image {
	return mkdelta.Image{ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

// Without a base there is no price, and all that is to be seen is listed.
func TestCheck(t *testing.T) {
	r, err := advice.Check(t.Context(), "root", open(t, asBuilt(t, 2)), advice.Options{Date: time.Unix(1_600_000_000, 0)})
	require.NoError(t, err)
	require.False(t, r.Measured)
	require.Equal(t, "ext4", r.FileSystem)
	require.Equal(t, "none", r.Compression)
	got := map[string]int{}
	for _, s := range r.Holds {
		got[s.Kind+" "+s.Codec] = s.Files
	}
	require.Equal(t, map[string]int{"initrd xz": 1, "kernel xz": 1, "file gzip": 2, "file zstd": 1}, got)
	require.Contains(t, row(t, r, advice.TopicMetadata).Note, "younger than SOURCE_DATE_EPOCH")
	for _, a := range r.Advice {
		require.Zero(t, a.Now+a.Then+a.Saving)
		require.NotEmpty(t, a.Do)
	}
}

// A file system that compresses is advised against, with what its content costs otherwise; one that nobody
// can read, without.
func TestPackedFileSystem(t *testing.T) {
	make := func(codec string, version int) mkdelta.Image {
		dir := t.TempDir()
		for name, b := range system(t, version, true) {
			p := filepath.Join(dir, "root", name)
			require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
			require.NoError(t, os.WriteFile(p, b, 0o644))
		}
		tool(t, nil, "mksquashfs", dir+"/root", dir+"/root.img", "-comp", codec, "-quiet", "-no-progress", "-noappend", "-all-time", "0", "-mkfs-time", "0")
		return open(t, dir+"/root.img")
	}
	r, err := advice.Check(t.Context(), "root", make("xz", 1), advice.Options{})
	require.NoError(t, err)
	require.Equal(t, "squashfs", r.FileSystem)
	require.NotEmpty(t, row(t, r, advice.TopicSystem).Note)

	r, err = advice.Compare(t.Context(), "root", make("gzip", 1), make("gzip", 2), advice.Options{Level: 2})
	require.NoError(t, err)
	require.Equal(t, "gzip", r.Compression)
	a := row(t, r, advice.TopicSystem)
	require.Less(t, a.Then, a.Now/2)
	require.Positive(t, r.Grows)
	stats, err := mkdelta.Make(t.Context(), open(t, asAdvised(t, 1)), open(t, asAdvised(t, 2)), mkdelta.Options{Level: 2}, io.Discard)
	require.NoError(t, err)
	require.InDelta(t, stats.Size, r.Followed, 0.1*float64(stats.Size)+4096)
}

// An image that is anything else is looked at all the same.
func TestStrangeImages(t *testing.T) {
	for name, b := range map[string][]byte{"noise": signed(nil, 3), "zeros": make([]byte, 70_000), "a program": append([]byte("MZ"), make([]byte, 5000)...)} {
		r, err := advice.Compare(t.Context(), name, image2(b), image2(b), advice.Options{Level: 1})
		require.NoError(t, err, name)
		require.Equal(t, "none", r.FileSystem)
	}
	stop, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := advice.Check(stop, "root", open(t, asBuilt(t, 1)), advice.Options{})
	require.ErrorIs(t, err, context.Canceled)
}
