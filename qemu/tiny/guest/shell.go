package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// shell runs "sh [-i] [-c SCRIPT | FILE] [ARGUMENT...]".
func shell(s streams, args []string) int {
	script, interactive := "", false
	given := false
	f := flag.NewFlagSet("sh", flag.ContinueOnError)
	f.SetOutput(s.err)
	f.Func("c", "run this script", func(text string) error {
		script, given = text, true
		return nil
	})
	f.BoolVar(&interactive, "i", false, "prompt")
	exit := f.Bool("e", false, "exit on the first failure")
	if err := f.Parse(args); err != nil {
		return 2
	}
	params := f.Args()
	var source io.Reader = s.in
	name := "sh"
	switch {
	case given:
		source = strings.NewReader(script)
		// As in POSIX, what follows the script is $0, then $1.
		if len(params) > 0 {
			name, params = params[0], params[1:]
		}
	case len(params) > 0:
		file, err := os.Open(params[0])
		if err != nil {
			fmt.Fprintln(s.err, err)
			return 127
		}
		defer file.Close()
		source, name, params = file, params[0], params[1:]
	}
	if *exit {
		params = append([]string{"-e", "--"}, params...)
	} else {
		params = append([]string{"--"}, params...)
	}
	r, err := interp.New(interp.StdIO(s.in, s.out, s.err), interp.Interactive(interactive), interp.Params(params...))
	if err != nil {
		fmt.Fprintln(s.err, err)
		return 2
	}
	if interactive {
		return converse(r, s)
	}
	program, err := syntax.NewParser().Parse(source, name)
	if err != nil {
		fmt.Fprintln(s.err, err)
		return 2
	}
	return code(r.Run(context.Background(), program), s.err)
}

// converse reads statements from a terminal. The prompt names the slot and the
// version, so that nobody types at the wrong system after a revert.
func converse(r *interp.Runner, s streams) int {
	me := identify()
	prompt := fmt.Sprintf("tiny:%s:%s# ", me.Slot, me.Version)
	parser := syntax.NewParser()
	for {
		fmt.Fprint(s.out, prompt)
		for statements, err := range parser.InteractiveSeq(s.in) {
			if err != nil {
				fmt.Fprintln(s.err, err)
				break
			}
			if parser.Incomplete() {
				fmt.Fprint(s.out, "> ")
				continue
			}
			for _, statement := range statements {
				if end := oneStatement(r, s, statement); end != nil {
					return *end
				}
			}
			fmt.Fprint(s.out, prompt)
		}
		// The terminal is gone, or the parser gave up on a line.
		if _, err := s.in.Read(nil); err != nil || !isTerminal(s.in) {
			return 0
		}
	}
}

// oneStatement runs one statement, which ^C ends; the shell lives on. Caught,
// not ignored: an ignored signal would stay ignored in the commands it starts.
func oneStatement(r *interp.Runner, s streams, statement *syntax.Stmt) (end *int) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT)
	defer stop()
	err := r.Run(ctx, statement)
	if r.Exited() {
		n := code(err, s.err)
		return &n
	}
	code(err, s.err)
	return nil
}

// code is the exit code of a script.
func code(err error, errout io.Writer) int {
	var status interp.ExitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintln(errout, err)
	return 1
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
