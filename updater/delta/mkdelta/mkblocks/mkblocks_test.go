package mkblocks

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSmoke(t *testing.T) {
	data := bytes.Repeat([]byte("hello world, "), 100000)
	for i := 0; i < len(data); i += 97 {
		data[i] = byte(i * i >> 7)
	}
	var out bytes.Buffer
	s, err := Make(t.Context(), Image{bytes.NewReader(data), int64(len(data))}, Options{}, &out)
	require.NoError(t, err)
	t.Logf("%+v", s)
}
