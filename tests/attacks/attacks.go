// Package attacks is what an attacker, a broken tool or bad luck may hand to a
// device: named cases, each with its input, the error that must come of it, and
// what must not have changed.
//
// A case is a value of [Attack] in a list of its area (manifest.go, delta.go, …);
// areas.go joins the lists. TestAttacks runs them all as TestAttacks/area/name. The
// runner takes the hashes of everything that the case keeps before and after, and
// refuses a case that keeps nothing. Threats are mapped in threats.go; TestThreats
// prints which of them have how many cases, and fails for one that has none.
package attacks

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/debug"
	"testing"
	"testing/synctest"
)

// Attack is one case.
type Attack struct {
	// Name is "area/what is done", in lower case with dashes: the name of the test.
	Name string
	// Input says in one line what the attacker hands over.
	Input string
	// Want is the sentinel that the device's error must be; see either. Nil means that
	// the attack is no error to the device: it carries on as if nothing had come, which
	// Run checks.
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
	attack   Attack
	kept     []kept
	compared int // things kept that were compared
	variants int
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

// Compare finds out whether what was kept so far is as it was, and lets go of it. The
// runner does so at the end; a case calls it that goes through many devices.
func (s *Scene) Compare() {
	s.Helper()
	for _, k := range s.kept {
		if sha256.Sum256(k.bytes()) != k.before {
			s.Errorf("%s: after %d variants, %s is not what it was", s.attack.Input, s.variants, k.name)
		}
		s.compared++
	}
	s.kept = nil
}

// Variant judges what the device said about one of the inputs of the case. The format
// says which one it was.
func (s *Scene) Variant(err error, format string, args ...any) {
	s.Helper()
	s.variants++
	if !met(err, s.attack.Want) {
		s.Errorf("%s: got %v, want %v", fmt.Sprintf(format, args...), err, s.attack.Want)
	}
}

// Bubble runs f in time that passes by itself (testing/synctest): hours of waiting
// take no time.
func (s *Scene) Bubble(f func()) {
	outside := s.T
	synctest.Test(outside, func(t *testing.T) {
		s.T = t
		defer func() { s.T = outside }()
		f()
	})
}

// sentinels is several of which an error has to be one.
type sentinels []error

func (s sentinels) Error() string { return errors.Join(s...).Error() }

// either is for a case whose variants fail each in its own place: a flipped bit may
// make the syntax wrong or the signature.
func either(those ...error) error { return sentinels(those) }

// met tells whether an error is what a case wants.
func met(err, want error) bool {
	if many, ok := want.(sentinels); ok {
		for _, one := range many {
			if errors.Is(err, one) {
				return true
			}
		}
		return false
	}
	return errors.Is(err, want)
}

// run makes the attack, compares what it kept, and returns how many variants it had.
func (a Attack) run(t *testing.T) int {
	s := &Scene{T: t, attack: a}
	err := s.survive()
	switch {
	case s.variants > 0:
		if err != nil {
			t.Errorf("variants and an error of their own: %v", err)
		}
	case !met(err, a.Want):
		t.Errorf("%s: got %v, want %v", a.Input, err, a.Want)
	}
	if s.Compare(); s.compared == 0 {
		t.Error("the case keeps nothing, and so shows nothing")
	}
	return max(s.variants, 1)
}

// survive is Run, where a panic ends the case and not the process: the other cases
// have something to say, too.
func (s *Scene) survive() (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Errorf("after %d variants: panic: %v\n%s", s.variants, p, debug.Stack())
			err = s.attack.Want
			s.variants = 0
		}
	}()
	return s.attack.Run(s)
}
