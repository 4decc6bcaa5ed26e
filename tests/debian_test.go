package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/qemu/debian"
	"github.com/tandem-ota/tandem/tests/factory"
	"github.com/tandem-ota/tandem/updater/journal"
)

// debianFactory is made when the first story asks for it.
var debianFactory = sync.OnceValues(func() (*factory.Factory, error) {
	root, err := filepath.Abs("..")
	if err != nil {
		return nil, err
	}
	return factory.OpenDebian(context.Background(), root, os.Stderr)
})

// Stories that are too long for every change, of which there are few: those in
// long/, with the variable TANDEM_LONG set.
func TestLong(t *testing.T) {
	if os.Getenv("TANDEM_LONG") == "" {
		t.Skip("takes a quarter of an hour; set TANDEM_LONG=1")
	}
	for _, err := range []error{qemu.Check(qemu.Config{}), oracles(), debian.Check()} {
		if err != nil {
			unavailable(t, err)
		}
	}
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	f, err := debianFactory()
	require.NoError(t, err)
	testscript.Run(t, testscript.Params{
		Dir:                "long",
		Setup:              func(env *testscript.Env) error { return setUp(env, f, root) },
		Cmds:               commands,
		RequireUniqueNames: true,
	})
}

// system debian makes the story one of the system `debian`; it comes before
// everything else. The releases are "one", "two" and "hang".
func systemCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 || args[0] != "debian" || s.device != nil {
		ts.Fatalf("usage: system debian, before device new")
	}
	f, err := debianFactory()
	ts.Check(err)
	s.factory = f
	trust := ts.Getenv("TRUST")
	ts.Check(os.RemoveAll(trust))
	ts.Check(os.CopyFS(trust, os.DirFS(f.Trust())))
}

// installed LIMIT prints what the last installation cost and how much memory the
// device program had at most while it lasted, and notes it for `make size`. More than
// LIMIT MiB of memory is a failure.
func installedCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: installed LIMIT")
	}
	limit, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	res, err := s.need(ts).Run(s.ctx, qemu.Command{Argv: []string{"updater", "status", "--json"}})
	ts.Check(err)
	var status struct {
		Last *journal.Verdict `json:"last"`
	}
	ts.Check(json.Unmarshal([]byte(res.Stdout), &status))
	if status.Last == nil {
		ts.Fatalf("nothing was installed yet:\n%s%s", res.Stdout, res.Stderr)
	}
	// By the unit of the lab: "VmHWM:     12345 kB".
	res, err = s.need(ts).Run(s.ctx, qemu.Command{Argv: []string{"cat", "/data/updater-peak"}})
	ts.Check(err)
	fields := strings.Fields(res.Stdout)
	if len(fields) != 3 {
		ts.Fatalf("/data/updater-peak holds %q", res.Stdout)
	}
	kib, err := strconv.ParseFloat(fields[1], 64)
	ts.Check(err)
	const mib = 1 << 20
	c := status.Last.Cost
	line := fmt.Sprintf("install, %s %s: downloaded %.1f MiB, written %.1f, left alone %.1f, read %.1f; peak RSS %.1f MiB (at most %.0f)\n",
		filepath.Base(s.logs), status.Last.Version, float64(c.Downloaded)/mib, float64(c.Written)/mib, float64(c.Skipped)/mib, float64(c.Read)/mib, kib/1024, limit)
	io.WriteString(ts.Stdout(), line)
	ts.Logf("%s", line)
	ts.Check(note(s, line))
	if kib/1024 > limit {
		ts.Fatalf("the device program had %.1f MiB of memory, more than %.0f", kib/1024, limit)
	}
}

// note adds a line to build/memory.txt, which `make size` prints.
func note(s *story, line string) error {
	f, err := os.OpenFile(filepath.Join(s.logs, "..", "..", "memory.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line)
	return err
}

// moment NAME LOW HIGH sets NAME to a random whole number from LOW up to HIGH, and
// says which: a story that fails can be played again with it.
func momentCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: moment NAME LOW HIGH")
	}
	low, err := strconv.Atoi(args[1])
	ts.Check(err)
	high, err := strconv.Atoi(args[2])
	ts.Check(err)
	value := strconv.Itoa(low + rand.IntN(high-low+1))
	ts.Setenv(args[0], value)
	ts.Logf("%s=%s", args[0], value)
}
