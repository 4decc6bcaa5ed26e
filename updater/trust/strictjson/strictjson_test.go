package strictjson_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/trust/strictjson"
)

var rules = strictjson.Rules{Size: 1 << 10, Depth: 4}

// Two readers that disagree about what signed bytes say are the start of an
// attack: what different readers take differently is refused.
func TestCheckRefusesAmbiguity(t *testing.T) {
	for _, doc := range []string{
		``, `{`, `{"a"}`, `{"a":}`, `{"a":1,}`, `[1,]`, `[1 2]`, `01`, `1.`, `-`, `1e`, `tru`, `nulL`, `"`, `"\`, `"\x"`, "\"\x01\"",
		`{"a":1,"a":2}`, `{"a":1,"A":2}`, `{"a":1,"\u0061":2}`, "{\"s\":1,\"\u017f\":2}", "{\"k\":1,\"\u212a\":2}",
		`"\ud800"`, `"\ud800\ud800"`, "\"\xff\"", `1 1`, `{} {}`, `+1`, `'a'`, `{a:1}`, "\ufeff{}", `NaN`, `/**/1`,
		`{"a" 1}`, `{"a":1 "b":2}`, `{1:2}`, `{"a":1 }x`, `-01`, `1.e1`, `1e+`,
	} {
		require.ErrorIs(t, strictjson.Check([]byte(doc), rules), strictjson.ErrSyntax, doc)
	}
	for _, doc := range []string{`0`, `-0.5e+3`, `1E5`, `1e-5`, `10.01`, `" \" \\ é 😀"`, `[[[]]]`, `{"a":{"a":null},"b":[true,false]}`, " \t\r\n{ \"a\" : [ 1 , 2 ] } "} {
		require.NoError(t, strictjson.Check([]byte(doc), rules), doc)
	}
	// Where two rules refuse the same bytes, the one that names the cause comes first.
	for doc, cause := range map[string]string{"\"\xff\"": "invalid UTF-8", "\"\x01\"": "control character", `{1":2}`: "no key"} {
		require.ErrorContains(t, strictjson.Check([]byte(doc), rules), cause, doc)
	}
	plain := rules
	plain.PlainKeys = true
	require.NoError(t, strictjson.Check([]byte(`{"az09_-.":1}`), plain))
	for _, doc := range []string{`{"A":1}`, `{"":1}`, `{"a b":1}`, `{"a{":1}`, "{\"a`\":1}", `{"a:":1}`, `{"a/":1}`, `{"a,":1}`, `{"a":null}`, `null`} {
		require.ErrorIs(t, strictjson.Check([]byte(doc), plain), strictjson.ErrSyntax, doc)
	}
}

// Limits hold before memory is spent.
func TestCheckLimits(t *testing.T) {
	require.ErrorIs(t, strictjson.Check([]byte(`[[[[1]]]]`), rules), strictjson.ErrTooLarge)
	require.ErrorIs(t, strictjson.Check([]byte(`"`+strings.Repeat("a", 1<<10)+`"`), rules), strictjson.ErrTooLarge)
	require.NoError(t, strictjson.Check([]byte(`[[[1]]]`), rules))
	require.NoError(t, strictjson.Check([]byte(`"`+strings.Repeat("a", 1<<10-2)+`"`), rules))
	require.ErrorIs(t, strictjson.Check([]byte(`"`+strings.Repeat("a", 1<<10-1)+`"`), rules), strictjson.ErrTooLarge)
	// Two bytes of text may be a hundred in memory.
	many := strictjson.Rules{Size: 1 << 20, Depth: 4}
	require.NoError(t, strictjson.Check([]byte(`[`+strings.Repeat("0,", strictjson.MaxValues-2)+`0]`), many))
	for _, value := range []string{"0", "{}", "[]", `""`, `{"a":true}`} {
		require.ErrorIs(t, strictjson.Check([]byte(`[`+strings.Repeat(value+",", strictjson.MaxValues-1)+`0]`), many), strictjson.ErrTooLarge, value)
	}
}

// Check accepts nothing that encoding/json refuses: it may only be stricter.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"a":[1,-0.5e7,"x\u00e9\n",true,null]}`))
	f.Add([]byte(`"\ud83d\ude00"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if strictjson.Check(data, rules) == nil {
			require.True(t, json.Valid(data), "%q", data)
		}
	})
}
