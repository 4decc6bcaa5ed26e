package attacks

import (
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// most is what the process of a device may come to whatever it is handed, in MiB. The
// attacks run in the process of the test, so that its own needs are in the figure.
const most = 64

// None of the attacks gets further than the error that says so, none changes what it
// must not reach, none ends the process, and none makes it large.
func TestAttacks(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+(-[a-z0-9]+)*$`)
	theDesk() // what it takes to make releases is not what it takes to refuse them
	names, variants, peak := map[string]bool{}, 0, 0
	// As the device program runs (updater/cmd/updater).
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(24 << 20))
	measured := fromHere(t)
	for _, a := range all() {
		require.Regexp(t, form, a.Name)
		require.False(t, names[a.Name], "two cases are called %s", a.Name)
		require.NotEmpty(t, a.Input, "%s", a.Name)
		names[a.Name] = true
		t.Run(a.Name, func(t *testing.T) { variants += a.run(t) })
		if measured && peak <= most {
			peak = status(t, "VmHWM") >> 10
			assert.LessOrEqual(t, peak, most, "MiB of memory after %s", a.Name)
		}
	}
	t.Attr("attacks", strconv.Itoa(len(names)))
	t.Attr("attack-variants", strconv.Itoa(variants))
	if !measured {
		return
	}
	t.Attr("attack-peak-mib", strconv.Itoa(peak))
}

// fromHere forgets the peak of the process's memory so far.
func fromHere(t *testing.T) bool {
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Error(err)
		}
		t.Log("peak memory is not measured: ", err)
		return false
	}
	return true
}

// status reads a line of /proc/self/status, in KiB.
func status(t *testing.T, name string) int {
	data, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			require.NoError(t, err)
			return kib
		}
	}
	require.Fail(t, "no "+name)
	return 0
}

// Every threat that TUF, Uptane and SUIT name has a case, or a reason why a device can
// do nothing about it. The table is for the reader.
func TestThreats(t *testing.T) {
	cases := map[string][]string{}
	for _, a := range all() {
		for _, id := range a.Threats {
			cases[id] = append(cases[id], a.Name)
		}
	}
	covered, listed := map[string]int{}, map[string]int{}
	dashed := regexp.MustCompile(`[^a-z0-9]+`)
	var table strings.Builder
	for _, th := range threats {
		listed[th.Source]++
		found := cases[th.ID]
		delete(cases, th.ID)
		shown := th.Outside
		switch {
		case len(found) > 0:
			covered[th.Source]++
			shown = found[0]
		case th.Outside == "":
			t.Errorf("no case for %s: %s", th.ID, th.Title)
		default:
			t.Attr("threat-outside-"+dashed.ReplaceAllString(strings.ToLower(th.ID), "-"), th.ID+", "+th.Title+": "+th.Outside)
		}
		fmt.Fprintf(&table, "%-30s %3d  %s\n", th.ID, len(found), shown)
	}
	for id, names := range cases {
		t.Errorf("%s is of the threat %q, which is in no list", names[0], id)
	}
	t.Log("\n" + table.String())
	for key, source := range map[string]string{"threats-tuf": tufSource, "threats-uptane": uptaneSource, "threats-suit": suitSource} {
		t.Attr(key, fmt.Sprintf("%d of %d", covered[source], listed[source]))
	}
}
