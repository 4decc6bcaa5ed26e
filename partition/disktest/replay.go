package disktest

import (
	"fmt"
	"os"
	"strings"
)

// replayed returns the part of DISKTEST that speaks of crashes at this depth.
func replayed(path string) string {
	all := os.Getenv("DISKTEST")
	if all == "" {
		return ""
	}
	if _, states, ok := strings.Cut(all, ": "); ok {
		all = states // what is before them is the test's, as which fault came first
	}
	states := strings.Split(all, "; ")
	depth := strings.Count(path, "; ")
	if depth >= len(states) {
		return ""
	}
	return states[depth]
}

// parse reads the line of a state; false means that it speaks of another cut.
func parse(s string, cut, pending int) ([]fate, bool) {
	var at int
	rest := ""
	if n, _ := fmt.Sscanf(s, "cut=%d %s", &at, &rest); n == 0 || at != cut {
		return nil, false
	}
	var fates []fate
	for rest != "" {
		var f byte
		var n int
		if _, err := fmt.Sscanf(rest, "%c%d", &f, &n); err != nil || n < 1 || n > pending || !strings.ContainsRune("onxuXU", rune(f)) {
			return nil, false
		}
		for range n {
			fates = append(fates, fate(f))
		}
		rest = strings.TrimPrefix(rest, fmt.Sprintf("%c%d", f, n))
	}
	return fates, len(fates) == pending
}
