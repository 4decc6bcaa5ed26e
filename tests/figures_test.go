package tests

import (
	"encoding/json"
	"fmt"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tandem-ota/tandem/qemu"
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
