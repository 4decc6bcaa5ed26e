package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Version is the number in the field "v" of every JSON message. A receiver
// refuses another one: what it means is not known. New fields do not raise it;
// receivers ignore the fields that they do not know.
const Version = 1

// ErrMessage means that the bytes are not the message that was expected: too
// large, not JSON, a wrong version, a field out of bounds. The receiver drops
// it; asking again would bring the same.
var ErrMessage = errors.New("bad message")

// maxDepth is more nesting than any message has, little enough to walk without
// growing a stack.
const maxDepth = 12

// decode parses one JSON object of at most limit bytes into v. Besides what
// encoding/json refuses, it refuses invalid UTF-8, bytes after the object and a
// key that occurs twice, also when the two differ only in case: parsers differ
// in which of the two they take, and encoding/json itself folds case.
func decode(kind string, data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("%w: %s of %d bytes, at most %d", ErrMessage, kind, len(data), limit)
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("%w: %s is not UTF-8", ErrMessage, kind)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := walk(dec, 0); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, kind, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %s: bytes after the end", ErrMessage, kind)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, kind, err)
	}
	return nil
}

func walk(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		if depth == 0 {
			return errors.New("not an object")
		}
		return nil
	}
	if depth == 0 && delim != '{' {
		return errors.New("not an object")
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name := strings.ToLower(key.(string))
			if seen[name] {
				return fmt.Errorf("key %.40q occurs twice", name)
			}
			seen[name] = true
		}
		if err := walk(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// encode marshals a message and holds it to the limit that receivers apply, so
// that a sender learns of it and not the void.
func encode(kind string, v any, limit int) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrMessage, kind, len(data), limit)
	}
	return data, nil
}

// checks collects the first thing that is wrong with a message.
type checks struct {
	kind string
	err  error
}

func (c *checks) that(ok bool, format string, args ...any) {
	if !ok && c.err == nil {
		c.err = fmt.Errorf("%w: %s: "+format, append([]any{ErrMessage, c.kind}, args...)...)
	}
}

func (c *checks) version(v int) {
	c.that(v == Version, "version %d, understood is %d", v, Version)
}

func (c *checks) text(field, s string, most int) {
	c.that(len(s) <= most, "%s of %d bytes, at most %d", field, len(s), most)
}

// digest accepts "" where optional says so, else "sha256:" and 64 hex digits.
func (c *checks) digest(field, s string, optional bool) {
	if s == "" && optional {
		return
	}
	_, err := ParseDigest(s)
	c.that(err == nil, "%s is not a digest: %.80q", field, s)
}

func (c *checks) count(field string, n int64) {
	c.that(n >= 0 && n <= MaxBlob, "%s is %d", field, n)
}

func (c *checks) oneOf(field, s string, allowed ...string) {
	for _, a := range allowed {
		if s == a {
			return
		}
	}
	c.that(false, "%s is %.40q, not one of %s", field, s, strings.Join(allowed, " "))
}
