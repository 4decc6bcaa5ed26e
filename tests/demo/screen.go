package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/transport"
)

// screen prints one line for each step, with the time since the beginning before it.
//
// On a terminal the last line moves: it is a progress bar, or what is being waited
// for, until the next step takes its place. Elsewhere (a file, CI) only lines that
// stay are printed, and a bar becomes a line at each quarter.
type screen struct {
	out      io.Writer
	terminal bool
	width    int // columns; 0 is not known
	began    time.Time

	moving   bool   // the last line will be replaced
	phase    string // whose bar was drawn last
	quarters int    // of it, that were printed
}

func newScreen(out *os.File) *screen {
	s := &screen{out: out, began: time.Now()}
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	s.terminal = err == nil && os.Getenv("TERM") != "dumb"
	if size, err := unix.IoctlGetWinsize(int(out.Fd()), unix.TIOCGWINSZ); err == nil {
		s.width = int(size.Col)
	}
	return s
}

// elapsed is the time since the beginning, as it stands before each line.
func elapsed(d time.Duration) string {
	tenths := int(d.Round(100*time.Millisecond) / (100 * time.Millisecond))
	return fmt.Sprintf("%2d:%02d.%d", tenths/600, tenths/10%60, tenths%10)
}

// chapter begins a part of the play.
func (s *screen) chapter(format string, args ...any) {
	s.still()
	text := fmt.Sprintf(format, args...)
	if s.terminal {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Fprintf(s.out, "\n%s  %s\n", elapsed(time.Since(s.began)), text)
}

// line says what who did.
func (s *screen) line(who, format string, args ...any) {
	s.still()
	fmt.Fprintf(s.out, "%s  %-9s %s\n", elapsed(time.Since(s.began)), who, printable(fmt.Sprintf(format, args...)))
}

// more continues the line before.
func (s *screen) more(format string, args ...any) {
	s.still()
	fmt.Fprintf(s.out, "%18s %s\n", "", printable(fmt.Sprintf(format, args...)))
}

// text prints lines as they are.
func (s *screen) text(text string) {
	s.still()
	io.WriteString(s.out, text)
}

// move replaces the last line, on a terminal.
func (s *screen) move(who, text string) {
	if !s.terminal {
		return
	}
	line := fmt.Sprintf("%s  %-9s %s", elapsed(time.Since(s.began)), who, printable(text))
	if r := []rune(line); s.width > 0 && len(r) >= s.width {
		line = string(r[:s.width-1])
	}
	fmt.Fprintf(s.out, "\r%s\x1b[K", line)
	s.moving = true
}

// still makes room for a line that stays.
func (s *screen) still() {
	if s.moving {
		io.WriteString(s.out, "\r\x1b[K")
		s.moving = false
	}
}

// progress draws the bar of a phase; a full one stays.
func (s *screen) progress(p transport.Progress) {
	if p.Total <= 0 {
		return
	}
	if p.Phase != s.phase {
		s.phase, s.quarters = p.Phase, 0
	}
	quarter := int(min(p.Done, p.Total) * 4 / p.Total)
	switch {
	case quarter == 4 && s.quarters < 4:
		s.line("device", "%s", bar(p))
	case quarter > s.quarters && !s.terminal:
		s.line("device", "%s", bar(p))
	case quarter < 4:
		s.move("device", bar(p))
	}
	s.quarters = max(s.quarters, quarter)
}

// bar draws how much of what is done, how fast it goes and how long it still takes.
func bar(p transport.Progress) string {
	const width = 24
	full := int(min(p.Done, p.Total) * width / p.Total)
	drawn := fmt.Sprintf("%-18s [%s%s] ", p.Phase, strings.Repeat("#", full), strings.Repeat(".", width-full))
	if p.Phase == "trial" {
		// The core counts its window in seconds.
		return drawn + fmt.Sprintf("healthy for %d of %d s", p.Done, p.Total)
	}
	text := fmt.Sprintf("%3d %%  %s of %s", p.Done*100/p.Total, size(p.Done), size(p.Total))
	if p.Rate > 0 {
		text += fmt.Sprintf("  %s/s", size(p.Rate))
	}
	if p.Done < p.Total && p.Rate > 0 {
		text += "  " + clock(p.Left) + " left"
	}
	if p.Written+p.Skipped > 0 {
		text += fmt.Sprintf("  (downloaded %s, written %s, left alone %s)", size(p.Downloaded), size(p.Written), size(p.Skipped))
	}
	return drawn + text
}

func clock(seconds int64) string {
	seconds = min(seconds, 99*3600)
	if seconds >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
	}
	return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
}

// size is a number of bytes for people, in powers of 1024.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// printable keeps what a device or its console says from acting on the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, s)
}
