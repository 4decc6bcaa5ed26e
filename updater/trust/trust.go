// Package trust decides whose word counts: it checks signed envelopes, follows
// The Update Framework (TUF, specification 1.0.x) from a root that the device
// was built with, and reads statements made to one device.
//
// Three things are signed, and FORMAT.md shows the bytes of each:
//
//   - a manifest, in a DSSE envelope (Verify), by release keys that the system
//     image carries. It says what a release is, for ever: expiry never counts.
//   - TUF metadata (Client). It says which manifests are offered now, and which
//     keys may say so. It is signed again as time goes.
//   - a statement to one device (VerifyStatement), in a DSSE envelope, by the
//     keys that TUF delegates the role "fleet" to.
//
// Keys are Ed25519 and ECDSA P-256; other kinds may be listed in metadata and
// never count. All input is bounded in size before it is parsed, and its
// signatures are checked before anything that it says is used.
//
// A device may have no clock. Expiry therefore counts only against a time that
// the caller vouches for: a lower bound of the true time, raised by nothing but
// signed statements. Without one, versions that only grow still hold off old
// metadata.
//
// This package is for devices: standard library only, no signing. Package
// mktrust makes what is read here.
package trust

import "errors"

// Payload types separate the domains of signatures: an envelope made for one
// use is never accepted for another, even by the same key.
const (
	ManifestType  = "application/vnd.tandem.manifest.v1+json"
	StatementType = "application/vnd.tandem.statement.v1+json"
)

// Limits of what is read, in bytes and counts. A source must not hand over
// more than MaxMetadata bytes for any file of metadata.
const (
	MaxEnvelope   = 2 << 20
	MaxMetadata   = 1 << 20
	MaxStatement  = 64 << 10
	maxTimestamp  = 16 << 10
	maxSignatures = 32
	maxKeys       = 256 // in one file of metadata
	maxRotations  = 256 // roots followed in one update
	maxDepth      = 16
)

var (
	// ErrFormat means that the bytes are not what they should be. A source
	// that sends them is broken or hostile; ask another.
	ErrFormat = errors.New("malformed")

	// ErrTooLarge means that the input is over its limit and was not read.
	ErrTooLarge = errors.New("too large")

	// ErrSignature means that not one signature by a trusted key holds.
	ErrSignature = errors.New("no valid signature by a trusted key")

	// ErrThreshold means that some signatures hold, but fewer than required;
	// or that what is required makes no sense (none, or more than there are
	// keys). Signers are missing.
	ErrThreshold = errors.New("signature threshold not met")

	// ErrExpired means that the metadata or statement has expired by a time
	// that can be trusted. Newer metadata is needed; a source that has none is
	// stale or holds it back.
	ErrExpired = errors.New("expired")

	// ErrNotYet means that a statement is good but its time is not known to
	// have come. Keep it and look again later.
	ErrNotYet = errors.New("not valid yet")

	// ErrRollback means that a source offers something older than what this
	// device has already accepted.
	ErrRollback = errors.New("older than what was already accepted")

	// ErrMismatch means that bytes are not those that the metadata names.
	ErrMismatch = errors.New("length or hash differs from the signed one")

	// ErrUnknownRole means that the metadata gives nobody that role.
	ErrUnknownRole = errors.New("no such role")

	// ErrNoTarget means that the trusted metadata does not list the target:
	// the release is not offered, or was withdrawn.
	ErrNoTarget = errors.New("no such target")

	// ErrOtherDevice means that a statement is for another device.
	ErrOtherDevice = errors.New("statement is for another device")

	// ErrReplayed means that a statement's counter is not above the last one.
	// A broker that delivers a retained statement again causes this in normal
	// operation: skip it.
	ErrReplayed = errors.New("statement was already seen, or is older than one seen")
)
