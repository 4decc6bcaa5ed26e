package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/disktest"
)

func blank(entries int) *disktest.Disk { return disktest.New(make([]byte, entries*entrySize)) }

// chip is an NV index that remembers when it was extended, in completed disk
// operations, so that a power cut can be put on either side of each extend.
// Around each extend it syncs a disk of its own, or the cut in the disk operation that
// follows would seem to allow that the extend has not happened.
type chip struct {
	bench *disktest.Bench
	mark  *disktest.Disk
	past  []extension
	err   error // what the next extend returns
	lie   bool  // and whether it extends all the same
}

type extension struct {
	value Digest
	ops   int
}

func (c *chip) value() (Digest, error) {
	if len(c.past) == 0 {
		return Digest{}, nil
	}
	return c.past[len(c.past)-1].value, nil
}

func (c *chip) extend(data Digest) error {
	if err := c.err; err != nil {
		c.err = nil
		if !c.lie {
			return err
		}
		defer func() { c.err = nil }()
	}
	v, _ := c.value()
	ops := 0
	if c.bench != nil {
		if err := c.mark.Sync(); err != nil {
			return err
		}
		defer c.mark.Sync()
		ops = c.bench.Ops()
	}
	c.past = append(c.past, extension{Extended(v, data), ops})
	return nil
}

// after returns the states in which a cut after ops completed operations can
// have left the chip.
func (c *chip) after(ops int) (states [][]extension) {
	n := 0
	for n < len(c.past) && c.past[n].ops < ops {
		n++
	}
	states = append(states, c.past[:n])
	for n < len(c.past) && c.past[n].ops == ops {
		n++
		states = append(states, c.past[:n])
	}
	return states
}

func ledger(c *chip, logs ...*disktest.Disk) *Ledger {
	l := &Ledger{nv: c, now: func() time.Time { return time.Unix(1, 0) }}
	for _, d := range logs {
		l.logs = append(l.logs, d)
	}
	return l
}

func installs(n int) (digests []Digest, value []Digest) {
	value = []Digest{{}}
	for i := range n {
		digests = append(digests, Digest{byte(i + 1)})
		value = append(value, Extended(value[i], digests[i]))
	}
	return digests, value
}

func install(i int) [16]byte { return [16]byte{byte(i + 1)} }

// The power may fail at any moment of any install, and of the recovery after
// it. Afterwards the ledger agrees, and when all installs have been repeated
// from where they were, each is in it exactly once. The log is a ring of two to
// four entries here, so old entries are overwritten on the way.
func TestLedgerPowerCut(t *testing.T) {
	const count = 5
	digests, values := installs(count)
	for _, sizes := range [][2]int{{4, 4}, {2, 3}} {
		bench := disktest.NewBench()
		logs := []*disktest.Disk{
			bench.Disk(make([]byte, sizes[0]*entrySize)), bench.Disk(make([]byte, sizes[1]*entrySize)),
			bench.Disk(make([]byte, disktest.Sector)),
		}
		c := &chip{bench: bench, mark: logs[2]}
		l := ledger(c, logs[:2]...)
		promised := make([]int, count) // operations completed when install i was entered
		for i, d := range digests {
			require.NoError(t, l.Add(d, install(i)))
			promised[i] = bench.Ops()
		}
		for crash := range bench.Crashes(disktest.Bounds{}) {
			sure := 0
			for sure < count && promised[sure] <= crash.Cut {
				sure++
			}
			for _, past := range c.after(crash.Cut) {
				what := fmt.Sprintf("%v, %d extends", crash, len(past))
				finish(t, crash.Disks(), past, digests, values, sure, what)

				// And once more, while recovering.
				disks := crash.Disks()
				again := &chip{bench: disks[0].Bench(), mark: disks[2]}
				again.past = append(again.past, past...)
				for i := range again.past {
					again.past[i].ops = -1
				}
				require.NoError(t, ledger(again, disks[:2]...).Resume(), what)
				for second := range disks[0].Bench().Crashes(disktest.Bounds{Writes: 2, Sectors: 2, Samples: 2}) {
					for _, past := range again.after(second.Cut) {
						finish(t, second.Disks(), past, digests, values, sure, what+", then "+second.String())
					}
				}
			}
		}
	}
}

// finish repeats what was not sure to be in, and looks at the result.
func finish(t *testing.T, disks []*disktest.Disk, past []extension, digests, values []Digest, sure int, what string) {
	t.Helper()
	c := &chip{past: append([]extension(nil), past...)}
	l := ledger(c, disks[:2]...)
	require.NoError(t, l.Resume(), what)
	h, err := l.history()
	require.NoError(t, err, what)
	require.False(t, h.mismatch, what)
	require.Nil(t, h.pending, what)
	n := int(h.next())
	require.GreaterOrEqual(t, n, sure, what)
	require.LessOrEqual(t, n, sure+1, what)
	require.Equal(t, values[n], h.value, what)
	for i := sure; i < len(digests); i++ {
		require.NoError(t, l.Add(digests[i], install(i)), what)
	}
	v, _ := c.value()
	require.Equal(t, values[len(digests)], v, what)
	h, err = l.history()
	require.NoError(t, err, what)
	require.False(t, h.mismatch, what)
}

// Either copy may be gone, or unreadable: the other one serves, and mends it.
func TestLedgerCopyLost(t *testing.T) {
	digests, values := installs(4)
	for lost := range 2 {
		c := &chip{}
		logs := []*disktest.Disk{blank(8), blank(8)}
		l := ledger(c, logs...)
		for i, d := range digests {
			require.NoError(t, l.Add(d, install(i)))
		}
		logs[lost] = blank(8)
		l = ledger(c, logs...)
		require.Contains(t, fmt.Sprint(Check(New(nil), nil, -1, nil, l).Missing), fmt.Sprintf("log %d lacks", lost))
		require.NoError(t, l.Resume())
		logs[1-lost] = blank(8)
		l = ledger(c, logs...)
		h, err := l.history()
		require.NoError(t, err)
		require.False(t, h.mismatch)
		require.True(t, h.complete(), "all of it was copied")
		require.Equal(t, values[4], h.value)
	}
}

// One copy cannot be written: the install is entered all the same. None can, or none
// can be made durable: nothing is extended.
func TestLedgerLogFails(t *testing.T) {
	digests, _ := installs(2)
	c := &chip{}
	l := ledger(c, blank(8))
	l.logs = append(l.logs, broken{})
	require.NoError(t, l.Add(digests[0], install(0)))
	l.logs = []Log{broken{}, broken{}}
	err := ledgerAdd(l, digests[1])
	require.Error(t, err)
	require.Len(t, c.past, 1, "nothing was extended")
	log := blank(8)
	log.Inject(disktest.Fault{Op: disktest.Sync, At: 1, Err: errBroken})
	c = &chip{}
	l = ledger(c, log)
	require.ErrorIs(t, l.Add(digests[0], install(0)), errBroken)
	require.Empty(t, c.past, "nothing was extended")
	l = ledger(&chip{})
	l.logs = []Log{broken{}}
	require.ErrorIs(t, l.Add(digests[0], install(0)), ErrNoLog)
}

func ledgerAdd(l *Ledger, d Digest) error { return l.Add(d, [16]byte{99}) }

type broken struct{}

var errBroken = errors.New("broken")

func (broken) ReadAt([]byte, int64) (int, error)  { return 0, errBroken }
func (broken) WriteAt([]byte, int64) (int, error) { return 0, errBroken }
func (broken) Sync() error                        { return errBroken }
func (broken) Size() int64                        { return 8 * entrySize }

// States of the world that no power cut makes. The ledger never guesses: it
// says that it does not agree, and extends nothing until somebody adopts what
// is there.
func TestLedgerMismatch(t *testing.T) {
	digests, _ := installs(5)
	for _, row := range []struct {
		state string
		do    func(c *chip, d *disktest.Disk) *disktest.Disk
	}{
		{"log lost", func(*chip, *disktest.Disk) *disktest.Disk { return blank(8) }},
		{"TPM cleared", func(c *chip, d *disktest.Disk) *disktest.Disk { c.past = nil; return d }},
		{"TPM extended by somebody", func(c *chip, d *disktest.Disk) *disktest.Disk { c.extend(Digest{9}); return d }},
		{"TPM set back by two", func(c *chip, d *disktest.Disk) *disktest.Disk { c.past = c.past[:2]; return d }},
		{"last entry destroyed", func(_ *chip, d *disktest.Disk) *disktest.Disk {
			_, err := d.WriteAt(make([]byte, entrySize), 3*entrySize)
			require.NoError(t, err)
			return d
		}},
	} {
		c, d := &chip{}, blank(8)
		l := ledger(c, d)
		for i := range 4 {
			require.NoError(t, l.Add(digests[i], install(i)))
		}
		d = row.do(c, d)
		before := len(c.past)
		l = ledger(c, d)
		require.ErrorIs(t, l.Resume(), ErrLedgerMismatch, row.state)
		require.ErrorIs(t, l.Add(digests[4], install(4)), ErrLedgerMismatch, row.state)
		require.Len(t, c.past, before, row.state)
		require.False(t, Check(New(nil), nil, -1, nil, l).Ledger.Agree, row.state)

		require.NoError(t, l.Adopt(), row.state)
		require.NoError(t, l.Adopt(), row.state)
		require.NoError(t, l.Resume(), row.state)
		require.NoError(t, l.Add(digests[4], install(4)), row.state)
		require.NoError(t, l.Add(digests[4], install(4)), row.state)
		require.Len(t, c.past, before+1, row.state)
		s := Check(New(nil), nil, -1, nil, l).Ledger
		require.True(t, s.Agree, row.state)
		require.False(t, s.Complete, "what was before is not known: %s", row.state)
	}
}

// A destroyed entry in the middle costs the history before it, nothing else; the
// other copy fills it.
func TestLedgerHole(t *testing.T) {
	digests, _ := installs(6)
	c, a, b := &chip{}, blank(8), blank(8)
	l := ledger(c, a, b)
	for i, d := range digests {
		require.NoError(t, l.Add(d, install(i)))
	}
	_, err := a.WriteAt(bytes.Repeat([]byte{7}, entrySize), 2*entrySize)
	require.NoError(t, err)
	h, err := ledger(c, a).history()
	require.NoError(t, err)
	require.False(t, h.mismatch)
	require.False(t, h.complete())
	require.Len(t, h.done, 3)
	require.NoError(t, ledger(c, a, b).Resume())
	h, err = ledger(c, a).history()
	require.NoError(t, err)
	require.True(t, h.complete())
}

// Two copies with different intents: the one listed first is believed, and the other
// one mended.
func TestLedgerTwoIntents(t *testing.T) {
	c, env, data := &chip{}, blank(8), blank(8)
	require.NoError(t, ledger(c, env, data).Add(Digest{1}, install(0)))
	gone := errors.New("power")
	c.err = gone // X is logged on the data partition alone, which then is away for a while
	l := ledger(c, data)
	require.ErrorIs(t, l.Add(Digest{'X'}, install(1)), gone)
	c.err = gone
	require.ErrorIs(t, ledger(c, env).Add(Digest{'Y'}, install(2)), gone)
	l = ledger(c, env, data)
	require.NoError(t, l.Resume())
	v, _ := c.value()
	require.Equal(t, Measured(Digest{1}, Digest{'Y'}), v)
	h, err := ledger(c, data).history()
	require.NoError(t, err)
	require.False(t, h.mismatch)
	require.Equal(t, Digest{'Y'}, h.last().Digest)
}

// Every flipped bit and every truncation of an entry makes it none.
func TestEntryCorruption(t *testing.T) {
	e := Entry{Sequence: 5, Digest: Digest{1}, Install: [16]byte{2}, Time: 3, Before: Digest{4}}
	e.After = Extended(e.Before, e.Digest)
	good := e.marshal()
	got, err := parseEntry(good)
	require.NoError(t, err)
	require.Equal(t, e, got)
	for bit := range len(good) * 8 {
		b := append([]byte(nil), good...)
		b[bit/8] ^= 1 << (bit % 8)
		_, err := parseEntry(b)
		require.ErrorIs(t, err, errEntry, "bit %d", bit)
	}
	for n := range good {
		_, err := parseEntry(good[:n])
		require.ErrorIs(t, err, errEntry, "%d bytes", n)
	}
}

// An entry whose values do not follow from each other is none, however well its bytes
// are summed: somebody made it up.
func TestEntryMadeUp(t *testing.T) {
	first := Entry{Digest: Digest{1}, After: Extended(Digest{}, Digest{1})}
	adopted := Entry{Before: Digest{4}, After: Digest{4}, Adopted: true}
	for state, e := range map[string]Entry{"first": first, "history adopted at the beginning": adopted} {
		got, err := parseEntry(e.marshal())
		require.NoError(t, err, state)
		require.Equal(t, e, got)
	}
	for state, e := range map[string]Entry{
		"leads to another value":          {Sequence: 1, Digest: Digest{1}, Before: Digest{4}, After: Digest{5}},
		"adopted, and leads somewhere":    {Sequence: 1, Before: Digest{4}, After: Digest{5}, Adopted: true},
		"first, and begins in the middle": {Digest: Digest{1}, Before: Digest{4}, After: Extended(Digest{4}, Digest{1})},
	} {
		_, err := parseEntry(e.marshal())
		require.ErrorIs(t, err, errEntry, state)
	}
}

// An entry counts in its own place only: one that was copied elsewhere would come back when
// the ring has long written over it.
func TestEntryInPlace(t *testing.T) {
	log := blank(8)
	e := Entry{Digest: Digest{1}, After: Extended(Digest{}, Digest{1})}
	require.NoError(t, writeEntry(log, e))
	_, err := log.WriteAt(e.marshal(), 3*entrySize)
	require.NoError(t, err)
	entries, err := readLog(log)
	require.NoError(t, err)
	require.Equal(t, []Entry{e}, entries)
	_, err = readLog(broken{})
	require.ErrorIs(t, err, errBroken)
}

// A log has room for two entries at least, or none is written: one alone would take
// the place of the one before it.
func TestLedgerLogTooSmall(t *testing.T) {
	for size, want := range map[int]error{0: ErrNoLog, entrySize: ErrNoLog, smallestLog: nil} {
		c, log := &chip{}, disktest.New(make([]byte, size))
		require.ErrorIs(t, ledger(c, log).Add(Digest{1}, install(0)), want, "%d bytes", size)
		_, err := readLog(log)
		if want != nil {
			require.Empty(t, c.past, "nothing was extended")
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, "%d bytes", size)
			continue
		}
		require.NoError(t, err)
	}
}

// A release that is installed again is entered again, and so is another one that goes by
// the name of an attempt before: what is the same is both.
func TestLedgerSameAttempt(t *testing.T) {
	c := &chip{}
	l := ledger(c, blank(8))
	for range 2 {
		require.NoError(t, l.Add(Digest{1}, install(0)))
		require.NoError(t, l.Add(Digest{1}, install(1)))
		require.NoError(t, l.Add(Digest{2}, install(0)))
	}
	v, _ := c.value()
	require.Equal(t, Measured(Digest{1}, Digest{1}, Digest{2}), v)
}

// deaf is an index that says yes and does nothing.
type deaf struct{ chip }

func (*deaf) extend(Digest) error { return nil }

// A TPM that says that it has entered an install is not believed: its value has to show it.
func TestLedgerNotEntered(t *testing.T) {
	l := ledger(&chip{}, blank(8))
	l.nv = &deaf{}
	require.ErrorIs(t, l.Add(Digest{1}, install(0)), ErrLedgerMismatch)
}

// An entry that was logged and is not in the TPM is entered only if it follows the last one
// that is. Behind a gap, the log is another TPM's, or its own before it was cleared.
func TestLedgerPendingBehindGap(t *testing.T) {
	first := Entry{Digest: Digest{1}, After: Extended(Digest{}, Digest{1})}
	for _, row := range []struct {
		state   string
		entries []Entry
		extends int // before
		want    error
	}{
		{"the first one of all", []Entry{first}, 0, nil},
		{"the next one", []Entry{first, {Sequence: 1, Digest: Digest{2}, Before: first.After, After: Extended(first.After, Digest{2})}}, 1, nil},
		{"one is missing", []Entry{first, {Sequence: 2, Digest: Digest{2}, Before: first.After, After: Extended(first.After, Digest{2})}}, 1, ErrLedgerMismatch},
		{"all before it are missing", []Entry{{Sequence: 3, Digest: Digest{1}, After: first.After}}, 0, ErrLedgerMismatch},
	} {
		c, log := &chip{}, blank(8)
		for range row.extends {
			require.NoError(t, c.extend(Digest{1}))
		}
		for _, e := range row.entries {
			require.NoError(t, writeEntry(log, e))
		}
		require.ErrorIs(t, ledger(c, log).Resume(), row.want, row.state)
		if row.want != nil {
			require.Len(t, c.past, row.extends, row.state)
		}
	}
}

// Nothing comes before the first entry, also if the log has one of the number that 0 - 1 is.
func TestLedgerNothingBeforeFirst(t *testing.T) {
	c, log := &chip{}, blank(8)
	require.NoError(t, ledger(c, log).Add(Digest{1}, install(0)))
	require.NoError(t, writeEntry(log, Entry{Sequence: math.MaxUint64, Adopted: true}))
	h, err := ledger(c, log).history()
	require.NoError(t, err)
	require.Len(t, h.done, 1)
}

// Whatever a log holds, reading it ends, and what is taken for an entry is one.
func FuzzEntry(f *testing.F) {
	e := Entry{Sequence: 0, Digest: Digest{1}}
	e.After = Extended(e.Before, e.Digest)
	f.Add(e.marshal(), []byte(nil))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, sector := range [][]byte{a, b} {
			if e, err := parseEntry(sector); err == nil {
				require.Equal(t, sector, e.marshal())
			}
		}
		region := make([]byte, 4*entrySize)
		copy(region, a)
		copy(region[entrySize:], b)
		_, err := ledger(&chip{}, disktest.New(region)).history()
		require.NoError(t, err)
	})
}
