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
	// A script on standard input is read to its end before it runs: the runner
	// would otherwise pass the rest of it to the first command as its input.
	var program *syntax.File
	if !interactive {
		var err error
		if program, err = syntax.NewParser().Parse(source, name); err != nil {
			fmt.Fprintln(s.err, err)
			return 2
		}
	}
	r, err := interp.New(interp.StdIO(s.in, s.out, s.err), interp.Interactive(interactive), interp.Params(params...))
	if err != nil {
		fmt.Fprintln(s.err, err)
		return 2
	}
	if interactive {
		return converse(r, s)
	}
	return code(r.Run(context.Background(), program), s.err)
}

// converse reads statements from a terminal. The prompt names the slot and the
// version, so that nobody types at the wrong system after a revert.
func converse(r *interp.Runner, s streams) int {
	// The shell outlives ^C. Caught, not ignored: an ignored signal would stay
	// ignored in the commands it starts.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, unix.SIGINT)
	defer signal.Stop(interrupts)

	me := identify()
	prompt := fmt.Sprintf("tiny:%s:%s# ", me.Slot, me.Version)
	for {
		fmt.Fprint(s.out, prompt)
		parser := syntax.NewParser()
		misread := false
		for statements, err := range parser.InteractiveSeq(s.in) {
			if err != nil {
				fmt.Fprintln(s.err, err)
				misread = true
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
		if !misread {
			return 0
		}
	}
}

// oneStatement runs one statement, which ^C ends.
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
