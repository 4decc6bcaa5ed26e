// Package strictjson decodes JSON that somebody hostile may have written.
//
// encoding/json is lenient in ways that let two readers of the same signed
// bytes see different things: it keeps the last of two equal keys, matches
// struct fields without regard to case, takes null for any field, and repairs
// broken UTF-8. Decode refuses such input before encoding/json sees it, and
// bounds size, depth and the number of values, so that a reader in any other
// language that follows RFC 8259 literally agrees with ours.
//
// The grammar is that of RFC 8259; sizes are in bytes. Decode does not refuse
// unknown keys: newer writers may add fields (see package manifest).
package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrSyntax means that the input is not JSON as this package accepts it.
// Asking the same source again for the same bytes will not help.
var ErrSyntax = errors.New("malformed JSON")

// MaxValues is how many values a document may have, containers and what is in
// them. Two bytes of text may decode to a struct of a hundred bytes: without it, a
// megabyte that nobody has signed yet takes more memory than a device has.
const MaxValues = 1 << 16

// ErrTooLarge means that the input is over the size or depth that the caller
// allows, or over MaxValues. Nothing of it was decoded.
var ErrTooLarge = errors.New("JSON over its limits")

// Rules are the bounds of one kind of document.
type Rules struct {
	Size  int // most bytes of input
	Depth int // most nested objects and arrays
	// PlainKeys asks that every key is made of a-z, 0-9, '_', '-' and '.' and
	// that null does not occur. encoding/json matches field names without
	// regard to case, so that "Sequence" would also set sequence; with plain
	// keys the match is exact. Documents with file names as keys cannot have it.
	PlainKeys bool
}

// Decode checks data against the rules and decodes it into v as
// encoding/json.Unmarshal does. On error v may be half filled.
func Decode(data []byte, r Rules, v any) error {
	if err := Check(data, r); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return nil
}

// Check is Decode without a destination: it holds data against the rules and
// the grammar.
func Check(data []byte, r Rules) error {
	if len(data) > r.Size {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), r.Size)
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("%w: invalid UTF-8", ErrSyntax)
	}
	s := scanner{data: data, rules: r}
	s.space()
	if err := s.value(0); err != nil {
		return err
	}
	s.space()
	if s.pos != len(data) {
		return s.fault("something follows the value")
	}
	return nil
}

type scanner struct {
	data   []byte
	pos    int
	values int // so far
	rules  Rules
}

func (s *scanner) fault(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrSyntax, what, s.pos)
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return
		}
	}
}

// take consumes c if it is next, after white space.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.pos < len(s.data) && s.data[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

func (s *scanner) value(depth int) error {
	if depth >= s.rules.Depth {
		return fmt.Errorf("%w: nested deeper than %d", ErrTooLarge, s.rules.Depth)
	}
	if s.values++; s.values > MaxValues {
		return fmt.Errorf("%w: over %d values", ErrTooLarge, MaxValues)
	}
	if s.pos >= len(s.data) {
		return s.fault("the input ends")
	}
	switch c := s.data[s.pos]; {
	case c == '{':
		return s.object(depth)
	case c == '[':
		return s.array(depth)
	case c == '"':
		_, err := s.text()
		return err
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if strings.HasPrefix(string(s.data[s.pos:min(len(s.data), s.pos+5)]), word) {
			if word == "null" && s.rules.PlainKeys {
				return s.fault("null is not allowed")
			}
			s.pos += len(word)
			return nil
		}
	}
	return s.fault("no value")
}

func (s *scanner) object(depth int) error {
	s.pos++
	if s.take('}') {
		return nil
	}
	// Keys are compared with their case folded, since encoding/json would let
	// the second of "size" and "Size" overwrite the first.
	seen := make(map[string]bool)
	for {
		s.space()
		if s.pos >= len(s.data) || s.data[s.pos] != '"' {
			return s.fault("no key")
		}
		key, err := s.text()
		if err != nil {
			return err
		}
		if s.rules.PlainKeys && !plain(key) {
			return s.fault(fmt.Sprintf("key %q has characters that are not allowed", key))
		}
		folded := fold(key)
		if seen[folded] {
			return s.fault(fmt.Sprintf("key %q occurs twice", key))
		}
		seen[folded] = true
		if !s.take(':') {
			return s.fault("no colon")
		}
		s.space()
		if err := s.value(depth + 1); err != nil {
			return err
		}
		if s.take('}') {
			return nil
		}
		if !s.take(',') {
			return s.fault("no comma")
		}
	}
}

func (s *scanner) array(depth int) error {
	s.pos++
	if s.take(']') {
		return nil
	}
	for {
		s.space()
		if err := s.value(depth + 1); err != nil {
			return err
		}
		if s.take(']') {
			return nil
		}
		if !s.take(',') {
			return s.fault("no comma")
		}
	}
}

// text consumes a string and returns it unescaped. encoding/json does the
// unescaping, but lone surrogates are refused first: it would turn different
// ones into the same replacement character, and so two keys into one.
func (s *scanner) text() (string, error) {
	start := s.pos
	for s.pos++; s.pos < len(s.data); s.pos++ {
		switch c := s.data[s.pos]; {
		case c < 0x20:
			return "", s.fault("control character in a string")
		case c == '\\':
			s.pos++ // whatever is escaped, it does not end the string
		case c == '"':
			s.pos++
			var out string
			if err := json.Unmarshal(s.data[start:s.pos], &out); err != nil {
				return "", s.fault("bad escape")
			}
			if strings.ContainsRune(out, utf8.RuneError) {
				return "", s.fault("replacement character or lone surrogate in a string")
			}
			return out, nil
		}
	}
	return "", s.fault("the string does not end")
}

func (s *scanner) digits() bool {
	from := s.pos
	for s.pos < len(s.data) && s.data[s.pos] >= '0' && s.data[s.pos] <= '9' {
		s.pos++
	}
	return s.pos > from
}

func (s *scanner) number() error {
	if s.data[s.pos] == '-' {
		s.pos++
	}
	if s.pos < len(s.data) && s.data[s.pos] == '0' {
		s.pos++
	} else if !s.digits() {
		return s.fault("bad number")
	}
	if s.pos < len(s.data) && s.data[s.pos] == '.' {
		s.pos++
		if !s.digits() {
			return s.fault("bad number")
		}
	}
	if s.pos < len(s.data) && (s.data[s.pos] == 'e' || s.data[s.pos] == 'E') {
		s.pos++
		if s.pos < len(s.data) && (s.data[s.pos] == '+' || s.data[s.pos] == '-') {
			s.pos++
		}
		if !s.digits() {
			return s.fault("bad number")
		}
	}
	return nil
}

func plain(key string) bool {
	for _, c := range []byte(key) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.') {
			return false
		}
	}
	return key != ""
}

// fold maps strings that encoding/json takes for the same field name to the
// same string. ToLower leaves two letters that simple folding joins with
// ASCII: U+017F with s and U+212A with k.
func fold(key string) string { return foreign.Replace(strings.ToLower(key)) }

// foreign is made once: making it takes longer than all the rest of checking a key.
var foreign = strings.NewReplacer("\u017f", "s", "\u212a", "k")
