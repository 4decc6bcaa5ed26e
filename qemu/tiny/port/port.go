// Package port speaks the command port of the tiny system: JSON lines over the
// second serial port of a lab machine. ../PROTOCOL.md has the bytes; this
// package has them as Go values, and the host's side as a Client. The guest's
// side is in package guest.
package port

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// Version is the protocol's version, the value of "hello".
	Version = 1
	// MaxLine is the longest line, in bytes.
	MaxLine = 1 << 20
	// MaxOutput is the most that an answer carries of each stream, in bytes.
	MaxOutput = 256 << 10

	// recordSeparator begins a line, so that what firmware and bootloader
	// write to the same port cannot be taken for a part of it.
	recordSeparator = 0x1e
)

// Request asks the guest to run a command, or with Hello to say who it is.
type Request struct {
	ID       int               `json:"id"`
	Hello    bool              `json:"hello,omitempty"`
	Argv     []string          `json:"argv,omitempty"`
	Stdin    string            `json:"stdin,omitempty"`
	Stdin64  []byte            `json:"stdin64,omitempty"`
	Env      map[string]string `json:"env,omitempty"`
	TimeoutS *float64          `json:"timeout_s,omitempty"` // nil means 60, 0 means none
	Base64   bool              `json:"base64,omitempty"`
	Detach   bool              `json:"detach,omitempty"`
}

// Message is what the guest sends: a hello (Hello > 0), an answer (RC set), or a
// refusal (Error set).
type Message struct {
	ID      int    `json:"id,omitempty"`
	Hello   int    `json:"hello,omitempty"`
	Slot    string `json:"slot,omitempty"`
	Version string `json:"version,omitempty"`
	BootID  string `json:"boot_id,omitempty"`

	RC        *int   `json:"rc,omitempty"`
	Out       string `json:"out,omitempty"`
	Err       string `json:"err,omitempty"`
	Truncated bool   `json:"truncated,omitempty"`
	PID       int    `json:"pid,omitempty"`

	Error string `json:"error,omitempty"`
}

// ErrLine means that a line was no message of this protocol, or too long. The
// lines after it can be read.
var ErrLine = errors.New("not a line of the command port")

// Write sends v as one line, in one call.
func Write(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line := append([]byte{recordSeparator}, text...)
	if len(line) >= MaxLine {
		return fmt.Errorf("%w: %d bytes", ErrLine, len(line))
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// Reader finds the lines in what comes from a port.
type Reader struct {
	in *bufio.Reader
	// strict: what comes without a separator is not a line. The host is strict,
	// since the firmware talks to it; the guest is not, so that a person can
	// type at the port.
	strict bool
}

// NewReader returns a Reader for the host's end if strict, else for the guest's.
func NewReader(r io.Reader, strict bool) *Reader {
	return &Reader{in: bufio.NewReaderSize(r, 64<<10), strict: strict}
}

// Next reads the next line into v, passing over noise. An error other than
// ErrLine is the port's and final.
func (r *Reader) Next(v any) error {
	for {
		line, err := r.line()
		if err != nil {
			return err
		}
		start := bytes.LastIndexByte(line, recordSeparator)
		if start < 0 && r.strict {
			continue
		}
		line = bytes.TrimSpace(line[start+1:])
		if len(line) == 0 {
			continue
		}
		if err := json.Unmarshal(line, v); err != nil {
			return fmt.Errorf("%w: %w", ErrLine, err)
		}
		return nil
	}
}

// line reads up to a line feed. Of a line that is too long nothing is kept.
func (r *Reader) line() ([]byte, error) {
	var line []byte
	long := false
	for {
		part, err := r.in.ReadSlice('\n')
		if long = long || len(line)+len(part) > MaxLine; long {
			line = nil
		} else {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return nil, err
		case long:
			return nil, fmt.Errorf("%w: more than %d bytes", ErrLine, MaxLine)
		default:
			return line, nil
		}
	}
}
