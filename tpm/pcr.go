package tpm

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Extended is the value of a register or an NV index of type extend after
// data was extended into before: SHA-256(before ‖ data).
func Extended(before, data Digest) Digest {
	return sha256.Sum256(append(append(make([]byte, 0, 2*sha256.Size), before[:]...), data[:]...))
}

// Measured is the value of a register that started as zeros, as all up to 16 do at
// power-on, and was extended with these digests and nothing else.
func Measured(digests ...Digest) Digest {
	var value Digest
	for _, d := range digests {
		value = Extended(value, d)
	}
	return value
}

// Measure extends register pcr with digest and returns the value that its
// SHA-256 bank has then, read back from the TPM. Other banks that are switched
// on are extended with their own hash of the 32 bytes of digest.
//
// After nil the measurement holds until the next reset of the machine. After an error
// it may or may not be in the register, which [Extended] tells; repeating it would measure
// twice, so callers do not repeat, they report.
func (t *TPM) Measure(pcr int, digest Digest) (Digest, error) {
	before, err := t.PCR(pcr)
	if err != nil {
		return Digest{}, err
	}
	digests, err := t.forBanks(digest)
	if err != nil {
		return Digest{}, err
	}
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: digests},
	}.Execute(t.t)
	if err != nil {
		return Digest{}, fmt.Errorf("extend PCR %d: %w", pcr, err)
	}
	after, err := t.PCR(pcr)
	if err != nil {
		return Digest{}, err
	}
	if want := Extended(before, digest); after != want {
		return after, fmt.Errorf("PCR %d is %s, expected %s: %w", pcr, after, want, ErrNotMeasured)
	}
	return after, nil
}

// PCR reads register pcr of the SHA-256 bank.
func (t *TPM) PCR(pcr int) (Digest, error) {
	if pcr < 0 || pcr > 23 {
		return Digest{}, fmt.Errorf("PCR %d: want 0 to 23", pcr)
	}
	r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{
		PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(uint(pcr))},
		},
	}}.Execute(t.t)
	if err != nil {
		return Digest{}, fmt.Errorf("read PCR %d: %w", pcr, err)
	}
	// A TPM without the bank answers with success and no digest.
	if len(r.PCRValues.Digests) != 1 || len(r.PCRValues.Digests[0].Buffer) != sha256.Size {
		return Digest{}, fmt.Errorf("read PCR %d: no SHA-256 bank: %w", pcr, ErrNotMeasured)
	}
	return Digest(r.PCRValues.Digests[0].Buffer), nil
}

// forBanks returns what to extend each bank with that is switched on. One that
// was left out could later be extended with anything, and a verifier who
// looks at that bank would believe it.
func (t *TPM) forBanks(digest Digest) ([]tpm2.TPMTHA, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("list PCR banks: %w", err)
	}
	banks, err := r.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("list PCR banks: %w", err)
	}
	var digests []tpm2.TPMTHA
	for _, bank := range banks.PCRSelections {
		if bytes.Equal(bank.PCRSelect, make([]byte, len(bank.PCRSelect))) {
			continue // off
		}
		d := tpm2.TPMTHA{HashAlg: bank.Hash}
		switch bank.Hash {
		case tpm2.TPMAlgSHA1:
			sum := sha1.Sum(digest[:])
			d.Digest = sum[:]
		case tpm2.TPMAlgSHA256:
			d.Digest = digest[:]
		case tpm2.TPMAlgSHA384:
			sum := sha512.Sum384(digest[:])
			d.Digest = sum[:]
		case tpm2.TPMAlgSHA512:
			sum := sha512.Sum512(digest[:])
			d.Digest = sum[:]
		default:
			continue // no verifier that we know of looks there
		}
		digests = append(digests, d)
	}
	return digests, nil
}
