package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/tpm"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// A configuration that does not say exactly what the program understands is refused:
// what is skipped on the desk shows on a thousand devices.
func TestReadConfigRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.json")
	read := func(text string) error {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := readConfig(path)
		return err
	}
	require.NoError(t, read(`{"board":"qemu-x86_64","product":"gateway"}`+"\n"))
	for name, text := range map[string]string{
		"nothing":                    ``,
		"no object":                  `[]`,
		"a key that is not known":    `{"board":"b","product":"p","memory_mb":24}`,
		"a second object":            `{"board":"b","product":"p"}{"board":"c"}`,
		"bytes behind the end":       `{"board":"b","product":"p"} x`,
		"no end":                     `{"board":"b","product":"p"`,
		"no board":                   `{"product":"p"}`,
		"no product":                 `{"board":"b"}`,
		"a number for a word":        `{"board":5,"product":"p"}`,
		"a word for a number":        `{"board":"b","product":"p","memory_mib":"24"}`,
		"a watchdog of nobody":       `{"board":"b","product":"p","watchdog":"cat"}`,
		"no memory":                  `{"board":"b","product":"p","memory_mib":0}`,
		"negative memory":            `{"board":"b","product":"p","memory_mib":-1}`,
		"memory that wraps in bytes": `{"board":"b","product":"p","memory_mib":17592186044416}`,
		"memory over 64 bits":        `{"board":"b","product":"p","memory_mib":18446744073709551616}`,
		"a fraction":                 `{"board":"b","product":"p","memory_mib":1.5}`,
		"checkpoints too far apart":  `{"board":"b","product":"p","checkpoint_mib":65}`,
		"no attempt":                 `{"board":"b","product":"p","max_attempts":0}`,
		"nested for ever":            `{"board":` + strings.Repeat(`[`, 60_000),
		"longer than it may be":      `{"board":"` + strings.Repeat("b", 64<<10) + `","product":"p"}`,
	} {
		require.Error(t, read(text), name)
	}
	for name, most := range map[string]int{"memory_mib": 1024, "checkpoint_mib": 64, "max_attempts": 0} {
		with := func(n int) error { return read(fmt.Sprintf(`{"board":"b","product":"p",%q:%d}`, name, n)) }
		require.NoError(t, with(1), name)
		require.ErrorContains(t, with(0), "out of bounds", name)
		if most > 0 {
			require.NoError(t, with(most), name)
			require.ErrorContains(t, with(most+1), "out of bounds", name)
		}
	}
	padded := `{"board":"b","product":"p"}`
	padded += strings.Repeat(" ", maxConfig-len(padded))
	require.NoError(t, read(padded))
	require.Error(t, read(padded+" "))
}

// A file of any length costs no more memory than a configuration takes: what is behind that
// is not read.
func TestReadConfigBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.json")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	wrote := make(chan int)
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		n := 0
		for err == nil && n < 16<<20 {
			var k int
			k, err = f.Write(make([]byte, 4096))
			n += k
		}
		f.Close()
		wrote <- n
	}()
	_, err := readConfig(path)
	require.Error(t, err)
	require.Less(t, <-wrote, 1<<20) // some are in the pipe
}

// A system of another product than the device does not get a core.
func TestProductSuits(t *testing.T) {
	c := config{Product: "gateway"}
	require.NoError(t, c.suits(manifest.Manifest{Product: "gateway"}))
	require.ErrorContains(t, c.suits(manifest.Manifest{Product: "pump"}), "product is pump in the running slot's manifest, and gateway")
	require.Error(t, c.suits(manifest.Manifest{}))
}

// One at a time may install; who comes second is told so, and not something else, and may
// when the first is done.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(path)
	require.NoError(t, err)
	for range 2 {
		_, err = lockFile(path)
		require.ErrorIs(t, err, updater.ErrBusy)
	}
	unlock()
	unlock, err = lockFile(path)
	require.NoError(t, err)
	unlock()
	_, err = lockFile(filepath.Join(path, "no-folder"))
	require.Error(t, err)
	require.NotErrorIs(t, err, updater.ErrBusy)
}

// brokenTPM is a TPM that counts what it is asked and answers nothing.
type brokenTPM struct{ asked int }

func (b *brokenTPM) Send([]byte) ([]byte, error) { b.asked++; return nil, errors.New("no answer") }

// What the TPM said is good for two seconds, so that nobody keeps it busy by asking; an
// install makes it old at once.
func TestTPMAskedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &brokenTPM{}
		d := &device{parts: &boards.Parts{}, tpm: tpm.New(b)}
		d.ledger = d.tpm.Ledger(tpm.LedgerOptions{})
		asked := func() int {
			before := b.asked
			require.NotEmpty(t, d.tpmStatus().Missing)
			return b.asked - before
		}
		require.Positive(t, asked())
		require.Zero(t, asked())
		time.Sleep(tpmFresh)
		require.Zero(t, asked())
		time.Sleep(1)
		require.Positive(t, asked())
		require.Zero(t, asked())
		require.Error(t, ledger{d}.Install(strings.Repeat("ab", 16), [32]byte{}))
		require.Positive(t, asked())
	})
}

// Only a whole id of an attempt gets to the ledger, and only a whole digest is what should
// have been measured.
func TestIDsAreWhole(t *testing.T) {
	b := &brokenTPM{}
	d := &device{parts: &boards.Parts{}, tpm: tpm.New(b)}
	d.ledger = d.tpm.Ledger(tpm.LedgerOptions{})
	for id, whole := range map[string]bool{
		"": false, "ab": false, strings.Repeat("ab", 15): false, strings.Repeat("ab", 16): true,
		strings.Repeat("ab", 17): false, strings.Repeat("ab", 15) + "a": false, strings.Repeat("xy", 16): false,
	} {
		before := b.asked
		err := ledger{d}.Install(id, [32]byte{})
		require.Error(t, err)
		require.Equal(t, !whole, strings.Contains(err.Error(), "is no id"), "%q: %v", id, err)
		require.Equal(t, whole, b.asked > before, "%q", id)
	}
	for _, digest := range []string{"", "ab", strings.Repeat("ab", 31), strings.Repeat("ab", 32), strings.Repeat("ab", 33), strings.Repeat("xy", 32)} {
		d.boot.Measured = &bootreport.Measured{PCR: 14, Digest: digest}
		require.Nil(t, d.askTPM().Register, "%q", digest)
	}
}
