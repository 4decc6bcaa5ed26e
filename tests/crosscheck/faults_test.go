package crosscheck

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/tests/workbench"
)

// victim is a device, on which an installation goes wrong again and again: from 1.0.0 in
// slot a, over 0.9.0 in slot b.
type victim struct {
	*workbench.Bench
	goods  *workbench.Goods
	before workbench.Disk
}

func newVictim(t *testing.T, g *workbench.Goods) *victim {
	t.Helper()
	v := &victim{goods: g, before: g.Factory(t, "1.0.0", "0.9.0")}
	v.Bench = g.New(t, v.before, "1.0.0")
	return v
}

const target = "3.0.0"

var install = []string{"install", "-hold", "-full", "/media/" + target}

// reset makes the device what it was.
func (v *victim) reset() {
	v.Put(v.before)
	v.ForgetData()
}

// unhurt requires what holds after whatever went wrong: the running slot and the
// confirmed copy of the boot record are as they were, slot a is the good one, and what
// the next power-on boots is whole and signed.
func (v *victim) unhurt(t *testing.T, res workbench.Result, what string) {
	t.Helper()
	now := v.Disk()
	for _, label := range []string{"boot_a", "root_a"} {
		require.True(t, bytes.Equal(v.before[label], now[label]), "%s: %s changed\n%s", what, label, res.Output)
	}
	// Of the environment only the first sectors of its two copies may be others.
	was, is := bytes.Clone(v.before["env"]), bytes.Clone(now["env"])
	for _, at := range []int{grubenv.Copy0Offset, grubenv.Copy1Offset} {
		clear(was[at : at+grubenv.SectorSize])
		clear(is[at : at+grubenv.SectorSize])
	}
	require.True(t, bytes.Equal(was, is), "%s: the environment changed elsewhere than in its two copies\n%s", what, res.Output)
	record, err := grubenv.Open(disktest.New(now["env"])).Load()
	require.NoError(t, err, "%s\n%s", what, res.Output)
	require.Equal(t, bootctl.A, record.Good, "%s\n%s", what, res.Output)
	require.Equal(t, bootctl.A, record.Confirmed, "%s\n%s", what, res.Output)
	did, version, err := v.goods.Boots(now)
	require.NoError(t, err, "%s\n%s", what, res.Output)
	if did.Trial {
		require.Equal(t, target, version, "%s", what)
	}
	if res.Code == 0 {
		require.True(t, did.Trial, "%s: done, it says, and no trial begins\n%s", what, res.Output)
	}
	require.NotContains(t, res.Output, "goroutine ", "%s: a crash of the program", what)
}

// recovers requires that the same installation succeeds when nothing fails, and that
// verify finds both slots whole.
func (v *victim) recovers(t *testing.T, what string) {
	t.Helper()
	res := v.Run(install...)
	require.Zero(t, res.Code, "%s, then:\n%s", what, res.Output)
	v.unhurt(t, res, what)
	res = v.Run("verify")
	require.Zero(t, res.Code, "%s, then:\n%s", what, res.Output)
}

// wrong is one way in which system calls go wrong.
type wrong struct {
	calls  string   // strace's set
	how    string   // and what it injects
	files  []string // of the device, to which they must be made; nil: whatever to
	sample []int    // the n-th of each thread; in LONG mode all
}

// A system call of the device program fails, or the program is killed (SIGKILL, as by
// the kernel when memory is short) as it makes one, whichever it is. It ends with a code
// that its manual has, or dead; the running slot is untouched, whatever boots is whole,
// and the same command then does what it was asked for.
//
// strace counts the calls of each thread apart, and Go moves between threads as it
// likes. So it is counted which of all calls were really hit.
func TestStrace(t *testing.T) {
	need(t, "strace", "strace")
	g := theGoods(t)
	v := newVictim(t, g)
	faults, kills := 0, 0
	for _, w := range []wrong{
		{"fsync", "error=EIO", nil, []int{1, 6, 12, 18}},
		{"pwrite64", "error=EIO", nil, []int{1, 40}},
		{"pwrite64", "error=ENOSPC", nil, []int{2, 80}},
		{"write,renameat", "error=ENOSPC", []string{"/data/tandem/.journal.new", "/data/tandem/tuf/.targets.json.new"}, []int{1, 3, 9}},
		{"pwrite64,write,fsync,renameat", "signal=SIGKILL", nil, []int{1, 8, 16, 30, 60, 90, 120, 140}},
	} {
		t.Run(w.calls+" "+w.how, func(t *testing.T) {
			hit := map[int]bool{}
			n, rounds := 0, 1
			for i := 0; long || i < len(w.sample); i++ {
				if n++; !long {
					n = w.sample[i]
				}
				v.reset()
				at, res := v.traced(t, w, n)
				what := fmt.Sprintf("%s of the %dth %s", w.how, n, w.calls)
				if at == 0 {
					// No thread has made so many. Other threads make them the next time.
					if n = 0; rounds == 3 {
						break
					}
					rounds++
					continue
				}
				hit[at] = true
				if res.Signal == 0 {
					require.Contains(t, []int{0, 1, 3}, res.Code, "%s\n%s", what, res.Output)
					faults++
				} else {
					require.Equal(t, syscall.SIGKILL, res.Signal, "%s\n%s", what, res.Output)
					kills++
				}
				v.unhurt(t, res, what)
				v.recovers(t, what)
			}
			require.NotEmpty(t, hit)
			t.Logf("%d different calls hit, the last is number %d", len(hit), slices.Max(slices.Collect(maps.Keys(hit))))
		})
	}
	t.Attr("strace-faults", fmt.Sprint(faults))
	t.Attr("process-kills", fmt.Sprint(kills))
}

// traced runs the installation under strace, and says which call was hit, counted over
// all threads; 0 if none was.
func (v *victim) traced(t *testing.T, w wrong, n int) (at int, res workbench.Result) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "strace")
	strace := []string{"strace", "-f", "-o", log, "-e", "trace=" + w.calls, "-e", fmt.Sprintf("inject=%s:%s:when=%d", w.calls, w.how, n)}
	for _, file := range w.files {
		// As the program names it, and as the kernel does.
		strace = append(strace, "-P", file, "-P", filepath.Join(v.Dir, file))
	}
	res = v.Under(strace, install...)
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	calls := regexp.MustCompile(`^\d+ +(` + strings.ReplaceAll(w.calls, ",", "|") + `)\(`)
	count := 0
	for line := range strings.Lines(string(text)) {
		if calls.MatchString(line) {
			count++
		}
		if strings.Contains(line, "(INJECTED)") && at == 0 {
			at = count
		}
	}
	if res.Signal != 0 {
		at = count
	}
	return at, res
}
