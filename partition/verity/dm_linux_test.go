package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// kernel is a device mapper with room for one device, as linux/dm-ioctl.h
// describes it. It fails the n-th call if asked to.
type kernel struct {
	t       *testing.T
	name    string // of the device, "" if there is none
	table   string
	sectors uint64
	active  bool
	verdict string // status line
	calls   int
	failAt  int
}

func (k *kernel) call(command int, b []byte) error {
	if k.calls++; k.calls == k.failAt {
		return unix.EINVAL
	}
	require.EqualValues(k.t, 4, binary.NativeEndian.Uint32(b), "interface version")
	require.EqualValues(k.t, len(b), binary.NativeEndian.Uint32(b[12:]))
	require.EqualValues(k.t, 312, binary.NativeEndian.Uint32(b[16:]))
	flags := binary.NativeEndian.Uint32(b[28:])
	name := text(b[48:176])
	if command == dmCreate {
		if k.name != "" {
			return unix.EBUSY
		}
		k.name = name
		binary.NativeEndian.PutUint64(b[40:], 254<<8|3)
		return nil
	}
	if name != k.name {
		return unix.ENXIO
	}
	binary.NativeEndian.PutUint64(b[40:], 254<<8|3)
	switch command {
	case dmLoad:
		require.EqualValues(k.t, dmFlagReadOnly, flags)
		require.EqualValues(k.t, 1, binary.NativeEndian.Uint32(b[20:]))
		spec := b[312:]
		require.Zero(k.t, binary.NativeEndian.Uint64(spec), "first sector")
		require.EqualValues(k.t, len(spec), binary.NativeEndian.Uint32(spec[20:]))
		require.Zero(k.t, len(spec)%8)
		require.Equal(k.t, "verity", text(spec[24:40]))
		k.sectors, k.table = binary.NativeEndian.Uint64(spec[8:]), text(spec[40:])
	case dmSuspend:
		require.NotEmpty(k.t, k.table, "resumed without a table")
		k.active = true
	case dmStatus:
		require.GreaterOrEqual(k.t, len(b), 1024)
		line := k.verdict
		if flags&dmFlagTable != 0 {
			line = k.table
		}
		binary.NativeEndian.PutUint32(b[20:], 1)
		copy(b[312+24:], "verity")
		copy(b[312+40:], line+"\x00")
	case dmRemove:
		*k = kernel{t: k.t, calls: k.calls, failAt: k.failAt}
	}
	return nil
}

func params() Params {
	p := Params{DataBlocks: 129, Salt: []byte{0xab, 0xcd}, HashOffset: 130 * BlockSize, OnCorrupt: Restart}
	copy(p.Root[:], bytes.Repeat([]byte{0x5a}, 32))
	return p
}

// The kernel is told what verity.rst asks for, and what it tells is understood.
func TestActivateStatusRemove(t *testing.T) {
	k := &kernel{t: t, verdict: "V"}
	number, err := activate(k, "root", "8:5", params())
	require.NoError(t, err)
	require.Equal(t, "/dev/dm-3", node(number))
	require.True(t, k.active)
	require.EqualValues(t, 129*8, k.sectors)
	require.Equal(t, "1 8:5 8:5 4096 4096 129 131 sha256 "+strings.Repeat("5a", 32)+" abcd 1 restart_on_corruption", k.table)

	s, err := status(k, "root")
	require.NoError(t, err)
	require.Equal(t, State{Params: params(), Device: "/dev/dm-3", DataDevice: "8:5"}, s)
	k.verdict = "C"
	s, err = status(k, "root")
	require.NoError(t, err)
	require.True(t, s.Corrupted)

	_, err = activate(k, "root", "8:5", params())
	require.ErrorIs(t, err, ErrActive)
	require.True(t, k.active, "the device that was there is left alone")
	_, err = status(k, "other")
	require.ErrorIs(t, err, ErrNotActive)
	require.ErrorIs(t, remove(k, "other"), ErrNotActive)
	require.NoError(t, remove(k, "root"))
	_, err = status(k, "root")
	require.ErrorIs(t, err, ErrNotActive)
}

// The largest of everything that is refused above that, and the least of it, goes to the
// kernel and comes back as it was.
func TestActivateTakesLimits(t *testing.T) {
	for name, change := range map[string]func(*Params){
		"nothing beside what must be": func(p *Params) { p.Salt, p.OnCorrupt = nil, Fail },
		"one block":                   func(p *Params) { p.DataBlocks, p.HashOffset = 1, BlockSize },
		"as much as any disk":         func(p *Params) { p.DataBlocks, p.HashOffset = maxBlocks, maxBlocks*BlockSize },
		"tree as far back as can be":  func(p *Params) { p.HashOffset = (2*maxBlocks - 1) * BlockSize },
		"longest salt":                func(p *Params) { p.Salt = bytes.Repeat([]byte{7}, MaxSalt) },
	} {
		t.Run(name, func(t *testing.T) {
			p, k := params(), &kernel{t: t, verdict: "V"}
			change(&p)
			longest := strings.Repeat("x", 127)
			_, err := activate(k, longest, "8:5", p)
			require.NoError(t, err)
			require.Equal(t, longest, k.name)
			s, err := status(k, longest)
			require.NoError(t, err)
			require.Equal(t, p, s.Params)
		})
	}
}

// Whichever call fails, no half-made device is left.
func TestActivateLeavesNothingBehind(t *testing.T) {
	for n := 1; ; n++ {
		k := &kernel{t: t, failAt: n}
		_, err := activate(k, "root", "8:5", params())
		if k.calls < n {
			require.NoError(t, err)
			require.Equal(t, 4, n, "create, load, resume")
			return
		}
		require.ErrorIs(t, err, unix.EINVAL)
		require.Empty(t, k.name, "call %d", n)
	}
}

func TestActivateRefuses(t *testing.T) {
	for name, change := range map[string]func(*Params){
		"no data":               func(p *Params) { p.DataBlocks = 0 },
		"more than any disk":    func(p *Params) { p.DataBlocks, p.HashOffset = maxBlocks+1, (maxBlocks+1)*BlockSize },
		"salt too long":         func(p *Params) { p.Salt = make([]byte, 257) },
		"tree inside the data":  func(p *Params) { p.HashOffset = 128 * BlockSize },
		"tree between blocks":   func(p *Params) { p.HashOffset++ },
		"option of another day": func(p *Params) { p.OnCorrupt = "ignore_zero_blocks" },
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			change(&p)
			k := &kernel{t: t}
			_, err := activate(k, "root", "8:5", p)
			require.ErrorIs(t, err, ErrParams)
			require.Zero(t, k.calls)
		})
	}
	for _, name := range []string{"", "a/b", strings.Repeat("x", 128), "a\x00b"} {
		_, err := activate(&kernel{t: t}, name, "8:5", params())
		require.ErrorIs(t, err, ErrParams, "%q", name)
	}
}

// A table that somebody else loaded is not taken for ours.
func TestStatusRefuses(t *testing.T) {
	root := strings.Repeat("5a", 32)
	for name, line := range map[string]string{
		"nothing":                       "",
		"tree elsewhere":                "1 8:5 8:6 4096 4096 129 131 sha256 " + root + " -",
		"other block size":              "1 8:5 8:5 1024 4096 129 131 sha256 " + root + " -",
		"other version":                 "0 8:5 8:5 4096 4096 129 131 sha256 " + root + " -",
		"other hash blocks":             "1 8:5 8:5 4096 1024 129 131 sha256 " + root + " -",
		"other hash":                    "1 8:5 8:5 4096 4096 129 131 sha512 " + root + " -",
		"hash start behind all disks":   "1 8:5 8:5 4096 4096 129 562949953421313 sha256 " + root + " -", // 2^49 + 1
		"a word that is no option":      "1 8:5 8:5 4096 4096 129 131 sha256 " + root + " - ignore_corruption",
		"hash start 0":                  "1 8:5 8:5 4096 4096 129 0 sha256 " + root + " -",
		"hash start cut off":            "1 8:5 8:5 4096 4096 129 4503599627370627 sha256 " + root + " -",  // 2^52 + 131
		"hash start cut off from below": "1 8:5 8:5 4096 4096 129 -4503599627370365 sha256 " + root + " -", // 131 - 2^52
		"tree in the data":              "1 8:5 8:5 4096 4096 129 100 sha256 " + root + " -",
		"an unknown option":             "1 8:5 8:5 4096 4096 129 131 sha256 " + root + " - 1 ignore_zero_blocks",
		"two options":                   "1 8:5 8:5 4096 4096 129 131 sha256 " + root + " - 2 ignore_corruption ignore_zero_blocks",
		"root hash too short":           "1 8:5 8:5 4096 4096 129 131 sha256 5a -",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := status(&kernel{t: t, name: "root", table: line, verdict: "V"}, "root")
			require.ErrorIs(t, err, ErrParams)
		})
	}
}

// altered is a kernel whose status answers are changed on their way.
type altered struct {
	*kernel
	change func(answer []byte)
}

func (a altered) call(command int, b []byte) error {
	err := a.kernel.call(command, b)
	if err == nil && command == dmStatus {
		a.change(b)
	}
	return err
}

// An answer that is cut short, or about a device that is not one verity target, is
// an error; it is neither read past its end nor half understood.
func TestStatusRefusesAnswers(t *testing.T) {
	put := binary.NativeEndian.PutUint32
	for name, change := range map[string]func([]byte){
		"more than the buffer holds":  func(b []byte) { put(b[28:], dmFlagBufferFull) },
		"longer than the buffer":      func(b []byte) { put(b[12:], dmBuffer+1) },
		"begins behind its end":       func(b []byte) { put(b[16:], dmBuffer+1) },
		"too short for a target":      func(b []byte) { put(b[12:], dmHeader+dmTarget-1) },
		"no target":                   func(b []byte) { put(b[20:], 0) },
		"two targets":                 func(b []byte) { put(b[20:], 2) },
		"another target of this name": func(b []byte) { copy(b[dmHeader+24:], "linear\x00") },
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{t: t, verdict: "V"}
			_, err := activate(k, "root", "8:5", params())
			require.NoError(t, err)
			_, err = status(altered{k, change}, "root")
			require.ErrorIs(t, err, ErrParams)
		})
	}
}

// On a real kernel: the device shows the data, a damaged block is an I/O error
// and a status, and the partition below cannot be opened for writing meanwhile.
func TestActivateOnThisKernel(t *testing.T) {
	if _, err := os.Stat("/dev/mapper/control"); err != nil || os.Geteuid() != 0 {
		// Not a package that CI could install; the stories in tests/ boot over
		// verity in QEMU, where there always is a device mapper.
		t.Skip("needs root and a kernel with device mapper")
	}
	losetup := needTool(t, "losetup", "mount")
	data := image(t, 200)
	path := filepath.Join(t.TempDir(), "slot")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(data, 0)
	require.NoError(t, err)
	salt := []byte{1, 2, 3}
	root, _, err := Build(f, int64(len(data)), salt, uuid, f, int64(len(data)))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	out, err := exec.Command(losetup, "-f").Output()
	require.NoError(t, err)
	loop := strings.TrimSpace(string(out))
	require.NoError(t, exec.Command(losetup, loop, path).Run())
	defer func() { require.NoError(t, exec.Command(losetup, "-d", loop).Run()) }()

	const name = "tandem-verity-test"
	p := Params{DataBlocks: 200, Salt: salt, Root: root, HashOffset: int64(len(data))}
	dev, err := Activate(name, loop, p)
	require.NoError(t, err)
	removed := false
	defer func() {
		if !removed {
			require.NoError(t, Remove(name))
		}
	}()
	_, err = Activate(name, loop, p)
	require.ErrorIs(t, err, ErrActive)
	got, err := os.ReadFile(dev)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	s, err := Status(name)
	require.NoError(t, err)
	require.Equal(t, p, s.Params)
	require.Equal(t, dev, s.Device)
	require.False(t, s.Corrupted)
	if dmsetup, err := exec.LookPath("dmsetup"); err == nil {
		out, err := exec.Command(dmsetup, "table", name).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), hex.EncodeToString(root[:]))
	}
	_, err = os.OpenFile(loop, os.O_RDWR|unix.O_EXCL, 0)
	require.ErrorIs(t, err, unix.EBUSY)
	require.NoError(t, Remove(name))
	removed = true

	// Damage below, and open anew, so that no cache remembers better days.
	_, err = f.WriteAt([]byte{data[100*BlockSize] ^ 1}, 100*BlockSize)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, exec.Command(losetup, "-d", loop).Run())
	require.NoError(t, exec.Command(losetup, loop, path).Run())
	dev, err = Activate(name, loop, p)
	require.NoError(t, err)
	removed = false
	_, err = os.ReadFile(dev)
	require.ErrorIs(t, err, unix.EIO)
	s, err = Status(name)
	require.NoError(t, err)
	require.True(t, s.Corrupted)
}
