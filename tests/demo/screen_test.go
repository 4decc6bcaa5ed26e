package demo

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

// In a file a bar is a line for each quarter that was reached, and no line is drawn over.
func TestBarInFile(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, began: time.Now()}
	for done := int64(0); done <= 1000; done += 10 {
		s.progress(transport.Progress{Phase: "writing root", Done: done, Total: 1000, Rate: 100, Left: (1000 - done) / 100})
	}
	s.progress(transport.Progress{Phase: "writing root", Done: 1000, Total: 1000})
	require.Equal(t, 4, bytes.Count(out.Bytes(), []byte("\n")), out.String())
	require.NotContains(t, out.String(), "\r")
	require.NotContains(t, out.String(), "\x1b")
	require.Contains(t, out.String(), "[############............]  50 %")
	require.Contains(t, out.String(), "0:05 left")
}

// On a terminal a bar is drawn over until it is full, and no line of it is wider than
// the terminal: what wraps cannot be drawn over.
func TestBarOnTerminal(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, terminal: true, width: 40, began: time.Now()}
	for done := int64(0); done <= 100; done += 10 {
		s.progress(transport.Progress{Phase: "writing root", Done: done, Total: 100, Rate: 1, Left: 100 - done})
	}
	require.Equal(t, 1, bytes.Count(out.Bytes(), []byte("\n")), "the full bar stays")
	for line := range bytes.SplitSeq(bytes.TrimSpace(out.Bytes()), []byte("\r")) {
		moving, is := bytes.CutSuffix(line, []byte("\x1b[K"))
		if is {
			require.LessOrEqual(t, len([]rune(string(moving))), 39)
		}
	}
}

// What a device says cannot act on the terminal of who looks.
func TestDeviceTextIsPrintable(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, began: time.Now()}
	s.line("device", "%s", "a\x1b[2Jb\rc\nd")
	require.Regexp(t, `a\.\[2Jb\.c\.d\n$`, out.String())
}

// Only those lines of a console are shown that tell the story, and shells and times
// around them are not.
func TestConsoleLines(t *testing.T) {
	for line, want := range map[string]string{
		"tandem: slot b (trial, 0 left)\n":                                     "tandem: slot b (trial, 0 left)",
		"[    6.442024] tandem-init: slot b on vda\n":                          "tandem-init: slot b on vda",
		"tiny:a:1.0.0# [    6.9] tandem-init: measure: /dev/tpmrm0: no TPM\n":  "tandem-init: measure: /dev/tpmrm0: no TPM",
		"[    0.0] Command line: console=ttyS0 ro tandem.verity=1,8192,8236\n": "",
		"[   20.0] reboot: Restarting system\n":                                "reboot: Restarting system",
		"[    0.0] secureboot: Secure boot disabled\n":                         "",
	} {
		got := ""
		if m := worth.FindStringSubmatch(line); m != nil {
			got = m[1]
		}
		require.Equal(t, want, got, line)
	}
}
