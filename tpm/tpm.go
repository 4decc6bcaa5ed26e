// Package tpm keeps the proof of what a device installed and what it runs.
//
// For the people who operate devices: with a TPM 2.0, `status` shows two things
// that software on the device cannot rewrite: the digest of the running system,
// measured into a register before its user space started, and a ledger of
// everything that was ever installed. Without a TPM all else works, and status
// says what is missing.
//
// For the people who build on it:
//
//   - [Open] finds the TPM, or returns [ErrNoTPM], upon which callers go on
//     without.
//   - [TPM.Measure] extends a platform configuration register (PCR). The stage
//     before the measured one calls it, at every boot; [Extended] and [Measured]
//     predict what comes out.
//   - [TPM.Ledger] opens the ledger; [Ledger.Add] enters an install in it, once,
//     whatever happens in between; [Ledger.Resume] finishes what a power cut
//     left.
//   - [Check] collects all of it for status, and changes nothing.
//
// For the people who implement or verify it elsewhere: registers and ledger are
// SHA-256 throughout; FORMAT.md has the bytes of the log and the attributes of
// the NV index. Integers in TPM structures are big-endian, in the log little-endian.
//
// # What is where in the TPM
//
//	PCR 14      digest of the manifest of the running slot (board file may differ);
//	            free where no shim runs, and not resettable
//	0x01805400  NV index of type extend: the ledger
//	0x01805401  kept free for the counter that holds the floor of epochs
//	0x81005400  kept free for the key of the device's identity
//
// # What it does not do
//
// It decides nothing: a ledger that does not agree is reported, not repaired
// behind anybody's back. The ledger makes tampering evident rather than impossible: whoever
// has the TPM's owner authorisation can delete the index, but cannot recreate
// another history under the same log. So an owner authorisation is to be set when a device is
// provisioned.
package tpm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/tandem-ota/tandem/partition/datafile"
)

// Device is where Linux offers the TPM, behind the kernel's resource manager.
const Device = "/dev/tpmrm0"

var (
	// ErrNoTPM means that there is no TPM here. Everything else works; callers
	// go on and say so.
	ErrNoTPM = errors.New("no TPM 2.0")

	// ErrNotMeasured means that the register did not take the digest, because the
	// TPM has no SHA-256 bank or somebody else extended it meanwhile. What runs
	// cannot be proven; callers report it and go on.
	ErrNotMeasured = errors.New("measurement not in the register")
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText makes a digest lower-case hex in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(text []byte) error {
	var sum Digest
	if n, err := hex.Decode(sum[:], text[:min(len(text), 2*len(sum))]); err != nil || n != len(sum) || len(text) != 2*n {
		return fmt.Errorf("not a SHA-256 digest in hex: %.80q", text)
	}
	*d = sum
	return nil
}

// TPM is an open TPM 2.0. It is for use by one goroutine at a time.
type TPM struct {
	t     transport.TPM
	close func() error
}

// Open opens the TPM at a character device, normally [Device].
//
// The error is ErrNoTPM if there is none. Another error means that there is one
// which cannot be used, by permissions or because somebody holds it; trying
// again later may help.
func Open(path string) (*TPM, error) {
	t, err := linuxtpm.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return nil, fmt.Errorf("%s: %w", path, ErrNoTPM)
	case err != nil:
		return nil, fmt.Errorf("open TPM %s: %w", path, err)
	}
	return &TPM{t: patient{t, time.Sleep}, close: t.Close}, nil
}

// New makes a TPM of a transport, as tpmtest has one. Closing it does not
// close the transport.
func New(t transport.TPM) *TPM {
	return &TPM{t: patient{t, time.Sleep}, close: func() error { return nil }}
}

// Close gives the TPM back.
func (t *TPM) Close() error { return t.close() }

// patient sends a command again when the TPM asks for that. The response codes
// that it looks for mean that the command was not carried out, so nothing is ever
// extended twice.
type patient struct {
	transport.TPM
	sleep func(time.Duration)
}

// patience is 1 + 2 + 4 … ms: half a second in all, more than a self-test takes.
const patience = 9

func (p patient) Send(command []byte) ([]byte, error) {
	for try := 0; ; try++ {
		response, err := p.TPM.Send(command)
		if err != nil || try == patience || !again(response) {
			return response, err
		}
		p.sleep(time.Millisecond << try)
	}
}

// again looks into the header of a response: tag, size, code.
func again(response []byte) bool {
	if len(response) < 10 {
		return false
	}
	switch code := tpm2.TPMRC(be32(response[6:])); code {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
		return true
	default:
		return false
	}
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// FileLog is a log of the ledger in an ordinary file.
type FileLog struct{ datafile.File }

// CreateLog opens the log at path, and makes it, of size bytes of zero, if it
// is not there or shorter. A size of 64 KiB keeps 128 installs, 512 bytes each.
//
// nil guarantees that file and size are durable; after an error the file may be there,
// empty, and CreateLog can be repeated.
func CreateLog(path string, size int64) (*FileLog, error) {
	f, err := datafile.Create(datafile.OS{}, path, size, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make ledger log: %w", err)
	}
	return &FileLog{f}, nil
}

// Size is the size of the file in bytes.
func (l *FileLog) Size() int64 {
	info, err := l.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}
