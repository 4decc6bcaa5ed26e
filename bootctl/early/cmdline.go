package early

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrCmdline means that the kernel command line does not say what the first
// program must know, or says it twice. The boot part of the slot is wrong.
var ErrCmdline = errors.New("kernel command line")

// Cmdline is the kernel command line as key and value pairs in order.
type Cmdline []Param

// Param is one word of the command line. A word without "=" has no Value.
type Param struct{ Key, Value string }

// ParseCmdline splits the line as the kernel does (lib/cmdline.c, next_arg):
// white space separates, double quotes keep white space in a value and are
// removed, and "--" ends what is meant for the kernel and for us.
func ParseCmdline(line string) Cmdline {
	var params Cmdline
	for line = strings.TrimLeft(line, " \t\n"); line != ""; line = strings.TrimLeft(line, " \t\n") {
		quoted := false
		end := strings.IndexFunc(line, func(c rune) bool {
			if c == '"' {
				quoted = !quoted
			}
			return !quoted && (c == ' ' || c == '\t' || c == '\n')
		})
		if end < 0 {
			end = len(line)
		}
		word := line[:end]
		line = line[end:]
		if word == "--" {
			break
		}
		key, value, _ := strings.Cut(strings.ReplaceAll(word, `"`, ""), "=")
		params = append(params, Param{key, value})
	}
	return params
}

// Value returns the value of key, and "" when the key is absent. A key that
// stands there twice is ErrCmdline: the kernel would take the last one and a
// measurement or a reviewer perhaps the first.
func (c Cmdline) Value(key string) (string, error) {
	value, found := "", false
	for _, p := range c {
		if p.Key != key {
			continue
		}
		if found {
			return "", fmt.Errorf("%w: %s is there twice", ErrCmdline, key)
		}
		value, found = p.Value, true
	}
	return value, nil
}

// watchdogTimeout is the watchdog's time-out that the line asks for, or the default one.
func (c Cmdline) watchdogTimeout() (time.Duration, error) {
	seconds, err := c.Value("tandem.watchdog")
	if err != nil || seconds == "" {
		return defaultTimeout, err
	}
	timeout, err := time.ParseDuration(seconds + "s")
	if err != nil || timeout < time.Second || timeout > time.Hour || timeout%time.Second != 0 {
		return defaultTimeout, fmt.Errorf("%w: tandem.watchdog=%q is no number of seconds from 1 to 3600", ErrCmdline, seconds)
	}
	return timeout, nil
}
