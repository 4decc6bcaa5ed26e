package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// Initramfs is the file system that the kernel starts with: one program, the
// kernel modules that it needs in order to find the root file system, and the
// keys that it checks the slot with.
type Initramfs struct {
	Init       []byte   // becomes /init
	ModulesDir string   // holds kernel/ and below, as /lib/modules/6.1.0-56-amd64
	Modules    []string // names as in a board file; their dependencies are found
	Files      []File   // as /etc/tandem/release-keys.json
}

// File is a file that is added to an image.
type File struct {
	Path string // absolute
	Mode fs.FileMode
	Data []byte
}

// Build returns the archive, a newc cpio (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst).
//
// It is not compressed: a delta between two releases finds the equal files in a
// plain archive and nothing in a compressed one. Boot time does not decide it:
// from power-on to /init under emulation, 5.9 MB plain took 17.8 and 19.3 s of CPU
// time, 1.5 MB of zstd -19 took 17.7 and 18.6 s. It costs room in the boot partition.
//
// /etc/tandem/modules holds the absolute paths of the modules in the order in
// which they have to be loaded, one on a line.
func (i Initramfs) Build() ([]byte, error) {
	version := filepath.Base(i.ModulesDir)
	modules, err := ResolveModules(i.ModulesDir, i.Modules)
	if err != nil {
		return nil, fmt.Errorf("build initramfs: %w", err)
	}
	files := append([]File{{Path: "/init", Mode: 0o755, Data: i.Init}}, i.Files...)
	var list strings.Builder
	for _, m := range modules {
		data, err := os.ReadFile(filepath.Join(i.ModulesDir, m))
		if err != nil {
			return nil, fmt.Errorf("build initramfs: %w", err)
		}
		at := path.Join("/lib/modules", version, m)
		files = append(files, File{Path: at, Mode: 0o644, Data: data})
		fmt.Fprintln(&list, at)
	}
	files = append(files, File{Path: "/etc/tandem/modules", Mode: 0o644, Data: []byte(list.String())})

	dirs := map[string]bool{"dev": true, "proc": true, "sys": true, "run": true, "sysroot": true}
	for _, f := range files {
		for d := path.Dir(f.Path[1:]); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	// The kernel opens /dev/console for /init before anything can be mounted.
	records := []cpio.Record{cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3)}
	for d := range dirs {
		records = append(records, cpio.Directory(d, 0o755))
	}
	for _, f := range files {
		records = append(records, cpio.StaticFile(f.Path[1:], string(f.Data), uint64(f.Mode.Perm())))
	}
	// A folder sorts before what is in it, as the kernel needs them.
	sort.Slice(records, func(i, j int) bool { return records[i].Name < records[j].Name })
	for i := 1; i < len(records); i++ {
		if records[i].Name == records[i-1].Name {
			return nil, fmt.Errorf("build initramfs: /%s occurs twice", records[i].Name)
		}
	}
	cpio.MakeAllReproducible(records)
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	if err := cpio.WriteRecords(w, records); err != nil {
		return nil, fmt.Errorf("build initramfs: %w", err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("build initramfs: %w", err)
	}
	return pad(out.Bytes(), 512), nil
}

// ResolveModules returns the paths, relative to dir, of the named kernel modules
// and of those that they depend on, in an order in which they can be loaded. What
// they depend on is read from the modules themselves, since modules.dep is made
// only when a kernel package is installed. A module that is built into the
// kernel needs no file.
func ResolveModules(dir string, names []string) ([]string, error) {
	paths := make(map[string]string)
	compressed := ""
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if name, ok := strings.CutSuffix(e.Name(), ".ko"); ok {
			paths[moduleName(name)] = filepath.ToSlash(rel)
		} else if strings.Contains(e.Name(), ".ko.") {
			compressed = rel
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	if compressed != "" {
		return nil, fmt.Errorf("read kernel modules: %s is compressed; unpack the modules first, deltas need them plain", compressed)
	}
	builtin, err := builtinModules(dir)
	if err != nil {
		return nil, err
	}
	var order []string
	state := make(map[string]int) // 1: being looked at, 2: in order
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = moduleName(name)
		p, ok := paths[name]
		switch {
		case state[name] == 2 || !ok && builtin[name]:
			return nil
		case state[name] == 1:
			return fmt.Errorf("kernel modules %s and %s need each other", name, by)
		case !ok:
			return fmt.Errorf("kernel module %s, needed by %s, is neither in %s nor built in", name, by, dir)
		}
		state[name] = 1
		needs, err := moduleNeeds(filepath.Join(dir, p))
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := visit(n, name); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, p)
		return nil
	}
	for _, n := range names {
		if err := visit(n, "the board"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is the kernel's spelling: files have either dash or underscore.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func builtinModules(dir string) (map[string]bool, error) {
	data, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	builtin := make(map[string]bool)
	for line := range strings.Lines(string(data)) {
		builtin[moduleName(strings.TrimSuffix(path.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	return builtin, nil
}

// moduleNeeds returns what the module's own notes say it depends on.
func moduleNeeds(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("read kernel module %s: no .modinfo section", file)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
