package tests

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// memory NAME asks the device program in the guest how much memory it has and
// had at most, and notes it in build/memory.txt under the name.
func memoryCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: memory NAME")
	}
	res, err := s.need(ts).Run(s.ctx, qemu.Command{Argv: []string{"updater", "status", "--json"}})
	ts.Check(err)
	var status struct {
		Memory struct{ RSS, Anon, Peak int64 } `json:"memory"`
	}
	ts.Check(json.Unmarshal([]byte(res.Stdout), &status))
	m := status.Memory
	if m.RSS == 0 {
		ts.Fatalf("the device program does not know its memory:\n%s%s", res.Stdout, res.Stderr)
	}
	const mib = 1 << 20
	line := fmt.Sprintf("memory, %-36s RSS %5.1f MiB (anonymous %.1f), peak %5.1f MiB\n", args[0], float64(m.RSS)/mib, float64(m.Anon)/mib, float64(m.Peak)/mib)
	ts.Logf("%s", line)
	ts.Check(note(s, line))
}

// downloaded RELEASE PERCENT asks the device what its last update moved, compares what was
// downloaded with the images of the release, and notes it in build/memory.txt.
func downloadedCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 2 {
		ts.Fatalf("usage: downloaded RELEASE PERCENT")
	}
	limit, err := strconv.ParseFloat(args[1], 64)
	ts.Check(err)
	r, err := release.Open(s.factory.Release(args[0]))
	ts.Check(err)
	defer r.Close()
	m, digest, _, err := mkrelease.Read(r)
	ts.Check(err)
	res, err := s.need(ts).Run(s.ctx, qemu.Command{Argv: []string{"updater", "status", "--json"}})
	ts.Check(err)
	var status struct {
		Last *journal.Verdict `json:"last"`
	}
	ts.Check(json.Unmarshal([]byte(res.Stdout), &status))
	if status.Last == nil || status.Last.Manifest != digest {
		ts.Fatalf("the last update was not to %s:\n%s%s", args[0], res.Stdout, res.Stderr)
	}
	var images int64
	for _, img := range m.Images {
		images += img.Size
	}
	c := status.Last.Cost
	share := 100 * float64(c.Downloaded) / float64(images)
	line := fmt.Sprintf("update to %s: downloaded %d bytes, %.2f %% of %d (at most %.2f); written %d, left alone %d\n",
		m.Version, c.Downloaded, share, images, limit, c.Written, c.Skipped)
	ts.Logf("%s", line)
	ts.Check(note(s, line))
	switch {
	case share > limit:
		ts.Fatalf("downloaded %.2f %% of the images, more than %.2f", share, limit)
	case c.Written+c.Skipped != images:
		ts.Fatalf("%d bytes written and %d left alone are not the %d of the images", c.Written, c.Skipped, images)
	}
}
