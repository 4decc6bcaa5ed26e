package main

import (
	"io"
	"strings"
	"sync"
)

// ringLines is how much of our own log is kept for the report of a revert.
const ringLines = 64

// ring passes a log on and keeps its last lines.
type ring struct {
	w     io.Writer
	mu    sync.Mutex
	lines []string
}

func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.lines = append(r.lines, strings.TrimRight(string(p), "\n"))
	if len(r.lines) > ringLines {
		r.lines = append(r.lines[:0], r.lines[len(r.lines)-ringLines:]...)
	}
	r.mu.Unlock()
	return r.w.Write(p)
}

func (r *ring) last(n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines[max(0, len(r.lines)-n):]...)
}
