package early

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrModules means that the list of modules in the initramfs is malformed.
var ErrModules = errors.New("module list")

// maxModules bounds the list; a board needs about thirty.
const maxModules = 256

// Module is one line of the list: a file in the initramfs and its parameters.
type Module struct{ Path, Params string }

// ParseModules reads the list of kernel modules: one absolute path per line,
// optionally followed by module parameters; empty lines and lines that begin
// with "#" are skipped. The order is the order of loading, so that the list
// needs no knowledge of dependencies; the watchdog's driver comes first.
func ParseModules(r io.Reader) ([]Module, error) {
	var list []Module
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		file, params, _ := strings.Cut(line, " ")
		if !path.IsAbs(file) || path.Clean(file) != file {
			return nil, fmt.Errorf("%w: line %d: %q is not an absolute path", ErrModules, n, file)
		}
		if len(list) == maxModules {
			return nil, fmt.Errorf("%w: more than %d modules", ErrModules, maxModules)
		}
		list = append(list, Module{file, strings.TrimSpace(params)})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModules, err)
	}
	return list, nil
}

// load hands the module to the kernel. A driver whose hardware is absent
// (ENODEV: crc32c-intel without SSE 4.2) or that is there already (EEXIST:
// built in, or listed twice) is no failure: the board's list serves several
// machines. Whether something essential is missing shows where it is used.
func load(m Module) error {
	f, err := os.Open(m.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), m.Params, 0)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
