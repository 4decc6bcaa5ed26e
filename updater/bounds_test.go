package updater

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Of a log, wherever it comes from, the end goes into the journal, and no more of it than a
// verdict may have.
func TestLogsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := newDevice(t, "1.0.0", "0.9.0").start()
		trial := bootctl.Record{Good: bootctl.A, Trying: bootctl.B, A: bootctl.OK, B: bootctl.OK}
		for n, want := range map[int]int{1: 1, journal.MaxLog: journal.MaxLog, journal.MaxLog + 1: journal.MaxLog, 1000: journal.MaxLog} {
			var lines []string
			for i := range n {
				lines = append(lines, fmt.Sprint("line ", i))
			}
			end := lines[n-want:]
			u.p.Tail = func() []string { return lines }
			require.Equal(t, end, u.lastLines(), "%d lines of this boot", n)
			// An older or newer program may have written more of them.
			require.NoError(t, u.p.Store.Put(trialLogName, []byte(strings.Join(lines, "\n"))))
			require.Equal(t, end, u.trialLog(), "%d lines of a trial", n)
			u.p.Attempts = func() ([]bootreport.Attempt, error) {
				return []bootreport.Attempt{
					{BootID: "trial", Slot: "b", Stage: bootreport.StageStarted},
					{BootID: "back", Slot: "a", Stage: bootreport.StageStarted, Pstore: strings.Join(lines, "\n")},
				}, nil
			}
			reason, _, _, log := u.why(trial, Reverted)
			require.Equal(t, transport.ReasonPanic, reason)
			require.Equal(t, end, log, "%d lines of a panic", n)
		}
	})
}

// narrow is slots with as little room for the root file system.
type narrow struct {
	Slots
	room int64
}

func (n narrow) Spare(role string) (Disk, error) {
	d, err := n.Slots.Spare(role)
	if err != nil || role != "root" {
		return d, err
	}
	return struct {
		partition.Disk
		io.Closer
	}{partition.Section(d, 0, n.room), d}, nil
}

// An image may come up to the slot record, and not into it: one that a manifest makes a
// byte too large would be written, and then spoiled by its own record.
func TestImageKeepsClearOfRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for room, want := range map[int64]error{
			rootSize + partition.RecordSize:        nil,
			rootSize + partition.RecordSize - 4096: partition.ErrOutside,
			rootSize:                               partition.ErrOutside,
		} {
			d := newDevice(t, "1.0.0", "")
			u := d.start()
			u.p.Slots = narrow{u.p.Slots, room}
			require.ErrorIs(t, d.install(u, "2.0.0", Options{}), want, "room for %d bytes", room)
		}
	})
}

// silent is a source that takes every question and has no answer.
type silent struct{ *source }

func (silent) Metadata(ctx context.Context, _ string) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// silentFleet has nothing else.
type silentFleet struct{ *source }

func (silentFleet) Wants() <-chan transport.Want      { return nil }
func (f silentFleet) Source(d manifest.Digest) Source { return silent{f.source} }

// A source that does not answer about the metadata holds up an installation, or the
// hearing of a statement, for a while only: whoever comes next waits for it.
func TestMetadataHasItsTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		begin := time.Now()
		require.ErrorIs(t, u.Install(ctx, silent{d.w.source("2.0.0")}, Options{}), context.DeadlineExceeded)
		require.Equal(t, metadataTime, time.Since(begin))

		begin = time.Now()
		desired := transport.Desired{Manifest: string(d.w.by["2.0.0"].digest), Version: "2.0.0"}
		_ = u.accept(ctx, silentFleet{d.w.source("2.0.0")}, d.w.statement(t, me, 1, desired))
		require.Equal(t, metadataTime, time.Since(begin))
		require.NoError(t, d.install(u, "2.0.0", Options{}))
	})
}

// A clock that steps back, or a count that is lost, makes no verdict that the fleet would
// have to refuse: nothing in it is less than nothing.
func TestVerdictIsNotNegative(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := newDevice(t, "1.0.0", "").start()
		v := journal.Verdict{Ended: 5}
		v.Started, v.Tries = 10, -1
		told := u.verdict(v)
		require.Zero(t, told.Duration)
		require.Zero(t, told.Tries)
		v.Started, v.Tries = 2, 1
		told = u.verdict(v)
		require.EqualValues(t, 3, told.Duration)
		require.Equal(t, 1, told.Tries)
	})
}
