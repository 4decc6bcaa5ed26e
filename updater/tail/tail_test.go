package tail

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// However a program cuts what it says into pieces, its end is kept and never more than
// the limit.
func TestWriter(t *testing.T) {
	said := strings.Repeat("all is well\n", 1000) + "bus is busy\nmotor not found\n\n"
	for _, piece := range []int{1, 7, 512, Limit - 1, Limit, Limit + 1, len(said)} {
		var w Writer
		for rest := said; rest != ""; {
			n, err := w.Write([]byte(rest[:min(piece, len(rest))]))
			require.NoError(t, err)
			require.Equal(t, min(piece, len(rest)), n)
			rest = rest[n:]
			require.LessOrEqual(t, len(w.b), Limit)
		}
		require.Equal(t, strings.TrimSpace(said[len(said)-Limit:]), w.Text())
		require.Equal(t, "motor not found", w.Line())
	}
	var w Writer
	require.Empty(t, w.Line())
	_, _ = w.Write([]byte("one line"))
	require.Equal(t, "one line", w.Line())
}
