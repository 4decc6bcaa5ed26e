package predict

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// The opcodes in FORMAT.md, from which others implement this, are those of the code.
func TestFormatTables(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^    (\d0)  (\S{16})    ([0-9A-F]0)  (\S{16})    (\d0)  (\S{16})    ([0-9A-F]0)  (\S{16})$`).FindAllStringSubmatch(string(text), -1)
	require.Len(t, rows, 8)
	for i, row := range rows {
		require.Equal(t, []string{
			fmt.Sprintf("%X0", i), oneByte[16*i:][:16], fmt.Sprintf("%X0", i+8), oneByte[16*(i+8):][:16],
			fmt.Sprintf("%X0", i), twoByte[16*i:][:16], fmt.Sprintf("%X0", i+8), twoByte[16*(i+8):][:16],
		}, row[1:])
	}
}
