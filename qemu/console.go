package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"
)

// consoleLimit is how much of the console is kept in memory, in bytes. All of
// it is in console.log.
const consoleLimit = 4 << 20

// console is everything the machine said on its first serial port since the
// Device was made, without terminal control. Guarded by Device.mu.
type console struct {
	text   []byte
	cursor int // what Expect has passed
	filter escapes

	log   io.Writer // nil while the power is off
	began time.Time
	fresh bool // the log stands at the beginning of a line

	watchers map[chan []byte]struct{}
}

// powerOn marks a power-on in the log. What a person or Expect reads next comes
// from this boot: everything older is passed.
func (c *console) powerOn(log io.Writer, now time.Time) {
	c.log, c.began, c.fresh, c.cursor = log, now, true, len(c.text)
	fmt.Fprintf(log, "--- power on %s\n", now.UTC().Format(time.RFC3339))
}

func (c *console) powerOff() {
	if !c.fresh {
		fmt.Fprintln(c.log)
	}
	fmt.Fprintf(c.log, "--- power off after %.3f s\n", time.Since(c.began).Seconds())
	c.log = nil
}

// add takes in what the serial port sent.
func (c *console) add(raw []byte) {
	for w := range c.watchers {
		select {
		case w <- bytes.Clone(raw):
		default: // a stuck terminal must not stop the machine's console
		}
	}
	p := c.filter.strip(raw)
	c.text = append(c.text, p...)
	if drop := len(c.text) - consoleLimit; drop > 0 {
		c.text = append(c.text[:0], c.text[drop:]...)
		c.cursor = max(0, c.cursor-drop)
	}
	for len(p) > 0 {
		if c.fresh {
			fmt.Fprintf(c.log, "%9.3f ", time.Since(c.began).Seconds())
		}
		line, rest, whole := bytes.Cut(p, []byte{'\n'})
		c.log.Write(line)
		if whole {
			c.log.Write([]byte{'\n'})
		}
		c.fresh, p = whole, rest
	}
}

func (c *console) lastLine() string {
	t := bytes.TrimSpace(c.text)
	return string(t[bytes.LastIndexByte(t, '\n')+1:])
}

func (d *Device) readConsole(serial *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := serial.Read(buf)
		if n > 0 {
			d.mu.Lock()
			d.console.add(buf[:n])
			d.notify()
			d.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// tail is the end of the console, for an error message.
func (d *Device) tail() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(d.console.text), []byte{'\n'})
	lines = lines[max(0, len(lines)-15):]
	return "console: " + string(bytes.Join(lines, []byte("\nconsole: ")))
}

// Expect waits until the console shows a match of re after the last one that
// Expect returned (or after the last power-on), and returns the match and its
// groups. A pattern that can match a line only in part may match before the
// rest of the line has come; end it with \n where that matters.
//
// It gives up when the machine goes off.
func (d *Device) Expect(ctx context.Context, re *regexp.Regexp, within time.Duration) ([]string, error) {
	var found []string
	err := d.until(ctx, fmt.Sprintf("console line %q", re), within, func() (bool, error) {
		rest := d.console.text[d.console.cursor:]
		if at := re.FindSubmatchIndex(rest); at != nil {
			for i := 0; i < len(at); i += 2 {
				group := ""
				if at[i] >= 0 {
					group = string(rest[at[i]:at[i+1]])
				}
				found = append(found, group)
			}
			d.console.cursor += at[1]
			return true, nil
		}
		if d.run == nil {
			return false, ErrOff
		}
		return false, nil
	})
	return found, err
}

// Transcript is everything on the console since the Device was made, at most
// the last 4 MiB.
func (d *Device) Transcript() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.console.text)
}

// Send types a line on the console.
func (d *Device) Send(line string) error {
	r, err := d.running()
	if err != nil {
		return fmt.Errorf("type on the console of %s: %w", d.cfg.Name, err)
	}
	_, err = io.WriteString(r.serial, line+"\n")
	return err
}

// Attach connects a terminal to the console until ctx ends or in does: what the
// machine says goes to out as it comes, what in says is typed. The machine may
// go off and on meanwhile.
func (d *Device) Attach(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	says := make(chan []byte, 256)
	d.mu.Lock()
	if d.console.watchers == nil {
		d.console.watchers = map[chan []byte]struct{}{}
	}
	d.console.watchers[says] = struct{}{}
	backlog := bytes.Clone(d.console.text[max(0, len(d.console.text)-4096):])
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.console.watchers, says)
		d.mu.Unlock()
	}()
	if _, err := out.Write(bytes.ReplaceAll(backlog, []byte("\n"), []byte("\r\n"))); err != nil {
		return err
	}
	go func() {
		defer stop()
		buf := make([]byte, 4096)
		for {
			n, err := in.Read(buf)
			if r, off := d.running(); off == nil && n > 0 {
				r.serial.Write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case p := <-says:
			if _, err := out.Write(p); err != nil {
				return err
			}
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.Canceled) {
				return nil
			}
			return context.Cause(ctx)
		}
	}
}

// escapes removes what is for a terminal and not for a reader: carriage
// returns, NULs, and the control sequences of ECMA-48 that firmware and GRUB
// position their text with. The state lasts over calls, because a sequence may
// be split between two reads.
type escapes struct{ state byte }

func (e *escapes) strip(in []byte) []byte {
	out := make([]byte, 0, len(in))
	for _, b := range in {
		switch e.state {
		case 'e': // after ESC
			e.state = 0
			if b == '[' || b == '(' {
				e.state = b
			}
		case '[': // parameters, up to a final byte (ECMA-48, 5.4)
			if b >= 0x40 && b <= 0x7e {
				e.state = 0
			}
		case '(': // one byte that names a character set
			e.state = 0
		default:
			switch b {
			case 0x1b:
				e.state = 'e'
			case '\r', 0:
			default:
				out = append(out, b)
			}
		}
	}
	return out
}
