package verity

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var rootHex = strings.Repeat("0123456789abcdef", 4)

// What a kernel command line says has exactly one spelling, and it survives the
// way there and back.
func TestParamsRoundTrip(t *testing.T) {
	for _, salt := range [][]byte{nil, {1}, bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{9}, MaxSalt)} {
		p := Params{DataBlocks: 129, Salt: salt, HashOffset: 129 * BlockSize}
		p.Root[0], p.Root[31] = 0xab, 0xcd
		got, err := ParseParams(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
		require.NoError(t, p.check())
	}
}

func TestParamsRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"empty":               "",
		"a field missing":     "1,8," + rootHex,
		"a field more":        "1,8,-," + rootHex + ",ignore_corruption",
		"another version":     "2,8,-," + rootHex,
		"no blocks":           "1,0,-," + rootHex,
		"negative blocks":     "1,-8,-," + rootHex,
		"more than any disk":  "1,9223372036854775807,-," + rootHex,
		"leading zero":        "1,08,-," + rootHex,
		"sign":                "1,+8,-," + rootHex,
		"empty salt":          "1,8,," + rootHex,
		"odd salt":            "1,8,abc," + rootHex,
		"capitals":            "1,8,AB," + rootHex,
		"salt too long":       "1,8," + strings.Repeat("ab", MaxSalt+1) + "," + rootHex,
		"root hash too short": "1,8,-," + rootHex[2:],
		"root hash too long":  "1,8,-," + rootHex + "00",
		"trailing blank":      "1,8,-," + rootHex + " ",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseParams(s)
			require.ErrorIs(t, err, ErrParams)
		})
	}
}

// A number or a digest of a wrong length is called that, and not a bad spelling.
func TestParamsNamesTheField(t *testing.T) {
	for s, want := range map[string]string{
		"1,8,-," + rootHex[2:]:    "root hash",
		"1,8,-," + rootHex + "00": "root hash",
		"1,8,," + rootHex:         "salt",
	} {
		_, err := ParseParams(s)
		require.EqualError(t, err, ErrParams.Error()+": "+want)
	}
}

// Whatever stands on the command line, parsing ends with an error or with
// parameters that the kernel can be given.
func FuzzParseParams(f *testing.F) {
	f.Add("1,8,-," + rootHex)
	f.Add("1,129,abcd," + rootHex)
	f.Add("1,281474976710656,00," + rootHex)
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseParams(s)
		if err != nil {
			require.ErrorIs(t, err, ErrParams)
			return
		}
		require.NoError(t, p.check())
		require.Equal(t, s, p.String())
	})
}
