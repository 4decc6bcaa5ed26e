// Package attacks is what an attacker, a broken tool or bad luck may hand to a
// device: named cases, each with its input, the error that must come of it, and
// what must not have changed.
//
// A case is a value of [Attack] in a list of its area (manifest.go, delta.go, …).
// TestAttacks runs them all as TestAttacks/area/name. The runner takes the hashes
// of everything that the case keeps before and after, and refuses a case that
// keeps nothing. Threats are mapped in threats.go; TestThreats prints which of
// them have how many cases, and fails for one that has none.
package attacks

import (
	"crypto/sha256"
	"testing"
)

// Attack is one case.
type Attack struct {
	// Name is "area/what is done", in lower case with dashes: the name of the test.
	Name string
	// Input says in one line what the attacker hands over.
	Input string
	// Want is the sentinel that the device's error must be. Nil means that the attack
	// is no error to the device: it carries on as if nothing had come, which Run checks.
	Want error
	// Threats are the ids in threats.go that the case is a test of.
	Threats []string
	// Run makes the attack and returns what the device said about it. A case with
	// many variants (truncated at each byte) calls Scene.Variant for each instead and
	// returns nil.
	Run func(s *Scene) error
}

// Scene is where one attack happens.
type Scene struct {
	*testing.T
	attack Attack
	kept   []kept
}

// kept is something that an attack must not change.
type kept struct {
	name   string
	bytes  func() []byte
	before [sha256.Size]byte
}

// Keep notes something that the attack must leave as it is, as it is now.
func (s *Scene) Keep(name string, bytes func() []byte) {
	s.kept = append(s.kept, kept{name, bytes, sha256.Sum256(bytes())})
}
