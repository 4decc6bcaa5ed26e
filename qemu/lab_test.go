package qemu

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bootSector is a disk whose first sector greets on both serial ports and then
// echoes what is typed on the first: a guest that is up in a second, for tests
// of the lab alone.
func bootSector(t *testing.T) string {
	const at = 0x7c00
	code := []byte{
		0x31, 0xc0, 0x8e, 0xd8, // ds = 0
		0xbe, 0, 0, 0xba, 0xf8, 0x03, 0xe8, 0x18, 0x00, // puts(COM1, first)
		0xbe, 0, 0, 0xba, 0xf8, 0x02, 0xe8, 0x0f, 0x00, // puts(COM2, second)
		0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf8, // wait for a byte on COM1
		0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xf1, // echo it, again
		0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, 0xc3, // puts
	}
	put := func(where int, s string) {
		addr := at + len(code)
		code[where], code[where+1] = byte(addr), byte(addr>>8)
		code = append(append(code, s...), 0)
	}
	put(5, "\x1b[2J\x1b[01;01Hready for echo\r\n")
	put(14, "noise\n\x1e"+`{"hello":1,"slot":"a","version":"0","boot_id":"x","pid":1}`+"\n")
	return bootable(t, code)
}

// bootable is a disk whose first sector is this code, at most 510 bytes.
func bootable(t *testing.T, code []byte) string {
	disk := make([]byte, 1<<20)
	copy(disk, code)
	require.LessOrEqual(t, len(code), 510)
	disk[510], disk[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "sector.img")
	require.NoError(t, os.WriteFile(path, disk, 0o644))
	return path
}

func lab(t *testing.T, cfg Config) *Device {
	t.Helper()
	if err := Check(cfg); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cfg.Dir = filepath.Join(t.TempDir(), "dev")
	d, err := New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Cut()) })
	return d
}

var ready = regexp.MustCompile(`ready for echo\n`)

// A machine talks on its console and is typed at, says hello on its command
// port, and does so again after a reset and after a power cut. Its disk keeps
// what was on it.
func TestPowerAndConsole(t *testing.T) {
	ctx := t.Context()
	d := lab(t, Config{BIOS: true, Image: bootSector(t), Memory: 64})
	for range 2 {
		require.NoError(t, d.Start(ctx))
		require.ErrorIs(t, d.Start(ctx), ErrOn)
		_, err := d.Expect(ctx, ready, time.Minute)
		require.NoError(t, err)
		h, err := d.WaitBoot(ctx, time.Minute)
		require.NoError(t, err)
		require.Equal(t, Hello{"a", "0", "x"}, h)

		require.NoError(t, d.Send("marco"))
		_, err = d.Expect(ctx, regexp.MustCompile(`marco\n`), time.Minute)
		require.NoError(t, err)

		// SeaBIOS answers a reset with one of its own.
		d.SkipEvents()
		require.NoError(t, d.Reset(ctx))
		e, err := d.WaitEvent(ctx, "RESET", time.Minute)
		require.NoError(t, err)
		require.Contains(t, string(e.Data), "host-qmp-system-reset")
		_, err = d.Expect(ctx, ready, time.Minute)
		require.NoError(t, err)

		require.NoError(t, d.Cut())
		require.NoError(t, d.Cut(), "a machine without power cannot lose it again")
		require.ErrorIs(t, d.Send("polo"), ErrOff)
		_, err = d.Expect(ctx, ready, time.Minute)
		require.ErrorIs(t, err, ErrOff)
	}
	log, err := os.ReadFile(filepath.Join(d.Dir(), "console.log"))
	require.NoError(t, err)
	require.Equal(t, 2, bytes.Count(log, []byte("power on")))
	require.Equal(t, 4, bytes.Count(log, []byte(" ready for echo\n")))
	require.NotContains(t, string(log), "\x1b")
}

// A frozen machine answers nothing and goes on where it was.
func TestFreeze(t *testing.T) {
	ctx := t.Context()
	d := lab(t, Config{BIOS: true, Image: bootSector(t), Memory: 64})
	require.NoError(t, d.Start(ctx))
	_, err := d.Expect(ctx, ready, time.Minute)
	require.NoError(t, err)
	require.NoError(t, d.Freeze(ctx))
	require.True(t, d.Status(ctx).Frozen)
	require.NoError(t, d.Send("still there"))
	require.NoError(t, d.Thaw(ctx))
	_, err = d.Expect(ctx, regexp.MustCompile(`still there\n`), time.Minute)
	require.NoError(t, err)
	require.False(t, d.Status(ctx).Frozen)
}

// The end of the context is the end of the machine.
func TestContextEndsMachine(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := lab(t, Config{BIOS: true, Image: bootSector(t), Memory: 64})
	require.NoError(t, d.Start(ctx))
	cancel()
	require.NoError(t, d.AwaitOff(t.Context(), time.Minute))
}

// The board's firmware starts with its own copy of the variables and a TPM,
// and the TPM's state is there after the power was cut.
func TestFirmwareAndTPM(t *testing.T) {
	ctx := t.Context()
	d := lab(t, Config{Image: bootSector(t), TPM: true})
	require.NoError(t, d.Start(ctx))
	// A disk without a loader; the firmware says so on the console.
	_, err := d.Expect(ctx, regexp.MustCompile(`BdsDxe: failed to load Boot`), 3*time.Minute)
	require.NoError(t, err)
	require.NoError(t, d.Cut())

	if _, err := exec.LookPath("tpm2_nvdefine"); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	// An independent tool leaves something in the TPM, and finds it again.
	_, err = d.TPM(ctx, "tpm2_nvdefine", "0x01000001", "-C", "o", "-s", "32", "-a", "ownerread|ownerwrite|authread")
	require.NoError(t, err)
	for range 2 {
		out, err := d.TPM(ctx, "tpm2_nvreadpublic", "0x01000001")
		require.NoError(t, err)
		require.Contains(t, string(out), "ownerwrite")
		require.NoError(t, d.Start(ctx))
		_, err = d.TPM(ctx, "tpm2_nvreadpublic")
		require.ErrorIs(t, err, ErrOn)
		require.NoError(t, d.Cut())
	}
	require.NoError(t, d.Start(ctx), "QEMU does not start on a TPM whose state is damaged")
	require.FileExists(t, d.tpmNVRAM())
}

// A disk that is plugged in and pulled out is seen and released; the name is
// free again afterwards.
func TestPlug(t *testing.T) {
	ctx := t.Context()
	d := lab(t, Config{BIOS: true, Image: bootSector(t), Memory: 64})
	require.NoError(t, d.Start(ctx))
	stick := filepath.Join(t.TempDir(), "stick.img")
	require.NoError(t, os.WriteFile(stick, make([]byte, 1<<20), 0o644))
	for range 2 {
		require.NoError(t, d.Plug(ctx, "s1", stick, USB))
		require.Error(t, d.Plug(ctx, "s1", stick, USB))
		require.NoError(t, d.Unplug(ctx, "s1"))
	}
}
