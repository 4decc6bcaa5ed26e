package tpm

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/tpm/tpmtest"
)

// A device without a TPM is told so by an error of its own, and status says in
// words what that means.
func TestNoTPM(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "tpmrm0"))
	require.ErrorIs(t, err, ErrNoTPM)
	s := Check(nil, err, 14, nil, nil)
	require.Len(t, s.Missing, 1)
	require.Contains(t, s.Missing[0], "no TPM 2.0")
	require.Nil(t, s.Register)

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Open(file)
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNoTPM, "a thing that is no TPM is not the absence of one")
}

// What is measured is what tpm2_pcrread sees, and what was predicted.
func TestMeasure(t *testing.T) {
	sw := tpmtest.Start(t)
	p := New(sw)
	d, other := Digest{1, 2, 3}, Digest{4}
	read := func() string {
		return strings.ToLower(string(sw.Tool("tpm2_pcrread", "sha256:14")))
	}
	v, err := p.Measure(14, d)
	require.NoError(t, err)
	require.Equal(t, Measured(d), v)
	require.Contains(t, read(), "0x"+v.String())
	s := Check(p, nil, 14, &d, nil)
	require.True(t, s.Register.Agree)
	require.Equal(t, []string{"no ledger"}, s.Missing)
	one := sha1.Sum(d[:])
	one = sha1.Sum(append(make([]byte, sha1.Size), one[:]...))
	require.Contains(t, strings.ToLower(string(sw.Tool("tpm2_pcrread", "sha1:14"))), "0x"+hex.EncodeToString(one[:]),
		"no bank is left for others to fill")

	v, err = p.Measure(14, other)
	require.NoError(t, err)
	require.Equal(t, Measured(d, other), v)
	require.Contains(t, read(), "0x"+v.String())
	s = Check(p, nil, 14, &d, nil)
	require.False(t, s.Register.Agree, "something else was measured too")
	require.Contains(t, s.Missing[0], "does not prove")

	sw.Reset()
	v, err = p.PCR(14)
	require.NoError(t, err)
	require.Equal(t, Digest{}, v, "a register starts anew at reset")
	require.Contains(t, Check(p, nil, 14, &d, nil).Missing[0], "nothing was measured")
	_, err = p.PCR(23)
	require.NoError(t, err)
	for _, none := range []int{-1, 24} {
		_, err = p.PCR(none)
		require.ErrorContains(t, err, "want 0 to 23")
	}
}

// A TPM whose SHA-256 bank is switched off takes the command and measures
// nothing; that must not look like success.
func TestNoBank(t *testing.T) {
	sw := tpmtest.Start(t)
	sw.Tool("tpm2_pcrallocate", "sha1:all+sha256:none")
	sw.Reset()
	_, err := New(sw).Measure(14, Digest{1})
	require.ErrorIs(t, err, ErrNotMeasured)
}

// The ledger's value is what tpm2_nvread reads and what the log replays to; it
// survives resets, and the index has the attributes that FORMAT.md says.
func TestLedger(t *testing.T) {
	sw := tpmtest.Start(t)
	path := filepath.Join(t.TempDir(), "ledger")
	file, err := CreateLog(path, 64<<10)
	require.NoError(t, err)
	defer file.Close()
	l := New(sw).Ledger(LedgerOptions{Logs: []Log{blank(8), file}})
	running := Digest{1}

	s := Check(New(sw), nil, 14, &running, l)
	require.True(t, s.Ledger.Agree, "a device that nothing was installed on")
	var want Digest
	for i := range 5 {
		d := Digest{byte(i + 1)}
		want = Extended(want, d)
		require.NoError(t, l.Add(d, [16]byte{byte(i)}))
		require.NoError(t, l.Add(d, [16]byte{byte(i)}), "the same attempt once more")
		require.Equal(t, want.String(), hex.EncodeToString(sw.Tool("tpm2_nvread", "0x1805400")))
	}
	public := string(sw.Tool("tpm2_nvreadpublic", "0x1805400"))
	require.Contains(t, public, "value: 0x22060044", "FORMAT.md, and written")

	sw.Reset()
	file2, err := CreateLog(path, 64<<10)
	require.NoError(t, err)
	defer file2.Close()
	l = New(sw).Ledger(LedgerOptions{Logs: []Log{blank(8), file2}})
	require.NoError(t, l.Resume())
	s = Check(New(sw), nil, 14, &running, l)
	require.True(t, s.Ledger.Agree)
	require.True(t, s.Ledger.Complete)
	require.Equal(t, want, s.Ledger.Value)
	require.Equal(t, want, s.Ledger.Replay)
	require.Len(t, s.Ledger.Entries, 5)

	require.NoError(t, l.Install("attempt", Digest{6}))
	require.NoError(t, l.Add(Digest{7}, [16]byte{7}))
	require.NoError(t, l.Install("attempt", Digest{6}), "an attempt is entered once, even if another came between")
	require.Len(t, Check(New(sw), nil, 14, &running, l).Ledger.Entries, 7)

	// An owner authorisation that is set later does not stop the device.
	sw.Tool("tpm2_changeauth", "-c", "owner", "secret")
	require.NoError(t, l.Add(Digest{8}, [16]byte{8}))

	// Somebody who extends by himself is found out.
	require.NoError(t, extendIndex{sw, LedgerIndex, nil}.extend(Digest{66}))
	require.ErrorIs(t, l.Add(Digest{9}, [16]byte{9}), ErrLedgerMismatch)
	require.False(t, Check(New(sw), nil, 14, &running, l).Ledger.Agree)
}

// An owner who set an authorisation before has to give it once.
func TestLedgerOwnerAuth(t *testing.T) {
	sw := tpmtest.Start(t)
	sw.Tool("tpm2_changeauth", "-c", "owner", "secret")
	o := LedgerOptions{Logs: []Log{blank(8)}, Index: 0x01805410}
	require.Error(t, New(sw).Ledger(o).Add(Digest{1}, [16]byte{}))
	o.OwnerAuth = []byte("secret")
	l := New(sw).Ledger(o)
	require.NoError(t, l.Add(Digest{1}, [16]byte{}), "the entry that was logged is finished")
	require.Len(t, Check(New(sw), nil, 14, nil, l).Ledger.Entries, 1)
}

// An index of somebody else is never written to.
func TestForeignIndex(t *testing.T) {
	sw := tpmtest.Start(t)
	sw.Tool("tpm2_nvdefine", "0x1805400", "-s", "32", "-a", "ownerread|ownerwrite|authread|authwrite")
	l := New(sw).Ledger(LedgerOptions{Logs: []Log{blank(8)}})
	require.ErrorIs(t, l.Add(Digest{1}, [16]byte{}), ErrForeignIndex)
	require.Contains(t, strings.Join(Check(New(sw), nil, 14, nil, l).Missing, "\n"), ErrForeignIndex.Error())
}

// A TPM that is busy is asked again, for a bounded time; other answers are
// passed on at once.
func TestPatience(t *testing.T) {
	busy := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22}
	ok := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}
	var slept time.Duration
	script := func(responses ...[]byte) (patient, *int) {
		n := 0
		slept = 0
		return patient{sender(func() ([]byte, error) {
			n++
			return responses[min(n, len(responses))-1], nil
		}), func(d time.Duration) { slept += d }}, &n
	}
	p, n := script(busy, busy, ok)
	r, err := p.Send(nil)
	require.NoError(t, err)
	require.Equal(t, ok, r)
	require.Equal(t, 3, *n)

	p, n = script(busy)
	r, err = p.Send(nil)
	require.NoError(t, err)
	require.Equal(t, busy, r)
	require.Equal(t, patience+1, *n)
	require.Less(t, slept, time.Second)

	p, n = script([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1})
	_, err = p.Send(nil)
	require.NoError(t, err)
	require.Equal(t, 1, *n)
	p, _ = script([]byte{1})
	_, err = p.Send(nil)
	require.NoError(t, err)
}

type sender func() ([]byte, error)

func (s sender) Send([]byte) ([]byte, error) { return s() }

// A response that is lost after the TPM carried the command out, or before, does not
// make an install appear twice, nor not at all.
func TestLostResponse(t *testing.T) {
	for _, carriedOut := range []bool{false, true} {
		sw := tpmtest.Start(t)
		lost := errors.New("lost")
		lose := false
		line := transportFunc(func(command []byte) ([]byte, error) {
			if lose && len(command) > 10 && be32(command[6:]) == uint32(tpm2.TPMCCNVExtend) {
				if carriedOut {
					sw.Send(command)
				}
				return nil, lost
			}
			return sw.Send(command)
		})
		l := New(line).Ledger(LedgerOptions{Logs: []Log{blank(4), blank(4)}})
		require.NoError(t, l.Add(Digest{1}, [16]byte{1}))
		lose = true
		require.ErrorIs(t, l.Add(Digest{2}, [16]byte{2}), lost)
		require.Equal(t, !carriedOut, Check(New(line), nil, 14, nil, l).Ledger.Pending != nil)
		lose = false
		require.NoError(t, l.Add(Digest{2}, [16]byte{2}))
		want := Extended(Extended(Digest{}, Digest{1}), Digest{2})
		require.Equal(t, want.String(), hex.EncodeToString(sw.Tool("tpm2_nvread", "0x1805400")), "carried out: %v", carriedOut)
	}
}

type transportFunc func([]byte) ([]byte, error)

func (f transportFunc) Send(b []byte) ([]byte, error) { return f(b) }

// What status prints as JSON, the command that asked for it can read; nothing else
// passes for a digest.
func TestDigestText(t *testing.T) {
	want := Status{Register: &RegisterStatus{PCR: 14, Value: Digest{0xab, 31: 0xcd}}}
	text, err := json.Marshal(want)
	require.NoError(t, err)
	require.Contains(t, string(text), `"value":"ab00`)
	var have Status
	require.NoError(t, json.Unmarshal(text, &have))
	require.Equal(t, want, have)

	whole := want.Register.Value.String()
	for name, bad := range map[string]string{"empty": "", "short": whole[:62], "odd": whole[:63], "long": whole + "00", "no hex": "x" + whole[1:]} {
		require.Error(t, new(Digest).UnmarshalText([]byte(bad)), name)
	}
}

// What comes over the bus from the TPM is taken for what it says only if it has the form
// and the effect that it should have.
func TestResponses(t *testing.T) {
	success := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}
	sized := func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
		return b
	}
	for _, row := range []struct {
		state  string
		code   tpm2.TPMCC
		answer func(real []byte) []byte
		do     func(p *TPM, l *Ledger) error
		want   error
		says   string
	}{
		{"it did not extend the register", tpm2.TPMCCPCRExtend,
			func(real []byte) []byte { return nil },
			func(p *TPM, _ *Ledger) error { _, err := p.Measure(14, Digest{1}); return err }, ErrNotMeasured, "expected"},
		{"a digest of another length in the register", tpm2.TPMCCPCRRead,
			func(real []byte) []byte {
				short := real[:len(real)-sha256.Size]
				short[len(short)-1] = sha1.Size
				return sized(append(short, make([]byte, sha1.Size)...))
			},
			func(p *TPM, _ *Ledger) error { _, err := p.PCR(14); return err }, ErrNotMeasured, "no SHA-256 bank"},
		{"a value of another length in the index", tpm2.TPMCCNVRead,
			func(real []byte) []byte {
				// Header, size of the parameters, size of the value, the value, the session.
				session := real[16+sha256.Size:]
				short := append(bytes.Clone(real[:16+sha1.Size]), session...)
				binary.BigEndian.PutUint32(short[10:], 2+sha1.Size)
				binary.BigEndian.PutUint16(short[14:], sha1.Size)
				return sized(short)
			},
			func(_ *TPM, l *Ledger) error { return l.Add(Digest{2}, [16]byte{2}) }, nil, "20 bytes"},
		{"it refused to extend the index", tpm2.TPMCCNVExtend,
			func([]byte) []byte { return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1} },
			func(_ *TPM, l *Ledger) error { return l.Add(Digest{2}, [16]byte{2}) }, tpm2.TPMRCFailure, "enter install"},
		{"half a response", tpm2.TPMCCNVExtend,
			func([]byte) []byte { return success[:9] },
			func(_ *TPM, l *Ledger) error { return l.Add(Digest{2}, [16]byte{2}) }, nil, "response of 9 bytes"},
	} {
		sw := tpmtest.Start(t)
		lie := false
		p := New(transportFunc(func(command []byte) ([]byte, error) {
			if !lie || be32(command[6:]) != uint32(row.code) {
				return sw.Send(command)
			}
			if row.code == tpm2.TPMCCPCRExtend {
				// Of register 23, in place of the one that was meant.
				command = bytes.Clone(command)
				binary.BigEndian.PutUint32(command[10:], 23)
			}
			real, err := sw.Send(command)
			if other := row.answer(real); other != nil {
				real = other
			}
			return real, err
		}))
		l := p.Ledger(LedgerOptions{Logs: []Log{blank(4)}})
		require.NoError(t, l.Add(Digest{1}, [16]byte{1}), row.state)
		lie = true
		err := row.do(p, l)
		require.ErrorContains(t, err, row.says, row.state)
		if row.want != nil {
			require.ErrorIs(t, err, row.want, row.state)
		}
	}
}
