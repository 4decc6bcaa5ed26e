package bootreport

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The report reads back as it was written, and the words in the file are the
// documented ones: programs in other languages read it too.
func TestBootReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tandem", "boot.json")
	want := Boot{
		Slot: "b", Manifest: "sha256:00", Version: "1.2.3", Verity: "ff",
		Watchdog: &Watchdog{Identity: "i6300ESB timer", ArmedBy: "loader", BootStatus: CardReset, TimeoutS: 60, FD: 3},
		Measured: &Measured{PCR: 14, Digest: "aa"},
		Data:     DataMounted, Pstore: "Kernel panic", BootID: "id", Problems: []string{"one"},
	}
	require.NoError(t, WriteBoot(path, want))
	got, err := ReadBoot(path)
	require.NoError(t, err)
	require.Equal(t, want, got)

	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.JSONEq(t, `{"slot":"b","manifest":"sha256:00","version":"1.2.3","verity":"ff",
		"watchdog":{"identity":"i6300ESB timer","armed_by":"loader","bootstatus":32,"timeout_s":60,"fd":3},
		"measured":{"pcr":14,"digest":"aa"},"data":"mounted","pstore":"Kernel panic","boot_id":"id","problems":["one"]}`, string(text))
}

// What is no report is refused, whatever its size.
func TestReadBootRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.json")
	_, err := ReadBoot(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	for name, text := range map[string]string{
		"empty":     "",
		"torn":      `{"slot":"a"`,
		"too large": `{"slot":"a","version":"` + strings.Repeat("x", maxBoot) + `"}`,
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		_, err := ReadBoot(path)
		require.Error(t, err, name)
	}

	largest := `{"slot":"a"` + strings.Repeat(" ", maxBoot-len(`{"slot":"a"}`)) + "}"
	require.NoError(t, os.WriteFile(path, []byte(largest), 0o644))
	_, err = ReadBoot(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(largest+" "), 0o644))
	_, err = ReadBoot(path)
	require.ErrorContains(t, err, "more than")
}

// Of a report without an end no more is read than a report may have.
func TestReadBootEndless(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.json")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	const all = 16 << 20
	taken := make(chan int)
	go func() {
		n := 0
		defer func() { taken <- n }()
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return
		}
		defer w.Close()
		for n < all && err == nil {
			var some int
			some, err = w.Write(make([]byte, 4096))
			n += some
		}
	}()
	_, err := ReadBoot(path)
	require.Error(t, err)
	require.Less(t, <-taken, all, "it was read to its end")
}

// However often a device boots, the file stays bounded and the newest events
// are in it, in order.
func TestAttemptsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tandem", "attempts")
	n := 0
	for ; n < 200; n++ {
		require.NoError(t, Append(path, Attempt{BootID: fmt.Sprint(n), Slot: "a", Stage: StageStarted, Pstore: strings.Repeat("\x00p", 3000)}))
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(MaxSize))
	}
	all, err := Attempts(path)
	require.NoError(t, err)
	require.NotEmpty(t, all)
	for i, a := range all {
		require.Equal(t, fmt.Sprint(n-len(all)+i), a.BootID)
	}
}

// A power cut can end the file anywhere. Whole lines stay readable, the torn
// one is not taken for an event, and the next boot can write.
func TestAttemptsTorn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "attempts")
	require.NoError(t, Append(path, Attempt{BootID: "1", Slot: "a", Stage: StageStarted}))
	first, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, Append(path, Attempt{BootID: "2", Slot: "b", Stage: StageFailed, Cause: "x"}))
	both, err := os.ReadFile(path)
	require.NoError(t, err)

	for cut := len(first); cut < len(both); cut++ {
		require.NoError(t, os.WriteFile(path, both[:cut], 0o644))
		require.NoError(t, Append(path, Attempt{BootID: "3", Slot: "a", Stage: StageStarted}))
		all, err := Attempts(path)
		require.NoError(t, err)
		// Only the line feed is missing in the last round: the event itself
		// is whole and its sum proves it.
		want := []string{"1", "3"}
		if cut == len(both)-1 {
			want = []string{"1", "2", "3"}
		}
		require.Equal(t, want, ids(all), "cut after %d bytes", cut)
	}
}

// No flipped bit passes for an event.
func TestAttemptsDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts")
	require.NoError(t, Append(path, Attempt{BootID: "1", Slot: "a", Stage: StageFailed, Cause: "because"}))
	log, err := os.ReadFile(path)
	require.NoError(t, err)
	want := parse(log)
	require.Len(t, want, 1)
	for bit := range len(log) * 8 {
		damaged := append([]byte(nil), log...)
		damaged[bit/8] ^= 1 << (bit % 8)
		for _, a := range parse(damaged) {
			// Capital digits in the sum spell the same number.
			require.Equal(t, want[0], a, "bit %d", bit)
		}
	}
}

func ids(all []Attempt) (ids []string) {
	for _, a := range all {
		ids = append(ids, a.BootID)
	}
	return ids
}

// Whatever ended the trial, the surviving slot names it.
func TestExplain(t *testing.T) {
	const old, trial = "sha256:01", "sha256:02"
	good := Attempt{BootID: "good", Slot: "a", Stage: StageStarted}
	started := func(id string) Attempt { return Attempt{BootID: id, Slot: "b", Stage: StageStarted} }
	switched := func(id string) Attempt {
		return Attempt{BootID: id, Slot: "b", Stage: StageSwitched, Manifest: trial}
	}
	back := func(status int, pstore string) Attempt {
		return Attempt{BootID: "back", Slot: "a", Stage: StageStarted, BootStatus: status, Pstore: pstore}
	}
	for _, c := range []struct {
		world string
		log   []Attempt
		want  End
	}{
		{"user space hung and the watchdog fired",
			[]Attempt{good, started("1"), switched("1"), back(CardReset, "")}, End{EndWatchdog, "", 1}},
		{"it hung twice, three tries were not needed",
			[]Attempt{good, started("1"), switched("1"), started("2"), switched("2"), back(CardReset, "")}, End{EndWatchdog, "", 2}},
		{"the kernel hung before the first program",
			[]Attempt{good, back(CardReset, "")}, End{EndWatchdog, "", 0}},
		{"the kernel panicked",
			[]Attempt{good, started("1"), switched("1"), back(0, "Oops")}, End{EndPanic, "Oops", 1}},
		{"the panic hung and the watchdog ended it",
			[]Attempt{good, started("1"), back(CardReset, "Oops")}, End{EndPanic, "Oops", 1}},
		{"the slot record was not signed",
			[]Attempt{good, started("1"), {BootID: "1", Slot: "b", Stage: StageFailed, Cause: "signature"}, back(0, "")}, End{EndFailed, "signature", 1}},
		{"a health check failed and the agent rebooted",
			[]Attempt{good, started("1"), switched("1"), {BootID: "1", Slot: "b", Manifest: trial, Stage: StageClean, Cause: "health: web"}, back(0, "")}, End{EndClean, "health: web", 1}},
		{"somebody pulled the plug",
			[]Attempt{good, started("1"), switched("1"), back(0, "")}, End{EndReset, "", 1}},
		{"an older release in the same slot does not count",
			[]Attempt{started("0"), {BootID: "0", Slot: "b", Stage: StageSwitched, Manifest: old}, good, started("1"), switched("1"), back(CardReset, "")}, End{EndWatchdog, "", 1}},
		{"the device booted once more since",
			[]Attempt{started("1"), back(CardReset, ""), {BootID: "later", Slot: "a", Stage: StageStarted}}, End{EndWatchdog, "", 1}},
		{"the boot after it could not write at first, and then hung itself",
			[]Attempt{good, started("1"), {BootID: "back", Slot: "a", Stage: StageSwitched, Manifest: old}, {BootID: "later", Slot: "a", Stage: StageStarted, BootStatus: CardReset}}, End{EndReset, "", 1}},
		{"nothing is on record", nil, End{EndReset, "", 0}},
	} {
		require.Equal(t, c.want, Explain(c.log, "b", trial), c.world)
	}
}

// Whatever is in the file, with right sums or wrong ones: reading it neither panics nor
// invents an event, and an end is found for whatever boot it speaks of.
func FuzzParse(f *testing.F) {
	path := filepath.Join(f.TempDir(), "attempts")
	_ = Append(path, Attempt{BootID: "1", Slot: "a", Stage: StageStarted})
	log, _ := os.ReadFile(path)
	f.Add(log)
	f.Add([]byte("00000000 {}\n"))
	f.Add([]byte(`{"boot_id":"1","slot":"b","stage":"started"}` + "\n" +
		`{"boot_id":"1","slot":"b","manifest":"m","stage":"switched"}` + "\n" + `{"boot_id":"2","slot":"a","stage":"started","bootstatus":32}` + "\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		parse(log)
		var sealed []byte
		lines := 0
		for line := range bytes.Lines(log) {
			line = bytes.TrimSuffix(line, []byte("\n"))
			sealed = fmt.Appendf(sealed, "%08x %s\n", crc32.Checksum(line, castagnoli), line)
			lines++
		}
		all := parse(sealed)
		require.LessOrEqual(t, len(all), lines)
		for _, a := range all {
			Explain(all, a.Slot, a.Manifest)
		}
	})
}
