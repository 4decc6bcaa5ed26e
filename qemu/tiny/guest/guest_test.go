package guest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/qemu/tiny/port"
)

func tiny(in string, args ...string) (code int, out, errout string) {
	var o, e bytes.Buffer
	code = Main(args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

// The shell runs scripts as other shells do, exit codes and arguments included.
func TestShell(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(script, []byte("echo $# $2\nexit 4\n"), 0o755))
	for name, c := range map[string]struct {
		args []string
		in   string
		code int
		out  string
	}{
		"a script as argument":     {[]string{"sh", "-c", "echo $0-$1; exit 3", "name", "one"}, "", 3, "name-one\n"},
		"a script from a pipe":     {[]string{"sh"}, "for i in 1 2; do echo $i; done", 0, "1\n2\n"},
		"a script file":            {[]string{"sh", script, "a", "b c"}, "", 4, "2 b c\n"},
		"the first failure ends":   {[]string{"sh", "-e", "-c", "false; echo on"}, "", 1, ""},
		"no such command":          {[]string{"sh", "-c", "surely-not-there"}, "", 127, ""},
		"broken syntax":            {[]string{"sh", "-c", "if"}, "", 2, ""},
		"pipes between its own":    {[]string{"sh", "-c", "printf 'b\\na\\n' | { read x; echo got $x; }"}, "", 0, "got b\n"},
		"called by its other name": {[]string{"/sbin/tiny", "sh", "-c", "echo x"}, "", 0, "x\n"},
	} {
		code, out, _ := tiny(c.in, c.args...)
		require.Equal(t, c.code, code, name)
		require.Equal(t, c.out, out, name)
	}
}

// The commands say what the ones that everybody knows say.
func TestCommandsAgree(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	text := strings.Repeat("one line\nand another, with ümlaut\n", 20)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	for _, args := range [][]string{
		{"sha256sum", file}, {"head", "-n", "3", file}, {"head", "-c", "17", file}, {"tail", "-n", "5", file},
		{"tail", file}, {"grep", "other", file}, {"grep", "-v", "other", file}, {"grep", "-c", "one", file}, {"grep", "-q", "nothing", file},
		{"cat", file}, {"dd", "if=" + file, "bs=10", "skip=2", "count=3"}, {"ls", dir},
	} {
		known := exec.Command(args[0], args[1:]...)
		known.Env = append(os.Environ(), "LC_ALL=C")
		want, _ := known.Output()
		code, out, errout := tiny("", args...)
		require.Equal(t, string(want), out, "%q: %s", args, errout)
		require.Equal(t, known.ProcessState.ExitCode(), code, "%q", args)
	}
}

// dd damages what it is told to and nothing else.
func TestDDInPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, bytes.Repeat([]byte{1}, 100), 0o644))
	code, _, errout := tiny("xxxx", "dd", "of="+file, "bs=10", "seek=3", "conv=notrunc")
	require.Zero(t, code, errout)
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	want := bytes.Repeat([]byte{1}, 100)
	copy(want[30:], "xxxx")
	require.Equal(t, want, got)
	code, _, _ = tiny("", "dd", "of="+file, "size=3")
	require.Equal(t, 1, code)
}

// served connects a client to a serving guest.
func served(t *testing.T) *port.Client {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(theirs, theirs)
	}()
	c := port.NewClient(ours)
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	hello, err := c.Boot(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, port.Version, hello.Hello)
	return c
}

// Commands run with their input and environment, and their ends are told apart:
// success, failure, a signal, a time-out, a program that is not there.
func TestPort(t *testing.T) {
	c := served(t)
	short := 0.05
	for name, v := range map[string]struct {
		request port.Request
		code    int
		out     string
	}{
		"succeeds":        {port.Request{Argv: []string{"sh", "-c", "echo $WORD; pwd"}, Env: map[string]string{"WORD": "w"}}, 0, "w\n/\n"},
		"fails":           {port.Request{Argv: []string{"sh", "-c", "cat; exit 3"}, Stdin: "typed"}, 3, "typed"},
		"binary in":       {port.Request{Argv: []string{"od", "-An", "-tx1"}, Stdin64: []byte{0, 255}}, 0, " 00 ff\n"},
		"binary out":      {port.Request{Argv: []string{"printf", `\000\377`}, Base64: true}, 0, "AP8="},
		"is killed":       {port.Request{Argv: []string{"sh", "-c", "kill -9 $$"}}, 137, ""},
		"hangs":           {port.Request{Argv: []string{"sleep", "1000"}, TimeoutS: &short}, 124, ""},
		"its child hangs": {port.Request{Argv: []string{"sh", "-c", "sleep 1000; true"}, TimeoutS: &short}, 124, ""},
		"is absent":       {port.Request{Argv: []string{"surely-not-there"}}, 127, ""},
	} {
		answer, err := c.Run(t.Context(), v.request)
		require.NoError(t, err, name)
		require.Equal(t, v.code, *answer.RC, name)
		require.Equal(t, v.out, answer.Out, name)
	}
	_, err := c.Run(t.Context(), port.Request{})
	require.ErrorIs(t, err, port.ErrRefused)
}

// More output than a line can carry is cut and said to be.
func TestPortCutsOutput(t *testing.T) {
	c := served(t)
	answer, err := c.Run(t.Context(), port.Request{Argv: []string{"head", "-c", "1000000", "/dev/zero"}, Base64: true})
	require.NoError(t, err)
	require.True(t, answer.Truncated)
	require.Less(t, len(answer.Out), port.MaxLine)
	// The same as text grows to six times its size, which is too long for a line.
	_, err = c.Run(t.Context(), port.Request{Argv: []string{"head", "-c", "1000000", "/dev/zero"}})
	require.ErrorIs(t, err, port.ErrRefused)
	_, err = c.Run(t.Context(), port.Request{Argv: []string{"true"}})
	require.NoError(t, err)
}
