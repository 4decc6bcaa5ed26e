// Package journal keeps what the updater wants to remember over a power cut: how
// far an installation is, which releases failed here, and what has not been
// reported yet.
//
// It is a hint. The truth about what boots is the boot record, and a device whose
// journal is lost (the data partition with it) still boots, reverts and commits;
// it starts an interrupted installation again and may try a release once more that
// failed before. FORMAT.md has the bytes.
//
// Offsets and sizes are in bytes, times in Unix seconds. Nothing here decides
// anything; see package updater.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"slices"

	"github.com/tandem-ota/tandem/updater/manifest"
)

const (
	// Name is the journal's name in its Store.
	Name = "journal"
	// MaxSize bounds the file; what is over it is no journal.
	MaxSize = 256 << 10
	// MaxFailures bounds the memory of releases that failed here. The oldest is
	// forgotten first: its sequence is the first to be overtaken.
	MaxFailures = 16
	// MaxLog bounds the lines that are kept of a trial.
	MaxLog = 40
)

// ErrDamaged means that the file is there and is no journal. The caller goes on
// with an empty one and says so.
var ErrDamaged = errors.New("journal is damaged")

// Store keeps a few small files. Get returns fs.ErrNotExist for what was never put;
// Put replaces a file as a whole and durably, or leaves the old one.
type Store interface {
	Get(name string) ([]byte, error)
	Put(name string, data []byte) error
}

// Journal is everything remembered. The zero value is that of a new device.
type Journal struct {
	State  string   `json:"state"` // of the core's table; "" is idle
	Update *Update  `json:"update,omitempty"`
	Want   *Want    `json:"want,omitempty"`
	Last   *Verdict `json:"last,omitempty"` // of the last update, until there is another

	Failed   []Failure `json:"failed,omitempty"`
	Attempts []Attempt `json:"attempts,omitempty"` // of releases that neither failed nor were committed yet

	Counter    uint64 `json:"counter,omitempty"` // of the last statement that was acted on
	TimeFloor  int64  `json:"time_floor,omitempty"`
	EpochFloor uint64 `json:"epoch_floor,omitempty"`
	DataSchema int    `json:"data_schema,omitempty"` // layout of the kept data, raised at commit

	CleanUp  *CleanUp `json:"clean_up,omitempty"`  // what a commit still owes
	TakeBack *CleanUp `json:"take_back,omitempty"` // what an update that came to nothing still owes
}

// Update is the one update that is under way or on trial.
type Update struct {
	ID       string           `json:"id"` // of the attempt, and so of its verdict
	Manifest manifest.Digest  `json:"manifest"`
	Version  string           `json:"version"`
	Sequence uint64           `json:"sequence"`
	Slot     string           `json:"slot"`           // that is written and tried
	Tries    int              `json:"tries"`          // boots of the trial; in a verdict, those that it took
	Used     int              `json:"used,omitempty"` // boots that it has taken, as far as is known
	Force    bool             `json:"force,omitempty"`
	Written  map[string]int64 `json:"written,omitempty"` // image name to the offset up to which it is durable
	BootID   string           `json:"boot_id,omitempty"` // of the boot in which the trial was armed
	Started  int64            `json:"started,omitempty"`
	Counter  uint64           `json:"counter,omitempty"` // of the statement that asked for it
	// Prepared are the external images whose handlers were asked to prepare, without
	// their payloads: they have to hear how the update ends.
	Prepared []manifest.Image `json:"prepared,omitempty"`
	// DataSchema is the layout of the kept data before the trial.
	DataSchema int  `json:"data_schema,omitempty"`
	Cost       Cost `json:"cost"`
	// Reason is why a trial is being given up, written by the trial slot before it
	// reboots, so that the surviving slot can report it.
	Reason string   `json:"reason,omitempty"`
	Check  string   `json:"check,omitempty"`
	Detail string   `json:"detail,omitempty"`
	Log    []string `json:"log,omitempty"`
}

// Cost says what an update moved, in bytes, over all its interruptions.
type Cost struct {
	Downloaded int64 `json:"downloaded"`
	Read       int64 `json:"read"`
	Written    int64 `json:"written"`
	Skipped    int64 `json:"skipped"` // already right on the medium
}

// Want is the desired state that the device converges on.
type Want struct {
	Manifest manifest.Digest `json:"manifest"`
	Version  string          `json:"version,omitempty"`
	Force    bool            `json:"force,omitempty"`
	Full     string          `json:"full,omitempty"` // what to do where no delta fits
	Counter  uint64          `json:"counter"`
	// Refused says that this device will not run it; it waits for another.
	Refused string `json:"refused,omitempty"`
}

// CleanUp is what programs have yet to do about an update that has ended.
type CleanUp struct {
	Manifest   manifest.Digest `json:"manifest"`
	DataSchema int             `json:"data_schema,omitempty"` // before the trial that was committed
	Begun      int             `json:"begun,omitempty"`       // how often; 0 again where a program put it off
	// Of an update that came to nothing: what its handlers were told, and for which images.
	Version  string           `json:"version,omitempty"`
	Sequence uint64           `json:"sequence,omitempty"`
	Images   []manifest.Image `json:"images,omitempty"`
}

// Verdict is how an update ended.
type Verdict struct {
	Update
	Result string `json:"result"` // as package transport names them
	Ended  int64  `json:"ended,omitempty"`
}

// Failure is a release that must not be tried again unless forced.
type Failure struct {
	Manifest manifest.Digest `json:"manifest"`
	Version  string          `json:"version"`
	Reason   string          `json:"reason"`
}

// Attempt counts how often a release was begun.
type Attempt struct {
	Manifest manifest.Digest `json:"manifest"`
	Count    int             `json:"count"`
}

// Clone returns a copy of which the update under way can be changed by itself. What else
// j points to is replaced as a whole and never changed.
func (j Journal) Clone() Journal {
	j.Failed, j.Attempts = slices.Clone(j.Failed), slices.Clone(j.Attempts)
	if j.Want != nil {
		want := *j.Want
		j.Want = &want
	}
	if j.Update != nil {
		up := *j.Update
		up.Written = maps.Clone(up.Written)
		j.Update = &up
	}
	return j
}

// FailedBefore returns why the release failed here, and whether it did.
func (j Journal) FailedBefore(d manifest.Digest) (string, bool) {
	for _, f := range j.Failed {
		if f.Manifest == d {
			return f.Reason, true
		}
	}
	return "", false
}

// Fail remembers that the release failed.
func (j *Journal) Fail(f Failure) {
	kept := j.Failed[:0:0]
	for _, old := range j.Failed {
		if old.Manifest != f.Manifest {
			kept = append(kept, old)
		}
	}
	kept = append(kept, f)
	if len(kept) > MaxFailures {
		kept = kept[len(kept)-MaxFailures:]
	}
	j.Failed = kept
}

// Forget drops what is remembered against a release: it was committed.
func (j *Journal) Forget(d manifest.Digest) {
	failed := j.Failed[:0:0]
	for _, f := range j.Failed {
		if f.Manifest != d {
			failed = append(failed, f)
		}
	}
	j.Failed = failed
	attempts := j.Attempts[:0:0]
	for _, a := range j.Attempts {
		if a.Manifest != d {
			attempts = append(attempts, a)
		}
	}
	j.Attempts = attempts
}

// Begin counts one more attempt and returns how many there were with it.
func (j *Journal) Begin(d manifest.Digest) int {
	for i := range j.Attempts {
		if j.Attempts[i].Manifest == d {
			j.Attempts[i].Count++
			return j.Attempts[i].Count
		}
	}
	j.Attempts = append(j.Attempts, Attempt{Manifest: d, Count: 1})
	if len(j.Attempts) > MaxFailures {
		j.Attempts = j.Attempts[len(j.Attempts)-MaxFailures:]
	}
	return 1
}

// Load reads the journal. A device that never had one gets the zero value. With
// ErrDamaged the zero value comes too, since nothing in a journal is needed to boot
// or to revert.
func Load(s Store) (Journal, error) {
	data, err := s.Get(Name)
	if errors.Is(err, fs.ErrNotExist) {
		return Journal{}, nil
	}
	if err != nil {
		return Journal{}, fmt.Errorf("read journal: %w", err)
	}
	return Parse(data)
}

// Save makes j what the next Load returns.
//
// Nil means that j is durable. If it fails or the power does, the old or the new
// journal is there as a whole; calling it again is safe.
func Save(s Store, j Journal) error {
	if err := s.Put(Name, j.Encode()); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode returns the bytes of j: a checksum in hexadecimal, a space, JSON, a newline.
func (j Journal) Encode() []byte {
	body, err := json.Marshal(j)
	if err != nil {
		panic(err) // strings and numbers only: cannot fail
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body)
}

// Parse reads what Encode wrote; anything else is ErrDamaged. Fields that it does
// not know are skipped: an older updater must be able to read the journal of the
// newer one that it is reverted from.
func Parse(data []byte) (Journal, error) {
	if len(data) > MaxSize {
		return Journal{}, fmt.Errorf("%w: larger than %d bytes", ErrDamaged, MaxSize)
	}
	sum, body, ok := bytes.Cut(data, []byte(" "))
	body, end := bytes.CutSuffix(body, []byte("\n"))
	if !ok || !end || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return Journal{}, fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	var j Journal
	if err := json.Unmarshal(body, &j); err != nil {
		return Journal{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return j, nil
}
