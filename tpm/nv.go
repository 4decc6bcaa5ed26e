package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ErrForeignIndex means that the ledger's NV index exists with other attributes
// than FORMAT.md says. Somebody else uses the number; the board has to state another.
var ErrForeignIndex = errors.New("NV index is not a ledger")

// extendIndex is an NV index of type extend.
type extendIndex struct {
	t     transport.TPM
	index tpm2.TPMHandle
	owner []byte
}

// attributes of the index. AuthWrite and AuthRead with an empty password, so that the
// device goes on when an owner authorisation is set; no dictionary attack
// protection, or three mistakes of anybody would stop the ledger; neither
// orderly nor cleared at start-up, since either loses the value.
var attributes = tpm2.TPMANV{
	NT: tpm2.TPMNTExtend, AuthWrite: true, AuthRead: true, OwnerRead: true, NoDA: true,
}

func (x extendIndex) public() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{NVIndex: x.index, NameAlg: tpm2.TPMAlgSHA256, Attributes: attributes, DataSize: sha256.Size}
}

// name returns the TPM's name of the index, and false if there is none yet.
func (x extendIndex) name() (name tpm2.TPM2BName, defined, written bool, err error) {
	r, err := tpm2.NVReadPublic{NVIndex: x.index}.Execute(x.t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return tpm2.TPM2BName{}, false, false, nil
	}
	if err != nil {
		return tpm2.TPM2BName{}, false, false, fmt.Errorf("look up NV index %#x: %w", x.index, err)
	}
	got, err := r.NVPublic.Contents()
	if err != nil {
		return tpm2.TPM2BName{}, false, false, fmt.Errorf("look up NV index %#x: %w", x.index, err)
	}
	plain := *got
	plain.Attributes.Written = false
	if !bytes.Equal(tpm2.Marshal(plain), tpm2.Marshal(x.public())) {
		return tpm2.TPM2BName{}, false, false, fmt.Errorf("NV index %#x: %w", x.index, ErrForeignIndex)
	}
	return r.NVName, true, got.Attributes.Written, nil
}

// value reads the index. An index that is not defined, or never was extended,
// has the value zero: the next extend starts from there.
func (x extendIndex) value() (Digest, error) {
	name, _, written, err := x.name()
	if err != nil || !written {
		return Digest{}, err
	}
	r, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: x.index, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: x.index, Name: name},
		Size:       sha256.Size,
	}.Execute(x.t)
	if err != nil {
		return Digest{}, fmt.Errorf("read NV index %#x: %w", x.index, err)
	}
	if len(r.Data.Buffer) != sha256.Size {
		return Digest{}, fmt.Errorf("read NV index %#x: %d bytes", x.index, len(r.Data.Buffer))
	}
	return Digest(r.Data.Buffer), nil
}

// extend extends the index with data, and defines it first if need be.
//
// After an error, the index may or may not have been extended; value tells.
func (x extendIndex) extend(data Digest) error {
	name, defined, _, err := x.name()
	if err != nil {
		return err
	}
	if !defined {
		if name, err = x.define(); err != nil {
			return err
		}
	}
	if err := nvExtend(x.t, x.index, name, tpm2.PasswordAuth(nil), data[:]); err != nil {
		return fmt.Errorf("extend NV index %#x: %w", x.index, err)
	}
	return nil
}

func (x extendIndex) define() (tpm2.TPM2BName, error) {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(x.owner)},
		PublicInfo: tpm2.New2B(x.public()),
	}.Execute(x.t)
	if err != nil {
		return tpm2.TPM2BName{}, fmt.Errorf("define NV index %#x: %w", x.index, err)
	}
	name, _, _, err := x.name()
	return name, err
}

// nvExtend is TPM2_NV_Extend (TPM 2.0 Library, part 3, section 31.9), which go-tpm has
// no structure for: authorisation handle, index, authorisation area, data.
func nvExtend(t transport.TPM, index tpm2.TPMHandle, name tpm2.TPM2BName, auth tpm2.Session, data []byte) error {
	be := binary.BigEndian
	parameters := append(be.AppendUint16(nil, uint16(len(data))), data...)
	if err := auth.Init(t); err != nil {
		return err
	}
	if err := auth.NewNonceCaller(); err != nil {
		return err
	}
	// The index stands twice in the handle area: it authorises itself.
	a, err := auth.Authorize(tpm2.TPMCCNVExtend, parameters, nil, []tpm2.TPM2BName{name, name}, 0)
	if err != nil {
		return err
	}
	area := tpm2.Marshal(a)
	command := be.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	command = be.AppendUint32(command, uint32(10+8+4+len(area)+len(parameters)))
	command = be.AppendUint32(command, uint32(tpm2.TPMCCNVExtend))
	command = be.AppendUint32(command, uint32(index))
	command = be.AppendUint32(command, uint32(index))
	command = be.AppendUint32(command, uint32(len(area)))
	command = append(append(command, area...), parameters...)
	response, err := t.Send(command)
	if err != nil {
		return err
	}
	if len(response) < 10 {
		return fmt.Errorf("response of %d bytes", len(response))
	}
	// The response carries no data, and the caller reads the index back, so a
	// response that was tampered with on the bus does no harm.
	if code := tpm2.TPMRC(be.Uint32(response[6:])); code != tpm2.TPMRCSuccess {
		return code
	}
	return nil
}
