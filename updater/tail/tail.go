// Package tail keeps the end of what a program says: the line with which it fails is its
// last, and how much it says before is its own choice.
package tail

import "bytes"

// Limit bounds what is kept, in bytes.
const Limit = 4 << 10

// Writer takes everything and keeps the end of it. The zero value is ready for use, by
// one goroutine at a time.
type Writer struct{ b []byte }

// Write implements io.Writer. It never fails, so that no program has to end because of
// what it says.
func (w *Writer) Write(p []byte) (int, error) {
	w.b = append(w.b, p[max(0, len(p)-Limit):]...)
	w.b = w.b[max(0, len(w.b)-Limit):]
	return len(p), nil
}

// Text is what was kept, without white space at its ends.
func (w *Writer) Text() string { return string(bytes.TrimSpace(w.b)) }

// Line is the last line of it.
func (w *Writer) Line() string {
	text := bytes.TrimSpace(w.b)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}
