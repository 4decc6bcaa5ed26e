package grubenv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
)

var trial = Copy{Record: bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.OK, Trying: bootctl.B, Tries: 3}}

// tool skips the test, or fails it in CI, if a program is not there.
func tool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("TANDEM_CI") != "" {
		t.Fatalf("%s is missing; install grub-common dosfstools mtools", name)
	}
	t.Skipf("%s is missing; it comes with grub-common, dosfstools, mtools", name)
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
	return string(out)
}

// GRUB's own tool, given the values, makes the same bytes as Block; gzip, which
// ends its output with the CRC-32 of its input, agrees on the check word.
func TestBlockGolden(t *testing.T) {
	tool(t, "grub-editenv")
	tool(t, "gzip")
	for _, c := range states() {
		dir := t.TempDir()
		body := filepath.Join(dir, "body")
		require.NoError(t, os.WriteFile(body, []byte(c.body()), 0o600))
		zipped, err := exec.Command("gzip", "-c", body).Output()
		require.NoError(t, err)
		check := fmt.Sprintf("check=%08x", binary.LittleEndian.Uint32(zipped[len(zipped)-8:]))

		file := filepath.Join(dir, "env")
		output(t, "grub-editenv", file, "create")
		output(t, "grub-editenv", append(append([]string{file, "set"}, strings.Fields(c.body())...), check)...)
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(want), string(c.Block()))

		require.NoError(t, os.WriteFile(file, c.Block(), 0o600))
		require.Equal(t, c.body()+check+"\n", output(t, "grub-editenv", file, "list"))
	}
}

// Every copy that can exist is read as what it is; there are 72.
func TestParse(t *testing.T) {
	require.Len(t, states(), 72)
	require.Len(t, byBody, 72)
	for _, c := range states() {
		require.NoError(t, c.Record.Check())
		got, err := Parse(c.Block())
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
}

// No bit that flips, and nothing that is cut off, makes one record look like
// another.
func TestParseCorrupt(t *testing.T) {
	for _, c := range states() {
		block := c.Block()
		for bit := range SectorSize * 8 {
			block[bit/8] ^= 1 << (bit % 8)
			got, err := Parse(block)
			if err != nil {
				require.ErrorIs(t, err, ErrGarbled)
			} else {
				require.Equal(t, c, got, "bit %d", bit)
			}
			block[bit/8] ^= 1 << (bit % 8)
		}
		for n := range SectorSize {
			_, err := Parse(block[:n])
			require.ErrorIs(t, err, ErrGarbled, "%d bytes", n)
		}
	}
}

// Variables are what GRUB's load_env sets, whatever stands in the sector.
func TestVariables(t *testing.T) {
	for lines, want := range map[string]map[string]string{
		"":                          {},
		"good=a\ngood=b\n":          {"good": "b"},
		"# good=a\n#\ngood=b\n":     {"good": "b"},
		"good=a":                    {},
		"good":                      {},
		"good=a\nbad":               {"good": "a"},
		"a=x\\y\\\\z\nb=\\\n\n":     {"a": `xy\z`, "b": "\n"},
		"a=x\\":                     {},
		"go\x00od=a\x00b\nc=\x00\n": {"go": "a", "c": ""},
	} {
		block := append([]byte(signature+lines), bytes.Repeat([]byte("#"), BlockSize)...)[:BlockSize]
		if !strings.HasSuffix(lines, "\n") {
			// The sector cuts it off.
			block = append([]byte(signature+strings.Repeat("#", SectorSize-len(signature+lines)-1)+"\n"+lines), block...)
		}
		got, err := Variables(block)
		require.NoError(t, err)
		require.Equal(t, want, got, "%q", lines)
		_, err = Variables(block[:SectorSize-1])
		require.ErrorIs(t, err, ErrGarbled)
	}
}

// A sector that is part of one record and part of another, torn at any byte, is
// one of the two or garbled.
func TestParseTorn(t *testing.T) {
	all := states()
	for _, from := range all {
		for _, to := range all {
			old, now := from.Block(), to.Block()
			for n := len(signature + warning); n < len(signature+warning)+80; n++ {
				if got, err := Parse(append(bytes.Clone(now[:n]), old[n:]...)); err == nil {
					require.Contains(t, []Copy{from, to}, got, "torn at %d", n)
				}
			}
		}
	}
}

// What Parse takes is a sound record, and it survives being written again.
func FuzzParse(f *testing.F) {
	for _, c := range []Copy{trial, confirmed(bootctl.B)} {
		f.Add(c.Block())
		f.Add(bytes.Replace(c.Block(), []byte("tries="), []byte("tries=1\ntries="), 1))
		f.Add(bytes.Replace(c.Block(), []byte("good="), []byte("good\x00="), 1))
		f.Add(bytes.Replace(c.Block(), []byte("check="), []byte("a\\\nb=\\\\\ncheck="), 1))
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		c, err := Parse(block)
		if err != nil {
			require.ErrorIs(t, err, ErrGarbled)
			return
		}
		require.NoError(t, c.Record.Check())
		again, err := Parse(c.Block())
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}

// Tools that know nothing of Tandem find a sound file system and the copies in
// it as files.
func TestImageIsFAT(t *testing.T) {
	tool(t, "fsck.vfat")
	tool(t, "mcopy")
	dir := t.TempDir()
	file := filepath.Join(dir, "env")
	image := Image(trial.Record)
	require.Len(t, image, Size)
	require.NoError(t, os.WriteFile(file, image, 0o600))
	output(t, "fsck.vfat", "-n", file)
	for name, part := range map[string][]byte{
		"copy0.env":   image[Copy0Offset:][:SectorSize],
		"copy1.env":   image[Copy1Offset:][:SectorSize],
		"confirm.env": image[ConfirmedOffset:][:SectorSize],
		"ledger.bin":  image[LedgerOffset:][:LedgerSize],
	} {
		out := filepath.Join(dir, name)
		output(t, "mcopy", "-i", file, "::"+name, out)
		got, err := os.ReadFile(out)
		require.NoError(t, err)
		require.True(t, bytes.Equal(part, got), name)
	}
}

// FORMAT.md shows a copy; it is a real one.
func TestFormatExample(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	require.NoError(t, err)
	body := trial.body()
	for _, line := range strings.Fields(body + "check=" + checkWord(body)) {
		require.Contains(t, string(text), "    "+line+"\n")
	}
}

// GRUB's parser accepts the script for every kind of board; boottest runs it.
func TestConfig(t *testing.T) {
	tool(t, "grub-script-check")
	for _, p := range []Params{
		{Env: 2, BootA: 3, BootB: 4, Serial: 0, Watchdog: "i6300esb", WatchdogSeconds: 60},
		{Env: 12, BootA: 7, BootB: 128, Serial: -1},
		{Env: 1, BootA: 2, BootB: 3, Serial: 3, Watchdog: "i6300esb", WatchdogSeconds: 1},
		{Env: 2, BootA: 1, BootB: 3, Serial: -1, Watchdog: "i6300esb", WatchdogSeconds: 2046},
		{Env: 3, BootA: 2, BootB: 1, Serial: -1},
	} {
		script, err := Config(p)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "grub.cfg")
		require.NoError(t, os.WriteFile(file, []byte(script), 0o600))
		output(t, "grub-script-check", file)
		require.NotRegexp(t, "@[A-Z_0-9]+@", script)
		require.Contains(t, script, fmt.Sprintf("env=$disk,gpt%d\n", p.Env))
		require.Equal(t, p.Serial >= 0, strings.Contains(script, "terminal_output serial"))
		require.Equal(t, p.Watchdog != "", strings.Contains(script, "setpci"))
		for _, module := range []string{"setpci", "memrw"} {
			require.Equal(t, p.Watchdog != "", strings.Contains(strings.Join(Modules(p), " "), module))
		}
	}
}

// Data that would make a script which cannot work is refused, by name.
func TestConfigRefuses(t *testing.T) {
	good := Params{Env: 2, BootA: 3, BootB: 4}
	for _, tt := range []struct {
		state string
		spoil func(*Params)
		want  string
	}{
		{"no environment partition", func(p *Params) { p.Env = 0 }, "partition numbers 0, 3, 4"},
		{"no boot partition of slot a", func(p *Params) { p.BootA = 0 }, "partition numbers 2, 0, 4"},
		{"no boot partition of slot b", func(p *Params) { p.BootB = -1 }, "partition numbers 2, 3, -1"},
		{"one boot partition for both slots", func(p *Params) { p.BootB = 3 }, "named twice"},
		{"serial unit that PCs do not have", func(p *Params) { p.Serial = 4 }, "serial unit 4"},
		{"unknown watchdog", func(p *Params) { p.Watchdog = "dog" }, `watchdog "dog"`},
		{"watchdog without a timeout", func(p *Params) { p.Watchdog = "i6300esb" }, "watchdog 0 s"},
		{"longer than the watchdog counts", func(p *Params) { p.Watchdog, p.WatchdogSeconds = "i6300esb", 2047 }, "watchdog 2047 s"},
	} {
		t.Run(tt.state, func(t *testing.T) {
			p := good
			tt.spoil(&p)
			_, err := Config(p)
			require.ErrorIs(t, err, ErrParams)
			require.ErrorContains(t, err, tt.want)
		})
	}
}
