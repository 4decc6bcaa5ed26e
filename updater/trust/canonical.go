package trust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// canonicalize writes JSON in the canonical form that TUF signs: no white
// space, keys sorted by code point, whole numbers only, and in strings only the
// quotation mark and the backslash escaped (OLPC canonical JSON). Input has
// passed strictjson, so that no two readers see different values in it.
func canonicalize(data []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return appendCanonical(make([]byte, 0, len(data)), v)
}

func appendCanonical(out []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case nil:
		return append(out, "null"...), nil
	case bool:
		return strconv.AppendBool(out, v), nil
	case string:
		return appendText(out, v), nil
	case json.Number:
		n, err := v.Int64()
		// "-0" is a whole number with two spellings.
		if err != nil || strconv.FormatInt(n, 10) != v.String() {
			return nil, fmt.Errorf("%w: number %.40q has no canonical form", ErrFormat, v.String())
		}
		return append(out, v...), nil
	case []any:
		out = append(out, '[')
		for i, e := range v {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = appendCanonical(out, e); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		out = append(out, '{')
		for i, k := range keys {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(appendText(out, k), ':')
			if out, err = appendCanonical(out, v[k]); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	}
	return nil, fmt.Errorf("%w: %T has no canonical form", ErrFormat, v)
}

func appendText(out []byte, s string) []byte {
	out = append(out, '"')
	for _, c := range []byte(s) {
		if c == '"' || c == '\\' {
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return append(out, '"')
}
