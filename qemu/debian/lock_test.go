package debian

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The locks in the tree are whole, written as String writes them, and differ in what
// makes the second release worth installing.
func TestLocked(t *testing.T) {
	one, err := Locked(1)
	require.NoError(t, err)
	two, err := Locked(2)
	require.NoError(t, err)
	for n, l := range map[int]Lock{1: one, 2: two} {
		text, err := locks.ReadFile("locks/" + string(rune('0'+n)) + ".txt")
		require.NoError(t, err)
		require.Equal(t, string(text), l.String(), "release %d", n)
		_, err = l.kernel()
		require.NoError(t, err, "release %d", n)
	}
	require.NotEmpty(t, one.Differences(two), "the second release updates nothing")
	_, err = Locked(3)
	require.ErrorIs(t, err, ErrLock)
}

// A lock names files and arguments of programs run as root: what is no plain package
// is refused.
func TestParseLock(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for name, line := range map[string]string{
		"a path as name":        "../x 1 " + sum,
		"an option as name":     "--force 1 " + sum,
		"an architecture":       "libc6:i386 1 " + sum,
		"a path as version":     "bash 1/../.. " + sum,
		"no hash":               "bash 1",
		"half a hash":           "bash 1 " + sum[:32],
		"a word for a hash":     "bash 1 " + strings.Repeat("xy", 32),
		"one field too many":    "bash 1 " + sum + " amd64",
		"an empty line":         "",
		"the same name twice":   "bash 1 " + sum + "\nbash 2 " + sum,
		"a comment with no #":   "comment",
		"a comment with no gap": "#comment",
	} {
		_, err := ParseLock(line + "\n")
		require.ErrorIs(t, err, ErrLock, name)
	}
}

// What a lock of another day changed is said by name.
func TestDifferences(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	before := Lock{Packages: []Package{{"bash", "1", sum}, {"gone", "1", sum}, {"same", "1", sum}}}
	after := Lock{Packages: []Package{{"same", "1", sum}, {"new", "3", sum}, {"bash", "2", sum}}}
	require.Equal(t, []string{"bash 1 -> 2", "new 3 is new", "gone 1 is gone"}, before.Differences(after))
	require.Empty(t, before.Differences(before))
}
