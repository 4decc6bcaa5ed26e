package early

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// maxPanic bounds what is kept of a kernel's last words, in bytes. The end is
// what matters: it has the cause and the stack.
const maxPanic = 4 << 10

// priorities are the "<4>" with which each line of the ring buffer begins.
var priorities = regexp.MustCompile(`(?m)^<\d{1,3}>`)

// readPstore collects the end of the kernel log that the last panic left in the
// firmware (pstore, Documentation/admin-guide/ramoops.rst; the file system is
// mounted at dir) and returns the files it came from. "" means that there was
// no panic, or that the board has nowhere to keep its log.
//
// A backend keeps a log in several records; each starts with a line such as
// "Panic#2 Part1", and part 1 is the end of the log. Records of an Oops that did
// not stop the kernel are ignored, but removed with the others: the firmware's
// room is small.
func readPstore(dir string) (text string, files []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil
	}
	type record struct {
		dump, part int
		text       string
	}
	var records []record
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "dmesg-") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		files = append(files, path)
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		content, err := io.ReadAll(io.LimitReader(f, 1<<20))
		f.Close()
		if err != nil {
			continue
		}
		head, body, _ := strings.Cut(string(content), "\n")
		var r record
		if _, err := fmt.Sscanf(head, "Panic#%d Part%d", &r.dump, &r.part); err != nil {
			continue
		}
		r.text = strings.ToValidUTF8(body, "?")
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.dump, b.dump), cmp.Compare(b.part, a.part))
	})
	var all strings.Builder
	for _, r := range records {
		all.WriteString(r.text)
		if !strings.HasSuffix(r.text, "\n") {
			all.WriteByte('\n')
		}
	}
	text = strings.TrimRight(priorities.ReplaceAllString(all.String(), ""), "\n")
	if len(text) > maxPanic {
		text = text[len(text)-maxPanic:]
		// Begin with a whole line.
		if _, rest, cut := strings.Cut(text, "\n"); cut {
			text = rest
		}
	}
	return text, files
}
