// Package mktrust makes what package trust reads: keys, signed envelopes and
// TUF metadata. It is for the desk and never linked into the device program.
//
// A trust folder holds everything that a product's trust is made of:
//
//	keys/ROLE.pem, keys/ROLE-2.pem …   private keys, PKCS #8 in PEM, mode 0600
//	keys/ROLE.exec …                   instead: the command line of a signer
//	metadata/                          TUF metadata, as published: N.root.json,
//	                                   N.targets.json, N.snapshot.json, targets.json, timestamp.json
//	staged/                            metadata that still lacks signatures
//	root.json                          the newest root, for the system image
//	release-keys.json                  the keys of manifests, for the system image
//
// Roles are root, targets, snapshot and timestamp of TUF, "release" for
// manifests and "fleet" for statements to devices. Only keys/ is secret. Keys
// may be spread over machines: copy the folder without the keys, and sign with
// what is there; metadata that lacks signatures waits in staged/.
//
// An external signer (HSM, KMS, smart card) is a shell command that is run with
// TANDEM_SIGNER_OP=public, and then prints its public key (PKIX in PEM); or
// with TANDEM_SIGNER_OP=sign, and then reads the message on standard input and
// writes the raw signature to standard output: 64 bytes for Ed25519, ASN.1 DER
// over the SHA-256 of the message for ECDSA P-256. TANDEM_SIGNER_ROLE names the
// role. Any other exit code than 0 is a refusal; standard error is shown.
package mktrust

import (
	"errors"
	"time"
)

// Roles in the order in which people read them.
const (
	Root      = "root"
	Targets   = "targets"
	Snapshot  = "snapshot"
	Timestamp = "timestamp"
	Release   = "release"
	Fleet     = "fleet"
)

// Roles are all roles of a trust folder.
var Roles = []string{Root, Targets, Snapshot, Timestamp, Release, Fleet}

// Kinds of keys.
const (
	Ed25519 = "ed25519"
	ECDSA   = "ecdsa" // P-256
)

var (
	// ErrNoKey means that the folder has no private key or signer for a role.
	// Sign on the machine that has it.
	ErrNoKey = errors.New("no key here for the role")

	// ErrIncomplete means that metadata was signed with the keys at hand and
	// waits in staged/ for more signatures.
	ErrIncomplete = errors.New("more signatures are needed")

	// ErrSigner means that an external signer refused, failed, or gave a
	// signature that does not hold.
	ErrSigner = errors.New("external signer")
)

// Lifetimes of metadata. Roots must outlive a device on a shelf; a timestamp
// bounds how long a hostile broker can hide a release.
var lifetimes = map[string]time.Duration{
	Root:      10 * 365 * 24 * time.Hour,
	Targets:   365 * 24 * time.Hour,
	Snapshot:  365 * 24 * time.Hour,
	Timestamp: 30 * 24 * time.Hour,
}
