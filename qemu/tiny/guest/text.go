package guest

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// each runs do on every file, or on standard input if there is none.
func each(s streams, files []string, do func(name string, r io.Reader) error) error {
	if len(files) == 0 {
		return do("-", s.in)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = do(name, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// options parses flags that may stand as "-n 5" and reports without exiting.
func options(s streams, name string, args []string, define func(*flag.FlagSet)) ([]string, error) {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(s.err)
	define(f)
	err := f.Parse(args)
	return f.Args(), err
}

func sha256sum(s streams, args []string) error {
	return each(s, args, func(name string, r io.Reader) error {
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.out, "%x  %s\n", h.Sum(nil), name)
		return err
	})
}

func head(s streams, args []string) error {
	n := 10
	bytes := int64(-1)
	files, err := options(s, "head", args, func(f *flag.FlagSet) {
		f.IntVar(&n, "n", n, "lines")
		f.Int64Var(&bytes, "c", bytes, "bytes")
	})
	if err != nil {
		return err
	}
	return each(s, files, func(_ string, r io.Reader) error {
		if bytes >= 0 {
			_, err := io.CopyN(s.out, r, bytes)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		lines := bufio.NewReader(r)
		for range n {
			line, err := lines.ReadString('\n')
			if _, err := io.WriteString(s.out, line); err != nil {
				return err
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func tail(s streams, args []string) error {
	n := 10
	files, err := options(s, "tail", args, func(f *flag.FlagSet) { f.IntVar(&n, "n", n, "lines") })
	if err != nil {
		return err
	}
	return each(s, files, func(_ string, r io.Reader) error {
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		lines := strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
		_, err = fmt.Fprintln(s.out, strings.Join(lines[max(0, len(lines)-n):], ""))
		return err
	})
}

func wc(s streams, args []string) error {
	return each(s, args, func(name string, r io.Reader) error {
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.out, "%d %d %d %s\n", strings.Count(string(text), "\n"), len(strings.Fields(string(text))), len(text), name)
		return err
	})
}

// grep exits with 1 when nothing matched, as scripts expect.
func grep(s streams, args []string) int {
	var quiet, invert, count, ignore bool
	rest, err := options(s, "grep", args, func(f *flag.FlagSet) {
		f.BoolVar(&quiet, "q", false, "print nothing")
		f.BoolVar(&invert, "v", false, "lines that do not match")
		f.BoolVar(&count, "c", false, "count")
		f.BoolVar(&ignore, "i", false, "ignore case")
	})
	if err != nil || len(rest) == 0 {
		return 2
	}
	pattern := rest[0]
	if ignore {
		pattern = "(?i)" + pattern
	}
	expression, err := regexp.Compile(pattern)
	if err != nil {
		fmt.Fprintln(s.err, err)
		return 2
	}
	matches := 0
	err = each(s, rest[1:], func(_ string, r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if expression.MatchString(lines.Text()) == invert {
				continue
			}
			matches++
			if !quiet && !count {
				fmt.Fprintln(s.out, lines.Text())
			}
		}
		return lines.Err()
	})
	if err != nil {
		fmt.Fprintln(s.err, err)
		return 2
	}
	if count {
		fmt.Fprintln(s.out, matches)
	}
	if matches == 0 {
		return 1
	}
	return 0
}

func hexdump(s streams, args []string) error {
	if len(args) > 0 && args[0] == "-C" {
		args = args[1:]
	}
	return each(s, args, func(_ string, r io.Reader) error {
		d := hex.Dumper(s.out)
		defer d.Close()
		_, err := io.Copy(d, r)
		return err
	})
}

// dd knows if=, of=, bs=, count=, skip=, seek= and conv=notrunc, which is what
// damaging a partition on purpose takes. The output is synced.
func dd(s streams, args []string) error {
	in, out, size, count := "", "", int64(512), int64(-1)
	var skip, seek int64
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		var err error
		switch key {
		case "if":
			in = value
		case "of":
			out = value
		case "bs":
			size, err = bytesOf(value)
		case "count":
			count, err = bytesOf(value)
		case "skip":
			skip, err = bytesOf(value)
		case "seek":
			seek, err = bytesOf(value)
		case "conv":
			if value == "notrunc" {
				flags &^= os.O_TRUNC
			}
		default:
			err = fmt.Errorf("unknown operand %q", arg)
		}
		if err != nil {
			return fmt.Errorf("dd: %w", err)
		}
	}
	src, dst := s.in, s.out
	if in != "" {
		f, err := os.Open(in)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Seek(skip*size, io.SeekStart); err != nil && skip > 0 {
			return err
		}
		src = f
	}
	if count >= 0 {
		src = io.LimitReader(src, count*size)
	}
	if out == "" {
		_, err := io.CopyBuffer(dst, src, make([]byte, size))
		return err
	}
	f, err := os.OpenFile(out, flags, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Seek(seek*size, io.SeekStart); err != nil && seek > 0 {
		f.Close()
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, src, make([]byte, size))
	if serr := f.Sync(); serr != nil && !strings.Contains(serr.Error(), "invalid argument") {
		err = errors.Join(err, serr)
	}
	fmt.Fprintf(s.err, "%d bytes\n", n)
	return errors.Join(err, f.Close())
}

func bytesOf(s string) (int64, error) {
	factor := int64(1)
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'k', 'K':
			factor, s = 1<<10, s[:n-1]
		case 'M':
			factor, s = 1<<20, s[:n-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<40 {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return n * factor, nil
}
